"""Read agent.toml: imported only where there is one."""

from __future__ import annotations

import sys

from ._config_schema import KEYS, SECTIONS
from ._config_values import ConfigError, checked, unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

    from ._config import _Settings
    from ._config_schema import Key


def read(path: str, settings: _Settings) -> None:
    """Give every value of the file to `settings`, checked.

    Raises:
        ConfigError: the file cannot be read or is no TOML, or says something that is unknown or of no use.
    """
    text = _text(path)
    toml: Any = __import__("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        document = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise ConfigError(f"{path}: this is no TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: this is nested too deeply") from None
    _Reader(path, text, settings).read(document)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:  # editors on Windows begin a file with a mark
            return file.read()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: this is no UTF-8: {error.reason} at byte {error.start}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


class _Reader:
    def __init__(self, path: str, text: str, settings: _Settings) -> None:
        self._path = path
        self._text = text
        self._settings = settings

    def read(self, document: Mapping[str, Any]) -> None:
        for section, content in document.items():
            if section not in SECTIONS:
                of_key = [key for key in KEYS if key.name == section]
                hint = f"; it belongs in [{of_key[0].section}]" if of_key else unknown(section, SECTIONS)
                self._refuse("", section, f"there is no section [{section}]{hint}")
            if not isinstance(content, dict):
                self._refuse("", section, f"{section} is a section: write [{section}] on a line of its own")
            keys = {key.name: key for key in KEYS if key.section == section}
            for name, value in content.items():
                if section == "plugins" and name not in keys:
                    self._read_plugin(name, value)
                else:
                    self._read_key(section, keys, name, value)

    def _read_plugin(self, name: str, content: Any) -> None:
        section = f"plugins.{name}"
        entries = self._settings.entries
        if name not in entries:
            self._refuse("plugins", name, f"there is no plugin {name!r}{unknown(name, (*entries, 'disable'))}")
        if not isinstance(content, dict):
            self._refuse("plugins", name, f"{name} is a section: write [{section}] on a line of its own")
        only_enabled = "enabled" if set(content) <= {"enabled"} else ""
        keys = self._settings.plugin_keys(name, asked=only_enabled)
        for option, value in content.items():
            if option in keys or name not in self._settings.unloadable:
                self._read_key(section, keys, option, value)

    def _read_key(self, section: str, keys: Mapping[str, Key], name: str, value: Any) -> None:
        if name not in keys:
            self._refuse(section, name, f"[{section}] has no key {name!r}{unknown(name, keys)}")
        try:
            value = checked(keys[name], value)
            if str(keys[name]) == "plugins.disable":
                self._settings.check_plugin_names(value)
        except ValueError as error:
            self._refuse(section, name, f"[{section}] {name}: {error}")
        self._settings.set(keys[name], value, self._path)

    def _refuse(self, section: str, name: str, reason: str) -> NoReturn:
        line = _line_of(self._text, section, name)
        raise ConfigError(f"{self._path}:{line}: {reason}" if line else f"{self._path}: {reason}")


def _line_of(text: str, section: str, name: str) -> int | None:
    """Return the line where a key, or a section of that name, stands; TOML's parser does not tell."""
    wanted = f"{section}.{name}".lstrip(".")
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line.startswith("["):
            header = line.partition("#")[0].strip("[] \t")
            current = ".".join(part.strip(" \t\"'") for part in header.split("."))
            if current == wanted or current.startswith(wanted + "."):
                return number
        else:
            key = ".".join(part.strip(" \t\"'") for part in line.partition("=")[0].split("."))
            full = f"{current}.{key}".lstrip(".")
            if full == wanted or full.startswith(wanted + "."):
                return number
    return None
