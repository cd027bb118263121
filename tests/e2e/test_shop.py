"""The shop among the examples, under the agent: one trace from the first request to the last task."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest

from launched import SW_PYTHON, own_environ
from services import own_redis
from sw_agent.export.store import StoredSpan, read_trace, read_traces

PROGRAM = Path(__file__).parents[2] / "examples" / "shop" / "shop.py"
ITEMS = 3  # in the second order
TASKS = ("charge", "pack", "ship", "notify_customer", "notify_courier")


@pytest.fixture(scope="module", params=["redis", "folder"])
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[StoredSpan]:
    """Run the shop, with Redis as its broker and without, and return the trace of its second order."""
    folder = tmp_path_factory.mktemp(request.param)
    store = str(folder / "traces.db")
    command = [SW_PYTHON, "run", sys.executable, str(PROGRAM)]
    with own_redis() if request.param == "redis" else nullcontext("redis://127.0.0.1:1/0") as url:
        environ = own_environ(folder, SW_EXPORT_PATH=store, REDIS_URL=url)
        done = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, timeout=100, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("order 2: ") == 6
    return read_trace(store, read_traces(store)[0].trace_id)


def service(span: StoredSpan) -> str:
    return str(span.resource["service.name"])


def test_an_order_is_one_trace_through_all_processes(trace: list[StoredSpan]) -> None:
    assert {service(span) for span in trace} == {"shop", "storefront", "stock", "worker"}
    ids = {span.span_id for span in trace}
    assert [(service(span), span.name) for span in trace if span.parent_id not in ids] == [("shop", "POST")]


def test_nothing_is_missing_in_it(trace: list[StoredSpan]) -> None:
    counted = Counter((service(span), span.name) for span in trace)
    assert counted["shop", "POST"] == counted["storefront", "POST /orders"] == 1
    assert counted["storefront", "GET"] == counted["stock", "GET /items/{item}"] == ITEMS
    assert counted["storefront", "add up"] == 1
    assert counted["worker", "POST"] == counted["storefront", "POST /orders/{number}/events"] == len(TASKS)
    for task in TASKS:
        attempts = 2 if task == "charge" else 1
        assert counted["worker", f"process tasks.{task}"] == attempts, task
    published = Counter(span.name for span in trace if span.name.startswith("publish"))
    assert published == {f"publish tasks.{task}": 2 if task == "charge" else 1 for task in TASKS}


def test_each_span_hangs_under_what_caused_it(trace: list[StoredSpan]) -> None:
    by_id = {span.span_id: span for span in trace}

    def causes(name: str) -> set[str | None]:
        found = (span for span in trace if span.name == name)
        return {by_id[span.parent_id].name if span.parent_id else None for span in found}

    assert causes("POST /orders") == {"POST"}
    assert causes("GET /items/{item}") == {"GET"}
    assert causes("GET") == causes("add up") == {"POST /orders"}
    assert causes("process tasks.charge") == {"publish tasks.charge"}
    assert causes("publish tasks.pack") == {"process tasks.charge"}
    assert causes("publish tasks.ship") == {"process tasks.pack"}
    assert causes("POST /orders/{number}/events") == {"POST"}


def test_the_attempts_of_a_task_are_siblings_and_the_second_follows_the_first(trace: list[StoredSpan]) -> None:
    first, second = sorted((s for s in trace if s.name == "process tasks.charge"), key=lambda span: span.start_ns)
    assert first.parent_id == second.parent_id
    assert [link["span_id"] for link in second.links] == [first.span_id]
    assert first.status == second.status == "UNSET"


def test_the_task_that_fails_is_the_only_error(trace: list[StoredSpan]) -> None:
    assert [span.name for span in trace if span.status == "ERROR"] == ["process tasks.notify_courier"]


def test_the_order_lasts_until_all_of_it_was_told(trace: list[StoredSpan]) -> None:
    (order,) = (span for span in trace if span.name == "POST /orders")
    events = [span for span in trace if span.name == "POST /orders/{number}/events"]
    assert order.end_ns >= max(span.start_ns for span in events)
