"""Run public test suites plain, under the agent, and under it inside an active span; compare them test by test.

`python compat/run.py [suite …]`. All that is needed is installed into `.compat/`. The exit status is 1 where a test has
another outcome under the agent than without it, or where something of the agent's failed meanwhile.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

from comparing import WAYS, Outcomes, compare
from suites import SUITES, Suite

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".compat"


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
        pip = (self._bin / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
        if not self._bin.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            _call(sys.executable, "-m", "venv", self._bin.parent)
            _call(*pip, "install", "pytest", "pytest-timeout", self._suite.library, *self._suite.requires)
            _call(*pip, "install", "--editable", ROOT)
        ask = f"from importlib.metadata import version; print(version({library!r}))"
        version = _call(self._bin / "python", "-c", ask).strip()
        (FOLDER / "pytest.ini").touch()  # for suites without such a file: they do not look further up, to ours
        if not self._source.exists():
            wanted = f"{library}=={version}"
            _call(*pip, "download", "--no-deps", "--no-binary", library, "--dest", self._folder, wanted)
            (archive,) = self._folder.glob("*.tar.gz")
            unpacked = self._folder / "unpacked"
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter="data")
            self._keep_tests_only(next(unpacked.iterdir()), library)
        return version

    def _keep_tests_only(self, source: Path, library: str) -> None:
        """Let the tests import the installed library, not the one that lies beside them."""
        if (source / library).exists():  # else in a folder of its own, `src`
            (source / library).rename(source / f"{library} of the sdist")
        source.rename(self._source)

    def outcomes(self, way: str) -> Outcomes:
        """Run the tests and return the outcome of each, and what has failed in the agent."""
        report, contained = self._folder / f"{way}.xml", self._folder / f"{way}.contained"
        report.unlink(missing_ok=True)
        contained.unlink(missing_ok=True)
        command = [
            *(WAYS[way] and (self._bin / WAYS[way][0], *WAYS[way][1:])),
            self._bin / "python",
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "contained_failures"),
            *("--timeout=120", f"--junitxml={report}"),
            *self._suite.arguments,
            *self._suite.tests,
        ]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SW_", "OTEL_"))}
        environ["PATH"] = f"{self._bin}{os.pathsep}{environ['PATH']}"
        environ["PYTHONPATH"] = str(Path(__file__).parent / "watching")
        environ["CONTAINED_FAILURES"] = str(contained)
        environ["SW_EXPORT_PATH"] = str(self._folder / "traces.db")
        with (self._folder / f"{way}.txt").open("w") as output:
            done = subprocess.run(command, cwd=self._source, env=environ, stdout=output, stderr=output, check=False)
        if done.returncode not in (0, 1) or not report.exists():  # 1: tests have failed; above: pytest itself
            raise SystemExit(f"{self._name}, {way}: the tests were not run; see {output.name}")
        if WAYS[way] and not contained.exists():
            raise SystemExit(f"{self._name}, {way}: the tests were not run under the agent; see {output.name}")
        return dict(_outcomes(report)) | dict.fromkeys(_places(contained), "failed in the agent")


def _outcomes(report: Path) -> list[tuple[str, str]]:
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        name = re.sub(r"0x[0-9a-f]+", "0x…", f"{case.get('classname')}::{case.get('name')}")
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found.append((name, kinds[0] if kinds else "passed"))
    return found


def _places(contained: Path) -> list[str]:
    return contained.read_text().splitlines() if contained.exists() else []


def _call(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    results = []
    for chosen in sys.argv[1:] or SUITES:
        suite = Checkout(chosen, SUITES[chosen])
        version = suite.prepare()
        results.append(compare(f"{chosen} {version}", suite.outcomes, SUITES[chosen].known))
    sys.exit(0 if all(results) else 1)
