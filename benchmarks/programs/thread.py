"""Starts threads and joins them, one after the other, in a span."""

from threading import Thread

from timing import best, instructions_asked, tracer


def threads(count: int) -> None:
    """Start and join."""
    for _ in range(count):
        thread = Thread(target=int)
        thread.start()
        thread.join()


with tracer.start_as_current_span("starter"):
    if count := instructions_asked():
        threads(count)
    else:
        print(best(threads, 2_000))
