"""What the agent costs: each program without and with it, alternating, as ratios of medians in one run.

`python benchmarks/run.py [rounds]` prints the table. The budgets are those of the design; the machine's noise shows in
the spread (interquartile range over median of the runs without). Where a row has an option, both runs are under the
agent, without the option and with it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SW_PYTHON = str(Path(sys.executable).with_name("sw-python"))

MEASURED = """
import time
from opentelemetry import trace
tracer = trace.get_tracer("benchmark")

def best(operation, count, repeats=9):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        operation(count)
        times.append((time.perf_counter() - start) / count)
    return min(times)
"""

SUBMIT = (
    MEASURED
    + """
from concurrent.futures import ThreadPoolExecutor
executor = ThreadPoolExecutor(1)

def submits(count):
    for _ in range(count):
        future = executor.submit(int)
    future.result()
"""
)

THREAD = (
    MEASURED
    + """
from threading import Thread

def threads(count):
    for _ in range(count):
        thread = Thread(target=int)
        thread.start()
        thread.join()
"""
)

TASK = (
    MEASURED
    + """
import asyncio

async def nothing(): pass

def tasks(count):
    async def main():
        for _ in range(count):
            await asyncio.create_task(nothing())
    asyncio.run(main())
"""
)

ECHO = (
    MEASURED
    + """
import asyncio

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)

async def trips(reader, writer, count):
    for _ in range(count):
        writer.write(b"x")
        await reader.readexactly(1)

async def connect(count, *, opened):
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    for _ in range(opened):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await trips(reader, writer, count // opened)
        writer.close()
        await writer.wait_closed()
    server.close()

def round_trips(count):
    asyncio.run(connect(count, opened=1))

def connections(count):
    asyncio.run(connect(count, opened=count))
"""
)

IN_SPAN = "\nwith tracer.start_as_current_span('submitter'):\n    print(best({}, {}))\n"
NO_SPAN = "\nprint(best({}, {}))\n"

TASK_SPANS = {"SW_PLUGIN_ASYNCIO_TASK_SPANS": "true"}

# name, budget as a ratio, program that prints seconds per operation, option
HOPS: list[tuple[str, float | None, str, dict[str, str]]] = [
    ("submit to a thread pool, in a span", 1.15, SUBMIT + IN_SPAN.format("submits", 20_000), {}),
    ("submit to a thread pool, no span", 1.03, SUBMIT + NO_SPAN.format("submits", 20_000), {}),
    ("Thread.start and join, in a span", 1.03, THREAD + IN_SPAN.format("threads", 2_000), {}),
    ("create_task and await, in a span", 1.02, TASK + IN_SPAN.format("tasks", 5_000), {}),
    ("create_task and await, with task spans", None, TASK + IN_SPAN.format("tasks", 2_000), TASK_SPANS),
    ("round trip on a kept connection", None, ECHO + IN_SPAN.format("round_trips", 2_000), {}),
    ("connection with one round trip", None, ECHO + IN_SPAN.format("connections", 200), {}),
]


def main(rounds: int) -> None:
    """Measure and print every row."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SW_", "OTEL_"))}
        environ["XDG_STATE_HOME"] = folder
        hello = Path(folder, "hello.py")
        hello.write_text('print("hello")\n')
        _launch(hello, environ, rounds * 4)
        print(f"\n{'':40}{'without':>10}{'with':>10}{'ratio':>8}{'budget':>8}{'spread':>8}")
        for name, budget, program, option in HOPS:
            script = Path(folder, "program.py")
            script.write_text(program)
            times = _alternate(script, environ, rounds, lambda done, _seconds: float(done.stdout), option)
            ratio = statistics.median(times[1]) / statistics.median(times[0])
            print(
                f"{name:40}{_microseconds(times[0])}{_microseconds(times[1])}{ratio:8.2f}"
                f"{'' if budget is None else format(budget, '.2f'):>8}{_spread(times[0]):8.0%}"
                + ("  over" if budget is not None and ratio > budget else "")
            )


def _launch(hello: Path, environ: dict[str, str], rounds: int) -> None:
    plain, agent = _alternate(hello, environ, rounds, lambda _done, seconds: seconds, {})
    added = (statistics.median(agent) - statistics.median(plain)) * 1e3
    print(
        f"sw-python run hello.py: {statistics.median(plain) * 1e3:.1f} ms plain, + {added:.1f} ms under the agent"
        f" (budget + 40), spread {_spread(plain):.0%}"
    )


def _alternate(
    script: Path, environ: dict[str, str], rounds: int, value: object, option: dict[str, str]
) -> tuple[list[float], list[float]]:
    agent = [SW_PYTHON, "run", "--to", "none", str(script)]
    runs = ((agent if option else [sys.executable, str(script)], environ), (agent, environ | option))
    results: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for (command, variables), times in zip(runs, results, strict=True):
            start = time.perf_counter()
            done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
            times.append(value(done, time.perf_counter() - start))  # type: ignore[operator]
    return results


def _microseconds(times: list[float]) -> str:
    return f"{statistics.median(times) * 1e6:8.2f}µs"


def _spread(times: list[float]) -> float:
    if len(times) < 2:
        return 0.0
    quartiles = statistics.quantiles(times, n=4)
    return (quartiles[2] - quartiles[0]) / statistics.median(times)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
