"""The plugin concurrent-futures on pools of interpreters, beyond the contract that it shares with the others."""

from __future__ import annotations

import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contract import current_span, prepare_interpreter
from opentelemetry import trace

from launched import Launch, own_environ
from sw_agent.testing import installed
from sw_agent_plugins.concurrent_futures import plugin

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="InterpreterPoolExecutor is new in 3.14")


def span(name: str = "submitter") -> Any:
    return trace.get_tracer("test").start_as_current_span(name)


@pytest.fixture
def pool() -> Iterator[Any]:
    from concurrent.futures import InterpreterPoolExecutor

    install = "import sw_agent_plugins.concurrent_futures as p, opentelemetry.context as c, sw_agent.snapshot as s\n"
    install += "s.bind(c); p.plugin.install()"
    with InterpreterPoolExecutor(1, initializer=prepare_interpreter, initargs=(sys.path, install)) as pool:
        yield pool


def test_a_span_for_an_item_is_current_in_the_interpreter(pool: Any) -> None:
    with installed(plugin, spans=True) as spans, span() as submitter:
        for _ in range(2):
            seen = pool.submit(current_span).result()
            item = spans.named("current_span")
            assert seen == (item.context.trace_id, item.context.span_id)
            assert item.parent is not None
            assert item.parent.span_id == submitter.get_span_context().span_id
            spans.ended.clear()


def test_relation_link_starts_a_trace_with_a_link_to_the_submitter(pool: Any) -> None:
    with installed(plugin, relation="link") as spans:
        with span() as submitter:
            seen = pool.submit(current_span).result()
        item = spans.named("current_span")
        assert seen == (item.context.trace_id, item.context.span_id)
        assert item.context.trace_id != submitter.get_span_context().trace_id
        assert [link.context for link in item.links] == [submitter.get_span_context()]


def test_relation_none_gives_work_no_context(pool: Any) -> None:
    with installed(plugin, relation="none"), span():
        assert pool.submit(current_span).result() is None


def fail(value: object) -> None:
    raise ValueError(value)


def keyword(*, key: object) -> object:
    return key


def no_closure() -> Callable[[], object]:
    return lambda: 7


def closure(value: object) -> Callable[[], object]:
    return lambda: value


CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (no_closure(), (), {}),
    (closure(1), (), {}),
    (fail, (1,), {}),
    (keyword, (), {"key": [1, "two"]}),
    (keyword, (), {"key": threading.Lock()}),
    (keyword, (), {}),
    (print, (threading.Lock(),), {}),
    (sys.exit, (3,), {}),
    ("print(1)", (), {}),
]


@pytest.mark.parametrize(("function", "args", "kwargs"), CALLS)
def test_results_and_errors_are_as_without_the_agent(function: Any, args: Any, kwargs: Any, pool: Any) -> None:
    def outcome() -> object:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BaseException as error:
            frames = [(frame.filename, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
            return type(error), str(error), str(error.__cause__), getattr(error, "__notes__", None), frames

    natively = outcome()
    with installed(plugin), span():
        for _ in range(2):
            assert outcome() == natively


PROGRAM = """
from concurrent.futures import InterpreterPoolExecutor
def work(name):
    from opentelemetry import trace
    with trace.get_tracer("program").start_as_current_span(name):
        pass
    return name
def silent(number):
    return number
if __name__ == "__main__":
    with InterpreterPoolExecutor(2) as pool:
        for round in ("first", "second"):
            with S(round):
                assert list(pool.map(work, [round + " a", round + " b", round + " c"])) != []
        assert list(pool.map(silent, range(3))) == [0, 1, 2]
"""


@pytest.mark.parametrize("options", [(), ("--program-span",)])
def test_the_spans_of_interpreters_are_the_children_of_their_submitters(
    options: tuple[str, ...], launch: Launch
) -> None:
    app = launch(PROGRAM, *options)
    assert app.end() == ""
    spans = {span.name: span for span in app.spans()}
    root = spans.pop("app.py").span_id if options else None
    assert len(spans) == len(app.names()) - len(options) == 8
    for name, recorded in spans.items():
        submitter, _, item = name.partition(" ")
        assert recorded.parent_id == (spans[submitter].span_id if item else root)


def test_an_interpreter_that_the_program_leaves_open_ends_with_it(launch: Launch) -> None:
    app = launch(
        """
from concurrent import interpreters
interpreter = interpreters.create()
interpreter.exec("from opentelemetry import trace")
interpreter.exec("trace.get_tracer('program').start_span('inside').end()")
"""
    )
    _, err = app.end_with_stderr()
    assert err.splitlines() == [
        "<sys>:0: RuntimeWarning: remaining subinterpreters; close them with Interpreter.close()"
    ]
    assert app.names() == ["inside"]


@pytest.mark.parametrize("module", ["sw_agent", "asyncio", "faulthandler"])
def test_an_interpreter_imports_what_it_would_without_the_agent(module: str, tmp_path: Path, launch: Launch) -> None:
    code = f"""
from concurrent import interpreters
try:
    interpreters.create().exec("import {module}")
except interpreters.ExecutionFailed as error:
    print(error.excinfo.type.__name__)
"""
    (tmp_path / "plain.py").write_text(code)
    plain = subprocess.run(
        [sys.executable, "plain.py"], cwd=tmp_path, env=own_environ(tmp_path), capture_output=True, text=True
    )
    assert launch(code).end() == plain.stdout
