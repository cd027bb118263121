"""How costs grow with what is there at once: 1, 10, 100, 1,000 threads, tasks, open spans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from collector import Collector
from measuring import DROPPED, Row, Way, fill

COUNTS = ("1", "10", "100", "1000")
KINDS = {
    "start and end of a thread": ("crowd.py", "threads"),
    "start and end of a task": ("crowd.py", "tasks"),
    "start and end of a span beside open ones": ("open_spans.py", "cost"),
}


def measure(ways: Sequence[Way], rounds: int, _collector: Collector) -> Iterator[Row]:
    """Measure all counts of a kind in one process, in a span."""
    for what, program in KINDS.items():
        rows = [Row(f"{what}, {int(count):,} at once", "µs") for count in COUNTS]
        yield from fill(rows, ways, rounds, lambda way, p=program: way.numbers(*p, *COUNTS, **DROPPED))  # type: ignore[misc]
