"""Delivery: what ended before the end of a program arrives, however it ends; what does not is said."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launched import Launched
from receivers import attributes_of, grpc_collector, http_collector, nobody, silent_collector

Launch = Callable[..., Launched]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    launched: list[Launched] = []

    def start(code: str, *options: str, folder: Path = tmp_path, **more: Any) -> Launched:
        launched.append(Launched(folder, code, *options, **more))
        return launched[-1]

    yield start
    for each in launched:
        each.close()


SPANS = "for number in range(20):\n    with S(f'{number:02}'): pass\n"
NAMES = [f"{number:02}" for number in range(20)]

ENDS = {
    "the last line": ("", 0),
    "sys.exit": ("import sys; sys.exit(3)", 3),
    "a message to exit with": ("raise SystemExit('no more')", 1),
    "an exception": ("raise ValueError('broken')", 1),
    "Ctrl-C": ("import _thread; _thread.interrupt_main()", -2),
    "SIGTERM": ("import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -15),
    "an exit function that ends a span": ("import atexit; atexit.register(lambda: tracer.start_span('19').end())", 0),
    "the end of a thread": (
        "import threading, time; threading.Thread(target=lambda: tracer.start_span('19').end()).start()",
        0,
    ),
    "a main thread that leaves by a daemon": (
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
        0,
    ),
    "os.fork in the last moment": ("import os\nif os.fork(): os.wait()", 0),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("protocol", ["local", "http/protobuf", "grpc"])
def test_what_ended_before_the_end_is_delivered(launch: Launch, end: str, protocol: str) -> None:
    code, status = ENDS[end]
    expected = sorted([*NAMES, "19"]) if "19" in code else NAMES
    if protocol == "local":
        app = launch(SPANS + code)
        app.end_with_stderr(status)
        assert app.names() == expected
        return
    with (grpc_collector if protocol == "grpc" else http_collector)() as collector:
        app = launch(
            SPANS + code,
            SW_EXPORT_TO="otlp",
            SW_EXPORT_ENDPOINT=collector.endpoint,
            SW_EXPORT_PROTOCOL=protocol,
        )
        _, err = app.end_with_stderr(status)
        assert "sw-python" not in err
        assert collector.names == expected


@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_as_without_the_agent(launch: Launch, end: str, tmp_path: Path) -> None:
    app = launch(SPANS + ENDS[end][0])
    out, err = app.end_with_stderr(ENDS[end][1])
    plain = subprocess.run([sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (plain.stdout, plain.stderr, plain.returncode) == (out, err, app.process.returncode)


def test_only_the_programs_span_is_delivered_too(launch: Launch) -> None:
    """It ends when no thread can be started any more, from Python 3.12 on."""
    with http_collector() as collector:
        app = launch("", "--program-span", prelude="", SW_EXPORT_TO="otlp", SW_EXPORT_ENDPOINT=collector.endpoint)
        app.end()
        assert collector.names == ["app.py"]


def test_a_service_that_is_killed_loses_at_most_the_last_interval(launch: Launch) -> None:
    app = launch(
        SPANS + "import time\ntime.sleep(0)\nprint('ready')\nwhile True: time.sleep(60)",
        SW_EXPORT_FLUSH_INTERVAL="0.01",
    )
    assert app.read_line() == "ready"
    deadline = time.monotonic() + 60
    while app.names() != NAMES and time.monotonic() < deadline:
        time.sleep(0.01)
    app.process.kill()
    app.end_with_stderr(-signal.SIGKILL)
    assert app.names() == NAMES


def test_many_processes_deliver_everything_into_one_store(launch: Launch, tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(6)]
    store = str(tmp_path / "shared" / "traces.db")
    code = """
import os
for number in range(300):
    with S(str(os.getpid())): pass
    if number % 100 == 50 and os.fork(): os.wait()
"""
    apps = []
    for folder in folders:
        folder.mkdir()
        apps.append(launch(code, folder=folder, SW_EXPORT_PATH=store))
    for app in apps:
        app.end()
    apps[0].store = store
    spans = apps[0].spans()
    # Each fork doubles: a span before the first fork is one process's, one after the third is one of eight.
    assert len(spans) == len(folders) * (51 + 2 * 100 + 4 * 100 + 8 * 49)
    assert len({span.span_id for span in spans}) == len(spans)
    assert all(span.name == str(span.resource["process.pid"]) for span in spans)


def test_processes_of_pools_deliver_what_they_ended(launch: Launch) -> None:
    app = launch(
        """
import concurrent.futures, multiprocessing
def work(number):
    with S(f"{number:02}"): pass
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool: pool.map(work, range(10))
    with concurrent.futures.ProcessPoolExecutor(2) as pool: list(pool.map(work, range(10, 20)))
""",
        PYTHONWARNINGS="ignore",
    )
    app.end()
    assert app.names() == NAMES


def test_a_span_arrives_with_its_thread_and_its_process(launch: Launch) -> None:
    with http_collector() as collector:
        app = launch(
            "import os\nwith S('a') as span: span.set_attribute('pid', os.getpid())",
            SW_EXPORT_TO="otlp",
            SW_EXPORT_ENDPOINT=collector.endpoint,
        )
        app.end()
        attributes = attributes_of(collector.spans[0])
        assert attributes["thread.name"] == "MainThread"
        assert collector.resources()[0]["process.pid"] == attributes["pid"]


# Collectors that do not take it


def test_a_collector_that_is_down_costs_one_line(launch: Launch) -> None:
    with nobody() as endpoint:
        app = launch(SPANS, SW_EXPORT_TO="otlp", SW_EXPORT_ENDPOINT=endpoint)
        begun = time.monotonic()
        out, err = app.end_with_stderr()
        assert time.monotonic() - begun < 60
    assert out == ""
    assert err == (
        f"sw-python: WARNING: spans wait in {app.store} for the collector "
        f"{endpoint}/v1/traces: [Errno 111] Connection refused\n"
    )


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_never_answers_delays_the_end_by_no_more_than_configured(
    launch: Launch, protocol: str
) -> None:
    with silent_collector() as endpoint:
        app = launch(
            SPANS,
            SW_EXPORT_TO="otlp",
            SW_EXPORT_ENDPOINT=endpoint,
            SW_EXPORT_PROTOCOL=protocol,
            SW_EXPORT_EXIT_TIMEOUT="4",
            SW_EXPORT_TIMEOUT="60",
        )
        begun = time.monotonic()
        _, err = app.end_with_stderr()
        assert time.monotonic() - begun < 30
    assert err.startswith(f"sw-python: WARNING: spans wait in {app.store} for the collector ")
    assert err.count("\n") == 1


def test_a_collector_that_fails_is_said_with_its_status(launch: Launch) -> None:
    with http_collector() as collector:
        collector.status = 500
        app = launch(SPANS, SW_EXPORT_TO="otlp", SW_EXPORT_ENDPOINT=collector.endpoint)
        _, err = app.end_with_stderr()
    assert "20 refused by the collector" in err
    assert "500 Internal Server Error" in err
    assert err.count("\n") == 1


def test_what_goes_to_two_places_arrives_at_both(launch: Launch) -> None:
    with http_collector() as collector:
        app = launch(SPANS, SW_EXPORT_TO="otlp,local", SW_EXPORT_ENDPOINT=collector.endpoint)
        app.end()
        assert collector.names == app.names() == NAMES


def test_the_local_store_gets_what_the_collector_does_not_take(launch: Launch) -> None:
    with nobody() as endpoint:
        app = launch(SPANS, SW_EXPORT_TO="otlp,local", SW_EXPORT_ENDPOINT=endpoint)
        app.end_with_stderr()
    assert app.names() == NAMES


def test_the_console_gets_a_line_for_each_span_and_stdout_none(launch: Launch) -> None:
    app = launch("with S('a\\n\\ud800', attributes={'k': 'v'}): print('mine')", SW_EXPORT_TO="console")
    out, err = app.end_with_stderr()
    assert out == "mine\n"
    (line,) = err.splitlines()
    assert "k='v'" in line
    assert "'a\\n\\ud800'" in line


def test_no_output_keeps_no_thread_and_says_nothing(launch: Launch) -> None:
    app = launch(SPANS + "import os; print(len(os.listdir('/proc/self/task')))", SW_EXPORT_TO="none")
    assert app.end() == "1\n"
    assert app.names() == []


# Stores that cannot be written


def test_a_store_that_is_no_database_costs_one_line_and_is_not_touched(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "traces.db").write_text("my notes\n" * 1000)
    app = launch(SPANS)
    _, err = app.end_with_stderr()
    assert err.count("\n") == 1
    assert f"20 not written to the local store ({tmp_path / 'traces.db'} is no SQLite database" in err
    assert (tmp_path / "traces.db").read_text() == "my notes\n" * 1000


def test_a_store_where_nothing_can_be_written_costs_one_line(launch: Launch) -> None:
    app = launch(SPANS, SW_EXPORT_PATH="/proc/sw-python/traces.db")
    _, err = app.end_with_stderr()
    assert err.count("\n") == 1
    assert "20 not written to the local store" in err
    assert "/proc/sw-python" in err


def test_a_full_disk_costs_one_line_and_the_program_goes_on(launch: Launch) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
    app = launch(limit + SPANS + "print('done')")
    out, err = app.end_with_stderr()
    assert out == "done\n"
    assert err.count("\n") == 1
    assert "20 not written to the local store" in err


def test_a_program_without_stderr_ends_well(launch: Launch) -> None:
    with nobody() as endpoint:
        app = launch(
            SPANS + "import sys, os; sys.stderr.close(); os.close(2)",
            SW_EXPORT_TO="otlp",
            SW_EXPORT_ENDPOINT=endpoint,
        )
        assert app.end_with_stderr() == ("", "")


BOOKS = """
import _thread, multiprocessing, sw_agent

def main():
    with S("outer"):
        for _ in range(2):
            _thread.start_new_thread(int, ())
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.map(abs, range(4))
        sw_agent.capture().run(int)
        sw_agent.capture()
    tracer.start_span("forgotten")

if __name__ == "__main__":
    main()
    with S("holder"):
        held = sw_agent.capture()
"""


def test_with_debug_the_books_are_said_and_they_balance(launch: Launch) -> None:
    _, err = launch(BOOKS, "--debug").end_with_stderr()
    (said,) = (line for line in err.splitlines() if "the books of this process" in line and "1 forgotten" in line)
    assert "spans: 3 started = 2 ended + 0 open + 1 forgotten; 2 ended = 2 delivered + 0 spooled + 0 dropped" in said
    numbers = re.search(r"snapshots: (\d+) captured = (\d+) restored \+ (\d+) dropped \+ (\d+) waiting", said)
    assert numbers is not None
    captured, restored, dropped, waiting = map(int, numbers.groups())
    assert captured == restored + dropped + waiting
    assert waiting == 1  # the one that the program holds
    assert restored >= 4
    assert dropped >= 1


def test_what_the_program_logs_stays_its_own(launch: Launch) -> None:
    with nobody() as endpoint:
        app = launch(
            "import logging, sys\nlogging.basicConfig(level=logging.DEBUG, stream=sys.stdout)\n" + SPANS,
            SW_EXPORT_TO="otlp",
            SW_EXPORT_ENDPOINT=endpoint,
        )
        out, _ = app.end_with_stderr()
    assert out == ""


def test_file_descriptors_are_given_back(launch: Launch) -> None:
    app = launch(
        """
import os
before = len(os.listdir("/proc/self/fd"))
for _ in range(5):
    with S("a"): pass
    if os.fork() == 0: os._exit(len(os.listdir("/proc/self/fd")) - before)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    )
    assert app.end() == "0\n" * 5
    assert os.path.exists(app.store)
