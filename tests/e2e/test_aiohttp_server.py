"""aiohttp's server as a whole program under the agent: what it prints, how it ends, what arrives of its requests."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launched import SW_PYTHON, Launch, Launched, own_environ
from receivers import attributes_of, http_collector

SERVER = """
import asyncio, sys
from aiohttp import web

async def hello(request):
    return web.Response(text="hello")

async def waits(request):
    print("waiting", flush=True)
    await asyncio.Event().wait()

async def fails(request):
    raise ValueError("no stock")

async def says_where(app):
    async def later():
        while not runner_of(app): await asyncio.sleep(0.001)
        print(runner_of(app), flush=True)
    asyncio.create_task(later())

def runner_of(app):
    import gc
    for site in (each for each in gc.get_objects() if type(each).__name__ == "TCPSite"):
        if site._server is not None:
            return site._server.sockets[0].getsockname()[1]

app = web.Application()
app.router.add_get("/hello/{name}", hello)
app.router.add_get("/waits", waits)
app.router.add_get("/fails", fails)
app.on_startup.append(says_where)
web.run_app(app, host="127.0.0.1", port=0, print=None, shutdown_timeout=0.1, access_log=None)
"""


def ask(port: int, head: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + b"\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := connection.recv(65536):
            answer += data
        return answer


GET = b"GET /hello/world HTTP/1.1\r\nHost: shop.test"


def started(launch: Launch, **environ: str) -> tuple[Launched, int]:
    program = launch(SERVER, prelude="", **environ)
    return program, int(program.read_line())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_stopped_delivers_its_requests_also_the_one_that_was_running(
    launch: Launch, number: signal.Signals
) -> None:
    program, port = started(launch, PYTHONDEVMODE="1")
    assert ask(port, GET).endswith(b"hello")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /waits HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        assert program.read_line() == "waiting"
        program.process.send_signal(number)
        out, err = program.end_with_stderr()
    assert out == ""
    slow = re.compile(r"Executing <.* took .* seconds")  # how fast this machine is now
    assert [line for line in err.splitlines() if not slow.match(line)] == []
    assert program.names() == ["GET /hello/{name}", "GET /waits"]
    assert {span.status for span in program.spans()} == {"UNSET"}


def test_bytes_that_are_no_text_reach_the_store(launch: Launch) -> None:
    program, port = started(launch, SW_PLUGIN_AIOHTTP_SERVER_REQUEST_HEADERS="X-A")
    ask(port, GET + b"\r\nUser-Agent: \xff\xfe\r\nX-A: \xe9\r\nbaggage: a=\xff")
    program.process.send_signal(signal.SIGTERM)
    program.end()
    (span,) = program.spans()
    assert span.attributes["user_agent.original"] == "??"


def test_bytes_that_are_no_text_reach_a_collector(launch: Launch) -> None:
    with http_collector() as received:
        program, port = started(
            launch,
            SW_EXPORT_TO="otlp",
            OTEL_EXPORTER_OTLP_ENDPOINT=received.endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        )
        ask(port, GET + b"\r\nUser-Agent: \xff\xfe")
        program.process.send_signal(signal.SIGTERM)
        program.end()
        (span,) = received.spans
    assert span.name == "GET /hello/{name}"
    assert attributes_of(span)["user_agent.original"] == "??"


def test_the_server_logs_the_same_with_and_without_the_agent(launch: Launch, tmp_path: Path) -> None:
    program, port = started(launch)
    ask(port, b"GET /fails HTTP/1.1\r\nHost: shop.test")
    program.process.send_signal(signal.SIGTERM)
    _, traced = program.end_with_stderr()
    plain = subprocess.Popen(
        [sys.executable, "-u", "app.py"],
        cwd=tmp_path,
        env=own_environ(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with plain:
        assert plain.stdout is not None
        ask(int(plain.stdout.readline()), b"GET /fails HTTP/1.1\r\nHost: shop.test")
        plain.send_signal(signal.SIGTERM)
        _, said = plain.communicate(timeout=60)
    assert "ValueError: no stock" in said
    assert traced == said


def test_idle_connections_do_not_delay_the_end(launch: Launch) -> None:
    program, port = started(launch)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(GET + b"\r\n\r\n")
        answer = b""
        while not answer.endswith(b"hello"):
            answer += connection.recv(65536)
        program.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        program.end()
    assert time.monotonic() - begun < 30  # aiohttp would keep the connection for more than an hour


def test_a_program_that_only_is_a_client_does_not_load_the_plugin(launch: Launch) -> None:
    program = launch("import sys, aiohttp; print('sw_agent_plugins.aiohttp_server' in sys.modules)", prelude="")
    assert program.end() == "False\n"


def test_the_plugin_is_listed_with_the_version_that_is_here(tmp_path: Path) -> None:
    done = subprocess.run(
        [SW_PYTHON, "plugins"], env=own_environ(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    (line,) = [line for line in done.stdout.splitlines() if line.split()[:1] == ["aiohttp-server"]]
    assert "on" in line.split()


def test_a_processor_of_the_programs_sees_the_attributes_of_a_request_that_begins(launch: Launch) -> None:
    watching = """
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor

class Watcher(SpanProcessor):
    def on_start(self, span, parent_context=None):
        print(span.name, span.attributes.get("url.path"), flush=True)

trace.get_tracer_provider().add_span_processor(Watcher())
"""
    program = launch(watching + SERVER, prelude="")
    ask(int(program.read_line()), GET)
    program.process.send_signal(signal.SIGTERM)
    assert program.end() == "GET /hello/world\n"


def test_requests_have_all_their_attributes_in_the_store(launch: Launch) -> None:
    program, port = started(launch, SW_PLUGIN_AIOHTTP_SERVER_REQUEST_HEADERS="X-A")
    ask(port, GET + b"\r\nUser-Agent: curl/8\r\nX-A: 1")
    program.process.send_signal(signal.SIGTERM)
    program.end()
    (span,) = program.spans()
    assert span.kind == "SERVER"
    for key, value in {
        "http.request.method": "GET",
        "url.path": "/hello/world",
        "url.scheme": "http",
        "http.route": "/hello/{name}",
        "http.response.status_code": 200,
        "http.request.header.x-a": ["1"],
        "server.address": "shop.test",
        "network.protocol.version": "1.1",
        "user_agent.original": "curl/8",
    }.items():
        assert span.attributes[key] == value
    assert "thread.id" in span.attributes
