"""`opentelemetry.context.detach` that never fails out loud, also for the spans that the program makes itself.

A token belongs to the `contextvars.Context` in which it was made. What leaves its span in another one (an async
generator that the event loop closes, a context manager that is left in another task) makes `detach` log an ERROR, and
leaves the span current where it was made. What leaves two spans of one context in the wrong order, as generators do,
makes the first one current again, which has ended. Both are counted here, and put right as far as that can be known.

All ways to `detach` end in one method of the runtime context, under whatever name the program holds them, so it is
that method which is replaced. It calls as few Python functions as OpenTelemetry's own.
"""

from __future__ import annotations

import sys

from . import _imports, snapshot
from ._containment import contain
from ._patching import Patch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context as Variables
    from contextvars import ContextVar, Token
    from types import ModuleType
    from typing import Any
    from weakref import WeakKeyDictionary, ref

    from opentelemetry.context import Context

    from ._patching import Failed

PLACE = "putting a context right"

# The spans that were left before one inside them: what was current around each, and where.
_left: WeakKeyDictionary[Any, tuple[Context | None, ref[Variables]]]


def _detaching(_failed: Failed, original: Any, _interceptor: object, _is_method: bool) -> Callable[..., None]:
    """Return what stands for `ContextVarsRuntimeContext.detach`, see `Patch`."""
    global _left
    from contextvars import Token
    from weakref import WeakKeyDictionary

    _left = WeakKeyDictionary()
    left: object = vars(_left)["data"]  # the plain dictionary in it: asking that one costs nothing
    missing = Token.MISSING
    key, recorded, active = "", None, True

    def detach(runtime: Any, token: Any) -> None:
        if not active:
            return original(runtime, token)  # type: ignore[no-any-return]
        current = runtime._current_context
        span = current.get().get(key)
        try:
            if left:
                return _leave(current, token, key)
            if recorded in type(span).__mro__:  # `issubclass` would call the SDK's ABCMeta, in Python
                around = token.old_value
                outer = around.get(key) if around is not missing else None
                # A span's parent is the very object that the span around it has: then this is left in order.
                if span._parent is not getattr(outer, "_context", None) and span is not outer:
                    return _leave(current, token, key)
            current.reset(token)
        except ValueError:
            _leave_elsewhere(current, token, key)
        except RuntimeError:  # left already
            snapshot.restores_out_of_order += 1

    def sdk_arrived(module: Any) -> None:
        nonlocal key, recorded
        key, recorded = sys.modules["opentelemetry.trace.propagation"]._SPAN_KEY, module._Span

    def stop() -> None:
        nonlocal active
        active = False
        _imports.forget("opentelemetry.sdk.trace", sdk_arrived)

    _imports.when_imported("opentelemetry.sdk.trace", sdk_arrived)
    detach.__sw_stop__ = stop  # type: ignore[attr-defined]
    return detach


def _silenced(_failed: Failed, original: Any, _interceptor: object, _is_method: bool) -> Callable[..., None]:
    """Return what stands for the `detach` of a runtime of whose insides nothing is known."""
    active = True

    def detach(runtime: Any, token: Any) -> None:
        try:
            original(runtime, token)
        except Exception:
            if not active:
                raise
            snapshot.restores_out_of_order += 1

    def stop() -> None:
        nonlocal active
        active = False

    detach.__sw_stop__ = stop  # type: ignore[attr-defined]
    return detach


def _leave(current: ContextVar[Context], token: Token[Context], key: str) -> None:
    """Detach where the current span may not be the one that this token is of.

    What is left first takes all inside it along, as `reset` does. What was taken along changes nothing when it is left
    itself, and what has been left becomes current no more.
    """
    from weakref import ref

    now, span, around = current.get(), _span_of(token), _around(token)
    try:
        current.reset(token)
    except ValueError:
        return _leave_elsewhere(current, token, key)
    except RuntimeError:
        snapshot.restores_out_of_order += 1
        return
    home = _home_of(token)
    if home is None:
        return
    if span is not None and now.get(key) is not span:
        snapshot.restores_out_of_order += 1
        if _has_been_left(around, home, key):
            current.set(now)
        _left[span] = around, ref(home)
    elif _has_been_left(around, home, key):
        while around is not None and _has_been_left(around, home, key):
            around = _left[around.get(key)][0]
        current.set(around if around is not None else snapshot._empty)


def _leave_elsewhere(current: ContextVar[Context], token: Token[Context], key: str) -> None:
    """Detach in another `contextvars.Context` than the token's."""
    span, home = _span_of(token), _home_of(token)
    if span is not None:
        put_right(current, token, lambda context: context.get(key) is span)
        return
    snapshot.restores_out_of_order += 1
    # What the program has attached is known only as long as nothing else is current there.
    if home is not None and current.get() is home.get(current):
        around = _around(token)
        current.set(around if around is not None else snapshot._empty)


def put_right(current: Any, token: Any, is_left: Callable[[Context], bool]) -> None:
    """Take a context that is left where its token is not valid out of the context here, and out of the token's.

    `is_left` says whether it is the current one. The counter is kept here.
    """
    snapshot.restores_out_of_order += 1
    try:
        if is_left(current.get()):
            around = _around(token)
            current.set(around if around is not None else snapshot._empty)
        home = _home_of(token)
        if home is not None and (there := home.get(current)) is not None and is_left(there) and _is_safe_to_enter():
            home.run(current.reset, token)
    except RuntimeError:  # it is running in another thread, or further out
        pass
    except Exception as error:
        contain(PLACE, error)


def _has_been_left(context: Context | None, home: Variables, key: str) -> bool:
    left = _left.get(context.get(key)) if context is not None and context.get(key) is not None else None
    return left is not None and left[1]() is home


def _around(token: Any) -> Context | None:
    """Return what was current before the token was made, None for nothing."""
    return None if token.old_value is token.MISSING else token.old_value


def _home_of(token: Any) -> Variables | None:
    """Return the `contextvars.Context` in which a token was made, of which it does not tell otherwise."""
    from contextvars import Context as Variables
    from gc import get_referents

    return next((referent for referent in get_referents(token) if isinstance(referent, Variables)), None)


def _span_of(token: Token[Context]) -> Any:
    """Return the span that `use_span` is leaving with this token; None where the program attaches by itself."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"] in (__name__, "opentelemetry.context"):
        frame = frame.f_back
    variables = frame.f_locals if frame.f_code.co_name == "use_span" else {}
    return variables.get("span") if variables.get("token") is token else None


def _is_safe_to_enter() -> bool:
    """Return whether no other thread can be in the middle of reading a context that is entered here."""
    return bool(getattr(sys, "_is_gil_enabled", bool)()) or not hasattr(sys, "_is_gil_enabled")


_TARGET = "opentelemetry.context:_RUNTIME_CONTEXT.__class__.detach"
_of_the_standard_runtime = Patch(_TARGET, _detaching, _detaching)
_of_another_runtime = Patch(_TARGET, _silenced, _silenced)


def install(module: ModuleType) -> None:
    """Put it in; `module` is `opentelemetry.context`."""
    runtime = module._RUNTIME_CONTEXT
    if type(runtime).__module__ == "opentelemetry.context.contextvars_context":
        _of_the_standard_runtime.install(module)
    else:  # OTEL_PYTHON_CONTEXT chose it
        _of_another_runtime.install(module)


def uninstall() -> None:
    """Take it out again."""
    _of_the_standard_runtime.uninstall()
    _of_another_runtime.uninstall()
