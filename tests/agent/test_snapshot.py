"""`ContextSnapshot`: what is captured, what is restored, and what happens when it is left in the wrong order."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import gc
import inspect
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider

from sw_agent import snapshot
from sw_agent.snapshot import ContextSnapshot, capture, capture_if_active, current_context

tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")


@pytest.fixture(autouse=True)
def clean_context() -> Iterator[None]:
    """Bind the context variable, and leave nothing in it."""
    snapshot.bind(context)
    token = context.attach(context.Context())
    yield
    context.detach(token)


def span(name: str = "span") -> Any:
    return tracer.start_as_current_span(name)


def current_name() -> str | None:
    return getattr(trace.get_current_span(), "name", None)


def taken_in(name: str) -> ContextSnapshot:
    with span(name):
        return capture()


def test_a_snapshot_of_nothing_is_falsy() -> None:
    assert not capture()
    assert capture_if_active() is None
    assert repr(capture()) == "<ContextSnapshot, empty>"


def test_a_snapshot_of_a_span_is_truthy_and_restores_it() -> None:
    taken = taken_in("taken")
    assert taken
    assert repr(taken) == "<ContextSnapshot of 1 entries>"
    with taken.restore():
        assert current_name() == "taken"
    assert current_name() is None


def test_a_snapshot_of_baggage_is_truthy() -> None:
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    taken = capture_if_active()
    context.detach(token)
    assert taken
    with taken.restore():
        assert baggage.get_all() == {"tenant": "acme"}


def test_restoring_nothing_hides_what_is_current() -> None:
    with span("outer"):
        with ContextSnapshot().restore():
            assert current_name() is None
            assert not current_context()
        assert current_name() == "outer"


def test_run_passes_arguments_and_result_on() -> None:
    taken = taken_in("taken")
    assert taken.run(lambda *args, **kwargs: (args, kwargs, current_name()), 1, two=2) == ((1,), {"two": 2}, "taken")
    assert current_name() is None


def test_what_was_attached_inside_and_never_detached_is_left_behind() -> None:
    taken = taken_in("taken")
    with span("outer"):
        with taken.restore():
            context.attach(trace.set_span_in_context(tracer.start_span("leftover")))
        assert current_name() == "outer"


def test_restores_that_are_left_in_the_wrong_order_end_where_they_began() -> None:
    before = snapshot.restores_out_of_order
    first, second = taken_in("first").restore(), taken_in("second").restore()
    with span("outer"):
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert current_name() == "outer"
        second.__exit__(None, None, None)
        assert current_name() == "outer"
    assert snapshot.restores_out_of_order > before


def test_only_what_is_left_before_what_is_inside_it_is_counted() -> None:
    before = snapshot.restores_out_of_order
    for _ in range(2):
        with taken_in("outer").restore(), taken_in("inner").restore():
            pass
    assert snapshot.restores_out_of_order == before
    outer, never_left = taken_in("outer").restore(), taken_in("inner").restore()
    outer.__enter__()
    never_left.__enter__()
    outer.__exit__(None, None, None)
    assert snapshot.restores_out_of_order == before + 1


@given(st.permutations(range(4)))
def test_any_order_of_leaving_ends_where_it_began(order: list[int]) -> None:
    with span("outer"):
        entered = [taken_in(str(number)).restore() for number in range(4)]
        for restored in entered:
            restored.__enter__()
        for number in order:
            entered[number].__exit__(None, None, None)
        assert current_name() == "outer"
        with taken_in("next").restore():
            assert current_name() == "next"
        assert current_name() == "outer"


def test_leaving_twice_is_leaving_once() -> None:
    restored = taken_in("taken").restore()
    with span("outer"):
        restored.__enter__()
        restored.__exit__(None, None, None)
        with span("inner"):
            restored.__exit__(None, None, None)
            assert current_name() == "inner"


def test_leaving_in_another_task_raises_nothing_and_takes_nothing_of_its_away() -> None:
    restored = taken_in("taken").restore()

    async def enter() -> None:
        restored.__enter__()

    async def leave() -> None:
        with span("of the other task"):
            restored.__exit__(None, None, None)
            assert current_name() == "of the other task"

    async def main() -> None:
        await asyncio.create_task(enter())
        await asyncio.create_task(leave())

    asyncio.run(main())


def test_leaving_in_a_task_that_inherited_it_puts_right_what_is_current_there() -> None:
    restored = taken_in("taken").restore()
    names: list[str | None] = []

    async def leave() -> None:
        restored.__exit__(None, None, None)
        names.append(current_name())

    async def main() -> None:
        with span("outer"):
            restored.__enter__()
            await asyncio.create_task(leave())

    asyncio.run(main())
    assert names == ["outer"]


def test_a_generator_that_is_closed_late_leaves_the_consumers_context_alone() -> None:
    taken = taken_in("taken")

    def generate() -> Iterator[int]:
        with taken.restore():
            yield 1

    with span("consumer"):
        generator = generate()
        next(generator)
        threading.Thread(target=generator.close).start()
        gc.collect()
    assert current_name() in (None, "taken")


def test_nothing_keeps_a_span_that_was_restored() -> None:
    with span() as kept:
        restored = capture().restore()
    freed = weakref.ref(kept)
    del kept
    with restored:
        pass
    gc.collect()
    assert freed() is None


def test_nothing_keeps_a_span_whose_restore_was_left_in_another_thread() -> None:
    with span() as kept:
        restored = capture().restore()
    freed = weakref.ref(kept)
    del kept
    for step in (restored.__enter__, lambda: restored.__exit__(None, None, None)):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    gc.collect()
    assert freed() is None


def test_into_sets_one_variable_of_a_context() -> None:
    taken = taken_in("taken")
    variables = taken.into(contextvars.Context())
    assert len(variables) == 1
    assert variables.run(current_name) == "taken"
    assert ContextSnapshot().into(variables).run(current_name) is None
    assert len(ContextSnapshot().into(contextvars.Context())) == 0


@pytest.mark.parametrize("others", [0, 1, 2])
@pytest.mark.parametrize("now", ["taken", "other", None])
def test_alone_it_is_in_a_new_context_with_nothing_else(others: int, now: str | None) -> None:
    def in_this_thread() -> None:
        for number in range(others):
            contextvars.ContextVar(f"other {number}").set(number)
        with span("taken"):
            taken = capture()
            variables = taken.alone()
        if now == "other":
            with span("other"):
                variables = taken.alone()
        elif now is None:
            variables = taken.alone()
        assert len(variables) == 1
        assert variables.run(current_name) == "taken"
        assert len(ContextSnapshot().alone()) == 0
        assert len(capture().alone()) == 0
        assert variables is not taken.alone()

    contextvars.Context().run(in_this_thread)


def test_a_link_points_to_the_span() -> None:
    taken = taken_in("taken")
    link = taken.link()
    assert link is not None
    assert link.context == trace.get_current_span(taken.context).get_span_context()
    with span("other"):
        assert ContextSnapshot().link() is None


def test_a_pickled_snapshot_keeps_span_baggage_and_moment() -> None:
    with span() as current:
        token = context.attach(baggage.set_baggage("tenant", "ä, c"))
        taken = capture()
        context.detach(token)
    back = pickle.loads(pickle.dumps(taken))
    assert back.taken_at == taken.taken_at
    with back.restore():
        seen = trace.get_current_span().get_span_context()
        assert (seen.trace_id, seen.span_id) == (current.context.trace_id, current.context.span_id)
        assert baggage.get_all() == {"tenant": "ä, c"}
    assert not pickle.loads(pickle.dumps(ContextSnapshot()))


def function(number: int, *, name: str = "default") -> tuple[int, str, str | None]:
    """Return what was passed, and the current span's name."""
    return number, name, current_name()


class Job:
    """A callable that is equal to jobs only, and says so of everything else."""

    def __call__(self) -> None:
        """Nothing."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job)

    __hash__ = object.__hash__


class TestWrapped:
    def test_runs_in_the_context_of_the_snapshot(self) -> None:
        assert taken_in("taken").wrap(function)(1, name="one") == (1, "one", "taken")

    def test_is_taken_for_the_function(self) -> None:
        wrapped: Any = taken_in("taken").wrap(function)
        assert wrapped == function
        assert function == wrapped
        assert wrapped == taken_in("other").wrap(function)
        assert taken_in("taken").wrap(Job()) == taken_in("other").wrap(Job())
        assert wrapped != print
        assert hash(wrapped) == hash(function)
        assert repr(wrapped) == repr(function)
        assert wrapped.__name__ == "function"
        assert wrapped.__doc__ == function.__doc__
        assert wrapped.__module__ == function.__module__
        assert inspect.signature(wrapped) == inspect.signature(function)
        assert weakref.ref(wrapped)() is wrapped

    def test_has_the_attributes_of_the_function(self) -> None:
        wrapped: Any = taken_in("taken").wrap(functools.partial(function, 1))
        assert wrapped.args == (1,)
        assert not hasattr(wrapped, "missing")
        assert copy.copy(wrapped) == wrapped

    def test_can_be_pickled_where_the_function_can(self) -> None:
        back = pickle.loads(pickle.dumps(taken_in("taken").wrap(current_context)))
        assert back == current_context
        assert back()
        with pytest.raises(Exception, match="lambda"):
            pickle.dumps(taken_in("taken").wrap(lambda: None))

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="cannot take a frame out of a traceback")
    def test_is_in_no_traceback(self) -> None:
        with pytest.raises(ZeroDivisionError) as raised:
            taken_in("taken").wrap(lambda: 1 / 0)()
        assert all("sw_agent" not in str(entry.path) for entry in raised.traceback)


class OfThreads:
    """A runtime context that needs no `contextvars`, as OTEL_PYTHON_CONTEXT may choose one."""

    def __init__(self) -> None:
        self.here = threading.local()

    def get_current(self) -> context.Context:
        return getattr(self.here, "current", context.Context())

    def attach(self, current: context.Context) -> Any:
        before, self.here.current = self.get_current(), current
        return before

    def detach(self, token: Any) -> None:
        self.here.current = token


def test_another_runtime_context_is_captured_and_restored_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_this_thread() -> None:
        contextvars.ContextVar("other").set(1)
        with span("outer"):
            taken = taken_in("taken")
            assert taken.run(current_name) == "taken"
            assert current_name() == "outer"
            assert len(capture().alone()) == 0

    monkeypatch.setattr(context, "_RUNTIME_CONTEXT", OfThreads())
    snapshot.bind(context)
    try:
        contextvars.Context().run(in_this_thread)
    finally:
        monkeypatch.undo()
        snapshot.bind(context)


def test_without_opentelemetry_there_is_nothing_and_it_is_not_imported() -> None:
    program = """
import sys
from _contextvars import Context
from sw_agent.snapshot import capture, capture_if_active
assert not capture() and capture_if_active() is None
assert capture().run(int, "7") == 7
assert capture().wrap(int)("7") == 7
assert len(capture().alone()) == len(capture().into(Context())) == 0
heavy = {"opentelemetry", "typing", "logging", "threading", "asyncio", "contextlib", "dataclasses", "inspect", "re"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-S", "-c", with_path(program)], check=True)


@pytest.mark.parametrize(
    "first",
    [
        "attach(value) and capture().context['key']",
        "ContextSnapshot(value).run(get_value, 'key')",
        "ContextSnapshot(value).into(Context()).run(get_value, 'key')",
        "set_current_context(value) or get_value('key')",
    ],
)
def test_in_a_program_without_the_agent_whatever_comes_first_finds_opentelemetry(first: str) -> None:
    program = f"""
from contextvars import Context
from opentelemetry.context import attach, get_value, set_value
from sw_agent.snapshot import ContextSnapshot, capture, set_current_context
value = set_value("key", "value")
assert {first} == "value"
"""
    subprocess.run([sys.executable, "-c", with_path(program)], check=True)


def test_work_may_be_the_first_to_load_opentelemetry() -> None:
    program = """
import sys
from types import ModuleType
from sw_agent.snapshot import ContextSnapshot, capture
sys.modules["opentelemetry.context"] = ModuleType("opentelemetry.context")
assert not capture()  # another thread has only begun with the import
del sys.modules["opentelemetry.context"]
def load():
    from opentelemetry.context import attach, set_value
    attach(set_value("key", "value"))
    return capture()
with capture().restore():
    assert ContextSnapshot().run(load).context == {"key": "value"}
"""
    subprocess.run([sys.executable, "-c", with_path(program)], check=True)


def with_path(program: str) -> str:
    from pathlib import Path

    return f"import sys; sys.path[:0] = [{str(Path(snapshot.__file__).parents[1])!r}]\n{program}"
