"""How work travels in `multiprocessing`: as a `Process` that is started, and as tasks in a `Pool` or `ThreadPool`.

A forked process inherits the context of the thread that started it. To a spawned one, or one that the fork server
forks, the snapshot goes with the preparation data that its parent sends ahead; the `Process` object is left alone.

A pool's tasks are tuples that begin with the number of their job, and the worker sends that number back with the
result. `Job` is such a number that holds its submitter's snapshot: it travels to threads and processes alike, with
nothing put around the task's function. In the worker the queues are the places where a task's context begins and ends.
"""

from __future__ import annotations

from sw_agent.carrier import ContextCarrier
from sw_agent.plugin import (
    EMPTY,
    PROPAGATION,
    Inbox,
    Option,
    Outbox,
    Plugin,
    capture_if_active,
    child_ending,
    child_started,
)
from sw_agent.snapshot import ContextSnapshot, capture

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Call = tuple[tuple[Any, ...], dict[str, Any]]

POOL_WORKER = "multiprocessing.pool.worker"
OWNERLESS = (
    POOL_WORKER,
    "multiprocessing.managers.BaseManager._run_server",
    "concurrent.futures.process._process_worker",
)
MAPPERS = ("multiprocessing.pool.mapstar", "multiprocessing.pool.starmapstar")
SENT_AHEAD = "sw_agent"

plugin = Plugin(
    "multiprocessing",
    options=[
        *PROPAGATION,
        Option(
            "detached", [], "processes that belong to nobody: dotted names of their target, their class or its module"
        ),
    ],
)


# A process


@plugin.intercept("multiprocessing.spawn:get_preparation_data")
def send_snapshot_ahead(wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Put the snapshot beside what a new interpreter is told first, as text: it may be one without the agent."""
    data = wrapped(*args, **kwargs)
    snapshot = _capture()
    if snapshot is not None:
        data[SENT_AHEAD] = dict(ContextCarrier.inject_w3c(snapshot)), snapshot.taken_at
    return data


_sent_ahead: list[ContextSnapshot] = []


@plugin.before("multiprocessing.spawn:prepare")
def receive_snapshot(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep the snapshot of this process until its work begins."""
    carrier, taken_at = (args[0] if args else kwargs["data"]).get(SENT_AHEAD) or ({}, 0)
    if taken_at:
        snapshot = ContextSnapshot(ContextCarrier(carrier).extract_w3c().context)
        snapshot.taken_at = taken_at
        _sent_ahead[:] = [snapshot]


@plugin.intercept("multiprocessing.process:BaseProcess._bootstrap")
def run_in_context_of_starter(
    wrapped: Callable[..., Any], process: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run a child process, which ends by `os._exit`: its spans have left before."""
    child_started()
    try:
        snapshot = _sent_ahead.pop() if _sent_ahead else capture()  # what a forked child has inherited
        function = getattr(process, "_target", None) or type(process)
        if _dotted_name(function) == POOL_WORKER:
            process._args = _with_context_at_the_queues(process._args)
        if _is_ownerless(function):
            with EMPTY.restore():
                return wrapped(*args, **kwargs)
        with plugin.resume(snapshot, function) as hop:
            exit_code = wrapped(*args, **kwargs)
            if exit_code and hop.span is not None:
                _mark_exit(hop.span, exit_code)
            return exit_code
    finally:
        child_ending()


def _is_ownerless(function: object) -> bool:
    name = _dotted_name(function)
    return name in OWNERLESS or any(f"{name}.".startswith(f"{listed}.") for listed in plugin.settings["detached"])


def _dotted_name(function: object) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"


def _mark_exit(span: Any, exit_code: int) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("process.exit.code", exit_code)
    span.set_status(StatusCode.ERROR, f"exit code {exit_code}")


# The submitter of a pool's task


class Job(int):
    """The number of a pool's job, equal to the plain one, with the snapshot of its submitter."""

    snapshot: ContextSnapshot
    received = False

    def __new__(cls, number: int, snapshot: ContextSnapshot) -> Job:  # noqa: D102
        job = super().__new__(cls, number)
        job.snapshot = snapshot
        return job

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (int, (int(self),)) if self.received else (_received_job, (int(self), self.snapshot))


def _received_job(number: int, snapshot: ContextSnapshot) -> Job:
    job = Job(number, snapshot)
    job.received = True
    return job


@plugin.intercept("multiprocessing.pool:MapResult.__init__")
@plugin.intercept("multiprocessing.pool:ApplyResult.__init__")
def capture_at_submit(wrapped: Callable[..., Any], result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let `apply` and `map` take the job's number, for their tasks, from a result where it is a `Job`."""
    wrapped(*args, **kwargs)
    if type(result._job) is int:
        result._job = _job(result._job)
    elif result.ready():  # a map of nothing
        result._job = int(result._job)


@plugin.before("multiprocessing.pool:Pool._guarded_task_generation")
def capture_at_imap(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Let `imap` number its tasks with a `Job`, and take them from the iterable in the context of its submitter."""
    number, function, iterable = args
    if type(number) is not int:
        return None
    job = _job(number)
    return (job, function, _in_context_of(job, iterable) if isinstance(job, Job) else iterable), kwargs


def _in_context_of(job: Job, iterable: Iterable[Any]) -> Iterator[Any]:
    iterator = job.snapshot.run(iter, iterable)
    end = object()
    while (item := job.snapshot.run(next, iterator, end)) is not end:
        yield item


def _job(number: int) -> int:
    snapshot = _capture()
    return number if snapshot is None else Job(number, snapshot)


def _capture() -> ContextSnapshot | None:
    return capture() if plugin.settings["spans"] else capture_if_active()


@plugin.intercept("multiprocessing.pool:MapResult._set")
@plugin.intercept("multiprocessing.pool:ApplyResult._set")
def call_back_in_context_of_submitter(
    wrapped: Callable[..., Any], result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call `callback` and `error_callback` in the context where they were registered, and forget it with the last."""
    job = result._job
    if getattr(result, "_number_left", 1) <= 1:
        result._job = int(job)  # before the result is set: its owner may look at once
    if isinstance(job, Job) and (result._callback or result._error_callback):
        with job.snapshot.restore():
            return wrapped(*args, **kwargs)
    del job
    return wrapped(*args, **kwargs)


# The worker of a pool


@plugin.before("multiprocessing.pool:ThreadPool.Process")
def prepare_thread(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Give a worker thread queues of its own around the pool's."""
    return args, {**kwargs, "args": _with_context_at_the_queues(kwargs["args"])}


def _with_context_at_the_queues(args: tuple[Any, ...]) -> tuple[Any, ...]:
    tasks, results, *rest = args
    inbox = Inbox(tasks, plugin, _snapshot_of, _function_of)
    return (inbox, Outbox(results, inbox, _error_of), *rest)


def _snapshot_of(task: tuple[Any, ...]) -> ContextSnapshot | None:
    return getattr(task[0], "snapshot", None)


def _function_of(task: tuple[Any, ...]) -> object:
    _job, _index, function, args, _kwargs = task
    return args[0][0] if _dotted_name(function) in MAPPERS else function


def _error_of(result: tuple[Any, ...]) -> BaseException | None:
    _job, _index, (success, value) = result
    return None if success else getattr(value, "exc", value)  # an ExceptionWithTraceback holds the exception
