"""The plugin concurrent-futures, beyond the contract that it shares with the others."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from contract import current_span, fail, see_span
from opentelemetry import context, trace
from opentelemetry.trace import StatusCode

from sw_agent.testing import installed
from sw_agent_plugins import threading as threads
from sw_agent_plugins.concurrent_futures import plugin


@pytest.fixture(autouse=True)
def installed_plugin() -> Iterator[None]:
    with installed(plugin):
        yield


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def busy(pool: ThreadPoolExecutor) -> Iterator[threading.Event]:
    """Keep the only worker of the pool busy until the event is set."""
    free = threading.Event()
    pool.submit(free.wait, 60)
    try:
        yield free
    finally:
        free.set()


def span(name: str = "submitter") -> Any:
    return trace.get_tracer("test").start_as_current_span(name)


def ids(current: Any) -> tuple[int, int]:
    span_context = current.get_span_context()
    return span_context.trace_id, span_context.span_id


# Thread pools

HAS_TASK = sys.version_info >= (3, 14)


def task_of(item: Any) -> tuple[Any, ...]:
    """Return function, arguments and keyword arguments of a work item."""
    return tuple(item.task) if HAS_TASK else (item.fn, item.args, item.kwargs)


def test_a_work_item_without_context_is_as_without_the_agent(pool: ThreadPoolExecutor, busy: threading.Event) -> None:
    function = print
    pool.submit(function, 1, end="")
    item = pool._work_queue.get_nowait()
    assert vars(item).keys() == ({"future", "task"} if HAS_TASK else {"future", "fn", "args", "kwargs"})
    assert task_of(item) == (function, (1,), {"end": ""})
    assert type(item.future) is Future


def test_a_work_item_with_context_keeps_the_function_itself(pool: ThreadPoolExecutor, busy: threading.Event) -> None:
    function = print
    with span():
        future = pool.submit(function, 1, end="")
    item = pool._work_queue.get_nowait()
    assert item.future is future
    assert task_of(item)[0] is function
    assert task_of(item)[1:] == ((1,), {"end": ""})


def test_misuse_raises_the_error_of_the_library(pool: ThreadPoolExecutor) -> None:
    for _ in range(2):
        with span():
            with pytest.raises(TypeError, match="missing 1 required positional argument"):
                pool.submit(fn=print)  # type: ignore[call-arg]
            with pytest.raises(TypeError, match="not callable"):
                pool.submit(1).result()  # type: ignore[arg-type]
    pool.shutdown()
    with span(), pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(print)


def test_the_initializer_belongs_to_nobody_and_what_it_sets_is_seen_by_tasks() -> None:
    variable: ContextVar[object] = ContextVar("variable")

    def initialize() -> None:
        variable.set(current_span())

    with installed(threads.plugin), span(), ThreadPoolExecutor(1, initializer=initialize) as pool:
        assert pool.submit(variable.get).result() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("options", [{}, {"spans": True}])
def test_a_broken_pool_says_so(options: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    plugin.uninstall()
    with installed(plugin, **options), span():
        pool = ThreadPoolExecutor(1, initializer=lambda: 1 / 0)
        with pytest.raises(BrokenExecutor):
            pool.submit(print).result(60)
    pool.shutdown()


def test_a_cancelled_item_frees_its_span(pool: ThreadPoolExecutor, busy: threading.Event) -> None:
    with span() as submitter:
        future = pool.submit(print)
    freed = weakref.ref(submitter)
    del submitter
    assert future.cancel()
    busy.set()
    pool.submit(print, end="").result()
    gc.collect()
    assert freed() is None


def test_items_that_a_shutdown_cancels_free_their_span(pool: ThreadPoolExecutor, busy: threading.Event) -> None:
    with span() as submitter:
        future = pool.submit(print)
    freed = weakref.ref(submitter)
    del submitter
    pool.shutdown(wait=False, cancel_futures=True)
    assert future.cancelled()
    gc.collect()
    assert freed() is None


@pytest.mark.parametrize("options", [{}, {"spans": True}, {"relation": "link"}])
def test_an_error_that_is_kept_keeps_no_span_and_no_function(
    pool: ThreadPoolExecutor, options: dict[str, object]
) -> None:
    plugin.uninstall()
    with installed(plugin, **options):

        class Function:
            def __call__(self) -> None:
                raise_it()

        def raise_it() -> None:
            nonlocal function
            function = None
            raise ValueError("on purpose")

        function: Function | None = Function()
        freed_function = weakref.ref(function)
        with span() as submitter:
            future = pool.submit(function)
        freed_span = weakref.ref(submitter)
        del submitter
        assert isinstance(future.exception(), ValueError)
        for frame, _ in list(traceback.walk_tb(future.exception().__traceback__))[1:]:  # type: ignore[union-attr]
            frame.clear()  # the program's own, and on 3.14 the library's `WorkerContext.run`, which holds the function
        pool.submit(int).result()
        gc.collect()
        assert freed_span() is None
        assert freed_function() is None


def test_a_span_for_an_item_has_its_function_and_the_error_that_it_raised(pool: ThreadPoolExecutor) -> None:
    plugin.uninstall()
    with installed(plugin, spans=True) as spans, span() as submitter:
        future = pool.submit(fail, 7)
        assert future.exception() is not None
        assert spans.names == ["fail"]  # it has ended when the result is there
        assert pool.submit(int, "7").result() == 7
    failed, _, _ = spans
    assert failed.parent is not None
    assert failed.parent.span_id == ids(submitter)[1]
    assert failed.attributes is not None
    assert failed.attributes["code.function.name"] == "contract.fail"
    assert failed.status.status_code is StatusCode.ERROR
    assert spans.named("int").status.status_code is StatusCode.UNSET


def test_an_item_that_is_cancelled_has_no_span(pool: ThreadPoolExecutor, busy: threading.Event) -> None:
    plugin.uninstall()
    with installed(plugin, spans=True) as spans:
        future = pool.submit(print)
        assert future.cancel()
        busy.set()
        pool.submit(int).result()
    assert spans.names == ["int"]
    with pytest.raises(CancelledError):
        future.result()


def test_without_the_plugin_the_library_is_untouched(pool: ThreadPoolExecutor) -> None:
    plugin.uninstall()
    with span():
        assert pool.submit(current_span).result() is None


# Callbacks


def test_a_callback_belongs_to_its_registrar_whoever_completes_the_future() -> None:
    future: Future[int] = Future()
    seen: list[Any] = []
    future.add_done_callback(lambda _: seen.append(("nobody", current_span())))
    with span("first") as first:
        future.add_done_callback(lambda _: seen.append(("first", current_span())))
    future.add_done_callback(lambda _: seen.append(("nobody", current_span())))
    with span("second") as second:
        future.add_done_callback(lambda _: seen.append(("second", current_span())))
    with span("completer") as completer:
        future.set_result(1)
        future.add_done_callback(lambda _: seen.append(("completer", current_span())))
        assert trace.get_current_span() is completer
    assert seen == [
        ("nobody", None),
        ("first", ids(first)),
        ("nobody", None),
        ("second", ids(second)),
        ("completer", ids(completer)),
    ]


def test_a_callback_without_context_does_not_see_the_context_of_the_item(
    pool: ThreadPoolExecutor, busy: threading.Event
) -> None:
    seen: list[Any] = []
    with span():
        future = pool.submit(int)
    future.add_done_callback(lambda _: seen.append(current_span()))
    busy.set()
    future.result()
    pool.submit(int).result()
    assert seen == [None]


def test_callbacks_are_kept_as_they_are_and_without_context_nothing_is_done() -> None:
    future: Future[int] = Future()
    future.add_done_callback(print)
    assert type(future._done_callbacks) is list  # type: ignore[attr-defined]
    with span():
        future.add_done_callback(repr)
    assert future._done_callbacks == [print, repr]  # type: ignore[attr-defined]
    assert future._done_callbacks[1] is repr  # type: ignore[attr-defined]


def test_a_callback_that_fails_is_reported_without_frames_of_the_agent(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_future: object) -> None:
        raise ValueError("on purpose")

    def report() -> list[str]:
        caplog.clear()
        future: Future[int] = Future()
        with span():
            future.add_done_callback(broken)
        future.add_done_callback(after.append)
        future.set_result(1)
        (record,) = caplog.records
        assert record.exc_info is not None
        return [frame.name for frame in traceback.extract_tb(record.exc_info[2])]

    after: list[Any] = []
    traced = report()
    plugin.uninstall()
    assert traced == report()
    assert len(after) == 2


def test_what_a_callback_leaves_attached_is_seen_by_nobody() -> None:
    def careless(_future: object) -> None:
        context.attach(trace.set_span_in_context(trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))))

    future: Future[int] = Future()
    seen: list[Any] = []
    with span("registrar"):
        future.add_done_callback(careless)
    future.add_done_callback(lambda _: seen.append(current_span()))
    with span("completer") as completer:
        future.set_result(1)
        assert trace.get_current_span() is completer
    assert seen == [None]


def test_a_future_that_is_done_holds_no_span_of_its_callbacks() -> None:
    future: Future[int] = Future()
    with span() as registrar:
        future.add_done_callback(repr)
    freed = weakref.ref(registrar)
    del registrar
    future.set_result(1)
    gc.collect()
    assert freed() is None


# Process pools


@pytest.fixture
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        yield pool


def seen_span(*_args: object) -> Any:
    return see_span()


def test_a_mapped_chunk_has_one_span_named_after_the_function(processes: ProcessPoolExecutor) -> None:
    plugin.uninstall()
    with installed(plugin, spans=True), span() as submitter:
        first, second = processes.map(seen_span, range(2), chunksize=2)
    assert first.span_id == second.span_id
    assert first.parent_id == ids(submitter)[1]
    assert first.name == "seen_span"


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")


def test_what_cannot_be_pickled_fails_as_without_the_agent(processes: ProcessPoolExecutor) -> None:
    with span():
        with pytest.raises(TypeError, match="not to be pickled"):
            processes.submit(repr, Unpicklable()).result()
        with pytest.raises(TypeError, match="not to be pickled"):
            processes.submit(Unpicklable).result()
        assert processes.submit(current_span).result() is not None


def test_a_worker_that_dies_breaks_the_pool_as_without_the_agent(processes: ProcessPoolExecutor) -> None:
    with span(), pytest.raises(BrokenExecutor, match="terminated abruptly"):
        processes.submit(os._exit, 1).result()


def test_a_process_pool_item_frees_its_span_when_it_is_sent(processes: ProcessPoolExecutor) -> None:
    with span() as submitter:
        future = processes.submit(int)
    freed = weakref.ref(submitter)
    del submitter
    future.result()
    processes.submit(int).result()
    gc.collect()
    assert freed() is None


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no max_tasks_per_child")
def test_workers_that_are_replaced_after_some_tasks_still_are() -> None:
    with span(), ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=2) as pool:
        pids = [pool.submit(os.getpid).result() for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_the_callback_of_a_process_pools_future_belongs_to_its_registrar(processes: ProcessPoolExecutor) -> None:
    seen: list[Any] = []
    done = threading.Event()
    with span("submitter"):
        future = processes.submit(int)
    with span("registrar") as registrar:
        future.add_done_callback(lambda _: (seen.append(current_span()), done.set()))
    assert done.wait(60)
    assert seen == [ids(registrar)]
