"""The ends of worker processes, of pools and of servers: what ended before is at the collector, and they end as ever.

Spans are sent once a minute here, unless a test says otherwise: what arrives was sent because a process ended.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from launched import SW_PYTHON, own_environ
from receivers import Received, attributes_of, http_collector
from services import redis_url  # noqa: F401  a fixture

LONGEST = 40.0  # seconds that anything may take on a busy machine
TROUBLE = ("sw-python:", "sw_agent", "opentelemetry")
START_METHODS = [method for method in ("fork", "spawn", "forkserver") if hasattr(os, "fork") or method == "spawn"]

Spans = list[tuple[int, str]]


class Program:
    """A program in a process group of its own, which says what it says into a file."""

    def __init__(self, folder: Path, collector: Received, command: list[str], **more: Any) -> None:
        environ: dict[str, str] = {
            "SW_EXPORT_TO": "otlp",
            "SW_EXPORT_ENDPOINT": collector.endpoint,
            "SW_EXPORT_FLUSH_INTERVAL": "60",
            "SW_EXPORT_EXIT_TIMEOUT": "30",
            "OTEL_SERVICE_NAME": "workers",
            **more.pop("environ", {}),
        }
        self.collector = collector
        self._said = folder / "said"
        with open(self._said, "wb") as said:
            self.process = subprocess.Popen(
                [SW_PYTHON, "run", "--", *command],
                cwd=folder,
                env=own_environ(folder, PYTHONUNBUFFERED="1", **environ),
                stdin=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
                **{"stdout": said, **more},
            )

    @property
    def said(self) -> str:
        return self._said.read_text()

    def hear(self) -> str:
        """Wait for the next line on stdout that begins with "told", and return the rest of it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(b"told "):
                return str(line.decode()).split()[1]
        pytest.fail(self.said)

    def tell(self, line: str) -> None:
        """Write a line to stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def end(self, number: int | None = None) -> int:
        """Send a signal, wait for the end, and return the exit status; nobody may have complained."""
        if number is not None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not end\n{self.said}")
        assert not any(word in self.said for word in TROUBLE), self.said
        return status

    def close(self) -> None:
        """Leave none of its processes running; what has ended well has seen to that itself."""
        with self.process:
            if self.process.returncode != 0:
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)

    def delivered_spans(self) -> list[tuple[int, Span]]:
        """Return each span at the collector, with the id of the process that it is from; none may be there twice."""
        spans = [
            (int(pid), span)
            for request in self.collector.requests
            for found in request.resource_spans
            for pid in [next(each.value.int_value for each in found.resource.attributes if each.key == "process.pid")]
            for scope in found.scope_spans
            for span in scope.spans
        ]
        assert len({span.span_id for _, span in spans}) == len(spans), "ids are not unique"
        return spans

    def delivered(self) -> Spans:
        """Return process and name of each span at the collector, sorted."""
        return sorted((pid, span.name) for pid, span in self.delivered_spans())

    def wait_for(self, condition: Callable[[], Any], what: str = "it does not arrive") -> None:
        """Wait until a condition holds, which may change with each request at the collector."""
        deadline = time.monotonic() + LONGEST
        while True:
            self.collector.came.clear()
            if condition():
                return
            left = deadline - time.monotonic()
            assert left > 0, f"{what}: {self.delivered()}\n{self.said}"
            self.collector.came.wait(left)


Start = Callable[..., Program]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start(tmp_path: Path, stack: ExitStack) -> Start:
    """Start a program under the agent, with a collector; none of its processes is left running."""

    def begin(*command: str, **more: Any) -> Program:
        program = Program(tmp_path, stack.enter_context(http_collector()), list(command), **more)
        stack.callback(program.close)
        return program

    return begin


# Processes that Python starts

PROLOGUE = """
import multiprocessing, os, signal, sys, threading
from concurrent.futures import ProcessPoolExecutor
from opentelemetry import trace

S = trace.get_tracer("t").start_as_current_span
context = multiprocessing.get_context(sys.argv[1])

def span(name):
    with S(name):
        pass
    return name
"""

PROCESSES = """
ENDS = {
    "returns": int,
    "exits": lambda: sys.exit(3),
    "raises": lambda: {}["on purpose"],
    "leaves": lambda: os._exit(4),
    "leaves in a thread": lambda: threading.Thread(target=os._exit, args=(5,)).start() or threading.Event().wait(),
    "is interrupted": lambda: signal.raise_signal(signal.SIGINT),
    "terminates itself": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "execs": lambda: os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "raise SystemExit(6)"]),
    "waits": lambda: threading.Event().wait(),
}

def run(name, ready):
    span(name)
    ready.set()
    sys.stderr = open(os.devnull, "w")
    ENDS[name.removesuffix(" for ever")]()

if __name__ == "__main__":
    for name in (*ENDS, "waits for ever"):
        ready = context.Event()
        process = context.Process(target=run, args=(name, ready), daemon=name == "waits for ever")
        process.start()
        ready.wait()
        if name == "waits":
            process.terminate()
        if name != "waits for ever":  # which the end of this process terminates
            process.join()
            print(name, process.exitcode)
"""

EXIT_CODES = {
    "returns": 0,
    "exits": 3,
    "raises": 1,
    "leaves": 4,
    "leaves in a thread": 5,
    "is interrupted": 1,
    "terminates itself": -signal.SIGTERM,
    "execs": 6,
    "waits": -signal.SIGTERM,
}

POOLS = """
if __name__ == "__main__":
    with S("root"):
        closed = context.Pool(2)
        closed.map(span, [f"close {number}" for number in range(4)], chunksize=1)
        closed.close()
        closed.join()
        terminated = context.Pool(2)
        terminated.map(span, [f"terminate {number}" for number in range(4)], chunksize=1)
        terminated.terminate()
        terminated.join()
        with ProcessPoolExecutor(2, context) as executor:
            list(executor.map(span, [f"with {number}" for number in range(4)]))
        if sys.argv[1] != "fork" and sys.version_info >= (3, 11):
            with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as executor:
                list(executor.map(span, [f"recycled {number}" for number in range(2)]))
        executor = ProcessPoolExecutor(1, context)
        executor.submit(span, "ended at once").result()
        getattr(executor, "terminate_workers", executor.shutdown)()  # since Python 3.14
        left = ProcessPoolExecutor(1, context)  # for the interpreter's end to shut down
        left.submit(span, "left 0").result()
        left.submit(span, "left 1")
"""


@pytest.mark.parametrize("method", START_METHODS)
def test_a_process_has_delivered_however_it_ends(start: Start, tmp_path: Path, method: str) -> None:
    (tmp_path / "program.py").write_text(PROLOGUE + PROCESSES)
    program = start("python", "-W", "ignore", "program.py", method)
    assert program.end() == 0
    assert program.said == "".join(f"{name} {exit_code}\n" for name, exit_code in EXIT_CODES.items())
    assert program.collector.names == sorted([*EXIT_CODES, "waits for ever"])
    assert len({pid for pid, _ in program.delivered()}) == len(EXIT_CODES) + 1


@pytest.mark.parametrize("method", START_METHODS)
def test_the_workers_of_pools_have_delivered_however_they_end(start: Start, tmp_path: Path, method: str) -> None:
    (tmp_path / "program.py").write_text(PROLOGUE + POOLS)
    program = start("python", "-W", "ignore", "program.py", method)
    assert program.end() == 0
    # CPython (3.13.0 too) wakes pools at its end without their lock, as a comment there says, and may find one closed.
    assert program.said == "" or "_python_exit" in program.said, program.said
    fours = [f"{kind} {number}" for kind in ("close", "terminate", "with") for number in range(4)]
    recycled = ["recycled 0", "recycled 1"] if method != "fork" and sys.version_info >= (3, 11) else []
    assert program.collector.names == sorted([*fours, *recycled, "ended at once", "left 0", "left 1", "root"])
    by_name = {name: pid for pid, name in program.delivered()}
    assert len({by_name[name] for name in recycled}) == len(recycled)


# Servers of WSGI applications

SITE = """
import ctypes, os, signal
from opentelemetry import trace

S = trace.get_tracer("t").start_as_current_span
if "SPAN_AT_IMPORT" in os.environ:
    with S("import"):
        pass

def app(environ, start_response):
    "Say the process's id, and end when the request's body has come."
    path = environ["PATH_INFO"]
    with S("before"):
        pass
    with S(path):
        if path == "/deaf":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGABRT])
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(str(os.getpid()).encode())
        environ["wsgi.input"].read(1)
    return []
"""


class Asked:
    """A request that a worker is at, until it is let go."""

    def __init__(self, address: tuple[str, int], path: str) -> None:
        self._connection = socket.create_connection(address, LONGEST)
        self.close = self._connection.close
        self._connection.sendall(f"POST {path} HTTP/1.0\r\nHost: t\r\nContent-Length: 1\r\n\r\n".encode())
        answer = b""
        while not (body := answer.partition(b"\r\n\r\n")[2]):
            data = self._connection.recv(65536)
            assert data, f"no answer but {answer!r}"
            answer += data
        self.pid = int(body)

    def wait(self) -> int:
        """Wait for the end of the answer, and return the id of the process that gave it."""
        while self._connection.recv(65536):
            pass
        self.close()
        return self.pid

    def finish(self) -> int:
        """Let the request end."""
        self._connection.sendall(b".")
        return self.wait()


class Server:
    """A server of the site, on a socket that listens before the server is there: nobody has to wait for it."""

    def __init__(self, start: Start, folder: Path, stack: ExitStack, *command: str, **environ: str) -> None:
        (folder / "site_of_workers.py").write_text(SITE)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.address: tuple[str, int] = listener.getsockname()
            bound = [each.replace("FD", f"fd://{listener.fileno()}") for each in command]
            self.program = start(*bound, environ=environ, pass_fds=[listener.fileno()])
        self._stack = stack

    def ask(self, path: str = "/") -> Asked:
        """Send a request and wait until a worker is at it."""
        asked = Asked(self.address, path)
        self._stack.callback(asked.close)
        return asked

    def both(self) -> Spans:
        """Let each of two workers answer three requests, and return the spans that end by that."""
        answered = []
        for _ in range(3):
            at_once = [self.ask(), self.ask()]  # a worker that is at one does not take the other
            answered += [asked.finish() for asked in at_once]
        assert len(set(answered)) == 2
        return spans_of(answered)


Serve = Callable[..., Server]


def spans_of(answered: list[int]) -> Spans:
    """Return the spans of requests that these processes have answered."""
    return sorted((pid, name) for pid in answered for name in ("before", "/"))


@pytest.fixture
def gunicorn(start: Start, tmp_path: Path, stack: ExitStack) -> Serve:
    def serve(*options: str, **environ: str) -> Server:
        command = ("gunicorn", "-b", "FD", "--graceful-timeout", "30", *options, "site_of_workers:app")
        return Server(start, tmp_path, stack, *command, **environ)

    return serve


@pytest.mark.parametrize(
    ("options", "number"), [("", signal.SIGTERM), ("", signal.SIGQUIT), ("--preload", signal.SIGTERM)]
)
def test_gunicorns_workers_have_delivered_when_it_is_stopped(gunicorn: Serve, options: str, number: int) -> None:
    server = gunicorn("-w", "2", *options.split(), SPAN_AT_IMPORT="1")
    expected = server.both()
    assert server.program.end(number) == 0
    importers = {server.program.process.pid} if options else {pid for pid, _ in expected}
    assert server.program.delivered() == sorted([*expected, *((pid, "import") for pid in importers)])


def test_gunicorns_workers_have_delivered_when_they_are_recycled(gunicorn: Serve) -> None:
    server = gunicorn("-w", "1", "--max-requests", "2")
    answered = [server.ask().finish() for _ in range(4)]
    assert len(set(answered)) == 2
    server.program.wait_for(lambda: server.program.delivered() == spans_of(answered))
    assert server.program.end(signal.SIGTERM) == 0
    assert server.program.delivered() == spans_of(answered)


def test_gunicorns_workers_have_delivered_when_it_reloads(gunicorn: Serve) -> None:
    """A worker that is at a request ends it first."""
    server = gunicorn("-w", "1")
    old = server.ask()
    server.program.process.send_signal(signal.SIGHUP)
    new = server.ask()  # only another process can be at it
    old.finish()
    server.program.wait_for(lambda: server.program.delivered() == spans_of([old.pid]))
    new.finish()
    assert server.program.end(signal.SIGTERM) == 0
    assert server.program.delivered() == spans_of([old.pid, new.pid])


def test_gunicorns_workers_have_delivered_when_they_are_aborted_for_taking_too_long(gunicorn: Serve) -> None:
    """Also the span of the request that took too long: gunicorn's handler of SIGABRT raises SystemExit there."""
    server = gunicorn("-w", "1", "--timeout", "1")
    aborted = server.ask()
    aborted.wait()
    server.program.wait_for(lambda: server.program.delivered() == spans_of([aborted.pid]))
    assert server.ask().finish() != aborted.pid


def test_a_worker_of_gunicorns_that_has_to_be_killed_has_delivered_what_ended_an_interval_before(
    gunicorn: Serve,
) -> None:
    server = gunicorn("-w", "1", "--timeout", "1", SW_EXPORT_FLUSH_INTERVAL="0.05")
    killed = server.ask("/deaf")
    killed.wait()
    assert server.program.delivered() == [(killed.pid, "before")]
    assert server.ask().finish() != killed.pid


if importlib.util.find_spec("pyuwsgi") is None:
    needs_uwsgi = pytest.mark.skip(reason="pyuwsgi is not installed")
else:
    needs_uwsgi = pytest.mark.skipif(sys.platform == "win32", reason="uWSGI needs fork")


@pytest.fixture
def uwsgi(start: Start, tmp_path: Path, stack: ExitStack) -> Serve:
    def serve(*options: str, **environ: str) -> Server:
        site = ("--wsgi-file", "site_of_workers.py", "--callable", "app")
        command = ("uwsgi", "--http-socket", "FD", "--master", "--stats", "stats", *site, *options)
        return Server(start, tmp_path, stack, *command, **environ)

    return serve


AT_ONCE = "--die-on-term"  # else SIGTERM reloads
GRACEFULLY = "--hook-master-start=unix_signal:15 gracefully_kill_them_all"


def wait_until_idle(folder: Path) -> None:
    """Wait until no worker of uWSGI's is busy, as each is just after its answer: it calls no exit functions then."""
    deadline = time.monotonic() + LONGEST
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(folder / "stats"))
            with connection.makefile("rb") as answer:
                workers = json.load(answer)["workers"]
        if all(worker["status"] == "idle" for worker in workers):
            return
        assert time.monotonic() < deadline, workers


@needs_uwsgi
@pytest.mark.parametrize(
    ("options", "number"),
    [
        ("", signal.SIGINT),
        ("--enable-threads", signal.SIGTERM),
        ("--lazy-apps", signal.SIGTERM),
        ("--lazy-apps --enable-threads", signal.SIGINT),
    ],
)
def test_uwsgis_workers_have_delivered_when_it_is_stopped(
    uwsgi: Serve, tmp_path: Path, options: str, number: int
) -> None:
    server = uwsgi("--processes", "2", AT_ONCE, *options.split())
    expected = server.both()
    wait_until_idle(tmp_path)
    assert server.program.end(number) == 0
    assert server.program.delivered() == expected


@needs_uwsgi
def test_uwsgis_workers_have_delivered_when_it_is_stopped_gracefully(uwsgi: Serve) -> None:
    """A worker that is at a request ends it first."""
    server = uwsgi("--processes", "2", GRACEFULLY)
    at_once = [server.ask(), server.ask()]
    server.program.process.send_signal(signal.SIGTERM)
    answered = [asked.finish() for asked in at_once]
    assert server.program.end() == 0
    assert server.program.delivered() == spans_of(answered)


@needs_uwsgi
def test_a_worker_of_uwsgis_that_is_stopped_at_a_request_has_delivered_what_ended_an_interval_before(
    uwsgi: Serve,
) -> None:
    """UWSGI calls no exit functions there."""
    server = uwsgi("--processes", "1", AT_ONCE, SW_EXPORT_FLUSH_INTERVAL="0.05")
    asked = server.ask()
    expected = [(asked.pid, "before")]
    server.program.wait_for(lambda: server.program.delivered() == expected)
    assert server.program.end(signal.SIGTERM) == 0
    assert server.program.delivered() == expected


@needs_uwsgi
def test_uwsgis_workers_have_delivered_when_they_are_recycled(uwsgi: Serve, tmp_path: Path) -> None:
    server = uwsgi("--processes", "1", AT_ONCE, "--max-requests", "2", "--min-worker-lifetime", "0")
    recycled = [server.ask().finish() for _ in range(2)]
    server.program.wait_for(lambda: server.program.delivered() == spans_of(recycled))
    new = server.ask().finish()
    assert new not in recycled
    wait_until_idle(tmp_path)
    assert server.program.end(signal.SIGTERM) == 0
    assert server.program.delivered() == spans_of([*recycled, new])


@needs_uwsgi
def test_a_span_that_ends_before_uwsgi_forks_is_its_masters_and_holds_no_worker_up(
    uwsgi: Serve, tmp_path: Path
) -> None:
    server = uwsgi("--processes", "2", AT_ONCE, SPAN_AT_IMPORT="1")
    expected = server.both()
    wait_until_idle(tmp_path)
    assert server.program.end(signal.SIGTERM) == 0
    assert server.program.delivered() == sorted([*expected, (server.program.process.pid, "import")])


# Celery's prefork children

TASKS = """
import os, threading
from celery import Celery
from celery.signals import worker_ready
from celery.worker import state
from opentelemetry import trace

S = trace.get_tracer("t").start_as_current_span
app = Celery("tasks", broker=os.environ["REDIS"])
app.conf.update(
    task_default_queue=os.environ["PREFIX"] + "queue",
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"global_keyprefix": os.environ["PREFIX"]},
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
)

def tell(line):
    os.write(1, f"told {line}\\n".encode())

@app.task(name="waits")
def waits(gate):
    with S("before"):
        pass
    tell(os.getpid())
    with open(gate) as opened:
        opened.read()

def tell_when_idle():
    while state.active_requests:
        threading.Event().wait(0.01)
    tell("idle")

@worker_ready.connect
def do_as_told(**_):
    def listen():
        for line in open(0, "rb", buffering=0, closefd=False):  # sys.stdin has a lock, which a child would inherit
            eval(line)
    threading.Thread(target=listen, daemon=True).start()
    tell("ready")
"""


class Worker:
    """A Celery worker that publishes what it is told; each task waits at a gate of its own.

    It has two processes: for another one in the place of one that has ended Celery may take five seconds.
    """

    def __init__(self, start: Start, folder: Path, environ: dict[str, str], *options: str) -> None:
        (folder / "tasks.py").write_text(TASKS)
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING")
        command = ("celery", "-A", "tasks", "worker", "-P", "prefork", "-c", "2", *quiet, *options)
        self.program = start(*command, environ=environ, stdout=subprocess.PIPE)
        self.folder = folder
        assert self.program.hear() == "ready"

    def publish(self, task: str, **more: object) -> int:
        """Publish a task of that id, wait until it is at its gate, and return the id of its process."""
        gate = str(self.folder / task)
        os.mkfifo(gate)
        self.program.tell(f"waits.apply_async(({gate!r},), task_id={task!r}, **{more!r})")
        return int(self.program.hear())

    def let_go(self, *tasks: str) -> None:
        """Let tasks end, and wait until the worker's main process knows of it.

        One that is told to stop before may wait for half a minute: billiard's `Worker._ensure_messages_consumed`.
        """
        for task in tasks:
            with open(self.folder / task, "w"):
                pass
        self.program.tell("tell_when_idle()")
        assert self.program.hear() == "idle"

    def delivered(self) -> list[tuple[int, str, str]]:
        """Return process, task and state of each attempt at the collector, and process of each span in its midst."""
        found = []
        for pid, span in self.program.delivered_spans():
            attributes = attributes_of(span)
            if span.name == "before":
                found.append((pid, "", "before"))
            elif "celery.state" in attributes:
                found.append((pid, str(attributes["messaging.message.id"]), str(attributes["celery.state"])))
        return sorted(found)


Work = Callable[..., Worker]


@pytest.fixture
def celery(start: Start, tmp_path: Path, redis_url: str) -> Iterator[Work]:  # noqa: F811
    pytest.importorskip("celery")
    import redis

    prefix = f"sw-test-{uuid.uuid4().hex}-"
    yield lambda *options, **more: Worker(start, tmp_path, {"REDIS": redis_url, "PREFIX": prefix, **more}, *options)
    with redis.Redis.from_url(redis_url) as connection:
        if keys := list(connection.scan_iter(f"{prefix}*", count=10_000)):
            connection.delete(*keys)


def test_celerys_processes_have_delivered_when_the_worker_is_stopped(celery: Work) -> None:
    worker = celery()
    pids = [worker.publish("a"), worker.publish("b")]
    worker.let_go("a", "b")
    assert worker.program.end(signal.SIGTERM) == 0
    attempts = [(pids[0], "a", "SUCCESS"), (pids[1], "b", "SUCCESS")]
    assert worker.delivered() == sorted([*((pid, "", "before") for pid in pids), *attempts])


def test_celerys_processes_have_delivered_when_they_are_recycled(celery: Work) -> None:
    worker = celery("--max-tasks-per-child", "1")
    pids = [worker.publish("a"), worker.publish("b")]
    worker.let_go("a", "b")
    attempts = [(pids[0], "a", "SUCCESS"), (pids[1], "b", "SUCCESS")]
    expected = sorted([*((pid, "", "before") for pid in pids), *attempts])
    worker.program.wait_for(lambda: worker.delivered() == expected)
    assert worker.program.end(signal.SIGTERM) == 0
    assert worker.delivered() == expected


def test_a_process_of_celerys_has_delivered_when_its_task_is_terminated(celery: Work) -> None:
    worker = celery()
    terminated = worker.publish("a")
    worker.program.tell("app.control.revoke('a', terminate=True)")
    worker.program.wait_for(lambda: worker.delivered() == [(terminated, "", "before")])
    new = worker.publish("b")
    worker.let_go("b")
    assert worker.program.end(signal.SIGTERM) == 0
    told = (worker.program.process.pid, "a", "REVOKED")
    assert worker.delivered() == sorted([told, (terminated, "", "before"), (new, "", "before"), (new, "b", "SUCCESS")])


def test_a_process_of_celerys_that_is_killed_has_delivered_what_ended_an_interval_before(celery: Work) -> None:
    worker = celery(SW_EXPORT_FLUSH_INTERVAL="0.05")
    killed = worker.publish("a", time_limit=1)
    expected = sorted([(worker.program.process.pid, "a", "FAILURE"), (killed, "", "before")])
    worker.program.wait_for(lambda: worker.delivered() == expected)
    assert worker.program.end(signal.SIGTERM) == 0
    assert worker.delivered() == expected
