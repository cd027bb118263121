"""Threads on Python 3.14, to which the program, or Python itself, may give a context: what is explicit wins."""

from __future__ import annotations

import sys

import pytest

from launched import Launch

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="threads have had no context before 3.14")

INHERITS = pytest.mark.parametrize("inherits", ["0", "1"])
NATIVELY = {"0": "none", "1": "starter's"}  # what a thread sees of the starter's own context variable

PRELUDE = """
import _thread, contextvars, gc, sys, threading, weakref
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from opentelemetry import trace
S = trace.get_tracer("program").start_as_current_span
variable = contextvars.ContextVar("variable", default="none")

def current():
    return getattr(trace.get_current_span(), "name", "none"), variable.get()

class Subclass(threading.Thread):
    def __init__(self, run, **options):
        super().__init__(**options)
        self.function = run
    def run(self):
        self.function()

def started(make):
    seen = []
    thread = make(lambda: seen.append(current()))
    thread.start()
    thread.join()
    return *seen, thread

MAKERS = {
    "Thread": lambda f, **options: threading.Thread(target=f, **options),
    "subclass": lambda f, **options: Subclass(f, **options),
}
"""


@pytest.fixture
def printed(launch: Launch, inherits: str):
    def run(code: str, **environ: str) -> list[str]:
        said = launch(code, prelude=PRELUDE, PYTHON_THREAD_INHERIT_CONTEXT=inherits, **environ).end().splitlines()
        assert said.pop(0) == inherits
        return said

    return lambda code, **environ: run(f"print(int(sys.flags.thread_inherit_context))\n{code}", **environ)


@INHERITS
def test_a_thread_belongs_to_its_starter_and_else_sees_what_it_would_without_the_agent(printed, inherits):
    said = printed("""
for make in (*MAKERS.values(), lambda f: threading.Timer(0, f)):
    with S("builder"):
        variable.set("builder's")
        thread_made = []
        thread = make(lambda: thread_made.append(current()))
    with S("starter"):
        variable.set("starter's")
        thread.start()
        thread.join()
    print(*thread_made[0])
    variable.set("none")
    print(*started(make)[0])
""")
    assert said == [f"starter {NATIVELY[inherits]}", "none none"] * 3


@INHERITS
def test_a_context_that_the_program_gives_wins(printed):
    said = printed("""
with S("explicit"):
    variable.set("explicit")
    explicit = contextvars.copy_context()
variable.set("none")
for make in MAKERS.values():
    with S("starter"):
        for own in (explicit, contextvars.Context()):
            seen, thread = started(lambda f: make(f, context=own))
            print(*seen, thread._context is own)
""")
    assert said == ["explicit explicit True", "none none True"] * 2


@INHERITS
def test_a_reused_worker_sees_the_context_of_each_item(printed):
    for options in ({}, {"SW_AGENT_DISABLE_PLUGINS": "threading"}):
        said = printed(
            """
with S("opener"), ThreadPoolExecutor(1) as pool:
    print(pool.submit(current).result()[0])
    for name in ("first", "second"):
        with S(name):
            print(pool.submit(current).result()[0])
    idle = contextvars.Context().run(pool.submit, current)
    print(idle.result()[0])
with S("opener"), ThreadPool(1) as pool:
    for name in ("first", "second"):
        with S(name):
            print(pool.apply(current)[0])
    idle = contextvars.Context().run(pool.apply_async, current)
    print(idle.get()[0])
""",
            **options,
        )
        assert said == ["opener", "first", "second", "none", "first", "second", "none"]


@INHERITS
def test_a_raw_thread_belongs_to_its_starter(printed):
    said = printed("""
done = _thread.allocate_lock()
done.acquire()
def work():
    print(*current())
    done.release()
with S("starter"):
    variable.set("starter's")
    _thread.start_new_thread(work, ())
    done.acquire()
""")
    assert said == ["starter none"]


STARTED_IN_A_SPAN = """
variable.set("starter's")
for make in MAKERS.values():
    with S("starter"):
        print(*started(make)[0])
"""


@INHERITS
def test_who_shall_have_no_span_inherits_none(printed, inherits):
    for options in (
        {"SW_PLUGIN_THREADING_RELATION": "none"},
        {"SW_PLUGIN_THREADING_DETACHED": "__main__"},
    ):
        assert printed(STARTED_IN_A_SPAN, **options) == [f"none {NATIVELY[inherits]}"] * 2


@INHERITS
def test_a_span_for_a_thread_is_current_in_it(printed, inherits):
    for options in ({"SW_PLUGIN_THREADING_SPANS": "true"}, {"SW_PLUGIN_THREADING_RELATION": "link"}):
        assert printed(STARTED_IN_A_SPAN, **options) == [
            f"{name} {NATIVELY[inherits]}" for name in ("started.<locals>.<lambda>", "Subclass.run")
        ]


@pytest.mark.parametrize("inherits", ["0"])
def test_a_thread_that_has_ended_holds_no_span(printed):
    said = printed("""
for make in MAKERS.values():
    with S("starter") as starter:
        seen, thread = started(make)
    freed = weakref.ref(starter)
    del starter
    trace.get_tracer_provider().force_flush()  # until it has left the queue holds it
    gc.collect()
    print(freed() is None, thread.is_alive())
""")
    assert said == ["True False"] * 2
