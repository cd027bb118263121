"""Run CPython's own tests plain and under the agent, on each interpreter that is installed; compare them test by test.

`python compat/interpreter.py [version or test module …]`. All that is needed is installed into `.compat/`. The exit
status is 1 where a test has another outcome under the agent than without it.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from comparing import WAYS, Outcomes, compare, outcomes_in, own_environ, without_addresses

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".compat"
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
MODULES = (
    "test_asyncio",
    "test_atexit",
    "test_concurrent_futures",
    "test_context",
    "test_contextlib",
    "test_contextlib_async",
    "test_fork1",
    "test_gc",
    "test_importlib",
    "test_inspect",
    "test_logging",
    "test_multiprocessing_fork",
    "test_multiprocessing_forkserver",
    "test_multiprocessing_spawn",
    "test_pickle",
    "test_queue",
    "test_sched",
    "test_signal",
    "test_site",
    "test_subprocess",
    "test_thread",
    "test_threading",
    "test_threading_local",
    "test_weakref",
)
KNOWN = {
    "test.test_logging.LoggerTest.test_make_record_with_extra_overwrite": (
        "a record has trace_id, span_id and service_name, and a program may set them by `extra`, which is refused for "
        "the other names of a record"
    ),
    "test.test_thread.ThreadRunningTests.test_unraisable_exception": (
        "before 3.13 the object of `sys.unraisablehook` is what the OS thread was started with"
    ),
}


class Interpreter:
    """One of the Pythons that are installed, with an environment in which the agent is installed too."""

    def __init__(self, version: str, python: str) -> None:
        self._python = python
        self._folder = FOLDER / f"python{version}"
        self._bin = self._folder / "venv" / "bin"

    def prepare(self) -> str:
        """Make the environment, unless it is there; return the version, empty where the tests are not installed."""
        if subprocess.run([self._python, "-c", "import test.libregrtest"], capture_output=True).returncode:
            return ""
        if not self._bin.exists():
            subprocess.run([self._python, "-m", "venv", self._bin.parent], check=True)
            pip = [self._bin / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", "--editable", ROOT], check=True)
        ask = "import platform; print(platform.python_version())"
        return subprocess.check_output([self._bin / "python", "-c", ask], text=True).strip()

    def outcomes(self, module: str, way: str) -> Outcomes:
        """Run the tests of a module and return the outcome of each."""
        report = self._folder / f"{module}, {way}.xml"
        report.unlink(missing_ok=True)
        command = [
            *(WAYS[way] and (self._bin / WAYS[way][0], *WAYS[way][1:])),
            self._bin / "python",
            *("-m", "test", "--timeout", "600", "--junit-xml", report, module),
        ]
        with report.with_suffix(".txt").open("w") as output:
            subprocess.run(
                command, cwd=self._folder, env=own_environ(self._folder), stdout=output, stderr=output, check=False
            )
        if not report.exists():
            raise SystemExit(f"{module}, {way}: the tests did not come to their end; see {output.name}")
        return without_addresses(outcomes_in(report))


def installed() -> dict[str, str]:
    """Return the path of each Python that is installed here, by its version."""
    found = {}
    for version in VERSIONS:
        look = subprocess.run(["sh", ROOT / ".ci" / "find-python", version], capture_output=True, text=True)
        if look.returncode == 0:
            found[version] = look.stdout.strip()
    return found


def main(chosen: list[str]) -> int:
    """Compare what was chosen of the versions and of the modules, or all; return the exit status."""
    modules = [module for module in MODULES if module in chosen] or MODULES
    same = True
    for version, python in installed().items():
        if set(VERSIONS) & set(chosen) and version not in chosen:
            continue
        interpreter = Interpreter(version, python)
        exact = interpreter.prepare()
        if not exact:
            print(f"Python {version}: its tests are not installed")
        for module in modules if exact else ():
            run = partial(interpreter.outcomes, module)
            same = compare(f"Python {exact}, {module}", run, KNOWN) and same
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
