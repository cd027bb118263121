"""What the plugin aiohttp-server adds to a request: a trivial handler plain and traced, alternating, in one run.

`python benchmarks/aiohttp_server.py [rounds] [requests]` prints microseconds per request, the least of the rounds: the
machine's other work only adds. The client is a loop over one raw keep-alive connection in a process of its own; what
counts is the CPU time of the server's process. "recorded" makes and drops the spans, before any export; "stored" is the
whole way into the local store, with the thread that writes it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

SW_PYTHON = str(Path(sys.executable).with_name("sw-python"))
BUDGET = 60.0  # microseconds of a request, recorded

SERVER = """
import asyncio, sys, time
from aiohttp import web

async def hello(request):
    return web.Response(text="hello")

async def cpu(request):
    return web.Response(text=str(time.process_time()))

async def main():
    app = web.Application()
    app.router.add_get("/users/{id}", hello)
    app.router.add_get("/cpu", cpu)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()

asyncio.run(main())
"""

HEADERS = (
    "Host: shop.test:8080\r\nUser-Agent: benchmark/1.0\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n{parent}\r\n"
)
PARENT = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n"


class Server:
    """A server's process, and the connection to it."""

    def __init__(self, script: Path, environ: dict[str, str], *agent: str) -> None:
        command = [*agent, sys.executable, str(script)]
        self.process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.connection = socket.create_connection(("127.0.0.1", int(self.process.stdout.readline())))

    def ask(self, request: bytes) -> bytes:
        """Send a request and return its answer, which comes in one piece."""
        self.connection.sendall(request)
        answer = self.connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        return answer

    def cpu(self) -> float:
        """Return the seconds of CPU that the server has used."""
        return float(self.ask(b"GET /cpu HTTP/1.1\r\nHost: a\r\n\r\n").rpartition(b"\r\n")[2])

    def microseconds(self, request: bytes, count: int) -> float:
        """Return the CPU time of one request."""
        before = self.cpu()
        for _ in range(count):
            self.ask(request)
        return (self.cpu() - before) / count * 1e6

    def close(self) -> None:
        """End the server as a program ends."""
        self.connection.close()
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()


def main(rounds: int, count: int) -> None:
    """Measure and print every row."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SW_", "OTEL_"))}
        environ["XDG_STATE_HOME"] = folder
        script = Path(folder, "server.py")
        script.write_text(SERVER)
        servers = {
            "plain": Server(script, environ),
            "without the plugin": Server(
                script, environ, SW_PYTHON, "run", "--to", "none", "--disable", "aiohttp-server", "--"
            ),
            "recorded": Server(script, environ, SW_PYTHON, "run", "--to", "none", "--"),
            "stored": Server(script, environ, SW_PYTHON, "run", "--to", "local", "--"),
        }
        print(f"{'':24}{'':16}{'µs':>8}{'added':>8}")
        for name, parent in (("no parent", ""), ("traceparent", PARENT)):
            request = f"GET /users/7?a=b HTTP/1.1\r\n{HEADERS.format(parent=parent)}".encode()
            times: dict[str, list[float]] = {kind: [] for kind in servers}
            for _ in range(rounds):
                for kind, server in servers.items():
                    times[kind].append(server.microseconds(request, count))
            plain = min(times["plain"])
            for kind, measured in times.items():
                added = min(measured) - plain
                over = "  over" if kind == "recorded" and added > BUDGET else ""
                print(f"{kind:24}{name:16}{min(measured):8.1f}{added:+8.1f}{over}")
        for server in servers.values():
            server.close()


if __name__ == "__main__":
    main(*(int(given) for given in (*sys.argv[1:], *("7", "2000")[len(sys.argv) - 1 :])))
