"""Greenlets, as mechanisms for the contract; each thread has a hub, and pools, of its own.

Not in contract.py, which interpreters of a pool import: they cannot load gevent.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent.event
import gevent.pool
import gevent.threadpool
from contract import Submit, call, mechanism


def _given_to(result: gevent.event.AsyncResult, function: Callable[..., Any], args: tuple[object, ...]) -> None:
    try:
        result.set(function(*args))
    except BaseException as error:
        result.set_exception(error)


@mechanism("gevent.spawn", "gevent", cooperates=True)
def _greenlet() -> Iterator[Submit]:
    yield lambda function, *args: gevent.spawn(function, *args).get


@mechanism("gevent.spawn_later", "gevent", cooperates=True)
def _later_greenlet() -> Iterator[Submit]:
    yield lambda function, *args: gevent.spawn_later(0, function, *args).get


@mechanism("gevent.spawn_raw", "gevent", cooperates=True)
def _raw_greenlet() -> Iterator[Submit]:
    def submit(function: Callable[..., Any], *args: object) -> Callable[[], Any]:
        result = gevent.event.AsyncResult()
        gevent.spawn_raw(_given_to, result, function, args)
        return result.get

    yield submit


class PoolOfThread(threading.local):
    """A pool of greenlets and one of threads."""

    def __init__(self) -> None:
        self.greenlets = gevent.pool.Pool(4)
        self.threads = gevent.threadpool.ThreadPool(1)


@mechanism("gevent.pool.Pool.map", "gevent", cooperates=True)
def _pool_of_greenlets() -> Iterator[Submit]:
    pools = PoolOfThread()

    def submit(function: Callable[..., Any], *args: object) -> Callable[[], Any]:
        result = pools.greenlets.map_async(functools.partial(call, function), [args])
        return lambda: result.get()[0]

    yield submit


@mechanism("Greenlet.link", "gevent", related=False, cooperates=True)
def _linked() -> Iterator[Submit]:
    def submit(function: Callable[..., Any], *args: object) -> Callable[[], Any]:
        result = gevent.event.AsyncResult()
        gevent.greenlet.Greenlet.spawn(int).link(lambda _: _given_to(result, function, args))
        return result.get

    yield submit


@mechanism("gevent.threadpool.ThreadPool.spawn", "gevent", "threading", reuses_worker=True)
def _pool_of_threads() -> Iterator[Submit]:
    pools = PoolOfThread()
    yield lambda function, *args: pools.threads.spawn(function, *args).get
