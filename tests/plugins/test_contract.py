"""The contract that every mechanism of propagation keeps, parametrised by mechanism (see contract.py)."""

from __future__ import annotations

import gc
import importlib
import multiprocessing.forkserver
import os
import random
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import contract
import contract_greenlets  # noqa: F401  adds its mechanisms
import pytest
from contract import MECHANISMS, Mechanism, Submit
from opentelemetry import baggage, context, trace
from opentelemetry.trace import StatusCode

from sw_agent.plugin import Plugin
from sw_agent.testing import recorded_spans

IN_CHILD = """
    import importlib, json, os
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    from sw_agent import _imports, snapshot
    _imports.when_imported("opentelemetry.context", snapshot.bind)
    settings = json.loads(os.environ["CONTRACT_SETTINGS"])
    for name in os.environ["CONTRACT_PLUGINS"].split():
        plugin = importlib.import_module("sw_agent_plugins." + name).plugin
        known = {option.name for option in plugin.options}
        plugin.install({name: value for name, value in settings.items() if name in known})
"""


def plugins_of(mechanism: Mechanism) -> list[Plugin]:
    return [importlib.import_module(f"sw_agent_plugins.{name}").plugin for name in mechanism.plugins]


@pytest.fixture(params=MECHANISMS, ids=lambda mechanism: mechanism.name)
def mechanism(request: pytest.FixtureRequest) -> Mechanism:
    found: Mechanism = request.param
    if found.process and found.process not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {found.process} on this platform")
    return found


@pytest.fixture
def opened(mechanism: Mechanism, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a context manager that installs a mechanism's plugins, with settings, and opens it.

    Children that do not inherit the plugins by fork get them from a `sitecustomize`, as they do under the agent.
    """
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(IN_CHILD))

    @contextmanager
    def open_mechanism(**settings: object) -> Iterator[Submit]:
        import json

        monkeypatch.setenv("CONTRACT_SETTINGS", json.dumps(settings))
        monkeypatch.setenv("CONTRACT_PLUGINS", " ".join(mechanism.plugins))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        clean_up_after_processes(mechanism)
        with ExitStack() as stack:
            stack.enter_context(recorded_spans())
            for plugin in plugins_of(mechanism):
                known = {option.name for option in plugin.options}
                plugin.install({name: value for name, value in settings.items() if name in known})
                stack.callback(plugin.uninstall)
            with mechanism.open() as submit:
                yield submit

    yield open_mechanism
    clean_up_after_processes(mechanism)


def clean_up_after_processes(mechanism: Mechanism) -> None:
    """End the forkserver, so that the next one sees the environment of the next test; let go of semaphores.

    If the collector found these while the next ones are made, Python 3.12's resource tracker would raise.
    """
    if mechanism.process:
        multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
        gc.collect()


def span(name: str) -> Any:
    return trace.get_tracer("test").start_as_current_span(name)


def ids(current: Any) -> tuple[int, int]:
    span_context = current.get_span_context()
    return span_context.trace_id, span_context.span_id


def test_work_runs_in_the_context_of_its_submitter(opened: Callable[..., Any]) -> None:
    with opened() as submit, span("submitter") as submitter:
        assert submit(contract.current_span)() == ids(submitter)


def test_work_runs_in_the_context_of_a_submitter_whose_span_has_ended(
    opened: Callable[..., Any], mechanism: Mechanism, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with opened() as submit:
        with span("submitter") as submitter:
            if mechanism.cooperates:
                wait = submit(contract.current_span)
            else:
                wait = submit(contract.current_span_when_told, str(fifo))
        if not mechanism.cooperates:
            fifo.write_text("now")
        assert wait() == ids(submitter)


def test_baggage_travels(opened: Callable[..., Any]) -> None:
    with opened() as submit:
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        try:
            assert submit(contract.current_baggage)() == {"tenant": "acme"}
        finally:
            context.detach(token)


def test_every_piece_of_work_has_its_own_submitter_also_in_a_reused_worker(opened: Callable[..., Any]) -> None:
    with opened() as submit:
        for name in ("first", "second"):
            with span(name) as submitter:
                assert submit(contract.current_span)() == ids(submitter)
        assert submit(contract.context_is_empty)()
        with span("third") as submitter:
            assert submit(contract.current_span)() == ids(submitter)


def test_what_is_opened_inside_a_span_does_not_belong_to_it(opened: Callable[..., Any], mechanism: Mechanism) -> None:
    with span("opener"), opened() as submit:
        empty = context.attach(context.Context())
        try:
            if mechanism.reuses_worker:
                with span("first") as first:
                    assert submit(contract.current_span)() == ids(first)
            assert submit(contract.context_is_empty)()
        finally:
            context.detach(empty)


def test_what_work_leaves_attached_is_not_seen_by_the_next(opened: Callable[..., Any]) -> None:
    with opened() as submit:
        with span("submitter") as submitter:
            submit(contract.leave_a_span_attached)()
            assert trace.get_current_span() is submitter
            assert submit(contract.current_span)() == ids(submitter)
        assert submit(contract.context_is_empty)()


def test_what_work_without_context_leaves_attached_is_not_seen_by_the_next(
    opened: Callable[..., Any], mechanism: Mechanism
) -> None:
    if mechanism.foreign_worker:
        pytest.skip("where nothing is current the agent has no hold of this worker")
    with opened() as submit:
        submit(contract.leave_a_span_attached)()
        assert submit(contract.context_is_empty)()


def test_work_changes_nothing_in_its_submitter(opened: Callable[..., Any]) -> None:
    with opened() as submit, span("submitter"):
        before = context.get_current()
        submit(contract.leave_a_span_attached)()
        assert context.get_current() is before


def test_context_variables_of_the_program_are_seen_as_without_the_agent(
    opened: Callable[..., Any], mechanism: Mechanism
) -> None:
    token = contract.program_variable.set("of the submitter")
    try:
        with mechanism.open() as submit:
            natively = submit(contract.read_program_variable)()
        with opened() as submit, span("submitter"):
            assert submit(contract.read_program_variable)() == natively
    finally:
        contract.program_variable.reset(token)


def test_errors_are_those_of_the_program_with_the_frames_of_the_program(
    opened: Callable[..., Any], mechanism: Mechanism
) -> None:
    with mechanism.open() as submit, span("submitter"):
        natively = contract.describe_error(submit(contract.fail, 7))
    with opened() as submit:
        assert contract.describe_error(submit(contract.fail, 7)) == natively
        with span("submitter"):
            kind, args, frames, cause = contract.describe_error(submit(contract.fail, 7))
    if mechanism.foreign_worker and sys.version_info < (3, 11):  # it cannot take a frame out of a traceback
        frames = [frame for frame in frames if "sw_agent" not in frame[0]]
    assert (kind, args, frames, cause) == natively


def test_a_span_is_freed_when_its_work_is_done(opened: Callable[..., Any]) -> None:
    with opened() as submit:
        with span("submitter") as submitter:
            submit(contract.current_span)()
        freed = weakref.ref(submitter)
        del submitter
        submit(contract.current_span)()  # the worker has come back from the first
        poll(lambda: freed() is None)


def poll(condition: Callable[[], bool]) -> None:
    """Wait for what a worker does after its result is there."""
    for _ in range(2000):
        gc.collect()
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("not in 20 seconds")


def test_submitters_that_race_each_get_their_own_context(opened: Callable[..., Any], mechanism: Mechanism) -> None:
    threads, items = (8, 200) if not mechanism.process else (4, 25 if mechanism.reuses_worker else 8)
    wrong: list[object] = []

    def run(submit: Submit, seed: int) -> None:
        choose = random.Random(seed)
        context.attach(context.Context())
        waits: list[tuple[Callable[[], object], object]] = []
        for number in range(items):
            with ExitStack() as stack:
                expected = None
                if choose.random() < 0.8:
                    expected = ids(stack.enter_context(span(f"{seed}.{number}")))
                waits.append((submit(contract.current_span), expected))
            if choose.random() < 0.3:
                check(waits)
        check(waits)

    def check(waits: list[tuple[Callable[[], object], object]]) -> None:
        while waits:
            wait, expected = waits.pop()
            seen = wait()
            if seen != expected:
                wrong.append((seen, expected))

    with opened() as submit:
        submitters = [threading.Thread(target=run, args=(submit, seed)) for seed in range(threads)]
        for thread in submitters:
            thread.start()
        for thread in submitters:
            thread.join(120)
    assert wrong == []


@pytest.fixture
def related(mechanism: Mechanism) -> None:
    if not mechanism.related:
        pytest.skip("the options relation and spans do not apply")


@pytest.mark.usefixtures("related")
def test_spans_make_one_for_each_piece_of_work_with_its_waiting_time(opened: Callable[..., Any]) -> None:
    with opened(spans=True) as submit:
        with span("submitter") as submitter:
            first, second = submit(contract.see_span)(), submit(contract.see_span)()
        assert first.span_id != second.span_id
        for seen in (first, second):
            assert (seen.trace_id, seen.parent_id) == ids(submitter)
            assert seen.attributes["sw.wait_ms"] >= 0
            assert seen.attributes["code.function.name"]


@pytest.mark.usefixtures("related")
def test_a_failure_is_recorded_once_on_the_span_of_the_work_that_raised_it(
    opened: Callable[..., Any], mechanism: Mechanism
) -> None:
    if mechanism.process:
        pytest.skip("the spans are in another process")
    with recorded_spans() as spans, opened(spans=True) as submit:
        for _ in range(2):
            with span("submitter"), pytest.raises(contract.ProgramError):
                submit(contract.fail, 7)()
        poll(lambda: len(spans) == 4)
        ended = list(spans)
    of_work = [each for each in ended if each.name != "submitter"]
    for each in of_work:
        failed = each.status.status_code is StatusCode.ERROR
        assert [event.name for event in each.events] == ["exception"] * failed
        assert failed or not mechanism.reuses_worker  # elsewhere the test itself catches the error before it is seen
    assert not any(each.events for each in ended if each not in of_work)


@pytest.mark.usefixtures("related")
def test_relation_link_starts_a_trace_with_a_link_to_the_submitter(opened: Callable[..., Any]) -> None:
    with opened(relation="link") as submit:
        with span("submitter") as submitter:
            seen = submit(contract.see_span)()
        assert seen.parent_id is None
        assert seen.trace_id != ids(submitter)[0]
        assert seen.linked_span_ids == [ids(submitter)[1]]
        assert submit(contract.context_is_empty)()


@pytest.mark.usefixtures("related")
def test_relation_none_gives_work_no_context(opened: Callable[..., Any]) -> None:
    with opened(relation="none") as submit, span("submitter"):
        assert submit(contract.context_is_empty)()


ALL_PLUGINS = sorted({name for mechanism in MECHANISMS for name in mechanism.plugins})


def targets(plugin: Plugin) -> dict[str, object]:
    """Return the very object at each of a plugin's targets, or None where this Python has none."""
    found = {}
    for patch in plugin.patches:
        module, _, path = patch.target.partition(":")
        owner: object = sys.modules.get(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent, None)
        found[patch.target] = vars(owner).get(name) if owner is not None else None
    return found


ONLY_ON_DEMAND = {f"asyncio.base_events:BaseEventLoop.{name}" for name in ("call_soon", "create_task")}


@pytest.mark.parametrize("name", ALL_PLUGINS)
def test_uninstall_puts_back_the_very_objects(name: str) -> None:
    plugin = importlib.import_module(f"sw_agent_plugins.{name}").plugin
    before = targets(plugin)
    plugin.install()
    first = targets(plugin)
    plugin.install()
    second = targets(plugin)
    plugin.uninstall()
    after = targets(plugin)
    patched = {target for target in before if first[target] is not before[target]}
    assert patched >= {target for target in before if before[target] is not None} - ONLY_ON_DEMAND
    assert patched.isdisjoint(ONLY_ON_DEMAND)
    assert all(second[target] is first[target] for target in before)
    assert all(after[target] is before[target] for target in before)
