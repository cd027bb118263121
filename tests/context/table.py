"""The table in docs/context.md, for the tests that hold it to its word."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "context.md"
PLACES = {
    "nobody's": None,
    "submitter's": "submitter",
    "first submitter's": "first submitter",
    "builder's": "builder",
    "runner's": "runner",
}
WAY = re.compile(r"test_ways\.py::\w+\[(.+)\]$")


def rows() -> list[tuple[str, str, str, list[str]]]:
    """Return mechanism, what plain Python does, what the agent does without the rules, and the tests of each row."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [
        (mechanism, plain, agent.partition(" · ")[0], re.findall("`([^`]+)`", tests))
        for mechanism, plain, agent, tests in cells
        if mechanism not in ("mechanism", "---")
    ]


def ways() -> dict[str, list[str | None]]:
    """Return what the rows that are proven by ways.py say of it: {way: [place of the variable, place of the span]}."""
    return {
        found[1]: [PLACES[plain], PLACES[agent]]
        for _mechanism, plain, agent, tests in rows()
        for test in tests
        if (found := WAY.search(test))
    }
