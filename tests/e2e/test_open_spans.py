"""Spans that are open when a process ends: they leave as they are, and say that they are incomplete."""

from __future__ import annotations

import signal

import pytest

from launched import Launch, Launched
from receivers import attributes_of, http_collector
from sw_agent.cli import main


def incomplete(app: Launched) -> list[str]:
    return sorted(span.name for span in app.spans() if span.attributes.get("sw.incomplete"))


IN_A_DAEMON = """
import threading
ready = threading.Event()

def work():
    with S("request", attributes={"step": 1}):
        with S("done"): pass
        ready.set()
        threading.Event().wait()

threading.Thread(target=work, daemon=True, name="worker").start()
ready.wait()
"""


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "threading.stack_size()"])
def test_what_a_daemon_thread_is_in_when_the_program_ends_leaves_with_its_thread(launch: Launch, end: str) -> None:
    app = launch(IN_A_DAEMON + end)
    app.end()
    by_name = {span.name: span for span in app.spans()}
    request = by_name["request"]
    assert request.attributes["sw.incomplete"] is True
    assert (request.attributes["step"], request.attributes["thread.name"]) == (1, "worker")
    assert request.end_ns >= by_name["done"].end_ns
    assert by_name["done"].parent_id == request.span_id
    assert incomplete(app) == ["request"]


def test_a_collector_gets_it_too(launch: Launch) -> None:
    with http_collector() as collector:
        launch(IN_A_DAEMON, SW_EXPORT_TO="otlp", SW_EXPORT_ENDPOINT=collector.endpoint).end()
        found = {span.name: attributes_of(span).get("sw.incomplete") for span in collector.spans}
    assert found == {"done": None, "request": True}


def test_sigterm_in_the_midst_of_a_request_does_not_lose_it(launch: Launch) -> None:
    app = launch("import time\nwith S('request'):\n    print('ready')\n    while True: time.sleep(0.05)")
    app.wait_for("ready")
    app.process.terminate()
    app.end(-signal.SIGTERM)
    assert incomplete(app) == app.names() == ["request"]


def test_sigterm_kills_at_once_a_program_that_has_spans_open_no_more(launch: Launch) -> None:
    app = launch(
        "with S('request'): pass\nprint('ready')\nimport time\ntime.sleep(60)", SW_EXPORT_FLUSH_INTERVAL="0.01"
    )
    app.wait_for("ready")
    app.process.terminate()
    app.end(-signal.SIGTERM)
    assert incomplete(app) == []
    assert app.names() == ["request"]


def test_a_process_that_is_terminated_leaves_the_span_that_it_runs_in(launch: Launch) -> None:
    app = launch(
        """
import multiprocessing, time

def work(ready):
    with S("step"): pass
    ready.set()
    time.sleep(60)

if __name__ == "__main__":
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        ready = context.Event()
        process = context.Process(target=work, args=(ready,))
        with S("submitter"):
            process.start()
        ready.wait()
        process.terminate()
        process.join()
""",
        SW_PLUGIN_MULTIPROCESSING_SPANS="true",
    )
    app.end()
    assert incomplete(app) == ["work", "work"]
    spans = {span.span_id: span for span in app.spans()}
    steps = [span for span in spans.values() if span.name == "step"]
    assert [spans[step.parent_id or ""].name for step in steps] == ["work", "work"]
    works = [span for span in spans.values() if span.name == "work"]
    assert [spans[work.parent_id or ""].name for work in works] == ["submitter", "submitter"]


def test_a_span_that_a_parent_process_has_open_is_left_to_it(launch: Launch) -> None:
    app = launch(
        "import os\nwith S('request'):\n    pid = os.fork()\n    if not pid: raise SystemExit\n    os.waitpid(pid, 0)"
    )
    app.end()
    assert incomplete(app) == []
    assert app.names() == ["request"]


def test_a_span_that_ends_in_an_exit_function_is_complete(launch: Launch) -> None:
    app = launch("import atexit\nspan = tracer.start_span('request')\natexit.register(span.end)")
    app.end()
    assert incomplete(app) == []
    assert app.names() == ["request"]


def test_people_see_that_a_span_is_incomplete(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    app = launch(IN_A_DAEMON)
    app.end()
    assert main(["show", "last", "--path", app.store]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "incomplete" in line)
    assert "still open when the program ended" in line
