"""aiohttp's applications in gunicorn's worker processes, under the agent."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

from launched import Launch

GUNICORN = """
import sys
from gunicorn.app.wsgiapp import run
options = "-k aiohttp.GunicornWebWorker -w 2 -b unix:socket -c conf.py --graceful-timeout 20"
sys.argv = ["gunicorn", "site_of_two:app", *options.split()]
run()
"""
SITE = """
import os
from aiohttp import web

async def hello(request):
    return web.json_response(os.getpid())

app = web.Application()
app.router.add_get("/users/{id}", hello)
"""


def ask(address: str) -> int:
    """Ask for a user over a connection of its own, and return the id of the process that has answered."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(b"GET /users/7 HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return int(json.loads(answer.partition(b"\r\n\r\n")[2]))


def test_every_worker_delivers_its_requests_before_it_ends(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "site_of_two.py").write_text(SITE)
    (tmp_path / "conf.py").write_text("def when_ready(server): print('ready', flush=True)")
    program = launch(GUNICORN, prelude="")
    assert program.read_line() == "ready"
    answered: list[int] = []
    while len(set(answered)) < 2 or len(answered) < 20:
        assert len(answered) < 1000, "one worker takes all requests"
        answered.append(ask(str(tmp_path / "socket")))
    program.process.send_signal(signal.SIGTERM)
    out, err = program.end_with_stderr()
    assert out == ""
    assert "sw-python" not in err
    spans = program.spans()
    assert {(span.name, span.status, span.parent_id) for span in spans} == {("GET /users/{id}", "UNSET", None)}
    assert sorted(span.resource["process.pid"] for span in spans) == sorted(answered)
