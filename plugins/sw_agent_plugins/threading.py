"""How work travels in `threading`: `Thread.start()` starts an OS thread that calls `Thread._bootstrap`, and so `run()`.

A new thread natively begins with an empty context. So the function that the OS thread is started with is called in a
context that holds the starter's span and baggage and nothing else, by `contextvars.Context.run` alone: no frame of the
agent's is in the thread. `start()` finds that in the place of `_bootstrap`; after it the `Thread` object is as the
program made it. For threads started by `_thread` itself the same is done there.

Since Python 3.14 `Thread.start()` makes that context, unless the program has given one to the `Thread`, and `run()` is
called in it: there the agent makes it instead. With `-X thread_inherit_context=1`, the default of a free-threaded
Python, it is a copy of the starter's, and what is left is to take the span out for threads that shall not have it.

Threads that are known to outlive the request which happened to start them belong to nobody.
"""

from __future__ import annotations

import sys
from contextvars import Context, copy_context
from functools import partial
from types import MethodType

from sw_agent.plugin import EMPTY, PROPAGATION, ContextSnapshot, Detached, Option, Plugin, hide_frame
from sw_agent.snapshot import alone, current_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Thread
    from typing import Any

    Call = tuple[tuple[Any, ...], dict[str, Any]]

HAS_CONTEXT = sys.version_info >= (3, 14)  # `Thread(context=…)`, and `start()` gives each thread a context
INHERITS = bool(getattr(sys.flags, "thread_inherit_context", False))

plugin = Plugin(
    "threading",
    options=[
        *PROPAGATION,
        Option("detached", [], "threads that belong to nobody: dotted names of their function, class or module"),
    ],
)
detached = Detached(
    plugin,
    "apscheduler.schedulers",
    "asyncio.base_events.BaseEventLoop._do_shutdown",
    "asyncio.unix_events.ThreadedChildWatcher",
    "asyncio.unix_events._ThreadedChildWatcher",  # 3.14
    "concurrent.futures.process._ExecutorManagerThread",
    "concurrent.futures.thread._worker",
    "eventlet.tpool",
    "gevent.threadpool",
    "grpc",
    "kafka",
    "logging.config",
    "logging.handlers.QueueListener",
    "multiprocessing.managers.Server",
    "multiprocessing.pool.Pool",
    "multiprocessing.pool.worker",
    "multiprocessing.queues.Queue",
    "multiprocessing.resource_sharer",
    "opentelemetry",
    "psycopg_pool",
    "pymongo",
    "sentry_sdk",
    "sw_agent",
    "watchdog.observers",
)


class InContext(partial):  # type: ignore[type-arg]  # it has no parameters at run time on Python 3.10
    """What an OS thread is started with in a function's place; a message about the thread shows the function.

    Eventlet asks for the function's module and its `Thread`, up to Python 3.12, before it sees to the end of `join()`.
    """

    __module__ = "threading"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.args[0], name)

    def __repr__(self) -> str:
        return repr(self.args[0])


if HAS_CONTEXT:

    @plugin.capture("threading:Thread.start")
    def give_the_thread_its_context(snapshot: ContextSnapshot, thread: Thread, _args: Any, _kwargs: Any) -> None:
        """Do what `start()` would do next, unless the program has given the thread a context of its own."""
        if getattr(thread, "_context", thread) is not None:
            return
        variables: Any
        if _belongs_to_nobody(thread):
            variables = EMPTY.into(_native_variables())
        elif not plugin.only_restores:
            variables = InHop(snapshot, _native_variables(), thread)
        elif INHERITS:
            return
        else:
            variables = snapshot.alone()
        vars(thread)["_context"] = ForOneRun(variables)

else:

    @plugin.lend("threading:Thread.start", "_bootstrap", InContext)
    def begin_in_context_of_starter(context: Any, thread: Thread) -> InContext | None:
        """Let the OS thread call `_bootstrap` in the starter's context."""
        if _belongs_to_nobody(thread):
            return None
        run: Any
        if plugin.only_restores:
            run = alone(context).run
        elif (snapshot := plugin.captured()) is not None:
            run = InHop(snapshot, Context(), thread).run
        else:
            return None
        return InContext(run, thread._bootstrap)  # type: ignore[attr-defined]


@plugin.capture("_thread:start_new_thread", after="threading")
@plugin.capture("_thread:start_new", optional=True, after="threading")
@plugin.capture("_thread:start_joinable_thread", optional=True, after="threading")
@plugin.capture("gevent.thread:start_new_thread", optional=True)
@plugin.capture("gevent.thread:start_joinable_thread", optional=True)
def start_in_context_of_starter(
    snapshot: ContextSnapshot, _: None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call | None:
    """Let the OS thread call the function in the starter's context; misuse is left to the library."""
    if not args or not callable(args[0]):
        return None
    function = args[0]
    owner = function.__self__ if type(function) is MethodType else None
    if type(function) is InContext or issubclass(type(owner), sys.modules["threading"].Thread):
        return None  # `Thread.start` has seen to it
    # Of another copy of `threading`, which eventlet makes for threads of its own.
    thread = owner if owner is not None and function.__func__.__qualname__ == "Thread._bootstrap" else None
    if detached.lists(function) if thread is None else _belongs_to_nobody(thread):
        return None
    run = snapshot.alone().run if plugin.only_restores else InHop(snapshot, Context(), thread).run
    return (InContext(run, function), *args[1:]), kwargs


if INHERITS:

    @plugin.before("threading:Thread.start")
    def let_the_thread_inherit_no_span(thread: Thread, _args: Any, _kwargs: Any) -> None:
        """Take away what the thread would inherit where the options ask for nothing."""
        if plugin.captured() is None and current_context() and getattr(thread, "_context", thread) is None:
            vars(thread)["_context"] = EMPTY.into(copy_context())


class ForOneRun:
    """A thread's context until the thread begins: what the agent has put in it ends with the thread.

    A `Thread` holds its `_context` as long as it lives itself.
    """

    __slots__ = ("_variables",)

    def __init__(self, variables: Context) -> None:
        self._variables = variables

    def __getattr__(self, name: str) -> Any:
        return getattr(self._variables, name)

    @property
    def run(self) -> Callable[..., Any]:
        """The method of the context, once; later that of an empty one."""
        variables, self._variables = self._variables, Context()
        return variables.run


class InHop:
    """Calls a thread's function with a span for it, or with no context but a link to the starter, in these variables.

    The span of a `Thread` is named after what the program wrote, not after what `threading` calls.
    """

    def __init__(self, snapshot: ContextSnapshot, variables: Context, thread: Any) -> None:
        self._snapshot = snapshot
        self._variables = variables
        self._thread = thread

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the function, and say how it ended."""
        thread, run = self._thread, self._variables.run
        hop = plugin.resume(self._snapshot, function if thread is None else _work_of(thread))
        run(hop.enter)
        if thread is not None:
            if hop.span is not None:  # `threading` does not know the thread yet
                hop.span.set_attribute("thread.name", thread.name)
            report = thread._invoke_excepthook

            def fail_and_report(thread: Thread) -> None:
                error = sys.exc_info()[1]
                if error is not None:
                    hop.fail(error)
                report(thread)

            thread._invoke_excepthook = fail_and_report
        try:
            return run(function, *args, **kwargs)
        except BaseException as error:
            hop.fail(error)
            hide_frame(error)
            raise
        finally:
            run(hop.leave)
            if thread is not None:
                thread._invoke_excepthook = report


def _native_variables() -> Context:
    return copy_context() if INHERITS else Context()


def _belongs_to_nobody(thread: Any) -> bool:
    return detached.lists(_work_of(thread), type(thread))


def _work_of(thread: Any) -> object:
    """Return what the program wants a thread to do: its target, a timer's function, or its own `run`."""
    target = getattr(thread, "_target", None)
    if target is None and type(thread).__name__ == "Timer":
        target = getattr(thread, "function", None)
    return thread.run if target is None else target
