"""Random programs hand work over in nested ways: every span's parent is what the program's own structure says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from typing import Any

import contract
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, context, trace

import sw_agent
from sw_agent.testing import RecordedSpans, installed
from sw_agent_plugins.asyncio import plugin as asyncio_plugin
from sw_agent_plugins.concurrent_futures import plugin as futures_plugin
from sw_agent_plugins.multiprocessing import plugin as multiprocessing_plugin
from sw_agent_plugins.threading import plugin as threading_plugin

PLUGINS = (asyncio_plugin, futures_plugin, multiprocessing_plugin, threading_plugin)
tracer = trace.get_tracer("program")

HandOver = Callable[["Workers", Callable[[], None]], None]
WAYS: dict[str, HandOver] = {}


class Workers:
    """What all programs of a test share: pools of one thread, an executor that no plugin knows, a running loop."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.thread_pool = ThreadPool(1)
        self.foreign = contract.ForeignExecutor()
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _loop, _context: None)
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(60)
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.pool.shutdown()
        self.foreign.shutdown()
        self.thread_pool.close()
        self.thread_pool.join()

    def in_loop(self, function: Callable[[], object]) -> None:
        """Call a function in the loop, in the caller's context: at once where the caller is in the loop."""
        if threading.current_thread() is self._thread:
            copy_context().run(function)
        else:
            self.loop.call_soon_threadsafe(function)


def way(name: str) -> Callable[[HandOver], HandOver]:
    def register(hand_over: HandOver) -> HandOver:
        WAYS[name] = hand_over
        return hand_over

    return register


async def coroutine(work: Callable[[], None]) -> None:
    work()


@way("Thread")
def _thread(_: Workers, work: Callable[[], None]) -> None:
    threading.Thread(target=work).start()


@way("Timer")
def _timer(_: Workers, work: Callable[[], None]) -> None:
    threading.Timer(0, work).start()


@way("ThreadPoolExecutor.submit")
def _submit(workers: Workers, work: Callable[[], None]) -> None:
    workers.pool.submit(work)


@way("Future.add_done_callback")
def _callback(workers: Workers, work: Callable[[], None]) -> None:
    go = threading.Event()
    empty = context.attach(context.Context())
    future = workers.pool.submit(go.wait, 60)
    context.detach(empty)
    future.add_done_callback(lambda _: work())
    go.set()


@way("Future.add_done_callback, completed here")
def _callback_here(_: Workers, work: Callable[[], None]) -> None:
    future: Future[None] = Future()
    future.add_done_callback(lambda _: work())
    with tracer.start_as_current_span("whoever completes it"):
        future.set_result(None)


@way("ThreadPool.apply_async")
def _apply(workers: Workers, work: Callable[[], None]) -> None:
    workers.thread_pool.apply_async(work)


@way("ThreadPool callback")
def _pool_callback(workers: Workers, work: Callable[[], None]) -> None:
    workers.thread_pool.apply_async(int, callback=lambda _: work())


@way("ThreadPool.imap")
def _imap(workers: Workers, work: Callable[[], None]) -> None:
    workers.thread_pool.imap(lambda _: work(), [1])


@way("task")
def _task(workers: Workers, work: Callable[[], None]) -> None:
    asyncio.run_coroutine_threadsafe(coroutine(work), workers.loop)


@way("call_soon")
def _call_soon(workers: Workers, work: Callable[[], None]) -> None:
    workers.in_loop(lambda: workers.loop.call_soon(work))


@way("run_in_executor, default")
def _default(workers: Workers, work: Callable[[], None]) -> None:
    workers.in_loop(lambda: workers.loop.run_in_executor(None, work))


@way("run_in_executor, thread pool")
def _own(workers: Workers, work: Callable[[], None]) -> None:
    workers.in_loop(lambda: workers.loop.run_in_executor(workers.pool, work))


@way("run_in_executor, foreign")
def _foreign(workers: Workers, work: Callable[[], None]) -> None:
    workers.in_loop(lambda: workers.loop.run_in_executor(workers.foreign, work))


@way("snapshot.run")
def _run(_: Workers, work: Callable[[], None]) -> None:
    snapshot = sw_agent.capture()
    with tracer.start_as_current_span("whoever runs it"):
        snapshot.run(work)


@way("snapshot.wrap")
def _wrap(workers: Workers, work: Callable[[], None]) -> None:
    wrapped = sw_agent.capture().wrap(work)
    empty = context.attach(context.Context())
    workers.thread_pool.apply_async(wrapped)
    context.detach(empty)


# A program is a tree of items


@dataclass(frozen=True)
class Item:
    """One piece of work: how it is handed over, what it does before and after its span, and how it ends."""

    way: str
    spans: int  # of its own, one inside the other
    first: tuple[Item, ...]  # handed over inside its spans
    then: tuple[Item, ...]  # handed over after them
    leaks: bool  # leaves something attached


def items(ways: list[str]) -> st.SearchStrategy[Item]:
    def item(children: st.SearchStrategy[tuple[Item, ...]]) -> st.SearchStrategy[Item]:
        return st.builds(Item, st.sampled_from(ways), st.integers(0, 2), children, children, st.booleans())

    nested = st.recursive(item(st.just(())), lambda inner: item(st.lists(inner, max_size=3).map(tuple)), max_leaves=8)
    children = st.lists(nested, max_size=4).map(tuple)
    return st.builds(Item, st.just("main"), st.integers(0, 2), children, children, st.just(False))


class Run:
    """One run of a program: what it has found wrong, and how much of it is still to come."""

    def __init__(self, workers: Workers) -> None:
        self.parents: dict[str, str | None] = {}
        self.wrong: list[object] = []
        self._workers = workers
        self._open = 1
        self._lock = threading.Lock()
        self._done = threading.Event()

    def of(self, item: Item) -> None:
        """Run the program and wait until all of it is done; no piece of work waits for another."""
        self._work(item, "item", None)
        assert self._done.wait(60)

    def _work(self, item: Item, path: str, parent: str | None) -> None:
        before = context.get_current()
        try:
            self._expect(path, self._name() if self._name() is None or not self._is_ours() else parent, parent)
            with ExitStack() as stack:
                name = parent
                for number in range(item.spans):
                    self.parents[f"{path}:{number}"] = name
                    name = f"{path}:{number}"
                    stack.enter_context(tracer.start_as_current_span(name))
                self._hand_over(item.first, f"{path}.a", name)
            self._hand_over(item.then, f"{path}.b", parent)
            self._expect(f"{path} at its end", context.get_current(), before)
            if item.leaks and self._is_left_by_somebody(item.way, before):
                context.attach(baggage.set_baggage("leaked", path))
        except BaseException as error:
            self.wrong.append(error)
        finally:
            with self._lock:
                self._open -= 1
                if not self._open:
                    self._done.set()

    def _hand_over(self, children: tuple[Item, ...], path: str, parent: str | None) -> None:
        for number, child in enumerate(children):
            with self._lock:
                self._open += 1
            before = context.get_current()
            place = f"{path}{number}"
            WAYS[child.way](self._workers, lambda child=child, place=place: self._work(child, place, parent))
            self._expect(f"the submitter of {place}", context.get_current(), before)

    def _expect(self, what: str, found: object, expected: object) -> None:
        if found is not expected and found != expected:
            self.wrong.append((what, found, expected))
        if leaked := baggage.get_baggage("leaked"):
            self.wrong.append((what, "sees what was left by", leaked))

    @staticmethod
    def _name() -> str | None:
        return getattr(trace.get_current_span(), "name", None)

    @staticmethod
    def _is_ours() -> bool:
        """Whether the current span is one that a plugin has put around the item; whose child it is, is told later."""
        scope = getattr(trace.get_current_span(), "instrumentation_scope", None)
        return scope is not None and scope.name.startswith("sw_agent.")

    @staticmethod
    def _is_left_by_somebody(way: str, before: context.Context) -> bool:
        return way != "main" and not ("foreign" in way and not before)  # of that worker nobody has a hold


def program_ancestor(spans: RecordedSpans, span: Any) -> str | None:
    """Return the program's span that this one hangs under, or is linked to, past the spans of the plugins."""
    by_id = {found.context.span_id: found for found in spans if found.context}
    while True:
        above = span.parent or (span.links[0].context if span.links else None)
        if above is None:
            return None
        span = by_id[above.span_id]
        if not span.instrumentation_scope.name.startswith("sw_agent."):
            return str(span.name)


def check(workers: Workers, spans: RecordedSpans, program: Item) -> None:
    spans.ended.clear()
    run = Run(workers)
    run.of(program)
    assert run.wrong == []
    # What ends after the program's part of an item, in its worker: the spans of the plugins.
    wait_until(lambda: all(above_is_there(spans, span) for span in spans))
    found = {span.name: program_ancestor(spans, span) for span in spans if span.name in run.parents}
    assert found == run.parents
    for span in spans:
        if span.instrumentation_scope and span.instrumentation_scope.name.startswith("sw_agent."):
            assert span.attributes is not None
            assert span.attributes["sw.wait_ms"] >= 0  # type: ignore[operator]


def above_is_there(spans: RecordedSpans, span: Any) -> bool:
    ids = {found.context.span_id for found in spans if found.context}
    return all(above.span_id in ids for above in (span.parent, *(link.context for link in span.links)) if above)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("not in 5 seconds")


@contextmanager
def running(**options: object) -> Iterator[tuple[Workers, RecordedSpans]]:
    with ExitStack() as stack:
        for plugin in PLUGINS:
            spans = stack.enter_context(installed(plugin, **options))
        workers = Workers()
        stack.callback(workers.close)
        yield workers, spans


@pytest.mark.parametrize("options", [{}, {"spans": True}, {"relation": "link"}], ids=["plain", "spans", "link"])
def test_every_span_has_the_parent_that_the_structure_of_the_program_says(options: dict[str, object]) -> None:
    with running(**options) as (workers, spans):

        @settings(max_examples=60, deadline=None, derandomize=True, database=None)
        @given(items(sorted(WAYS)))
        def holds(program: Item) -> None:
            check(workers, spans, program)

        holds()
