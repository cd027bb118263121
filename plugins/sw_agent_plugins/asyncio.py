"""How work travels in `asyncio`: tasks and callbacks carry the context natively; `run_in_executor` hands it to nobody.

An executor of the standard library's gets a snapshot with each item from the plugin concurrent-futures. For any other
one, or without that plugin, the function itself has to bring it. Nothing is done to tasks.
"""

from __future__ import annotations

import sys
from functools import partial

from sw_agent.plugin import PROPAGATION, ContextSnapshot, Plugin, is_installed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Call = tuple[tuple[Any, ...], dict[str, Any]]

plugin = Plugin("asyncio", options=PROPAGATION)


@plugin.capture("asyncio.base_events:BaseEventLoop.run_in_executor")
@plugin.capture("uvloop:Loop.run_in_executor", optional=True)
def let_the_function_bring_its_context(
    snapshot: ContextSnapshot, loop: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call | None:
    """Wrap the function, for an executor of which no plugin knows."""
    if len(args) < 2:
        return None
    executor, function, *rest = args
    if not callable(function) or _carries_context(executor or getattr(loop, "_default_executor", None)):
        return None
    wrapped = snapshot.wrap(function) if plugin.only_restores else partial(_run_as_hop, snapshot, function)
    return (executor, wrapped, *rest), kwargs


def _run_as_hop(snapshot: ContextSnapshot, function: Callable[..., Any], *args: Any) -> Any:
    with plugin.resume(snapshot, function):
        return function(*args)


def _carries_context(executor: object) -> bool:
    if not is_installed("concurrent-futures"):
        return False
    if executor is None:
        return True  # the loop is about to make a thread pool
    submit = getattr(type(executor), "submit", None)
    modules = ("thread", "ThreadPoolExecutor"), ("process", "ProcessPoolExecutor")
    pools = (getattr(sys.modules.get(f"concurrent.futures.{module}"), name, None) for module, name in modules)
    return any(pool is not None and submit is pool.submit for pool in pools)
