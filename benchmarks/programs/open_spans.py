"""Prints the bytes of 10,000 open spans (`memory`), or what a span costs beside so many open ones (`cost 1 10 …`)."""

import sys

from timing import ATTRIBUTES, best, instructions_asked, tracer


def spans(count: int) -> None:
    """Start and end spans."""
    for _ in range(count):
        tracer.start_span("request", attributes=ATTRIBUTES).end()


def resident() -> int:
    """Return the bytes of memory that the process has now."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def opened(count: int) -> list[object]:
    """Return spans that are open, with attributes of their own."""
    return [tracer.start_span("request", attributes={**ATTRIBUTES, "url.path": f"/{each}"}) for each in range(count)]


if count := instructions_asked():
    spans(count)
elif sys.argv[1] == "memory":
    spans(100)
    before = resident()
    kept = opened(10_000)
    print(resident() - before)
else:
    for beside in sys.argv[2:]:
        kept = opened(int(beside))
        print(best(spans, 2_000))
