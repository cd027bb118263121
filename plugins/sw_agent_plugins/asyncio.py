"""How work travels in `asyncio`: tasks and callbacks carry the context natively; `run_in_executor` hands it to nobody.

An executor of the standard library's gets a snapshot with each item from the plugin concurrent-futures. For any other
one, or without that plugin, the function itself has to bring it. Nothing is done to tasks, unless the option
`task_spans` asks for a span for each.

The selector loop watches a connection with whatever context is current where it starts to: when a request's task
resumes reading, what is received from then on, and the tasks made of it, would be that request's. So a connection is
watched in the context that it was made in. A connection that a server accepts is nobody's, whoever started the server.
(uvloop's transports keep the context that they were made in; only the server's has to be seen to.)
"""

from __future__ import annotations

import sys
from functools import partial
from time import perf_counter_ns

from sw_agent.plugin import (
    EMPTY,
    PROPAGATION,
    RELATION,
    ContextSnapshot,
    Entry,
    Option,
    Plugin,
    is_installed,
    relations,
)
from sw_agent.snapshot import current_context

from ._asyncio_tasks import Step, TaskSpan, has_begun, task_of, without_our_frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    Call = tuple[tuple[Any, ...], dict[str, Any]]

plugin = Plugin(
    "asyncio",
    options=[
        *PROPAGATION,
        Option("task_spans", False, "a span for each task, with its steps, and how long they took and had to wait"),
        relations(
            RELATION.choices,
            "background-*=link",
            "the relation of the spans of some tasks, such as background-*=link: the first pattern that fits the "
            "task's name or its coroutine's counts",
        ),
    ],
)


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


_POOLS = (
    ("concurrent.futures.thread", "ThreadPoolExecutor"),
    ("concurrent.futures.process", "ProcessPoolExecutor"),
)


def _carries_context(executor: object) -> bool:
    if not is_installed("concurrent-futures"):
        return False
    if executor is None:
        return True  # the loop is about to make a thread pool
    submit = getattr(type(executor), "submit", None)
    for module, name in _POOLS:
        pool = getattr(sys.modules.get(module), name, None)
        if pool is not None and submit is pool.submit:
            return True
    return False


# Connections


@plugin.before("asyncio.selector_events:_SelectorTransport.__init__")
@plugin.before("asyncio.sslproto:SSLProtocol.__init__")
@plugin.before("asyncio.unix_events:_UnixReadPipeTransport.__init__")
@plugin.before("asyncio.unix_events:_UnixWritePipeTransport.__init__")
def remember_whose_it_is(connection: Any, _args: Any, _kwargs: Any) -> None:
    """Keep the context that a connection is made in."""
    connection._sw_context = current_context() or None


plugin.detach("asyncio.selector_events:_SelectorTransport._add_reader")
plugin.detach("asyncio.unix_events:_UnixReadPipeTransport.resume_reading")
plugin.detach("asyncio.sslproto:SSLProtocol._resume_reading", optional=True)  # from Python 3.11


@plugin.intercept("asyncio.selector_events:BaseSelectorEventLoop._start_serving")
def listen_for_nobody(wrapped: Callable[..., None], _loop: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Listen in an empty context, which the connections will have: that of the server, which has one since 3.15."""
    variables = kwargs.get("context")
    if variables is not None:
        EMPTY.into(variables)
    with Entry(None):
        wrapped(*args, **kwargs)


@plugin.intercept("asyncio.selector_events:BaseSelectorEventLoop._add_writer")
def write_on_for_the_connection(
    wrapped: Callable[..., Any], _loop: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Let a connection write what it could not write at once as its own; another callback is its registrar's."""
    connection = getattr(args[1], "__self__", None) if len(args) > 1 else None
    if connection is None or not hasattr(connection, "_sw_context"):
        return wrapped(*args, **kwargs)
    with Entry(connection._sw_context):
        return wrapped(*args, **kwargs)


@plugin.intercept("uvloop:Loop.create_server", optional=True)
@plugin.intercept("uvloop:Loop.create_unix_server", optional=True)
async def serve_for_nobody(
    wrapped: Callable[..., Awaitable[Any]], _loop: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Start a server in an empty context, which its connections will have."""
    with Entry(None):
        return await wrapped(*args, **kwargs)


# Tasks, where the options ask for their spans


@plugin.before("asyncio.base_events:BaseEventLoop.call_soon", when="task_spans")
@plugin.before("uvloop:Loop.call_soon", optional=True, when="task_spans")
def run_the_step_in_the_span(loop: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Let each step of a task run in the task's span; other callbacks stay as they are."""
    callback = args[0] if args else None
    task = task_of(callback)
    if task is None or callback is None:
        return None
    span = getattr(task, "_sw_span", None)
    if span is None:
        span = task._sw_span = vars(loop).pop("_sw_creating", None) or TaskSpan(plugin)
    return (Step(task, callback, span), *args[1:]), kwargs


@plugin.intercept("asyncio.base_events:BaseEventLoop.create_task", when="task_spans")
@plugin.intercept("uvloop:Loop.create_task", optional=True, when="task_spans")
def start_with_the_task(wrapped: Callable[..., Any], loop: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Start the span before the task where that may take its first step at once, as eager tasks do."""
    if (loop.get_task_factory() is None and not kwargs.get("eager_start")) or not args:
        return without_our_frames(wrapped(*args, **kwargs))
    span, context = TaskSpan(plugin), kwargs.get("context")
    run = _call if context is None else context.run
    entry = run(span.start, kwargs.get("name"), args[0])
    run(entry.enter)
    vars(loop)["_sw_creating"] = span
    begun = perf_counter_ns()
    try:
        task = wrapped(*args, **kwargs)
    except BaseException as error:
        span.end(error)
        raise
    finally:
        vars(loop).pop("_sw_creating", None)
        run(entry.leave)
    if has_begun(task):
        span.count(perf_counter_ns() - begun)
    if task.done():
        span.end(None if task.cancelled() else getattr(task, "_exception", None))
    elif getattr(task, "_sw_span", None) is None:  # it waits for a future, which wakes it by `call_soon`
        task._sw_span = span
    return without_our_frames(task)


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)
