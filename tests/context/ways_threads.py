"""Threads."""

from __future__ import annotations

import _thread
import http.server
import logging
import logging.handlers
import queue
import socket
import socketserver
import threading
import urllib.request
from collections.abc import Callable
from typing import Any

from handing_over import WAYS, Looked, Seen, place, way


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
