"""Run tests plain, under the agent, and under it inside an active span; compare what they do, test by test."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from xml.etree import ElementTree

Outcomes = dict[str, str]  # of each test, by its name
Differences = dict[str, tuple[str, str]]  # of each test that differs, its outcome without the agent and with it

WAYS = {
    "plain": (),
    "agent": ("sw-python", "run"),
    "in a span": ("sw-python", "run", "--program-span"),
}


def compare(
    name: str,
    run: Callable[[str], Outcomes],
    known: Mapping[str, str] = MappingProxyType({}),
    controls: Mapping[str, str] = MappingProxyType({}),
) -> bool:
    """Run tests in all ways, print what differs, and return whether nothing does.

    `run` runs them in a way, one of `WAYS`, and returns the outcome of each. A difference counts when it is there again
    in a second run: suites have flaky tests of their own. One that is `known`, by a pattern of the test's name, is
    printed with the reason that is given there, and does not count. `controls` says with which other way of `run` a way
    is compared, where that is not the plain one.
    """
    plain = run("plain")
    print(f"{name}: {', '.join(f'{count} {outcome}' for outcome, count in sorted(Counter(plain.values()).items()))}")
    same = True
    for way in list(WAYS)[1:]:
        control = controls.get(way, "plain")
        found = differing(run(control) if way in controls else plain, run(way))
        if found:
            again = differing(run(control), run(way))
            found = {test: pair for test, pair in found.items() if test in again}
        print(f"  {way}: {'the same' if not found else ''}", flush=True)
        for test, (before, after) in found.items():
            reason = _reason(test, known)
            print(f"    {test}: {before}, {way}: {after}{f' ({reason})' if reason else ''}", flush=True)
            same = same and bool(reason)
    return same


def differing(plain: Outcomes, agent: Outcomes) -> Differences:
    """Return the tests whose outcomes are not the same."""
    tests = dict.fromkeys((*plain, *agent))
    pairs = {test: (plain.get(test, "missing"), agent.get(test, "missing")) for test in tests}
    return {test: pair for test, pair in pairs.items() if pair[0] != pair[1]}


def _reason(test: str, known: Mapping[str, str]) -> str:
    return next((reason for pattern, reason in known.items() if fnmatchcase(test, pattern)), "")


def own_environ(folder: Path) -> dict[str, str]:
    """Return this process's environment without what configures the agent, and with its store in a folder."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SW_", "OTEL_"))}
    return environ | {"SW_EXPORT_PATH": str(folder / "traces.db")}


def outcomes_in(report: Path) -> Outcomes:
    """Return what a report in JUnit's form says of each test, of pytest's or of CPython's own runner."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        found[name] = kinds[0] if kinds else "passed"
    return found


def without_addresses(outcomes: Outcomes) -> Outcomes:
    """Return them with names that do not change from run to run."""
    return {re.sub(r"0x[0-9a-f]+", "0x…", test): outcome for test, outcome in outcomes.items()}
