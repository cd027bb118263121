"""What an agent adds before a program's first line, and to its memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from collector import Collector
from measuring import Row, Way, fill

SCRIPTS = 5  # launches of the smallest program in each round


def measure(ways: Sequence[Way], rounds: int, _collector: Collector) -> Iterator[Row]:
    """Measure hello.py, and servers and workers from their start until they are ready."""
    for way in ways:
        way.seconds("hello.py")  # what is compiled is compiled now
    hello = Row("hello.py, to its end", "ms", budget=40, compared="added")
    yield from fill([hello], ways, rounds * SCRIPTS, lambda way: [way.seconds("hello.py")])
    memory = Row("hello.py, peak memory", "MB", budget=10, compared="added")
    yield from fill([memory], ways, rounds, lambda way: way.numbers("peak_memory.py"))
    server = Row("aiohttp server, until it listens", "ms", compared="added")
    yield from fill([server], ways, rounds, lambda way: [_seconds_to_first_line(way, "server.py")])
    worker = Row("Celery worker, until it is ready", "ms", compared="added")
    arguments = (
        "-m",
        "celery",
        "-q",
        "-A",
        "worker",
        "worker",
        "--pool",
        "solo",
        "--without-mingle",
        "--without-gossip",
    )
    yield from fill([worker], ways, rounds, lambda way: [_seconds_to_first_line(way, *arguments)])


def _seconds_to_first_line(way: Way, *arguments: str) -> float:
    start = time.perf_counter()
    with way.start(*arguments) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        taken = time.perf_counter() - start
        process.kill()
        _, errors = process.communicate()
    if not line:
        raise SystemExit(f"{way.name}: {' '.join(arguments)}: no line\n{errors}")
    return taken
