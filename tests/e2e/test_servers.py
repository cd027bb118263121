"""Servers of other people's, each once plain and once under the agent: traced, stopped as fast, and as quiet.

What happens to their workers when they are recycled, aborted or killed is in `test_ends_of_workers`, and Celery's in
`test_celery`.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from launched import SW_PYTHON, Launch, own_environ
from receivers import silent_collector
from sw_agent.export.store import StoredSpan, read_trace, read_traces

READY = {  # what their workers say
    "celery": "Visit me",
    "gunicorn": "a worker is ready",
    "hypercorn": "Running on",
    "python": "Running on",
    "uvicorn": "Application startup complete",
}
LONGEST = 60.0  # seconds that anything may take on a busy machine
EXIT_TIMEOUT = 15.0  # seconds; what hangs is killed by the servers much later

WORK = """
import os, threading
from concurrent.futures import ThreadPoolExecutor
from opentelemetry import trace
import sw_agent

S = trace.get_tracer("t").start_as_current_span

def step(name):
    with S(name):
        pass

@sw_agent.trace(name="request")
def work():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(step, "in a pool").result()
    thread = threading.Thread(target=step, args=("in a thread",))
    thread.start()
    thread.join()
    return str(os.getpid()).encode()
"""
WSGI = """
from work import work

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [work()]
"""
ASGI = """
import asyncio, os
import sw_agent
from work import step

@sw_agent.trace(name="request")
async def work():
    await asyncio.get_running_loop().run_in_executor(None, step, "in a pool")
    async def in_a_task():
        step("in a task")
    await asyncio.create_task(in_a_task())
    return str(os.getpid()).encode()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in range(2):
            await send({"type": f"{(await receive())['type']}.complete"})
        return
    body = await work()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})
"""
AIOHTTP = """
import socket, sys
from aiohttp import web
from site_asgi import work

async def get(request):
    return web.Response(body=await work())

app = web.Application()
app.router.add_get("/", get)
web.run_app(app, sock=socket.socket(fileno=int(sys.argv[1])), print=lambda _: print("Running on a socket"))
"""
CONF = """
def post_worker_init(worker):
    "Say it: what comes before the handlers of signals are there, gunicorn does not hear."
    print("a worker is ready", flush=True)
"""
FILES = {"work": WORK, "site_wsgi": WSGI, "site_asgi": ASGI, "site_aiohttp": AIOHTTP, "conf": CONF}


def until(condition: Callable[[], Any], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < deadline, what()
        threading.Event().wait(0.02)


def spans_in(store: str) -> list[StoredSpan]:
    return [span for trace in read_traces(store, limit=10**6) for span in read_trace(store, trace.trace_id)]


class Server:
    """A server in a session of its own, on a socket that listens before it is there."""

    def __init__(self, folder: Path, command: str, *, agent: bool, **environ: str) -> None:
        folder.mkdir()
        for name, code in FILES.items():
            (folder / f"{name}.py").write_text(code)
        self.folder = folder
        self.answered: list[int] = []
        self._ready = READY[command.split()[0]]
        self._times_ready = 0
        self._store = str(folder / "traces.db")
        self._said = folder / "said"
        exports = {"SW_EXPORT_TO": "local", "SW_EXPORT_PATH": self._store, "SW_EXPORT_EXIT_TIMEOUT": str(EXIT_TIMEOUT)}
        with socket.create_server(("127.0.0.1", 0)) as listener, open(self._said, "wb") as said:
            self._address = listener.getsockname()
            self._process = subprocess.Popen(
                [*((SW_PYTHON, "run", "--") if agent else ()), *command.replace("FD", str(listener.fileno())).split()],
                cwd=folder,
                env=own_environ(folder, **{"PYTHONUNBUFFERED": "1", **exports, **environ}),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._said.read_text()

    def wait_until_ready(self, workers: int) -> None:
        """Wait until so many more workers have said that they are."""
        self._times_ready += workers

        def is_ready() -> bool:
            assert self._process.poll() is None, self.said
            return self.said.count(self._ready) >= self._times_ready

        until(is_ready, lambda: self.said)

    def get(self, path: str = "/", unix_socket: Path | None = None) -> bytes:
        """Send a request, and return the answer."""
        with socket.socket(socket.AF_UNIX) if unix_socket else socket.socket() as connection:
            connection.settimeout(LONGEST)
            connection.connect(str(unix_socket) if unix_socket else self._address)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while data := connection.recv(65536):
                answer += data
        return answer

    def ask(self) -> int:
        """Send a request, and return the id of the process that has answered."""
        answer = self.get()
        found = re.search(rb"\r\n\r\n(?:\w+\r\n)?(\d+)", answer)  # perhaps in a chunk
        assert found, answer
        self.answered.append(int(found[1]))
        return self.answered[-1]

    def hang_up(self) -> None:
        """Let it reload by SIGHUP."""
        self._process.send_signal(signal.SIGHUP)

    def edit(self) -> None:
        """Change a source file until the worker has gone; the server may not look at it yet the first time."""
        looks = itertools.count()

        def has_been_seen() -> bool:
            if (look := next(looks)) % 250 == 0:
                later = time.time() + 10 + look
                os.utime(self.folder / "work.py", (later, later))
            return self.answered[-1] not in self.processes()

        until(has_been_seen, lambda: self.said)

    def processes(self) -> dict[int, str]:
        """Return id and state of each process in its session."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                state, _, _, session, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                if int(session) == self._process.pid:
                    found[int(pid)] = state
        return found

    def wait_until_only(self, states: str) -> None:
        """Wait until all its processes are in one of these states; Z are zombies."""
        until(
            lambda: all(state in states for state in self.processes().values()),
            lambda: f"{self.processes()}\n{self.said}",
        )

    def stop(self, number: int) -> tuple[int, float]:
        """Send a signal, wait for the end, and return the exit status and the seconds that it took."""
        begin = time.monotonic()
        self._process.send_signal(number)
        try:
            status = self._process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not end: {self.processes()}\n{self.said}")
        took = time.monotonic() - begin
        self.wait_until_only("Z")  # what nobody waits for any more is left to the first process of the system
        return status, took

    def said_each_time(self) -> list[str]:
        """Return the lines on stdout and stderr, without what is different each time."""
        text = self.said.replace(str(self.folder), "FOLDER")
        return sorted(set(re.sub(r"\d+", "N", text).splitlines()))

    def spans(self) -> list[StoredSpan]:
        return spans_in(self._store)

    def close(self) -> None:
        """Leave none of its processes running."""
        with self._process, suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def version_of(library: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", importlib.metadata.version(library))))


Both = Callable[..., tuple[Server, Server]]


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    """Start a server plain, and the same under the agent; none of their processes is left running."""
    with ExitStack() as stack:

        def start(command: str, **environ: str) -> tuple[Server, Server]:
            plain = Server(tmp_path / "plain", command, agent=False, **environ)
            stack.callback(plain.close)
            traced = Server(tmp_path / "traced", command, agent=True, **environ)
            stack.callback(traced.close)
            return plain, traced

        yield start


GUNICORN = "gunicorn -b fd://FD -c conf.py --graceful-timeout 90"
UVICORN = "uvicorn --fd FD site_asgi:app"
HYPERCORN = "hypercorn -b fd://FD --graceful-timeout 90 site_asgi:app"

# command, workers, what makes them reload, what ends it
SERVERS: dict[str, tuple[str, int, Callable[[Server], None] | None, int]] = {
    "gunicorn, threads": (f"{GUNICORN} -k gthread --threads 2 site_wsgi:app", 1, Server.hang_up, signal.SIGTERM),
    "gunicorn, preloaded": (f"{GUNICORN} -w 2 -k gthread --preload site_wsgi:app", 2, None, signal.SIGINT),
    "gunicorn, gevent": (f"{GUNICORN} -k gevent site_wsgi:app", 1, None, signal.SIGTERM),
    "gunicorn --reload": (f"{GUNICORN} --reload site_wsgi:app", 1, Server.edit, signal.SIGTERM),
    "uvicorn --workers": (f"{UVICORN} --workers 2", 2, None, signal.SIGTERM),
    "uvicorn --reload": (f"{UVICORN} --reload", 1, Server.edit, signal.SIGINT),
    "hypercorn": (f"{HYPERCORN} -w 2", 2, None, signal.SIGTERM),
    "hypercorn --reload": (f"{HYPERCORN} --reload", 1, Server.edit, signal.SIGINT),
    "aiohttp": ("python site_aiohttp.py FD", 1, None, signal.SIGINT),
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_traced_and_reloads_and_ends_as_without_the_agent(both: Both, name: str) -> None:
    if "gevent" in name and version_of("gevent") < (24, 10):
        pytest.skip("gunicorn's worker needs gevent 24.10.1")
    command, workers, reload, number = SERVERS[name]
    plain, traced = both(command)
    for server in (plain, traced):
        server.wait_until_ready(workers)
        old = [server.ask() for _ in range(4)]
        if reload is not None:
            reload(server)
            server.wait_until_ready(workers)
            until(lambda: old[0] not in server.processes(), lambda: server.said)  # noqa: B023
            assert server.ask() != old[0]
        server.wait_until_only("RSD")
    status, took = plain.stop(number)
    traced_status, traced_took = traced.stop(number)
    assert traced_status == status
    assert traced_took < took + EXIT_TIMEOUT
    assert traced.said_each_time() == plain.said_each_time()

    spans = traced.spans()
    requests = [span for span in spans if span.name == "request"]
    steps = ["in a pool", "in a thread" if "wsgi" in command else "in a task"]
    assert Counter(span.resource["process.pid"] for span in requests) == Counter(traced.answered)
    assert sorted((span.name, span.parent_id) for span in spans if span.name.startswith("in a")) == sorted(
        (step, request.span_id) for step in steps for request in requests
    )


def test_a_server_ends_in_time_where_the_collector_hangs(both: Both) -> None:
    with silent_collector() as endpoint:
        to = {"SW_EXPORT_TO": "otlp", "SW_EXPORT_ENDPOINT": endpoint, "SW_EXPORT_EXIT_TIMEOUT": "3"}
        plain, traced = both(f"{GUNICORN} -w 2 site_wsgi:app", **to)
        for server in (plain, traced):
            server.wait_until_ready(2)
            for _ in range(4):
                server.ask()
        status, took = plain.stop(signal.SIGTERM)
        traced_status, traced_took = traced.stop(signal.SIGTERM)
    assert traced_status == status
    assert traced_took < took + 3 + EXIT_TIMEOUT  # on a busy machine; what waits for an answer is killed after 90
    more = set(traced.said_each_time()) - set(plain.said_each_time())
    assert more
    assert all(line.startswith("sw-python: WARNING: spans ") for line in more), more


def test_flower_ends_as_without_the_agent(both: Both) -> None:
    for server in (servers := both("celery -b memory:// flower --unix-socket=socket")):
        server.wait_until_ready(1)
        assert b"200 OK" in server.get("/healthcheck", server.folder / "socket")
    (status, took), (traced_status, traced_took) = (server.stop(signal.SIGTERM) for server in servers)
    plain, traced = servers
    assert traced_status == status
    assert traced_took < took + EXIT_TIMEOUT
    assert traced.said_each_time() == plain.said_each_time()


# Programs that leave the terminal

DAEMON = """
import os, signal, sys
from work import work

def redouble():
    "Leave the session and the terminal behind, as daemons have always done."
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(3, 256)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)

def of_a_library():
    import daemon
    daemon.DaemonContext(working_directory=os.getcwd()).open()

def supervise():
    "Fork a worker, and another one in its place."
    if not os.fork():
        work()
        os._exit(3)
    assert os.WEXITSTATUS(os.wait()[1]) == 3
    if not os.fork():
        return
    os.wait()
    os._exit(0)

work()
globals()[sys.argv[1]]()
signal.alarm(100)  # for nobody knows its id if it hangs
work()
alive = open("alive", "w")  # until the very end
print(os.getpid(), file=alive, flush=True)
signal.pause()
"""


@pytest.mark.parametrize(("way", "processes"), [("redouble", 2), ("of_a_library", 2), ("supervise", 3)])
def test_a_daemon_is_traced_and_ends_at_once(tmp_path: Path, way: str, processes: int) -> None:
    """Spans are written once a minute here: what arrives left because a process has ended."""
    for name, code in {"work": WORK, "program": DAEMON}.items():
        (tmp_path / f"{name}.py").write_text(code)
    os.mkfifo(tmp_path / "alive")
    store = str(tmp_path / "traces.db")
    with subprocess.Popen(
        [SW_PYTHON, "run", "python", "program.py", way],
        cwd=tmp_path,
        env=own_environ(
            tmp_path,
            SW_EXPORT_TO="local",
            SW_EXPORT_PATH=store,
            SW_EXPORT_FLUSH_INTERVAL="60",
            SW_EXPORT_EXIT_TIMEOUT=str(EXIT_TIMEOUT),
        ),
        stderr=subprocess.PIPE,
    ) as starter:
        with open(tmp_path / "alive") as alive:
            pid = int(alive.readline())
            os.kill(pid, signal.SIGTERM)
            assert alive.read() == ""  # to its end, which is the daemon's
        assert starter.communicate(timeout=LONGEST) == (None, b"")
    assert starter.returncode == 0
    requests = [span for span in spans_in(store) if span.name == "request"]
    assert len({span.resource["process.pid"] for span in requests}) == len(requests) == processes
    assert {starter.pid, pid} <= {span.resource["process.pid"] for span in requests}


EVENTLET = """
import eventlet
eventlet.monkey_patch()
import sys, threading
from eventlet import tpool
from opentelemetry import trace

S = trace.get_tracer("program").start_as_current_span

def current():
    return getattr(trace.get_current_span(), "name", None)

for name in ("first", "second"):
    with S(name):
        seen = []
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
        print(name, *seen, eventlet.spawn(current).wait(), tpool.execute(current))

agents = [vars(module).values() for name, module in sys.modules.items() if name.startswith("sw_agent.")]
print("the agent's locks for greenlets:", [v for values in agents for v in values if "threading._RLock" in repr(v)])
"""


@pytest.mark.skipif(find_spec("eventlet") is None, reason="needs eventlet")
def test_a_program_that_eventlet_has_patched_runs_as_without_the_agent(launch: Launch) -> None:
    """Its threads follow the work; its greenlets, and the pool of threads that it has for itself, belong to nobody."""
    program = launch(EVENTLET, prelude="", PYTHONWARNINGS="ignore")
    locks = "the agent's locks for greenlets: []\n"
    assert program.end() == f"first first None None\nsecond second None None\n{locks}"
    assert program.names() == ["first", "second"]
