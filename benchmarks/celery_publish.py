"""What an agent adds to publishing a Celery task; the broker is in memory, so that only Celery and the agent count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from collector import Collector
from measuring import DROPPED, PEER, Row, Way, fill

STORED = {"OTEL_TRACES_EXPORTER": "", "SW_EXPORT_TO": "local"}


def measure(ways: Sequence[Way], rounds: int, _collector: Collector) -> Iterator[Row]:
    """Measure it with spans that are dropped, and with the local store."""
    dropped = Row("Celery, task published", "µs", budget=100, compared="added")
    yield from fill([dropped], ways, rounds, lambda way: way.numbers("publish.py", **DROPPED))
    stored = Row("… spans into the local store", "µs", compared="added")
    own = [way for way in ways if way.name != PEER]
    yield from fill([stored], own, rounds, lambda way: way.numbers("publish.py", **STORED))
