"""The ways in which work travels, each told in a few lines, and the functions that the contract test sends that way.

A mechanism is a context manager that yields `submit(function, *args)`: it hands the function over and returns a
`wait()` that gives back the function's result, or raises what it raised. Everything here can be pickled by name, also
into a spawned child. To add a mechanism, write one more function under `@mechanism(...)`.
"""

from __future__ import annotations

import _thread
import asyncio
import functools
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from opentelemetry import baggage, context, trace

Submit = Callable[..., Callable[[], Any]]
MECHANISMS: list[Mechanism] = []


@dataclass(frozen=True)
class Mechanism:
    """One way in which work travels.

    `plugins` are the modules of `sw_agent_plugins` that it needs. `process` is the start method where the work runs in
    another process. `reuses_worker` says that one worker does all the work of one `open()`. `related` says that the
    options `relation` and `spans` apply, `foreign_worker` that the worker is no plugin's business, `cooperates` that
    the work runs in the submitter's thread, when that waits for it.
    """

    name: str
    plugins: tuple[str, ...]
    open: Callable[[], AbstractContextManager[Submit]]
    process: str | None
    reuses_worker: bool
    related: bool
    foreign_worker: bool
    cooperates: bool


def mechanism(
    name: str,
    *plugins: str,
    process: str | None = None,
    reuses_worker: bool = False,
    related: bool = True,
    foreign_worker: bool = False,
    cooperates: bool = False,
) -> Callable[[Callable[[], Iterator[Submit]]], Callable[[], Iterator[Submit]]]:
    """Add the decorated generator to the mechanisms under test."""

    def register(opened: Callable[[], Iterator[Submit]]) -> Callable[[], Iterator[Submit]]:
        MECHANISMS.append(
            Mechanism(
                name, plugins, contextmanager(opened), process, reuses_worker, related, foreign_worker, cooperates
            )
        )
        return opened

    return register


class Outcome:
    """The result of a function whose caller throws it away, as a thread does."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._done = threading.Event()
        self._function = function
        self._args = args

    def __call__(self, *_ignored: object) -> None:
        try:
            self._result, self._error = self._function(*self._args), None
        except BaseException as error:
            self._error = error
        finally:
            self._function = self._args = None  # type: ignore[assignment]
            self._done.set()

    def wait(self) -> Any:
        assert self._done.wait(60)
        if self._error is not None:
            raise self._error
        return self._result


# Threads


def _started(thread: threading.Thread, outcome: Outcome) -> Callable[[], Any]:
    thread.start()

    def wait() -> Any:
        thread.join(60)
        return outcome.wait()

    return wait


@mechanism("Thread", "threading")
def _thread_with_target() -> Iterator[Submit]:
    def submit(function: Callable[..., Any], *args: object) -> Callable[[], Any]:
        outcome = Outcome(function, args)
        return _started(threading.Thread(target=outcome), outcome)

    yield submit


@mechanism("Thread subclass with run()", "threading")
def _thread_subclass() -> Iterator[Submit]:
    class Worker(threading.Thread):
        def __init__(self, outcome: Outcome) -> None:
            super().__init__()
            self.outcome = outcome

        def run(self) -> None:
            self.outcome()

    def submit(function: Callable[..., Any], *args: object) -> Callable[[], Any]:
        outcome = Outcome(function, args)
        return _started(Worker(outcome), outcome)

    yield submit


@mechanism("Timer", "threading")
def _timer() -> Iterator[Submit]:
    def submit(function: Callable[..., Any], *args: object) -> Callable[[], Any]:
        outcome = Outcome(function, args)
        return _started(threading.Timer(0, outcome), outcome)

    yield submit


@mechanism("_thread.start_new_thread", "threading", related=False)
def _raw_thread() -> Iterator[Submit]:
    def submit(function: Callable[..., Any], *args: object) -> Callable[[], Any]:
        outcome = Outcome(function, args)
        _thread.start_new_thread(outcome, ())
        return outcome.wait

    yield submit


# Pools of threads


@mechanism("ThreadPoolExecutor.submit", "concurrent_futures", "threading", reuses_worker=True)
def _thread_pool() -> Iterator[Submit]:
    with ThreadPoolExecutor(1) as pool:
        yield lambda function, *args: pool.submit(function, *args).result


@mechanism("ThreadPoolExecutor.submit, threading plugin off", "concurrent_futures", reuses_worker=True)
def _thread_pool_alone() -> Iterator[Submit]:
    with ThreadPoolExecutor(1) as pool:
        yield lambda function, *args: pool.submit(function, *args).result


@mechanism("ThreadPoolExecutor.map", "concurrent_futures", "threading", reuses_worker=True)
def _thread_pool_map() -> Iterator[Submit]:
    with ThreadPoolExecutor(1) as pool:
        yield lambda function, *args: functools.partial(next, pool.map(call, [function], [args]))


@mechanism("Future.add_done_callback", "concurrent_futures", reuses_worker=True, related=False)
def _done_callback() -> Iterator[Submit]:
    with ThreadPoolExecutor(1) as pool:

        def submit(function: Callable[..., Any], *args: object) -> Callable[[], Any]:
            outcome = Outcome(function, args)
            started = threading.Event()
            future: Future[bool] = pool.submit(started.wait, 60)
            future.add_done_callback(outcome)
            started.set()
            return outcome.wait

        yield submit


# Event loops


class ForeignExecutor(Executor):
    """An executor that no plugin knows: one thread for each item, started before anything is submitted."""

    def __init__(self) -> None:
        self._items: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []
        self._filled = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, daemon=True)  # a test may leave it
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._items.append((future, fn, args))
        self._filled.release()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._items.append((None, None, ()))  # type: ignore[arg-type]
        self._filled.release()
        self._thread.join(60)

    def _work(self) -> None:
        while self._filled.acquire():
            future, function, args = self._items.pop(0)
            if future is None:
                return
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)
            del future, function, args


@contextmanager
def _in_loop(executor: Executor | None) -> Iterator[Submit]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def run(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(executor, function, *args)

    try:
        yield lambda function, *args: asyncio.run_coroutine_threadsafe(run(function, args), loop).result
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@mechanism("run_in_executor, default executor", "asyncio", "concurrent_futures", "threading")
def _default_executor() -> Iterator[Submit]:
    with _in_loop(None) as submit:
        yield submit


@mechanism("run_in_executor, thread pool", "asyncio", "concurrent_futures", "threading", reuses_worker=True)
def _own_executor() -> Iterator[Submit]:
    with ThreadPoolExecutor(1) as pool, _in_loop(pool) as submit:
        yield submit


@mechanism(
    "run_in_executor, thread pool, concurrent-futures off",
    "asyncio",
    reuses_worker=True,
    related=False,
    foreign_worker=True,
)
def _own_executor_alone() -> Iterator[Submit]:
    with ThreadPoolExecutor(1) as pool, _in_loop(pool) as submit:
        yield submit


@mechanism("run_in_executor, foreign executor", "asyncio", reuses_worker=True, related=False, foreign_worker=True)
def _foreign_executor() -> Iterator[Submit]:
    with ForeignExecutor() as executor, _in_loop(executor) as submit:
        yield submit


# Pools of processes


def _process_pool(start_method: str) -> Iterator[Submit]:
    with ProcessPoolExecutor(1, multiprocessing.get_context(start_method)) as pool:
        yield lambda function, *args: pool.submit(function, *args).result


for _start_method in ("fork", "spawn", "forkserver"):
    mechanism(
        f"ProcessPoolExecutor, {_start_method}",
        "concurrent_futures",
        "threading",
        process=_start_method,
        reuses_worker=True,
    )(functools.partial(_process_pool, _start_method))


# Pools of interpreters


def prepare_interpreter(path: list[str], code: str) -> None:
    """Begin with code of the test's own. A function that needs nothing around it can be sent without its module."""
    import sys

    sys.path[:] = path
    exec(code, {})


def _interpreter_pool() -> Iterator[Submit]:
    from concurrent.futures import InterpreterPoolExecutor

    site = Path(os.environ.get("PYTHONPATH", ""), "sitecustomize.py")  # as a child process begins that is no fork
    code = site.read_text() if site.exists() else ""
    with InterpreterPoolExecutor(1, initializer=prepare_interpreter, initargs=(sys.path, code)) as pool:
        yield lambda function, *args: pool.submit(function, *args).result


if sys.version_info >= (3, 14):
    _register = mechanism(
        "InterpreterPoolExecutor", "concurrent_futures", "threading", reuses_worker=True, related=False
    )
    _register(_interpreter_pool)


# multiprocessing


def _pool(start_method: str) -> Any:
    return ThreadPool(1) if start_method == "threads" else multiprocessing.get_context(start_method).Pool(1)


def _pool_apply_async(start_method: str) -> Iterator[Submit]:
    with _pool(start_method) as pool:
        yield lambda function, *args: pool.apply_async(function, args).get


def _pool_starmap_async(start_method: str) -> Iterator[Submit]:
    with _pool(start_method) as pool:

        def submit(function: Callable[..., Any], *args: object) -> Callable[[], Any]:
            result = pool.starmap_async(call, [(function, args)])
            return lambda: result.get()[0]

        yield submit


def _pool_imap(start_method: str) -> Iterator[Submit]:
    with _pool(start_method) as pool:
        yield lambda function, *args: functools.partial(next, pool.imap(functools.partial(call, function), [args]))


def _process(start_method: str) -> Iterator[Submit]:
    context_of_method: Any = multiprocessing.get_context(start_method)

    def submit(function: Callable[..., Any], *args: object) -> Callable[[], Any]:
        receiving, sending = context_of_method.Pipe(duplex=False)
        process = context_of_method.Process(target=SentOutcome(function, sending), args=args)
        process.start()
        sending.close()

        def wait() -> Any:
            try:
                result, error = receiving.recv()
            finally:
                process.join(60)
            if error is not None:
                raise error
            return result

        return wait

    yield submit


for _start_method in ("fork", "spawn", "forkserver", "threads"):
    _pools = {"apply_async": _pool_apply_async, "starmap_async": _pool_starmap_async, "imap": _pool_imap}
    _process_method = None if _start_method == "threads" else _start_method
    for _name, _opened in _pools.items():
        mechanism(
            f"multiprocessing pool of {_start_method}, {_name}",
            "multiprocessing",
            "threading",
            process=_process_method,
            reuses_worker=True,
        )(functools.partial(_opened, _start_method))
    if _process_method:
        mechanism(f"multiprocessing.Process, {_start_method}", "multiprocessing", process=_process_method)(
            functools.partial(_process, _start_method)
        )


class SentOutcome:
    """A function whose result, or error, is sent through a pipe."""

    def __init__(self, function: Callable[..., Any], sending: Any) -> None:
        self._function = function
        self._sending = sending

    def __call__(self, *args: object) -> None:
        try:
            self._sending.send((self._function(*args), None))
        except Exception as error:
            self._sending.send((None, error))


# What is sent that way


def call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call a function, for a mechanism that passes one iterable for each argument."""
    return function(*args)


program_variable: ContextVar[str] = ContextVar("program_variable", default="default")


def current_span() -> tuple[int, int] | None:
    """Return trace and span id of the current span."""
    span_context = trace.get_current_span().get_span_context()
    return (span_context.trace_id, span_context.span_id) if span_context.is_valid else None


def current_span_when_told(fifo: str) -> tuple[int, int] | None:
    """Return the current span of the moment when somebody has opened the fifo for writing."""
    with open(fifo) as told:
        told.read()
    return current_span()


def current_baggage() -> dict[str, object]:
    """Return the current baggage."""
    return dict(baggage.get_all())


def context_is_empty() -> bool:
    """Say whether there is nothing at all in OpenTelemetry's context."""
    return not context.get_current()


def leave_a_span_attached() -> None:
    """Attach a span of one's own and never detach it, as careless code does."""
    leftover = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
    context.attach(trace.set_span_in_context(leftover))


def read_program_variable() -> str:
    """Return a context variable of the program's own."""
    return program_variable.get()


class ProgramError(Exception):
    """What `fail` raises."""


def fail(value: object) -> None:
    """Raise an error of the program's."""
    raise ProgramError("failed on purpose", value)


def describe_error(wait: Callable[[], object]) -> tuple[type, tuple[object, ...], list[tuple[str, str]], str]:
    """Return type, arguments, the frames of the traceback and the text of the cause of what `wait()` raises."""
    try:
        wait()
    except Exception as error:
        frames = [(frame.filename, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
        return type(error), error.args, frames, str(error.__cause__)
    raise AssertionError("nothing was raised")


@dataclass(frozen=True)
class SpanSeen:
    """The current span as the work itself sees it."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    attributes: dict[str, object]
    linked_span_ids: list[int]


def see_span() -> SpanSeen:
    """Describe the current span, which is one that an SDK records."""
    span: Any = trace.get_current_span()
    return SpanSeen(
        span.name,
        span.context.trace_id,
        span.context.span_id,
        span.parent.span_id if span.parent else None,
        dict(span.attributes),
        [link.context.span_id for link in span.links],
    )
