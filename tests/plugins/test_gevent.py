"""The plugin gevent beyond the contract: what greenlets look like, whose choice wins, how they end."""

from __future__ import annotations

import contextvars
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gevent
import gevent.greenlet
import gevent.pool
import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from launched import SW_PYTHON, own_environ
from sw_agent.testing import RecordedSpans, installed
from sw_agent_plugins.gevent import plugin


def span(name: str) -> Any:
    return trace.get_tracer("program").start_as_current_span(name)


def current() -> str | None:
    return getattr(trace.get_current_span(), "name", None)


def test_the_context_that_the_program_has_given_to_a_greenlet_wins() -> None:
    variable = contextvars.ContextVar("variable", default="none")
    own = contextvars.Context()
    own.run(variable.set, "own")
    with installed(plugin), span("submitter"):
        greenlet = gevent.Greenlet(lambda: (variable.get(), current()))
        greenlet.gr_context = own  # type: ignore[attr-defined]
        greenlet.start()
        assert greenlet.get() == ("own", None)


def test_a_greenlet_looks_as_it_does_without_the_agent() -> None:
    def work(*args: object) -> object:
        return args

    def seen() -> object:
        with span("submitter"):
            greenlet = gevent.greenlet.Greenlet(work, 1)
            inside = repr(greenlet).partition(" at ")[0], greenlet._run, sorted(vars(greenlet))  # type: ignore[attr-defined]
            greenlet.start()
            while_started = sorted(vars(greenlet)), greenlet.args  # type: ignore[attr-defined]
            return inside, while_started, greenlet.get(), gevent.greenlet.Greenlet.__module__

    natively = seen()
    with installed(plugin):
        assert seen() == natively


def test_a_link_can_be_taken_back_by_the_function_that_was_given() -> None:
    called: list[object] = []
    with installed(plugin), span("submitter"):
        greenlet = gevent.greenlet.Greenlet(int)
        greenlet.link(called.append)
        greenlet.unlink(called.append)
        greenlet.start()
        greenlet.join()
        gevent.sleep(0)
    assert called == []


@pytest.mark.parametrize(
    "misuse",
    [
        lambda: gevent.spawn(5),
        lambda: gevent.spawn_raw(5),
        lambda: gevent.greenlet.Greenlet(int).link(5),
        lambda: gevent.greenlet.Greenlet(int).link(),
        lambda: gevent.get_hub().threadpool.spawn(),
    ],
)
def test_misuse_raises_the_librarys_own_error(misuse: Any) -> None:
    with pytest.raises(TypeError) as natively:
        misuse()
    with installed(plugin), span("submitter"), pytest.raises(TypeError) as traced:
        misuse()
    assert str(traced.value) == str(natively.value)


@pytest.fixture
def spans() -> Any:
    with installed(plugin, spans=True) as recorded:
        yield recorded


def test_a_greenlet_that_is_killed_has_a_span_without_error(spans: RecordedSpans) -> None:
    for _ in range(2):
        with span("submitter"):
            greenlet = gevent.spawn(gevent.sleep, 60)
            gevent.sleep(0)
            greenlet.kill()
    killed = [each for each in spans if each.name == "sleep"]
    assert len(killed) == 2
    assert {each.status.status_code for each in killed} == {StatusCode.UNSET}


def test_a_greenlet_that_is_killed_before_it_began_has_none(spans: RecordedSpans) -> None:
    with span("submitter"):
        gevent.spawn(gevent.sleep, 60).kill()
    assert spans.names == ["submitter"]


@pytest.mark.parametrize("spawn", [gevent.spawn, gevent.get_hub().threadpool.spawn], ids=["greenlet", "thread pool"])
def test_the_span_of_work_that_fails_says_so(spans: RecordedSpans, spawn: Any) -> None:
    def work() -> None:
        raise ValueError("no stock")

    for _ in range(2):
        with span("submitter"), pytest.raises(ValueError, match="no stock"):
            spawn(work).get()
    failed = [each for each in spans if each.name != "submitter"]
    assert len(failed) == 2
    assert {(each.status.status_code, each.status.description) for each in failed} == {
        (StatusCode.ERROR, "ValueError: no stock")
    }


def test_what_a_pool_spawns_for_itself_has_no_span(spans: RecordedSpans) -> None:
    pool = gevent.pool.Pool(1)
    with span("submitter"):
        assert pool.map(str, [1, 2]) == list(pool.imap(str, [1, 2])) == pool.map_async(str, [1, 2]).get()
    assert spans.names == ["str"] * 6 + ["submitter"]
    submitter = spans.named("submitter").context
    assert all(each.parent == submitter for each in spans if each.name == "str")


PATCHED = """
import json, sys
from gevent import monkey; monkey.patch_all()
import threading
import gevent
from opentelemetry import trace

tracer = trace.get_tracer("program")
seen = {}

def look(name):
    seen[name] = getattr(trace.get_current_span(), "name", None)

def outlives():
    look("detached thread")

with tracer.start_as_current_span("submitter"):
    for thread in (threading.Thread(target=look, args=("thread",)), threading.Thread(target=outlives)):
        thread.start()
        thread.join()
    gevent.spawn(look, "greenlet").join()
    class Own(gevent.Greenlet):
        def _run(self):
            look("own class")
    own = Own(); own.start(); own.join()
print(json.dumps(seen))
"""


@pytest.mark.parametrize(
    ("off", "expected"),
    [
        ("logging", {"thread": "submitter", "detached thread": None, "greenlet": "submitter"}),
        ("threading", {"thread": None, "detached thread": None, "greenlet": "submitter"}),
        ("gevent", {"thread": "submitter", "detached thread": None, "greenlet": None}),
    ],
)
def test_threads_that_are_greenlets_are_the_business_of_the_plugin_threading(
    off: str, expected: dict[str, str | None], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(textwrap.dedent(PATCHED))
    done = subprocess.run(
        [SW_PYTHON, "run", "--to", "none", "--disable", off, "--", sys.executable, "-W", "ignore", "app.py"],
        env={**own_environ(tmp_path), "SW_PLUGIN_THREADING_DETACHED": "__main__.outlives"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {**expected, "own class": expected["greenlet"]}


def test_uninstalling_puts_the_class_back() -> None:
    compiled = gevent.greenlet.Greenlet
    for _ in range(2):
        with installed(plugin):
            assert issubclass(gevent.greenlet.Greenlet, compiled)
            left: Any = gevent.greenlet.Greenlet(int)
        assert gevent.greenlet.Greenlet is compiled
        with span("submitter"):
            assert gevent.spawn(current).get() is None
            left.link(lambda _: None)
            left.start()
            left.join()
