"""What the life of the process asks of the pipeline: to stand aside for a fork, to begin anew in a child, to end."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, and faster to import
import os
import sys
from _thread import _count as thread_count
from _thread import get_ident, start_new_thread

from . import _log, _sigterm
from ._containment import contain
from ._patching import Patch
from ._threads import LateLock, sleep
from .export.pipeline import Pipeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._config import Config

AFTER_HOOKS = 0.02  # seconds, which is longer than what else Python calls after a fork
FORK_WAIT = 0.5  # seconds that a fork may wait for the worker to end, where a collector hangs

pipeline: Pipeline | None = None
_config: Config | None = None
_forking = LateLock()
_interrupted = False  # by Ctrl-C, during the fork that is under way
_paused = False  # the worker, for the fork that is under way
_silent = False  # the agent's threads, for the fork that is under way
_store_file: Any = None  # `export.store_file`, where it has closed its files for the fork that is under way
_when_forked: list[Callable[[], None]] = []
_before_end: list[Callable[[BaseException | None], None]] = []


def start(config: Config) -> None:
    """Make the pipeline, and be told when the process forks and when it ends; called once, before the program runs.

    `atexit` calls last who registered first: what the program does in its own exit functions is traced.
    """
    global pipeline, _config
    if pipeline is not None:
        return
    import atexit

    _config = config
    pipeline = Pipeline(config)
    atexit.register(_at_exit)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)


def when_forked(callback: Callable[[], None]) -> None:
    """Call `callback()` in every forked child, before the program goes on there."""
    _when_forked.append(callback)


def before_end(callback: Callable[[BaseException | None], None]) -> None:
    """Call `callback(error)` before the last flush; `error` says what ended the program where Python does not know."""
    _before_end.append(callback)


def flush(timeout: float | None = None) -> bool:
    """Send what has ended, from any thread; return whether all of it left within `timeout` seconds.

    The default is the configured exit_timeout.
    """
    if pipeline is None or _config is None:
        return True
    return pipeline.flush(_config.exit_timeout if timeout is None else timeout)


# The ends of a process


def _at_exit() -> None:
    end()
    _sigterm.pause()
    _remember_interrupt()


def _remember_interrupt() -> None:
    """Let a program that Ctrl-C has ended have its exit status.

    Python kills itself by SIGINT where a flag says that the last text it has run was interrupted. Running another text
    resets the flag, and `namedtuple`, in a module that is imported for the flush, does run one.
    """
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)  # last_exc: since 3.12
    frame = error.__traceback__.tb_frame if type(error) is KeyboardInterrupt and error.__traceback__ else None
    if frame is not None and frame.f_back is None:  # caught by nobody: its traceback begins at the outermost frame
        try:
            exec("raise KeyboardInterrupt")
        except KeyboardInterrupt:
            return


def end(error: BaseException | None = None) -> None:
    """End the pipeline, once or again; nothing is raised, also when the user's Ctrl-C comes in between."""
    if pipeline is None or _config is None:
        return
    try:
        for callback in _before_end:
            callback(error)
        pipeline.end(_config.exit_timeout)
        if (snapshot_books := sys.modules.get("sw_agent._snapshot_books")) is not None:
            _log.debug("the books of this process: %s; %s", pipeline.balance(), snapshot_books.say())
    except KeyboardInterrupt:
        pass  # whoever presses Ctrl-C again does not want to wait for spans
    except Exception as failure:
        contain("ending the pipeline", failure)


def flush_before_sudden_ends() -> None:
    """Flush before SIGTERM kills, where that is what it does, and before `os._exit` and `os.exec*` end the program."""
    _sigterm.flush_first(lambda: end(SystemExit("SIGTERM")))
    for patch in _sudden_ends:
        patch.install(os)


def _flush_first(_: None, _args: object, _kwargs: object) -> None:
    if pipeline is not None and _config is not None:
        pipeline.flush_finally(_config.exit_timeout)


def _flush_and_exit(_: None, args: object, kwargs: object) -> None:
    try:
        _flush_first(None, args, kwargs)
    except BaseException as error:  # of a signal's handler: whoever leaves by `os._exit` gets no further
        contain("before os._exit", error)


_sudden_ends = [
    Patch(f"os:{name}", interceptor, "before")
    for name, interceptor in (("_exit", _flush_and_exit), ("execv", _flush_first), ("execve", _flush_first))
    if hasattr(os, name)
]


def child_ending() -> None:
    """Tell that such a child is about to leave by `os._exit`, which calls no exit functions."""
    end()


def begin_before_threads_end() -> None:
    """Have the worker's thread at the end of the program; from Python 3.12 on none can be started in exit functions.

    Without it the main thread has to send, and to wait for whatever a network does. (Python 3.12.1 starts none here.)
    """
    register = getattr(sys.modules.get("threading"), "_register_atexit", None)
    if sys.version_info >= (3, 12) and register is not None and pipeline is not None and _config and _config.to:
        try:
            register(_begin)
        except RuntimeError:  # the program has ended
            return


def _begin() -> None:
    try:
        if pipeline is not None:
            pipeline.worker.begin()
    except Exception as error:
        contain("before the end of the program", error)


def release() -> None:
    """Be told of nothing any more: the pipeline has ended. Whoever calls this holds `without_forks`."""
    global pipeline, _config
    _sigterm.release()
    for patch in _sudden_ends:
        patch.uninstall()
    import atexit

    atexit.unregister(_at_exit)
    pipeline = _config = None  # the functions that Python calls around forks, and at the end of threads, stay
    _when_forked.clear()
    _before_end.clear()


# A fork


def without_forks() -> Any:
    """Return a context manager inside which no other thread forks."""
    return _forking.lock


def stand_aside_first() -> None:
    """Let the worker end before the locks are taken that others hold over a fork; called when they are all imported.

    What registered last is called first before a fork. `logging` holds its lock then, which the worker may need to end.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork)


def _before_fork() -> None:
    """Let worker, files and signals stand aside. Nobody else forks meanwhile: each fork undoes this for itself."""
    global _paused, _silent, _store_file
    if pipeline is None or _forking.lock._is_owned():  # it is called twice
        return
    try:
        _forking.lock.acquire()
        try:
            _paused = pipeline is not None and pipeline.worker.pause(FORK_WAIT)
        finally:
            _silent = _log.writing.lock.acquire(timeout=FORK_WAIT)
        module: Any = sys.modules.get("sw_agent.export.store_file")
        _store_file = module if module is not None and module.before_fork() else None
        _sigterm.stand_aside()
    except BaseException as error:
        _not_lost(error, "before a fork")


def _in_parent() -> None:
    global _paused, _silent, _store_file
    if not _forking.lock._is_owned():
        return
    paused, silent, store_file, _paused, _silent, _store_file = _paused, _silent, _store_file, False, False, None
    try:
        if silent:
            _log.writing.lock.release()
        if store_file is not None:
            store_file.after_fork_in_parent()
        if paused and pipeline is not None:
            pipeline.worker.resume()
        if not _counts_threads():
            _sigterm.come_back()
    except BaseException as error:
        _not_lost(error, "after a fork")
    finally:
        _forking.lock.release()
        if _interrupted:
            start_new_thread(_interrupt_soon, (get_ident(),))


def _counts_threads() -> bool:
    """Return whether Python is about to tell the program that it has more than one thread, and it has none but ours.

    With the next span that begins or ends SIGTERM is caught again.
    """
    return sys.version_info >= (3, 12) and not thread_count()


def _interrupt_soon(thread: int) -> None:
    global _interrupted
    _interrupted = False
    sleep(AFTER_HOOKS)
    _signal.pthread_kill(thread, _signal.SIGINT)


def _not_lost(error: BaseException, place: str) -> None:
    """Contain a failure of ours; Ctrl-C, which would be ignored here, comes again when this is over."""
    global _interrupted
    if isinstance(error, KeyboardInterrupt):
        _interrupted = True
    elif isinstance(error, Exception):
        contain(place, error)


def _in_child() -> None:
    global _forking, _interrupted, _paused, _silent, _store_file
    _forking, _interrupted, _paused, _silent, _store_file = LateLock(), False, False, False, None
    _log.writing = LateLock()
    if pipeline is None:
        return
    try:
        if (store_file := sys.modules.get("sw_agent.export.store_file")) is not None:
            store_file.after_fork_in_child()
        _sigterm.forget()
        if pipeline is not None:
            pipeline.worker.reset()
            pipeline.reset()
    except Exception as error:
        contain("in a forked process", error)
    for callback in _when_forked:
        try:
            callback()
        except Exception as error:
            contain("in a forked process", error)
