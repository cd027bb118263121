"""`sw-python config`: an agent.toml with every key, what it means, its default and its variables.

Keys that have no default stand as comments, so that the file, read back, changes nothing.
"""

from __future__ import annotations

import json
import os
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from .. import _config, _discovery
from .._config_opentelemetry import variables_for
from .._config_schema import KEYS, Key, plugin_key

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_HEAD = """\
# The configuration of sw-python. It is read from `sw-python run --config FILE`, $SW_AGENT_CONFIG or ./agent.toml.
# Every key stands here with its default. A variable in the environment beats the file, the command line beats both.
"""
_KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list of text"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options."""
    parser.epilog = "To begin with: sw-python config > agent.toml"


def run(_options: argparse.Namespace) -> int:
    """Print the file, as UTF-8 whatever the locale's encoding is: TOML has no other."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    print(_HEAD)
    for section in dict.fromkeys(key.section for key in KEYS):
        print("\n".join(_section(section, [key for key in KEYS if key.section == section])))
    for entry in _discovery.find_plugins().values():
        print("\n".join(_plugin_section(entry)))
    return 0


def _plugin_section(entry: _discovery.PluginEntry) -> Iterator[str]:
    keys = [plugin_key(entry.name, "enabled", True, "false: leave the library untouched")]
    try:
        options = entry.load().options
    except (Exception, SystemExit) as error:
        yield f"# {entry.name}: its options are unknown, it cannot be imported: {type(error).__name__}: {error}"
        options = ()
    keys += [plugin_key(entry.name, o.name, o.default, o.help, o.choices) for o in options]
    yield from _section(f"plugins.{entry.name}", keys)


def _section(name: str, keys: list[Key]) -> Iterator[str]:
    yield f"[{name}]"
    for key in keys:
        yield ""
        yield f"# {key.help}"
        yield f"# {'; '.join((_values(key), ', '.join((*key.variables, *variables_for(str(key))))))}"
        default = key.default
        if default == ["auto"]:
            default = "auto"
        if default is not None:
            yield f"{key.name} = {literal(default)}"
        elif str(key) == "export.path":
            yield f"# path = {literal(os.path.expanduser(_config.default_path(os.environ)))}"
        else:
            yield f'# {key.name} = ""'
    yield ""


def _values(key: Key) -> str:
    if key.choices:
        return ("one or a list of " if key.kind is list else "") + ", ".join(key.choices)
    bounds = [f"at least {key.least}"] if key.least is not None else []
    bounds += [f"at most {key.most}"] if key.most is not None else []
    return ", ".join((_KINDS[key.kind], *bounds))


def literal(value: Any) -> str:
    """Return a value as TOML; its text in quotes and its lists are JSON's."""
    return json.dumps(value, ensure_ascii=False)
