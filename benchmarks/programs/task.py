"""Makes tasks and awaits them, one after the other, in a span."""

import asyncio

from timing import best, tracer


async def nothing() -> None:
    """Do nothing."""


async def tasks(count: int) -> None:
    """Make and await."""
    for _ in range(count):
        await asyncio.create_task(nothing())


with tracer.start_as_current_span("maker"):
    print(best(lambda count: asyncio.run(tasks(count)), 5_000))
