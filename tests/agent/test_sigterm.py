"""SIGTERM with its default disposition: what has ended leaves first, and the process dies of it nevertheless.

Programs wait in short sleeps: a signal that comes between Python's last look and a long sleep's beginning is handled
after the sleep, without the agent too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from compiled import needs_a_compiler
from launched import PRELUDE, Launch, Launched
from receivers import silent_collector
from sw_agent import _sigterm_by_faulthandler

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

NOT_COMPILED = "import sys\nsys.modules['sw_agent._sigterm_handler'] = None\n"


@pytest.fixture(params=[pytest.param("compiled", marks=needs_a_compiler), "by faulthandler"])
def handled(launch: Launch, request: pytest.FixtureRequest) -> Launch:
    """Start programs under the agent, with each of the two handlers in C."""
    first = "import sw_agent._sigterm_handler\n" if request.param == "compiled" else NOT_COMPILED

    def start(code: str, *options: str, prelude: str = PRELUDE, **more: Any) -> Launched:
        return launch(code, *options, prelude=first + prelude, **more)

    return start


def test_sigterm_with_its_default_disposition_kills_after_the_flush(handled: Launch) -> None:
    app = handled("import time\nwith S('a'): pass\nprint('ready')\nwhile True: time.sleep(0.05)")
    app.wait_for("ready")
    app.process.terminate()
    app.end(-signal.SIGTERM)
    assert app.names() == ["a"]


def test_sigterm_ends_the_programs_span_too(handled: Launch) -> None:
    app = handled("import time\nprint('ready')\nwhile True: time.sleep(0.05)", "--program-span")
    app.wait_for("ready")
    app.process.terminate()
    app.end(-signal.SIGTERM)
    (span,) = app.spans()
    assert (span.status, span.status_description) == ("ERROR", "SystemExit: SIGTERM")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_handler_of_the_programs_own_is_left_alone(handled: Launch, when: str) -> None:
    handler = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
    app = handled(
        ("" if when == "before" else handler)
        + "with S('a'): pass\nprint('ready')\nimport time\nwhile True: time.sleep(0.05)",
        prelude=(handler if when == "before" else "")
        + "from opentelemetry import trace\nS = trace.get_tracer('x').start_as_current_span\n",
    )
    app.wait_for("ready")
    app.process.terminate()
    app.end(7)
    assert app.names() == ["a"]


def test_a_handler_that_calls_the_one_before_it_goes_on(handled: Launch) -> None:
    app = handled(
        """
import signal, time
def handler(number, frame):
    if callable(before): before(number, frame)
    print("handled")
before = signal.signal(signal.SIGTERM, handler)
print("ready")
while True: time.sleep(0.05)
"""
    )
    app.wait_for("ready")
    app.process.terminate()
    app.wait_for("handled")
    app.process.kill()
    app.end_with_stderr(-signal.SIGKILL)


@pytest.mark.parametrize(
    "sends",
    [
        "os.kill(os.getpid(), signal.SIGTERM)",
        "signal.raise_signal(signal.SIGTERM)",
        "signal.signal(signal.SIGTERM, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGTERM)",
    ],
)
def test_a_program_that_sends_sigterm_to_itself_gets_no_further(handled: Launch, sends: str) -> None:
    app = handled(f"import os, signal\nwith S('a'): pass\n{sends}\nprint('further')")
    assert app.end(-signal.SIGTERM) == ""
    assert app.names() == ["a"]


def test_a_program_does_not_see_that_its_sigterm_is_caught(handled: Launch) -> None:
    app = handled(
        """
import signal
import sys
with S("a"): pass
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
print(signal.signal(signal.SIGTERM, print) is signal.SIG_DFL)
print(signal.signal(signal.SIGTERM, signal.SIG_DFL) is print)
"""
    )
    assert app.end() == "True\nTrue\nTrue\n"


def test_a_program_that_counts_its_threads_after_setting_a_handler_counts_no_more_of_them_later(launch: Launch) -> None:
    """CPython's own tests wait until `_thread._count()` is what it was before."""
    app = launch(
        """
import _thread, signal
def counted_after_a_handler_of_its_own():
    signal.signal(signal.SIGTERM, signal.signal(signal.SIGTERM, signal.SIG_IGN))
    return _thread._count()
with S('a'):
    print({counted_after_a_handler_of_its_own() for _ in range(50)})
"""
    )
    assert app.end() == "{1}\n"


def test_sigterm_kills_also_while_the_main_thread_is_in_a_call_that_does_not_come_back(handled: Launch) -> None:
    app = handled(
        """
import hashlib
with S("a"): pass
print("ready")
hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**31 - 1)
"""
    )
    app.wait_for("ready")
    app.process.terminate()
    app.end(-signal.SIGTERM)
    assert app.names() == ["a"]


def test_an_ignored_sigterm_stays_ignored(handled: Launch) -> None:
    app = handled(
        "import os; os.kill(os.getpid(), signal.SIGTERM); print(signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)",
        prelude="import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nfrom opentelemetry import trace\n",
    )
    assert app.end() == "True\n"


def test_a_program_that_never_traces_has_its_default_sigterm(handled: Launch) -> None:
    app = handled("import signal\nprint(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)", prelude="")
    assert app.end() == "True\n"


def test_sigterm_in_a_forked_child_kills_it_after_the_flush(handled: Launch) -> None:
    app = handled(
        """
import os, signal, time
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    with S("child"): pass
    os.write(write, b"x")
    while True: time.sleep(0.05)
os.read(read, 1)
os.kill(pid, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    )
    assert app.end() == "-15\n"
    assert app.names() == ["child"]


def test_a_terminated_process_of_multiprocessing_has_flushed(handled: Launch) -> None:
    app = handled(
        """
import multiprocessing, time
def work(ready):
    with S("work"): pass
    ready.set()
    while True: time.sleep(0.05)
if __name__ == "__main__":
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        ready = context.Event()
        process = context.Process(target=work, args=(ready,))
        process.start()
        ready.wait()
        process.terminate()
        process.join()
        print(process.exitcode)
"""
    )
    assert app.end() == "-15\n-15\n"
    assert app.names() == ["work", "work"]


def test_a_dying_process_is_not_held_up_by_a_collector_that_hangs(handled: Launch) -> None:
    with silent_collector() as endpoint:
        app = handled(
            "import time\nwith S('a'): pass\nprint('ready')\nwhile True: time.sleep(0.05)",
            SW_EXPORT_TO="otlp",
            SW_EXPORT_ENDPOINT=endpoint,
            SW_EXPORT_EXIT_TIMEOUT="4",
        )
        app.wait_for("ready")
        begun = time.monotonic()
        app.process.terminate()
        _, err = app.end_with_stderr(-signal.SIGTERM)
        assert time.monotonic() - begun < 30
    assert err.startswith(f"sw-python: WARNING: spans wait in {app.store} for the collector ")


@needs_a_compiler
def test_a_busy_process_survives_any_number_of_signals() -> None:
    """What the handler does must be right in the midst of every instruction."""
    program = """
import os, sys, _thread, _signal
import sw_agent._sigterm_handler as handler
reading, writing = os.pipe()
os.set_blocking(writing, False)
assert handler.register(writing)
came = 0
def count():
    global came
    while True: came += len(os.read(reading, 65536))
_signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGTERM])
_thread.start_new_thread(count, ())
_signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGTERM])
pid = os.getpid()
if not os.fork():
    while os.getppid() == pid: os.kill(pid, _signal.SIGTERM)
    os._exit(0)
class A:
    def __init__(self, number): self.number = number
    def __lt__(self, other): return self.number < other.number
def deep(n): return n and 1 + max(map(deep, [n - 1]))
while came < 10_000:
    sorted(A(n % 7) for n in range(100))
    deep(100)
print("survived", flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


@needs_a_compiler
def test_a_child_of_a_fork_that_nobody_tells_of_dies_alone(launch: Launch) -> None:
    app = launch(
        """
import ctypes, os, signal, time
fork = ctypes.PyDLL(None).fork  # as a library in C forks: Python's hooks are not called
with S("a"):
    pid = fork()
    while not pid: time.sleep(0.05)
    os.kill(pid, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    )
    assert app.end() == "-15\n"
    assert app.names() == ["a"]


@needs_a_compiler
def test_a_handler_in_c_that_python_does_not_know_of_is_left_alone(launch: Launch) -> None:
    app = launch(
        """
import ctypes, os, signal, time
libc = ctypes.CDLL(None)
libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.signal(signal.SIGTERM, ctypes.cast(libc.abs, ctypes.c_void_p))
with S("a"): os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""
    )
    assert app.end() == "alive\n"
    assert app.names() == ["a"]


def test_where_somebody_handles_it_faulthandler_neither_takes_it_nor_gives_it_back() -> None:
    def handler(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, handler)
    try:
        assert not _sigterm_by_faulthandler.register(2)
        _sigterm_by_faulthandler.unregister()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
