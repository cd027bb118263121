"""The tracer provider, as programs meet it: there when needed, out of the way when they bring their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import IdGenerator, SpanLimits, Tracer, TracerProvider, _Span
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context

from launched import Launch
from sw_agent import _ids, _lifecycle, _provider, snapshot
from sw_agent._config import load
from sw_agent._patching import Patch
from sw_agent._sampling import TraceSampler, link_to_stale_parent
from sw_agent._sdk_provider import AgentProvider, AgentTracer

# An SDK pipeline of the program's own, that prints the name and the resource of what it gets
OWN_PIPELINE = """
import opentelemetry.sdk.trace as sdk
from opentelemetry.sdk.resources import Resource
class Printer(sdk.SpanProcessor):
    def on_end(self, span): print("own", span.name, span.resource.attributes.get("service.name"), flush=True)
own = sdk.TracerProvider(resource=Resource({"service.name": "own"}))
own.add_span_processor(Printer())
"""


def test_a_program_that_only_uses_the_api_gets_an_sdk_provider(launch: Launch) -> None:
    app = launch(
        """
from opentelemetry.sdk.trace import TracerProvider
print(isinstance(trace.get_tracer_provider(), TracerProvider))
with S("a"): pass
"""
    )
    assert app.end() == "True\n"
    assert app.names() == ["a"]


def test_the_resource_says_what_process_this_is(launch: Launch) -> None:
    app = launch(
        "import os\nwith S('a'): print(os.getpid())",
        "--service",
        "shop",
        OTEL_RESOURCE_ATTRIBUTES="team=blue,service.name=other",
        SW_AGENT_NAMESPACE="ns",
    )
    pid = int(app.end())
    (span,) = app.spans()
    found = span.resource
    assert found["process.pid"] == pid
    assert (found["service.name"], found["service.namespace"], found["team"]) == ("shop", "ns", "blue")
    assert found["telemetry.distro.name"] == "sw-python"
    assert found["telemetry.sdk.language"] == "python"
    assert len(found["service.instance.id"]) == 36


def test_an_instance_name_is_the_instance_id(launch: Launch) -> None:
    app = launch("with S('a'): pass", SW_AGENT_INSTANCE_NAME="web-1")
    app.end()
    assert app.spans()[0].resource["service.instance.id"] == "web-1"


def test_making_the_provider_starts_no_thread_and_uses_up_no_names(launch: Launch) -> None:
    app = launch(
        """
import threading, concurrent.futures
with S("a"): pass
trace.get_tracer_provider().force_flush()
print(threading.enumerate())
print(threading.Thread().name)
with concurrent.futures.ThreadPoolExecutor(1) as pool:
    print(pool.submit(lambda: threading.current_thread().name).result())
"""
    )
    main, thread, pooled = app.end().splitlines()
    assert main.count("<") == 1
    assert (thread, pooled) == ("Thread-1", "ThreadPoolExecutor-0_0")


def test_whoever_imports_the_sdk_first_is_traced_as_well(launch: Launch) -> None:
    app = launch(
        """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry import trace
with trace.get_tracer("x").start_as_current_span("a"): pass
""",
        prelude="",
    )
    app.end()
    assert app.names() == ["a"]


@pytest.mark.parametrize("before", [True, False])
def test_a_program_with_a_pipeline_of_its_own_keeps_it(launch: Launch, before: bool) -> None:
    """With a tracer from before and one from after; the agent's pipeline gets the spans as well."""
    app = launch(
        ("from opentelemetry import trace\nearly = trace.get_tracer('early')\n" if before else "")
        + OWN_PIPELINE
        + """
from opentelemetry import trace
trace.set_tracer_provider(own)
print(trace.get_tracer_provider() is own)
late = trace.get_tracer("late")
with late.start_as_current_span("late"): pass
"""
        + ("with early.start_as_current_span('early'): pass\n" if before else ""),
        prelude="",
    )
    assert app.end().splitlines() == ["True", "own late own"] + (["own early own"] if before else [])
    assert app.names() == ["early", "late"] if before else ["late"]


@pytest.mark.parametrize(
    "look",
    [
        """
if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
    trace.set_tracer_provider(own)
""",
        """
if isinstance(trace.get_tracer_provider(), sdk.TracerProvider):
    trace.get_tracer_provider().add_span_processor(Printer())
else:
    trace.set_tracer_provider(own)
""",
    ],
)
def test_a_program_that_looks_first_whether_there_is_a_provider_gets_the_spans(launch: Launch, look: str) -> None:
    app = launch(f"{OWN_PIPELINE}{look}\nwith S('a'): pass")
    assert app.end().split()[:2] == ["own", "a"]
    assert app.names() == ["a"]


@pytest.mark.parametrize("disabled", [False, True])
def test_a_program_that_wants_no_spans_gets_none(launch: Launch, disabled: bool) -> None:
    app = launch(
        "trace.set_tracer_provider(trace.NoOpTracerProvider())\n" * (not disabled)
        + "with trace.get_tracer('y').start_as_current_span('a') as span: print(span.is_recording())",
        **({"OTEL_SDK_DISABLED": "true"} if disabled else {}),
    )
    assert app.end() == "False\n"
    assert app.names() == []


def test_forked_children_keep_the_programs_pipeline_or_set_their_own(launch: Launch) -> None:
    app = launch(
        OWN_PIPELINE
        + """
import os
def in_child(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    os.waitpid(pid, 0)
def span(name):
    with trace.get_tracer("x").start_as_current_span(name): pass
def set_and_span():
    trace.set_tracer_provider(own)
    span("set in the child")
in_child(set_and_span)
trace.set_tracer_provider(own)
span("before")
for child in ("first", "second"):
    in_child(lambda: span(child))
span("after")
"""
    )
    names = ["set in the child", "before", "first", "second", "after"]
    assert app.end() == "".join(f"own {name} own\n" for name in names)
    assert app.names() == sorted(names)


def test_a_second_provider_is_refused_as_without_the_agent(launch: Launch) -> None:
    app = launch(
        OWN_PIPELINE
        + """
trace.set_tracer_provider(own)
trace.set_tracer_provider(sdk.TracerProvider(resource=Resource({})))
print(trace.get_tracer_provider() is own)
"""
    )
    out, err = app.end_with_stderr()
    assert out == "True\n"
    assert err == "Overriding of current TracerProvider is not allowed\n"


def test_a_processor_added_to_the_global_provider_gets_the_spans(launch: Launch) -> None:
    app = launch(OWN_PIPELINE + "trace.get_tracer_provider().add_span_processor(Printer())\nwith S('a'): pass")
    assert app.end() == "own a app\n"
    assert app.names() == ["a"]


def test_a_provider_that_is_no_sdks_is_left_alone(launch: Launch) -> None:
    app = launch(
        """
with S("early"): pass
class Theirs(trace.TracerProvider):
    def get_tracer(self, *args, **kwargs): return trace.NoOpTracer()
trace.set_tracer_provider(Theirs())
with trace.get_tracer("x").start_as_current_span("theirs"): pass
with S("early tracer"): pass
"""
    )
    app.end()
    assert app.names() == ["early", "early tracer"]


def test_a_provider_named_in_the_environment_is_the_programs_choice(launch: Launch) -> None:
    app = launch(
        "with S('a'): print(trace.get_tracer_provider().resource.attributes['service.name'])",
        OTEL_PYTHON_TRACER_PROVIDER="sdk_tracer_provider",
        OTEL_SERVICE_NAME="theirs",
    )
    assert app.end() == "theirs\n"
    assert app.names() == ["a"]


def test_a_program_that_resets_the_api_between_tests_still_runs(launch: Launch) -> None:
    app = launch(
        OWN_PIPELINE
        + """
from opentelemetry.util._once import Once
for _ in range(2):
    trace._TRACER_PROVIDER_SET_ONCE = Once()
    trace._TRACER_PROVIDER = None
    trace.set_tracer_provider(own)
    with trace.get_tracer("x").start_as_current_span("a"): pass
"""
    )
    assert app.end() == "own a own\n" * 2
    assert app.names() == ["a", "a"]


def test_without_an_sdk_the_api_does_nothing_as_before(launch: Launch) -> None:
    app = launch(
        "with S('a') as span: print(span.is_recording())",
        prelude="import sys\nsys.modules['opentelemetry.sdk.trace'] = None\n"
        "from opentelemetry import trace\nS = trace.get_tracer('x').start_as_current_span\n",
    )
    out, err = app.end_with_stderr()
    assert out == "False\n"
    assert err.count("making the tracer provider failed; the program goes on without it") == 1


# Random numbers


def test_the_agent_draws_no_number_from_the_programs_sequence(launch: Launch) -> None:
    code = """
import random
random.seed(42)
for _ in range(3):
    with S("a") as span: print(random.random(), file=open("numbers", "a"))
    trace.get_tracer_provider().force_flush()
    print(span.get_span_context().trace_id)
"""
    first = launch(code)
    ids = set(first.end().split())
    second = launch(code)
    ids |= set(second.end().split())
    assert len(ids) == 6
    import random

    random.seed(42)
    expected = [str(random.random()) for _ in range(3)]
    assert (Path(first.store).parent / "numbers").read_text().split() == expected * 2


def test_ids_have_their_width_and_do_not_repeat() -> None:
    generator = _ids.IdGenerator()
    traces = {generator.generate_trace_id() for _ in range(1000)}
    spans = {generator.generate_span_id() for _ in range(1000)}
    assert len(traces) == len(spans) == 1000
    assert 0 < max(traces) < 1 << 128
    assert 0 < max(spans) < 1 << 64
    assert _ids.instance_id()[14] == "4"
    assert _ids.instance_id() != _ids.instance_id()


# The agent's tracer

PARENTS = {
    "remote": SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("a", "b")])),
    "remote, of a random id": SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(3)),
    "remote, not sampled": SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(2)),
    "remote, with flags nobody knows": SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(255)),
    "invalid": trace.INVALID_SPAN_CONTEXT,
}


def contexts(tracer: Tracer) -> dict[str, Context]:
    found = {name: set_span_in_context(NonRecordingSpan(parent)) for name, parent in PARENTS.items()}
    going_on, ended = (tracer.start_span("a", Context()) for _ in range(2))
    ended.end()
    return {
        "none": Context(),
        "going on": set_span_in_context(going_on),
        "ended": set_span_in_context(ended),
        **found,
    }


def what_it_has(span: Any) -> object:
    """Return all that a span has, but for its ids and the moment."""
    if isinstance(span, NonRecordingSpan):
        return type(span), span.get_span_context()[2:]
    assert isinstance(span, _Span)
    theirs = _Span("", trace.INVALID_SPAN_CONTEXT, resource=span.resource)
    found = {name: getattr(span, name) for name in vars(theirs)}
    found |= {"_lock": None, "_start_time": None, "_record_end_metrics": None}
    found["_status"] = span.status.status_code, span.status.description
    attributes = found["_attributes"]
    found["_attributes"] = [getattr(attributes, name) for name in ("_dict", "dropped", "maxlen", "_immutable")]
    found |= {name: (list(found[name]), getattr(found[name], "dropped", 0)) for name in ("_events", "_links")}
    trace_id, _, *others = found["_context"]
    return found | {"_context": (span.parent is None or trace_id, *others)}


@pytest.mark.parametrize("ratio", [1.0, 0.0])
def test_its_spans_are_those_that_the_sdks_tracer_would_start(ratio: float) -> None:
    provider = AgentProvider(load({"SW_SAMPLING_RATIO": str(ratio)}))
    tracer: Any = provider.get_tracer("x")
    assert type(tracer) is AgentTracer
    for context in contexts(tracer).values():
        for given in (
            {"attributes": {"a": [1, 2], "b": object()}},
            {"kind": trace.SpanKind.SERVER, "record_exception": False, "set_status_on_exception": False},
            {"links": [trace.Link(PARENTS["remote"])]},
        ):
            ours = tracer.start_span("a", context, **given)
            assert what_it_has(ours) == what_it_has(Tracer.start_span(tracer, "a", context, **given))
        assert tracer.start_span("a", context, start_time=5).is_recording() is ours.is_recording()


def test_it_asks_a_sampler_that_the_program_has_set() -> None:
    tracer: Any = AgentProvider(load({})).get_tracer("x")
    tracer.sampler = ALWAYS_OFF
    assert not tracer.start_span("a", Context()).is_recording()


def test_it_asks_an_id_generator_that_the_program_has_set() -> None:
    class Counting(IdGenerator):
        def generate_span_id(self) -> int:
            return 0

        def generate_trace_id(self) -> int:
            return 9

    tracer: Any = AgentProvider(load({})).get_tracer("x")
    tracer.id_generator = Counting()
    context = tracer.start_span("a", Context()).get_span_context()
    assert (context.trace_id, context.span_id, context.is_valid) == (9, 0, False)


# Sampling


def decide(sampler: TraceSampler, trace_id: int, parent: SpanContext | None = None) -> bool:
    context = set_span_in_context(NonRecordingSpan(parent)) if parent else set_span_in_context(trace.INVALID_SPAN)
    return sampler.should_sample(context, trace_id, "name", attributes={"a": 1}).decision.is_sampled()


def test_the_ratio_decides_by_the_trace_id() -> None:
    half = TraceSampler(0.5, 0)
    assert decide(half, (1 << 63) - 1)
    assert not decide(half, 1 << 63)
    assert decide(TraceSampler(1.0, 0), (1 << 128) - 1)
    assert not decide(TraceSampler(0.0, 0), 0)


def test_a_parents_decision_is_followed() -> None:
    for sampled in (True, False):
        for remote in (True, False):
            parent = SpanContext(1, 2, is_remote=remote, trace_flags=TraceFlags(int(sampled)))
            assert decide(TraceSampler(0.0, 0), 1, parent) is sampled
            assert decide(TraceSampler(1.0, 1), 1, parent) is sampled


def test_no_more_than_n_traces_begin_in_three_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("sw_agent._sampling.monotonic", lambda: now)
    sampler = TraceSampler(1.0, 2)
    assert [decide(sampler, 1) for _ in range(4)] == [True, True, False, False]
    now = 102.9
    assert not decide(sampler, 1)
    now = 103.0
    assert [decide(sampler, 1) for _ in range(3)] == [True, True, False]


# Stale parents


@pytest.fixture
def ended() -> Any:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    snapshot.bind(sys.modules["opentelemetry.context"])
    patch = Patch("opentelemetry.sdk.trace:Tracer.start_span", link_to_stale_parent(1.0), "before")
    patch.install(sys.modules["opentelemetry.sdk.trace"])
    yield provider.get_tracer("x"), lambda: {span.name: span for span in exporter.get_finished_spans()}
    patch.uninstall()


SECOND = 10**9


def test_a_parent_that_ended_long_ago_becomes_a_link(ended: Any) -> None:
    tracer, spans = ended
    parent = tracer.start_span("parent", start_time=SECOND)
    parent.end(2 * SECOND)
    context = set_span_in_context(parent)
    tracer.start_span("stale", context).end()
    tracer.start_span("stale by name", context=context, links=[trace.Link(parent.get_span_context())]).end()
    with (
        trace.use_span(parent),
        tracer.start_as_current_span("stale and current"),
        tracer.start_as_current_span("its child"),
    ):
        pass
    found = spans()
    for name in ("stale", "stale by name", "stale and current"):
        assert found[name].parent is None
        assert found[name].context.trace_id != parent.get_span_context().trace_id
        assert found[name].links[-1].context == parent.get_span_context()
    assert len(found["stale by name"].links) == 2
    assert found["its child"].parent == found["stale and current"].context
    assert found["its child"].links == ()


def test_a_parent_that_has_just_ended_or_goes_on_is_a_parent(ended: Any) -> None:
    tracer, spans = ended
    parent = tracer.start_span("parent")
    tracer.start_span("open", set_span_in_context(parent)).end()
    parent.end()
    tracer.start_span("just ended", set_span_in_context(parent)).end()
    found = spans()
    assert found["open"].parent == found["just ended"].parent == parent.get_span_context()


def test_spans_recorded_afterwards_keep_their_parent(ended: Any) -> None:
    """With start times of their own, which lie within the rule."""
    tracer, spans = ended
    parent = tracer.start_span("parent", start_time=SECOND)
    parent.end(2 * SECOND)
    tracer.start_span("child", set_span_in_context(parent), start_time=SECOND + 5).end()
    assert spans()["child"].parent == parent.get_span_context()


@pytest.mark.parametrize("own", [False, True])
def test_the_rule_holds_for_the_agents_provider_and_the_programs(launch: Launch, own: bool) -> None:
    app = launch(
        (OWN_PIPELINE + "trace.set_tracer_provider(own)\n" if own else "")
        + """
from opentelemetry.trace import set_span_in_context
t = trace.get_tracer("y")
parent = t.start_span("parent", start_time=10**9); parent.end(2 * 10**9)
t.start_span("child", set_span_in_context(parent)).end()
"""
    )
    app.end()
    (child,) = (span for span in app.spans() if span.name == "child")
    (parent,) = (span for span in app.spans() if span.name == "parent")
    assert child.parent_id is None
    assert child.links == [{"trace_id": parent.trace_id, "span_id": parent.span_id, "attributes": {}}]


def test_the_rule_can_be_switched_off(launch: Launch) -> None:
    app = launch(
        """
from opentelemetry.trace import set_span_in_context
parent = tracer.start_span("parent", start_time=10**9); parent.end(2 * 10**9)
tracer.start_span("child", set_span_in_context(parent)).end()
""",
        SW_SAMPLING_STALE_PARENT_AFTER="0",
    )
    app.end()
    assert {span.name: bool(span.parent_id) for span in app.spans()} == {"parent": False, "child": True}


# The program's span


def test_a_program_is_one_trace_under_its_span(launch: Launch) -> None:
    app = launch("with S('a'): pass\nwith S('b'): pass", "--program-span")
    app.end()
    spans = {span.name: span for span in app.spans()}
    root = spans["app.py"]
    assert root.parent_id is None
    assert spans["a"].parent_id == spans["b"].parent_id == root.span_id
    assert root.status == "UNSET"
    assert root.end_ns >= spans["b"].end_ns


@pytest.mark.parametrize(
    ("code", "exit_code", "status", "error"),
    [
        ("raise ValueError('broken')", 1, "ERROR", "ValueError"),
        ("class Own(Exception): pass\nraise Own", 1, "ERROR", "__main__.Own"),
        ("raise KeyboardInterrupt", -2, "ERROR", "KeyboardInterrupt"),
        ("import sys; sys.exit(3)", 3, "UNSET", None),
    ],
)
def test_the_programs_span_says_how_it_ended(
    launch: Launch, code: str, exit_code: int, status: str, error: str | None
) -> None:
    app = launch(code, "--program-span")
    app.end_with_stderr(exit_code)
    (root,) = app.spans()
    assert (root.status, root.attributes.get("error.type")) == (status, error)


def test_child_programs_hang_under_the_programs_span(launch: Launch) -> None:
    app = launch(
        """
import subprocess, sys
with S("a"): subprocess.run([sys.executable, "-c", "import json"], check=True)
tool = "from opentelemetry import trace\\nwith trace.get_tracer('x').start_as_current_span('b'): pass"
open("tool.py", "w").write(tool)
subprocess.run([sys.executable, "-W", "error", "tool.py"], check=True)
""",
        "--program-span",
    )
    app.end()
    spans = {span.name: span for span in app.spans()}
    assert sorted(spans) == ["-c", "a", "app.py", "b", "tool.py"]
    assert len({span.trace_id for span in spans.values()}) == 1
    assert spans["tool.py"].parent_id == spans["-c"].parent_id == spans["app.py"].span_id
    assert spans["b"].parent_id == spans["tool.py"].span_id
    assert len({span.resource["process.pid"] for span in spans.values()}) == 3


def test_a_program_continues_the_trace_in_its_environment(launch: Launch) -> None:
    app = launch(
        "import os; from opentelemetry import baggage; print(baggage.get_baggage('k'), os.environ['TRACEPARENT'])",
        "--program-span",
        TRACEPARENT=f"00-{'a' * 32}-{'b' * 16}-01",
        BAGGAGE="k=v",
    )
    baggage, traceparent = app.end().split()
    (span,) = app.spans()
    assert (span.trace_id, span.parent_id, baggage) == ("a" * 32, "b" * 16, "v")
    assert traceparent == f"00-{span.trace_id}-{span.span_id}-{traceparent[-2:]}"


def test_without_the_option_the_environment_stays_as_it_is(launch: Launch) -> None:
    app = launch("import os, json\nwith S('a'): print(json.dumps(sorted(os.environ)))")
    names = json.loads(app.end())
    assert {"TRACEPARENT", "BAGGAGE", "SW_AGENT_PROGRAM_SPAN"} & set(names) == set()


def test_the_processes_of_multiprocessing_have_no_span_of_the_program(launch: Launch) -> None:
    app = launch(
        """
import multiprocessing
def work():
    with S("work"): pass
if __name__ == "__main__":
    for method in ("spawn", "forkserver", "fork"):
        process = multiprocessing.get_context(method).Process(target=work)
        process.start(); process.join()
""",
        "--program-span",
    )
    app.end_with_stderr()
    spans = app.spans()
    assert app.names() == ["app.py", "work", "work", "work"]
    assert len({span.trace_id for span in spans}) == 1
    assert len({span.resource["process.pid"] for span in spans}) == 4


def test_the_programs_own_pipeline_gets_the_programs_span(launch: Launch) -> None:
    app = launch(OWN_PIPELINE + "trace.set_tracer_provider(own)\nwith S('a'): pass", "--program-span")
    assert app.end() == "own a own\nown app.py app\n"
    assert app.names() == ["a", "app.py"]


def test_an_exception_that_the_programs_span_has_recorded_is_not_recorded_again_by_a_hop(launch: Launch):
    app = launch(
        """
import sw_agent

@sw_agent.trace(name="outer")
def outer():
    with S("inner"):
        raise ValueError("on purpose")

@sw_agent.trace(name="alone")
def alone():
    raise error

error = ValueError("raised again")
for function in (outer, alone, alone):
    try:
        function()
    except ValueError:
        pass
"""
    )
    app.end()
    recorded = sorted((span.name, len(span.events), span.status) for span in app.spans())
    assert recorded == [("alone", 1, "ERROR"), ("alone", 1, "ERROR"), ("inner", 1, "ERROR"), ("outer", 0, "ERROR")]


def test_attributes_of_a_span_that_may_have_fewer_are_left_to_the_sdk() -> None:
    span: Any = TracerProvider(span_limits=SpanLimits(max_span_attributes=1)).get_tracer("tests").start_span("work")
    _provider.set_attributes(span, {"a": 1, "b": 2})
    assert (dict(span.attributes), span.dropped_attributes) == ({"b": 2}, 1)
    _provider.set_attributes(NonRecordingSpan(SpanContext(1, 2, is_remote=False)), {"a": 1})


def test_where_no_agent_runs_there_is_nothing_to_flush() -> None:
    assert _lifecycle.flush()
