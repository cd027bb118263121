"""Work at the edge: of the stack, of the number of threads, of what can be cancelled."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest
from opentelemetry import context, trace

from sw_agent.testing import RecordedSpans, installed
from sw_agent_plugins.asyncio import plugin as asyncio_plugin
from sw_agent_plugins.concurrent_futures import plugin as futures_plugin
from sw_agent_plugins.multiprocessing import plugin as multiprocessing_plugin
from sw_agent_plugins.threading import plugin as threading_plugin

PLUGINS = (asyncio_plugin, futures_plugin, multiprocessing_plugin, threading_plugin)
SETTINGS = [{"relation": relation, "spans": spans} for relation in ("child", "link", "none") for spans in (False, True)]
tracer = trace.get_tracer("program")
each_setting = pytest.mark.parametrize("settings", SETTINGS, ids=str)


@contextmanager
def all_installed(**settings: object) -> Iterator[RecordedSpans]:
    with ExitStack() as stack:
        for plugin in PLUGINS:
            recorded = stack.enter_context(installed(plugin, **settings))
        yield recorded


# The end of the stack


def at_every_depth(hand_over: Callable[[], object]) -> list[object]:
    """Hand work over at the end of the stack, and at each of the depths before it, until that succeeds."""
    outcomes: list[object] = []

    def descend() -> None:
        try:
            descend()
        except RecursionError:
            if "done" in outcomes:
                return
            try:
                outcomes.append(hand_over())
            except RecursionError:
                outcomes.append("no stack left")
                raise

    descend()
    return outcomes


@each_setting
def test_at_the_end_of_the_stack_work_is_handed_over_or_refused_and_workers_live_on(
    settings: Any, agent_errors: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A finalizer that happens to run there raises with and without the agent, and pytest's hook then does as well.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    before = sys.getrecursionlimit()
    with all_installed(**settings), ThreadPoolExecutor(1) as pool, ThreadPool(1) as thread_pool:
        pool.submit(int).result()
        futures: list[Any] = []
        with tracer.start_as_current_span("submitter") as submitter:
            for hand_over in (
                lambda: futures.append(pool.submit(int)) or "done",
                lambda: futures.append(thread_pool.apply_async(int)) or "done",
            ):
                assert at_every_depth(hand_over)[-1] == "done"
                assert trace.get_current_span() is submitter
        for future in futures:
            if hasattr(future, "result"):
                assert future.result(60) == 0
        with tracer.start_as_current_span("next"):
            assert pool.submit(lambda: "works").result(60) == "works"
            assert thread_pool.apply_async(lambda: "works").get(60) == "works"
        if not settings["spans"]:
            assert pool.submit(context.get_current).result(60) == {}
    assert sys.getrecursionlimit() == before
    agent_errors.clear()  # the agent may say that there was no stack left for it


@each_setting
def test_work_that_uses_up_the_stack_fails_as_without_the_agent(settings: Any) -> None:
    def descend() -> None:
        descend()

    with all_installed(**settings), ThreadPoolExecutor(1) as pool, tracer.start_as_current_span("submitter"):
        for _ in range(2):
            with pytest.raises(RecursionError):
                pool.submit(descend).result(60)
            assert pool.submit(lambda: "works").result(60) == "works"


# Many threads


@pytest.mark.parametrize("spans", [False, True])
def test_ten_thousand_threads_each_have_the_context_of_their_starter(spans: bool) -> None:
    seen: list[int] = []

    def look() -> None:
        seen.append(trace.get_current_span().get_span_context().trace_id)

    with installed(threading_plugin, spans=spans), tracer.start_as_current_span("starter") as starter:
        for _ in range(100):
            threads = [threading.Thread(target=look) for _ in range(100)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert trace.get_current_span() is starter
    assert seen == [starter.get_span_context().trace_id] * 10_000


# What is cancelled, and again


@each_setting
def test_a_future_that_is_cancelled_twice_is_cancelled_and_has_no_span(settings: Any) -> None:
    with all_installed(**settings) as spans, ThreadPoolExecutor(1) as pool:
        go = threading.Event()
        with tracer.start_as_current_span("submitter"):
            pool.submit(go.wait, 60)
            future = pool.submit(int)
            called: list[Any] = []
            future.add_done_callback(called.append)
            assert [future.cancel(), future.cancel()] == [True, True]
            go.set()
        with pytest.raises(CancelledError):
            future.result(60)
        assert called == [future]
        assert pool.submit(lambda: "works").result(60) == "works"
        assert pool.submit(context.get_current).result(60) == {} or settings["spans"]
        assert "int" not in spans.names


@each_setting
def test_a_task_that_is_cancelled_twice_ends_as_without_the_agent(settings: Any) -> None:
    async def stubborn(began: asyncio.Event) -> str:
        try:
            began.set()
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await asyncio.get_running_loop().run_in_executor(None, int)
            await asyncio.get_running_loop().create_future()
        return "never"

    async def main() -> list[bool]:
        began = asyncio.Event()
        task = asyncio.create_task(stubborn(began))
        await began.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return [task.cancelled(), task.cancel()]

    with all_installed(**settings), tracer.start_as_current_span("submitter") as submitter:
        assert asyncio.run(main()) == [True, False]
        assert trace.get_current_span() is submitter


@each_setting
def test_an_executors_item_that_the_loop_cancels_ends_as_without_the_agent(settings: Any) -> None:
    async def main(pool: ThreadPoolExecutor) -> bool:
        go = threading.Event()
        loop = asyncio.get_running_loop()
        first = loop.run_in_executor(pool, go.wait, 60)
        second = loop.run_in_executor(pool, int)
        cancelled = [second.cancel(), second.cancel()]
        go.set()
        await first
        return cancelled == [True, False] and second.cancelled()

    with all_installed(**settings), ThreadPoolExecutor(1) as pool, tracer.start_as_current_span("submitter"):
        assert asyncio.run(main(pool))
        assert pool.submit(lambda: "works").result(60) == "works"
