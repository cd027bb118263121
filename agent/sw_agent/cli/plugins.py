"""`sw-python plugins`: every plugin that is installed here, and whether and why it is on or off.

`--json` prints one array. Each element has `name`, `state` ("on", "off", "unsupported" or "failed"), `why` (null where
it is on), `library`, `version` (null where it is not installed), `supported` (a version specifier, or null),
`distribution` (which brought the plugin) and `module`.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from .. import _config, _discovery, _versions

if TYPE_CHECKING:
    import argparse

    from .._config import Config
    from .._discovery import PluginEntry
    from ..plugin import Plugin


class PluginState(NamedTuple):
    """What there is to say about one plugin."""

    name: str
    state: str
    why: str | None
    library: str
    version: str | None
    supported: str | None
    distribution: str
    module: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    parser.add_argument("--config", metavar="FILE", help="the configuration to use (default: as for `run`)")


def run(options: argparse.Namespace) -> int:
    """Print the list."""
    environ, said_as = environment(options)
    entries = _discovery.find_plugins()
    config = _config.load(environ, entries, said_as=said_as)
    states = [state_of(entry, config) for entry in entries.values()]
    if options.json:
        import json

        print(json.dumps([state._asdict() for state in states], indent=2))
    else:
        _print(states)
    return 0


def environment(options: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment with the option `--config` in it, and what to call that variable in messages."""
    if options.config is None:
        return dict(os.environ), {}
    return {**os.environ, "SW_AGENT_CONFIG": options.config}, {"SW_AGENT_CONFIG": "--config"}


def state_of(entry: PluginEntry, config: Config) -> PluginState:
    """Find out about one plugin: this imports it, but not its library."""
    state, why = "on", None
    library, version, supported = "", None, None
    try:
        plugin = entry.load()
        library, version, supported = _library(plugin)
        if unsupported := _versions.why_unsupported(plugin):
            state, why = "unsupported", unsupported
    except (Exception, SystemExit) as error:
        state, why = "failed", f"{type(error).__name__}: {error}"
    if disabled_by := config.why_disabled(entry.name):
        state, why = "off", f"disabled by {disabled_by}"
    if not config.enabled:
        state, why = "off", f"the agent is off: {config.sources['agent.enabled']}"
    return PluginState(entry.name, state, why, library, version, supported, _distribution(entry), entry.module)


def _library(plugin: Plugin) -> tuple[str, str | None, str | None]:
    if plugin.requires is None:
        return "Python", ".".join(map(str, sys.version_info[:3])), None
    from packaging.requirements import Requirement

    requirement = Requirement(plugin.requires)
    return requirement.name, _versions.installed_version(plugin), str(requirement.specifier)


def _distribution(entry: PluginEntry) -> str:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = distribution(entry.distribution)
    except PackageNotFoundError:
        return entry.distribution
    return f"{found.metadata['Name']} {found.version}"


def _print(states: list[PluginState]) -> None:
    from rich.table import Table

    from ..view.terminal import show

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("plugin", "state", "library", "version", "supported", "from"):
        table.add_column(title)
    colours = {"on": "green", "off": "dim", "unsupported": "yellow", "failed": "red"}
    for it in states:
        state = f"{it.state}: {it.why}" if it.why else it.state
        cells = (it.name, state, it.library, it.version or "not installed", it.supported or "", it.distribution)
        table.add_row(*cells, style=colours[it.state] if it.state != "on" else None)
    show(table)
