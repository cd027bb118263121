"""`kill -9` at any moment: what had ended an interval before is there, in its order, and the store is sound."""

from __future__ import annotations

import json
import sqlite3
import statistics
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from launched import Launched
from receivers import nobody

INTERVAL = 0.05
KILLS = 60
PROGRAM = f"""
import json, os, random, select, signal, struct, time

def work(child, write):
    number = 0
    while True:
        with S(f"{{child}}.{{number}}"): pass
        os.write(write, struct.pack("d", time.monotonic()))
        number += 1
        time.sleep(0.001)

with S("first"): pass
trace.get_tracer_provider().force_flush()  # which imports what sending needs: once, and before anybody is killed
for first in range(0, {KILLS}, 5):
    children = {{}}
    for child in range(first, first + 5):
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            work(child, write)
        os.close(write)
        children[child] = pid, read
    for child, (pid, read) in children.items():
        time.sleep(random.uniform(0, 0.3))
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        os.waitpid(pid, 0)
        with open(read, "rb") as file:
            ended = [time for time, in struct.iter_unpack("d", file.read())]
        print(json.dumps([child, killed, ended]))
"""


def in_store(path: str) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [name for (name,) in database.execute("SELECT name FROM spans")]


def in_spool(path: str) -> list[str]:
    names = []
    with closing(sqlite3.connect(path)) as database:
        for (body,) in database.execute("SELECT body FROM spool"):
            for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
                names += [span.name for scope_spans in resource_spans.scope_spans for span in scope_spans.spans]
    return names


@pytest.mark.parametrize("to", ["local", "otlp"])
def test_processes_that_are_killed_lose_what_ended_in_the_last_interval_and_no_more(tmp_path: Path, to: str) -> None:
    with nobody() as endpoint:
        app = Launched(
            tmp_path, PROGRAM, SW_EXPORT_TO=to, SW_EXPORT_ENDPOINT=endpoint, SW_EXPORT_FLUSH_INTERVAL=str(INTERVAL)
        )
        try:
            out, _ = app.end_with_stderr()
        finally:
            app.close()
    kept = defaultdict(set)
    names = in_store(app.store) if to == "local" else in_spool(app.store)
    assert len(names) == len(set(names))
    names.remove("first")
    for name in names:
        child, number = map(int, name.split("."))
        kept[child].add(number)
    ages = []
    children = [json.loads(line) for line in out.splitlines()]
    assert len(children) == KILLS
    for child, killed, ended in children:
        count = len(kept[child])
        assert kept[child] == set(range(count))  # nothing is missing before something that is there
        ages.append(killed - ended[count] if count < len(ended) else 0.0)
    # The age of the oldest span that was lost, of half of the processes; others wait longer for a busy machine.
    assert statistics.median(ages) < INTERVAL + 0.2
    assert max(ages) < 5
    assert sum(map(len, kept.values())) > KILLS
    with closing(sqlite3.connect(app.store)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
