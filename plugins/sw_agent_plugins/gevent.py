"""How work travels in gevent: as greenlets, each with a context of its own, and as the tasks of a pool of threads.

A greenlet that has not run yet can be given the context that it begins with (`greenlet.gr_context`): nothing is
wrapped. `start()`, in which all ways to spawn end but `spawn_raw`, tells those who have asked for it. The class is a
compiled one, whose methods cannot be replaced: to know who calls `link`, the module has a subclass of it in its place.

A thread pool's task is a tuple, and its last element a `ThreadResult`, made where the task is spawned and told the
result where it has run. The context travels in what the result calls when it is ready.

Greenlets that stand for threads, in a program that gevent has patched, are the business of the plugin threading.
"""

from __future__ import annotations

import sys
from functools import partial
from types import MethodType

from sw_agent.plugin import PROPAGATION, ContextSnapshot, DottedNames, Hop, Plugin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    Call = tuple[tuple[Any, ...], dict[str, Any]]

plugin = Plugin("gevent", options=PROPAGATION, requires="gevent>=24.2")

# What spawns greenlets that are no work of whoever is current: threads, and the threads of pools.
NOT_WORK = frozenset(("gevent.thread", "gevent.threadpool"))
# What gevent spawns for itself, such as what spawns the items of a pool's `map`: it has the context, and no span.
INTERNAL = DottedNames(
    "gevent._gevent_c_imap",
    "gevent._gevent_c_semaphore",
    "gevent._imap",
    "gevent._semaphore",
    "gevent.pool",
)


# Greenlets


@plugin.hook("gevent.greenlet")
def follow_greenlets(module: ModuleType) -> Callable[[], None]:
    """Ask to be told of each greenlet that starts, and put in the class whose methods can be replaced."""
    compiled: Any = module.Greenlet
    kept = {name: getattr(compiled, name) for name in ("__doc__", "__module__", "__qualname__")}
    followed: Any = type("Greenlet", (compiled,), {"__slots__": (), **kept})
    module.Greenlet = followed  # type: ignore[attr-defined]
    compiled.add_spawn_callback(start_in_context_of_spawner)

    def undo() -> None:
        compiled.remove_spawn_callback(start_in_context_of_spawner)
        for name, loaded in list(sys.modules.items()):
            if name.partition(".")[0] == "gevent":
                _put_back(loaded, followed, compiled)
        if (pool := sys.modules.get("gevent.pool")) is not None:
            _put_back(pool.Group, followed, compiled)

    return undo


def _put_back(place: Any, followed: Any, compiled: Any) -> None:
    """Put the compiled class where a module or a class has bound the other one, or a method of that."""
    for name, value in list(vars(place).items()):
        if value is followed:
            setattr(place, name, compiled)
        elif type(value) is MethodType and value.__self__ is followed:
            setattr(place, name, getattr(compiled, value.__name__))


def start_in_context_of_spawner(greenlet: Any) -> None:
    """Let a greenlet begin in the context of whoever starts it."""
    try:
        snapshot = plugin.captured()
        if snapshot is not None and _spawner() not in NOT_WORK:
            _give(snapshot, greenlet, getattr(greenlet, "_run", None), partial(_run, snapshot))
    except Exception as error:
        plugin.contain("the start of a greenlet", error)


@plugin.intercept("gevent.hub:spawn_raw")
@plugin.intercept("gevent:spawn_raw")
def start_raw_in_context_of_spawner(
    wrapped: Callable[..., Any], _: None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Do the same for a greenlet that starts without telling."""
    greenlet = wrapped(*args, **kwargs)
    snapshot = plugin.captured()
    if snapshot is not None:
        _give(snapshot, greenlet, greenlet.run, partial(_run_raw, snapshot, greenlet.run))
    return greenlet


def _spawner() -> str:
    try:
        return str(sys._getframe(2).f_globals.get("__name__"))
    except ValueError:  # called from C: https://github.com/gevent/gevent/issues/1212
        return ""


def _give(snapshot: ContextSnapshot, greenlet: Any, function: object, in_a_hop: Callable[..., Any]) -> None:
    """Give a greenlet the context in which it begins; where there is a span, or a link, something else to run."""
    if not plugin.only_restores and function not in INTERNAL:
        greenlet.run = in_a_hop
    elif greenlet.gr_context is None:  # the program has not chosen one
        greenlet.gr_context = snapshot.alone()


def _run(snapshot: ContextSnapshot) -> None:
    """Call the method `run` of this greenlet, which keeps what the program's function raises."""
    greenlet = sys.modules["gevent"].getcurrent()
    del greenlet.run
    hop = plugin.resume(snapshot, greenlet._run)
    hop.enter()
    try:
        greenlet.run()
    finally:
        hop.leave(greenlet.exception)


def _run_raw(snapshot: ContextSnapshot, function: Callable[..., Any], *args: Any) -> Any:
    with plugin.resume(snapshot, function):
        return function(*args)


@plugin.capture("gevent.greenlet:Greenlet.link")
def link_to_who_registers(
    snapshot: ContextSnapshot, _greenlet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call | None:
    """Let a callback run in the context of whoever registers it; misuse is left to the library."""
    if args and callable(args[0]):
        return (snapshot.wrap(args[0]), *args[1:]), kwargs
    return None


# Pools of threads


class Release:
    """What a result calls when it is ready, with the context of its task."""

    __slots__ = ("_call", "snapshot")

    def __init__(self, call: Callable[[], object], snapshot: ContextSnapshot) -> None:
        self._call = call
        self.snapshot = snapshot

    def __call__(self) -> None:  # noqa: D102  it is the library's own
        self._call()


@plugin.capture("gevent.threadpool:ThreadResult.__init__")
def send_with_the_task(
    snapshot: ContextSnapshot, _result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call | None:
    """Hang the snapshot on the task's result."""
    receiver, hub, call = args
    return (receiver, hub, Release(call, snapshot)), kwargs


@plugin.before("gevent.threadpool:_WorkerGreenlet._before_run_task")
def enter_the_context_of_the_task(worker: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    """Make the context of the task the current one in the worker, which belongs to nobody."""
    function, _, _, result = args
    call = result._call_when_ready
    hop = vars(worker)["_sw_hop"] = plugin.resume(call.snapshot if type(call) is Release else None, function)
    hop.enter()


@plugin.before("gevent.threadpool:ThreadResult.set")
def leave_with_the_result(_result: Any, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    """Leave it before anybody knows the result."""
    _leave(None)


@plugin.before("gevent.threadpool:ThreadResult.handle_error")
def leave_with_the_error(_result: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    """Leave it before anybody knows the error."""
    _leave(args[1][1])


def _leave(error: BaseException | None) -> None:
    hop: Hop | None = vars(sys.modules["gevent"].getcurrent()).pop("_sw_hop", None)
    if hop is not None:
        hop.leave(error)
