"""Prints the longest time that an event loop stood still while it made 5,000 spans a second, for three seconds."""

import asyncio
import time

from timing import ATTRIBUTES, tracer

RATE, SECONDS, TICK = 5_000, 3, 0.001


async def ticks() -> float:
    """Tick each millisecond, make the spans that are due, and return the longest delay of a tick."""
    longest, made, start = 0.0, 0, time.perf_counter()
    while made < RATE * SECONDS:
        before = time.perf_counter()
        await asyncio.sleep(TICK)
        now = time.perf_counter()
        longest = max(longest, now - before - TICK)
        due = int((now - start) * RATE)
        for _ in range(due - made):
            tracer.start_span("request", attributes=ATTRIBUTES).end()
        made = due
    return longest


print(asyncio.run(ticks()))
