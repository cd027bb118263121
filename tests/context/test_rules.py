"""Stale parents, detached threads, links and waiting times, seen from the program that hands work over."""

from __future__ import annotations

import _thread
import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.pool import ThreadPool
from typing import Any

import contract
import pytest
from opentelemetry import trace
from opentelemetry.trace import set_span_in_context

import sw_agent
from launched import Launch
from sw_agent._patching import Patch
from sw_agent._sampling import link_to_stale_parent
from sw_agent.testing import RecordedSpans, installed, recorded_spans
from sw_agent_plugins.asyncio import plugin as asyncio_plugin
from sw_agent_plugins.concurrent_futures import plugin as futures_plugin
from sw_agent_plugins.multiprocessing import plugin as multiprocessing_plugin
from sw_agent_plugins.threading import plugin as threading_plugin

PLUGINS = (asyncio_plugin, futures_plugin, multiprocessing_plugin, threading_plugin)
SECOND = 10**9
tracer = trace.get_tracer("program")


# Stale parents


def by_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)


def by_timer(work: Callable[[], None]) -> None:
    timer = threading.Timer(0, work)
    timer.start()
    timer.join(60)


def by_pool(work: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result(60)


def by_thread_pool(work: Callable[[], None]) -> None:
    with ThreadPool(1) as pool:
        pool.apply(work)
        pool.close()
        pool.join()


def by_task(work: Callable[[], None]) -> None:
    async def step() -> None:
        work()

    async def main() -> None:
        await asyncio.create_task(step())

    asyncio.run(main())


@pytest.fixture(params=[False, True], ids=["plain", "spans"])
def spans(request: pytest.FixtureRequest) -> Iterator[RecordedSpans]:
    with ExitStack() as stack:
        for plugin in PLUGINS:
            recorded = stack.enter_context(installed(plugin, spans=request.param))
        patch = Patch("opentelemetry.sdk.trace:Tracer.start_span", link_to_stale_parent(60.0), "before")
        patch.install(sys.modules["opentelemetry.sdk.trace"])
        stack.callback(patch.uninstall)
        yield recorded


@pytest.mark.parametrize("hand_over", [by_thread, by_timer, by_pool, by_thread_pool, by_task])
def test_work_of_a_submitter_that_ended_long_ago_begins_a_trace_with_a_link_to_it(
    spans: RecordedSpans, hand_over: Callable[[Callable[[], None]], None]
) -> None:
    def work() -> None:
        with tracer.start_as_current_span("work"):
            pass

    long_ago = tracer.start_span("request", start_time=SECOND)
    long_ago.end(2 * SECOND)
    with trace.use_span(long_ago):
        hand_over(work)
    found = spans.named("work")
    trace_id = long_ago.get_span_context().trace_id
    roots = [span for span in spans if span.parent is None and span.name != "request"]
    assert found.context is not None
    assert found.context.trace_id != trace_id
    linked = {link.context.span_id for root in roots for link in root.links}
    assert linked == {long_ago.get_span_context().span_id}
    assert all(span.context.trace_id != trace_id for span in spans if span.context and span.name != "request")


def test_a_timer_that_starts_itself_again_does_not_pile_up_in_one_trace(launch: Launch) -> None:
    app = launch(
        """
import threading
from opentelemetry.trace import use_span

def tick(left):
    last = tracer.start_span("tick", start_time=(10 - left) * 10**12)
    last.end((10 - left) * 10**12 + 1)
    if left:
        with use_span(last):
            timer = threading.Timer(0, again, (left - 1,))
            timer.start()
        timer.join()

def again(left):
    with S("again"): tick(left)

tick(3)
"""
    )
    app.end()
    again = [span for span in app.spans() if span.name == "again"]
    assert len(again) == 3
    assert all(span.parent_id is None and len(span.links) == 1 for span in again)
    assert len({span.trace_id for span in again}) == 3


# Detached threads


@pytest.mark.parametrize(("detached", "owner"), [("", "starter"), ("app.monitor", "nobody")])
def test_the_configuration_names_threads_and_processes_that_belong_to_nobody(
    launch: Launch, detached: str, owner: str
) -> None:
    names = ",".join(filter(None, [detached, detached.replace("app", "__main__")]))
    app = launch(
        """
import multiprocessing, threading
def monitor():
    span = trace.get_current_span().get_span_context()
    print("nobody" if not span.is_valid else "starter", flush=True)
with S("starter"):
    for kind in threading.Thread, multiprocessing.get_context("fork").Process:
        work = kind(target=monitor)
        work.start()
        work.join()
""",
        SW_PLUGIN_THREADING_DETACHED=names,
        SW_PLUGIN_MULTIPROCESSING_DETACHED=names,
    )
    assert app.end().split() == [owner, owner]


# Links


def test_a_span_follows_from_one_that_has_ended_and_from_nothing_at_all() -> None:
    nothing = sw_agent.capture()
    with recorded_spans() as spans:
        with tracer.start_as_current_span("before") as before:
            snapshot = sw_agent.capture()
        with tracer.start_as_current_span("after"):
            sw_agent.follows_from(snapshot)
            sw_agent.follows_from(nothing)
        ended = tracer.start_span("ended")
        ended.end()
        with trace.use_span(ended):
            sw_agent.follows_from(nothing)
        sw_agent.follows_from(snapshot)  # no span is current
    assert [link.context for link in spans.named("after").links] == [before.get_span_context()]
    assert spans.named("after").parent is None


def test_a_snapshot_of_baggage_alone_links_to_nothing() -> None:
    from opentelemetry import baggage, context

    token = context.attach(baggage.set_baggage("tenant", "acme"))
    snapshot = sw_agent.capture()
    context.detach(token)
    with recorded_spans() as spans:
        with tracer.start_as_current_span("after"):
            sw_agent.follows_from(snapshot)
        assert spans.named("after").links == ()


# Waiting times


@pytest.mark.parametrize("relation", ["child", "link", "none"])
@pytest.mark.parametrize("active", [False, True])
def test_every_span_of_a_hop_says_how_long_the_work_has_waited(relation: str, active: bool) -> None:
    """Also those that the shared contract leaves out: of a raw thread, and of an executor that no plugin knows."""
    foreign = contract.ForeignExecutor()

    async def in_executors() -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(foreign, int)
        await loop.run_in_executor(None, int)
        await asyncio.to_thread(int)

    with ExitStack() as stack:
        for plugin in PLUGINS:
            spans = stack.enter_context(installed(plugin, spans=True, relation=relation))
        if active:
            stack.enter_context(tracer.start_as_current_span("submitter"))
        ended = threading.Event()
        _thread.start_new_thread(ended.set, ())
        assert ended.wait(60)
        for hand_over in (by_thread, by_timer, by_pool, by_thread_pool):
            hand_over(int)  # type: ignore[arg-type]
        asyncio.run(in_executors())
        foreign.shutdown()
        hops = [span for span in spans if span.name != "submitter"]
    assert len(hops) >= 8
    assert all(span.attributes is not None for span in hops)
    assert all(span.attributes["sw.wait_ms"] >= 0 for span in hops if span.attributes)  # type: ignore[operator]


def test_the_parent_of_a_span_may_be_given_by_hand() -> None:
    """Explicit wins: what is passed as context is the parent, wherever the work runs."""
    with installed(futures_plugin) as spans, ThreadPoolExecutor(1) as pool:
        chosen: Any = tracer.start_span("chosen")
        with tracer.start_as_current_span("submitter"):
            pool.submit(lambda: tracer.start_span("work", set_span_in_context(chosen)).end()).result()
        chosen.end()
        assert spans.parent_of("work") == "chosen"
