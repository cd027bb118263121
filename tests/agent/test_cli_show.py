"""`sw-python show`: one trace of a real store file, as a picture or as JSON."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, set_span_in_context

from made_spans import send
from sw_agent.cli import main, show
from sw_agent.export.store import Store

MS = 1_000_000


def record(path, name, *, run=None, ago_s=0, children=1):
    """Write a trace: a root, and children each failed with a ValueError."""
    tracer = TracerProvider(resource=Resource({"service.name": "shop", "process.pid": 7})).get_tracer("test")
    start_ns = time.time_ns() - ago_s * 1_000_000_000
    root = tracer.start_span(name, start_time=start_ns, attributes={"thread.name": "MainThread", "n": 1})
    spans = [root]
    for number in range(children):
        link = Link(root.get_span_context(), {"why": "test"})
        begin = start_ns + number * MS
        child = tracer.start_span("töp/child", set_span_in_context(root), start_time=begin, links=[link])
        child.record_exception(ValueError("no milk"))
        child.end(begin + MS)
        spans.append(child)
    root.end(start_ns + 100 * MS)
    store = Store(str(path), 10_000_000, run)
    assert send(store, spans) == []
    store.close()
    return f"{root.get_span_context().trace_id:032x}"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "traces.db"


def run(*arguments):
    return main(["show", *map(str, arguments)])


def as_a_process(*arguments, **options):
    environ = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    environ.update(options.pop("environ", {}))
    return subprocess.run(
        [Path(sys.executable).parent / "sw-python", "show", *arguments], env=environ, timeout=60, check=False, **options
    )


def test_the_last_trace_is_shown_unless_one_is_named(path, capsys):
    older = record(path, "older", ago_s=60)
    record(path, "newer")
    assert run("--path", path) == 0
    assert "newer" in capsys.readouterr().out
    assert run("last", "--path", path) == 0
    assert "newer" in capsys.readouterr().out
    assert run(older[:10].upper(), "--path", path) == 0
    out = capsys.readouterr().out
    assert older in out
    assert "└─ töp/child" in out


def test_an_unknown_trace_is_an_error(path, capsys):
    record(path, "root")
    assert run("zzzz", "--path", path) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "zzzz" in captured.err


def test_a_beginning_that_several_traces_share_is_an_error(path, capsys):
    firsts = [record(path, "root")[0] for _ in range(17)]
    shared = next(first for first in firsts if firsts.count(first) > 1)
    assert run(shared, "--path", path) == 1
    assert "more than one" in capsys.readouterr().err


def test_without_a_store_the_way_to_a_trace_is_said(path, capsys):
    assert run("--path", path) == 1
    assert "sw-python run" in capsys.readouterr().err


def test_all_shows_what_is_else_folded(path, capsys):
    record(path, "root", children=40)
    assert run("--path", path) == 0
    folded = capsys.readouterr().out
    assert "more 'töp/child'" in folded
    assert run("--all", "--path", path) == 0
    assert capsys.readouterr().out.count("─ töp/child") == 40 > folded.count("─ töp/child")


def test_json_holds_everything_that_was_recorded(path, capsys):
    trace_id = record(path, "root")
    assert run("--json", "--path", path) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["trace_id"] == trace_id
    assert document["duration_ns"] == 100 * MS
    root, child = sorted(document["spans"], key=lambda span: span["parent_id"] is not None)
    assert (root["name"], root["kind"], root["status"]) == ("root", "INTERNAL", "UNSET")
    assert root["duration_ns"] == root["end_ns"] - root["start_ns"] == 100 * MS
    assert root["start_ns"] == document["start_ns"]
    assert root["attributes"]["n"] == 1
    assert root["resource"]["service.name"] == "shop"
    assert child["parent_id"] == root["span_id"]
    assert child["events"][0]["attributes"]["exception.message"] == "no milk"
    assert child["links"] == [{"trace_id": trace_id, "span_id": root["span_id"], "attributes": {"why": "test"}}]
    assert child["scope"] == "test"


def test_a_pipe_gets_plain_text_of_a_fixed_width(path):
    record(path, "root")
    done = as_a_process("--path", path, capture_output=True, environ={"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout
    assert max(len(line) for line in done.stdout.decode().splitlines()) == 110


def test_where_the_output_cannot_show_it_the_tree_is_drawn_in_ascii(path):
    record(path, "root")
    done = as_a_process("--path", path, capture_output=True, environ={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert b"`- t?p/child" in done.stdout
    assert b"##" in done.stdout


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_colours_unless_no_color_is_set(path, environ, coloured):
    record(path, "root")
    ours, theirs = pty.openpty()
    try:
        environ = {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", "COLUMNS": "90", **environ}
        done = as_a_process("--path", path, stdout=theirs, environ=environ)
        os.close(theirs)
        output = b""
        while chunk := _read(ours):
            output += chunk
    finally:
        os.close(ours)
    assert done.returncode == 0
    assert b"root" in output
    assert (b"\x1b[36m" in output) is coloured


def _read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed: Linux says EIO
        return b""


def test_a_run_shows_its_own_traces_in_order_of_start(path, capsys):
    record(path, "second", run="r1", ago_s=5)
    record(path, "first", run="r1", ago_s=10)
    record(path, "other", run="r2")
    show.print_run(str(path), "r1")
    out = capsys.readouterr().out
    assert out.index("first") < out.index("second")
    assert "other" not in out


@pytest.mark.parametrize("content", [None, b"", b"no database at all" * 100])
def test_a_run_without_traces_says_why_in_one_line(path, capsys, content):
    if content is not None:
        path.write_bytes(content)
    show.print_run(str(path), "r1")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_a_run_that_made_no_spans_names_the_option_that_helps(path, capsys):
    record(path, "other", run="r2")
    show.print_run(str(path), "r1")
    assert "--program-span" in capsys.readouterr().err
