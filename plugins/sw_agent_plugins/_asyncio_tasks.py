"""The span of an `asyncio` task: entered at each of its steps, left at each of its awaits.

A task hands each step to its loop's `call_soon`, as a callback that belongs to the task. That is where the span sees
it: neither the coroutine nor the task is wrapped, and no task factory is needed. It tells how often a step ran, how
long the steps took, and how long all of them together had to wait from being ready to being run.
"""

from __future__ import annotations

from time import perf_counter_ns, time_ns

from sw_agent.plugin import NOTHING, Entry, Plugin, inside, mark_failed, set_attributes
from sw_agent.snapshot import capture, current_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

# The names of what a task gives to `call_soon`: those of the task in C, then those of the one in Python.
STEPS = ("TaskStepMethWrapper", "task_wakeup", "__step", "__wakeup")


def task_of(callback: Any) -> Any:
    """Return the task that a callback is a step of, None for any other callback."""
    task = getattr(callback, "__self__", None)
    if task is None or not hasattr(task, "get_coro"):
        return None
    return task if getattr(callback, "__name__", type(callback).__name__) in STEPS else None


class TaskSpan:
    """The span of one task, from its creation to its end, and the context of the task between its steps."""

    __slots__ = ("_busy", "_context", "_created", "_plugin", "_span", "_started", "_steps", "_waited")

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._created = time_ns()
        self._started = False
        self._span: Span | None = None
        self._context: Context | None = None
        self._busy = self._waited = self._steps = 0

    def start(self, name: str | None, coroutine: Any) -> Entry:
        """Start the span, in what is current where the task begins to run; return the entry of its first step."""
        from opentelemetry.context import Context
        from opentelemetry.trace import INVALID_SPAN, set_span_in_context

        self._started = True
        context = current_context()
        context = Context() if context is None else context
        function = getattr(coroutine, "__qualname__", type(coroutine).__qualname__)
        frame = getattr(coroutine, "cr_frame", None)
        module = frame.f_globals.get("__name__") if frame is not None else None
        relation = self._plugin.relation_of(*filter(None, (name, function)))
        link = capture().link() if relation == "link" else None
        if relation != "child":
            context = set_span_in_context(INVALID_SPAN, context)
        self._span = self._plugin.tracer.start_span(
            name or function,
            context,
            attributes={"code.function.name": f"{module}.{function}" if module else function},
            links=[link] if link is not None else [],
            start_time=self._created,
        )
        self._context = inside(self._span, context)
        return Entry(self._context)

    def step(self, task: Any, callback: Callable[..., Any], args: tuple[Any, ...], ready: int) -> None:
        """Run a step of the task that was ready at that time, of `perf_counter_ns`; it runs whatever fails here."""
        begun = perf_counter_ns()
        entry: Entry = NOTHING
        try:
            entry = self._entry_of_step(task)
            entry.enter()
        except Exception as error:
            self._plugin.contain("the begin of a task's step", error)
        try:
            callback(*args)
        finally:
            self._context = current_context() or self._context
            entry.leave()
            self.count(perf_counter_ns() - begun, begun - ready)
            if task.done():
                self.end(None if task.cancelled() else task._exception)  # `exception()` would count as retrieving it

    def _entry_of_step(self, task: Any) -> Entry:
        if not self._started:
            return self.start(given_name(task), task.get_coro())
        if self._steps < 2 and self._span is not None and (name := given_name(task)) is not None:
            self._span.update_name(name)  # an eager task's, or a factory's, is given after the task has begun
        return Entry(self._context)

    def count(self, busy: int, waited: int = 0) -> None:
        """Count a step that took that long after having waited that long, in nanoseconds."""
        self._steps += 1
        self._busy += busy
        self._waited += waited

    def __del__(self) -> None:
        """End the span of a task that is gone before its end, or whose steps the loop hides."""
        self.end(None)

    def end(self, error: BaseException | None) -> None:
        """End the span; `error` is what the task has raised."""
        span, self._span, self._context = self._span, None, None
        if span is None:
            return
        try:
            if span.is_recording():
                set_attributes(
                    span,
                    {"sw.steps": self._steps, "sw.busy_ms": self._busy / 1e6, "sw.wait_ms": self._waited / 1e6},
                )
                if error is not None:
                    mark_failed(span, error)
            span.end()
        except Exception as failure:
            self._plugin.contain("the end of a task's span", failure)


class Step:
    """A step of a task in `call_soon`; a loop in debug mode takes it for the task's own."""

    __slots__ = ("__self__", "_callback", "_ready", "_span")

    def __init__(self, task: Any, callback: Callable[..., Any], span: TaskSpan) -> None:
        self.__self__ = task
        self._callback = callback
        self._span = span
        self._ready = perf_counter_ns()

    def __call__(self, *args: Any) -> None:
        """Run it."""
        self._span.step(self.__self__, self._callback, args, self._ready)

    def __repr__(self) -> str:
        return repr(self._callback)


def given_name(task: Any) -> str | None:
    """Return the name that the program has given to a task; None for one that `asyncio` has made up."""
    name = str(task.get_name())
    # Python 3.13 calls `set_name(None)` on what a task factory returns.
    return None if name == "None" or (name.startswith("Task-") and name[5:].isdigit()) else name


def has_begun(task: Any) -> bool:
    """Return whether a task that was just created has taken its first step already."""
    if task.done():  # ask no more: `get_coro()` of an eager task that is done crashes Python 3.12.1
        return True
    from inspect import CORO_CREATED, getcoroutinestate

    coroutine = task.get_coro()
    return hasattr(coroutine, "cr_frame") and getcoroutinestate(coroutine) != CORO_CREATED


def without_our_frames(task: Any) -> Any:
    """Let a task say that it was created where the program did, in a loop's debug mode."""
    stack = getattr(task, "_source_traceback", None)
    while stack and "sw_agent" in stack[-1].filename:
        del stack[-1]
    return task
