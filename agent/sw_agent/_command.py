"""What a command line is called: `app.py`, `-m pkg`, `gunicorn`; and the service name that follows from it."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SCRIPTS = (".py", ".pyw", ".pyz")
LAUNCHERS = ("ddtrace-run", "elasticapm-run", "newrelic-admin", "opentelemetry-instrument")  # of other agents


def short_form(argv: Sequence[str]) -> str:
    """Return the short form of a command line: what is run, without its folder, its arguments and Python's options."""
    if not argv:
        return ""
    if not is_python(argv[0]):
        return _name(argv[0])
    target = list(python_target(argv))
    if not target:
        return "python"
    if target[0] == "-m":
        return " ".join(target[:2])
    return "-c" if target[0] == "-c" else _name(target[0])


def service_name(command: str) -> str:
    """Return the service name for a short form: `app` for `app.py`, `pkg` for `-m pkg`, `python` for code."""
    if command.startswith("-m "):
        return command[3:]
    root, extension = os.path.splitext(command)
    name = root if extension in SCRIPTS else command
    return "python" if name.startswith("-") or not name else name


def python_target(argv: Sequence[str]) -> Sequence[str]:
    """Return what follows Python's own options in its command line: `-m module …`, `-c code …` or `script …`."""
    at = 1
    while at < len(argv):
        argument = argv[at]
        if argument == "--check-hash-based-pycs":
            at += 1
        elif argument == "-" or not argument.startswith("-"):
            return argv[at:]
        elif not argument.startswith("--"):
            # one-letter options may stand together, and the last of them may carry its argument: -um pkg, -cprint()
            for index, letter in enumerate(argument[1:], 1):
                if letter in "mc":
                    attached = argument[index + 1 :]
                    return ["-" + letter, *([attached] if attached else []), *argv[at + 1 :]]
                if letter in "WX":
                    at += index == len(argument) - 1
                    break
        at += 1
    return ()


def folder(argv: Sequence[str]) -> str:
    """Return the folder in which the Python of that command line looks for modules first; "" is the working one."""
    target = list(python_target(argv))[:1]
    if not target or target[0] in ("-", "-c", "-m"):
        return ""
    is_script = os.path.isfile(target[0]) and not target[0].endswith(".pyz")
    return os.path.dirname(os.path.realpath(target[0])) if is_script else target[0]


def module_of_multiprocessing(argv: Sequence[str]) -> str:
    """Return which of its modules `multiprocessing` has started this Python with: "spawn", "forkserver", …; else ""."""
    target = list(python_target(argv))[:2]
    if target[:1] == ["-c"]:
        code = target[-1].removeprefix("import sys; ")  # the fork server's, since 3.14
        for module, function in ("spawn", "spawn_main"), ("forkserver", "main"), ("resource_tracker", "main"):
            if code.startswith(f"from multiprocessing.{module} import {function};"):
                return module
    return ""


def is_python(command: str) -> bool:
    """Return whether a command is a Python interpreter, by its name."""
    name = os.path.basename(command).lower()
    name = name[:-4] if name.endswith(".exe") else name
    return name.rstrip("0123456789.t") in ("python", "pypy", "pythonw")


def _name(path: str) -> str:
    if os.path.basename(path) == "__main__.py":
        path = os.path.dirname(path) or "."
    name = os.path.basename(path.rstrip("/" + os.sep))
    if name in ("", ".", ".."):
        name = os.path.basename(os.path.abspath(path)) or "python"
    return name[:-4] if name.lower().endswith(".exe") else name
