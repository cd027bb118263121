"""The wrappers on the path of every piece of work: where it is submitted, and where it runs.

They do what `Plugin.before` and `Plugin.intercept` could do as well, at a fraction of the cost: where nothing is
current they look at the context and call nothing. Handing work to a thread pool takes 5 µs, so a tenth of one counts.
"""

from __future__ import annotations

from . import snapshot
from ._containment import hide_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._patching import Failed
    from .plugin import Plugin

    Function = Callable[..., Any]


def capturing(plugin: Plugin, failed: Failed, original: Function, interceptor: Function, is_method: bool) -> Function:
    """Return a wrapper that calls the interceptor with a snapshot before the original; see `Plugin.capture`."""
    stopped = False

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        context = snapshot.get_current()
        if (context or plugin.captures_always) and not stopped:
            try:
                captured = snapshot.ContextSnapshot(context) if plugin.only_restores else plugin.captured()
                if captured is None or (is_method and not args):
                    changed = None
                elif is_method:
                    changed = interceptor(captured, args[0], args[1:], kwargs.copy())
                else:
                    changed = interceptor(captured, None, args, kwargs.copy())
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
        nonlocal stopped
        stopped = True

    wrapper.__sw_stop__ = stop  # type: ignore[attr-defined]
    return wrapper


def hanging(plugin: Plugin, failed: Failed, original: Function, interceptor: Function, _is_method: bool) -> Function:
    """Return a wrapper that hangs the current context on the item which the original has made; see `Plugin.carry`."""

    def ask(item: Any) -> None:
        if (captured := plugin.captured()) is not None:
            interceptor(captured, item)

    source = _HANGING
    if plugin.captures_always:
        source = source.replace("if sw_context:", "if True:")
    if not plugin.only_restores:
        source = source.replace("{instance}._sw_context = sw_context", "sw_ask({instance})")
    return _compiled(source, original, sw_ask=ask, sw_failed=failed)


def lending(
    plugin: Plugin, attribute: str, kind: type, failed: Failed, original: Function, interceptor: Function
) -> Function:
    """Return a wrapper that lends an instance an attribute while the original runs; see `Plugin.lend`."""
    source = _LENDING.replace("sw_attribute", attribute)
    if plugin.captures_always:
        source = source.replace("if not sw_context:", "if False:")
    others = {"sw_lent_by": interceptor, "sw_kind": kind, "sw_failed": failed, "sw_hide_frame": hide_frame}
    return _compiled(source, original, **others)


def carrying(_failed: Failed, original: Function, _interceptor: object, _is_method: bool) -> Function:
    """Return a wrapper that calls a method in the context that was hung on its instance; see `Plugin.carry`."""
    return _compiled(_RESTORING, original, sw_restored_elsewhere=_restored_elsewhere)


def detaching(original: Function, unless_empty: str) -> Function:
    """Return a wrapper that calls a method in the context that its instance has, else in none; see `Plugin.detach`."""
    source = _RESTORING.replace("{instance}._sw_context", 'getattr({instance}, "_sw_context", None)')
    if unless_empty:
        source = source.replace("if False:", f"if not {{instance}}.{unless_empty}:")
    return _compiled(source, original, sw_restored_elsewhere=_restored_elsewhere)


def _restored_elsewhere() -> None:
    snapshot.restores_out_of_order += 1


# All are compiled with the very parameters of the original: passing `*args, **kwargs` on would be half of their cost.
# What they ask for on the way of every piece of work they ask for in the fewest steps.

_HANGING = """
def wrapper({parameters}):
    sw_result = sw_original({parameters})
    sw_context = sw_snapshot.get_current()
    if sw_context:
        try:
            {instance}._sw_context = sw_context
        except Exception as sw_error:
            sw_failed(sw_error)
    return sw_result
"""

_LENDING = """
def wrapper({parameters}):
    sw_context = sw_snapshot.get_current()
    if not sw_context:
        return sw_original({parameters})
    sw_lent = None
    try:
        if "sw_attribute" not in {instance}.__dict__:
            sw_lent = sw_lent_by(sw_context, {instance})
            if type(sw_lent) is sw_kind:
                {instance}.sw_attribute = sw_lent
            elif sw_lent is not None:
                raise TypeError(f"returned no {{sw_kind.__name__}}, but {{type(sw_lent)}}")
    except Exception as sw_error:
        sw_failed(sw_error)
    try:
        return sw_original({parameters})
    except BaseException as sw_error:
        sw_hide_frame(sw_error)
        raise
    finally:
        if sw_lent is not None:
            {instance}.__dict__.pop("sw_attribute", None)
        del {names}, sw_context, sw_lent
"""

_RESTORING = """
def wrapper({parameters}):
    if False:
        return sw_original({parameters})
    try:
        sw_context = {instance}._sw_context
    except AttributeError:
        sw_context = None
    if sw_context is None and not sw_snapshot.get_current():
        try:
            return sw_original({parameters})
        finally:
            # An exception that the original caught and kept holds this frame, which must hold on to nothing.
            del {names}
    sw_token = sw_snapshot._current.set(sw_context or sw_snapshot._empty)
    try:
        return sw_original({parameters})
    finally:
        try:
            sw_snapshot._current.reset(sw_token)
        except (ValueError, RuntimeError):
            sw_restored_elsewhere()
        del {names}, sw_token, sw_context
"""

_PASSING = """
def wrapper({parameters}):
    return sw_original({parameters})
"""


def _compiled(source: str, original: Function, **others: object) -> Function:
    parameters, names, instance = "*args, **kwargs", "args, kwargs", "(args[0] if args else None)"
    code = getattr(original, "__code__", None)
    if code is not None and code.co_argcount and _has_plain_parameters(original):
        parameters = names = ", ".join(code.co_varnames[: code.co_argcount])
        instance = code.co_varnames[0]

    def made_of(source: str) -> Function:
        variables: dict[str, Any] = {"sw_original": original, "sw_snapshot": snapshot, **others}
        exec(source.format(parameters=parameters, names=names, instance=instance), variables)
        return variables["wrapper"]  # type: ignore[no-any-return]

    wrapper: Any = made_of(source)

    def stop() -> None:
        wrapper.__code__ = made_of(_PASSING).__code__

    wrapper.__sw_stop__ = stop
    return wrapper  # type: ignore[no-any-return]


def _has_plain_parameters(function: Any) -> bool:
    """Return whether a function has only parameters without defaults that can be passed by position."""
    code = function.__code__
    varargs_or_keywords = code.co_flags & 0x0C  # inspect.CO_VARARGS, CO_VARKEYWORDS
    return not (varargs_or_keywords or code.co_kwonlyargcount or code.co_posonlyargcount or function.__defaults__)
