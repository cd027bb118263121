"""Run public test suites plain, under the agent, and under it inside an active span; compare them test by test.

`python compat/run.py [suite …]`. All that is needed is installed into `.compat/`. The exit status is 1 where a test has
another outcome under the agent than without it. A difference counts when it is there again in a second run: suites have
flaky tests of their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

from suites import SUITES, Suite

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".compat"
WAYS = {
    "plain": (),
    "agent": ("sw-python", "run"),
    "in a span": ("sw-python", "run", "--program-span"),
}


class Checkout:
    """A suite unpacked, with an environment of its own in which the agent is installed too."""

    def __init__(self, name: str, suite: Suite) -> None:
        self.name = name
        self._suite = suite
        self._folder = FOLDER / name
        self._bin = self._folder / "venv" / "bin"
        self._source = self._folder / "source"

    def prepare(self) -> None:
        """Make the environment and unpack the tests; what is there already is kept."""
        if self._source.exists():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        _call(sys.executable, "-m", "venv", self._bin.parent)
        pip = (self._bin / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
        _call(*pip, "install", "pytest", "pytest-timeout", self._suite.library, *self._suite.requires)
        _call(*pip, "install", "--editable", ROOT)
        library = self._suite.library.partition("[")[0]
        version = _call(self._bin / "python", "-c", f"import {library}; print({library}.__version__)").strip()
        wanted = f"{library}=={version}"
        _call(*pip, "download", "--no-deps", "--no-binary", library, "--dest", self._folder, wanted)
        (archive,) = self._folder.glob("*.tar.gz")
        unpacked = self._folder / "unpacked"
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        self._keep_tests_only(next(unpacked.iterdir()), library)

    def _keep_tests_only(self, source: Path, library: str) -> None:
        """Let the tests import the installed library, not the one that lies beside them."""
        (source / library).rename(source / f"{library} of the sdist")
        source.rename(self._source)

    def outcomes(self, way: str) -> dict[str, str]:
        """Run the tests and return the outcome of each."""
        report = self._folder / f"{way}.xml"
        report.unlink(missing_ok=True)
        command = [
            *(WAYS[way] and (self._bin / WAYS[way][0], *WAYS[way][1:])),
            self._bin / "python",
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=120", f"--junitxml={report}"),
            *self._suite.arguments,
            *self._suite.tests,
        ]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SW_", "OTEL_"))}
        environ["SW_EXPORT_PATH"] = str(self._folder / "traces.db")
        with (self._folder / f"{way}.txt").open("w") as output:
            done = subprocess.run(command, cwd=self._source, env=environ, stdout=output, stderr=output, check=False)
        if done.returncode not in (0, 1) or not report.exists():  # 1: tests have failed; above: pytest itself
            raise SystemExit(f"{self.name}, {way}: the tests were not run; see {output.name}")
        return dict(_outcomes(report))


def compare(checkout: Checkout) -> bool:
    """Run a suite in all ways, print what differs, and return whether nothing does."""
    plain = checkout.outcomes("plain")
    counts = ", ".join(
        f"{sum(found == kind for found in plain.values())} {kind}" for kind in sorted(set(plain.values()))
    )
    print(f"{checkout.name}: {counts}")
    same = True
    for way in list(WAYS)[1:]:
        differing = _different(plain, checkout.outcomes(way))
        if differing:
            again = _different(checkout.outcomes("plain"), checkout.outcomes(way))
            differing = {test: found for test, found in differing.items() if test in again}
        print(f"  {way}: {'the same' if not differing else ''}")
        for test, (before, after) in differing.items():
            print(f"    {test}: {before}, {way}: {after}")
        same = same and not differing
    return same


def _different(plain: dict[str, str], agent: dict[str, str]) -> dict[str, tuple[str, str]]:
    tests = dict.fromkeys((*plain, *agent))
    pairs = {test: (plain.get(test, "missing"), agent.get(test, "missing")) for test in tests}
    return {test: pair for test, pair in pairs.items() if pair[0] != pair[1]}


def _outcomes(report: Path) -> list[tuple[str, str]]:
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        name = re.sub(r"0x[0-9a-f]+", "0x…", f"{case.get('classname')}::{case.get('name')}")
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found.append((name, kinds[0] if kinds else "passed"))
    return found


def _call(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    results = []
    for chosen in sys.argv[1:] or SUITES:
        suite = Checkout(chosen, SUITES[chosen])
        suite.prepare()
        results.append(compare(suite))
    sys.exit(0 if all(results) else 1)
