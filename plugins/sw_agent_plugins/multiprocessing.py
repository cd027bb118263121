"""How work travels in `multiprocessing`: as a `Process` that is started, and as tasks in a `Pool` or `ThreadPool`.

A forked process inherits the context of the thread that started it. To a spawned one, or one that the fork server
forks, the snapshot goes with the preparation data that its parent sends ahead; the `Process` object is left alone.

A pool's tasks are tuples that begin with the number of their job, and the worker sends that number back with the
result. `Job` is such a number that holds its submitter's snapshot: it travels to threads and processes alike, with
nothing put around the task's function. In the worker the queues are the places where a task's context begins and ends.
"""

from __future__ import annotations

from sw_agent.carrier import pack, unpack
from sw_agent.plugin import EMPTY, PROPAGATION, Detached, DottedNames, Inbox, Option, Outbox, Plugin, child_ending
from sw_agent.snapshot import ContextSnapshot, capture

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Call = tuple[tuple[Any, ...], dict[str, Any]]
    Packed = tuple[dict[str, str], int]

CHUNK = DottedNames("multiprocessing.pool.mapstar", "multiprocessing.pool.starmapstar")
SENT_AHEAD = "sw_agent"  # the key of the snapshot among the preparation data

plugin = Plugin(
    "multiprocessing",
    options=[
        *PROPAGATION,
        Option("detached", [], "processes that belong to nobody: dotted names of their target, class or module"),
    ],
)
detached = Detached(
    plugin,
    "concurrent.futures.process._process_worker",
    "multiprocessing.managers.BaseManager._run_server",
    "multiprocessing.pool.worker",
)


# A process


@plugin.intercept("multiprocessing.spawn:get_preparation_data")
def send_snapshot_ahead(wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Put the snapshot beside what a new interpreter is told first, as text: it may be one without the agent."""
    data = wrapped(*args, **kwargs)
    snapshot = plugin.captured()
    if snapshot is not None:
        data[SENT_AHEAD] = pack(snapshot)
    return data


_sent_ahead: list[ContextSnapshot] = []


@plugin.before("multiprocessing.spawn:prepare")
def receive_snapshot(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep the snapshot of this process until its work begins."""
    packed = (args[0] if args else kwargs["data"]).get(SENT_AHEAD)
    _sent_ahead[:] = [unpack(packed)] if packed else []


@plugin.intercept("multiprocessing.process:BaseProcess._bootstrap")
def run_in_context_of_starter(
    wrapped: Callable[..., Any], process: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run a child process, which ends by `os._exit`: its spans have left before."""
    try:
        snapshot = _sent_ahead.pop() if _sent_ahead else capture()  # what a forked child has inherited
        target = getattr(process, "_target", None)
        if detached.lists(target, type(process)):
            with EMPTY.restore():
                return wrapped(*args, **kwargs)
        with plugin.resume(snapshot, type(process) if target is None else target) as hop:
            exit_code = wrapped(*args, **kwargs)
            if exit_code and hop.span is not None:
                _mark_exit(hop.span, exit_code)
            return exit_code
    finally:
        child_ending()


def _mark_exit(span: Any, exit_code: int) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("process.exit.code", exit_code)
    span.set_status(StatusCode.ERROR, f"exit code {exit_code}")


# The submitter of a pool's task


class Job(int):
    """The number of a pool's job, equal to the plain one, with the snapshot of its submitter.

    All tasks of a job are pickled with it: it is packed once. What a worker sends back is the plain number.
    """

    snapshot: ContextSnapshot
    received = False
    _packed: Packed | None = None

    def __new__(cls, number: int, snapshot: ContextSnapshot) -> Job:  # noqa: D102
        job = super().__new__(cls, number)
        job.snapshot = snapshot
        return job

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self.received:
            return int, (int(self),)
        if self._packed is None:
            self._packed = pack(self.snapshot)
        return _receive_job, (int(self), self._packed)


_last_received: tuple[Packed, ContextSnapshot] | None = None


def _receive_job(number: int, packed: Packed) -> Job:
    global _last_received
    last = _last_received
    if last is None or last[0] != packed:  # a map sends the same one with each of its tasks
        _last_received = last = packed, unpack(packed)
    job = Job(number, last[1])
    job.received = True
    return job


@plugin.intercept("multiprocessing.pool:MapResult.__init__")
@plugin.intercept("multiprocessing.pool:ApplyResult.__init__")
def capture_at_submit(wrapped: Callable[..., Any], result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let `apply` and `map` take the job's number, for their tasks, from a result where it is a `Job`."""
    wrapped(*args, **kwargs)
    if result.ready():  # a map of nothing
        result._job = int(result._job)
    elif type(result._job) is int and (snapshot := plugin.captured()) is not None:
        result._job = Job(result._job, snapshot)


@plugin.capture("multiprocessing.pool:Pool._guarded_task_generation")
def capture_at_imap(
    snapshot: ContextSnapshot, _pool: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call | None:
    """Let `imap` number its tasks with a `Job`, and take them from the iterable in the context of its submitter."""
    number, function, iterable = args
    if type(number) is not int:
        return None
    return (Job(number, snapshot), function, _in_context_of(snapshot, iterable)), kwargs


def _in_context_of(snapshot: ContextSnapshot, iterable: Iterable[Any]) -> Iterator[Any]:
    iterator = snapshot.run(iter, iterable)
    end = object()
    while (item := snapshot.run(next, iterator, end)) is not end:
        yield item


@plugin.intercept("multiprocessing.pool:MapResult._set")
@plugin.intercept("multiprocessing.pool:ApplyResult._set")
def call_back_in_context_of_submitter(
    wrapped: Callable[..., Any], result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call `callback` and `error_callback` in the context where they were registered, and forget it with the last."""
    job = result._job
    if getattr(result, "_number_left", 1) <= 1:
        result._job = int(job)  # before the result is set: its owner may look at once
    if result._callback or result._error_callback:
        with (job.snapshot if isinstance(job, Job) else EMPTY).restore():
            return wrapped(*args, **kwargs)
    del job
    return wrapped(*args, **kwargs)


# The worker of a pool


@plugin.before("multiprocessing.pool:worker")
def begin_and_end_at_the_queues(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Put an inbox and an outbox in the place of a worker's queues, in a process and in a thread alike."""
    tasks, results, *rest = args
    inbox = Inbox(tasks, plugin, _snapshot_of, _function_of)
    return (inbox, Outbox(results, inbox, _error_of), *rest), kwargs


def _snapshot_of(task: tuple[Any, ...]) -> ContextSnapshot | None:
    return getattr(task[0], "snapshot", None)


def _function_of(task: tuple[Any, ...]) -> object:
    _job, _index, function, args, _kwargs = task
    return args[0][0] if function in CHUNK else function


def _error_of(result: tuple[Any, ...]) -> BaseException | None:
    _job, _index, (success, value) = result
    if success:
        return None
    error: BaseException = value.exc if type(value).__name__ == "ExceptionWithTraceback" else value
    return error
