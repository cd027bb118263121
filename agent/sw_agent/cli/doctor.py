"""`sw-python doctor`: the resolved configuration with the source of each value, and all that may be wrong.

`--json` prints one object: `healthy`, `problems` and `notes` (arrays of text), `configuration` (by key: `value` and
`source`; null where it is wrong), `file`, `interpreter`, `versions`, `bootstrap`, `collector` (null where spans go to
none), `store`, `spool` (for each `service` and `endpoint`: `spans`, `bytes`, `oldest_ns`), `plugins` (as `sw-python
plugins --json`) and `unknown_variables` (each with the nearest valid name, or null). What is secret is REDACTED in all
of it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .. import _config, _discovery
from .._config_schema import KEYS
from .._python_path import bootstrap_folder
from ..export.secret_values import Values
from . import _checks
from .plugins import environment, state_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from .._config import Config
    from .._discovery import PluginEntry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--config", metavar="FILE", help="the configuration to use (default: as for `run`)")


def run(options: argparse.Namespace) -> int:
    """Print the findings; the status is 1 where something is wrong."""
    environ, said_as = environment(options)
    report = examine(environ, said_as)
    if options.json:
        import json

        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0 if report["healthy"] else 1


def examine(environ: Mapping[str, str], said_as: Mapping[str, str]) -> dict[str, Any]:
    """Look at everything and return the findings, in the shape of `--json`."""
    entries = _discovery.find_plugins()
    problems: list[str] = []
    notes: list[str] = []
    config: Config | None = None
    try:
        config = _config.load(environ, entries, said_as=said_as)
    except _config.ConfigError as error:
        problems.append(str(error))
    report: dict[str, Any] = {
        "healthy": True,
        "problems": problems,
        "notes": notes,
        "configuration": _configuration(config) if config else None,
        "file": os.path.abspath(config.file) if config and config.file else None,
        "interpreter": _checks.interpreter(),
        "versions": _checks.installed_versions(_checks.VERSIONS),
        "bootstrap": bootstrap_folder(),
        "collector": None,
        "store": None,
        "spool": [],
        "plugins": [],
        "unknown_variables": _checks.unknown_variables(environ, entries),
    }
    if config is not None:
        _examine_configured(config, entries, report)
    if not os.path.isfile(os.path.join(report["bootstrap"], "sitecustomize.py")):
        problems.append(f"there is no sitecustomize.py in {report['bootstrap']}: install sw-python again")
    if _checks.installed_versions((_checks.SKYWALKING,)):
        problems.append(
            f"{_checks.SKYWALKING} is installed here too: both own the command `sw-python`; use two environments"
        )
    for name, version in _checks.installed_versions(_checks.OTHER_AGENTS).items():
        notes.append(f"{name} {version} is installed here: in a program that it traces too, each has spans of its own")
    for name, version in _checks.installed_versions(tuple(_checks.OPENTELEMETRYS)).items():
        plugin = _checks.OPENTELEMETRYS[name]
        notes.append(f"{name} {version} is installed here: where a program uses it, plugin {plugin} makes no spans")
    on_path = report["interpreter"]["python_on_path"]
    if on_path and os.path.dirname(on_path) != os.path.dirname(report["interpreter"]["executable"]):
        notes.append(f"`sw-python run python …` runs {on_path}: traced only if sw-python is installed for it")
    if not _checks.is_compiled():
        notes.append("the modules in C are not compiled: SIGTERM is caught by other means; see docs/delivery.md")
    for variable, nearest in report["unknown_variables"].items():
        notes.append(f"{variable} means nothing to the agent" + (f"; did you mean {nearest}?" if nearest else ""))
    report["healthy"] = not problems
    return _without_secrets(report, config)


def _examine_configured(config: Config, entries: Mapping[str, PluginEntry], report: dict[str, Any]) -> None:
    problems, notes = report["problems"], report["notes"]
    notes.extend(config.warnings)
    if not config.enabled:
        notes.append(f"the agent is switched off: {config.sources['agent.enabled']}")
    report["plugins"] = [state_of(entry, config)._asdict() for entry in entries.values()]
    for plugin in report["plugins"]:
        if plugin["state"] == "failed":
            problems.append(f"plugin {plugin['name']} of {plugin['distribution']} cannot be imported: {plugin['why']}")
        elif plugin["state"] == "unsupported":
            notes.append(f"plugin {plugin['name']} is left out: {plugin['why']}")
    report["collector"] = _checks.collector(config)
    if report["collector"] and not report["collector"]["reachable"]:
        problems.append(f"no collector answers at {report['collector']['endpoint']}: {report['collector']['why']}")
    report["store"] = _checks.store(config)
    report["spool"] = _checks.spool(config)
    if report["store"]["why"] and "local" in config.to:
        problems.append(f"the local store {config.path} cannot be used: {report['store']['why']}")


def _configuration(config: Config) -> dict[str, dict[str, Any]]:
    values = {str(key): getattr(config, key.attribute) for key in KEYS}
    for plugin, options in config.plugins.items():
        values.update({f"plugins.{plugin}.{name}": value for name, value in options.items()})
    for key in config.sources:
        if key.endswith(".enabled") and key not in values:
            values[key] = config.plugin_enabled(key.split(".")[1])
    values["export.endpoint"] = _checks.without_credentials(config.endpoint)
    return {key: {"value": value, "source": config.sources[key]} for key, value in values.items()}


def _without_secrets(report: dict[str, Any], config: Config | None) -> dict[str, Any]:
    """Return the report without secrets in what the configuration, the environment or an exception has said."""
    values = Values(config.redact if config else ())
    for key, found in (report["configuration"] or {}).items():
        if isinstance(found["value"], str | tuple | list):  # not the numbers, which a pattern may well match
            found["value"] = values.attributes({key: found["value"]})[key]
    for part in ("problems", "notes", "plugins", "collector"):
        report[part] = values.value(report[part])
    return report


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..view.terminal import show

    def section(title: str, rows: Mapping[str, str | tuple[str, ...]]) -> None:
        table = Table.grid(padding=(0, 2))
        for name, texts in rows.items():
            table.add_row(Text(f"  {name}"), *map(Text, (texts,) if isinstance(texts, str) else texts))
        show(Text(f"\n{title}", style="bold"), table)

    python, store, collector = report["interpreter"], report["store"], report["collector"]
    section(
        "here",
        {
            "Python": f"{python['version']} ({python['implementation']}), {python['executable']}",
            **report["versions"],
            "bootstrap": report["bootstrap"],
            "agent.toml": report["file"] or "none",
        },
    )
    if report["configuration"]:
        values = report["configuration"].items()
        section(
            "configuration, and where it comes from",
            {key: (_text(found["value"]), found["source"]) for key, found in values},
        )
    if collector:
        answer = "reachable" if collector["reachable"] else f"not reachable: {collector['why']}"
        section("collector", {collector["endpoint"]: answer})
    if store:
        state = f"{store['bytes']:,} bytes" if store["exists"] else "not there yet"
        section("local store", {store["path"]: f"{state}, {'writable' if store['writable'] else store['why']}"})
    if report["spool"]:
        section("waiting for a collector", dict(map(_waiting, report["spool"])))
    if report["plugins"]:
        section("plugins", {it["name"]: ": ".join(filter(None, (it["state"], it["why"]))) for it in report["plugins"]})
    for title, style in (("notes", "yellow"), ("problems", "bold red")):
        if report[title]:
            show(Text(f"\n{title}", style=style), *(Text(f"  {text}") for text in report[title]))
    show(Text("\nall is well" if report["healthy"] else "\nsomething is wrong: see problems", style="bold"))


def _waiting(found: Mapping[str, Any]) -> tuple[str, str]:
    from ..view.wording import count, moment

    waiting = f"{count(found['spans'], 'span')}, {found['bytes']:,} bytes, since {moment(found['oldest_ns'])}"
    return f"{found['service']} for {found['endpoint']}", waiting


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
