"""What the hot paths cost, counted: times differ from machine to machine and from run to run, these counts do not.

The counts are those of Python 3.13; other versions call helpers of their own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launched import SW_PYTHON, own_environ

pytestmark = [
    pytest.mark.skipif(sys.version_info[:2] != (3, 13), reason="counts on one version"),
    pytest.mark.timeout(600),  # valgrind takes fifty times as long as the processor itself
]

COUNTS = """
import asyncio, gc, json, sys, threading
from concurrent.futures import Future
from concurrent.futures.thread import _WorkItem
from opentelemetry import trace

tracer = trace.get_tracer("program")
gc.disable()

def calls(function):
    function()
    count = 0
    def profile(_frame, event, _argument):
        nonlocal count
        count += event == "call"
    sys.setprofile(profile)
    function()
    sys.setprofile(None)
    return count

def item():
    return _WorkItem(Future(), int, (), {})

def blocks():
    kept = [item() for _ in range(10)]
    before = sys.getallocatedblocks()
    kept = [item() for _ in range(1000)]
    return round((sys.getallocatedblocks() - before) / 1000)

def thread():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()

async def nothing():
    return None

async def main():
    async def task():
        await asyncio.create_task(nothing())
    await task()
    count = 0
    def profile(_frame, event, _argument):
        nonlocal count
        count += event == "call"
    sys.setprofile(profile)
    await task()
    sys.setprofile(None)
    return count

def counted():
    return {
        "item": calls(lambda: item().run()), "blocks": blocks(), "thread": calls(thread), "task": asyncio.run(main()),
    }

counts = {"outside": counted(), "span": calls(lambda: tracer.start_span("name", attributes={"a": 1, "b": "c"}).end())}
with tracer.start_as_current_span("span"):
    counts["inside"] = counted()
print(json.dumps(counts))
"""


def run(folder: Path, *command: str, to: str = "local") -> subprocess.CompletedProcess[str]:
    environ = own_environ(folder, SW_EXPORT_TO=to, SW_EXPORT_FLUSH_INTERVAL="60", PYTHONHASHSEED="0")
    return subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, timeout=290, check=True)


@pytest.fixture
def counts(tmp_path: Path) -> dict[str, Any]:
    """Return what is counted under the agent, and what that is more than without it."""
    (tmp_path / "app.py").write_text(COUNTS)
    plain = json.loads(run(tmp_path, sys.executable, "app.py").stdout)
    under = json.loads(run(tmp_path, SW_PYTHON, "run", sys.executable, "app.py").stdout)
    more = {
        place: {what: under[place][what] - plain[place][what] for what in under[place]}
        for place in ("outside", "inside")
    }
    return {"span": under["span"], **more}


def test_where_no_span_is_active_work_costs_a_call_at_each_patched_function(counts: dict[str, Any]) -> None:
    assert counts["outside"] == {"item": 3, "blocks": 0, "thread": 1, "task": 0}


def test_in_a_span_an_item_of_a_pool_costs_no_more_than_that(counts: dict[str, Any]) -> None:
    assert counts["inside"] == {"item": 3, "blocks": 0, "thread": 7, "task": 0}


def test_a_span_is_begun_and_ended_in_few_calls(counts: dict[str, Any]) -> None:
    assert counts["span"] == 16  # one of them is the test's own


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
def test_a_span_is_begun_and_ended_in_few_instructions(tmp_path: Path) -> None:
    """With 8 attributes: 42,000 with one build of Python 3.13.0, of 158,000 that the SDK's own takes."""
    programs = Path(__file__).parents[2] / "benchmarks" / "programs"

    def counted(spans: int) -> int:
        program = (SW_PYTHON, "run", sys.executable, str(programs / "open_spans.py"), "instructions", str(spans))
        out = str(tmp_path / "callgrind.%p")
        valgrind = ("valgrind", "--tool=callgrind", "--trace-children=yes", f"--callgrind-out-file={out}")
        return sum(map(int, re.findall(r"Collected : (\d+)", run(tmp_path, *valgrind, *program, to="none").stderr)))

    assert counted(1_500) - counted(500) < 60_000 * 1_000
