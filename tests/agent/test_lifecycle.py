"""Forks and signals, as a program sees them: as without the agent."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext

import pytest

from launched import Launch
from receivers import Received, grpc_collector, http_collector, nobody, silent_collector

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

FORK = """
import os, sys
def fork(work):
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit()
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status
"""


# A fork


def test_a_fork_inside_a_span_exports_it_once_and_children_hang_under_it(launch: Launch) -> None:
    app = launch(
        FORK
        + """
def work():
    with S("in the child") as span: pass
with S("outer") as outer:
    fork(work)
"""
    )
    app.end()
    spans = {span.name: span for span in app.spans()}
    assert app.names() == ["in the child", "outer"]
    child, outer = spans["in the child"], spans["outer"]
    assert child.parent_id == outer.span_id
    assert child.resource["process.pid"] != outer.resource["process.pid"]
    assert child.resource["service.instance.id"] != outer.resource["service.instance.id"]


def test_the_inherited_span_does_not_record_in_the_child(launch: Launch) -> None:
    app = launch(
        FORK
        + """
def work():
    current = trace.get_current_span()
    print(current.is_recording(), current.get_span_context() == outer.get_span_context())
with S("outer") as outer:
    fork(work)
    print(trace.get_current_span().is_recording())
"""
    )
    assert app.end() == "False True\nTrue\n"


def test_a_child_that_leaves_the_inherited_block_ends_nothing(launch: Launch) -> None:
    app = launch(
        """
import os
with S("outer"):
    with S("inner"):
        child = os.fork() == 0
with S("after"): pass
if not child: assert os.wait()[1] == 0
"""
    )
    app.end()
    assert app.names() == ["after", "after", "inner", "outer"]
    assert all(span.parent_id is None for span in app.spans() if span.name == "after")


def test_ids_differ_between_parent_and_children(launch: Launch) -> None:
    app = launch(
        FORK
        + """
def work():
    with S("a"): pass
for _ in range(3): fork(work)
work()
"""
    )
    app.end()
    assert len({span.trace_id for span in app.spans()}) == 4
    assert len({span.span_id for span in app.spans()}) == 4
    assert len({span.resource["service.instance.id"] for span in app.spans()}) == 4


def test_what_was_queued_before_a_fork_is_sent_once(launch: Launch) -> None:
    app = launch(
        FORK
        + """
for number in range(100):
    with S(f"{number}"): pass
    if number % 10 == 0: fork(lambda: None)
"""
    )
    app.end()
    assert sorted(map(int, app.names())) == list(range(100))


WATCHED = """
import asyncio, os, signal
from blockbuster import BlockBuster

watcher = BlockBuster()

async def request():
    from opentelemetry import trace

    with trace.get_tracer("program").start_as_current_span("in the parent"):
        child = os.fork()
        if not child:
            trace.get_tracer("program").start_span("in the child").end()
            os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return child

async def main():
    watcher.activate()
    child = await asyncio.create_task(request(), name="request")
    watcher.deactivate()
    os.waitpid(child, 0)

asyncio.run(main())
"""


def test_who_watches_an_event_loop_for_calls_that_block_finds_none_of_the_agents(launch: Launch) -> None:
    """Blockbuster raises where a lock is waited for or a file looked at, also in what a fork calls."""
    pytest.importorskip("blockbuster")
    app = launch(WATCHED, prelude="", SW_PLUGIN_ASYNCIO_TASK_SPANS="true")
    app.end()
    assert {"in the child", "in the parent", "request"} <= set(app.names())


@pytest.mark.parametrize("to", ["local", "http/protobuf", "nobody"])
def test_a_program_with_one_thread_that_forks_is_not_told_that_it_has_more(launch: Launch, to: str) -> None:
    """Python 3.12 counts the operating system's threads, and warns."""
    collector = {"local": nullcontext, "nobody": nobody}.get(to, http_collector)
    with collector() as found:
        app = launch(
            FORK
            + """
import warnings
from sw_agent import _lifecycle
warnings.simplefilter("always")
_lifecycle.FORK_WAIT = 30  # a busy machine's collector answers late
for number in range(10):
    with S("a"): pass
    fork(lambda: None)
    with S("b"): pass
    _lifecycle.flush(0.01)
    fork(lambda: None)
""",
            SW_EXPORT_TO="local" if to == "local" else "otlp",
            SW_EXPORT_ENDPOINT=found if isinstance(found, str) else found.endpoint if found else "",
            SW_EXPORT_FLUSH_INTERVAL="0.01",
        )
        _, err = app.end_with_stderr()
        assert "DeprecationWarning" not in err
        if to == "local":
            assert len(app.names()) == 20
        elif isinstance(found, Received):
            assert len(found.names) == 20


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_children_have_connections_of_their_own(launch: Launch, protocol: str) -> None:
    with (grpc_collector if protocol == "grpc" else http_collector)() as collector:
        app = launch(
            FORK
            + """
def work():
    with S("child"): pass
for _ in range(5):
    with S("parent"): pass
    trace.get_tracer_provider().force_flush()
    fork(work)
""",
            SW_EXPORT_TO="otlp",
            SW_EXPORT_ENDPOINT=collector.endpoint,
            SW_EXPORT_PROTOCOL=protocol,
            PYTHONWARNINGS="ignore",  # grpc keeps threads
        )
        app.end()
        assert collector.names == ["child"] * 5 + ["parent"] * 5


def test_grandchildren_are_traced(launch: Launch) -> None:
    app = launch(
        FORK
        + """
def child():
    with S("child"): fork(grandchild)
def grandchild():
    with S("grandchild"): pass
with S("parent"): fork(child)
"""
    )
    app.end()
    spans = {span.name: span for span in app.spans()}
    assert spans["grandchild"].parent_id == spans["child"].span_id
    assert spans["child"].parent_id == spans["parent"].span_id


def test_a_fork_from_many_threads_that_record_never_hangs(launch: Launch) -> None:
    app = launch(
        FORK
        + """
import threading
stop = threading.Event()
def record():
    while not stop.wait(0.001):
        with S("busy"): pass
threads = [threading.Thread(target=record) for _ in range(3)]
for thread in threads: thread.start()
def work():
    for _ in range(10):
        with S("child"): pass
for _ in range(15): fork(work)
stop.set()
for thread in threads: thread.join()
""",
        SW_EXPORT_FLUSH_INTERVAL="0.01",
        SW_EXPORT_QUEUE_SIZE="1000000",
        PYTHONWARNINGS="ignore",
    )
    app.end()
    assert app.names().count("child") == 150


def test_no_process_is_forked_while_the_agent_writes_to_stderr(launch: Launch) -> None:
    """A child would never get the lock of Python's that is held meanwhile."""
    app = launch(
        FORK
        + """
import threading, time
from sw_agent import _lifecycle, _log
_lifecycle.FORK_WAIT = 30  # on a busy machine too

class Stream:
    def __init__(self):
        self.lock = threading.Lock()
        self.writes = threading.Event()
    def write(self, text):
        with self.lock:
            self.writes.set()
            time.sleep(0.5)  # in which the fork comes, which does not wait where this fails
    def flush(self):
        pass

def work():
    sys.exit(not stream.lock.acquire(timeout=20))

stream = Stream()
_log.logger().handlers[0].setStream(stream)
thread = threading.Thread(target=_log.logger().error, args=("what",))
thread.start()
stream.writes.wait()
fork(work)
thread.join()
"""
    )
    app.end_with_stderr()  # where Python says that the program has threads


# The end


@pytest.mark.parametrize("leaves", ["os._exit(0)", "os.execv(sys.executable, [sys.executable, '-c', ''])"])
def test_what_ended_before_the_process_leaves_suddenly_is_sent(launch: Launch, leaves: str) -> None:
    app = launch(f"import os, sys\nwith S('a'): pass\n{leaves}")
    app.end()
    assert app.names() == ["a"]


def test_signals_reach_the_program_as_before(launch: Launch) -> None:
    app = launch(
        """
import signal, time
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
with S("a"): pass
print("ready")
while not got: time.sleep(0.05)
print("got it")
""",
        SW_EXPORT_FLUSH_INTERVAL="0.01",
    )
    app.wait_for("ready")
    os.kill(app.process.pid, signal.SIGUSR1)
    assert app.end() == "got it\n"


def test_a_program_that_joins_all_threads_it_can_see_ends(launch: Launch) -> None:
    app = launch(
        """
import threading
with S("a"): pass
for thread in threading.enumerate():
    if thread is not threading.current_thread(): thread.join()
while threading.active_count() > 1: pass
"""
    )
    app.end()
    assert app.names() == ["a"]


# What else a program may do meanwhile


def test_threads_that_fork_at_once_lose_nothing(launch: Launch) -> None:
    app = launch(
        """
import os, threading
from sw_agent._containment import failures

def forks(who):
    for number in range(30):
        with S(f"{who}.{number}"):
            pid = os.fork()
            if not pid:
                with S(f"{who}.{number}.child"): pass
                os._exit(0)
            os.waitpid(pid, 0)

threads = [threading.Thread(target=forks, args=(who,)) for who in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failures)
""",
        SW_EXPORT_FLUSH_INTERVAL="0.01",
        PYTHONWARNINGS="ignore:This process:DeprecationWarning",
    )
    assert app.end() == "{}\n"
    expected = [f"{who}.{number}" for who in range(3) for number in range(30)]
    assert app.names() == sorted([*expected, *(f"{name}.child" for name in expected)])


@pytest.mark.parametrize("opens", ["", "files = [open(f'own{n}', 'w+b', buffering=0) for n in range(8)]"])
def test_a_program_that_closes_all_files_is_not_killed_and_its_own_are_left_alone(launch: Launch, opens: str) -> None:
    app = launch(
        f"""
import os, time
files = []
with S("before"):
    os.closerange(3, 256)
    {opens or "pass"}
    for file in files: file.write(b"data")
for number in range(20):
    with S("after"): time.sleep(0.005)
for file in files:
    file.seek(0)
    assert file.read() == b"data"
    file.write(b"more")
print("alive")
""",
        SW_EXPORT_FLUSH_INTERVAL="0.01",
    )
    assert app.end() == "alive\n"
    assert app.names() == ["after"] * 20 + ["before"]


@pytest.mark.parametrize("spans", ["for _ in range(2):\n    with S('after'): pass", "S('after').__enter__()"])
def test_sigterm_is_caught_again_after_a_fork(launch: Launch, spans: str) -> None:
    app = launch(
        f"""
import os, time
pid = os.fork()
if not pid: os._exit(0)
os.waitpid(pid, 0)
with S("before"):
    pid = os.fork()
    if not pid: os._exit(0)
    os.waitpid(pid, 0)
{spans}
print("ready")
time.sleep(60)
""",
        SW_EXPORT_FLUSH_INTERVAL="60",
    )
    app.wait_for("ready")
    app.process.terminate()
    app.end(-signal.SIGTERM)
    assert set(app.names()) == {"after", "before"}


def test_ctrl_c_while_a_fork_waits_is_not_lost(launch: Launch) -> None:
    with silent_collector() as endpoint:
        app = launch(
            """
import os, signal, threading, time
from sw_agent import _lifecycle
with S("a"): pass
while not _lifecycle.pipeline._in_hand: time.sleep(0.01)
pause = _lifecycle.pipeline.worker.pause
def interrupted(timeout):
    signal.raise_signal(signal.SIGINT)
    return pause(timeout)
_lifecycle.pipeline.worker.pause = interrupted
try:
    pid = os.fork()
    if not pid: os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(10)
    print("lost")
except KeyboardInterrupt:
    print("came")
_lifecycle.pipeline.worker.pause = pause
""",
            SW_EXPORT_TO="otlp",
            SW_EXPORT_ENDPOINT=endpoint,
            SW_EXPORT_EXIT_TIMEOUT="0.5",
            SW_EXPORT_FLUSH_INTERVAL="0.01",
        )
        out, _ = app.end_with_stderr()
    assert "came" in out
    assert "lost" not in out


def test_whoever_leaves_by_os_exit_gets_no_further_also_when_a_signals_handler_raises(launch: Launch) -> None:
    with silent_collector() as endpoint:
        app = launch(
            """
import os, signal
with S("a"): pass
signal.setitimer(signal.ITIMER_REAL, 0.1)
def handler(*_): raise TimeoutError
signal.signal(signal.SIGALRM, handler)
try:
    os._exit(7)
except TimeoutError:
    print("further")
""",
            SW_EXPORT_TO="otlp",
            SW_EXPORT_ENDPOINT=endpoint,
        )
        out, _ = app.end_with_stderr(7)
    assert out == ""


@pytest.mark.skipif(sys.version_info < (3, 13), reason="starts threads also at its end, or at no time then")
def test_what_ends_in_an_exit_function_is_sent_by_the_agents_thread(launch: Launch) -> None:
    """In the main thread the network could hold up the end of the program."""
    app = launch(
        """
import atexit, time
from sw_agent import _lifecycle
running = _lifecycle.pipeline.worker._running
with S("early"): pass
while running.locked(): time.sleep(0.01)

@atexit.register
def late():
    with S("late"): pass
    print(running.locked())
""",
        SW_EXPORT_FLUSH_INTERVAL="0.2",
    )
    assert app.end() == "True\n"
    assert app.names() == ["early", "late"]
