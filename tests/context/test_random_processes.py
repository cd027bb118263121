"""Random programs whose work runs in processes that are reused: each item is its own submitter's, or nobody's."""

from __future__ import annotations

import multiprocessing
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

import contract
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace

from sw_agent.testing import installed
from sw_agent_plugins.concurrent_futures import plugin as futures_plugin
from sw_agent_plugins.multiprocessing import plugin as multiprocessing_plugin
from sw_agent_plugins.threading import plugin as threading_plugin

fork = multiprocessing.get_context("fork")
tracer = trace.get_tracer("program")
Submit = Callable[[Any], Callable[[], Any]]


def spans_around(function: Callable[..., Any]) -> list[Any]:
    """In the worker: a span of the program's around the look, whose parent says whose work it was."""
    with tracer.start_as_current_span("work") as span:
        inside = contract.current_span()
        parent = getattr(span, "parent", None)
    return [inside is not None, (parent.trace_id, parent.span_id) if parent else None, function()]


class Workers:
    def __init__(self) -> None:
        self.executor = ProcessPoolExecutor(1, fork)
        self.executor.submit(int).result()  # forked before there are more threads than need be
        self.pool = fork.Pool(1)

    def ways(self) -> dict[str, Submit]:
        return {
            "ProcessPoolExecutor.submit": lambda work: self.executor.submit(spans_around, work).result,
            "ProcessPoolExecutor.map": lambda work: lambda: next(self.executor.map(spans_around, [work])),
            "Pool.apply_async": lambda work: self.pool.apply_async(spans_around, (work,)).get,
            "Pool.imap": lambda work: lambda: next(self.pool.imap(spans_around, [work])),
            "Pool.map": lambda work: lambda: self.pool.map(spans_around, [work])[0],
            "Process": self.in_process,
        }

    def in_process(self, work: Any) -> Callable[[], Any]:
        receiving, sending = fork.Pipe(duplex=False)
        process = fork.Process(target=contract.SentOutcome(spans_around, sending), args=(work,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the pools have threads, which this process needs not
            process.start()

        def wait() -> Any:
            result, error = receiving.recv()
            process.join(60)
            assert error is None
            return result

        return wait

    def close(self) -> None:
        self.executor.shutdown()
        self.pool.close()
        self.pool.join()


WAYS = ["ProcessPoolExecutor.submit", "ProcessPoolExecutor.map", "Pool.apply_async", "Pool.imap", "Pool.map", "Process"]
ITEM = st.tuples(
    st.sampled_from(WAYS),
    st.integers(0, 2),  # spans of the submitter's
    st.sampled_from([contract.current_span, contract.context_is_empty, contract.leave_a_span_attached]),
    st.booleans(),  # submitted in a thread of its own
)


@pytest.fixture
def workers() -> Iterator[Workers]:
    with ExitStack() as stack:
        for plugin in (futures_plugin, multiprocessing_plugin, threading_plugin):
            stack.enter_context(installed(plugin))
        made = Workers()
        stack.callback(made.close)
        yield made


def check(workers: Workers, way: str, depth: int, work: Any, in_thread: bool) -> None:
    with ExitStack() as stack:
        for number in range(depth):
            stack.enter_context(tracer.start_as_current_span(f"submitter {number}"))
        owner = contract.current_span()
        results: list[Any] = []
        submit = workers.ways()[way]
        if in_thread and way != "Process":
            thread = threading.Thread(target=lambda: results.append(submit(work)()))
            thread.start()
            thread.join(60)
        else:
            results.append(submit(work)())
        assert contract.current_span() == owner
    has_span, parent, _seen = results[0]
    assert has_span
    assert parent == owner


def test_every_item_in_a_process_is_the_child_of_its_own_submitter(workers: Workers) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(st.lists(ITEM, max_size=6))
    def holds(program: list[Any]) -> None:
        for way, depth, work, in_thread in program:
            check(workers, way, depth, work, in_thread)
        for way in WAYS:
            check(workers, way, 0, contract.current_span, False)

    holds()
