"""The command `sw-python`: one module a command, imported when that command is called.

`run` is launched with every program: it parses its own few options, to start within a few milliseconds. Each of the
others has `add_arguments(parser)` and `run(options) -> int`, the exit status: 0 where it did what it was asked for. A
store that cannot be read is 1, a wrong configuration or wrong usage 2, for all of them alike.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "run": "run a program under the agent",
    "traces": "list the traces in the local store",
    "show": "show one trace as a waterfall",
    "plugins": "list the plugins, and which of them are on here and why",
    "doctor": "show the resolved configuration and what is wrong",
    "config": "print an agent.toml with every key and its default",
}

HELP = """\
sw-python: follow a Python program's work through threads, pools, processes and tasks

Usage: sw-python COMMAND [options]

Commands:
{commands}

Begin with:
  sw-python run --show app.py       run a program and see its traces
  sw-python COMMAND --help          the options of a command
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default this process's, and return the exit status."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command == "run":
        from .run import main as run

        return run(rest)
    from ..view.terminal import until_closed

    try:
        return until_closed(lambda: _dispatch(command, rest))
    except KeyboardInterrupt:
        return 130  # as a shell says of a command that Ctrl-C ended


def _dispatch(command: str, rest: Sequence[str]) -> int:
    if command in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:<9} {does}" for name, does in COMMANDS.items())), end="")
        return 0
    if command in ("-V", "--version"):
        from .._version import VERSION

        print("sw-python", VERSION)
        return 0
    if command not in COMMANDS:
        sys.stderr.write(f"sw-python: {_unknown(command)}\n")
        return 2
    from argparse import ArgumentParser
    from importlib import import_module

    from .._config import ConfigError
    from ..export.stored import StoreError

    module = import_module(f"{__name__}.{command}")
    parser = ArgumentParser(prog=f"sw-python {command}", description=COMMANDS[command])
    module.add_arguments(parser)
    try:
        options = parser.parse_args(rest)
    except SystemExit as end:  # after --help, or for an argument that is wrong
        return int(end.code or 0)
    try:
        return int(module.run(options))
    except (ConfigError, StoreError) as error:
        sys.stderr.write(f"sw-python: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1


def _unknown(command: str) -> str:
    import os

    from .._config_values import did_you_mean

    hint = did_you_mean(command, COMMANDS)
    if not hint and not command.startswith("-") and (os.path.exists(command) or command.endswith(".py")):
        hint = f"; did you mean `sw-python run {command}`?"
    return f"there is no command {command!r}{hint}\nsw-python --help lists the commands"
