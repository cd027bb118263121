"""Submits to a pool of one thread, in a span or in none."""

import sys
from concurrent.futures import ThreadPoolExecutor

from timing import best, instructions_asked, tracer

executor = ThreadPoolExecutor(1)


def submits(count: int) -> None:
    """Submit, and wait for the last."""
    for _ in range(count):
        future = executor.submit(int)
    future.result()


if sys.argv[1] == "no-span":
    print(best(submits, 20_000))
else:
    with tracer.start_as_current_span("submitter"):
        if count := instructions_asked():
            submits(count)
        else:
            print(best(submits, 20_000))
