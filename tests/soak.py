"""A soak: a service that records at full speed, and forks, before a collector that fails in every way, time and again.

`python tests/soak.py SECONDS` ends with status 1 where a span arrived twice or neither arrived nor was counted as
dropped, or where the service's memory grew. Each span's name says who made it and its number.
"""

from __future__ import annotations

import random
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from launched import Launched
from sw_agent.export.stored import StoreError, read_spool

SERVICE = """
import os, threading, time
until = time.monotonic() + {seconds}

def produce(who, until):
    number = 0
    while time.monotonic() < until:
        for _ in range(100):
            with S(f"{{who}}.{{number}}", attributes={{"text": "x" * 20, "number": number}}): pass
            number += 1
        if who != "fast":
            time.sleep(0.005)
    os.write(1, f"in {{who}} {{number}}\\n".encode())

threads = [threading.Thread(target=produce, args=(who, until)) for who in ("fast", "slow")]
for thread in threads: thread.start()
child = 0
while time.monotonic() < until - 1:
    child += 1
    pid = os.fork()
    if not pid:
        produce(f"child{{child}}", time.monotonic() + 0.2)
        (os._exit if child % 2 else exit)(0)
    os.waitpid(pid, 0)
    time.sleep(0.3)
for thread in threads: thread.join()
"""
LAST = "with S('last{number}.0'): pass\nprint('in last{number} 1')"
MODES = ("ok", "ok", "503", "429", "hangs", "closes", "garbage", "slow", "away")
MOST_GROWTH = 40  # MB between the first and the last third of the time


class Collector:
    """Takes spans, or fails in the way that `mode` says."""

    def __init__(self) -> None:
        self.mode = "ok"
        self.changed = threading.Event()
        self.arrived: dict[str, bytearray] = defaultdict(bytearray)
        self.twice = 0
        self.port = 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.open()

    def open(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        self._server.handle_error = lambda *args: None  # type: ignore[method-assign]  a client that has gone
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def change(self, mode: str) -> None:
        before, self.mode = self.mode, mode
        self.changed.set()
        self.changed = threading.Event()
        if mode == "away":
            self.close()
        elif before == "away":
            self.open()

    def take(self, body: bytes) -> None:
        with self._lock:
            for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope_spans in resource_spans.scope_spans:
                    for span in scope_spans.spans:
                        who, _, number = span.name.partition(".")
                        seen, index = self.arrived[who], int(number)
                        if len(seen) <= index:
                            seen.extend(bytes(index + 1 - len(seen)))
                        self.twice += seen[index]
                        seen[index] = 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                mode, changed = collector.mode, collector.changed
                if mode in ("hangs", "closes", "garbage", "away"):
                    if mode == "hangs":
                        changed.wait()
                    if mode == "garbage":
                        self.wfile.write(b"\x00\xffno HTTP\r\n\r\n")
                    self.close_connection = True
                    return
                if mode == "slow":
                    time.sleep(0.2)
                status = int(mode) if mode.isdecimal() else 200
                if status == 200:
                    collector.take(body)
                self.send_response(status)
                if mode == "429":
                    self.send_header("Retry-After", "1")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        return Handler


def memory(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def main(seconds: float) -> int:
    """Soak for that long, print the books, and return the exit status."""
    collector = Collector()
    settings = {
        "SW_EXPORT_TO": "otlp",
        "SW_EXPORT_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        # Who gives up before a slow collector has answered sends again what that has taken: the span arrives twice.
        "SW_EXPORT_TIMEOUT": "30",
        "SW_EXPORT_EXIT_TIMEOUT": "30",
        "SW_AGENT_NAME": "soak",
        "PYTHONWARNINGS": "ignore:This process:DeprecationWarning",
    }
    with tempfile.TemporaryDirectory() as folder:
        app = Launched(Path(folder), SERVICE.format(seconds=seconds), **settings)
        output: list[str] = []
        readers = [
            threading.Thread(target=output.extend, args=(stream,))
            for stream in (app.process.stdout, app.process.stderr)
        ]
        for reader in readers:
            reader.start()
        sizes = []
        next_change = time.monotonic()
        while app.process.poll() is None:
            if time.monotonic() > next_change:
                collector.change(random.choice(MODES))
                next_change = time.monotonic() + random.uniform(0.5, 4)
            sizes.append(memory(app.process.pid))
            time.sleep(0.1)
        for reader in readers:
            reader.join()
        collector.change("ok")
        status = app.process.returncode
        while waiting(app):
            last = Launched(Path(folder), LAST.format(number=len(output)), **settings)
            output += "\n".join(last.end_with_stderr()).splitlines()
    collector.close()
    begun = {line.split()[1]: int(line.split()[2]) for line in output if line.startswith("in ")}
    dropped = [match for line in output for match in re.findall(r"(\d+) ([a-z ]+)(?: \(|,|$)", said(line))]
    lost = sum(int(count) for count, _ in dropped)
    arrived = sum(sum(seen) for seen in collector.arrived.values())
    third = max(1, len(sizes) // 3)
    growth = statistics.median(sizes[-third:]) - statistics.median(sizes[:third])
    by_reason: dict[str, int] = defaultdict(int)
    for count, reason in dropped:
        by_reason[reason] += int(count)
    print(
        f"{sum(begun.values()):,} spans in {seconds:g} s by {len(begun)} producers: {arrived:,} arrived, {lost:,} "
        f"dropped {dict(by_reason)}, {sum(begun.values()) - arrived - lost:,} missing, {collector.twice:,} twice; "
        f"memory {max(sizes):.0f} MB at most, grown by {growth:.0f} MB; exit status {status}"
    )
    good = sum(begun.values()) == arrived + lost and not collector.twice and growth < MOST_GROWTH and status == 0
    if not good:
        short = {who: count - sum(collector.arrived[who]) for who, count in begun.items()}
        print(f"not arrived, of each producer: { {who: count for who, count in short.items() if count} }")
        print("\n".join(line for line in output if not line.startswith("in ")))
    return 0 if good else 1


def said(line: str) -> str:
    """Return what a line of the agent's says of dropped spans."""
    return line.partition("spans dropped: ")[2].rstrip("\n")


def waiting(app: Launched) -> int:
    """Return how many spans are in the spool."""
    try:
        return sum(found.spans for found in read_spool(app.store))
    except StoreError:  # nothing was ever kept
        return 0


if __name__ == "__main__":
    socket.setdefaulttimeout(60)
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 600))
