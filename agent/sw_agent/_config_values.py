"""Whether a value fits its key, and what is said where it does not."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ._config_schema import Key

TRUE = ("true", "1", "yes", "on")
FALSE = ("false", "0", "no", "off")
_KIND_NAMES = {str: "text", bool: "boolean: true or false", int: "whole number", float: "number", list: "list of text"}


class ConfigError(Exception):
    """The configuration cannot be used; its text says where, why, and what was probably meant, but no secret."""

    def __str__(self) -> str:
        from ._secrets import without_secrets

        return without_secrets(super().__str__())


def parsed(key: Key, text: str) -> Any:
    """Read a key's value from a variable; a list is comma separated, but for the commas of `{2,3}`.

    Raises:
        ValueError: it is of another type; the text says so.
    """
    if key.kind is list:
        return [part for part in map(str.strip, _split(text)) if part]
    if key.kind is bool:
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
    elif key.kind is str:
        return text
    else:
        try:
            return key.kind(text)
        except ValueError:
            pass  # int's own message names neither the key's type nor the value as it was written
    raise ValueError(f"{text!r} is no {_KIND_NAMES[key.kind]}")


def _split(text: str) -> list[str]:
    if "{" not in text:
        return text.split(",")
    import re

    return re.split(r",(?!\d*\})", text)


def checked(key: Key, value: Any) -> Any:
    """Return a value of the key's own type, within its bounds, in the spelling of its choices.

    Raises:
        ValueError: it is no such value; the text says why.
    """
    kind = type(value)  # exactly: True is an int to isinstance
    if kind is str and str(key) == "export.to":
        return checked(key, parsed(key, value))
    if kind is int and key.kind is float:
        return checked(key, float(value) if abs(value) < 2**53 else float("inf"))
    if kind is not key.kind or (key.kind is list and any(type(item) is not str for item in value)):
        raise ValueError(f"{value!r} is no {_KIND_NAMES[key.kind]}")
    if key.choices and key.kind is list:
        value = [_choice(key, item) for item in value]
        if "none" in value and len(value) > 1:
            raise ValueError("'none' stands alone")
    elif key.choices:
        value = _choice(key, value)
    if key.kind in (int, float):
        _check_bounds(key, value)
    if key.check is not None:
        key.check(value)
    return value


def unknown(name: str, valid: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the valid one that looks like it, else all of them."""
    valid = list(valid)
    return did_you_mean(name, valid) or (f"; there are {', '.join(valid)}" if valid else "")


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return the end of a message that names the valid name nearest to this one; nothing where none is near."""
    from difflib import get_close_matches

    names = {valid_name.lower().replace("_", "-"): valid_name for valid_name in valid}
    close = get_close_matches(name.lower().replace("_", "-"), names, n=1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def _choice(key: Key, value: str) -> str:
    value = {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(value.upper(), value) if key.name == "logging_level" else value
    for choice in key.choices:
        if choice.lower() == value.lower():
            return choice
    raise ValueError(f"{value!r} is none of {', '.join(key.choices)}{did_you_mean(value, key.choices)}")


def _check_bounds(key: Key, value: float) -> None:
    if value - value != 0:
        raise ValueError(f"{value} is no number to work with")
    if key.least is not None and value < key.least:
        raise ValueError(f"{value} is less than {key.least}")
    if key.most is not None and value > key.most:
        raise ValueError(f"{value} is more than {key.most}")
