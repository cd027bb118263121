"""Run public test suites plain, under the agent, and under it inside an active span; compare them test by test.

`python compat/libraries.py [suite …]`. All that is needed is installed into `.compat/`. The exit status is 1 where a
test has another outcome under the agent than without it, or where something of the agent's failed meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from comparing import WAYS, Outcomes, compare, outcomes_in, own_environ, without_addresses
from suites import SUITES, Suite

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".compat"
CONTROL = "plain, in a span of the SDK's"


class Checkout:
    """A suite unpacked, with an environment of its own in which the agent is installed too."""

    def __init__(self, name: str, suite: Suite) -> None:
        self._name = name
        self._suite = suite
        self._folder = FOLDER / name
        self._bin = self._folder / "venv" / "bin"
        self._source = self._folder / "source"

    def prepare(self) -> str:
        """Make the environment and unpack the tests; what is there already is kept. Return the library's version."""
        library = self._suite.library.partition("[")[0]
        if not self._source.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            (FOLDER / "pytest.ini").touch()  # for suites without such a file: they do not look further up, to ours
            _call(sys.executable, "-m", "venv", self._bin.parent)
            pip = (self._bin / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
            needed = ("pytest", "pytest-timeout", self._suite.library, *self._suite.requires)
            _call(*pip, "install", *needed, "--editable", ROOT)
            wanted = f"{library}=={self._version_of(library)}"
            _call(*pip, "download", "--no-deps", "--no-binary", library, "--dest", self._folder, wanted)
            (archive,) = self._folder.glob("*.tar.gz")
            unpacked = self._folder / "unpacked"
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter="data")
            self._keep_tests_only(next(unpacked.iterdir()), library)
        return self._version_of(library)

    def _version_of(self, library: str) -> str:
        ask = f"from importlib.metadata import version; print(version({library!r}))"
        return _call(self._bin / "python", "-c", ask).strip()

    def _keep_tests_only(self, source: Path, library: str) -> None:
        """Let the tests import the installed library, not the one that lies beside them."""
        if (source / library).exists():  # else in a folder of its own, `src`
            (source / library).rename(source / f"{library} of the sdist")
        source.rename(self._source)

    def outcomes(self, way: str) -> Outcomes:
        """Run the tests and return the outcome of each, and what has failed in the agent."""
        report, contained = self._folder / f"{way}.report", self._folder / f"{way}.contained"
        report.unlink(missing_ok=True)
        contained.unlink(missing_ok=True)
        agent = [self._bin / part if part == "sw-python" else part for part in WAYS.get(way, ())]
        runner = self._unittest(report) if self._suite.module else self._pytest(report, way)
        environ = own_environ(self._folder)
        environ["PATH"] = f"{self._bin}{os.pathsep}{environ['PATH']}"
        folders = (str(Path(__file__).parent / "watching"), environ.get("PYTHONPATH"))  # that of `tests/chaos`
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
        environ["CONTAINED_FAILURES"] = str(contained)
        # what a run leaves there, the next one would find
        with (self._folder / f"{way}.txt").open("w") as output, TemporaryDirectory() as environ["TMPDIR"]:
            done = subprocess.run(
                [*agent, self._bin / "python", "-m", *runner],
                cwd=self._source,
                env={**environ, **self._suite.environ},
                stdout=output,
                stderr=output,
                check=False,
            )
        if done.returncode not in (0, 1) or not report.exists():  # 1: tests have failed; above: pytest itself
            raise SystemExit(f"{self._name}, {way}: the tests were not run; see {output.name}")
        if agent and not contained.exists():
            raise SystemExit(f"{self._name}, {way}: the tests were not run under the agent; see {output.name}")
        outcomes = json.loads(report.read_text()) if self._suite.module else outcomes_in(report)
        return without_addresses(outcomes) | _failures(contained)

    def _pytest(self, report: Path, way: str) -> tuple[object, ...]:
        plugins = ("-p", "no:cacheprovider", "-p", "contained_failures", *(("-p", "in_a_span") * (way == CONTROL)))
        return (
            *("pytest", "-q", *plugins, "--timeout=120", f"--junitxml={report}"),
            *(*self._suite.arguments, *self._suite.tests),
        )

    def _unittest(self, report: Path) -> tuple[object, ...]:
        return ("outcomes_of_unittest", report, self._suite.module, *self._suite.arguments)


def _failures(contained: Path) -> Outcomes:
    places = contained.read_text().splitlines() if contained.exists() and "CHAOS" not in os.environ else []
    return dict.fromkeys(places, "failed in the agent")


def _call(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    results = []
    for chosen in sys.argv[1:] or SUITES:
        suite = Checkout(chosen, SUITES[chosen])
        version = suite.prepare()
        controls = {"in a span": CONTROL} if SUITES[chosen].looks_at_the_span else {}
        results.append(compare(f"{chosen} {version}", suite.outcomes, SUITES[chosen].known, controls))
    sys.exit(0 if all(results) else 1)
