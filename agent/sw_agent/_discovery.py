"""Which plugins there are: the entry points of group `sw_agent.plugins`, found without importing any of them.

An entry point reads `name = module:attribute [trigger, …]`. The triggers, in the place that the specification of entry
points keeps for extras, are the modules whose import brings the plugin in; without one it is imported at start.

`importlib.metadata` would take longer to import than a traced program may take to start (28 ms on Python 3.13), so the
files are read here. They are `entry_points.txt` in the `*.dist-info` and `*.egg-info` folders on `sys.path`; of two
folders with the same distribution the first on the path counts.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .plugin import Plugin

GROUP = "sw_agent.plugins"


class PluginEntry:
    """An entry point of a plugin: `load()` imports it."""

    __slots__ = ("attribute", "distribution", "module", "name", "triggers")

    def __init__(self, name: str, module: str, attribute: str, triggers: tuple[str, ...], distribution: str) -> None:
        self.name = name
        self.module = module
        self.attribute = attribute
        self.triggers = triggers
        self.distribution = distribution

    def load(self) -> Plugin:
        """Import the plugin.

        Raises:
            TypeError: what the entry point names is no `Plugin`.
            Exception: whatever the plugin's module raises.
        """
        from .plugin import Plugin

        __import__(self.module)
        plugin: object = sys.modules[self.module]
        for part in self.attribute.split("."):
            plugin = getattr(plugin, part)
        if not isinstance(plugin, Plugin):
            raise TypeError(f"{self.module}:{self.attribute} is no Plugin")
        if plugin.name != self.name:
            raise TypeError(f"{self.module}:{self.attribute} is named {plugin.name!r}, its entry point {self.name!r}")
        return plugin


def find_plugins(path: Iterable[str] | None = None) -> dict[str, PluginEntry]:
    """Return the plugins installed in this environment by name, in the order of `path` (default: `sys.path`)."""
    found: dict[str, PluginEntry] = {}
    seen: set[str] = set()
    for folder in sys.path if path is None else path:
        for metadata in _metadata_folders(folder or "."):
            distribution = os.path.basename(metadata).partition("-")[0].lower()
            if distribution in seen:
                continue
            seen.add(distribution)
            for entry in _entries(metadata, distribution):
                found.setdefault(entry.name, entry)
    return found


def _metadata_folders(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:  # not a folder: a zip file, a path entry that does not exist, one that may not be read
        return []
    return [os.path.join(folder, name) for name in sorted(names) if name.endswith((".dist-info", ".egg-info"))]


def _entries(metadata: str, distribution: str) -> Iterator[PluginEntry]:
    try:
        with open(os.path.join(metadata, "entry_points.txt"), encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError):  # most distributions have none
        return
    if GROUP not in text:
        return
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.strip("[] ")
        elif section == GROUP and "=" in line and not line.startswith(("#", ";")):
            name, _, value = (part.strip() for part in line.partition("="))
            reference, _, triggers = value.partition("[")
            module, _, attribute = (part.strip() for part in reference.partition(":"))
            modules = tuple(trigger.strip() for trigger in triggers.rstrip("] ").split(",") if trigger.strip())
            yield PluginEntry(name, module, attribute or "plugin", modules, distribution)
