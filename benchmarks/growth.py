"""How costs grow with what is there at once: 1, 10, 100, 1,000 threads, tasks, open spans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from collector import Collector
from measuring import DROPPED, Row, Way, fill

COUNTS = ("1", "10", "100", "1000")
KINDS = (
    ("thread, start and end, {} at once", ("crowd.py", "threads"), "ratio"),
    ("task, start and end, {} at once", ("crowd.py", "tasks"), "ratio"),
    ("span, start and end, beside {} open", ("open_spans.py", "cost"), "absolute"),
)


def measure(ways: Sequence[Way], rounds: int, _collector: Collector) -> Iterator[Row]:
    """Measure all counts of a kind in one process."""
    for what, program, compared in KINDS:
        rows = [Row(what.format(f"{int(count):,}"), "µs", compared=compared) for count in COUNTS]
        yield from fill(rows, ways, rounds, lambda way, p=program: way.numbers(*p, *COUNTS, **DROPPED))  # type: ignore[misc]
