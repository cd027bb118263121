"""A snapshot dies with its work: nothing that the agent made keeps a span or a callable, and nothing grows."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest
from opentelemetry import trace

from sw_agent.snapshot import ContextSnapshot
from sw_agent.testing import installed
from sw_agent_plugins.asyncio import plugin as asyncio_plugin
from sw_agent_plugins.concurrent_futures import plugin as futures_plugin
from sw_agent_plugins.multiprocessing import plugin as multiprocessing_plugin
from sw_agent_plugins.threading import plugin as threading_plugin

tracer = trace.get_tracer("program")


class Work:
    """A callable that can be referred to weakly."""

    def __call__(self, *_: object) -> None: ...


@pytest.fixture(params=[{}, {"spans": True}, {"relation": "link"}], ids=["plain", "spans", "link"], autouse=True)
def plugins(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        recorders = [
            stack.enter_context(installed(plugin, **request.param))
            for plugin in (asyncio_plugin, futures_plugin, multiprocessing_plugin, threading_plugin)
        ]
        yield recorders


def forget(recorders: list[Any]) -> None:
    for spans in recorders:
        spans.ended.clear()


def by_thread(work: Work) -> object:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return thread


def by_timer(work: Work) -> object:
    timer = threading.Timer(0, work)
    timer.start()
    timer.join()
    timer.function = None  # type: ignore[assignment]  # a timer keeps it
    return timer


def by_future(work: Work) -> object:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        future.result()
    return future


def by_cancelled_future(work: Work) -> object:
    go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(go.wait, 60)
        future = pool.submit(work)
        assert future.cancel()
        assert future.cancel()
        go.set()
    return future


def by_callback(work: Work) -> object:
    future: Future[None] = Future()
    future.add_done_callback(work)
    future.set_result(None)
    future._done_callbacks.clear()  # a future keeps them
    return future


def by_thread_pool(work: Work) -> object:
    with ThreadPool(1) as pool:
        result = pool.apply_async(work, callback=Work())
        result.wait(60)
        pool.apply(int)  # the worker has come back
        result._callback = result._error_callback = None  # type: ignore[attr-defined]  # a result keeps them
    return result


def by_task(work: Work) -> object:
    async def step() -> None:
        work()

    async def main() -> object:
        task = asyncio.create_task(step())
        await task
        return task.get_name()

    return asyncio.run(main())


def by_cancelled_task(work: Work) -> object:
    async def step() -> None:
        await asyncio.get_running_loop().create_future()
        work()

    async def main() -> object:
        task = asyncio.create_task(step())
        for _ in range(2):
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        return task.get_name()

    return asyncio.run(main())


def by_loop(work: Work) -> object:
    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(None, work)
        await asyncio.to_thread(work)

    return asyncio.run(main())


@pytest.mark.parametrize(
    "hand_over",
    [
        by_thread,
        by_timer,
        by_future,
        by_cancelled_future,
        by_callback,
        by_thread_pool,
        by_task,
        by_cancelled_task,
        by_loop,
    ],
)
def test_when_work_is_done_its_span_and_its_callable_are_free(
    plugins: list[Any], hand_over: Callable[[Work], object]
) -> None:
    work = Work()
    with tracer.start_as_current_span("submitter") as submitter:
        kept = hand_over(work)
    freed = weakref.ref(submitter), weakref.ref(work)
    del submitter, work
    forget(plugins)
    gc.collect()
    assert [reference() for reference in freed] == [None, None]
    del kept


def snapshots() -> int:
    gc.collect()
    return sum(type(kept) is ContextSnapshot for kept in gc.get_objects())


def many_submits(pool: ThreadPoolExecutor, count: int) -> None:
    for _ in range(count // 1000):
        for future in [pool.submit(int) for _ in range(1000)]:
            future.result()


def test_a_hundred_thousand_submits_under_one_span_leave_nothing(plugins: list[Any]) -> None:
    count = 100_000 if futures_plugin.only_restores else 5_000
    with ThreadPoolExecutor(1) as pool, tracer.start_as_current_span("submitter"):
        many_submits(pool, 1000)
        forget(plugins)
        gc.collect()
        before = len(gc.get_objects()), sys.getallocatedblocks()
        many_submits(pool, count)
        forget(plugins)
        gc.collect()
        after = len(gc.get_objects()), sys.getallocatedblocks()
    grown = [now - then for now, then in zip(after, before, strict=True)]
    assert all(growth < count // 50 for growth in grown), grown


def test_a_result_that_is_kept_keeps_no_snapshot(plugins: list[Any]) -> None:
    before = snapshots()
    with ThreadPool(1) as pool, tracer.start_as_current_span("submitter"):
        results = [pool.apply_async(int) for _ in range(1000)]
        kept = [result.get() for result in results]
        pool.apply(int)
    forget(plugins)
    assert len(kept) == 1000
    assert snapshots() - before < 10


def idle_after_apply(pool: ThreadPool) -> None:
    pool.apply(int)


def idle_after_submit(pool: ThreadPoolExecutor) -> None:
    pool.submit(int).result()


@pytest.mark.parametrize(
    ("make_pool", "submit"), [(ThreadPoolExecutor, idle_after_submit), (ThreadPool, idle_after_apply)]
)
def test_a_worker_that_waits_for_its_next_item_keeps_no_span(
    plugins: list[Any], make_pool: Callable[[int], Any], submit: Callable[[Any], None]
) -> None:
    with make_pool(1) as pool:
        with tracer.start_as_current_span("submitter") as submitter:
            submit(pool)
        freed = weakref.ref(submitter)
        del submitter
        for _ in range(500):  # the worker is on its way back
            forget(plugins)
            gc.collect()
            if freed() is None:
                break
            threading.Event().wait(0.01)
        assert freed() is None
