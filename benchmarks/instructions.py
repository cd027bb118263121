"""Instructions in place of time, where time is too noisy: counted by valgrind, nearly the same in each run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence

from collector import Collector
from measuring import DROPPED, Row, Way, fill

VALGRIND = ("valgrind", "--tool=callgrind", "--trace-children=yes", "--callgrind-out-file=/dev/null")
FEW, MANY = 500, 1_500

PROGRAMS = (
    ("instructions of submit to a thread pool, in a span", "submit.py", "ratio"),
    ("instructions of Thread.start and join, in a span", "thread.py", "ratio"),
    ("instructions of a span's start and end", "open_spans.py", "absolute"),
)


def measure(ways: Sequence[Way], _rounds: int, _collector: Collector) -> Iterator[Row]:
    """Count few and many operations: the difference leaves out the start and the end of the process."""
    if shutil.which("valgrind") is None:
        raise SystemExit("instructions are counted by valgrind, which is not installed")
    for what, program, compared in PROGRAMS:
        row = Row(what, "k", compared=compared)
        yield from fill([row], ways, 1, lambda way, p=program: [_instructions(way, p)])  # type: ignore[misc]


def _instructions(way: Way, program: str) -> float:
    few, many = (_collected(way, program, "instructions", str(count)) for count in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def _collected(way: Way, *arguments: str) -> int:
    _, errors = way.run(*arguments, before=VALGRIND, PYTHONHASHSEED="0", **DROPPED)
    return sum(map(int, re.findall(r"Collected : (\d+)", errors)))
