"""A collector that is away, slow or in trouble: the program does not feel it, and every span arrives once, later."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launched import Launch, Launched
from receivers import grpc_collector, http_collector, nobody, silent_collector
from sw_agent.export.stored import StoreError, read_spool

SPANS = "for number in range(20):\n    with S(f'{number:02}'): pass\n"
NAMES = [f"{number:02}" for number in range(20)]
COLLECTORS = {"http/protobuf": http_collector, "grpc": grpc_collector}


@pytest.fixture
def launch(launch: Launch) -> Launch:
    settings = {
        "SW_EXPORT_TO": "otlp",
        "SW_AGENT_NAME": "shop",
        "SW_EXPORT_EXIT_TIMEOUT": "20",  # also on a busy machine, where imports alone take seconds
    }

    def start(code: str, endpoint: str, **more: str) -> Launched:
        return launch(code, **{**settings, "SW_EXPORT_ENDPOINT": endpoint, **more})

    return start


def spooled(app: Launched) -> int:
    try:
        return sum(waiting.spans for waiting in read_spool(app.store))
    except StoreError:  # not made yet
        return 0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def port_of(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


@pytest.mark.parametrize("protocol", COLLECTORS)
def test_the_next_process_of_the_service_sends_what_is_left(launch: Launch, protocol: str) -> None:
    with nobody() as endpoint:
        app = launch(SPANS, endpoint, SW_EXPORT_PROTOCOL=protocol)
        app.end_with_stderr()
        assert spooled(app) == 20
    with COLLECTORS[protocol](port=port_of(endpoint)) as collector:
        launch("with S('next'): pass", collector.endpoint, SW_EXPORT_PROTOCOL=protocol, SW_AGENT_NAME="other").end()
        assert collector.names == ["next"]
        launch("with S('next'): pass", collector.endpoint, SW_EXPORT_PROTOCOL=protocol).end()
        assert collector.names == sorted([*NAMES, "next", "next"])
        launch("with S('next'): pass", collector.endpoint, SW_EXPORT_PROTOCOL=protocol).end()
        assert len(collector.names) == 23
    assert spooled(app) == 0


@pytest.mark.parametrize("protocol", COLLECTORS)
def test_a_process_that_goes_on_sends_what_waits_when_the_collector_is_back(launch: Launch, protocol: str) -> None:
    with COLLECTORS[protocol]() as first:
        first.headers["Connection"] = "close"
        endpoint = first.endpoint
        app = launch(
            "with S('before'): pass\ntrace.get_tracer_provider().force_flush()\nprint('sent')\ninput()\n"
            + SPANS
            + "print('ready')\ninput()",
            endpoint,
            SW_EXPORT_PROTOCOL=protocol,
            SW_EXPORT_FLUSH_INTERVAL="0.05",
        )
        assert app.read_line() == "sent"
        assert first.names == ["before"]
    app.go_on()
    assert app.read_line() == "ready"
    wait_until(lambda: spooled(app) == 20)
    with COLLECTORS[protocol](port=port_of(endpoint)) as back:
        wait_until(lambda: spooled(app) == 0)
        _, err = app.process.communicate("\n", timeout=60)
        assert back.names == NAMES
    assert err.count("\n") == 1, err
    assert "spans wait in" in err


def test_processes_of_a_service_share_a_spool_and_send_everything_once(launch: Launch) -> None:
    forks = """
import os
when = %r
children = []
for child in range(4):
    pid = os.fork()
    if not pid:
        for number in range(50):
            with S(f'{when}.{child}.{number}'): pass
        break
    children.append(pid)
else:
    for pid in children: os.waitpid(pid, 0)
"""
    with nobody() as endpoint:
        app = launch(forks % "away", endpoint)
        app.end_with_stderr()
        assert spooled(app) == 200
    with http_collector(port=port_of(endpoint)) as collector:
        launch(forks % "back", collector.endpoint).end()
        launch("with S('last'): pass", collector.endpoint).end()
        expected = [f"{when}.{child}.{n}" for when in ("away", "back") for child in range(4) for n in range(50)]
        assert collector.names == sorted([*expected, "last"])


ENDS = ["", "import os; os._exit(0)", "import os; os.execlp('true', 'true')"]
ONE_SPAN_AND_AN_END = "with S('next'): pass\nprint('ready')\ninput()\n"


@pytest.mark.parametrize("end", ENDS)
def test_a_process_that_ends_while_it_sends_what_waited_for_the_collector_sees_that_through(
    launch: Launch, end: str
) -> None:
    with nobody() as endpoint:
        launch(SPANS, endpoint).end_with_stderr()
    with http_collector(port=port_of(endpoint)) as collector:
        collector.prompt = 1
        collector.answer.clear()
        app = launch(ONE_SPAN_AND_AN_END + end, endpoint, SW_EXPORT_FLUSH_INTERVAL="0.01")
        assert app.read_line() == "ready"
        wait_until(lambda: collector.asked == 2)
        app.go_on()
        with pytest.raises(subprocess.TimeoutExpired):
            app.process.wait(1)
        collector.answer.set()
        app.end()
        assert collector.names == sorted([*NAMES, "next"])
    assert spooled(app) == 0


@pytest.mark.parametrize("end", ENDS)
def test_what_waited_for_the_collector_is_left_to_the_next_process_where_that_hangs_again(
    launch: Launch, end: str
) -> None:
    with nobody() as endpoint:
        launch(SPANS, endpoint).end_with_stderr()
    with http_collector(port=port_of(endpoint)) as collector:
        collector.hangs_after = 1
        app = launch(
            ONE_SPAN_AND_AN_END + end,
            endpoint,
            SW_EXPORT_FLUSH_INTERVAL="0.01",
            SW_EXPORT_EXIT_TIMEOUT="2",
            SW_EXPORT_TIMEOUT="60",
        )
        assert app.read_line() == "ready"
        wait_until(lambda: collector.asked == 2)
        _, err = app.process.communicate("\n", timeout=60)
        assert "no answer" in err
        assert collector.names == ["next"]
    with http_collector(port=port_of(endpoint)) as back:
        launch("with S('last'): pass", endpoint).end()
        assert back.names == sorted([*NAMES, "last"])


@pytest.mark.parametrize("end", ENDS)
def test_what_a_collector_that_hangs_has_not_taken_at_the_end_is_kept(launch: Launch, end: str) -> None:
    with silent_collector() as endpoint:
        app = launch(SPANS + end, endpoint, SW_EXPORT_EXIT_TIMEOUT="6", SW_EXPORT_TIMEOUT="60")
        begun = time.monotonic()
        app.end_with_stderr()
        assert time.monotonic() - begun < 30
    assert spooled(app) == 20


def test_a_request_that_hangs_already_when_the_program_ends_is_kept_with_all_behind_it(launch: Launch) -> None:
    with silent_collector() as endpoint:
        app = launch(
            SPANS + "print('ready')\ninput()\n" + SPANS,
            endpoint,
            SW_EXPORT_EXIT_TIMEOUT="6",
            SW_EXPORT_TIMEOUT="60",
            SW_EXPORT_FLUSH_INTERVAL="0.01",
        )
        assert app.read_line() == "ready"
        wait_until(lambda: bool(established(app.process.pid)))
        _, err = app.process.communicate("\n", timeout=60)
    assert spooled(app) == 40
    assert "no answer" in err


def established(pid: int) -> list[str]:
    """Return the TCP connections of a process."""
    inodes = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            inodes.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
        except OSError:  # closed meanwhile
            continue
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return [line for line in lines if f"socket:[{line.split()[9]}]" in inodes and line.split()[3] == "01"]


def test_a_process_that_is_killed_while_the_collector_is_away_leaves_what_had_ended_before(launch: Launch) -> None:
    with nobody() as endpoint:
        app = launch(SPANS + "print('ready')\nimport time\ntime.sleep(60)", endpoint, SW_EXPORT_FLUSH_INTERVAL="0.05")
        assert app.read_line() == "ready"
        wait_until(lambda: spooled(app) == 20)
        app.process.kill()
        app.process.wait()
    with http_collector(port=port_of(endpoint)) as collector:
        launch("with S('next'): pass", collector.endpoint).end()
        assert collector.names == sorted([*NAMES, "next"])


def test_a_collector_that_asks_for_patience_at_the_end_gets_it(launch: Launch) -> None:
    with http_collector() as collector:
        collector.after = [503, 503]
        app = launch(SPANS, collector.endpoint, SW_EXPORT_EXIT_TIMEOUT="30")
        app.end()
        assert collector.names == NAMES
    assert spooled(app) == 0


def test_the_spool_is_bounded_and_what_has_to_go_is_counted(launch: Launch) -> None:
    program = "for number in range(400):\n    with S('span', attributes={'filler': 'x' * 1000}): pass\n"
    with nobody() as endpoint:
        app = launch(program, endpoint, SW_EXPORT_SPOOL_SIZE="200000", SW_EXPORT_BATCH_SIZE="50")
        _, err = app.end_with_stderr()
    waiting = spooled(app)
    assert 0 < waiting < 200
    assert f"spans dropped: {400 - waiting} spool full" in err


def test_where_nothing_can_be_written_spans_wait_in_memory(launch: Launch) -> None:
    with http_collector() as collector:
        collector.status = 503
        app = launch(
            SPANS + "print('ready')\ninput()",
            collector.endpoint,
            SW_EXPORT_PATH="/proc/nothing/here.db",
            SW_EXPORT_FLUSH_INTERVAL="0.05",
        )
        assert app.read_line() == "ready"
        assert collector.came.wait(60)
        collector.status = 200
        wait_until(lambda: collector.names == NAMES)
        _, err = app.process.communicate("\n", timeout=60)
    assert err.count("\n") == 1, err
    assert "spans wait in memory (/proc/nothing/here.db: " in err


def test_where_nothing_can_be_written_the_end_says_what_is_lost(launch: Launch) -> None:
    with nobody() as endpoint:
        app = launch(SPANS, endpoint, SW_EXPORT_SPOOL_SIZE="0")
        _, err = app.end_with_stderr()
    assert "spans wait in memory (spool_size is 0)" in err
    assert "spans dropped: 20 not sent in time" in err
    assert not os.path.exists(app.store)


def test_sigterm_during_an_outage_keeps_everything_and_kills(launch: Launch) -> None:
    with nobody() as endpoint:
        app = launch(SPANS + "print('ready')\nimport time\ntime.sleep(60)", endpoint, SW_EXPORT_FLUSH_INTERVAL="60")
        assert app.read_line() == "ready"
        app.process.terminate()
        app.end_with_stderr(-signal.SIGTERM)
    assert spooled(app) == 20


def test_a_fork_in_the_midst_of_a_request_sends_nothing_twice_and_does_not_hang(launch: Launch) -> None:
    with http_collector() as collector:
        collector.answer.clear()
        app = launch(
            SPANS
            + """
print('ready')
input()
import os
pid = os.fork()
with S('child' if not pid else 'parent'): pass
if pid:
    print('forked')
    os.waitpid(pid, 0)
""",
            collector.endpoint,
            PYTHONWARNINGS="ignore:This process:DeprecationWarning",
            SW_EXPORT_FLUSH_INTERVAL="0.01",
        )
        assert app.read_line() == "ready"
        assert collector.came.wait(60)
        app.go_on()
        assert app.read_line() == "forked"
        collector.answer.set()
        app.end()
        assert collector.names == sorted([*NAMES, "child", "parent"])
        pids = {resource["process.pid"] for resource in collector.resources()}
        instances = {resource["service.instance.id"] for resource in collector.resources()}
        assert (len(pids), len(instances)) == (2, 2)


def test_a_fork_with_a_full_queue_leaves_the_queue_to_the_parent(launch: Launch) -> None:
    with http_collector() as collector:
        app = launch(
            """
import os
for number in range(1000):
    with S(str(number)): pass
pid = os.fork()
if pid: os.waitpid(pid, 0)
else:
    for number in range(1000, 2000):
        with S(str(number)): pass
""",
            collector.endpoint,
            PYTHONWARNINGS="ignore:This process:DeprecationWarning",  # the fork waits for the worker, but not for ever
            SW_EXPORT_FLUSH_INTERVAL="60",
            SW_EXPORT_QUEUE_SIZE="1000",
            SW_EXPORT_BATCH_SIZE="1000",
        )
        app.end()
        assert sorted(map(int, collector.names)) == list(range(2000))


def test_a_fork_while_other_threads_send_and_hold_locks_never_hangs(launch: Launch) -> None:
    with http_collector() as collector:
        app = launch(
            """
import os, threading
stop = threading.Event()
def busy():
    while not stop.wait(0.001):
        with S('busy'): pass
threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads: thread.start()
for child in range(20):
    pid = os.fork()
    if not pid:
        with S(f'child {child}'): pass
        os._exit(0)
    os.waitpid(pid, 0)
stop.set()
for thread in threads: thread.join()
""",
            collector.endpoint,
            PYTHONWARNINGS="ignore:This process:DeprecationWarning",
            SW_EXPORT_FLUSH_INTERVAL="0.01",
        )
        app.end()
        assert [name for name in collector.names if name != "busy"] == sorted(f"child {child}" for child in range(20))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux, to see its memory")
@pytest.mark.parametrize("away", [False, True])
def test_a_burst_loses_nothing_and_takes_little_memory(launch: Launch, away: bool) -> None:
    burst = """
import re
def most_memory():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1000
with S("first"): pass
trace.get_tracer_provider().force_flush()
before = most_memory()
for number in range(50_000):
    with S("burst", attributes={f"key{n}": n + number for n in range(8)}): pass
trace.get_tracer_provider().force_flush(60_000)
print(most_memory() - before)
"""
    with http_collector() as collector:
        if away:
            collector.status = 503
        app = launch(burst, collector.endpoint)
        out, err = app.end_with_stderr()
        assert float(out) < 150  # MB
        assert "dropped" not in err
        assert len(collector.names) == (0 if away else 50_001)
    assert spooled(app) == (50_001 if away else 0)


VALUES = r"""
values = {
    "bytes": b"\xff\x00", "none": None, "nested": {"a": [1, {"b": (2, None)}]}, "long": 10**30,
    "negative": -(2**63) - 1,
    "huge": 10**5000, "surrogate": "a\ud800b", "nan": float("nan"), "infinite": float("inf"), "mixed": [1, "a", None],
    "text": "x" * 10_000_000, "": "no key", "\ud800": "odd key", 7: "number key", "deep": [[[[[[1]]]]]],
    "bool": True, "many": list(range(10_000)), "set": {1}, "object": object(),
}
import logging
logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what OpenTelemetry says of them
for key, value in values.items():
    with S("span") as span:
        span.set_attribute(key, value)
        span.add_event("event", {key: value})
        span.set_attribute("last", 1)
for name in ("\ud800", "x" * 1_000_000, ""):
    with S(name) as span:
        span.set_status(trace.StatusCode.ERROR, name)
        span.record_exception(ValueError(name))
print(len(values) + 3)
"""


@pytest.mark.parametrize("to", ["otlp", "local", "grpc"])
def test_no_value_of_the_programs_loses_a_span(launch: Launch, to: str) -> None:
    protocol = "grpc" if to == "grpc" else "http/protobuf"
    with COLLECTORS[protocol]() as collector:
        app = launch(
            VALUES,
            collector.endpoint,
            SW_EXPORT_TO="local" if to == "local" else "otlp",
            SW_EXPORT_PROTOCOL=protocol,
            SW_EXPORT_EXIT_TIMEOUT="30",
        )
        out, err = app.end_with_stderr()
        assert err == ""
        assert len(app.names() if to == "local" else collector.names) == int(out)


def test_the_limits_of_opentelemetry_count(launch: Launch) -> None:
    with http_collector() as collector:
        app = launch(
            """
import logging
logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
with S("span", attributes={str(n): "x" * 100 for n in range(20)}) as span:
    for number in range(20):
        span.add_event(str(number), {str(n): "y" * 100 for n in range(20)})
        span.add_link(trace.SpanContext(number + 1, 1, is_remote=True))
""",
            collector.endpoint,
            OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="5",
            OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT="10",
            OTEL_SPAN_EVENT_COUNT_LIMIT="3",
            OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT="2",
            OTEL_SPAN_LINK_COUNT_LIMIT="4",
        )
        app.end()
        (span,) = collector.spans
        assert (len(span.attributes), len(span.events), len(span.links)) == (5, 3, 4)
        assert {len(attribute.value.string_value) for attribute in span.attributes if attribute.key.isdecimal()} <= {10}
        assert {len(event.attributes) for event in span.events} == {2}
        assert (span.dropped_events_count, span.dropped_links_count) == (17, 16)


def test_a_batch_of_several_requests_is_sent_once_also_when_the_second_one_hangs(launch: Launch) -> None:
    program = "for n in range(4):\n    with S(str(n), attributes={f'x{i}': 'y' * 60_000 for i in range(7)}): pass\n"
    with http_collector() as collector:
        collector.hangs_after = 1
        app = launch(program, collector.endpoint, SW_EXPORT_TIMEOUT="60", SW_EXPORT_EXIT_TIMEOUT="4")
        app.end_with_stderr()
        first = collector.names
        assert 0 < len(first) < 4
        assert spooled(app) == 4 - len(first)
        endpoint = collector.endpoint
    with http_collector(port=port_of(endpoint)) as back:
        launch("with S('next'): pass", endpoint).end()
        assert sorted([*first, *back.names]) == ["0", "1", "2", "3", "next"]


@pytest.mark.skipif(not os.path.exists("/usr/bin/flock"), reason="needs flock")
@pytest.mark.parametrize("to", ["otlp", "local"])
def test_a_folder_that_somebody_locks_does_not_hold_up_the_end(launch: Launch, to: str, tmp_path: Path) -> None:
    with nobody() as endpoint, subprocess.Popen(["flock", str(tmp_path), "cat"], stdin=subprocess.PIPE) as locker:
        app = launch(SPANS, endpoint, SW_EXPORT_TO=to, SW_EXPORT_EXIT_TIMEOUT="1")
        begun = time.monotonic()
        _, err = app.end_with_stderr()
        assert time.monotonic() - begun < 30
        locker.communicate()
    assert "20 not" in err


def test_without_sqlite_a_collector_gets_its_spans(launch: Launch) -> None:
    with http_collector() as collector:
        app = launch(
            "import sys\nsys.modules['_sqlite3'] = sys.modules['sqlite3'] = None\n" + SPANS, collector.endpoint
        )
        app.end()
        assert collector.names == NAMES


def test_an_output_that_cannot_be_opened_costs_no_other(launch: Launch) -> None:
    with http_collector() as collector:
        app = launch(
            "import sys\nsys.modules['_sqlite3'] = sys.modules['sqlite3'] = None\n" + SPANS,
            collector.endpoint,
            SW_EXPORT_TO="otlp,local",
        )
        _, err = app.end_with_stderr()
        assert collector.names == NAMES
    assert "20 an output cannot be opened" in err


def test_under_gevent_an_outage_is_survived(launch: Launch) -> None:
    with nobody() as endpoint:
        app = launch(
            "from gevent import monkey; monkey.patch_all()\nimport gevent\n" + SPANS + "gevent.sleep(0.3)\n" + SPANS,
            endpoint,
            SW_EXPORT_FLUSH_INTERVAL="0.01",
        )
        _, err = app.end_with_stderr()
        assert spooled(app) == 40, err
    assert err.count("\n") == 1, err


def test_a_very_long_text_does_not_hold_up_the_end(launch: Launch) -> None:
    app = launch(
        "with S('span', attributes={'text': '{\"key\": \"value@://\"}, ' * 500_000}): pass",
        "",
        SW_EXPORT_TO="local",
        SW_EXPORT_EXIT_TIMEOUT="60",
    )
    app.end()
    (span,) = app.spans()
    assert len(span.attributes["text"]) == 65536
