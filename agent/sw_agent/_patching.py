"""Put a plugin's interceptors around a library's functions, take them out again, and contain what they raise.

A function is replaced by a plain function that keeps its name, signature, docstring and module. The original is called
from here, not from the plugin: whatever an interceptor raises or returns, the original runs exactly once, and its
result or its exception is what the program gets, unless the interceptor gives an `Answer`.
"""

from __future__ import annotations

import sys

from ._containment import contain, hide_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import ModuleType, TracebackType
    from typing import Any, Protocol, TypeAlias

    Function: TypeAlias = Callable[..., Any]
    # (wrapped, instance, args, kwargs) -> result
    Around: TypeAlias = Callable[[Function, Any, tuple[Any, ...], dict[str, Any]], Any]
    # (instance, args, kwargs) -> None, or the (args, kwargs) to go on with
    Before: TypeAlias = Callable[
        [Any, tuple[Any, ...], dict[str, Any]], "tuple[tuple[Any, ...], dict[str, Any]] | None"
    ]

    class Entered(Protocol):
        """What a coroutine function is called within."""

        def leave(self, error: BaseException | None, /) -> None:
            """Do what is to be done when it has ended; `error` is what it raised."""

    # (instance, args, kwargs) -> what to leave afterwards, if anything
    Within: TypeAlias = Callable[[Any, tuple[Any, ...], dict[str, Any]], "Entered | None"]
    # What is told what an interceptor has raised
    Failed: TypeAlias = Callable[[BaseException], None]
    # (failed, original, interceptor, whether the original is a method) -> what to put in its place
    Kind: TypeAlias = Callable[[Failed, Function, Any, bool], Function]

_ABSENT = object()
_COROUTINE = 0x80  # inspect.CO_COROUTINE


class TargetNotFoundError(AttributeError):
    """The library has no such attribute: another version than the plugin was written for."""


class Answer:
    """What an interceptor returns where the program shall get `value`, not what the library's function returns."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Patch:
    """One interceptor at one target, `"module:Class.attribute"`.

    `kind` is "around", "before" or "within" (see `Plugin.intercept`, `before` and `within`), or what makes the
    replacement: a function that has an attribute `__sw_stop__`, to be called when it shall intercept no more. An
    `optional` target may be missing. `when` names an option of the plugin without which the target is left as it is.
    `after` names the module with which it is installed, if that is not the target's own.
    `contain` is called with the target and what an interceptor has raised there.
    """

    def __init__(
        self,
        target: str,
        interceptor: object,
        kind: str | Kind,
        *,
        optional: bool = False,
        when: str = "",
        after: str = "",
        contain: Callable[[str, BaseException], None] = contain,
    ) -> None:
        self.target = target
        self.optional = optional
        self.when = when
        self._home = target.partition(":")[0]
        self.module = after or self._home
        self._interceptor = interceptor
        self._replace = _KINDS[kind] if isinstance(kind, str) else kind
        self._contain = contain
        self._owner: Any = None
        self._name = ""
        self._original: Any = _ABSENT
        self._replacement: Any = None

    def install(self, module: ModuleType) -> None:
        """Put the interceptor in. Where it is in already nothing is done.

        Raises:
            TargetNotFoundError: the module has no such attribute.
            TypeError: the attribute is nothing that can be called.
        """
        owner, name = self._resolve(module)
        raw = vars(owner).get(name, _ABSENT)
        if self._replacement is not None and raw is self._replacement:
            return
        found = getattr(owner, name) if raw is _ABSENT else raw
        function = _function_of(found)
        if not callable(function):
            raise TypeError(f"{self.target} is no function")
        if _is_ours(function) and function.__sw_interceptor__ is self._interceptor:
            # The name was bound, by `from … import`, to a function where this interceptor already is.
            self._owner, self._name, self._original, self._replacement = owner, name, function.__wrapped__, raw
            return
        is_method = isinstance(owner, type) and not isinstance(found, staticmethod) and hasattr(found, "__get__")
        replacement: Any = self._replace(self._failed, function, self._interceptor, is_method)
        _dress(replacement, function, self._interceptor, raw)
        if isinstance(found, staticmethod | classmethod):
            replacement = type(found)(replacement)
        elif not hasattr(found, "__get__"):
            # A function of C binds to no instance where a class keeps it as an attribute; neither may this one. That of
            # `os` calls itself one of `posix`, where this one is not to be found by its name.
            replacement.__module__ = self._home
            replacement = Unbound(replacement)
        setattr(owner, name, replacement)
        self._owner, self._name, self._original, self._replacement = owner, name, raw, replacement

    def uninstall(self) -> None:
        """Put the very object back that was there, unless somebody else has patched since; stop intercepting anyway."""
        owner, replacement = self._owner, self._replacement
        if replacement is None:
            return
        self._owner = self._replacement = None
        function = _function_of(replacement)
        function.__sw_stop__()  # the program may hold it under a name of its own
        function.__sw_interceptor__ = None
        if vars(owner).get(self._name) is not replacement:
            return
        original = without_stopped(self._original)
        if original is _ABSENT:
            delattr(owner, self._name)
        else:
            setattr(owner, self._name, original)

    def _failed(self, error: BaseException) -> None:
        self._contain(self.target, error)

    def _resolve(self, module: ModuleType) -> tuple[Any, str]:
        owner, name = _owner_of(self.target, module if self.module == self._home else sys.modules[self._home])
        if getattr(owner, name, _ABSENT) is _ABSENT:
            raise TargetNotFoundError(f"{self.target} does not exist")
        return owner, name


class Default:
    """A class's attribute that is new to the library: what instances have that have none of their own."""

    optional = False
    when = ""

    def __init__(self, target: str, value: object) -> None:
        self.target = target
        self.module = target.partition(":")[0]
        self._value = value
        self._owner: Any = None

    def install(self, module: ModuleType) -> None:
        """Give the class the attribute, unless it has one."""
        owner, name = _owner_of(self.target, module)
        if name not in vars(owner):
            setattr(owner, name, self._value)
            self._owner, self._name = owner, name

    def uninstall(self) -> None:
        """Take away what `install` gave."""
        owner, self._owner = self._owner, None
        if owner is not None and self._name in vars(owner):
            delattr(owner, self._name)


class Hook:
    """What a plugin does with a module by the library's own means, and how it is undone."""

    optional = False
    when = ""

    def __init__(self, module: str, use: Callable[[ModuleType], Callable[[], object]]) -> None:
        self.target = self.module = module
        self._use = use
        self._undo: Callable[[], object] | None = None

    def install(self, module: ModuleType) -> None:
        """Do it, once.

        Raises:
            TypeError: what it has returned undoes nothing.
        """
        if self._undo is None:
            undo = self._use(module)
            if not callable(undo):
                raise TypeError(f"the hook of {self.module} has returned no function that undoes it, but {type(undo)}")
            self._undo = undo

    def uninstall(self) -> None:
        """Undo it."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()


class Unbound(staticmethod):  # type: ignore[type-arg]  # it has no parameters at run time on Python 3.10
    """What stands for a function of C: it can be pickled by its name, as that can."""

    def __reduce__(self) -> str:
        return str(self.__qualname__)


def _owner_of(target: str, module: ModuleType) -> tuple[Any, str]:
    owner: Any = module
    *parents, name = target.partition(":")[2].split(".")
    for parent in parents:
        owner = getattr(owner, parent, _ABSENT)
    if owner is _ABSENT:
        raise TargetNotFoundError(f"{target} does not exist")
    return owner, name


def _function_of(attribute: Any) -> Any:
    return attribute.__func__ if isinstance(attribute, staticmethod | classmethod) else attribute


def _is_coroutine_function(function: object) -> bool:
    return bool(getattr(getattr(function, "__code__", None), "co_flags", 0) & _COROUTINE)


def _is_ours(function: Any) -> bool:
    """Return whether a function is what a `Patch` has put in: others' wrappers may copy its attributes."""
    return getattr(function, "__sw_itself__", None) is function


def without_stopped(attribute: Any) -> Any:
    """Return what was there before the patches that have come out since; what is no such patch as it is."""
    while _is_ours(function := _function_of(attribute)) and function.__sw_interceptor__ is None:
        attribute = function.__sw_replaced__
    return attribute


def _before(failed: Failed, original: Function, interceptor: Before, is_method: bool) -> Function:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            if not is_method:
                changed = interceptor(None, args, kwargs.copy())
            else:  # without an instance the library's own TypeError
                changed = interceptor(args[0], args[1:], kwargs.copy()) if args else None
            if changed:
                positional, keywords = changed
                args, kwargs = args[:is_method] + positional, dict(**keywords)  # what is no call raises here
        except Exception as error:
            failed(error)
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise

    def stop() -> None:
        nonlocal interceptor
        interceptor = _nothing_before

    wrapper.__sw_stop__ = stop  # type: ignore[attr-defined]
    return wrapper


def _within(failed: Failed, original: Function, interceptor: Within, is_method: bool) -> Function:
    """Return a coroutine function that calls the interceptor before the original, and leaves what it returns after."""

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        entered = None
        try:
            if args or not is_method:
                entered = interceptor(args[0] if is_method else None, args[1:] if is_method else args, kwargs.copy())
        except Exception as error:
            failed(error)
        try:
            result = await original(*args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            if entered is not None:
                leave(entered, error)
            raise
        if entered is not None:
            leave(entered, None)
        return result

    def leave(entered: Entered, error: BaseException | None) -> None:
        try:
            entered.leave(error)
        except Exception as failure:
            failed(failure)

    def stop() -> None:
        nonlocal interceptor
        interceptor = _nothing_before

    wrapper.__sw_stop__ = stop  # type: ignore[attr-defined]
    return wrapper


def _around(failed: Failed, original: Function, interceptor: Around, is_method: bool) -> Function:
    if _is_coroutine_function(original) or _is_coroutine_function(interceptor):  # or somebody's wrapper around one
        return _around_coroutine(failed, original, interceptor, is_method)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if is_method and not args:
            return original(**kwargs)  # called on the class without an instance: the library's own TypeError
        call = _Call(original, args[:1] if is_method else ())
        try:
            answer = interceptor(call, args[0] if is_method else None, args[1:] if is_method else args, kwargs.copy())
            if answer is call.result:
                return answer
            return _value_of(answer)
        except BaseException as error:
            if error is call.error:
                error.__traceback__ = call.traceback
                # The traceback holds this frame, and it the call: a circle. No method: the stack may be at its end.
                call.error = call.traceback = None
                raise
            if not isinstance(error, Exception):
                raise
            failed(error)
        return call.outcome(args, kwargs)

    def stop() -> None:
        nonlocal interceptor
        interceptor = _nothing_around

    wrapper.__sw_stop__ = stop  # type: ignore[attr-defined]
    return wrapper


def _around_coroutine(failed: Failed, original: Function, interceptor: Around, is_method: bool) -> Function:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if is_method and not args:
            return await original(**kwargs)
        call = _AwaitedCall(original, args[:1] if is_method else ())
        try:
            answer = await interceptor(
                call, args[0] if is_method else None, args[1:] if is_method else args, kwargs.copy()
            )
            if answer is call.result:
                return answer
            return _value_of(answer)
        except BaseException as error:
            if error is call.error:
                error.__traceback__ = call.traceback
                # The traceback holds this frame, and it the call: a circle. No method: the stack may be at its end.
                call.error = call.traceback = None
                raise
            if not isinstance(error, Exception):
                raise
            failed(error)
        return await call.outcome(args, kwargs)

    def stop() -> None:
        nonlocal interceptor
        interceptor = _nothing_around

    wrapper.__sw_stop__ = stop  # type: ignore[attr-defined]
    return wrapper


class _Call:
    """The original function as an interceptor sees it: it remembers whether it ran, and with what outcome."""

    __slots__ = ("__wrapped__", "_first", "error", "result", "traceback")

    def __init__(self, original: Function, first: tuple[Any, ...]) -> None:
        self.__wrapped__ = original
        self._first = first  # (instance,) for a method
        self.error: BaseException | None = None
        self.traceback: TracebackType | None = None
        self.result: Any = _ABSENT

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            self.result = result = self.__wrapped__(*self._first, *args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            self.error, self.traceback, self.result = error, error.__traceback__, _ABSENT
            raise
        return result

    def outcome(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return or raise what the original did; call it, with the program's own arguments, if nobody has."""
        if self.result is not _ABSENT:
            return self.result
        if self.error is not None:
            raise self.error
        return self.__wrapped__(*args, **kwargs)


class _AwaitedCall(_Call):
    """The same for a coroutine function: the outcome is that of the awaited coroutine."""

    __slots__ = ()

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            self.result = result = await self.__wrapped__(*self._first, *args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            self.error, self.traceback, self.result = error, error.__traceback__, _ABSENT
            raise
        return result

    async def outcome(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.error is None and self.result is _ABSENT:
            return await self.__wrapped__(*args, **kwargs)
        return _Call.outcome(self, args, kwargs)


def _value_of(answer: object) -> Any:
    if type(answer) is Answer:
        return answer.value
    raise TypeError(f"returned neither what the wrapped function has returned nor an Answer, but {type(answer)}")


_KINDS: dict[str, Kind] = {"around": _around, "before": _before, "within": _within}


def _nothing_before(_instance: Any, _args: Any, _kwargs: Any) -> None:
    return None


def _nothing_around(wrapped: Function, _instance: Any, args: Any, kwargs: Any) -> Any | Awaitable[Any]:
    return wrapped(*args, **kwargs)


def _dress(replacement: Any, function: Function, interceptor: object, replaced: object) -> None:
    """Give the replacement what can be seen of the original; `__wrapped__` lets `inspect.signature` find the rest."""
    # Since 3.14 annotations are evaluated when they are asked for, which fails where a name is for type checkers only.
    annotations = "__annotate__" if getattr(function, "__annotate__", None) is not None else "__annotations__"
    for name in ("__module__", "__name__", "__qualname__", "__doc__", annotations):
        value = getattr(function, name, _ABSENT)
        if value is not _ABSENT:
            setattr(replacement, name, value)
    for name, value in getattr(function, "__dict__", {}).items():
        replacement.__dict__.setdefault(name, value)
    replacement.__wrapped__ = function
    replacement.__sw_itself__ = replacement
    replacement.__sw_interceptor__ = interceptor
    replacement.__sw_replaced__ = replaced
