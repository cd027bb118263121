"""Event loops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from handing_over import Seen, look, place, way


async def coroutine() -> Seen:
    return look()


@way("run_in_executor")
async def _run_in_executor() -> Seen:
    with place("submitter"):
        return await asyncio.get_running_loop().run_in_executor(None, look)


@way("to_thread")
async def _to_thread() -> Seen:
    with place("submitter"):
        return await asyncio.to_thread(look)


@way("create_task")
async def _create_task() -> Seen:
    with place("builder"):
        made = coroutine()
    with place("submitter"):
        task = asyncio.create_task(made)
    return await task


if sys.version_info >= (3, 11):

    @way("TaskGroup")
    async def _task_group() -> Seen:
        with place("runner"):
            async with asyncio.TaskGroup() as group:
                with place("submitter"):
                    task = group.create_task(coroutine())
        return task.result()


def called_by_loop(name: str, call: Callable[[asyncio.AbstractEventLoop, Any], object]) -> None:
    async def main() -> Seen:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Seen] = loop.create_future()
        with place("submitter"):
            call(loop, lambda *_: future.done() or future.set_result(look()))
        return await asyncio.wait_for(future, 30)

    way(name)(main)


def watched(loop: asyncio.AbstractEventLoop, call: Any) -> None:
    reading, writing = socket.socketpair()
    loop.add_reader(reading, lambda: (loop.remove_reader(reading), call(), reading.close(), writing.close()))
    writing.send(b"x")


def done_later(loop: asyncio.AbstractEventLoop, call: Any) -> None:
    future: asyncio.Future[None] = loop.create_future()
    future.add_done_callback(call)
    future.set_result(None)


def signalled(loop: asyncio.AbstractEventLoop, call: Any) -> None:
    loop.add_signal_handler(signal.SIGUSR1, call)
    os.kill(os.getpid(), signal.SIGUSR1)


called_by_loop("call_soon", lambda loop, call: loop.call_soon(call))
called_by_loop("call_later", lambda loop, call: loop.call_later(0, call))
called_by_loop("call_at", lambda loop, call: loop.call_at(loop.time(), call))
called_by_loop("call_soon_threadsafe", lambda loop, call: loop.call_soon_threadsafe(call))
called_by_loop("asyncio.Future.add_done_callback", done_later)
called_by_loop("add_reader", watched)
called_by_loop("add_signal_handler", signalled)


@way("run_coroutine_threadsafe")
def _threadsafe() -> Seen:
    loop = asyncio.new_event_loop()
    with place("runner"):
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
    with place("submitter"):
        seen = asyncio.run_coroutine_threadsafe(coroutine(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()
    return seen


@way("asyncio.Queue")
async def _asyncio_queue() -> Seen:
    items: asyncio.Queue[Any] = asyncio.Queue()

    async def consume() -> Seen:
        return (await items.get())()  # type: ignore[no-any-return]

    with place("runner"):
        task = asyncio.create_task(consume())
    with place("submitter"):
        items.put_nowait(look)
    return await task


@way("async generator")
async def _async_generator() -> Seen:
    async def generate() -> Any:
        yield look()

    with place("submitter"):
        made = generate()
    with place("runner"):
        return await made.__anext__()  # type: ignore[no-any-return]
