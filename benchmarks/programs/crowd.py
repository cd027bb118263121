"""Prints what each of so many threads (or tasks) costs that are there at once: `crowd.py threads 1 10 …`."""

import asyncio
import sys
from threading import Event, Thread

from timing import best, tracer

OPERATIONS = 1_000


def threads(at_once: int) -> None:
    """Start threads that wait for the last of them, and join all."""
    for _ in range(OPERATIONS // at_once):
        last = Event()
        started = [Thread(target=last.wait) for _ in range(at_once)]
        for thread in started:
            thread.start()
        last.set()
        for thread in started:
            thread.join()


async def step() -> None:
    """Let the other tasks run once."""
    await asyncio.sleep(0)


async def tasks(at_once: int) -> None:
    """Make tasks and await all."""
    for _ in range(OPERATIONS // at_once):
        for task in [asyncio.create_task(step()) for _ in range(at_once)]:
            await task


with tracer.start_as_current_span("maker"):
    for at_once in map(int, sys.argv[2:]):
        crowd = threads if sys.argv[1] == "threads" else lambda at_once: asyncio.run(tasks(at_once))
        print(best(lambda _count, crowd=crowd, at_once=at_once: crowd(at_once), OPERATIONS, repeats=5))
