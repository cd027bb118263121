"""What a span with 8 attributes costs until its bytes have left, what open ones occupy, and what many do to a loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from collector import Collector
from measuring import DROPPED, PLAIN, Row, Way, fill

SPANS = 10_000  # as programs/exported.py makes them


def measure(ways: Sequence[Way], rounds: int, collector: Collector) -> Iterator[Row]:
    """Measure processor time, memory, and the longest stall of an event loop."""
    collector.counts()
    cpu = Row("span with 8 attributes, until its bytes have left, CPU", "µs", budget=20, compared="absolute")
    fill([cpu], ways, rounds, lambda way: way.numbers("exported.py", OTEL_SERVICE_NAME=way.name))
    cpu.note = lost(collector, ways, SPANS * rounds)
    yield cpu
    made = Row("… its start and end only, CPU", "µs", compared="absolute")
    yield from fill([made], ways, rounds, lambda way: way.numbers("open_spans.py", "cost", "0", **DROPPED))
    memory = Row("10,000 open spans, memory", "MB", compared="absolute")
    yield from fill([memory], ways, rounds, lambda way: way.numbers("open_spans.py", "memory", **DROPPED))
    stall = Row("longest stall of a loop, 5,000 spans/s", "ms", budget=5, compared="added")
    yield from fill([stall], ways, rounds, lambda way: way.numbers("stall.py"))


def lost(collector: Collector, ways: Sequence[Way], expected: int) -> str:
    """Say which of the agents have not sent exactly as many spans as there were."""
    counts = collector.counts()
    sent = {way.name: counts.get(way.name, 0) for way in ways if way.name != PLAIN}
    return ", ".join(f"{way} sent {count:,} of {expected:,} spans" for way, count in sent.items() if count != expected)
