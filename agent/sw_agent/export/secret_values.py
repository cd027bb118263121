"""The values of attributes without secrets: what `_secrets` knows, and what the configuration's patterns match."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .._secrets import is_secret_key, without_secrets
from ..http import REDACTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_REMEMBERED = 1024  # texts, and as many keys
LONGEST_REMEMBERED = 128  # characters
LONGEST_TEXT, OVERLAP = 2**16, 2**10  # characters that are kept of a text, and those behind them that are looked at too


class Values:
    """Replaces secrets by REDACTED: what the `patterns` match, and the value of each key that they match.

    Each method returns the very object that it was given where that holds no secret. Texts and keys that hold none are
    remembered, so that what comes with every span costs a look into a set.

    Raises:
        re.error: a pattern is no regular expression.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._clean_texts: set[str] = set()
        self._clean_keys: set[str] = set()
        self._clean_types: set[type] = {bool, type(None), *(() if patterns else (int, float))}

    def text(self, text: str) -> str:
        """Return the text without secrets; a long one is cut, since looking at all of it would take seconds."""
        if text in self._clean_texts:
            return text
        redacted = without_secrets(text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT + OVERLAP])
        for pattern in self._patterns:
            redacted = pattern.sub(_hide, redacted)
        redacted = redacted[:LONGEST_TEXT]
        if redacted != text:
            return redacted
        _remember(text, self._clean_texts)
        return text

    def attributes(self, attributes: Any) -> Any:
        """Return a mapping without secrets; what cannot be looked at is REDACTED."""
        if not attributes:
            return attributes
        texts, keys, types = self._clean_texts, self._clean_keys, self._clean_types
        try:
            plain = attributes.copy()  # in one step: no lock and no call for each item
        except AttributeError:
            plain = dict(attributes)
        found = {}
        for key, value in plain.items():
            kind = type(value)
            if key in keys and (kind in types or (kind is str and value in texts)):
                continue
            item = self._item(key, value)
            if item[0] is not key or item[1] is not value:
                found[key] = item
        return dict(found.get(key) or (key, plain[key]) for key in plain) if found else attributes

    def value(self, value: Any) -> Any:
        """Return a value of any type without secrets; what has no text is left as it is.

        Raises:
            RecursionError: it is nested too deeply.
        """
        if isinstance(value, str):
            plain = str.__str__(value)  # what it holds, whatever the methods of a subclass say
            redacted = self.text(plain)
            return value if redacted is plain else redacted
        if type(value) in self._clean_types:
            return value
        if isinstance(value, bytes):
            plain = value.decode("utf-8", "surrogateescape")
            redacted = self.text(plain)
            return value if redacted is plain else redacted.encode("utf-8", "surrogateescape")
        if isinstance(value, Sequence):
            return self._sequence(value)
        try:
            looked_at = dict(value) if isinstance(value, Mapping) or hasattr(value, "keys") else str(value)
        except Exception:  # an integer of too many digits, a `__str__` that raises: the encoders know what to do
            return value
        shown = self.attributes(looked_at) if isinstance(looked_at, dict) else self.text(looked_at)
        return value if shown is looked_at else shown

    def _sequence(self, values: Sequence[Any]) -> Any:
        shown = [self.value(value) for value in values]
        if len(shown) == 2 and isinstance(values[0], str | bytes) and self._is_secret(_name(values[0])):
            shown[1] = hidden(values[1])  # a header: its name and its value
        return values if all(new is old for new, old in zip(shown, values, strict=True)) else shown

    def _item(self, key: Any, value: Any) -> tuple[Any, Any]:
        try:
            if key not in self._clean_keys:
                name = _name(key)
                clean_name = without_secrets(name)  # what a pattern matches here is a name, and stays
                is_secret = self._is_secret(name)
                if clean_name == name and not is_secret and type(key) is str:
                    _remember(key, self._clean_keys)
                return key if clean_name == name else clean_name, hidden(value) if is_secret else self.value(value)
            return key, self.value(value)
        except Exception:
            return key, REDACTED

    def _is_secret(self, key: str) -> bool:
        return is_secret_key(key) or any(found[0] for pattern in self._patterns for found in pattern.finditer(key))


def _name(key: Any) -> str:
    return key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else str(key)


def hidden(value: Any) -> Any:
    """Return what stands in the place of a value of that type: a list for a list, as headers are."""
    place: Any = (REDACTED,) if isinstance(value, list | tuple) else REDACTED
    return value if value == place else place


def _hide(found: re.Match[str]) -> str:
    """Return what stands in the place of a pattern's match; what is empty, or hidden already, stays."""
    start, end = found.span()
    is_hidden = found.string.find(REDACTED, max(0, end - len(REDACTED)), start + len(REDACTED)) >= 0
    return found[0] if start == end or is_hidden else REDACTED


def _remember(text: str, clean: set[str]) -> None:
    if len(text) <= LONGEST_REMEMBERED:
        if len(clean) >= MOST_REMEMBERED:
            clean.clear()
        clean.add(text)
