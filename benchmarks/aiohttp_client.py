"""What a request of aiohttp's client costs on a kept connection, to a server that answers without looking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from collector import Collector
from measuring import DROPPED, PEER, Row, Way, fill

EXCLUDED = {"SW_PLUGIN_AIOHTTP_CLIENT_EXCLUDE": "127.0.0.1/*"}


def measure(ways: Sequence[Way], rounds: int, _collector: Collector) -> Iterator[Row]:
    """Measure the processor time of a request, with a span and where the agent is told to leave the host out."""
    traced = Row("aiohttp client, request, CPU", "µs")
    yield from fill([traced], ways, rounds, lambda way: way.numbers("client.py", **DROPPED))
    excluded = Row("… host excluded", "µs")
    own = [way for way in ways if way.name != PEER]
    yield from fill([excluded], own, rounds, lambda way: way.numbers("client.py", **DROPPED, **EXCLUDED))
