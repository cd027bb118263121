"""What stays where it is."""

from __future__ import annotations

import contextvars
import os
import queue
import sched
import signal
import weakref
from typing import Any

from handing_over import Looked, Seen, look, place, way


@way("generator")
def _generator() -> Seen:
    with place("submitter"):
        made = (look() for _ in "x")
    with place("runner"):
        return next(made)


@way("copy_context().run")
def _copy_context() -> Seen:
    with place("submitter"):
        copy = contextvars.copy_context()
    with place("runner"):
        return copy.run(look)


@way("queue.Queue")
def _queue() -> Seen:
    items: queue.Queue[Any] = queue.Queue()
    with place("submitter"):
        items.put(look)
    with place("runner"):
        return items.get()()  # type: ignore[no-any-return]


@way("sched")
def _sched() -> Seen:
    work = Looked()
    scheduler = sched.scheduler()
    with place("submitter"):
        scheduler.enter(0, 0, work)
    with place("runner"):
        scheduler.run()
    return work.seen()


@way("signal handler")
def _signal() -> Seen:
    work = Looked()
    with place("submitter"):
        before = signal.signal(signal.SIGUSR2, work)
    with place("runner"):
        os.kill(os.getpid(), signal.SIGUSR2)
        seen = work.seen()
    signal.signal(signal.SIGUSR2, before)
    return seen


@way("weakref callback")
def _weakref() -> Seen:
    work = Looked()
    target = {look}
    with place("submitter"):
        kept = weakref.ref(target, work)
    with place("runner"):
        del target
    assert kept() is None
    return work.seen()


@way("weakref.finalize")
def _finalize() -> Seen:
    work = Looked()
    target = {look}
    with place("submitter"):
        weakref.finalize(target, work)
    with place("runner"):
        del target
    return work.seen()
