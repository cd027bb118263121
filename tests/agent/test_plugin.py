"""`Plugin`: when its interceptors go in and come out, and what it gives to a plugin's author."""

from __future__ import annotations

import importlib
import importlib.machinery
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.trace import StatusCode

from sw_agent import _bootstrap, _imports, _provider, snapshot
from sw_agent._hop import SpanHop
from sw_agent.plugin import MOST_FAILURES, NOTHING, PROPAGATION, Option, Plugin, is_installed
from sw_agent.testing import installed, recorded_spans

SOURCE = """
import queue

class Job:
    def __init__(self, function, *args):
        self.function = function
        self.args = args

    def run(self):
        try:
            self.result = self.function(*self.args)
        except Exception as error:
            self.error = error
        return self

def submit(function, *args):
    return Job(function, *args)

def clean(function, default=None):
    return function()
"""


@pytest.fixture(autouse=True)
def recording() -> Iterator[None]:
    """Let spans of the global provider be real ones."""
    with recorded_spans():
        yield


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of a library that can be imported, and is not yet."""
    monkeypatch.syspath_prepend(tmp_path)
    snapshot.bind(context)
    name = f"library_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def plugin(name: str) -> Iterator[Plugin]:
    plugin = Plugin("library", options=[*PROPAGATION, Option("limit", 3, "how many")])
    yield plugin
    plugin.uninstall()


def library(name: str) -> Any:
    __import__(name)
    return sys.modules[name]


def span(name: str = "span") -> Any:
    return trace.get_tracer("test").start_as_current_span(name)


def current_name() -> str | None:
    return getattr(trace.get_current_span(), "name", None)


def count_calls(plugin: Plugin, target: str) -> list[Any]:
    calls: list[Any] = []
    plugin.before(target)(lambda _instance, args, _kwargs: calls.append(args))
    return calls


def test_interceptors_go_in_when_the_module_arrives(plugin: Plugin, name: str) -> None:
    calls = count_calls(plugin, f"{name}:submit")
    plugin.install()
    assert name not in sys.modules
    library(name).submit(print)
    assert calls == [(print,)]


def test_interceptors_go_into_a_module_that_is_there(plugin: Plugin, name: str) -> None:
    calls = count_calls(plugin, f"{name}:submit")
    loaded = library(name)
    plugin.install()
    loaded.submit(print)
    assert calls == [(print,)]


def test_a_plugin_that_was_uninstalled_before_its_module_arrives_stays_out(plugin: Plugin, name: str) -> None:
    calls = count_calls(plugin, f"{name}:submit")
    plugin.install()
    plugin.uninstall()
    library(name).submit(print)
    assert calls == []


def test_a_plugin_can_be_installed_again(plugin: Plugin, name: str) -> None:
    calls = count_calls(plugin, f"{name}:submit")
    original = library(name).submit
    for _ in range(3):
        plugin.install()
        plugin.install()
        library(name).submit(1)
        plugin.uninstall()
        assert library(name).submit is original
    assert len(calls) == 3


def test_settings_are_the_defaults_until_installed_and_after(plugin: Plugin) -> None:
    defaults = {"relation": "child", "spans": False, "limit": 3}
    assert plugin.settings == defaults
    plugin.install({"limit": 5})
    assert plugin.settings == {**defaults, "limit": 5}
    plugin.uninstall()
    assert plugin.settings == defaults


def test_is_installed_says_whether_a_plugin_of_that_name_is_in(plugin: Plugin) -> None:
    assert not is_installed("library")
    plugin.install()
    assert is_installed("library")
    assert plugin.installed


def test_two_plugins_of_one_name_cannot_be_installed(plugin: Plugin) -> None:
    plugin.install()
    with pytest.raises(ValueError, match="a plugin named 'library' is installed already"):
        Plugin("library").install()


def test_a_missing_target_is_said_unless_it_is_optional(
    plugin: Plugin, name: str, agent_errors: list[logging.LogRecord]
) -> None:
    plugin.before(f"{name}:missing", optional=True)(lambda *_: None)
    plugin.before(f"{name}:lost")(lambda *_: None)
    calls = count_calls(plugin, f"{name}:submit")
    plugin.install()
    library(name).submit(print)
    assert len(calls) == 1
    (record,) = agent_errors
    assert record.getMessage() == f"plugin library: {name}:lost failed; the program goes on without it"
    agent_errors.clear()


# capture


def test_capture_calls_only_where_something_is_current(plugin: Plugin, name: str) -> None:
    captured: list[Any] = []
    plugin.capture(f"{name}:submit")(lambda taken, *_: captured.append(taken))
    plugin.install()
    library(name).submit(print)
    assert captured == []
    with span("submitter"):
        library(name).submit(print)
    assert [taken.run(current_name) for taken in captured] == ["submitter"]


def test_capture_may_change_the_arguments(plugin: Plugin, name: str) -> None:
    plugin.capture(f"{name}:submit")(lambda taken, _none, args, kwargs: ((taken.wrap(args[0]),), kwargs))
    plugin.capture(f"{name}:Job.__init__")(lambda _taken, _job, args, kwargs: ((*args, "more"), kwargs))
    plugin.install()
    with span("submitter"):
        job = library(name).submit(lambda more: (more, current_name()))
    assert job.run().result == ("more", "submitter")


@pytest.mark.parametrize(
    ("settings", "calls"), [({"relation": "none"}, 0), ({"spans": True}, 2), ({"relation": "link"}, 1)]
)
def test_the_options_say_when_to_capture(plugin: Plugin, name: str, settings: dict[str, Any], calls: int) -> None:
    captured: list[Any] = []
    plugin.capture(f"{name}:submit")(lambda taken, *_: captured.append(taken))
    plugin.install(settings)
    library(name).submit(print)
    with span():
        library(name).submit(print)
    assert len(captured) == calls


def test_a_failing_capture_is_contained(plugin: Plugin, name: str, agent_errors: list[logging.LogRecord]) -> None:
    plugin.capture(f"{name}:submit")(lambda *_: 1 / 0)
    plugin.install()
    with span():
        assert library(name).submit(print).function is print
    assert len(agent_errors) == 1
    agent_errors.clear()


# carry and detach


def carry(plugin: Plugin, name: str) -> list[Any]:
    asked: list[Any] = []
    plugin.carry(f"{name}:Job", made="__init__", run="run")(lambda taken, job: asked.append((taken, job)))
    return asked


def test_items_carry_the_context_from_where_they_are_made_to_where_they_run(plugin: Plugin, name: str) -> None:
    asked = carry(plugin, name)
    plugin.install()
    with span("submitter"):
        job = library(name).submit(current_name)
    with span("other"):
        assert job.run().result == "submitter"
        assert current_name() == "other"
        assert library(name).submit(print).function is print
    assert asked == []


def test_items_that_the_library_does_not_have_are_said_and_the_rest_goes_on(
    plugin: Plugin, name: str, agent_errors: list[logging.LogRecord]
) -> None:
    calls: list[int] = []
    plugin.carry(f"{name}:Missing", made="__init__", run="run")(lambda *_: None)
    plugin.before(f"{name}:submit")(lambda *_: calls.append(1))
    plugin.install()
    library(name).submit(print)
    assert calls == [1]
    assert len(messages(agent_errors)) == 3  # each of what is put in for it


def test_items_without_context_run_in_an_empty_one(plugin: Plugin, name: str) -> None:
    carry(plugin, name)
    plugin.install()
    job = library(name).submit(current_name)
    assert vars(job).keys() == {"function", "args"}
    with span("worker"):
        assert job.run().result is None


def test_the_class_of_the_items_is_afterwards_as_before(plugin: Plugin, name: str) -> None:
    kind = library(name).Job
    before = dict(vars(kind))
    carry(plugin, name)
    for _ in range(2):
        plugin.install()
        run = kind.run
        with span("submitter"):
            job = library(name).submit(current_name)
        plugin.uninstall()
        assert dict(vars(kind)) == before
        assert run(job).result is None  # the program may have kept the method


def test_a_method_is_called_as_it_is_where_it_has_nothing_to_call(plugin: Plugin, name: str) -> None:
    plugin.detach(f"{name}:Job.run", unless_empty="args")
    plugin.install()
    for args, found in (((), "worker"), ((1,), None)):
        job = library(name).submit(lambda *_: current_name(), *args)
        with span("worker"):
            assert job.run().result == found


def test_where_the_options_ask_for_more_the_plugin_is_asked(plugin: Plugin, name: str) -> None:
    asked = carry(plugin, name)
    plugin.install({"spans": True})
    job = library(name).submit(current_name)
    ((taken, asked_for),) = asked
    assert asked_for is job
    assert not taken


def test_the_errors_of_carried_items_have_no_frame_of_the_agent(plugin: Plugin, name: str) -> None:
    carry(plugin, name)
    loaded = library(name)
    natively = loaded.Job(int, "x").run().error
    plugin.install()
    with span():
        error = loaded.Job(int, "x").run().error
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)] == [
        frame.name for frame in traceback.extract_tb(natively.__traceback__)
    ]


def test_the_signature_and_the_misuse_of_carried_items_are_the_librarys(plugin: Plugin, name: str) -> None:
    loaded = library(name)
    carry(plugin, name)
    plugin.install()
    with pytest.raises(TypeError, match=r"Job\.run\(\) missing 1 required positional argument: 'self'"):
        loaded.Job.run()
    with pytest.raises(TypeError, match=r"Job\.__init__\(\) missing"):
        loaded.Job()


def test_what_is_detached_runs_in_an_empty_context(plugin: Plugin, name: str) -> None:
    plugin.detach(f"{name}:clean")
    loaded = library(name)
    plugin.install()
    with span("outer"):
        assert loaded.clean(current_name) is None
        assert loaded.clean(function=current_name, default=1) is None
        assert current_name() == "outer"
    clean = loaded.clean
    plugin.uninstall()
    with span("outer"):
        assert clean(current_name) == loaded.clean(current_name) == "outer"


# resume


def taken_in(name: str) -> Any:
    with span(name):
        return snapshot.capture()


def test_resume_restores_the_snapshot_and_leaves_it(plugin: Plugin) -> None:
    with plugin.resume(taken_in("submitter")):
        assert current_name() == "submitter"
    assert current_name() is None


def test_resume_of_nothing_in_a_clean_worker_does_nothing(plugin: Plugin) -> None:
    assert plugin.resume(None) is NOTHING
    with span("left over"), plugin.resume(None) as hop:
        assert hop is not NOTHING
        assert current_name() is None


def test_a_span_for_the_work_is_a_child_and_says_how_long_it_waited(plugin: Plugin) -> None:
    with installed(plugin, spans=True) as spans:
        taken = taken_in("submitter")
        with plugin.resume(taken, current_name):
            assert current_name() == "current_name"
    work = spans.named("current_name")
    assert spans.parent_of("current_name") == "submitter"
    assert work.attributes is not None
    assert work.attributes["sw.wait_ms"] >= 0  # type: ignore[operator]
    assert str(work.attributes["code.function.name"]).endswith("test_plugin.current_name")


def test_the_span_of_failed_work_has_an_error_and_that_of_cancelled_work_none(plugin: Plugin) -> None:
    class CancelledError(Exception):
        pass

    class SilentError(Exception):
        def __str__(self) -> str:
            raise ValueError

    with installed(plugin, spans=True) as spans:
        for error in (ValueError("on purpose"), CancelledError(), SystemExit(1)):
            with pytest.raises(type(error)), plugin.resume(None, int):
                raise error
    failed, *others = spans
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "ValueError"
    assert [other.status.status_code for other in others] == [StatusCode.UNSET] * 2


def test_an_error_that_cannot_be_shown_is_no_harm(plugin: Plugin, agent_errors: list[logging.LogRecord]) -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise ValueError

    with installed(plugin, spans=True) as spans:
        with pytest.raises(SilentError), plugin.resume(None, int):
            raise SilentError
        assert spans.names == ["int"]
    agent_errors.clear()


def test_a_linked_span_is_the_root_of_its_own_trace(plugin: Plugin) -> None:
    with installed(plugin, relation="link") as spans, plugin.resume(taken_in("submitter"), int):
        pass
    work, submitter = spans.named("int"), spans.named("submitter")
    assert work.parent is None
    assert [link.context for link in work.links] == [submitter.context]


def test_a_worker_thread_sees_its_items_one_by_one(plugin: Plugin) -> None:
    seen: list[Any] = []

    def work() -> None:
        for taken in (taken_in("first"), None, taken_in("second")):
            with plugin.resume(taken):
                seen.append(current_name())
        seen.append(current_name())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["first", None, "second", None]


def test_imports_are_watched_without_changing_the_module(plugin: Plugin, name: str) -> None:
    count_calls(plugin, f"{name}:submit")
    plugin.install()
    loaded = library(name)
    assert "exec_module" not in vars(loaded.__spec__.loader)
    assert loaded.__loader__ is loaded.__spec__.loader
    assert _imports._finder in sys.meta_path


def test_a_built_in_module_is_watched_each_time_that_it_is_made(plugin: Plugin) -> None:
    """Eventlet makes one of `_thread`, beside the one that is there."""
    count_calls(plugin, "_thread:allocate_lock")
    plugin.install()
    there = sys.modules.pop("_thread")
    try:
        made = importlib.import_module("_thread")
    finally:
        sys.modules["_thread"] = there
    assert made is not there
    assert hasattr(made.allocate_lock, "__wrapped__")
    assert made.__loader__ is made.__spec__.loader is importlib.machinery.BuiltinImporter


# lend


class Lent(partial):  # type: ignore[type-arg]
    """What a job calls in the place of its function."""


def job_of(name: str, function: Any, *args: Any) -> Any:
    """Return a job that finds its function on its class."""
    kind = type("Kind", (library(name).Job,), {"function": staticmethod(function)})
    job = object.__new__(kind)
    job.args = args
    return job


def lending(plugin: Plugin, name: str) -> list[Any]:
    """Lend jobs a function that calls theirs, and puts the result into a list."""
    asked: list[Any] = []

    def interceptor(current: Any, job: Any) -> Lent:
        asked.append(current)
        return Lent(lambda function, *args: [function(*args)], job.function)

    plugin.lend(f"{name}:Job.run", "function", Lent)(interceptor)
    return asked


def test_an_attribute_is_lent_while_the_method_runs_where_a_span_is_current(plugin: Plugin, name: str) -> None:
    asked = lending(plugin, name)
    plugin.install()
    job = job_of(name, lambda: sorted(vars(job)))
    assert job.run().result == ["args"]
    for _ in range(2):
        with span("submitter"):
            assert job.run().result == [["args", "function", "result"]]
        assert sorted(vars(job)) == ["args", "result"]
    assert [trace.get_current_span(current).name for current in asked] == ["submitter"] * 2  # type: ignore[attr-defined]


def test_an_attribute_is_lent_without_a_span_too_where_spans_are_asked_for(plugin: Plugin, name: str) -> None:
    lending(plugin, name)
    plugin.install({"spans": True})
    assert job_of(name, int).run().result == [0]


def test_what_the_instance_has_itself_is_not_replaced(plugin: Plugin, name: str) -> None:
    asked = lending(plugin, name)
    plugin.install()
    job = library(name).Job(int)
    with span():
        assert job.run().result == 0
    assert vars(job)["function"] is int
    assert asked == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 raises what was caught with the traceback it had")
def test_an_error_of_a_method_that_something_is_lent_to_has_no_frame_of_the_agent(plugin: Plugin, name: str) -> None:
    def fails() -> None:
        raise SystemExit

    def frames() -> list[str]:
        with span(), pytest.raises(SystemExit) as caught:
            job.run()
        return [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]

    job = job_of(name, fails)
    natively = frames()
    plugin.lend(f"{name}:Job.run", "function", Lent)(lambda _, job: Lent(job.function))
    plugin.install()
    assert frames() == natively
    assert "function" not in vars(job)
    with span(), pytest.raises(TypeError, match=r"Job\.run\(\) missing 1 required positional argument: 'self'"):
        library(name).Job.run()


@pytest.mark.parametrize("answer", [5, object(), lambda: 1, ()])
def test_what_is_no_loan_is_not_lent(
    plugin: Plugin, name: str, answer: object, agent_errors: list[logging.LogRecord]
) -> None:
    plugin.lend(f"{name}:Job.run", "function", Lent)(lambda *_: answer)
    plugin.install()
    job = job_of(name, int)
    with span():
        assert job.run().result == 0
    assert "function" not in vars(job)
    assert len(messages(agent_errors)) == 1


def test_nothing_is_lent_when_the_plugin_is_out_also_where_the_method_is_held(plugin: Plugin, name: str) -> None:
    asked = lending(plugin, name)
    plugin.install()
    job = job_of(name, int)
    run = job.run
    plugin.uninstall()
    with span():
        assert run().result == job.run().result == 0
    assert asked == []


# A plugin that misbehaves


def test_a_capture_that_returns_no_call_changes_nothing(
    plugin: Plugin, name: str, agent_errors: list[logging.LogRecord]
) -> None:
    answers: list[Any] = [5, object(), (1, 2, 3), (5, 5), ((1,), None), ((1,), {1: 2}), ([1], {}), "ab"]
    for target in (f"{name}:submit", f"{name}:Job.__init__"):
        pending = iter(answers)
        plugin.capture(target)(lambda *_, pending=pending: next(pending))
    plugin.install()
    with span():
        for _ in answers:
            assert library(name).submit(print, 1).args == (1,)
    assert len(agent_errors) == 2
    agent_errors.clear()


def test_a_carry_that_fails_leaves_the_item_as_it_is(
    plugin: Plugin, name: str, agent_errors: list[logging.LogRecord]
) -> None:
    plugin.carry(f"{name}:Job", made="__init__", run="run")(lambda *_: 1 / 0)
    plugin.install({"spans": True})
    with span():
        assert library(name).submit(lambda: 7).run().result == 7
    assert len(agent_errors) == 1
    agent_errors.clear()


def test_a_hook_is_used_when_its_module_is_there_and_undone(plugin: Plugin, name: str) -> None:
    hooked: list[Any] = []

    def use(module: Any) -> Any:
        hooked.append(module)
        return hooked.clear

    plugin.hook(name)(use)
    plugin.install()
    assert hooked == [library(name)]
    plugin.uninstall()
    assert hooked == []


@pytest.mark.parametrize("undo", [None, 5, lambda: 1 / 0])
def test_a_hook_that_cannot_be_undone_is_said_and_the_rest_comes_out(
    plugin: Plugin, name: str, agent_errors: list[logging.LogRecord], undo: Any
) -> None:
    loaded = library(name)
    original = loaded.submit
    plugin.before(f"{name}:submit")(lambda *_: None)
    plugin.hook(name)(lambda _module: undo)
    plugin.install()
    assert loaded.submit is not original
    plugin.uninstall()
    assert loaded.submit is original
    assert len(agent_errors) == 1
    agent_errors.clear()


def failing(plugin: Plugin, name: str) -> list[str]:
    """Let the plugin fail whenever a job is submitted, and make a note of it when one runs."""
    ran: list[str] = []
    plugin.capture(f"{name}:submit")(lambda *_: 1 / 0)
    plugin.intercept(f"{name}:Job.run")(lambda wrapped, _job, args, kwargs: ran.append("job") or wrapped())
    plugin.install()
    return ran


def messages(agent_errors: list[logging.LogRecord]) -> list[str]:
    found = [record.getMessage() for record in agent_errors]
    agent_errors.clear()
    return found


def test_a_plugin_that_keeps_failing_is_switched_off_and_that_is_said_once(
    plugin: Plugin, name: str, agent_errors: list[logging.LogRecord]
) -> None:
    loaded = library(name)
    before = loaded.submit, loaded.Job.run
    ran = failing(plugin, name)
    jobs = []
    with span():
        for number in range(2 * MOST_FAILURES):
            assert plugin.installed == (number < MOST_FAILURES)
            jobs.append(loaded.submit(lambda number=number: number))
    assert [job.run().result for job in jobs] == list(range(2 * MOST_FAILURES))
    assert ran == []
    assert (loaded.submit, loaded.Job.run) == before
    assert messages(agent_errors) == [
        f"plugin library: {name}:submit failed; the program goes on without it",
        f"plugin library is switched off: it has failed {MOST_FAILURES} times",
    ]
    assert "switched off" in _bootstrap.plugin_states.pop("library")


def test_so_it_is_where_it_fails_in_many_threads_at_once(
    plugin: Plugin, name: str, agent_errors: list[logging.LogRecord]
) -> None:
    loaded = library(name)
    failing(plugin, name)
    together = threading.Barrier(8)

    def submit() -> None:
        together.wait()
        with span():
            results.extend(loaded.submit(int).run().result for _ in range(MOST_FAILURES))

    results: list[int] = []
    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * (8 * MOST_FAILURES)
    assert len(messages(agent_errors)) == 2
    assert not is_installed("library")
    _bootstrap.plugin_states.clear()


def test_a_plugin_that_is_installed_again_is_counted_anew(
    plugin: Plugin, name: str, agent_errors: list[logging.LogRecord]
) -> None:
    loaded = library(name)
    failing(plugin, name)
    for _ in range(2):
        plugin.install()
        with span():
            for _ in range(MOST_FAILURES - 1):
                loaded.submit(print)
        assert plugin.installed
        plugin.uninstall()
    assert len(messages(agent_errors)) == 1


def test_what_was_handed_out_before_a_plugin_is_switched_off_goes_on_working(
    plugin: Plugin, name: str, agent_errors: list[logging.LogRecord]
) -> None:
    loaded = library(name)
    carry(plugin, name)
    failing(plugin, name)
    submit, run = loaded.submit, loaded.Job.run
    entered: list[Any] = []

    def switch_off() -> int:
        entered.append(current_name())
        for _ in range(MOST_FAILURES):
            submit(int)
        entered.append(current_name())
        return 7

    with span("submitter"):
        running, waiting = submit(switch_off), submit(int, "8")
    with span("worker"):
        assert running.run().result == 7  # within the very interceptors that go
        assert entered == ["submitter", "submitter"]
        assert not plugin.installed
        assert run(waiting).result == 8
        assert submit(int, "9").run().result == 9
        assert current_name() == "worker"
    messages(agent_errors)
    _bootstrap.plugin_states.clear()


def test_a_span_that_was_not_recorded_once_is_not_found_by_its_name() -> None:
    with recorded_spans() as spans:
        for _ in range(2):
            trace.get_tracer("tests").start_span("twice").end()
    for name in ("twice", "never"):
        with pytest.raises(LookupError, match=f"spans are named '{name}'"):
            spans.named(name)


def test_work_whose_span_cannot_be_started_runs_without_one(
    monkeypatch: pytest.MonkeyPatch, agent_errors: list[logging.LogRecord]
) -> None:
    def fails(_scope: str) -> None:
        raise ValueError("no tracer")

    monkeypatch.setattr(_provider, "get_tracer", fails)
    with SpanHop(None, "mine", len, "child") as hop:
        hop.fail(ValueError("of the work"))
    assert [record.getMessage() for record in agent_errors] == [
        "plugin mine: starting a span failed; the program goes on without it"
    ]
    agent_errors.clear()
