"""How work travels in `concurrent.futures`: as a `_WorkItem`, made by `submit()` for a future and run by a worker.

A thread pool's worker calls the item's `run()`, which asks the future whether it was cancelled, calls the program's
function and gives the future the result. The context travels on the item.

A process pool's manager thread makes a `_CallItem` of the item, a feeder thread pickles that, and a worker process
takes it from the call queue and puts a `_ResultItem` into the result queue. The context travels on either item, and in
the worker begins and ends at the two queues.

An interpreter pool (Python 3.14) is a thread pool whose workers call each function in an interpreter of their own, with
an agent of its own. The context that the item has in the thread goes there as text, with the function's keyword
arguments: these are pickled in any case.

What a future's callbacks do belongs to who registered them, whoever completes the future.
"""

from __future__ import annotations

from sw_agent.carrier import pack, unpack
from sw_agent.plugin import EMPTY, NOTHING, PROPAGATION, ContextSnapshot, Hop, Inbox, Outbox, Plugin, capture_if_active

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from typing import Any

plugin = Plugin("concurrent-futures", options=PROPAGATION)


# Pools of threads


class Promise:
    """A work item's future, as the worker sees it, with the context of the item."""

    __slots__ = ("_function", "_future", "_hop", "_snapshot")

    def __init__(self, future: Future[Any], snapshot: ContextSnapshot, function: object) -> None:
        self._future = future
        self._snapshot: ContextSnapshot | None = snapshot
        self._function = function
        self._hop: Hop = NOTHING

    def __getattr__(self, name: str) -> Any:
        return getattr(self._future, name)

    def set_running_or_notify_cancel(self) -> bool:
        """Enter the item's context, if the function is going to run."""
        snapshot, function, self._snapshot, self._function = self._snapshot, self._function, None, None
        if not self._future.set_running_or_notify_cancel():
            return False
        self._hop = plugin.resume(snapshot, function)
        self._hop.enter()
        return True

    def set_result(self, result: object) -> None:
        """Leave the item's context and complete the future."""
        self._hop.leave()
        self._future.set_result(result)

    def set_exception(self, error: BaseException) -> None:
        """Leave the item's context and fail the future."""
        self._hop.leave(error)
        self._future.set_exception(error)


@plugin.carry("concurrent.futures.thread:_WorkItem", made="__init__", run="run")
def give_the_item_a_promise(snapshot: ContextSnapshot, item: Any) -> None:
    """Give the item a future that knows when its function begins and ends, and how: for a span or a link."""
    function = item.fn if hasattr(item, "fn") else item.task[0]  # Python 3.14: (fn, args, kwargs)
    item.future = Promise(item.future, snapshot, function)


# Pools of processes


@plugin.capture("concurrent.futures.process:_WorkItem.__init__")
def capture_at_submit(snapshot: ContextSnapshot, item: Any, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    """Hang the snapshot on the item."""
    item._sw_snapshot = snapshot


@plugin.before("concurrent.futures.process:_SafeQueue.put")
def send_with_the_call(queue: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    """Hang it on what is sent to a worker process instead, as text: that may be one without the agent."""
    call: Any = args[0] if args else None
    item = queue.pending_work_items.get(getattr(call, "work_id", None))
    snapshot = getattr(item, "_sw_snapshot", None)
    if snapshot is not None:
        del item._sw_snapshot
        call._sw_packed = pack(snapshot)


@plugin.intercept("concurrent.futures.process:_process_worker")
def work_in_the_context_of_each_call(
    wrapped: Callable[..., None], _: None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Put an inbox and an outbox in the place of the queues; the worker itself belongs to nobody."""
    calls, results, *rest = args
    inbox = Inbox(calls, plugin, _snapshot_of, _function_of)
    with EMPTY.restore():
        wrapped(inbox, Outbox(results, inbox, _error_of), *rest, **kwargs)


def _snapshot_of(call: Any) -> ContextSnapshot | None:
    packed = getattr(call, "_sw_packed", None)
    return unpack(packed) if packed is not None else None


def _function_of(call: Any) -> object:
    is_chunk = getattr(getattr(call.fn, "func", None), "__name__", None) == "_process_chunk"
    return call.fn.args[0] if is_chunk else call.fn


def _error_of(result: Any) -> BaseException | None:
    failure = getattr(result, "exception", None)
    return getattr(failure, "exc", None)


# Pools of interpreters


class Keywords(dict):  # type: ignore[type-arg]  # it has no parameters at run time on Python 3.10
    """The keyword arguments of a task for another interpreter, which receives the plain dict and the context."""

    def __init__(self, keywords: dict[str, Any], snapshot: ContextSnapshot) -> None:
        super().__init__(keywords)
        self._snapshot = snapshot

    def __reduce__(self) -> Any:
        return _receive_keywords, (dict(self), pack(self._snapshot))


_received: list[ContextSnapshot] = []  # an interpreter of a pool's has one thread, and one task at a time


def _receive_keywords(keywords: dict[str, Any], packed: Any) -> dict[str, Any]:
    _received[:] = [unpack(packed)]
    return keywords


@plugin.capture("concurrent.futures.interpreter:WorkerContext.run")
def send_with_the_task(
    snapshot: ContextSnapshot, _worker: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Send what is current where the item runs: its submitter's context, or the span for the item."""
    function, positional, keywords = args[0]
    return ((function, positional, Keywords(keywords, snapshot)),), kwargs


@plugin.intercept("concurrent.futures.interpreter:do_call")
def run_in_the_context_that_was_sent(
    wrapped: Callable[..., Any], _: None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call the function, in the pool's interpreter; each call has a thread state of its own, with an empty context."""
    snapshot = _received.pop() if _received else EMPTY
    with snapshot.restore():
        return wrapped(*args, **kwargs)


# Callbacks


class Callbacks(list):  # type: ignore[type-arg]  # it has no parameters at run time
    """A future's callbacks: whoever goes through them is in the context of each one's registrar meanwhile.

    So they need no wrapper, which the program would see in the traceback of one that fails.
    """

    def __init__(self, callbacks: list[Any]) -> None:
        super().__init__(callbacks)
        self._snapshots: list[ContextSnapshot | None] = [None] * len(callbacks)

    def append(self, callback: Any) -> None:
        """Add a callback of whoever is current."""
        super().append(callback)
        self._snapshots.append(capture_if_active())

    def __iter__(self) -> Iterator[Any]:
        snapshots, self._snapshots = self._snapshots, [None] * len(self)
        for callback, snapshot in zip(super().__iter__(), snapshots, strict=False):
            with (snapshot or EMPTY).restore():
                snapshot = None
                yield callback


@plugin.capture("concurrent.futures._base:Future.add_done_callback")
def remember_who_registers(
    _snapshot: ContextSnapshot, future: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]
) -> None:
    """Let a pending future's list of callbacks remember who adds to it; a future that is done calls at once.

    Those by which asyncio waits for a future need nobody's context: they wake a loop, which knows whose turn it is.
    """
    if args and getattr(args[0], "__module__", None) == "asyncio.futures":
        return
    with future._condition:
        if not future.done() and type(future._done_callbacks) is list:
            future._done_callbacks = Callbacks(future._done_callbacks)


plugin.detach("concurrent.futures._base:Future._invoke_callbacks", unless_empty="_done_callbacks")
