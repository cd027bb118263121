"""`sw-python traces`: the list of what a real store file holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Status, StatusCode, set_span_in_context

from made_spans import send
from sw_agent.cli import main
from sw_agent.export.store import Store

MS = 1_000_000


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("SW_", "OTEL_", "COLUMNS")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def record(path, service, name, *, ago_s=60, duration_ms=100, error=False):
    """Write a trace of two spans, `name` and a child of it, into the store."""
    spans = []
    tracer = TracerProvider(resource=Resource({"service.name": service})).get_tracer("test")
    start_ns = time.time_ns() - ago_s * 1_000_000_000
    root = tracer.start_span(name, start_time=start_ns)
    child = tracer.start_span("child", set_span_in_context(root), start_time=start_ns + MS)
    if error:
        child.set_status(Status(StatusCode.ERROR, "broken"))
    child.end(start_ns + 2 * MS)
    root.end(start_ns + duration_ms * MS)
    spans += [child, root]
    store = Store(str(path), 10_000_000)
    assert send(store, spans) == []
    store.close()
    return f"{root.get_span_context().trace_id:032x}"


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "traces.db"
    record(path, "shop", "GET /cart", ago_s=7200, duration_ms=1500)
    record(path, "shop", "GET /pay", ago_s=300, error=True)
    record(path, "stock", "count", ago_s=10, duration_ms=3)
    return path


def run(*arguments):
    return main(["traces", *map(str, arguments)])


def listed(capsys, *arguments):
    assert run("--json", *arguments) == 0
    return [trace["root_name"] for trace in json.loads(capsys.readouterr().out)]


def test_the_newest_trace_comes_first_with_all_that_is_known_of_it(store, capsys):
    assert run("--path", store) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["trace", "when", "began", "service", "root", "span", "time", "spans", "errors"]
    assert [line.split()[-1] for line in lines] == ["0", "1", "0"]
    for part in ("min ago", time.strftime("%Y-"), "shop", "GET /pay", "100 ms"):
        assert part in lines[1]
    assert "2 h ago" in lines[2]
    assert "1.50 s" in lines[2]


def test_json_is_one_array_of_objects(store, capsys):
    assert run("--path", store, "--json") == 0
    newest = json.loads(capsys.readouterr().out)[0]
    assert set(newest) == {"trace_id", "service", "root_name", "start_ns", "duration_ns", "spans", "errors"}
    assert (newest["service"], newest["duration_ns"], newest["spans"]) == ("stock", 3 * MS, 2)
    assert len(newest["trace_id"]) == 32


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--service", "shop"], ["GET /pay", "GET /cart"]),
        (["--name", "cart"], ["GET /cart"]),
        (["--min-duration", "1s"], ["GET /cart"]),
        (["--min-duration", "50"], ["GET /pay", "GET /cart"]),
        (["--errors"], ["GET /pay"]),
        (["--since", "10m"], ["count", "GET /pay"]),
        (["--since", "2000-01-01T10:00"], ["count", "GET /pay", "GET /cart"]),
        (["--since", "2999-01-01"], []),
        (["--limit", "1"], ["count"]),
        (["--service", "shop", "--since", "10m"], ["GET /pay"]),
    ],
)
def test_filters_leave_what_they_say(store, capsys, arguments, expected):
    assert listed(capsys, "--path", store, *arguments) == expected


@pytest.mark.parametrize(
    "arguments", [["--since", "yesterday"], ["--since", "10x"], ["--min-duration", "soon"], ["--limit", "0"]]
)
def test_a_filter_that_makes_no_sense_is_a_usage_error(store, capsys, arguments):
    assert run("--path", store, *arguments) == 2
    assert arguments[1] in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b""])
def test_a_store_that_is_missing_or_empty_says_how_to_get_a_trace(tmp_path, capsys, content):
    path = tmp_path / "traces.db"
    if content is not None:
        path.write_bytes(content)
    assert run("--path", path) == 0
    assert "sw-python run" in capsys.readouterr().out
    assert run("--path", path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_no_match_is_said(store, capsys):
    assert run("--path", store, "--service", "nobody") == 0
    assert capsys.readouterr().out == f"No trace in {store} is like that.\n"


def test_a_file_that_is_no_store_is_an_error_in_one_line(tmp_path, capsys):
    path = tmp_path / "traces.db"
    path.write_text("hello, I am no database\n" * 100)
    assert run("--path", path) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sw-python: ")
    assert captured.err.count("\n") == 1


def test_the_configured_store_is_read(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SW_EXPORT_PATH", str(store))
    assert len(listed(capsys)) == 3
    monkeypatch.delenv("SW_EXPORT_PATH")
    (tmp_path / "other.toml").write_text(f'[export]\npath = "{store}"\n')
    assert len(listed(capsys, "--config", tmp_path / "other.toml")) == 3
    assert listed(capsys) == []


def test_a_wrong_configuration_is_said_and_the_status_is_two(tmp_path, capsys):
    (tmp_path / "agent.toml").write_text("[exprot]\n")
    assert run() == 2
    assert "exprot" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_pipe_closed_early_is_no_error(tmp_path, options):
    path = tmp_path / "traces.db"
    for _ in range(20):
        record(path, "shop", "GET /" + "x" * 3000)
    command = [Path(sys.executable).parent / "sw-python", "traces", *options, "--path", path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_narrow_terminal_still_says_what_matters(store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    record(store, "a service with a long name", "a root span with a very long name", ago_s=1)
    assert run("--path", store) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert len(line) <= 60
    assert line.split()[-4:] == ["100", "ms", "2", "0"]
    assert "s ago" in line
