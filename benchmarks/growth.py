"""How costs grow with what is there at once: 1, 10, 100, 1,000 threads, tasks, open spans, plugins."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from collector import Collector
from measuring import DROPPED, PEER, Row, Way, fill

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
    with tempfile.TemporaryDirectory() as folder:
        for count in COUNTS:
            row = Row(f"hello.py, beside {int(count):,} plugins for other libraries", "ms", compared="added")
            path = str(_with_plugins(Path(folder, count), int(count)))
            without_peer = [way for way in ways if way.name != PEER]
            yield from fill(
                [row], without_peer, 3 * rounds, lambda way, p=path: [way.seconds("hello.py", PYTHONPATH=p)]
            )  # type: ignore[misc]


def _with_plugins(folder: Path, count: int) -> Path:
    """Make a folder with an installed distribution of so many plugins."""
    info = folder / "plugins-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugins\nVersion: 1.0\n")
    points = (f"other-{number} = other_{number}:plugin [other_library_{number}]\n" for number in range(count))
    (info / "entry_points.txt").write_text("[sw_agent.plugins]\n" + "".join(points))
    return folder
