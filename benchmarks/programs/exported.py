"""Makes 10,000 spans with 8 attributes, 5,000 in a second, and prints the CPU time of each until all have been sent."""

import time

from timing import ATTRIBUTES, flush, tracer

BURST = 250


def spans(count: int) -> None:
    """Make spans, with pauses in which they are sent."""
    for _ in range(count // BURST):
        for _ in range(BURST):
            tracer.start_span("request", attributes=ATTRIBUTES).end()
        time.sleep(BURST / 5_000)


spans(BURST)
flush()
start = time.process_time()
spans(10_000 - BURST)
flush()
print((time.process_time() - start) / (10_000 - BURST))
