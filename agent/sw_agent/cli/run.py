"""`sw-python run`: check the configuration, then become the program, with the agent on its PYTHONPATH.

This is on the way of every traced program's start: no argparse, no rich, nothing that takes milliseconds to import.
"""

from __future__ import annotations

import os
import sys

from .. import _command, _config, _discovery
from .._launchers import bootstrap_folder, set_python_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from .._config import Config

    T = TypeVar("T")

HELP = """\
Usage: sw-python run [options] [--] PROGRAM [argument ...]

Run a program under the agent; its exit status is the exit status. PROGRAM is a script or a folder or zip file with a
__main__.py, `-m MODULE`, `-c CODE`, or any command: python, gunicorn, make.

Options:
  --config FILE       the configuration (default: $SW_AGENT_CONFIG, then ./agent.toml)
  --service NAME      the service's name (default: from the command: app.py is app)
  --disable P,...     leave these plugins out, instead of those that the configuration disables
  --to OUTPUT,...     where spans go: auto, otlp, local, console or none
  --show              when the program has ended, print the waterfall of its traces to stderr
  --program-span      put all that the program does under one span, named after the command
  --debug             let the agent say on stderr what it does
  -h, --help          this text

Exit status: the program's; 2 for wrong usage or a wrong configuration, 126 for a program that cannot be executed,
127 for one that does not exist.
"""

# option -> the variable that it becomes, for the program and all that it starts
_WITH_VALUE = {
    "--config": "SW_AGENT_CONFIG",
    "--service": "SW_AGENT_NAME",
    "--disable": "SW_AGENT_DISABLE_PLUGINS",
    "--to": "SW_EXPORT_TO",
}
_FLAGS = {
    "--show": ("", ""),
    "--program-span": ("SW_AGENT_PROGRAM_SPAN", "true"),
    "--debug": ("SW_AGENT_LOGGING_LEVEL", "DEBUG"),
}

# uWSGI forks its workers in C, and calls Python's fork hooks only where it is told to. It reads its options from the
# environment too.
UWSGI = ("uwsgi", "pyuwsgi")
FORKS_AS_PYTHON_DOES = ("UWSGI_PY_CALL_UWSGI_FORK_HOOKS", "true")


class _UsageError(Exception):
    pass


class Options:
    """The options as given: by variable, with the option that said it; `--show`; and the program with its arguments."""

    def __init__(self) -> None:
        self.variables: dict[str, str] = {}
        self.said_as: dict[str, str] = {}
        self.show = False
        self.help = False
        self.program: Sequence[str] = ()


def main(argv: Sequence[str]) -> int:
    """Become the program; return only where that fails, with `--show`, or where there is nothing to run."""
    try:
        options = parse(argv)
        if options.help:
            from ..view.terminal import until_closed

            return until_closed(lambda: print(HELP, end="") or 0)
        environ = dict(os.environ) | options.variables
        environ.pop("SW_AGENT_COMMAND", None)  # of a launcher around this one
        config = (
            None
            if _config.killed_by(environ)
            else _config.load(environ, _discovery.find_plugins(), said_as=options.said_as)
        )
    except (_UsageError, _config.ConfigError) as error:
        sys.stderr.write(f"sw-python run: {error}\n")
        return 2
    try:
        path, command = resolve(options.program, environ.get("PATH", os.defpath))
    except OSError as error:
        sys.stderr.write(f"sw-python run: {error.filename}: {error.strerror}\n")
        return 126 if isinstance(error, PermissionError) else 127
    if config is None or not config.enabled:
        set_python_path(environ, None)
        return _execute(path, command, environ)
    prepare(environ, config, command)
    if not options.show:
        return _execute(path, command, environ)
    from ._shown import run_and_show

    return run_and_show(path, command, environ, config)


def parse(argv: Sequence[str]) -> Options:
    """Read the options up to the program.

    Raises:
        _UsageError: an option is unknown, lacks its value or has one too many, or no program follows.
    """
    options = Options()
    rest = list(argv)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "-m", "-c", "--"):
        name, equals, value = rest.pop(0).partition("=")
        if name in ("-h", "--help"):
            options.help = True
            return options
        if name in _FLAGS:
            if equals:
                raise _UsageError(f"{name} takes no value")
            variable, value = _FLAGS[name]
            options.show = options.show or name == "--show"
        elif name in _WITH_VALUE:
            variable = _WITH_VALUE[name]
            if not equals and rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            if not value.strip():
                raise _UsageError(f"{name} needs a value: {name}=…")
            if name == "--disable" and variable in options.variables:
                value = f"{options.variables[variable]},{value}"
        else:
            raise _UsageError(f"there is no option {name}{_hint(name)}")
        if variable:
            options.variables[variable] = value
            options.said_as[variable] = name
    options.program = rest[1:] if rest[:1] == ["--"] else rest
    if not options.program:
        raise _UsageError("what shall be run? For example: sw-python run app.py")
    if options.program[0] in ("-m", "-c") and len(options.program) == 1:
        raise _UsageError(f"{options.program[0]} needs {'a module' if options.program[0] == '-m' else 'code'} after it")
    return options


def _hint(name: str) -> str:
    from .._config_values import did_you_mean

    return (
        did_you_mean(name, (*_WITH_VALUE, *_FLAGS, "--help")) or "; an option of Python's? sw-python run python " + name
    )


def resolve(program: Sequence[str], search_path: str) -> tuple[str, list[str]]:
    """Return the file to execute and its argv.

    Raises:
        FileNotFoundError: there is no such command.
        PermissionError: there is such a file, and it cannot be executed.
    """
    name = program[0]
    found = _find(name, search_path)
    is_script = name.endswith(_command.SCRIPTS) and (found is None or os.path.exists(name))
    if name in ("-m", "-c", "-") or is_script or (found is None and _has_main(name)):
        return sys.executable, [sys.executable, *program]
    if found is not None:
        return found, list(program)
    beside = os.path.join(os.path.dirname(sys.executable), name)
    if os.sep not in name and _is_executable(beside):  # of an environment that is not activated
        return beside, [beside, *program[1:]]
    if os.sep in name and os.path.exists(name):
        raise PermissionError(0, "cannot be executed", name)
    raise FileNotFoundError(0, "command not found", name)


def _find(name: str, search_path: str) -> str | None:
    if os.name == "nt":
        import shutil

        return shutil.which(name, path=search_path)
    if os.sep in name:
        return name if _is_executable(name) else None
    candidates = (os.path.join(folder or ".", name) for folder in search_path.split(os.pathsep))
    return next(filter(_is_executable, candidates), None)


def _is_executable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _has_main(path: str) -> bool:
    if os.path.isdir(path):
        return os.path.isfile(os.path.join(path, "__main__.py"))
    from zipimport import ZipImportError, zipimporter

    try:
        return zipimporter(path).find_spec("__main__") is not None
    except ZipImportError:
        return False


def prepare(environ: dict[str, str], config: Config, command: Sequence[str]) -> None:
    """Put into the program's environment what the processes of this run have to know."""
    environ["SW_AGENT_COMMAND"] = _command.short_form(command)
    if config.file:
        environ["SW_AGENT_CONFIG"] = os.path.abspath(config.file)
    if environ.get("SW_EXPORT_PATH"):
        environ["SW_EXPORT_PATH"] = config.path  # absolute: the program may change its folder
    if environ["SW_AGENT_COMMAND"] in UWSGI:
        environ.setdefault(*FORKS_AS_PYTHON_DOES)
    set_python_path(environ, bootstrap_folder())


def _execute(path: str, command: list[str], environ: dict[str, str]) -> int:
    if os.name == "nt":  # exec there starts another process, and the shell does not wait for it
        import subprocess

        return subprocess.call([path, *command[1:]], env=environ)
    _restore_signals()
    try:
        start(os.execve, path, command, environ)
    except OSError as error:
        sys.stderr.write(f"sw-python run: {path}: {error.strerror}\n")
    return 126


def start(call: Callable[..., T], path: str, command: list[str], environ: dict[str, str]) -> T:
    """Call `call(path, command, environ)`, which executes; as in a shell, a script without `#!` is the shell's.

    Raises:
        OSError: it cannot be executed.
    """
    try:
        return call(path, command, environ)
    except OSError as error:
        import errno

        if error.errno != errno.ENOEXEC:
            raise
    return call("/bin/sh", ["sh", path, *command[1:]], environ)


def _restore_signals() -> None:
    """Undo what Python does to signals at its own start; what is ignored stays ignored through exec."""
    import _signal  # type: ignore[import-not-found]  # `signal` itself would import enum

    for name in ("SIGPIPE", "SIGXFSZ"):
        if hasattr(_signal, name):
            _signal.signal(getattr(_signal, name), _signal.SIG_DFL)
