"""The celery plugin in one process: a broker in memory, and a worker in a thread. Real ones are in `tests/e2e`."""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import logging
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import kombu
import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.semconv._incubating.attributes import error_attributes, messaging_attributes
from opentelemetry.trace import SpanKind, StatusCode

from sw_agent.testing import RecordedSpans, installed
from sw_agent_plugins._celery_messages import OURS
from sw_agent_plugins.celery import plugin

celery = pytest.importorskip("celery")

from celery import Celery, chain, chord, group, signals  # noqa: E402
from celery.app import trace as app_trace  # noqa: E402
from celery.contrib.testing.worker import start_worker  # noqa: E402
from celery.exceptions import Ignore, Reject  # noqa: E402
from celery.worker import state as worker_state  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::celery.exceptions.DuplicateNodenameWarning"),
]


def span(name: str = "publisher") -> Any:
    return trace.get_tracer("test").start_as_current_span(name)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in 30 seconds"
        threading.Event().wait(0.005)
    return found


class CustomBase(celery.Task):
    """A base class of the program's."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class Unpicklable(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__(one)


class Program:
    """An app with its tasks, which tell what they see in `seen`."""

    def __init__(self) -> None:
        self.queue = f"sw-test-{uuid.uuid4().hex}"
        self.app = app = Celery("proj", broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.update(
            task_default_queue=self.queue,
            broker_transport_options={"polling_interval": 0.01},
            broker_connection_retry_on_startup=True,
            result_chord_retry_interval=0.05,
        )
        self.seen: list[Any] = []
        seen = self.seen

        @app.task(name="proj.add")
        def add(x: int, y: int) -> int:
            with span("body"):
                return x + y

        @app.task(name="proj.total")
        def total(numbers: list[int]) -> int:
            return sum(numbers)

        @app.task(name="proj.note")
        def note(*args: Any, **kwargs: Any) -> None:
            seen.append(args)

        @app.task(name="proj.outer")
        def outer() -> None:
            add.delay(1, 1)

        @app.task(name="proj.flaky", bind=True, max_retries=3)
        def flaky(self: Any, times: int) -> int:
            if self.request.retries < times:
                raise self.retry(countdown=0)
            return int(self.request.retries)

        @app.task(name="proj.auto", autoretry_for=(KeyError,), retry_backoff=False, default_retry_delay=0)
        def auto() -> None:
            raise KeyError("again") if not seen.append("auto") and len(seen) < 2 else ValueError("enough")

        @app.task(name="proj.fails")
        def fails(kind: str = "value") -> None:
            raise {
                "value": ValueError("on purpose"),
                "ignore": Ignore(),
                "reject": Reject("no", requeue=False),
                "unpicklable": Unpicklable(1, 2),
            }[kind]

        @app.task(name="proj.leaks")
        def leaks() -> None:
            seen.append(dict(context.get_current()))
            context.attach(baggage.set_baggage("left", "behind", trace.set_span_in_context(trace.INVALID_SPAN)))

        @app.task(name="proj.looks", bind=True)
        def looks(self: Any) -> None:
            seen.append((self.request.headers, dict(baggage.get_all()), trace.get_current_span().get_span_context()))

        @app.task(name="proj.replaces", bind=True)
        def replaces(self: Any) -> Any:
            return self.replace(add.s(3, 4))

        @app.task(name="proj.based", base=CustomBase)
        def based() -> str:
            return "based"

        @app.task(name="proj.calls_eagerly")
        def calls_eagerly() -> None:
            fails.apply().get()

        self.tasks = app.tasks

    def __getattr__(self, name: str) -> Any:
        return self.app.tasks[f"proj.{name}"]

    def send(self, headers: Any, *, task: str = "proj.looks", protocol: int = 2, **more: Any) -> str:
        """Publish a message as a client of another kind does, and return the task's id."""
        task_id = str(uuid.uuid4())
        if protocol == 2:
            body: Any = ([], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None})
            headers = {"lang": "js", "task": task, "id": task_id, "root_id": task_id, **headers}
        else:
            body = {"task": task, "id": task_id, **({"args": [], "kwargs": {}} if protocol == 1 else {}), **more}
        with self.app.connection_for_write() as connection:
            producer = kombu.Producer(connection, auto_declare=False)
            producer.publish(
                body,
                routing_key=self.queue,
                serializer="json",
                headers=headers,
                correlation_id=task_id,
                declare=[kombu.Queue(self.queue, kombu.Exchange(self.queue), routing_key=self.queue)],
            )
        return task_id


@pytest.fixture(scope="module")
def untouched() -> dict[str, Any]:
    return targets()


@pytest.fixture(scope="module")
def running(untouched: dict[str, Any]) -> Iterator[tuple[Program, RecordedSpans]]:
    level, handlers = logging.root.level, logging.root.handlers[:]
    with installed(plugin) as spans:
        program = Program()
        with start_worker(
            program.app, pool="solo", concurrency=1, perform_ping_check=False, shutdown_timeout=30, loglevel="CRITICAL"
        ):
            yield program, spans
    logging.root.setLevel(level)  # a worker takes the root logger over
    logging.root.handlers[:] = handlers


class Recording:
    """The spans of one test; of the worker's it waits for as many as there must be."""

    def __init__(self, spans: RecordedSpans) -> None:
        self._spans = spans

    def processed(self, name: str, count: int = 1) -> list[Any]:
        found = until(lambda: len(found := self.named(f"process {name}")) >= count and found)
        assert len(found) == count
        return list(found)

    def named(self, name: str) -> list[Any]:
        return [span for span in self._spans if span.name == name]

    def one(self, name: str) -> Any:
        (found,) = self.named(name)
        return found

    def parent(self, child: Any) -> str | None:
        if child.parent is None:
            return None
        return next((each.name for each in self._spans if each.context.span_id == child.parent.span_id), "remote")

    @property
    def traces(self) -> set[int]:
        return {each.context.trace_id for each in self._spans}


@pytest.fixture
def program(running: tuple[Program, RecordedSpans]) -> Program:
    running[0].seen.clear()
    return running[0]


@pytest.fixture
def spans(running: tuple[Program, RecordedSpans]) -> Recording:
    running[1].ended.clear()
    return Recording(running[1])


# Publishing and running


WAYS: dict[str, Callable[[Program], Any]] = {
    "delay": lambda p: p.add.delay(1, 2),
    "apply_async": lambda p: p.add.apply_async((1, 2)),
    "send_task": lambda p: p.app.send_task("proj.add", (1, 2)),
    "send_task by keyword": lambda p: p.app.send_task(name="proj.add", args=(1, 2)),
    "signature": lambda p: p.add.s(1, 2).delay(),
    "protocol 1": lambda p: p.app.send_task("proj.add", (1, 2)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_task_is_the_child_of_its_publication_and_its_body_is_within(
    program: Program, spans: Recording, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "protocol 1":
        monkeypatch.setitem(vars(program.app.amqp), "create_task_message", program.app.amqp.as_task_v1)
    for _ in range(2):
        with span():
            WAYS[way](program)
    for attempt in spans.processed("proj.add", 2):
        publication = next(s for s in spans.named("publish proj.add") if s.context.span_id == attempt.parent.span_id)
        assert (publication.kind, attempt.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
        assert spans.parent(publication) == "publisher"
        assert attempt.attributes["sw.wait_ms"] >= 0
    assert [spans.parent(body) for body in spans.named("body")] == ["process proj.add"] * 2
    assert len(spans.traces) == 2


def test_the_keys_are_those_of_the_conventions(program: Program, spans: Recording) -> None:
    task_id = program.add.apply_async((41, 1), {}).id
    (attempt,) = spans.processed("proj.add")
    m = messaging_attributes
    common = {
        m.MESSAGING_SYSTEM: "celery",
        m.MESSAGING_DESTINATION_NAME: program.queue,
        m.MESSAGING_MESSAGE_ID: task_id,
        m.MESSAGING_MESSAGE_CONVERSATION_ID: task_id,
        "celery.task_name": "proj.add",
    }
    assert spans.one("publish proj.add").attributes == {
        **common,
        m.MESSAGING_OPERATION_NAME: "publish",
        m.MESSAGING_OPERATION_TYPE: m.MessagingOperationTypeValues.SEND.value,
    }
    assert attempt.attributes == {
        **common,
        m.MESSAGING_OPERATION_NAME: "process",
        m.MESSAGING_OPERATION_TYPE: m.MessagingOperationTypeValues.PROCESS.value,
        "celery.retries": 0,
        "celery.state": "SUCCESS",
        "sw.wait_ms": attempt.attributes["sw.wait_ms"],
    }


def test_the_carrier_is_at_the_top_level_of_the_headers(program: Program, spans: Recording) -> None:
    queue = f"sw-test-{uuid.uuid4().hex}"
    with span():
        token = context.attach(baggage.set_baggage("tenant", "7"))
        program.add.apply_async((1, 2), queue=queue, headers={"mine": 1})
        context.detach(token)
    with program.app.connection_for_read() as connection:
        headers = connection.default_channel.basic_get(queue, no_ack=True).headers
    publication = spans.one("publish proj.add")
    trace_id, span_id = publication.context.trace_id, publication.context.span_id
    assert headers["traceparent"].startswith(f"00-{trace_id:032x}-{span_id:016x}-")
    assert (headers["baggage"], headers["mine"]) == ("tenant=7", 1)
    assert publication.attributes["messaging.destination.name"] == queue
    assert json.loads(json.dumps(headers)) == headers


def test_the_propagators_of_the_program_write_and_read_the_headers(
    program: Program, spans: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plain(propagate.textmap.TextMapPropagator):
        fields = frozenset({"x-span"})

        def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
            found = trace.get_current_span(context).get_span_context()
            carrier["x-span"] = f"{found.trace_id:x}.{found.span_id:x}"

        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
            if "x-span" not in carrier:
                return context
            ids = (int(part, 16) for part in carrier["x-span"].split("."))
            remote = trace.SpanContext(*ids, is_remote=True, trace_flags=trace.TraceFlags(1))
            return trace.set_span_in_context(trace.NonRecordingSpan(remote), context)

    monkeypatch.setattr(propagate, "propagator", Plain())
    monkeypatch.setattr(propagate, "get_global_textmap", lambda: propagate.propagator)
    with span():
        program.looks.delay()
    (attempt,) = spans.processed("proj.looks")
    assert spans.parent(attempt) == "publish proj.looks"
    assert program.seen[0][0] is None


def test_what_is_current_in_the_worker_is_no_parent(program: Program, spans: Recording) -> None:
    for _ in range(2):
        with span("ambient") as ambient:
            request = {"id": "1", "task": "proj.looks", "delivery_info": {}}
            app_trace.trace_task_ret("proj.looks", "1", request, ([], {}, {}), None, None, app=program.app)
            assert trace.get_current_span() is ambient
    first, second = spans.processed("proj.looks", 2)
    assert first.parent is None
    assert second.parent is None
    assert len(spans.traces) == 4


def test_the_next_task_does_not_see_what_a_task_left_current(program: Program, spans: Recording) -> None:
    for _ in range(3):
        program.leaks.delay()
    attempts = spans.processed("proj.leaks", 3)
    assert [len(each) for each in program.seen] == [1, 1, 1]
    seen = [trace.get_current_span(context.Context(each)).get_span_context().span_id for each in program.seen]
    assert seen == [attempt.context.span_id for attempt in attempts]


def test_baggage_reaches_the_task(program: Program, spans: Recording) -> None:
    token = context.attach(baggage.set_baggage("tenant", "7"))
    program.looks.delay()
    context.detach(token)
    program.looks.delay()
    spans.processed("proj.looks", 2)
    assert [seen[1] for seen in program.seen] == [{"tenant": "7"}, {}]


def test_baggage_that_is_too_long_for_a_broker_is_left_out(program: Program, spans: Recording) -> None:
    queue = f"sw-test-{uuid.uuid4().hex}"
    token = context.attach(baggage.set_baggage("tenant", "7" * 65536))
    program.looks.apply_async(queue=queue)
    context.detach(token)
    with program.app.connection_for_read() as connection:
        headers = connection.default_channel.basic_get(queue, no_ack=True).headers
    assert ("traceparent" in headers, "baggage" in headers) == (True, False)


def test_a_span_dies_with_its_task(program: Program, spans: Recording) -> None:
    with span() as publisher:
        program.flaky.delay(1)
    spans.processed("proj.flaky", 2)
    freed = weakref.ref(publisher)
    del publisher
    until(lambda: (gc.collect() and False) or freed() is None)


# Retries


@pytest.mark.parametrize("publisher", [True, False])
def test_attempts_are_siblings_and_each_links_the_one_before(
    program: Program, spans: Recording, publisher: bool
) -> None:
    if publisher:
        with span():
            program.flaky.delay(2)
    else:
        program.send({}, task="proj.flaky", protocol=1, args=[2])
    first, second, third = spans.processed("proj.flaky", 3)
    assert [each.attributes["celery.state"] for each in (first, second, third)] == ["RETRY", "RETRY", "SUCCESS"]
    assert [each.attributes["celery.retries"] for each in (first, second, third)] == [0, 1, 2]
    assert [[link.context.span_id for link in each.links] for each in (first, second, third)] == [
        [],
        [first.context.span_id],
        [second.context.span_id],
    ]
    assert {each.status.status_code for each in (first, second, third)} == {StatusCode.UNSET}
    assert not any(each.events for each in (first, second, third))
    if publisher:
        origin = next(s for s in spans.named("publish proj.flaky") if spans.parent(s) == "publisher")
        assert {each.parent.span_id for each in (first, second, third)} == {origin.context.span_id}
        assert len(spans.traces) == 1
    else:
        assert {each.parent for each in (first, second, third)} == {None}
    again = [each for each in spans.named("publish proj.flaky") if spans.parent(each) == "process proj.flaky"]
    assert [each.parent.span_id for each in again] == [first.context.span_id, second.context.span_id]
    assert all(each.attributes["sw.wait_ms"] < 30_000 for each in (first, second, third)[1:])


def test_attempts_at_a_message_of_another_agent_are_siblings_too(program: Program, spans: Recording) -> None:
    program.send({"traceparent": f"00-{1:032x}-{2:016x}-01"}, task="proj.flaky", protocol=1, args=[1])
    first, second = spans.processed("proj.flaky", 2)
    assert {(each.context.trace_id, each.parent.span_id) for each in (first, second)} == {(1, 2)}
    assert [link.context.span_id for link in second.links] == [first.context.span_id]


def test_a_task_that_is_retried_for_an_exception_fails_with_its_last(program: Program, spans: Recording) -> None:
    program.auto.delay()
    first, second = spans.processed("proj.auto", 2)
    assert (first.status.status_code, first.attributes["celery.state"]) == (StatusCode.UNSET, "RETRY")
    assert (second.status.description, second.attributes["celery.state"]) == ("ValueError: enough", "FAILURE")


# Canvas


def test_each_task_of_a_chain_is_the_child_of_the_one_before(program: Program, spans: Recording) -> None:
    with span():
        chain(program.add.s(1, 2), program.add.s(3), program.add.s(4)).delay()
    attempts = spans.processed("proj.add", 3)
    before = "publisher"
    publications = {each.context.span_id: each for each in spans.named("publish proj.add")}
    parents = [publications[each.parent.span_id].parent.span_id for each in attempts]
    assert parents[1:] == [each.context.span_id for each in attempts[:-1]]
    assert spans.parent(publications[attempts[0].parent.span_id]) == before
    assert len(spans.traces) == 1
    ids = {each.attributes[messaging_attributes.MESSAGING_MESSAGE_CONVERSATION_ID] for each in attempts}
    assert ids == {attempts[0].attributes[messaging_attributes.MESSAGING_MESSAGE_ID]}


def test_a_group_and_a_chord_with_its_callback_are_one_trace(program: Program, spans: Recording) -> None:
    with span():
        group(program.add.s(1, 1), program.add.s(2, 2)).delay()
        chord([program.add.s(1, 1), program.add.s(2, 2)], program.total.s()).delay()
    spans.processed("proj.add", 4)
    (body,) = spans.processed("proj.total")
    assert spans.parent(body) == "publish proj.total"
    until(lambda: len(spans.named("process celery.chord_unlock")) == len(spans.named("publish celery.chord_unlock")))
    assert len(spans.traces) == 1


def test_a_task_that_a_task_calls_is_its_child(program: Program, spans: Recording) -> None:
    program.outer.delay()
    (inner,) = spans.processed("proj.add")
    assert spans.parent(inner) == "publish proj.add"
    assert spans.parent(spans.one("publish proj.add")) == "process proj.outer"
    program.replaces.delay()
    _, inner = spans.processed("proj.add", 2)
    assert spans.parent(spans.named("publish proj.add")[1]) == "process proj.replaces"
    assert spans.one("process proj.replaces").attributes["celery.state"] == "IGNORED"


def test_callbacks_belong_to_the_task(program: Program, spans: Recording) -> None:
    program.add.apply_async((1, 2), link=program.note.s())
    spans.processed("proj.note")
    assert spans.parent(spans.one("publish proj.note")) == "process proj.add"
    program.fails.apply_async(link_error=program.outer.si())
    spans.processed("proj.outer")
    assert spans.parent(spans.one("publish proj.outer")) == "process proj.fails"


# Eager


@pytest.mark.parametrize("way", ["apply", "always eager"])
def test_an_eager_task_runs_in_the_context_of_its_caller(program: Program, spans: Recording, way: str) -> None:
    program.app.conf.task_always_eager = way == "always eager"
    try:
        for _ in range(2):
            with span() as publisher:
                program.leaks.apply() if way == "apply" else program.leaks.delay()
                assert trace.get_current_span() is publisher
                assert not baggage.get_all()
    finally:
        program.app.conf.task_always_eager = False
    for inline in spans.processed("proj.leaks", 2):
        assert (inline.kind, spans.parent(inline)) == (SpanKind.INTERNAL, "publisher")
        assert inline.attributes == {"celery.task_name": "proj.leaks", "celery.retries": 0, "celery.state": "SUCCESS"}
    assert not context.get_current()


def test_eager_attempts_are_siblings_too(program: Program, spans: Recording) -> None:
    with span() as publisher:
        assert program.flaky.apply((2,)).get() == 2
        assert trace.get_current_span() is publisher
    first, second, third = spans.processed("proj.flaky", 3)
    assert [each.attributes["celery.state"] for each in (first, second, third)] == ["RETRY", "RETRY", "SUCCESS"]
    assert {spans.parent(each) for each in (first, second, third)} == {"publisher"}
    assert [link.context.span_id for link in third.links] == [second.context.span_id]


@pytest.mark.parametrize("throw", [True, False])
def test_the_error_of_an_eager_task_is_said_once(program: Program, spans: Recording, throw: bool) -> None:
    if throw:
        with pytest.raises(ValueError, match="on purpose") as raised:
            program.fails.apply(throw=True)
        assert not any("sw_agent" in entry.path.as_posix() for entry in raised.traceback[-3:])
    else:
        assert isinstance(program.fails.apply().result, ValueError)
    failed = spans.one("process proj.fails")
    assert (failed.status.status_code, [event.name for event in failed.events]) == (StatusCode.ERROR, ["exception"])
    program.calls_eagerly.apply()
    outer = spans.one("process proj.calls_eagerly")
    assert outer.attributes["celery.state"] == "FAILURE"
    assert (outer.status.status_code, outer.events) == (StatusCode.UNSET, ())
    assert not context.get_current()


# How tasks end


def test_a_failure_is_said_once_on_the_attempt(program: Program, spans: Recording) -> None:
    for _ in range(2):
        with span():
            program.fails.delay()
    for failed in spans.processed("proj.fails", 2):
        assert failed.attributes[error_attributes.ERROR_TYPE] == "ValueError"
        assert failed.attributes["celery.state"] == "FAILURE"
        assert failed.status.description == "ValueError: on purpose"
        (event,) = failed.events
        assert "in fails" in event.attributes["exception.stacktrace"]
    for other in (*spans.named("publish proj.fails"), *spans.named("publisher")):
        assert other.status.status_code is StatusCode.UNSET


def test_the_exception_is_the_programs_own(program: Program, spans: Recording) -> None:
    result = program.fails.delay()
    with pytest.raises(ValueError, match="on purpose"):
        result.get(timeout=30, interval=0.01)
    assert "sw_agent" not in result.traceback
    program.fails.delay("unpicklable")
    failed = spans.processed("proj.fails", 2)[1]
    assert failed.attributes["error.type"].endswith("Unpicklable")


@pytest.mark.parametrize(("kind", "state"), [("ignore", "IGNORED"), ("reject", "REJECTED")])
def test_what_is_ignored_or_rejected_is_no_error(program: Program, spans: Recording, kind: str, state: str) -> None:
    program.fails.delay(kind)
    (attempt,) = spans.processed("proj.fails")
    assert (attempt.attributes["celery.state"], attempt.status.status_code) == (state, StatusCode.UNSET)
    assert not attempt.events


@pytest.mark.parametrize("reason", ["revoked", "expired"])
def test_a_task_that_never_runs_leaves_a_span_that_says_why(program: Program, spans: Recording, reason: str) -> None:
    task_id = str(uuid.uuid4())
    with span():
        if reason == "revoked":
            worker_state.revoked.add(task_id)
            program.note.apply_async(task_id=task_id)
        else:
            program.note.apply_async(expires=datetime.now(timezone.utc) - timedelta(seconds=5))
    (attempt,) = spans.processed("proj.note")
    assert (attempt.kind, spans.parent(attempt)) == (SpanKind.CONSUMER, "publish proj.note")
    assert (attempt.attributes["celery.state"], attempt.status.status_code) == ("REVOKED", StatusCode.UNSET)
    assert attempt.attributes["celery.revoke_reason"] == reason
    assert program.seen == []


def test_a_task_that_the_worker_does_not_know_leaves_a_span_that_says_so(program: Program, spans: Recording) -> None:
    with span():
        program.app.send_task("proj.unknown")
    program.send({}, task="proj.unknown", protocol=1)
    known, foreign = spans.processed("proj.unknown", 2)
    for attempt in (known, foreign):
        assert attempt.attributes["error.type"] == "celery.exceptions.NotRegistered"
        assert (attempt.status.status_code, len(attempt.events)) == (StatusCode.ERROR, 1)
    assert (spans.parent(known), foreign.parent) == ("publish proj.unknown", None)


def test_a_message_that_cannot_be_read_leaves_a_span_that_says_so(program: Program, spans: Recording) -> None:
    with program.app.connection_for_write() as connection:
        for content_type, body in (("application/json", "{no json"), ("application/x-python-serialize", b"\x80\x02.")):
            connection.default_channel.basic_publish(
                connection.default_channel.prepare_message(
                    body, content_type=content_type, content_encoding="utf-8", headers={"task": "proj.note", "id": "1"}
                ),
                exchange="",
                routing_key=program.queue,
            )
    attempts = spans.processed("proj.note", 2)
    assert {each.attributes["error.type"] for each in attempts} <= {
        "kombu.exceptions.DecodeError",
        "kombu.exceptions.ContentDisallowed",
    }
    program.note.delay()
    spans.processed("proj.note", 3)


def test_a_message_that_the_broker_does_not_get_is_an_error_and_the_exception_the_programs(
    spans: Recording, program: Program
) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        app = Celery("down", broker=f"amqp://127.0.0.1:{bound.getsockname()[1]}", set_as_current=False)
        app.conf.update(task_publish_retry=False, broker_transport_options={"max_retries": 0})
        for _ in range(2):
            with span() as publisher:
                with pytest.raises(kombu.exceptions.OperationalError):
                    app.send_task("proj.add")
                assert trace.get_current_span() is publisher
    for publication in spans.named("publish proj.add"):
        assert publication.status.status_code is StatusCode.ERROR
        assert publication.attributes["error.type"] == "kombu.exceptions.OperationalError"
        assert len(publication.events) == 1
    assert len(spans.named("publish proj.add")) == 2


# Options


def test_a_linked_task_is_a_root_with_a_link_to_its_publisher(
    program: Program, spans: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plugin.settings, "relation", "link")
    token = context.attach(baggage.set_baggage("tenant", "7"))
    with span():
        program.looks.delay()
    context.detach(token)
    (attempt,) = spans.processed("proj.looks")
    assert attempt.parent is None
    assert [link.context.span_id for link in attempt.links] == [spans.one("publish proj.looks").context.span_id]
    assert program.seen[0][1] == {"tenant": "7"}


def test_the_first_pattern_that_a_name_fits_says_its_relation(
    program: Program, spans: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plugin.settings, "relations", ["proj.note=child", "proj.*=link", "*=child"])
    with span():
        program.note.delay()
        program.add.delay(1, 2)
    (child,), (linked,) = spans.processed("proj.note"), spans.processed("proj.add")
    assert (spans.parent(child), linked.parent) == ("publish proj.note", None)


@pytest.mark.parametrize("entry", ["reports.*", "=link", "reports.*=none", "reports.*=link=", ""])
def test_a_wrong_entry_among_the_relations_gets_a_clear_message(entry: str) -> None:
    (option,) = (option for option in plugin.options if option.name == "relations")
    assert option.check is not None
    option.check(["a=b=link", "reports.*=child"])
    with pytest.raises(ValueError, match=r"is no PATTERN=child or PATTERN=link, such as 'reports\.\*=link'"):
        option.check([entry])


# What is left alone


def test_wrong_arguments_are_the_librarys_own_error_and_no_span(program: Program, spans: Recording) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        program.add.delay(1)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
        program.app.send_task()
    assert spans.traces == set()


def test_the_program_sees_its_own_headers_only(program: Program, spans: Recording) -> None:
    headers = {"mine": 1}
    with span():
        program.looks.apply_async(headers=headers)
        program.looks.delay()
        program.looks.apply_async(headers={"traceparent": f"00-{1:032x}-{2:016x}-01"})
    *_, last = spans.processed("proj.looks", 3)
    assert headers == {"mine": 1}
    assert [seen[0] for seen in program.seen] == [{"mine": 1}, None, {"traceparent": f"00-{1:032x}-{2:016x}-01"}]
    assert last.context.trace_id == 1


def test_headers_copied_from_a_message_are_replaced(program: Program, spans: Recording) -> None:
    copied = {"mine": 1, "traceparent": f"00-{1:032x}-{2:016x}-01", OURS: {"published_at": 1, "injected": True}}
    program.looks.apply_async(headers=copied)
    (attempt,) = spans.processed("proj.looks")
    assert spans.parent(attempt) == "publish proj.looks"
    assert attempt.attributes["sw.wait_ms"] < 60_000
    assert program.seen[0][0] == {"mine": 1}
    assert len(copied) == 3


def test_tasks_look_as_without_the_agent(program: Program, spans: Recording) -> None:
    assert str(inspect.signature(program.add)) == "(x: 'int', y: 'int') -> 'int'"
    assert program.add.__wrapped__(1, 2) == 3
    assert program.add(1, 2) == 3
    assert program.based.delay().get(timeout=30, interval=0.01) == "based"
    signature = program.add.s(1).set(headers={"mine": 1})
    clone = signature.clone((2,))
    assert clone.delay().get(timeout=30, interval=0.01) == 3
    assert json.loads(json.dumps(signature))["options"] == {"headers": {"mine": 1}}
    assert clone.options["headers"] == {"mine": 1}
    for signal in (signals.task_prerun, signals.task_postrun, signals.before_task_publish, signals.task_failure):
        assert not any("sw_agent" in repr(receiver) for receiver in signal.receivers)


# Messages of others


TRACE = f"00-{1:032x}-{2:016x}-01"
FOREIGN: dict[str, tuple[dict[str, Any], bool]] = {
    "no carrier": ({}, False),
    "another agent's": ({"traceparent": TRACE}, True),
    "malformed": ({"traceparent": "00-xyz"}, False),
    "truncated": ({"traceparent": TRACE[:-10], "baggage": "a=", OURS: {}}, False),
    "zeros": ({"traceparent": f"00-{0:032x}-{0:016x}-00"}, False),
    "ints": ({"traceparent": 1, "tracestate": 2, "baggage": 3, OURS: 4}, False),
    "none": ({"traceparent": None, "tracestate": None, "baggage": None, OURS: None}, False),
    "dicts": ({"traceparent": {"a": {}}, "baggage": [[]], OURS: {"published_at": {}, "attempt": []}}, False),
    "a note of nonsense": ({"traceparent": TRACE, OURS: {"published_at": -1, "attempt": "x", "injected": 3}}, True),
    "a note from the future": ({"traceparent": TRACE, OURS: {"published_at": 2**62}}, True),
    "64 KiB of baggage": ({"traceparent": TRACE, "baggage": "a=" + "b" * 65536}, True),
    "headers within": ({"headers": {"traceparent": 7, OURS: 7}, "retries": "many", "root_id": 5}, False),
}


@pytest.mark.parametrize("protocol", [0, 1, 2], ids=["1, without arguments", "1", "2"])
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_messages_run_with_what_is_valid_of_their_carrier(
    program: Program, spans: Recording, name: str, protocol: int
) -> None:
    headers, valid = FOREIGN[name]
    for _ in range(2):
        program.send(headers, protocol=protocol)
    for attempt in spans.processed("proj.looks", 2):
        assert (attempt.context.trace_id == 1) is valid
        assert (attempt.parent is not None) is valid
        assert attempt.attributes["celery.state"] == "SUCCESS"
        assert attempt.attributes.get("sw.wait_ms", 0) >= 0


def test_nothing_is_said_about_baggage_that_is_too_long(
    program: Program, spans: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    program.send({"traceparent": TRACE, "baggage": "a=" + "b" * 65536})
    spans.processed("proj.looks")
    assert caplog.records == []


def test_what_runs_in_a_task_that_is_not_sampled_hangs_under_its_publisher(program: Program, spans: Recording) -> None:
    program.send({"traceparent": f"{TRACE[:-2]}00"})
    (_, _, current), *_ = until(lambda: program.seen)
    assert (current.trace_id, current.span_id, current.trace_flags.sampled) == (1, 2, False)
    assert spans.named("process proj.looks") == []


def test_headers_of_bytes_are_none(program: Program, spans: Recording) -> None:
    request = {"id": "1", "traceparent": TRACE.encode(), b"baggage": b"a=b", OURS: b"", "delivery_info": None}
    body: Any = ([], {}, {})
    app_trace.trace_task_ret("proj.looks", "1", {**request, "delivery_info": {}}, body, None, None, app=program.app)
    (attempt,) = spans.processed("proj.looks")
    assert attempt.parent is None


# Beat


def test_each_tick_of_beat_is_a_root(program: Program, spans: Recording) -> None:
    from celery.beat import Scheduler

    schedule = {"often": {"task": "proj.note", "schedule": timedelta(seconds=1)}}
    program.app.conf.beat_schedule = schedule
    scheduler = Scheduler(app=program.app)
    with span("ambient") as ambient:
        for _ in range(2):
            scheduler.apply_async(scheduler.schedule["often"], advance=False)
            assert trace.get_current_span() is ambient
    attempts = spans.processed("proj.note", 2)
    assert [each.parent for each in spans.named("publish proj.note")] == [None, None]
    assert {spans.parent(each) for each in attempts} == {"publish proj.note"}
    assert len(spans.traces) == 3


# In and out


def targets() -> dict[str, Any]:
    """Return what is at each target of the plugin."""
    found = {}
    for patch in plugin.patches:
        module, _, path = patch.target.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        found[patch.target] = vars(owner).get(name)
    return found


def test_uninstalling_puts_everything_back_and_the_worker_goes_on(
    program: Program, spans: Recording, untouched: dict[str, Any]
) -> None:
    """The last one: an app keeps functions of a plugin that has gone, and they do nothing."""
    assert all(targets()[target] is not found for target, found in untouched.items())
    plugin.uninstall()
    assert targets() == untouched
    assert program.add.delay(1, 2).get(timeout=30, interval=0.01) == 3
    assert spans.named("publish proj.add") == spans.named("process proj.add") == []
