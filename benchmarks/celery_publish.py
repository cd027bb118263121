"""What the agent adds to publishing a Celery task: plain and under the agent, alternating in one run.

`python benchmarks/celery_publish.py [rounds]`; the broker is in memory, so that only Celery and the agent count.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SW_PYTHON = str(Path(sys.executable).with_name("sw-python"))
BUDGET = 100  # µs that a published task may cost more

PROGRAM = """
import time
from celery import Celery
from opentelemetry import trace

app = Celery("benchmark", broker="memory://")
app.conf.task_ignore_result = True

@app.task
def add(x, y):
    return x + y

def publish(count):
    start = time.perf_counter()
    for _ in range(count):
        add.delay(1, 2)
    return (time.perf_counter() - start) / count

publish(200)
with trace.get_tracer("benchmark").start_as_current_span("publisher"):
    print(min(publish(100) for _ in range(40)))
"""


def main(rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SW_", "OTEL_"))}
        environ["XDG_STATE_HOME"] = folder
        script = Path(folder, "program.py")
        script.write_text(PROGRAM)
        commands = {
            "plain": [sys.executable, str(script)],
            "under the agent": [SW_PYTHON, "run", "--to", "none", str(script)],
            "under the agent, into the store": [SW_PYTHON, "run", "--to", "local", str(script)],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, check=True)
                times[name].append(float(done.stdout) * 1e6)
    plain = statistics.median(times["plain"])
    for name, found in times.items():
        added = statistics.median(found) - plain
        print(f"{name:34}{plain + added:8.0f} µs a task, + {added:.0f} µs{'  over' if added > BUDGET else ''}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
