"""The program of `make demo`: one trace through every kind of worker, and the same output as without the agent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from launched import SW_PYTHON, own_environ
from sw_agent.export.store import read_trace, read_traces

PROGRAM = Path(__file__).parents[2] / "examples" / "quickstart" / "report.py"


def test_the_quickstart_is_one_trace_through_threads_tasks_and_processes(tmp_path):
    environ = own_environ(tmp_path, SW_EXPORT_PATH=str(tmp_path / "traces.db"), PYTHONIOENCODING="utf-8")
    options = {
        "env": environ,
        "cwd": tmp_path,
        "capture_output": True,
        "timeout": 60,
        "encoding": "utf-8",
        "check": True,
    }
    plain = subprocess.run([sys.executable, PROGRAM], **options)
    traced = subprocess.run([SW_PYTHON, "run", "--show", PROGRAM], **options)
    assert traced.stdout == plain.stdout

    (trace,) = read_traces(environ["SW_EXPORT_PATH"])
    spans = read_trace(environ["SW_EXPORT_PATH"], trace.trace_id)
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans) == 20
    tree = {span.name: by_id[span.parent_id].name for span in spans if span.parent_id}
    assert tree == {
        "load prices": "daily report",
        "fetch": "daily report",
        **{f"fetch {source}": "fetch" for source in ("orders", "ratings", "returns")},
        "parse": "daily report",
        **{f"parse {source}": "parse" for source in ("orders", "ratings", "returns")},
        "enrich": "daily report",
        **{f"enrich {product}": "enrich" for product in ("espresso", "flat white", "latte")},
        "find supplier": tree["find supplier"],
        "render": "daily report",
        "lay out": "render",
        "write": "render",
    }
    suppliers = [span for span in spans if span.name == "find supplier"]
    assert sorted(by_id[span.parent_id].name for span in suppliers) == [
        "enrich espresso",
        "enrich flat white",
        "enrich latte",
    ]
    threads = {span.name: span.attributes["thread.name"] for span in spans}
    pids = {span.name: span.resource["process.pid"] for span in spans}
    assert threads["load prices"] == "price-list"
    assert threads["fetch orders"].startswith("fetch_")
    assert threads["find supplier"].startswith("asyncio_")
    assert len({pids["daily report"], pids["parse orders"], pids["render"]}) == 3
    assert [span.name for span in spans if span.status == "ERROR"] == ["parse returns"]

    for part in ("└─ ✗ parse returns", "ValueError: could not convert", "price-list", "20 spans", "1 error"):
        assert part in traced.stderr
