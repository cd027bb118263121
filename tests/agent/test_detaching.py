"""Spans and snapshots that are left in the wrong order, in another task, by the collector: nobody hears of it (R12).

Each case is told once, and runs for a span of the program's, for `ContextSnapshot.restore` and, where the code can be
decorated, for `sw_agent.trace`.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import logging
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import gevent
import greenlet
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import TracerProvider

import sw_agent
from launched import Launch
from sw_agent import _detaching, snapshot
from sw_agent.testing import recorded_spans

tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")


@pytest.fixture(autouse=True)
def nothing_is_said() -> Iterator[None]:
    """Let the agent see to what is detached; any record of OpenTelemetry's own is a failure."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(self.format(record))

    listener = Listener()
    logging.getLogger("opentelemetry").addHandler(listener)
    snapshot.bind(context)
    _detaching.install(context)
    token = context.attach(context.Context())
    try:
        yield
        gc.collect()
    finally:
        context.detach(token)
        _detaching.uninstall()
        logging.getLogger("opentelemetry").removeHandler(listener)
    assert said == []


def span(name: str) -> Any:
    return tracer.start_as_current_span(name)


@contextmanager
def restored(name: str) -> Iterator[None]:
    """Restore a snapshot that was taken inside a span of that name; the span has ended."""
    with span(name):
        taken = sw_agent.capture()
    with taken.restore():
        yield


def current() -> str | None:
    return getattr(trace.get_current_span(), "name", None)


def out_of_order() -> int:
    return snapshot.restores_out_of_order


Entered = Callable[[str], AbstractContextManager[Any]]
either = pytest.mark.parametrize("entered", [span, restored], ids=["span", "restore"])


# Async generators


def numbers_in(entered: Entered) -> Callable[[], AsyncIterator[int]]:
    async def numbers() -> AsyncIterator[int]:
        with entered("generator"):
            for number in range(9):
                yield number
                await asyncio.sleep(0)

    return numbers


@either
def test_an_async_generator_left_by_break_is_no_longer_current_when_the_loop_has_closed_it(entered: Entered) -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def numbers() -> AsyncIterator[int]:
            try:
                with entered("generator"):
                    yield 1
                    yield 2
            finally:
                closed.set()

        with span("consumer"):
            async for _ in numbers():
                break
            gc.collect()
            await closed.wait()
            assert current() == "consumer"
            with span("next"):
                assert current() == "next"
            assert current() == "consumer"
        assert current() is None

    before = out_of_order()
    asyncio.run(main())
    assert out_of_order() > before


@either
def test_a_span_that_was_opened_since_stays_when_the_loop_closes_an_async_generator(entered: Entered) -> None:
    async def main() -> None:
        numbers = numbers_in(entered)()
        with span("consumer"):
            await anext(numbers)
            with span("since"):
                await asyncio.create_task(numbers.aclose())  # type: ignore[attr-defined]
                assert current() == "since"

    asyncio.run(main())


@either
def test_an_async_generator_may_be_closed_in_a_task_that_never_saw_it(entered: Entered) -> None:
    async def main() -> None:
        numbers = numbers_in(entered)()

        async def step() -> None:
            await anext(numbers)

        async def close() -> None:
            with span("closing"):
                await numbers.aclose()  # type: ignore[attr-defined]
                assert current() == "closing"
            assert current() is None

        await asyncio.create_task(step())
        await asyncio.create_task(close())
        assert current() is None

    before = out_of_order()
    asyncio.run(main())
    assert out_of_order() > before


@either
def test_an_async_generator_may_be_stepped_by_tasks(entered: Entered) -> None:
    """As `wait_for` does before Python 3.12, of which each call is a task with a copy of the context."""

    async def main() -> None:
        with span("consumer"):
            numbers = numbers_in(entered)()
            found = [await asyncio.wait_for(asyncio.ensure_future(anext_of(numbers)), 60) for _ in range(9)]
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(anext_of(numbers), 60)
            assert found == list(range(9))
            assert current() == "consumer"

    async def anext_of(numbers: AsyncIterator[int]) -> int:
        return await anext(numbers)

    before = out_of_order()
    asyncio.run(main())
    assert out_of_order() > before


def test_a_traced_async_generator_is_never_current_in_its_consumer() -> None:
    @sw_agent.trace()
    async def numbers() -> AsyncIterator[int]:
        with span("inside"):
            yield 1
            yield 2

    async def main() -> None:
        with span("consumer"):
            async for _ in numbers():
                assert current() == "consumer"
                break
            gc.collect()
            await asyncio.sleep(0)
            assert current() == "consumer"
            for _ in range(3):
                stepped = numbers()
                await asyncio.wait_for(asyncio.ensure_future(first_of(stepped)), 60)
                await asyncio.create_task(stepped.aclose())  # type: ignore[attr-defined]
                assert current() == "consumer"

    async def first_of(numbers: AsyncIterator[int]) -> int:
        return await anext(numbers)

    with recorded_spans():
        asyncio.run(main())


# Context managers


@either
def test_an_async_context_manager_may_be_left_in_another_task(entered: Entered) -> None:
    @asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        with entered("resource"):
            yield

    async def main() -> None:
        opened = resource()

        async def enter() -> None:
            await opened.__aenter__()
            entered_there.set()
            await left.wait()
            seen.append(current())

        async def leave() -> None:
            with span("other"):
                await opened.__aexit__(None, None, None)
                assert current() == "other"

        entered_there, left = asyncio.Event(), asyncio.Event()
        seen: list[str | None] = []
        with span("outer"):
            first = asyncio.create_task(enter())
        await entered_there.wait()
        await asyncio.create_task(leave())
        left.set()
        await first
        assert seen == ["outer"]  # the task that had entered it, and lives

    asyncio.run(main())


@either
def test_what_is_left_in_a_task_that_inherited_it_is_no_longer_current_there(entered: Entered) -> None:
    async def main() -> None:
        opened = entered("opened")

        async def leave() -> str | None:
            opened.__exit__(None, None, None)
            return current()

        with span("outer"):
            opened.__enter__()
            assert await asyncio.create_task(leave()) == "outer"
            assert current() == "outer"

    asyncio.run(main())


def test_a_context_of_the_programs_own_that_a_task_inherited_is_left_there() -> None:
    async def main() -> None:
        with span("outer"):
            token = attach(trace.set_span_in_context(tracer.start_span("attached")))

            async def leave() -> str | None:
                detach(token)
                return current()

            assert await asyncio.create_task(leave()) == "outer"

    before = out_of_order()
    asyncio.run(main())
    assert out_of_order() > before


# Generators


@either
def test_generators_closed_in_any_order_leave_their_consumer_where_it_was(entered: Entered) -> None:
    def generate(name: str) -> Iterator[int]:
        with entered(name):
            yield 1

    for order in itertools.permutations(range(3)):
        with span("consumer"):
            generators: list[Any] = [generate(str(number)) for number in range(3)]
            for generator in generators:
                next(generator)
            for number in order:
                generators[number].close()
            assert current() == "consumer", order
            with span("next"):
                assert current() == "next"
            assert current() == "consumer"
        assert current() is None, order


def test_a_span_opened_after_one_was_left_too_early_stays_when_the_other_is_left() -> None:
    def generate(name: str) -> Iterator[int]:
        with span(name):
            yield 1

    with span("consumer"):
        first: Any = generate("first")
        second: Any = generate("second")
        next(first)
        next(second)
        first.close()
        assert current() == "consumer"
        with span("next"):
            second.close()
            assert current() == "next"
        assert current() == "consumer"


def test_traced_generators_are_closed_in_any_order() -> None:
    @sw_agent.trace()
    def generate() -> Iterator[int]:
        with span("inside"):
            yield 1

    with recorded_spans(), span("consumer"):
        first: Any = generate()
        second: Any = generate()
        assert next(first) == next(second) == 1
        first.close()
        second.close()
        assert current() == "consumer"


@either
def test_a_generator_may_be_closed_in_another_thread(entered: Entered) -> None:
    def generate() -> Iterator[int]:
        with entered("generator"):
            yield 1

    with span("consumer"):
        generator: Any = generate()
        next(generator)
        thread = threading.Thread(target=generator.close)
        thread.start()
        thread.join()
        assert current() in ("consumer", "generator")  # a context that is being run cannot be reached from outside
    assert current() is None


@either
def test_a_generator_in_a_cycle_is_closed_by_the_collector(entered: Entered) -> None:
    def generate(holder: list[Any]) -> Iterator[int]:
        with entered("generator"):
            yield len(holder)

    def leave_a_cycle() -> None:
        holder: list[Any] = []
        holder.append(generate(holder))
        next(holder[0])

    contextvars.Context().run(leave_a_cycle)
    with span("consumer"):
        gc.collect()
        assert current() == "consumer"


# Greenlets


@either
def test_a_greenlet_that_is_killed_leaves_nothing(entered: Entered) -> None:
    def work(begun: Any) -> None:
        with entered("work"):
            begun.set()
            gevent.sleep(60)

    begun = gevent.event.Event()  # type: ignore[attr-defined]
    with span("outer"):
        killed = gevent.spawn(work, begun)
        begun.wait()
        killed.kill()
        assert current() == "outer"


@either
def test_a_greenlet_that_is_forgotten_leaves_nothing(entered: Entered) -> None:
    def work() -> None:
        with entered("work"):
            greenlet.getcurrent().parent.switch()  # type: ignore[union-attr]

    with span("outer"):
        for shares_variables in (False, True):
            forgotten = greenlet.greenlet(work)
            if shares_variables:
                forgotten.gr_context = contextvars.copy_context()
            forgotten.switch()
            del forgotten
            gc.collect()
            assert current() == "outer"


@either
def test_a_generator_may_be_stepped_by_one_greenlet_and_closed_by_another(entered: Entered) -> None:
    def generate() -> Iterator[int]:
        with entered("generator"):
            yield 1

    generator: Any = generate()
    with span("outer"):
        greenlet.greenlet(lambda: next(generator)).switch()
        greenlet.greenlet(generator.close).switch()
        assert current() == "outer"


# What stays as it is


def test_a_name_bound_before_and_after_is_seen_to() -> None:
    from opentelemetry.context import detach as bound_after

    for each in (detach, bound_after, context.detach):
        token = contextvars.copy_context().run(attach, context.Context())
        before = out_of_order()
        each(token)
        assert out_of_order() == before + 1


def test_detaching_twice_changes_nothing_the_second_time() -> None:
    with span("outer"):
        token = attach(baggage.set_baggage("tenant", "acme"))
        detach(token)
        with span("inner"):
            detach(token)
            assert current() == "inner"
        assert current() == "outer"


def test_leaving_the_outermost_takes_along_what_was_attached_and_never_detached() -> None:
    with span("outer"):
        token = attach(trace.set_span_in_context(tracer.start_span("first")))
        attach(trace.set_span_in_context(tracer.start_span("second")))
        detach(token)
        assert current() == "outer"


def test_work_goes_on_in_the_context_of_a_span_that_has_ended() -> None:
    """As a task does that outlives the request which made it."""

    async def main() -> None:
        go_on = asyncio.Event()

        async def work() -> None:
            await go_on.wait()
            for _ in range(2):
                with span("inner"):
                    assert current() == "inner"
                assert current() == "request"

        with span("request"):
            task = asyncio.create_task(work())
        go_on.set()
        await task

    before = out_of_order()
    asyncio.run(main())
    assert out_of_order() == before


def test_a_task_keeps_the_context_it_inherited_though_its_span_was_left_too_early_elsewhere() -> None:
    def generate(name: str) -> Iterator[int]:
        with span(name):
            yield 1

    async def main() -> None:
        go_on = asyncio.Event()

        async def work() -> None:
            await go_on.wait()
            with span("inner"):
                pass
            assert current() == "first"

        first: Any = generate("first")
        second: Any = generate("second")
        next(first)
        task = asyncio.create_task(work())
        next(second)
        first.close()
        go_on.set()
        await task
        second.close()
        assert current() is None

    asyncio.run(main())


def test_nothing_keeps_a_span_that_was_left_in_the_wrong_order() -> None:
    with span("outer") as outer:
        first, second = span("first"), span("second")
        kept = first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
    freed = [weakref.ref(kept), weakref.ref(outer)]
    del kept, outer, first, second
    gc.collect()
    assert [each() for each in freed] == [None, None]


def test_misuse_is_said_as_it_is_without_the_agent() -> None:
    records: list[logging.LogRecord] = []
    logger = logging.getLogger("opentelemetry.context")
    listeners, logger.propagate = logger.handlers, False
    logger.handlers = [handler := logging.Handler()]
    handler.emit = records.append  # type: ignore[method-assign]
    try:
        detach("no token")  # type: ignore[arg-type]
    finally:
        logger.handlers, logger.propagate = listeners, True
    assert [record.getMessage() for record in records] == ["Failed to detach context"]


def test_uninstalled_nothing_is_left_behind() -> None:
    _detaching.uninstall()
    assert not hasattr(type(context._RUNTIME_CONTEXT).detach, "__wrapped__")


class OfAnotherKind:
    def __init__(self) -> None:
        self.current = context.Context()

    def get_current(self) -> context.Context:
        return self.current

    def attach(self, attached: context.Context) -> Any:
        before, self.current = self.current, attached
        return before

    def detach(self, token: Any) -> None:
        raise ValueError(token)


def test_another_runtime_context_is_silenced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _detaching.uninstall()
    monkeypatch.setattr(context, "_RUNTIME_CONTEXT", OfAnotherKind())
    _detaching.install(context)
    before = out_of_order()
    detach(attach(context.Context()))
    assert out_of_order() == before + 1
    _detaching.uninstall()
    assert not hasattr(OfAnotherKind.detach, "__wrapped__")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="entering a `try` costs something")
def test_leaving_a_span_calls_no_more_python_functions_than_before() -> None:
    def calls() -> int:
        count = 0

        def profile(_frame: Any, event: str, _argument: Any) -> None:
            nonlocal count
            count += event == "call"

        with span("outer"):
            with span("first"):
                pass  # what is looked up once
            entered = span("inner")
            entered.__enter__()
            sys.setprofile(profile)
            entered.__exit__(None, None, None)
            sys.setprofile(None)
        return count

    with_agent = calls()
    _detaching.uninstall()
    assert with_agent <= calls()


def test_a_program_that_closes_its_spans_anyhow_says_nothing(launch: Launch) -> None:
    """The same from outside: a name bound before the agent could know, a generator left by `break`."""
    program = launch(
        """
import asyncio, gc
from opentelemetry.context import attach, detach

async def numbers():
    with S("generator"):
        yield 1
        yield 2

async def main():
    with S("consumer"):
        async for _ in numbers():
            break
        gc.collect()
        for _ in range(3): await asyncio.sleep(0)
        with S("next"): pass
    token = await asyncio.create_task(attached())
    detach(token)

async def attached():
    return attach({})

asyncio.run(main())
"""
    )
    assert program.end() == ""
    spans = {span.name: span for span in program.spans()}
    assert spans["next"].parent_id == spans["generator"].parent_id == spans["consumer"].span_id
