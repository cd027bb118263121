"""The wrappers on the path of every piece of work: where it is submitted, and where it runs.

They do what `Plugin.before` and `Plugin.intercept` could do as well, at a fraction of the cost: where nothing is
current they look at the context and call nothing. Handing work to a thread pool takes 5 µs, so a tenth of one counts.
"""

from __future__ import annotations

from . import snapshot
from ._containment import contain, hide_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .plugin import Plugin

    Function = Callable[..., Any]


def capturing(plugin: Plugin, target: str, original: Function, interceptor: Function, is_method: bool) -> Function:
    """Return a wrapper that calls the interceptor with a snapshot before the original; see `Plugin.capture`."""
    stopped = False

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        current = snapshot._current
        context = current.get() if current is not None else None
        if (context or plugin.captures_always) and not stopped:
            try:
                captured = snapshot.ContextSnapshot(context) if plugin.only_restores else plugin.captured()
                if captured is None:
                    pass
                elif not is_method:
                    args, kwargs = interceptor(captured, None, args, kwargs) or (args, kwargs)
                elif args and (changed := interceptor(captured, args[0], args[1:], kwargs)):
                    args, kwargs = (args[0], *changed[0]), changed[1]
            except Exception as error:
                contain(target, error)
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise

    def stop() -> None:
        nonlocal stopped
        stopped = True

    wrapper.__sw_stop__ = stop  # type: ignore[attr-defined]
    return wrapper


def hanging(plugin: Plugin, target: str, original: Function, interceptor: Function, _is_method: bool) -> Function:
    """Return a wrapper that hangs the current context on the item which the original has made; see `Plugin.carry`."""

    def ask(item: Any) -> None:
        try:
            if (captured := plugin.captured()) is not None:
                interceptor(captured, item)
        except Exception as error:
            contain(target, error)

    return _compiled(_HANGING, original, sw_ask=ask, sw_contain=contain, sw_target=target, sw_plugin=plugin)


def restoring(unless_empty: str, original: Function) -> Function:
    """Return a wrapper that calls a method in the context that hangs on its instance, else in an empty one.

    See `Plugin.carry` and `Plugin.detach`.
    """
    source = _RESTORING.replace("{condition}", f" and {{instance}}.{unless_empty}" if unless_empty else "")
    return _compiled(source, original, sw_left_elsewhere=_left_elsewhere)


def _left_elsewhere() -> None:
    snapshot.restores_out_of_order += 1


# Both are compiled with the very parameters of the original: passing `*args, **kwargs` on would be half of their cost.

_HANGING = """
def wrapper({parameters}):
    sw_result = sw_original({parameters})
    sw_current = sw_snapshot._current
    sw_context = sw_current.get() if sw_current is not None else None
    if sw_context and sw_plugin.only_restores:
        try:
            {instance}._sw_context = sw_context
        except Exception as sw_error:
            sw_contain(sw_target, sw_error)
    elif sw_context or sw_plugin.captures_always:
        sw_ask({instance})
    return sw_result
"""

_RESTORING = """
def wrapper({parameters}):
    sw_current = sw_snapshot._current
    sw_token = sw_context = None
    if sw_current is not None{condition}:
        sw_context = getattr({instance}, "_sw_context", None)
        if sw_context is not None:
            sw_token = sw_current.set(sw_context)
        elif sw_current.get():
            sw_token = sw_current.set(sw_snapshot._empty)
    try:
        return sw_original({parameters})
    finally:
        if sw_token is not None:
            try:
                sw_current.reset(sw_token)
            except (ValueError, RuntimeError):
                sw_left_elsewhere()
        # An exception that the original caught and kept holds this frame, which must hold on to nothing.
        del {names}, sw_token, sw_context
"""


class _Stopped:
    """What a wrapper sees in the place of the context and of its plugin when that has been uninstalled."""

    _current = None
    captures_always = only_restores = False


def _compiled(source: str, original: Function, **others: object) -> Function:
    parameters, names, instance = "*args, **kwargs", "args, kwargs", "(args[0] if args else None)"
    code = getattr(original, "__code__", None)
    if code is not None and code.co_argcount and _has_plain_parameters(original):
        parameters = names = ", ".join(code.co_varnames[: code.co_argcount])
        instance = code.co_varnames[0]
    variables: dict[str, Any] = {"sw_original": original, "sw_snapshot": snapshot, **others}
    exec(source.format(parameters=parameters, names=names, instance=instance), variables)
    wrapper: Function = variables["wrapper"]

    def stop() -> None:
        variables.update(sw_snapshot=_Stopped, sw_plugin=_Stopped)

    wrapper.__sw_stop__ = stop  # type: ignore[attr-defined]
    return wrapper


def _has_plain_parameters(function: Any) -> bool:
    """Return whether a function has only parameters without defaults that can be passed by position."""
    code = function.__code__
    varargs_or_keywords = code.co_flags & 0x0C  # inspect.CO_VARARGS, CO_VARKEYWORDS
    return not (varargs_or_keywords or code.co_kwonlyargcount or code.co_posonlyargcount or function.__defaults__)
