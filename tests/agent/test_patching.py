"""`Patch`: an interceptor is put around a function, contained, and taken out again without a trace."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import inspect
import itertools
import logging
import pickle
import sys
import threading
import traceback
import weakref
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sw_agent import _containment
from sw_agent._patching import Answer, Default, Hook, Patch, TargetNotFoundError

SOURCE = '''
import math
from functools import lru_cache

def function(a, b=2, *, c: int = 3) -> tuple:
    """Return the arguments."""
    return a, b, c

function.marked = True

async def coroutine(a):
    return a

async def wait_for_ever():
    import asyncio
    await asyncio.Event().wait()

def fail(error):
    raise error

async def fail_later(error):
    raise error

def divide(a, b):
    return a / b

async def divide_later(a, b):
    return a / b

class Base:
    def inherited(self, a):
        return "inherited", a

class Library(Base):
    hypot = math.hypot

    def method(self, a, b=2):
        """Return itself and the arguments."""
        return self, a, b

    @classmethod
    def of_class(cls, a):
        return cls, a

    @staticmethod
    def of_nobody(a):
        return a

    async def later(self, a):
        return self, a

number = 7
nothing = None
same = function
'''


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("library")
    monkeypatch.setitem(sys.modules, "library", module)
    exec(SOURCE, vars(module))
    return module


def pass_on(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
    return wrapped(*args, **kwargs)


def patched(library: Any, path: str, interceptor: Any = pass_on, kind: str = "around") -> Patch:
    patch = Patch(f"library:{path}", interceptor, kind)
    patch.install(library)
    return patch


def raw(library: Any, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return vars(getattr(library, owner) if owner else library).get(name)


PATHS = ["function", "Library.method", "Library.of_class", "Library.of_nobody", "Library.inherited", "Library.hypot"]


COROUTINES = ["coroutine", "Library.later"]


@pytest.mark.parametrize(
    ("kind", "path"),
    [*itertools.product(["around", "before"], PATHS + COROUTINES), *itertools.product(["within"], COROUTINES)],
)
def test_uninstall_puts_back_the_very_object(library: Any, path: str, kind: str) -> None:
    interceptor: Any = pass_on if kind == "around" else lambda *_: None
    before = raw(library, path)
    patch = patched(library, path, interceptor, kind)
    assert raw(library, path) is not before
    patch.install(library)
    patch.uninstall()
    patch.uninstall()
    assert raw(library, path) is before


@pytest.mark.parametrize("kind", ["around", "before"])
def test_every_kind_of_function_is_called_as_it_was(library: Any, kind: str) -> None:
    interceptor: Any = pass_on if kind == "around" else lambda *_: None
    for path in PATHS:
        patched(library, path, interceptor, kind)
    instance = library.Library()
    assert library.function(1, c=4) == (1, 2, 4)
    assert instance.method(1, b=3) == (instance, 1, 3)
    assert library.Library.method(instance, 1) == (instance, 1, 2)
    assert instance.of_class(1) == library.Library.of_class(1) == (library.Library, 1)
    assert instance.of_nobody(1) == library.Library.of_nobody(1) == 1
    assert instance.inherited(1) == ("inherited", 1)
    assert library.Base().inherited(1) == ("inherited", 1)
    assert instance.hypot(3, 4) == 5


def test_an_interceptor_sees_instance_and_arguments_and_may_change_them(library: Any) -> None:
    seen: list[Any] = []

    def change(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        seen.append((instance, args, kwargs))
        return wrapped(*args, b=9)

    patched(library, "Library.method", change)
    patched(library, "function", change)
    instance = library.Library()
    assert instance.method(1, b=3) == (instance, 1, 9)
    assert library.function(1) == (1, 9, 3)
    assert seen == [(instance, (1,), {"b": 3}), (None, (1,), {})]


def test_so_does_one_of_a_coroutine_function(library: Any) -> None:
    seen: list[Any] = []

    async def change(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        seen.append((instance, args, kwargs))
        return await wrapped(a=9)

    patched(library, "Library.later", change)
    patched(library, "coroutine", change)
    instance = library.Library()
    assert asyncio.run(instance.later(1)) == (instance, 9)
    assert asyncio.run(library.coroutine(a=1)) == 9
    assert seen == [(instance, (1,), {}), (None, (), {"a": 1})]


@pytest.mark.parametrize("kind", ["around", "before"])
def test_a_class_is_the_instance_of_its_methods_and_what_has_no_instance_shows_none(library: Any, kind: str) -> None:
    seen: list[Any] = []

    def see(*arguments: Any) -> Any:
        seen.append(arguments[-3:])
        return pass_on(*arguments) if kind == "around" else None

    for path in ("Library.of_class", "Library.of_nobody", "Library.hypot"):
        patched(library, path, see, kind)
    instance = library.Library()
    instance.of_class(1), instance.of_nobody(1), instance.hypot(3, 4)
    assert seen == [(library.Library, (1,), {}), (None, (1,), {}), (None, (3, 4), {})]


@pytest.mark.parametrize("kind", ["around", "before", "within"])
def test_a_call_by_names_alone_is_intercepted_too(library: Any, kind: str) -> None:
    seen: list[Any] = []

    def see(*arguments: Any) -> Any:
        seen.append(arguments[-3:])
        return pass_on(*arguments) if kind == "around" else None

    patched(library, "coroutine", see, kind)
    assert asyncio.run(library.coroutine(a=1)) == 1
    if kind != "within":
        patched(library, "function", see, kind)
        assert library.function(a=1) == (1, 2, 3)
    assert seen == [(None, (), {"a": 1})] * (1 if kind == "within" else 2)


def test_what_runs_before_may_change_the_arguments(library: Any) -> None:
    seen: list[Any] = []

    def change(instance: Any, args: Any, kwargs: Any) -> Any:
        seen.append(instance)
        return (args[0] + 1,), {**kwargs, "b": 9}

    patched(library, "Library.method", change, "before")
    patched(library, "function", change, "before")
    instance = library.Library()
    assert instance.method(1) == (instance, 2, 9)
    assert library.function(1) == (2, 9, 3)
    assert seen == [instance, None]


def test_a_patched_function_looks_like_itself(library: Any) -> None:
    original = library.function
    signature = inspect.signature(original)
    patched(library, "function")
    replacement = library.function
    assert inspect.signature(replacement) == signature
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(replacement, name) == getattr(original, name)
    assert replacement.marked is True
    assert pickle.loads(pickle.dumps(replacement)) is replacement
    assert not inspect.iscoroutinefunction(replacement)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations were evaluated with the function")
def test_annotations_that_cannot_be_evaluated_do_not_hinder(library: Any) -> None:
    source = "def function(a: NameForCheckersOnly) -> int: return a"
    exec(compile(source, "library.py", "exec", dont_inherit=True), vars(library))
    patched(library, "function")
    assert library.function(1) == 1
    library.NameForCheckersOnly = str
    assert library.function.__annotations__ == {"a": str, "return": int}


def test_a_patched_coroutine_function_is_one(library: Any) -> None:
    async def add_one(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        return await wrapped(args[0] + 1)

    patched(library, "coroutine", add_one)
    patched(library, "Library.later")  # by an interceptor that is none
    assert inspect.iscoroutinefunction(library.coroutine)
    assert inspect.iscoroutinefunction(library.Library.later)
    assert asyncio.run(library.coroutine(1)) == 2


def test_installing_twice_is_once(library: Any) -> None:
    calls: list[int] = []

    def count(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        calls.append(1)
        return wrapped(*args, **kwargs)

    original = library.function
    patch = patched(library, "function", count)
    patch.install(library)
    library.function(1)
    assert calls == [1]
    patch.uninstall()
    assert library.function is original


def test_a_name_bound_to_the_patched_function_is_intercepted_once(library: Any) -> None:
    original = library.function
    patch = patched(library, "function")
    library.same = library.function  # as `from … import` does, in a module that arrives later
    of_name = patched(library, "same")
    assert library.same(1) == (1, 2, 3)
    of_name.uninstall()
    patch.uninstall()
    assert library.same is original


@pytest.mark.parametrize(
    ("path", "kind"),
    [("function", "before"), ("function", "around"), ("coroutine", "around"), ("coroutine", "within")],
)
def test_where_somebody_else_patched_since_nothing_is_put_back_but_the_interceptor_stops(
    library: Any, path: str, kind: str
) -> None:
    calls: list[int] = []

    def count(*arguments: Any) -> Any:
        calls.append(1)
        return pass_on(*arguments) if kind == "around" else None

    patch = patched(library, path, count, kind)
    ours = getattr(library, path)

    def theirs(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    setattr(library, path, theirs)
    patch.uninstall()
    assert getattr(library, path) is theirs
    assert (theirs(1) if path == "function" else (asyncio.run(theirs(1)), 2, 3)) == (1, 2, 3)
    assert calls == []


def test_what_is_put_back_after_the_interceptor_came_out_is_intercepted_when_it_goes_in_again(library: Any) -> None:
    """As `mock.patch` puts back what it found."""
    calls: list[int] = []
    original = library.function
    patch = patched(library, "function", lambda *_: calls.append(1), "before")
    ours = library.function
    patch.uninstall()
    library.function = ours
    patch.install(library)
    library.function(1)
    assert calls == [1]
    patch.uninstall()
    assert library.function is original


def test_two_interceptors_at_one_function_come_out_one_by_one(library: Any) -> None:
    calls: list[str] = []
    original = library.function
    first = patched(library, "function", lambda *_: calls.append("first"), "before")
    second = patched(library, "function", lambda *_: calls.append("second"), "before")
    library.function(1)
    assert calls == ["second", "first"]
    second.uninstall()
    library.function(1)
    assert calls == ["second", "first", "first"]
    first.uninstall()
    assert library.function is original


def test_interceptors_that_come_out_in_the_order_they_went_in_leave_the_very_object(library: Any) -> None:
    original = library.function
    patches = [patched(library, "function", lambda *_: None, kind) for kind in ("before", "before", "before")]
    for patch in patches:
        patch.uninstall()
    assert library.function is original


def test_a_wrapper_that_copies_all_attributes_of_a_patched_function_is_somebody_elses(library: Any) -> None:
    first = patched(library, "function")

    @functools.wraps(library.function)
    def theirs(*args: Any, **kwargs: Any) -> Any:
        return theirs.__wrapped__(*args, **kwargs)

    library.function = theirs
    second = patched(library, "function", lambda *_: None, "before")
    first.uninstall()
    second.uninstall()
    assert library.function is theirs
    assert library.function(1) == (1, 2, 3)


def test_a_coroutine_function_that_somebody_else_has_wrapped_is_intercepted_as_one(library: Any) -> None:
    async def add_one(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        return await wrapped(args[0] + 1)

    coroutine = library.coroutine
    library.coroutine = lambda *args: coroutine(*args)
    patched(library, "coroutine", add_one)
    assert asyncio.run(library.coroutine(1)) == 2


def test_a_target_that_is_missing_or_no_function_is_refused(library: Any) -> None:
    for path in ("missing", "Missing.method", "Library.missing"):
        with pytest.raises(TargetNotFoundError, match=f"library:{path} does not exist"):
            patched(library, path)
    for path in ("number", "nothing"):
        with pytest.raises(TypeError, match=f"library:{path} is no function"):
            patched(library, path)


def test_misuse_raises_the_error_of_the_library(library: Any) -> None:
    patched(library, "Library.method")
    for call in (library.Library.method, library.Library().method):
        with pytest.raises(TypeError, match=r"Library\.method\(\) missing"):
            call()


@pytest.mark.parametrize("kind", ["around", "before", "within"])
def test_a_method_is_called_with_its_instance_in_front_or_by_name(library: Any, kind: str) -> None:
    if kind != "within":
        patched(library, "Library.method", pass_on if kind == "around" else lambda *_: None, kind)
    patched(library, "Library.later", pass_on if kind == "around" else lambda *_: None, kind)
    instance = library.Library()
    assert library.Library.method(self=instance, a=1) == (instance, 1, 2)
    assert asyncio.run(library.Library.later(self=instance, a=1)) == (instance, 1)
    assert asyncio.run(library.Library.later(instance, 1)) == asyncio.run(instance.later(1)) == (instance, 1)


# What is no function


def test_a_hook_is_used_once_and_undone_once(library: Any) -> None:
    calls: list[str] = []

    def use(module: Any) -> Any:
        calls.append(module.__name__)
        return lambda: calls.append("undone")

    hook = Hook("library", use)
    hook.uninstall()
    for _ in range(2):
        hook.install(library)
    for _ in range(2):
        hook.uninstall()
    assert calls == ["library", "undone"]


def test_an_attribute_is_given_to_a_class_that_has_none_and_taken_away_again(library: Any) -> None:
    default = Default("library:Library.new", 7)
    default.uninstall()
    default.install(library)
    default.install(library)
    assert library.Library().new == 7
    default.uninstall()
    assert not hasattr(library.Library, "new")
    library.Library.new = "their own"
    default.uninstall()
    default.install(library)
    default.uninstall()
    assert library.Library.new == "their own"


def test_an_attribute_that_the_program_has_taken_away_itself_is_no_harm(library: Any) -> None:
    default = Default("library:Library.new", 7)
    default.install(library)
    del library.Library.new
    default.uninstall()
    with pytest.raises(TargetNotFoundError, match=r"library:Missing\.new does not exist"):
        Default("library:Missing.new", 7).install(library)


# Containment


def contained(agent_errors: list[logging.LogRecord]) -> list[str]:
    """Take the messages that the agent has logged at ERROR."""
    messages = [record.getMessage() for record in agent_errors]
    agent_errors.clear()
    return messages


def raise_before(*_: Any) -> Any:
    raise LookupError("of the interceptor")


def raise_after(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
    wrapped(*args, **kwargs)
    raise LookupError("of the interceptor")


@pytest.mark.parametrize(
    ("interceptor", "kind"), [(raise_before, "before"), (raise_before, "around"), (raise_after, "around")]
)
def test_what_an_interceptor_raises_is_contained_and_said_once(
    library: Any, interceptor: Any, kind: str, agent_errors: list[logging.LogRecord]
) -> None:
    calls: list[int] = []
    patched(library, "function", lambda *_: calls.append(1), "before")
    patched(library, "function", interceptor, kind)
    for _ in range(3):
        assert library.function(1) == (1, 2, 3)
    assert len(calls) == 3
    assert contained(agent_errors) == ["library:function failed; the program goes on without it"]
    assert _containment.failures == {"library:function": 3}


async def raise_before_awaiting(*_: Any) -> Any:
    raise LookupError("of the interceptor")


async def raise_after_awaiting(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
    await wrapped(*args, **kwargs)
    raise LookupError("of the interceptor")


@pytest.mark.parametrize("interceptor", [raise_before_awaiting, raise_after_awaiting])
def test_what_an_interceptor_of_a_coroutine_raises_is_contained(
    library: Any, interceptor: Any, agent_errors: list[logging.LogRecord]
) -> None:
    patched(library, "coroutine", interceptor)
    assert asyncio.run(library.coroutine(1)) == 1
    assert len(contained(agent_errors)) == 1


def test_an_interceptor_that_fails_after_an_error_leaves_that_error(
    library: Any, agent_errors: list[logging.LogRecord]
) -> None:
    def hide(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        try:
            return wrapped(*args, **kwargs)
        finally:
            raise LookupError("of the interceptor")

    patched(library, "fail", hide)
    error = ValueError("of the program")
    with pytest.raises(ValueError, match="of the program") as raised:
        library.fail(error)
    assert raised.value is error
    assert len(contained(agent_errors)) == 1


@pytest.mark.parametrize("error", [ValueError("of the program"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_errors_of_the_program_are_not_the_agents(library: Any, error: BaseException) -> None:
    patched(library, "fail")
    patched(library, "fail_later")
    for call in (lambda: library.fail(error), lambda: asyncio.run(library.fail_later(error))):
        with pytest.raises(type(error)) as raised:
            call()
        assert raised.value is error
    assert _containment.failures == {}


@pytest.mark.parametrize("kind", ["around", "before", "within"])
def test_what_interrupts_an_interceptor_is_the_programs_too(library: Any, kind: str) -> None:
    """Ctrl-C, or the cancellation of a task, while it is an interceptor that runs."""
    error = KeyboardInterrupt()

    def interrupted(*_: Any) -> Any:
        raise error

    for path in ("coroutine",) if kind == "within" else ("coroutine", "function"):
        patched(library, path, interrupted, kind)
        with pytest.raises(KeyboardInterrupt) as raised:
            library.function(1) if path == "function" else asyncio.run(library.coroutine(1))
        assert raised.value is error


@pytest.mark.skipif(sys.version_info < (3, 11), reason="cannot take a frame out of a traceback")
@pytest.mark.parametrize("kind", ["around", "before"])
def test_no_frame_of_the_agent_is_in_the_programs_tracebacks(library: Any, kind: str) -> None:
    def frames() -> list[str]:
        try:
            library.fail(ValueError())
        except ValueError as error:
            return [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        raise AssertionError

    natively = frames()
    patched(library, "fail", pass_on if kind == "around" else lambda *_: None, kind)
    assert frames() == natively


@pytest.mark.skipif(sys.version_info < (3, 11), reason="cannot take a frame out of a traceback")
@pytest.mark.parametrize("kind", ["around", "before", "within"])
def test_nor_in_those_of_coroutines(library: Any, kind: str) -> None:
    async def frames() -> list[str]:
        try:
            await library.fail_later(ValueError())
        except ValueError as error:
            return [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        raise AssertionError

    natively = asyncio.run(frames())
    patched(library, "fail_later", pass_on if kind == "around" else lambda *_: None, kind)
    assert asyncio.run(frames()) == natively


def test_an_interceptor_may_answer_in_the_place_of_the_function(library: Any) -> None:
    async def answer(*_: Any) -> Answer:
        return Answer("instead")

    patched(library, "function", lambda *_: Answer("instead"))
    patched(library, "coroutine", answer)
    assert library.function(1) == "instead"
    assert asyncio.run(library.coroutine(1)) == "instead"


class FalseToo:
    def __bool__(self) -> bool:
        raise LookupError("is it true?")


NO_ANSWERS: list[Any] = [5, (), (1, 2, 3), "two", object(), FalseToo(), None, lambda: None, SimpleNamespace(value=5)]


@pytest.mark.parametrize("calls", ["before it is called", "after it was called"])
@pytest.mark.parametrize("path", ["function", "Library.method", "coroutine"])
def test_what_an_interceptor_returns_that_the_function_has_not_returned_is_no_result(
    library: Any, agent_errors: list[logging.LogRecord], path: str, calls: str
) -> None:
    answers = iter(NO_ANSWERS)
    ran: list[int] = []

    def interceptor(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        if calls == "after it was called":
            wrapped(*args, **kwargs)
        return next(answers)

    async def of_coroutine(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        if calls == "after it was called":
            await wrapped(*args, **kwargs)
        return next(answers)

    instance = library.Library()
    call = {
        "function": lambda: library.function(1),
        "Library.method": lambda: (*instance.method(1)[1:], 3),
        "coroutine": lambda: (asyncio.run(library.coroutine(1)), 2, 3),
    }[path]
    patched(library, path, lambda *_: ran.append(1), "before")
    patched(library, path, of_coroutine if path == "coroutine" else interceptor)
    for _ in NO_ANSWERS:
        assert call() == (1, 2, 3)
    assert len(ran) == _containment.failures[f"library:{path}"] == len(NO_ANSWERS)
    assert len(contained(agent_errors)) == 1


def test_an_interceptor_that_keeps_an_error_to_itself_has_not_handled_it(
    library: Any, agent_errors: list[logging.LogRecord]
) -> None:
    def swallow(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> None:
        with contextlib.suppress(ValueError):
            wrapped(*args, **kwargs)

    async def swallow_later(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> None:
        with contextlib.suppress(ValueError):
            await wrapped(*args, **kwargs)

    ran: list[int] = []
    for path, interceptor in (("fail", swallow), ("fail_later", swallow_later)):
        patched(library, path, lambda *_: ran.append(1), "before")
        patched(library, path, interceptor)
    with pytest.raises(ValueError, match="of the program"):
        library.fail(ValueError("of the program"))
    with pytest.raises(ValueError, match="of the program"):
        asyncio.run(library.fail_later(ValueError("of the program")))
    assert len(ran) == len(contained(agent_errors)) == 2


NO_CALLS: list[Any] = [
    *(5, object(), (1, 2, 3), "two", FalseToo(), (5, 5), ((1,), None), ((1,), 5), ("a", {}), ([1], {}), (None, {})),
    *(((1,), {1: 2}), ((1,), object()), ((1,), [("b", 2)])),
]


@pytest.mark.parametrize("path", ["function", "Library.method"])
def test_what_runs_before_and_returns_no_call_changes_nothing(
    library: Any, agent_errors: list[logging.LogRecord], path: str
) -> None:
    answers = iter(NO_CALLS)
    patched(library, path, lambda *_: next(answers), "before")
    instance = library.Library()
    for _ in NO_CALLS:
        result = library.function(1, b=4) if path == "function" else (*instance.method(1, b=4)[1:], 3)
        assert result == (1, 4, 3)
    assert _containment.failures == {f"library:{path}": len(NO_CALLS)}
    assert len(contained(agent_errors)) == 1


@pytest.mark.parametrize("kind", ["around", "before"])
def test_the_arguments_of_the_program_stay_what_they_are_where_an_interceptor_fails(
    library: Any, agent_errors: list[logging.LogRecord], kind: str
) -> None:
    def change_and_fail(*arguments: Any) -> None:
        arguments[-1].update(b=9, d=9)
        raise LookupError

    patched(library, "function", change_and_fail, kind)
    assert library.function(1, b=4) == (1, 4, 3)
    contained(agent_errors)


@pytest.mark.parametrize("entered", NO_ANSWERS)
def test_what_cannot_be_left_is_no_harm(library: Any, agent_errors: list[logging.LogRecord], entered: Any) -> None:
    patched(library, "divide_later", lambda *_: entered, "within")
    assert asyncio.run(library.divide_later(4, 2)) == 2
    with pytest.raises(ZeroDivisionError):
        asyncio.run(library.divide_later(1, 0))
    assert len(contained(agent_errors)) == (entered is not None)


class Unspeakable(Exception):
    """It raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise ValueError(name)

    def __str__(self) -> str:
        raise ValueError("text")


@pytest.mark.parametrize("kind", [Unspeakable, StopIteration, StopAsyncIteration, RecursionError, MemoryError])
def test_odd_errors_of_interceptors_are_contained_and_said_too(
    library: Any, agent_errors: list[logging.LogRecord], kind: type[Exception]
) -> None:
    def fail(*_: Any) -> None:
        raise kind

    async def fail_later(*_: Any) -> None:
        raise kind

    patched(library, "function", fail)
    patched(library, "same", fail, "before")
    patched(library, "coroutine", fail_later)
    assert library.function(1) == library.same(1) == (1, 2, 3)
    assert asyncio.run(library.coroutine(1)) == 1
    assert {message.partition(" ")[0] for message in contained(agent_errors)} == set(_containment.failures)


def test_a_failure_in_many_threads_at_once_is_said_once(library: Any, agent_errors: list[logging.LogRecord]) -> None:
    patched(library, "function", raise_before)
    threads = [threading.Thread(target=lambda: [library.function(1) for _ in range(20)]) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(contained(agent_errors)) == 1


@pytest.mark.parametrize("target", ["_thread:start_new_thread", "os:kill", "signal:raise_signal"])
def test_a_patched_function_of_c_is_pickled_by_its_name(target: str) -> None:
    """Also one that another module has defined: a program may give `os.kill` to a process pool."""
    module_name, name = target.split(":")
    module = importlib.import_module(module_name)
    patch = Patch(target, lambda *_: None, "before")
    patch.install(module)
    try:
        function = getattr(module, name)
        assert pickle.loads(pickle.dumps(function)) is function
    finally:
        patch.uninstall()


class Witness:
    pass


@pytest.mark.parametrize("kind", ["around", "before"])
def test_an_exception_that_has_passed_holds_nothing_until_the_garbage_collector_comes(library: Any, kind: str) -> None:
    patched(library, "divide", pass_on if kind == "around" else lambda *_: None, kind)

    def fails() -> weakref.ref[Witness]:
        witness = Witness()
        with contextlib.suppress(TypeError):
            library.divide(witness, 2)
        return weakref.ref(witness)

    gc.disable()
    try:
        assert fails()() is None
    finally:
        gc.enable()


class Forgetful:
    """What is left, and keeps nothing of that."""

    def leave(self, _error: BaseException | None) -> None:
        """Nothing."""


@pytest.mark.parametrize("kind", ["around", "within"])
def test_nor_does_one_that_has_passed_a_coroutine(library: Any, kind: str) -> None:
    async def pass_on(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        return await wrapped(*args, **kwargs)

    patched(library, "divide_later", pass_on if kind == "around" else lambda *_: Forgetful(), kind)

    async def fails() -> weakref.ref[Witness]:
        witness = Witness()
        with contextlib.suppress(TypeError):
            await library.divide_later(witness, 2)
        return weakref.ref(witness)

    async def main() -> object:
        return (await fails())()

    gc.disable()
    try:
        assert asyncio.run(main()) is None
    finally:
        gc.enable()


# What a coroutine function is called within


class Left:
    """What an interceptor returns; it keeps with what it was left, or raises then."""

    def __init__(self, raises: Exception | None = None) -> None:
        self.errors: list[Any] = []
        self.raises = raises

    def leave(self, error: BaseException | None) -> None:
        self.errors.append(error)
        if self.raises is not None:
            raise self.raises


def test_what_a_coroutine_is_called_within_is_left_with_its_error(library: Any) -> None:
    left, seen = Left(), []

    def enter(*arguments: Any) -> Left:
        seen.append(arguments)
        return left

    patched(library, "Library.later", enter, "within")
    patched(library, "divide_later", enter, "within")
    assert inspect.iscoroutinefunction(library.Library.later)
    instance = library.Library()
    assert asyncio.run(instance.later(1)) == (instance, 1)
    with pytest.raises(ZeroDivisionError) as raised:
        asyncio.run(library.divide_later(1, b=0))
    assert seen == [(instance, (1,), {}), (None, (1,), {"b": 0})]
    assert left.errors == [None, raised.value]


def test_a_coroutine_that_is_cancelled_is_left_too(library: Any) -> None:
    left = Left()
    patched(library, "wait_for_ever", lambda *_: left, "within")

    async def main() -> None:
        task = asyncio.ensure_future(library.wait_for_ever())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert list(map(type, left.errors)) == [asyncio.CancelledError]


@pytest.mark.parametrize("raises", ["entering", "leaving"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_raised_while_entering_or_leaving_is_contained(
    library: Any, agent_errors: list[logging.LogRecord], raises: str, fails: bool
) -> None:
    def enter(*_: Any) -> Left:
        if raises == "entering":
            raise OSError("ours")
        return Left(OSError("ours"))

    patched(library, "divide_later", enter, "within")
    if fails:
        with pytest.raises(ZeroDivisionError):
            asyncio.run(library.divide_later(1, 0))
    else:
        assert asyncio.run(library.divide_later(4, 2)) == 2
    assert len(agent_errors) == 1
    agent_errors.clear()


def test_a_method_called_within_nothing_is_the_librarys_own(library: Any) -> None:
    patch = patched(library, "Library.later", lambda *_: None, "within")
    bound = library.Library.later
    with pytest.raises(TypeError, match="missing"):
        asyncio.run(library.Library.later())
    patch.uninstall()
    assert asyncio.run(bound(1, 2)) == (1, 2)
