"""Callables that are no functions, results and errors that do not travel: processes end them as without the agent."""

from __future__ import annotations

import functools
import multiprocessing
import operator
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from opentelemetry import trace

from sw_agent.testing import installed
from sw_agent_plugins.concurrent_futures import plugin as futures_plugin
from sw_agent_plugins.multiprocessing import plugin as multiprocessing_plugin
from sw_agent_plugins.threading import plugin as threading_plugin

fork = multiprocessing.get_context("fork")
tracer = trace.get_tracer("program")
SETTINGS = [{"relation": relation, "spans": spans} for relation in ("child", "link", "none") for spans in (False, True)]


class Odd:
    """An object that raises when it is looked at more closely, and can be pickled."""

    __slots__ = ()

    def __call__(self, value: int = 7) -> int:
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__qualname__", "__module__"):
            raise AttributeError(name)
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError

    def __hash__(self) -> int:
        raise RuntimeError

    def __reduce__(self) -> Any:
        return Odd, ()

    def method(self, value: int = 7) -> int:
        return value


class OddError(Exception):
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def fail(_value: int = 7) -> None:
    raise OddError


def leave(_value: int = 7) -> None:
    raise SystemExit(3)


def return_what_cannot_be_pickled(_value: int = 7) -> Any:
    return lambda: None


CALLABLES: dict[str, Any] = {
    "partial": functools.partial(pow, 2),
    "partial of a partial": functools.partial(functools.partial(operator.add), 1),
    "builtin": abs,
    "C callable": operator.neg,
    "class": complex,
    "odd object": Odd(),
    "method of an odd object": Odd().method,
    "odd error": fail,
    "lambda": lambda value: value,
    "unpicklable result": return_what_cannot_be_pickled,
    "not callable": 7,
}


def outcome(wait: Callable[[], Any]) -> str:
    try:
        return repr(wait())
    except Exception as error:
        return type(error).__name__


def in_executor() -> Iterator[Callable[[Any], str]]:
    with ProcessPoolExecutor(1, fork) as pool:
        yield lambda function: outcome(lambda: pool.submit(function, 7).result(30))


def in_pool() -> Iterator[Callable[[Any], str]]:
    with fork.Pool(1) as pool:
        yield lambda function: outcome(lambda: pool.apply_async(function, (7,)).get(30))


def in_mapping_pool() -> Iterator[Callable[[Any], str]]:
    with fork.Pool(1) as pool:
        yield lambda function: outcome(lambda: pool.map_async(function, [7]).get(30))


@pytest.mark.parametrize("open_pool", [in_executor, in_pool, in_mapping_pool])
def test_whatever_is_handed_to_a_process_ends_as_without_the_agent(
    open_pool: Callable[[], Iterator[Callable[[Any], str]]],
) -> None:
    def outcomes() -> dict[str, str]:
        with contextmanager(open_pool)() as submit:
            return {name: submit(function) for name, function in CALLABLES.items()}

    natively = outcomes()
    assert natively["partial"] in ("128", "[128]")
    for settings in SETTINGS:
        with ExitStack() as stack:
            for plugin in (futures_plugin, multiprocessing_plugin, threading_plugin):
                stack.enter_context(installed(plugin, **settings))
            assert outcomes() == natively, settings
            with tracer.start_as_current_span("submitter"):
                assert outcomes() == natively, settings


@pytest.mark.parametrize("function", [fail, leave, abs, Odd(), functools.partial(pow, 2)])
def test_a_process_has_the_exit_code_that_it_has_without_the_agent(
    function: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    def exit_code() -> int | None:
        process = fork.Process(target=function, args=(7,))
        process.start()
        process.join(60)
        return process.exitcode

    natively = exit_code(), len(capfd.readouterr().err.splitlines()) > 0
    for settings in SETTINGS:
        with installed(multiprocessing_plugin, **settings), tracer.start_as_current_span("submitter"):
            assert (exit_code(), len(capfd.readouterr().err.splitlines()) > 0) == natively
