"""A program that hands work over in every way Python has, and prints who each piece of work takes for its owner.

Each way has places: the `submitter` of the work, the `builder` of its object before, the `runner` who runs it. In each
place a context variable of the program's has the place's name, and a span of that name is current. The work looks at
both; printed is one JSON object, {way: [place of the variable, place of the span]}, with null for nobody's.
"""

from __future__ import annotations

import _thread
import asyncio
import atexit
import concurrent.futures
import contextvars
import http.server
import json
import logging
import logging.handlers
import multiprocessing
import multiprocessing.managers
import multiprocessing.pool
import os
import pickle
import queue
import sched
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace

Seen = tuple[Any, Any]
variable: contextvars.ContextVar[str | None] = contextvars.ContextVar("variable", default=None)
places: dict[str, str] = {}
tracer = trace.get_tracer("program")
fork = multiprocessing.get_context("fork")


def look(*_: object) -> Seen:
    """What a piece of work sees: the variable, and the id of the current span."""
    span_context = trace.get_current_span().get_span_context()
    return variable.get(), f"{span_context.span_id:x}" if span_context.is_valid else None


@contextmanager
def place(name: str) -> Iterator[None]:
    token = variable.set(name)
    with tracer.start_as_current_span(name):
        places[str(look()[1])] = name
        yield
    variable.reset(token)


class Looked:
    """Work whose caller throws its result away: what it saw is waited for."""

    def __init__(self) -> None:
        self._seen: queue.Queue[Seen] = queue.Queue()

    def __call__(self, *_: object) -> None:
        self._seen.put(look())

    def seen(self) -> Seen:
        return self._seen.get(timeout=30)


WAYS: dict[str, Callable[[], Seen]] = {}
GEVENT_WAYS: dict[str, Callable[[], Seen]] = {}


def way(name: str) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        if asyncio.iscoroutinefunction(function):
            WAYS[name] = lambda: asyncio.run(function())
        else:
            WAYS[name] = function
        return function

    return register


# Threads


def started(make: Callable[[Looked], threading.Thread]) -> Seen:
    work = Looked()
    with place("builder"):
        thread = make(work)
    with place("submitter"):
        thread.start()
    thread.join(30)
    return work.seen()


class Worker(threading.Thread):
    def __init__(self, work: Looked) -> None:
        super().__init__()
        self.work = work

    def run(self) -> None:
        self.work()


WAYS["Thread"] = lambda: started(lambda work: threading.Thread(target=work))
WAYS["Thread subclass"] = lambda: started(Worker)
WAYS["Timer"] = lambda: started(lambda work: threading.Timer(0, work))


@way("start_new_thread")
def _raw() -> Seen:
    work = Looked()
    with place("submitter"):
        _thread.start_new_thread(work, ())
    return work.seen()


@way("QueueListener")
def _listener() -> Seen:
    work = Looked()
    handler = logging.Handler()
    handler.emit = work  # type: ignore[method-assign,assignment]
    records: queue.Queue[Any] = queue.Queue()
    listener = logging.handlers.QueueListener(records, handler)
    with place("submitter"):
        listener.start()
        records.put(logging.makeLogRecord({}))
    seen = work.seen()
    listener.stop()
    return seen


def served(server: Any, ask: Callable[[int], None], work: Looked) -> Seen:
    def serve() -> None:
        with place("runner"):
            server.serve_forever(0.01)

    thread = threading.Thread(target=serve)
    thread.start()
    with place("submitter"):
        ask(server.server_address[1])
    seen = work.seen()
    server.shutdown()
    thread.join(30)
    server.server_close()
    return seen


@way("ThreadingMixIn")
def _socketserver() -> Seen:
    work = Looked()
    handler = type("Handler", (socketserver.BaseRequestHandler,), {"handle": lambda self: work()})
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    return served(server, lambda port: socket.create_connection(("127.0.0.1", port)).close(), work)


@way("ThreadingHTTPServer")
def _http_server() -> Seen:
    work = Looked()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            work()
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    return served(server, lambda port: urllib.request.urlopen(f"http://127.0.0.1:{port}/").close(), work)


# Executors and pools; the worker has been started by somebody else's item


def second(submit: Callable[[], Seen]) -> Seen:
    with place("first submitter"):
        submit()
    with place("submitter"):
        return submit()


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


# Processes


def send_look(sending: Any) -> None:
    sending.send(look())


def in_process(method: str) -> Seen:
    context: Any = multiprocessing.get_context(method)
    receiving, sending = context.Pipe(duplex=False)
    with place("builder"):
        process = context.Process(target=send_look, args=(sending,))
    with place("submitter"):
        process.start()
    seen: Seen = receiving.recv()
    process.join(30)
    return seen


for _method in ("fork", "spawn", "forkserver"):
    WAYS[f"Process, {_method}"] = lambda method=_method: in_process(method)  # type: ignore[misc]


@way("os.fork")
def _os_fork() -> Seen:
    reading, writing = os.pipe()
    with place("submitter"):
        child = os.fork()
        if not child:
            os.write(writing, pickle.dumps(look()))
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return pickle.load(pipe)  # type: ignore[no-any-return]


@way("subprocess")
def _subprocess() -> Seen:
    with place("submitter"):
        return tuple(json.loads(subprocess.check_output([sys.executable, __file__, "look"])))


class Manager(multiprocessing.managers.BaseManager): ...


Manager.register("look", callable=lambda: list(look()))


@way("manager")
def _manager() -> Seen:
    with place("submitter"):
        manager = Manager(ctx=fork)
        manager.start()
        seen = tuple(manager.look()._getvalue())  # type: ignore[attr-defined]
    manager.shutdown()
    return seen


class LooksWhenPickled:
    def __init__(self) -> None:
        self.work = Looked()

    def __reduce__(self) -> Any:
        self.work()
        return str, ()


@way("multiprocessing.Queue feeder")
def _feeder() -> Seen:
    items: Any = fork.Queue()
    item = LooksWhenPickled()
    with place("submitter"):
        items.put(item)
    seen = item.work.seen()
    items.get(timeout=30)
    items.close()
    items.join_thread()
    return seen


# Event loops


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


# What stays where it is


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


# Greenlets: in a program that gevent has patched


def _gevent_spawn() -> Seen:
    import gevent

    with place("submitter"):
        greenlet = gevent.spawn(look)
    with place("runner"):
        return greenlet.get(timeout=30)  # type: ignore[no-any-return]


def _gevent_pool() -> Seen:
    from gevent.pool import Pool

    pool = Pool(1)
    return second(lambda: pool.apply(look))


GEVENT_WAYS = {
    "gevent.spawn": _gevent_spawn,
    "gevent.pool.Pool": _gevent_pool,
    "Thread under gevent": WAYS["Thread"],
    "ThreadPoolExecutor under gevent": WAYS["ThreadPoolExecutor.submit"],
}


def run(ways: dict[str, Callable[[], Seen]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, function in ways.items():
        try:
            seen = contextvars.Context().run(function)
            found[name] = [seen[0], places.get(seen[1], seen[1])]
        except Exception as error:
            found[name] = repr(error)
    return found


def at_exit(found: dict[str, Any]) -> None:
    seen = look()
    print(json.dumps({**found, "atexit": [seen[0], places.get(seen[1], seen[1])]}))


if __name__ == "__main__":
    if sys.argv[1:] == ["look"]:
        print(json.dumps(look()))
    elif sys.argv[1:] == ["gevent"]:
        from gevent import monkey

        monkey.patch_all()
        print(json.dumps(run(GEVENT_WAYS)))
    else:
        under_gevent = json.loads(subprocess.check_output([sys.executable, __file__, "gevent"]))
        with place("submitter"):
            atexit.register(at_exit, {**run(WAYS), **under_gevent})
