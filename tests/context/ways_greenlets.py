"""Greenlets, in a program that gevent has patched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import gevent.pool
from handing_over import WAYS, Looked, Seen, look, place, second

GEVENT_WAYS: dict[str, Callable[[], Seen]] = {
    "Thread under gevent": WAYS["Thread"],
    "ThreadPoolExecutor under gevent": WAYS["ThreadPoolExecutor.submit"],
}


def spawned(name: str, spawn: Callable[[Any], object]) -> None:
    def hand_over() -> Seen:
        work = Looked()
        with place("submitter"):
            spawn(work)
        with place("runner"):
            gevent.sleep(0.01)
        return work.seen()

    GEVENT_WAYS[name] = hand_over


def started(name: str, start: Callable[[gevent.Greenlet], object]) -> None:
    def hand_over() -> Seen:
        work = Looked()
        with place("builder"):
            greenlet = gevent.Greenlet(work)
        with place("submitter"):
            start(greenlet)
        with place("runner"):
            greenlet.join()
        return work.seen()

    GEVENT_WAYS[name] = hand_over


def linked(name: str, link: Callable[[gevent.Greenlet, Any], object]) -> None:
    def hand_over() -> Seen:
        work = Looked()
        greenlet = gevent.Greenlet(int)
        with place("submitter"):
            link(greenlet, work)
        with place("runner"):
            greenlet.start()
            greenlet.join()
            gevent.sleep(0)
        return work.seen()

    GEVENT_WAYS[name] = hand_over


spawned("gevent.spawn", gevent.spawn)
spawned("gevent.spawn_later", lambda work: gevent.spawn_later(0, work))
spawned("gevent.spawn_raw", gevent.spawn_raw)
started("Greenlet.start", gevent.Greenlet.start)
linked("Greenlet.link", gevent.Greenlet.link)
linked("Greenlet.link_value", gevent.Greenlet.link_value)


def pooled(name: str, submit: Callable[[Any], Seen]) -> None:
    def hand_over() -> Seen:
        pool = gevent.pool.Pool(1)
        return second(lambda: submit(pool))

    GEVENT_WAYS[name] = hand_over


pooled("gevent.pool.Pool.apply", lambda pool: pool.apply(look))
pooled("gevent.pool.Pool.map", lambda pool: pool.map(look, [1])[0])
pooled("gevent.pool.Pool.imap", lambda pool: next(pool.imap(look, [1])))


def pool_callback() -> Seen:
    work = Looked()
    with place("submitter"):
        result = gevent.pool.Pool(1).apply_async(int, callback=work)
    with place("runner"):
        result.join()
        gevent.sleep(0)
    return work.seen()


def thread_pool() -> Seen:
    pool: Any = gevent.get_hub().threadpool
    pool.maxsize = 1
    return second(lambda: pool.apply(look))


GEVENT_WAYS.update({"gevent.pool.Pool callback": pool_callback, "gevent.threadpool.ThreadPool": thread_pool})
