"""Put a plugin's interceptors around a library's functions, take them out again, and contain what they raise.

A function is replaced by a plain function that keeps its name, signature, docstring and module. The original is called
from here, not from the plugin: whatever an interceptor raises, the original runs exactly once, and its result or its
exception is what the program gets.
"""

from __future__ import annotations

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
    # (target, original, interceptor, whether the original is a method) -> what to put in its place
    Kind: TypeAlias = Callable[[str, Function, Any, bool], Function]

_ABSENT = object()
_COROUTINE = 0x80  # inspect.CO_COROUTINE


class TargetNotFoundError(AttributeError):
    """The library has no such attribute: another version than the plugin was written for."""


class Patch:
    """One interceptor at one target, `"module:Class.attribute"`.

    `kind` is "around", "before" or "within" (see `Plugin.intercept`, `before` and `within`), or what makes the
    replacement: a function that has an attribute `__sw_stop__`, to be called when it shall intercept no more. An
    `optional` target may be missing. `when` names an option of the plugin without which the target is left as it is.
    """

    def __init__(
        self, target: str, interceptor: object, kind: str | Kind, *, optional: bool = False, when: str = ""
    ) -> None:
        self.target = target
        self.optional = optional
        self.when = when
        self.module = target.partition(":")[0]
        self._interceptor = interceptor
        self._replace = _KINDS[kind] if isinstance(kind, str) else kind
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
        if getattr(function, "__sw_interceptor__", None) is self._interceptor:
            # The name was bound, by `from … import`, to a function where this interceptor already is.
            self._owner, self._name, self._original, self._replacement = owner, name, function.__wrapped__, raw
            return
        is_method = isinstance(owner, type) and not isinstance(found, staticmethod) and hasattr(found, "__get__")
        replacement: Any = self._replace(self.target, function, self._interceptor, is_method)
        _dress(replacement, function, self._interceptor)
        if isinstance(found, staticmethod | classmethod):
            replacement = type(found)(replacement)
        elif not hasattr(found, "__get__"):
            # A function of C binds to no instance where a class keeps it as an attribute; neither may this one.
            replacement = _Unbound(replacement)
        setattr(owner, name, replacement)
        self._owner, self._name, self._original, self._replacement = owner, name, raw, replacement

    def uninstall(self) -> None:
        """Put the very object back that was there, unless somebody else has patched since; stop intercepting anyway."""
        owner, replacement = self._owner, self._replacement
        if replacement is None:
            return
        self._owner = self._replacement = None
        _function_of(replacement).__sw_stop__()  # the program may hold it under a name of its own
        if vars(owner).get(self._name) is not replacement:
            return
        if self._original is _ABSENT:
            delattr(owner, self._name)
        else:
            setattr(owner, self._name, self._original)

    def _resolve(self, module: ModuleType) -> tuple[Any, str]:
        owner, name = _owner_of(self.target, module)
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
        """Do it, once."""
        if self._undo is None:
            self._undo = self._use(module)

    def uninstall(self) -> None:
        """Undo it."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()


class _Unbound(staticmethod):  # type: ignore[type-arg]  # it has no parameters at run time on Python 3.10
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


def _before(target: str, original: Function, interceptor: Before, is_method: bool) -> Function:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            if not is_method:
                args, kwargs = interceptor(None, args, kwargs) or (args, kwargs)
            elif args and (changed := interceptor(args[0], args[1:], kwargs)):  # else the library's own TypeError
                args, kwargs = (args[0], *changed[0]), changed[1]
        except Exception as error:
            contain(target, error)
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


def _within(target: str, original: Function, interceptor: Within, is_method: bool) -> Function:
    """Return a coroutine function that calls the interceptor before the original, and leaves what it returns after."""

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        entered = None
        try:
            if args or not is_method:
                entered = interceptor(args[0] if is_method else None, args[1:] if is_method else args, kwargs)
        except Exception as error:
            contain(target, error)
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
            contain(target, failure)

    def stop() -> None:
        nonlocal interceptor
        interceptor = _nothing_before

    wrapper.__sw_stop__ = stop  # type: ignore[attr-defined]
    return wrapper


def _around(target: str, original: Function, interceptor: Around, is_method: bool) -> Function:
    if getattr(getattr(original, "__code__", None), "co_flags", 0) & _COROUTINE:
        return _around_coroutine(target, original, interceptor, is_method)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if is_method and not args:
            return original(**kwargs)  # called on the class without an instance: the library's own TypeError
        call = _Call(original, args[:1] if is_method else ())
        try:
            return interceptor(call, args[0] if is_method else None, args[1:] if is_method else args, kwargs)
        except BaseException as error:
            if error is call.error:
                error.__traceback__ = call.traceback
                # The traceback holds this frame, and it the call: a circle. No method: the stack may be at its end.
                call.error = call.traceback = None
                raise
            if not isinstance(error, Exception):
                raise
            contain(target, error)
        return call.outcome(args, kwargs)

    def stop() -> None:
        nonlocal interceptor
        interceptor = _nothing_around

    wrapper.__sw_stop__ = stop  # type: ignore[attr-defined]
    return wrapper


def _around_coroutine(target: str, original: Function, interceptor: Around, is_method: bool) -> Function:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if is_method and not args:
            return await original(**kwargs)
        call = _AwaitedCall(original, args[:1] if is_method else ())
        try:
            return await interceptor(call, args[0] if is_method else None, args[1:] if is_method else args, kwargs)
        except BaseException as error:
            if error is call.error:
                error.__traceback__ = call.traceback
                # The traceback holds this frame, and it the call: a circle. No method: the stack may be at its end.
                call.error = call.traceback = None
                raise
            if not isinstance(error, Exception):
                raise
            contain(target, error)
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
            self.error, self.traceback = error, error.__traceback__
            raise
        return result

    def outcome(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return or raise what the original did; call it, with the program's own arguments, if nobody has."""
        if self.error is not None:
            raise self.error
        if self.result is _ABSENT:
            return self.__wrapped__(*args, **kwargs)
        return self.result


class _AwaitedCall(_Call):
    """The same for a coroutine function: the outcome is that of the awaited coroutine."""

    __slots__ = ()

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            self.result = result = await self.__wrapped__(*self._first, *args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            self.error, self.traceback = error, error.__traceback__
            raise
        return result

    async def outcome(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.error is None and self.result is _ABSENT:
            return await self.__wrapped__(*args, **kwargs)
        return _Call.outcome(self, args, kwargs)


_KINDS: dict[str, Kind] = {"around": _around, "before": _before, "within": _within}


def _nothing_before(_instance: Any, _args: Any, _kwargs: Any) -> None:
    return None


def _nothing_around(wrapped: Function, _instance: Any, args: Any, kwargs: Any) -> Any | Awaitable[Any]:
    return wrapped(*args, **kwargs)


def _dress(replacement: Any, function: Function, interceptor: object) -> None:
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
    replacement.__sw_interceptor__ = interceptor
