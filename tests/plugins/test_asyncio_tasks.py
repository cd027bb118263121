"""The spans of tasks, where the option `task_spans` of the plugin asyncio asks for them."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import logging
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import StatusCode

from launched import Launch
from sw_agent.testing import RecordedSpans, installed
from sw_agent_plugins.asyncio import plugin

eager = pytest.mark.skipif(sys.version_info < (3, 12), reason="has no eager tasks")  # uvloop 0.23 fails with them


@pytest.fixture(params=[asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Awaitable[Any]], Any]]:
    loops = []

    def run_until_complete(main: Awaitable[Any]) -> Any:
        loop = request.param()
        loops.append(loop)
        return loop.run_until_complete(main)

    yield run_until_complete
    for loop in loops:
        loop.close()


def span(name: str) -> Any:
    return trace.get_tracer("test").start_as_current_span(name)


def current() -> str | None:
    return getattr(trace.get_current_span(), "name", None)


def attributes(spans: RecordedSpans, name: str) -> dict[str, Any]:
    return dict(spans.named(name).attributes or {})


async def work(steps: int = 1) -> str | None:
    for _ in range(steps - 1):
        with span("inside"):
            await asyncio.sleep(0)
    return current()


async def fail() -> None:
    await asyncio.sleep(0)
    raise ValueError("no")


class Named:
    async def method(self) -> str | None:
        return current()


def test_a_task_has_a_span_with_its_steps_and_is_current_in_it(run: Any) -> None:
    async def main() -> None:
        with span("request"):
            task = asyncio.create_task(work(3))
            assert current() == "request"
        assert await task == "work"
        assert str(current()).endswith("main")

    with installed(plugin, task_spans=True) as spans:
        run(main())
    assert spans.parent_of("work") == "request"
    found = attributes(spans, "work")
    assert found["code.function.name"] == f"{__name__}.work"
    assert found["sw.steps"] == 3
    assert found["sw.busy_ms"] > 0
    assert found["sw.wait_ms"] > 0
    inside = [each for each in spans if each.name == "inside"]
    work_context = spans.named("work").context
    assert work_context is not None
    assert [each.parent and each.parent.span_id for each in inside] == [work_context.span_id] * 2


def test_the_key_of_the_function_is_that_of_the_conventions() -> None:
    code_attributes = pytest.importorskip("opentelemetry.semconv.attributes.code_attributes")

    assert code_attributes.CODE_FUNCTION_NAME == "code.function.name"


def test_a_span_has_the_name_that_the_program_gave_to_the_task(run: Any) -> None:
    async def main() -> None:
        await asyncio.create_task(work(), name="import of users")
        await asyncio.create_task(Named().method())
        late = asyncio.create_task(work())
        late.set_name("late")
        await late

    with installed(plugin, task_spans=True) as spans:
        run(main())
    assert spans.names[:3] == ["import of users", "Named.method", "late"]


def test_tasks_do_not_see_each_others_spans(run: Any) -> None:
    async def main() -> list[str | None]:
        return await asyncio.gather(*(asyncio.create_task(work(5), name=str(number)) for number in range(5)))

    with installed(plugin, task_spans=True) as spans:
        for _ in range(2):
            assert run(main()) == ["0", "1", "2", "3", "4"]
    assert len(spans) == 2 * (5 + 5 * 4 + 1)


def test_tasks_that_share_a_context_leave_nothing_in_it(run: Any) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("create_task takes no context")
    shared = contextvars.copy_context()
    with span("explicit") as explicit:
        explicit_context = contextvars.copy_context()

    async def main() -> None:
        with span("request"):
            for context in (shared, explicit_context, shared):
                assert await asyncio.create_task(work(2), context=context) == "work"
        assert shared.run(current) is None
        assert explicit_context.run(current) == "explicit"

    with installed(plugin, task_spans=True) as spans:
        run(main())
    parents = [each.parent and each.parent.span_id for each in spans if each.name == "work"]
    assert parents == [None, explicit.get_span_context().span_id, None]


# How tasks end


def test_a_failed_task_is_an_error_and_is_still_reported_by_the_loop(run: Any) -> None:
    reported: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, report: reported.append(report["message"]))
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        del task
        gc.collect()

    with installed(plugin, task_spans=True) as spans:
        run(main())
    assert spans.named("fail").status.status_code is StatusCode.ERROR
    assert attributes(spans, "fail")["error.type"] == "ValueError"
    assert reported == ["Task exception was never retrieved"]


def test_a_cancelled_task_is_no_error(run: Any) -> None:
    async def main() -> None:
        task = asyncio.create_task(asyncio.sleep(60), name="cancelled")
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.create_task(asyncio.sleep(60), name="timed out"), 0.001)

    with installed(plugin, task_spans=True) as spans:
        run(main())
    for name in ("cancelled", "timed out"):
        assert spans.named(name).status.status_code is StatusCode.UNSET
        assert "error.type" not in attributes(spans, name)


def test_a_task_cancelled_before_its_first_step_has_an_ended_span_and_says_nothing(run: Any) -> None:
    async def main() -> None:
        task = asyncio.create_task(work())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with installed(plugin, task_spans=True) as spans:
        run(main())
        gc.collect()
    assert spans.named("work").status.status_code is StatusCode.UNSET
    assert attributes(spans, "work")["sw.steps"] == 1


def test_a_task_that_is_forgotten_is_freed_with_its_span(run: Any) -> None:
    async def main() -> None:
        task = asyncio.create_task(work(2))
        await task
        freed.append(weakref.ref(task))

    freed: list[Any] = []
    with installed(plugin, task_spans=True):
        run(main())
    gc.collect()
    assert freed[0]() is None


# What the program sees


def test_a_task_is_what_it_is_without_the_plugin(run: Any) -> None:
    async def main() -> None:
        coroutine = work(2)
        task = asyncio.create_task(coroutine, name="mine")
        for _ in range(2):
            assert type(task) is asyncio.Task
            assert task.get_coro() is coroutine
            assert inspect.iscoroutine(task.get_coro())
            assert task.get_name() == "mine"
            assert "work()" in repr(task)
            assert "sw_agent" not in repr(task)
            assert weakref.ref(task)() is task
            await asyncio.sleep(0)
        await task

    async def who() -> asyncio.Task[Any] | None:
        await asyncio.sleep(0)
        return asyncio.current_task()

    async def me() -> None:
        task = asyncio.create_task(who())
        assert await task is task
        assert asyncio.get_running_loop().get_task_factory() is None

    with installed(plugin, task_spans=True):
        run(main())
        run(me())


def test_without_the_option_nothing_is_patched_for_tasks() -> None:
    with installed(plugin):
        for loop in (asyncio.BaseEventLoop, uvloop.Loop):
            for name in ("call_soon", "create_task"):
                assert not hasattr(getattr(loop, name), "__sw_interceptor__")


def test_the_programs_own_task_factory_keeps_working(run: Any) -> None:
    class Task(asyncio.Task):  # type: ignore[type-arg]
        pass

    def factory(loop: Any, coroutine: Any, **more: Any) -> Any:
        return Task(coroutine, loop=loop, **more)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        with span("request"):
            task = asyncio.create_task(work(2), name="mine")
            assert current() == "request"
        assert type(task) is Task
        assert await task == "mine"

    with installed(plugin, task_spans=True) as spans:
        run(main())
    assert spans.parent_of("mine") == "request"
    assert attributes(spans, "mine")["sw.steps"] == 2


@eager
@pytest.mark.parametrize("steps", [1, 3])
def test_an_eager_task_has_its_span_from_its_first_step(steps: int) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        with span("request"):
            task = asyncio.create_task(work(steps))
            assert current() == "request"
            assert task.done() is (steps == 1)
        assert await task == "work"

    with installed(plugin, task_spans=True) as spans:
        asyncio.run(main())
    assert spans.parent_of("work") == "request"
    assert attributes(spans, "work")["sw.steps"] == steps


@eager
def test_an_eager_task_that_waits_for_a_future_has_one_span_from_its_beginning_to_its_end() -> None:
    async def wait(future: asyncio.Future[None]) -> str | None:
        await future
        with span("inside"):
            return current()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        future = loop.create_future()
        with span("request"):
            task = asyncio.create_task(wait(future), name="waiting")
        with span("before the wake-up"):
            pass
        loop.call_later(0.001, future.set_result, None)
        assert await task == "inside"

    with installed(plugin, task_spans=True) as spans:
        asyncio.run(main())
    waiting, before = spans.named("waiting"), spans.named("before the wake-up")
    assert attributes(spans, "waiting")["sw.steps"] == 2
    assert (spans.parent_of("waiting"), spans.parent_of("inside")) == ("request", "waiting")
    assert waiting.start_time is not None
    assert before.start_time is not None
    assert waiting.start_time < before.start_time
    assert spans.names.count("waiting") == 1


@pytest.mark.filterwarnings("ignore:.*was destroyed:pytest.PytestUnraisableExceptionWarning")
def test_the_span_of_a_task_that_is_destroyed_while_it_waits_ends_with_it() -> None:
    loop = asyncio.SelectorEventLoop()
    with installed(plugin, task_spans=True) as spans:
        task = loop.create_task(asyncio.Event().wait(), name="abandoned")
        loop.call_soon(loop.stop)
        loop.run_forever()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        reference = weakref.ref(task)
        del task
        gc.collect()
        assert reference() is None
        assert spans.names == ["abandoned"]
    loop.close()


@eager
def test_an_eager_task_that_fails_at_once_is_an_error() -> None:
    async def fail_at_once() -> None:
        raise ValueError("no")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="no"):
            await asyncio.create_task(fail_at_once())

    with installed(plugin, task_spans=True) as spans:
        asyncio.run(main())
    failed = next(each for each in spans if each.name.endswith("fail_at_once"))
    assert failed.status.status_code is StatusCode.ERROR


def test_shield_wait_for_and_groups_work_as_ever(run: Any) -> None:
    async def failing_group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(asyncio.sleep(60), name="sibling")

    async def main() -> None:
        assert await asyncio.wait_for(asyncio.shield(asyncio.create_task(work(2), name="shielded")), 60) == "shielded"
        if sys.version_info >= (3, 11):
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                tasks = [group.create_task(work(2), name=name) for name in ("a", "b")]
            assert [task.result() for task in tasks] == ["a", "b"]
            with pytest.raises(ExceptionGroup):  # noqa: F821
                await failing_group()

    with installed(plugin, task_spans=True) as spans:
        run(main())
    if sys.version_info >= (3, 11):
        assert spans.named("sibling").status.status_code is StatusCode.UNSET


def test_loops_in_threads_have_spans_of_their_own(run: Any) -> None:
    async def main() -> None:
        thread = threading.Thread(target=lambda: asyncio.run(work(3)))
        thread.start()
        await asyncio.get_running_loop().run_in_executor(None, thread.join)

    with installed(plugin, task_spans=True) as spans:
        run(main())
    assert spans.parent_of("work") is None
    assert attributes(spans, "work")["sw.steps"] == 3


def test_a_slow_step_is_reported_as_the_tasks_in_debug_mode(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        asyncio.get_running_loop().slow_callback_duration = 0
        await asyncio.create_task(work(2), name="slow")

    with installed(plugin, task_spans=True), caplog.at_level(logging.WARNING, "asyncio"):
        asyncio.run(main(), debug=True)
    said = [record.getMessage() for record in caplog.records if "name='slow'" in record.getMessage()]
    assert said
    assert all("created at" in message and "sw_agent" not in message for message in said)


# Relations


@pytest.mark.parametrize(
    ("settings", "parent", "linked"),
    [
        ({"relation": "child"}, "request", False),
        ({"relation": "link"}, None, True),
        ({"relation": "none"}, None, False),
        ({"relations": ["background-*=link"]}, None, True),
        ({"relations": ["work=none"]}, None, False),
        ({"relations": ["other-*=link"]}, "request", False),
        ({"relation": "link", "relations": ["background-1=child", "background-*=none"]}, "request", False),
    ],
)
def test_a_task_is_to_its_creator_what_the_options_say(
    settings: dict[str, Any], parent: str | None, linked: bool, run: Any
) -> None:
    async def main() -> None:
        with span("request"):
            await asyncio.create_task(work(2), name="background-1")

    with installed(plugin, task_spans=True, **settings) as spans:
        run(main())
        task, request = spans.named("background-1"), spans.named("request")
        assert spans.parent_of("background-1") == parent
        assert [link.context for link in task.links] == ([request.context] if linked else [])
        assert spans.parent_of("inside") == "background-1"


@pytest.mark.parametrize("entry", ["background-*", "background-*=sibling", "=link"])
def test_a_wrong_relation_is_said_before_the_program_starts(entry: str, launch: Launch) -> None:
    program = launch("print('started')", SW_PLUGIN_ASYNCIO_RELATIONS=entry)
    out, err = program.end_with_stderr(2)
    assert out == ""
    assert entry in err
    assert "PATTERN=link" in err


class Failing(SpanProcessor):
    """A processor of the program's that raises at the begin of one span, and at the end of the other."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if span.name == "fails to begin":
            raise LookupError(span.name)

    def on_end(self, span: Any) -> None:
        if span.name == "fails to end":
            raise LookupError(span.name)


def test_a_task_runs_whose_span_cannot_begin_or_end(
    run: Callable[[Awaitable[Any]], Any], agent_errors: list[logging.LogRecord]
) -> None:
    async def main() -> list[str | None]:
        return await asyncio.gather(
            *(asyncio.create_task(work(3), name=f"fails to {what}") for what in ("begin", "end"))
        )

    with installed(plugin, task_spans=True):
        processors = trace.get_tracer_provider()._active_span_processor  # type: ignore[attr-defined]
        before = processors._span_processors
        processors.add_span_processor(Failing())
        try:
            around, own = run(main())
        finally:
            processors._span_processors = before
    assert (around.rpartition(".")[2], own) == ("main", "fails to end")
    assert len(agent_errors) == 2
    agent_errors.clear()
