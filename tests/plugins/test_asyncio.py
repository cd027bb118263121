"""The plugin asyncio, beyond the contract that it shares with the others."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from contract import ForeignExecutor, current_span
from opentelemetry import trace

from sw_agent.snapshot import InSnapshot
from sw_agent.testing import installed
from sw_agent_plugins import concurrent_futures as futures
from sw_agent_plugins.asyncio import plugin


@pytest.fixture(autouse=True)
def installed_plugins() -> Iterator[None]:
    with installed(futures.plugin), installed(plugin):
        yield


def span(name: str = "submitter") -> Any:
    return trace.get_tracer("test").start_as_current_span(name)


def ids(current: Any) -> tuple[int, int]:
    span_context = current.get_span_context()
    return span_context.trace_id, span_context.span_id


class Recording(ForeignExecutor):
    """Keeps the functions that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[Any] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.functions.append(fn)
        return super().submit(fn, *args, **kwargs)


class OwnPool(ThreadPoolExecutor):
    """A thread pool with a `submit` of its own, which may do anything."""

    def __init__(self) -> None:
        super().__init__(1)
        self.functions: list[Any] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.functions.append(fn)
        return super().submit(fn, *args, **kwargs)


async def run(executor: Any, function: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(executor, function)


def test_a_foreign_executor_gets_a_function_equal_to_the_programs() -> None:
    with Recording() as executor, span() as submitter:
        assert asyncio.run(run(executor, current_span)) == ids(submitter)
        (function,) = executor.functions
    assert function == current_span
    assert function.__name__ == "current_span"
    assert inspect.signature(function) == inspect.signature(current_span)


@pytest.mark.parametrize("kind", [Recording, OwnPool])
def test_without_context_an_executor_gets_the_function_itself(kind: Any) -> None:
    with kind() as executor:
        assert asyncio.run(run(executor, current_span)) is None
        assert executor.functions == [current_span]
        assert executor.functions[0] is current_span


def test_an_executor_with_its_own_submit_is_a_foreign_one() -> None:
    with OwnPool() as executor, span():
        asyncio.run(run(executor, current_span))
        assert type(executor.functions[0]) is InSnapshot


def test_the_pools_of_the_library_get_the_function_itself() -> None:
    with ThreadPoolExecutor(1) as executor, span() as submitter:

        async def main() -> Any:
            loop = asyncio.get_running_loop()
            for pool in (executor, None, None):
                assert await loop.run_in_executor(pool, current_span) == ids(submitter)
                assert type(await loop.run_in_executor(pool, lambda: current_span)) is not InSnapshot

        asyncio.run(main())


def test_misuse_raises_the_error_of_the_library() -> None:
    async def main(*args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(*args)

    with span():
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'func'"):
            asyncio.run(main(None))
        with Recording() as executor, pytest.raises(TypeError, match="not callable"):
            asyncio.run(main(executor, 1))


def test_tasks_are_left_alone() -> None:
    async def coroutine() -> None:
        return None

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert loop.get_task_factory() is None
        created = coroutine()
        task = asyncio.create_task(created)
        assert type(task) is asyncio.Task
        assert task.get_coro() is created
        await task

    with span():
        asyncio.run(main())


def test_a_task_that_is_cancelled_before_its_first_step_says_nothing() -> None:
    async def coroutine() -> None:
        return None

    async def main() -> None:
        task = asyncio.create_task(coroutine())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with span():
        asyncio.run(main())


def test_the_span_of_to_thread_is_named_after_its_function() -> None:
    futures.plugin.uninstall()
    with installed(futures.plugin, spans=True) as spans:
        asyncio.run(asyncio.to_thread(current_span))
    assert spans.names == ["current_span"]


@pytest.mark.parametrize(
    ("settings", "parent"),
    [({"spans": True}, "submitter"), ({"relation": "link"}, None), ({"spans": True, "relation": "none"}, None)],
    ids=["spans", "link", "none"],
)
def test_work_on_a_foreign_executor_has_the_span_that_the_options_ask_for(settings: Any, parent: str | None) -> None:
    plugin.uninstall()
    with installed(plugin, **settings) as spans:
        with span() as submitter:
            found = asyncio.run(run(ForeignExecutor(), current_span))
        work = spans.named("current_span")
        assert found == ids(work)
        assert spans.parent_of("current_span") == parent
        links = [link.context.span_id for link in work.links]
    assert links == ([submitter.get_span_context().span_id] if settings.get("relation") == "link" else [])


def test_work_on_a_foreign_executor_is_nobodys_where_the_options_say_so() -> None:
    plugin.uninstall()
    with installed(plugin, relation="none"), span():
        assert asyncio.run(run(ForeignExecutor(), current_span)) is None
