"""Callables, arguments and exceptions that are not what they seem: work goes on as without the agent."""

from __future__ import annotations

import _thread
import asyncio
import functools
import logging
import operator
import threading
import unittest.mock
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest
from contract import ForeignExecutor
from opentelemetry import trace

import sw_agent
from sw_agent import toolkit
from sw_agent.testing import installed, recorded_spans
from sw_agent_plugins.asyncio import plugin as asyncio_plugin
from sw_agent_plugins.concurrent_futures import plugin as futures_plugin
from sw_agent_plugins.multiprocessing import plugin as multiprocessing_plugin
from sw_agent_plugins.threading import plugin as threading_plugin

PLUGINS = (asyncio_plugin, futures_plugin, multiprocessing_plugin, threading_plugin)
tracer = trace.get_tracer("program")


# What is handed over. Each is made with a list, into which it writes when it is called.


class Hostile:
    """An object that raises wherever it is looked at."""

    def _raise(self, *_: object) -> Any:
        raise RuntimeError("hands off")

    __eq__ = __repr__ = __str__ = __bool__ = __len__ = __getattr__ = __format__ = _raise  # type: ignore[assignment]
    __hash__ = _raise  # type: ignore[assignment]
    __class__ = property(_raise)  # type: ignore[assignment]


class HostileCallable(Hostile):
    def __init__(self, calls: list[str]) -> None:
        self.__dict__["calls"] = calls

    def __call__(self, *_: object) -> str:
        self.calls.append("called")
        return "done"

    method = __call__


class HostileError(Exception):
    def _raise(self, *_: object) -> Any:
        raise RuntimeError("hands off")

    __repr__ = __str__ = __getattr__ = _raise
    __class__ = property(_raise)  # type: ignore[assignment]


class HostileEnd(BaseException):
    @property
    def __class__(self) -> Any:
        raise RuntimeError("hands off")


class Slotted:
    __slots__ = ("calls",)

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def __call__(self, *_: object) -> str:
        self.calls.append("called")
        return "done"


def work(calls: list[str], *_: object) -> str:
    calls.append("called")
    return "done"


def mock(kind: Any, calls: list[str]) -> Any:
    return kind(side_effect=functools.partial(work, calls))


def failing(error: type[BaseException], calls: list[str], *_: object) -> Any:
    calls.append("called")
    raise error("on purpose")


def bound_to_a_mock(calls: list[str]) -> Any:
    return type("OfMock", (unittest.mock.Mock,), {"method": lambda _self, *args: work(calls, *args)})().method


def local_class(calls: list[str]) -> Any:
    return type("Made", (), {"__init__": lambda _self, *args: calls.append("called")})


CALLABLES: dict[str, Callable[[list[str]], Any]] = {
    "partial": lambda calls: functools.partial(work, calls),
    "partial of a partial": lambda calls: functools.partial(functools.partial(work), calls),
    "partial of a mock": lambda calls: functools.partial(mock(unittest.mock.Mock, calls)),
    "builtin": lambda calls: len,
    "C callable": lambda calls: operator.methodcaller("append", "called"),
    "method of a list": lambda calls: functools.partial(calls.append, "called"),
    "class": local_class,
    "slots": Slotted,
    "Mock": functools.partial(mock, unittest.mock.Mock),
    "MagicMock": functools.partial(mock, unittest.mock.MagicMock),
    "NonCallableMock": lambda calls: unittest.mock.NonCallableMock(),
    "method of a mock": bound_to_a_mock,
    "hostile object": HostileCallable,
    "method of a hostile object": lambda calls: object.__getattribute__(HostileCallable(calls), "method"),
    "partial with a hostile argument": lambda calls: functools.partial(work, calls, Hostile()),
    "failing with a hostile error": lambda calls: functools.partial(failing, HostileError, calls),
    "failing with a hostile end": lambda calls: functools.partial(failing, HostileEnd, calls),
    "not callable": lambda calls: None,
    "cached": lambda calls: functools.lru_cache(functools.partial(work, calls)),
}


# The ways in which it is handed over. Each returns how that ended, as far as a program can see it.


def kind_of(error: BaseException | None) -> str:
    return "no error" if error is None else type(error).__name__


def outcome(wait: Callable[[], object]) -> str:
    try:
        value = wait()
        return value if type(value) is str else type(value).__name__
    except BaseException as error:
        return kind_of(error)


def by_thread(make: Callable[[], threading.Thread]) -> str:
    """Start a thread and say what has left it: `threading.excepthook` is told."""
    raised: list[str] = []
    before, threading.excepthook = threading.excepthook, lambda args: raised.append(kind_of(args.exc_value))
    try:
        thread = make()
        thread.start()
        thread.join(30)
        return f"{raised}, alive: {thread.is_alive()}"
    finally:
        threading.excepthook = before


def thread_subclass(function: Any) -> threading.Thread:
    class Worker(threading.Thread):
        """One whose attributes raise, but for those that threads have."""

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

        def __repr__(self) -> str:
            raise RuntimeError

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = threading.Thread.__hash__

        def run(self) -> None:
            function()

    return Worker()


def by_done_callback(function: Any) -> str:
    with ThreadPoolExecutor(1) as pool:
        go = threading.Event()
        future = pool.submit(go.wait, 30)
        future.add_done_callback(function)
        go.set()
        return str(future.result())


def by_loop(executor: Any, function: Any, *, to_thread: bool = False) -> str:
    async def main() -> object:
        if to_thread:
            return await asyncio.to_thread(function)
        return await asyncio.get_running_loop().run_in_executor(executor, function)

    return outcome(lambda: asyncio.run(main()))


def by_own_pool(function: Any) -> str:
    with ThreadPoolExecutor(1) as pool:
        first = by_loop(pool, function)
        return f"{first}; its worker: {pool.submit(lambda: 'works').result(30)}"


def by_foreign_executor(function: Any) -> str:
    executor = ForeignExecutor()
    try:
        return by_loop(executor, function)
    finally:
        executor.shutdown()


def by_submit(function: Any) -> str:
    with ThreadPoolExecutor(1) as pool:
        first = outcome(pool.submit(function).result)
        return f"{first}; its worker: {pool.submit(lambda: 'works').result(30)}"


def by_map(function: Any) -> str:
    with ThreadPoolExecutor(1) as pool:
        return outcome(lambda: list(pool.map(function, [1])))


def by_thread_pool(submit: Callable[[ThreadPool, Any], Any], function: Any) -> str:
    with ThreadPool(1) as pool:
        return outcome(lambda: submit(pool, function))


def no_exit(_pool: ThreadPool, function: Any) -> Any:
    """Leave out what a `ThreadPool` itself does not survive: a `BaseException`."""
    return _pool.apply(function)


WAYS: dict[str, Callable[[Any], str]] = {
    "Thread": lambda function: by_thread(lambda: threading.Thread(target=function)),
    "Thread subclass": lambda function: by_thread(functools.partial(thread_subclass, function)),
    "Timer": lambda function: by_thread(lambda: threading.Timer(0, function)),
    "ThreadPoolExecutor.submit": by_submit,
    "ThreadPoolExecutor.map": by_map,
    "Future.add_done_callback": by_done_callback,
    "run_in_executor, default": functools.partial(by_loop, None),
    "run_in_executor, thread pool": by_own_pool,
    "run_in_executor, foreign": by_foreign_executor,
    "to_thread": functools.partial(by_loop, None, to_thread=True),
    "ThreadPool.apply": functools.partial(by_thread_pool, no_exit),
    "ThreadPool.imap": functools.partial(by_thread_pool, lambda pool, function: next(pool.imap(function, [1]))),
    "ContextSnapshot.run": lambda function: outcome(lambda: sw_agent.capture().run(function)),
    "ContextSnapshot.wrap": lambda function: outcome(lambda: sw_agent.capture().wrap(function)()),
}

SETTINGS = [{"relation": relation, "spans": spans} for relation in ("child", "link", "none") for spans in (False, True)]


@contextmanager
def all_installed(**settings: object) -> Iterator[None]:
    with ExitStack() as stack:
        for plugin in PLUGINS:
            stack.enter_context(installed(plugin, **settings))
        yield


def handed_over(way: str, name: str) -> tuple[str, list[str]]:
    calls: list[str] = []
    function = CALLABLES[name](calls)
    return outcome(lambda: WAYS[way](function)), calls


def survives(way: str, name: str) -> bool:
    """Whether plain Python does: a hostile error hangs asyncio's futures, a worker of a `ThreadPool` dies of an end."""
    if way.startswith(("run_in_executor", "to_thread")):
        return "failing with" not in name
    return not (way.startswith("ThreadPool.") and name == "failing with a hostile end")


@pytest.fixture(autouse=True)
def quiet_libraries() -> Iterator[None]:
    """Take what `concurrent.futures` and `asyncio` log of failing callbacks; the formatter would raise with it."""
    logging.disable(logging.ERROR - 1)
    loggers = [logging.getLogger(name) for name in ("concurrent.futures", "asyncio")]
    for logger in loggers:
        logger.disabled = True
    yield
    for logger in loggers:
        logger.disabled = False
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("way", WAYS)
def test_whatever_is_handed_over_ends_as_without_the_agent(way: str) -> None:
    names = [name for name in CALLABLES if survives(way, name)]
    natively = {name: handed_over(way, name) for name in names}
    for settings in SETTINGS:
        with all_installed(**settings):
            assert {name: handed_over(way, name) for name in names} == natively, settings
            with tracer.start_as_current_span("submitter") as submitter:
                assert {name: handed_over(way, name) for name in names} == natively, settings
                assert trace.get_current_span() is submitter


class Calls(list):  # type: ignore[type-arg]
    """Calls that can be waited for."""

    def __init__(self) -> None:
        self.happened = threading.Event()

    def append(self, call: str) -> None:
        super().append(call)
        self.happened.set()


@pytest.mark.parametrize("name", ["partial", "Mock", "slots", "class", "hostile object", "method of a hostile object"])
def test_a_raw_thread_calls_whatever_can_be_called(name: str) -> None:
    for settings in SETTINGS:
        with all_installed(**settings), tracer.start_as_current_span("submitter"):
            calls = Calls()
            _thread.start_new_thread(CALLABLES[name](calls), ())
            assert calls.happened.wait(30)


@pytest.mark.parametrize("name", [name for name in CALLABLES if "failing" not in name and name != "not callable"])
def test_a_traced_function_takes_and_raises_whatever_it_would(name: str) -> None:
    def call(argument: object) -> object:
        return outcome(CALLABLES[name]([]))

    natively = call(Hostile())
    with recorded_spans() as spans:
        assert toolkit.trace(call)(Hostile()) == natively
    assert len(spans) == 1


@pytest.mark.parametrize("error", [HostileError, HostileEnd])
def test_a_traced_function_raises_an_error_that_cannot_be_shown(error: type[BaseException]) -> None:
    @toolkit.trace
    def fail() -> None:
        raise error("on purpose")

    with recorded_spans() as spans:
        assert outcome(fail) == error.__name__
    (span,) = spans
    assert (span.status.status_code is trace.StatusCode.ERROR) == (error is HostileError)


def test_a_partial_that_calls_itself_has_a_name() -> None:
    """Calling it is no good idea, which is no reason to look for ever."""
    partial: Any = functools.partial(work)
    partial.__setstate__((partial, (), {}, {}))
    with installed(futures_plugin, spans=True) as spans, futures_plugin.resume(None, partial):
        pass
    assert spans.names == ["partial"]
