"""The plugin asyncio, beyond the contract that it shares with the others."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import uvloop
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


# Loops of the program's own


class Overriding:
    """What a loop of the program's own may override, to do more than the loop below it."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def call_soon(self, *args: Any, **kwargs: Any) -> Any:
        self.called.add("call_soon")
        return super().call_soon(*args, **kwargs)  # type: ignore[misc]

    def create_task(self, *args: Any, **kwargs: Any) -> Any:
        self.called.add("create_task")
        return super().create_task(*args, **kwargs)  # type: ignore[misc]

    def run_in_executor(self, *args: Any) -> Any:
        self.called.add("run_in_executor")
        return super().run_in_executor(*args)  # type: ignore[misc]


class OwnLoop(Overriding, asyncio.SelectorEventLoop):
    pass


class OwnUvloop(Overriding, uvloop.Loop):
    pass


class Submitting:
    """Gives work to executors by itself."""

    def run_in_executor(self, executor: Any, function: Any, *args: Any) -> Any:
        return asyncio.wrap_future(executor.submit(function, *args), loop=self)  # type: ignore[arg-type]


class SubmittingLoop(Submitting, asyncio.SelectorEventLoop):  # type: ignore[misc]
    pass


class SubmittingUvloop(Submitting, uvloop.Loop):  # type: ignore[misc]
    pass


own_loops = pytest.mark.parametrize("make_loop", [OwnLoop, OwnUvloop])
submitting_loops = pytest.mark.parametrize("make_loop", [SubmittingLoop, SubmittingUvloop])


def run_on(make_loop: Callable[[], Any], main: Coroutine[Any, Any, Any]) -> Any:
    with contextlib.closing(make_loop()) as loop:
        return loop.run_until_complete(main)


@own_loops
@pytest.mark.parametrize(
    "factory", [None, lambda loop, *args, **more: asyncio.Task(*args, loop=loop, **more)], ids=["", "factory"]
)
def test_a_task_on_a_loop_of_the_programs_own_has_one_span_with_all_its_steps(make_loop: Any, factory: Any) -> None:
    async def work() -> None:
        for _ in range(2):
            await asyncio.sleep(0)

    async def main() -> set[str]:
        asyncio.get_running_loop().set_task_factory(factory)
        with span("request"):
            task = asyncio.create_task(work(), name="work")
        await task
        return asyncio.get_running_loop().called  # type: ignore[attr-defined,no-any-return]

    plugin.uninstall()
    with installed(plugin, task_spans=True) as spans:
        assert run_on(make_loop, main()) == {"call_soon", "create_task"}
    assert [(each.attributes or {})["sw.steps"] for each in spans if each.name == "work"] == [3]
    assert spans.parent_of("work") == "request"


@own_loops
def test_work_on_a_foreign_executor_is_its_submitters_on_a_loop_of_the_programs_own(make_loop: Any) -> None:
    async def main() -> set[str]:
        with ForeignExecutor() as executor:
            with span() as submitter:
                assert await run(executor, current_span) == ids(submitter)
            assert await run(executor, current_span) is None
        return asyncio.get_running_loop().called  # type: ignore[attr-defined,no-any-return]

    assert "run_in_executor" in run_on(make_loop, main())


@own_loops
def test_a_connection_to_a_server_on_a_loop_of_the_programs_own_is_nobodys(make_loop: Any) -> None:
    seen: list[Any] = []
    resuming: list[asyncio.Task[None]] = []

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            seen.append(current_span())
            self.transport.pause_reading()
            resuming.append(asyncio.ensure_future(self.answer(data)))

        async def answer(self, data: bytes) -> None:
            with span("request"):
                self.transport.resume_reading()
            self.transport.write(data)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with span("startup"):
            server = await loop.create_server(Server, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for _ in range(3):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run_on(make_loop, main())
    assert seen == [None] * 3


@submitting_loops
def test_a_loop_that_submits_by_itself_gives_executors_the_function_itself(make_loop: Any) -> None:
    with Recording() as executor, span():
        assert run_on(make_loop, run(executor, current_span)) is None
        assert executor.functions[0] is current_span


@submitting_loops
def test_a_pool_of_the_library_brings_the_context_also_where_a_loop_submits_by_itself(make_loop: Any) -> None:
    with ThreadPoolExecutor(1) as executor, span() as submitter:
        assert run_on(make_loop, run(executor, current_span)) == ids(submitter)
