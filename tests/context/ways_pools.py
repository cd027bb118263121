"""Executors and pools; the worker has been started by somebody else's item."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import multiprocessing.managers
import multiprocessing.pool
import queue
import threading
from collections.abc import Callable
from typing import Any

from handing_over import WAYS, Looked, Seen, look, place, second, way

fork = multiprocessing.get_context("fork")


@way("ThreadPoolExecutor.submit")
def _submit() -> Seen:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return second(lambda: pool.submit(look).result())


@way("ThreadPoolExecutor.map")
def _map() -> Seen:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return second(lambda: next(pool.map(look, [1])))


@way("ProcessPoolExecutor, fork")
def _process_pool() -> Seen:
    with concurrent.futures.ProcessPoolExecutor(1, fork) as pool:
        return second(lambda: pool.submit(look).result())


@way("ProcessPoolExecutor, spawn")
def _spawned_pool() -> Seen:
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return second(lambda: pool.submit(look).result())


class OwnExecutor(concurrent.futures.Executor):
    """An executor with a thread of its own, which belongs to who made the executor."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while (item := self._items.get()) is not None:
            future, function = item
            future.set_result(function())

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._items.put((future, fn))
        return future


@way("custom Executor.submit")
def _own_submit() -> Seen:
    with place("builder"):
        executor = OwnExecutor()
    with place("submitter"):
        return executor.submit(look).result(30)


@way("run_in_executor, custom Executor")
async def _own_executor() -> Seen:
    with place("builder"):
        executor = OwnExecutor()
    with place("submitter"):
        return await asyncio.get_running_loop().run_in_executor(executor, look)


@way("add_done_callback, pending")
def _pending() -> Seen:
    work = Looked()
    go = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with place("runner"):
            future = pool.submit(go.wait, 30)
        with place("submitter"):
            future.add_done_callback(work)
        go.set()
        return work.seen()


@way("add_done_callback, done")
def _done() -> Seen:
    work = Looked()
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    with place("runner"):
        future.set_result(None)
    with place("submitter"):
        future.add_done_callback(work)
    return work.seen()


def pooled(name: str, open_pool: Callable[[], Any]) -> None:
    def apply() -> Seen:
        with open_pool() as pool:
            return second(lambda: pool.apply(look))

    def imap() -> Seen:
        with open_pool() as pool:
            return second(lambda: next(pool.imap(look, [1])))

    def callback() -> Seen:
        work = Looked()
        with open_pool() as pool, place("submitter"):
            pool.apply_async(int, callback=work).wait(30)
        return work.seen()

    def mapped() -> Seen:
        with open_pool() as pool:
            return second(lambda: pool.map(look, [1])[0])

    WAYS.update({f"{name}.apply": apply, f"{name}.map": mapped, f"{name}.imap": imap, f"{name} callback": callback})


pooled("Pool", lambda: fork.Pool(1))
pooled("ThreadPool", lambda: multiprocessing.pool.ThreadPool(1))
