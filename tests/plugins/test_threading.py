"""The plugin threading, beyond the contract that it shares with the others."""

from __future__ import annotations

import _thread
import contextvars
import gc
import logging
import logging.handlers
import multiprocessing
import queue
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from contract import current_span
from opentelemetry import context, trace
from opentelemetry.trace import StatusCode

from sw_agent.testing import installed
from sw_agent_plugins.threading import detached, plugin


@pytest.fixture(autouse=True)
def installed_plugin() -> Iterator[None]:
    with installed(plugin):
        yield


def span(name: str = "submitter") -> Any:
    return trace.get_tracer("test").start_as_current_span(name)


def ids(current: Any) -> tuple[int, int]:
    span_context = current.get_span_context()
    return span_context.trace_id, span_context.span_id


def in_thread(function: Callable[[], Any]) -> Any:
    """Return what the function returns in a thread that is started here."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_a_thread_belongs_to_who_starts_it_not_to_who_builds_it() -> None:
    seen: list[Any] = []
    with span("builder"):
        thread = threading.Thread(target=lambda: seen.append(current_span()))
    with span("starter") as starter:
        thread.start()
    thread.join()
    assert seen == [ids(starter)]


def test_a_thread_that_nobody_starts_runs_as_a_plain_call() -> None:
    seen: list[Any] = []
    with span("builder"):
        thread = threading.Thread(target=lambda: seen.append(current_span()))
    with span("caller") as caller:
        thread.run()
    assert seen == [ids(caller)]


def test_a_thread_holds_no_context_variable_but_the_one_of_opentelemetry() -> None:
    assert len(in_thread(contextvars.copy_context)) == 0
    with span():
        assert len(in_thread(contextvars.copy_context)) == 1


def test_a_thread_object_is_as_the_program_made_it() -> None:
    def target() -> None:
        assert told.wait(60)

    told = threading.Event()
    natively = threading.Thread(target=target, name="natively")
    thread = threading.Thread(target=target, name="traced")
    with span():
        thread.start()
    try:
        assert vars(thread).keys() == vars(natively).keys()
        assert thread._target is target  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="threads can only be started once"):
            thread.start()
    finally:
        told.set()
        thread.join()


def test_no_frame_of_the_agent_is_in_a_thread() -> None:
    def files() -> list[str]:
        return [frame.filename for frame in traceback.extract_stack()]

    natively = in_thread(files)
    with span():
        assert in_thread(files) == natively


def test_an_error_in_a_thread_is_reported_as_without_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)

    def fail() -> None:
        raise ValueError("on purpose")

    def frames() -> list[str]:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        last = reported.pop()
        assert last.thread is thread
        return [frame.name for frame in traceback.extract_tb(last.exc_traceback)]

    natively = frames()
    with span():
        assert frames() == natively
    plugin.uninstall()
    with installed(plugin, spans=True), span():
        assert frames() == natively


@pytest.mark.parametrize("args", [(), (1, ()), (len, 1), (len, (), 1)])
def test_a_misused_start_new_thread_raises_its_own_error(args: tuple[Any, ...]) -> None:
    plugin.uninstall()
    with pytest.raises(TypeError) as natively:
        _thread.start_new_thread(*args)
    plugin.install()
    for active in (False, True):
        with span() if active else trace.use_span(trace.INVALID_SPAN), pytest.raises(TypeError) as raised:
            _thread.start_new_thread(*args)
        assert str(raised.value) == str(natively.value)


def test_start_new_thread_passes_arguments_on() -> None:
    seen: queue.Queue[Any] = queue.Queue()
    with span() as submitter:
        _thread.start_new_thread(lambda *args, **kwargs: seen.put((args, kwargs, current_span())), (1, 2), {"three": 3})
    assert seen.get(timeout=60) == ((1, 2), {"three": 3}, ids(submitter))


def test_an_error_in_a_raw_thread_is_reported_with_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: queue.Queue[Any] = queue.Queue()
    monkeypatch.setattr(
        sys,
        "unraisablehook",
        lambda raised: reported.put((repr(raised.object), raised.err_msg, traceback.extract_tb(raised.exc_traceback))),
    )

    def fail() -> None:
        raise ValueError("on purpose")

    _thread.start_new_thread(fail, ())
    natively = reported.get(timeout=60)
    with span():
        _thread.start_new_thread(fail, ())
    assert reported.get(timeout=60) == natively


def test_start_new_thread_does_not_become_a_method() -> None:
    class Program:
        start = _thread.start_new_thread

    seen: queue.Queue[Any] = queue.Queue()
    Program().start(seen.put, (1,))
    assert seen.get(timeout=60) == 1


def test_a_cancelled_timer_frees_its_span() -> None:
    with span() as submitter:
        timer = threading.Timer(3600, print)
        timer.start()
    freed = weakref.ref(submitter)
    del submitter
    timer.cancel()
    timer.join()
    gc.collect()
    assert freed() is None


def test_threads_that_outlive_requests_belong_to_nobody() -> None:
    contexts: queue.Queue[bool] = queue.Queue()

    class Handler(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            contexts.put(bool(context.get_current()))
            return True

    records: queue.Queue[Any] = queue.Queue()
    listener = logging.handlers.QueueListener(records, Handler())
    with span():
        listener.start()
    records.put(logging.makeLogRecord({}))
    assert contexts.get(timeout=60) is False
    listener.stop()


def test_the_feeder_of_a_multiprocessing_queue_belongs_to_nobody() -> None:
    class Seen:
        def __reduce__(self) -> Any:
            return str, (str(bool(context.get_current())),)

    channel = multiprocessing.Queue()
    with span():
        channel.put(Seen())
    assert channel.get(timeout=60) == "False"
    channel.close()
    channel.join_thread()


DETACHED = [
    ("asyncio.base_events", "BaseEventLoop._do_shutdown"),
    ("asyncio.unix_events", f"{'_' if sys.version_info >= (3, 14) else ''}ThreadedChildWatcher._do_waitpid"),
    ("concurrent.futures.process", "_ExecutorManagerThread"),
    ("concurrent.futures.thread", "_worker"),
    ("logging.handlers", "QueueListener._monitor"),
    ("multiprocessing.managers", "Server.accepter"),
    ("multiprocessing.managers", "Server.handle_request"),
    ("multiprocessing.pool", "Pool._handle_workers"),
    ("multiprocessing.pool", "Pool._handle_tasks"),
    ("multiprocessing.pool", "Pool._handle_results"),
    ("multiprocessing.pool", "worker"),
    ("multiprocessing.queues", "Queue._feed"),
    ("multiprocessing.resource_sharer", "_ResourceSharer._serve"),
    ("opentelemetry.sdk._shared_internal", "BatchProcessor.worker"),
]


@pytest.mark.parametrize(("module", "path"), DETACHED, ids=lambda part: part)
def test_the_names_of_detached_threads_are_those_of_the_libraries(module: str, path: str) -> None:
    found: Any = pytest.importorskip(module)
    for part in path.split("."):
        found = getattr(found, part)
    assert detached.lists(found)


def monitor() -> tuple[int, int] | None:
    return current_span()


class Monitor(threading.Thread):
    def run(self) -> None:
        self.seen = current_span()


class QuickMonitor(Monitor):
    pass


@pytest.mark.parametrize("name", ["{0}.Monitor", "{0}"])
def test_the_option_detached_names_classes_and_modules(name: str) -> None:
    for names, is_detached in (([], False), ([name.format(__name__)], True), ([], False)):
        plugin.uninstall()
        with installed(plugin, detached=names), span():
            for _ in range(2):
                thread = QuickMonitor(target=int)
                thread.start()
                thread.join()
                assert thread.seen == (None if is_detached else current_span())


def test_the_option_detached_names_functions_at_dots() -> None:
    for name, is_listed in ((f"{__name__}.monitor", True), (f"{__name__}.mon", False)):
        plugin.uninstall()
        with installed(plugin, detached=[name]):
            assert detached.lists(monitor) is is_listed


def test_a_span_for_a_thread_is_named_after_what_the_program_wrote() -> None:
    def target() -> None:
        pass

    plugin.uninstall()
    with installed(plugin, spans=True) as spans, span():
        for thread in (threading.Thread(target=target), threading.Timer(0, target), Monitor()):
            thread.start()
            thread.join()
    here = "test_a_span_for_a_thread_is_named_after_what_the_program_wrote.<locals>.target"
    assert spans.names == [here, here, "Monitor.run", "submitter"]
    assert [s.attributes["thread.name"] for s in spans if s.name == "Monitor.run"] == [thread.name]  # type: ignore[index]
    assert all(s.attributes["sw.wait_ms"] >= 0 for s in spans if s.name != "submitter")  # type: ignore[index,operator]


def test_the_span_of_a_thread_that_fails_has_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def fail(error: BaseException) -> None:
        raise error

    plugin.uninstall()
    with installed(plugin, spans=True) as spans:
        for error in (ValueError("on purpose"), SystemExit(1)):
            thread = threading.Thread(target=fail, args=[error])
            thread.start()
            thread.join()
    failed, exited = spans
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "ValueError: on purpose")
    assert exited.status.status_code is StatusCode.UNSET


def test_a_name_bound_to_a_patched_function_stops_with_the_plugin() -> None:
    kept = _thread.start_new_thread
    plugin.uninstall()
    seen: queue.Queue[Any] = queue.Queue()
    with span():
        kept(lambda: seen.put(current_span()), ())
    assert seen.get(timeout=60) is None
    assert _thread.start_new_thread.__module__ == "_thread"


def test_what_threading_binds_while_the_plugin_is_in_is_the_very_function_that_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "_start_joinable_thread" if sys.version_info >= (3, 13) else "_start_new_thread"
    plugin.uninstall()
    native = getattr(_thread, name[1:])
    monkeypatch.delitem(sys.modules, "threading")
    plugin.install()
    import threading as arriving

    with span() as submitter:
        seen: list[Any] = []
        thread = arriving.Thread(target=lambda: seen.append(current_span()))
        thread.start()
        thread.join()
    assert seen == [ids(submitter)]
    plugin.uninstall()
    assert getattr(arriving, name) is native


def test_a_callable_that_raises_when_looked_at_runs_in_the_context_of_its_starter() -> None:
    class Proxy:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError(name)

        def __call__(self) -> None:
            seen.append(trace.get_current_span())
            done.release()

    seen: list[object] = []
    done = _thread.allocate_lock()
    done.acquire()
    with span("starter") as starter:
        _thread.start_new_thread(Proxy(), ())
        assert done.acquire(timeout=30)
    assert seen == [starter]
