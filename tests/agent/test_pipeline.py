"""The pipeline: the program's threads never wait for it, and its books balance."""

from __future__ import annotations

import _thread
import gc
import logging
import math
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, StaticSampler
from opentelemetry.trace import Link, Tracer

from sw_agent import _containment, _log
from sw_agent.export.output import Loss, Outcome
from sw_agent.export.pipeline import Pipeline, _open_outputs

FOREVER = 60.0


class Kept:
    """An output that keeps what it is given, as soon as it may."""

    def __init__(self) -> None:
        self.batches: list[list[ReadableSpan]] = []
        self.may_send = threading.Event()
        self.may_send.set()
        self.asked = threading.Event()
        self.while_sending: Callable[[], object] = lambda: None
        self.while_closing: Callable[[], object] = lambda: None
        self.ended = threading.Event()
        self.seen: list[object] = []
        self.losses: list[Loss] = []
        self.opened = self.closed = 0
        self.takes: float = math.inf
        self.spools = self.waits = False
        self.for_the_spool: list[bool] = []  # of each round, whether there was time
        self.ending: list[bool] = []
        self.until: list[float] = []
        self.kept_aside: list[str] = []
        self.pipelines: list[Pipeline] = []

    def send(self, spans: Sequence[ReadableSpan], outcome: Outcome, until: float, ending: bool) -> None:
        assert until >= 0
        self.asked.set()
        self.may_send.wait(FOREVER)
        self.seen.append(self.while_sending())
        self.ending.append(ending)
        self.until.append(until)
        taken = list(spans)[: int(min(self.takes, len(spans)))]
        self.batches.append(taken)
        outcome.done = len(taken)
        outcome.losses = list(self.losses)
        outcome.spooled = len(taken) if self.spools else 0

    def end_round(self, until: float, ending: bool) -> Outcome:
        self.for_the_spool.append(until > time.monotonic())
        return Outcome()

    def standby(self) -> Standby:
        return Standby(self)

    def close(self) -> None:
        self.closed += 1
        self.while_closing()
        self.ended.set()

    @property
    def names(self) -> list[str]:
        return [span.name for batch in self.batches for span in batch]


class Standby(Kept):
    """An output that keeps aside what the first one hangs with."""

    def __init__(self, first: Kept) -> None:
        super().__init__()
        self.first = first
        self.spools = True

    def send(self, spans: Sequence[ReadableSpan], outcome: Outcome, until: float, ending: bool) -> None:
        self.takes = self.first.takes
        super().send(spans, outcome, until, ending)
        self.first.kept_aside += self.names
        self.batches = []


class Piped:
    """A pipeline before an output, with a tracer that feeds it."""

    def __init__(self, output: Kept, **changed: Any) -> None:
        settings = {
            "to": ("kept",),
            "queue_size": 1000,
            "batch_size": 100,
            "flush_interval": FOREVER,
            "export_timeout": FOREVER,
            "exit_timeout": FOREVER,
            "redact": ("hunter",),
        }
        self.output = output
        self.open = lambda *_: [output]
        self.pipeline = Pipeline(SimpleNamespace(**{**settings, **changed}), self.open)  # type: ignore[arg-type]
        output.pipelines.append(self.pipeline)
        self.provider = TracerProvider(shutdown_on_exit=False, resource=Resource({}))
        self.provider.add_span_processor(self.pipeline)  # type: ignore[arg-type]
        self.tracer: Tracer = self.provider.get_tracer("tests")

    def spans(self, *names: str) -> None:
        for name in names:
            self.tracer.start_span(name).end()

    def assert_balanced(self) -> None:
        pipeline = self.pipeline
        assert pipeline.books.started == pipeline.books.ended + len(pipeline._open) + pipeline.books.forgotten
        assert pipeline.books.ended == (
            pipeline.books.delivered + pipeline.waiting + pipeline.books.spooled + sum(pipeline.books.dropped.values())
        )


@pytest.fixture
def output() -> Iterator[Kept]:
    kept = Kept()
    yield kept
    kept.may_send.set()
    for pipeline in kept.pipelines:
        if pipeline.worker.pause(FOREVER):
            pipeline.worker.resume()


@pytest.fixture
def said() -> Iterator[Callable[[], list[str]]]:
    records: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    handler = Handler(logging.WARNING)
    _log.logger().addHandler(handler)
    yield lambda: records
    _log.logger().removeHandler(handler)


def failed(agent_errors: list[logging.LogRecord]) -> list[str]:
    """Take what the agent has said at ERROR: what has failed."""
    messages = [record.getMessage().partition(" failed")[0] for record in agent_errors]
    agent_errors.clear()
    return messages


def test_a_span_carries_the_thread_it_began_in(output: Kept) -> None:
    piped = Piped(output)
    thread = threading.Thread(target=piped.spans, args=("there",), name="elsewhere")
    thread.start()
    thread.join()
    piped.spans("here")
    assert piped.pipeline.flush(FOREVER)
    there, here = output.batches[0]
    assert there.attributes is not None
    assert here.attributes is not None
    assert (there.attributes["thread.name"], there.attributes["thread.id"]) == ("elsewhere", thread.ident)
    assert (here.attributes["thread.name"], here.attributes["thread.id"]) == ("MainThread", threading.get_ident())


def test_a_thread_that_threading_does_not_know_stays_unknown_to_it(output: Kept) -> None:
    piped = Piped(output)
    before = threading.enumerate()
    done = threading.Event()
    _thread.start_new_thread(lambda: (piped.spans("raw"), done.set()), ())
    assert done.wait(FOREVER)
    assert piped.pipeline.flush(FOREVER)
    assert str(output.batches[0][0].attributes["thread.name"]).startswith("thread-")  # type: ignore[index]
    assert threading.enumerate() == before


def test_what_the_program_says_of_a_span_comes_before_the_thread(output: Kept) -> None:
    piped = Piped(output)
    limited = TracerProvider(shutdown_on_exit=False, span_limits=SpanLimits(max_span_attributes=3))
    limited.add_span_processor(piped.pipeline)  # type: ignore[arg-type]
    for own in ({"a": 1}, {"a": 1, "b": 2}):
        limited.get_tracer("tests").start_span("span", attributes=own).end()
    assert piped.pipeline.flush(FOREVER)
    with_room, without = (span.attributes or {} for span in output.batches[0])
    assert set(with_room) == {"a", "thread.id", "thread.name"}
    assert set(without) == {"a", "b"}
    assert [span.dropped_attributes for span in output.batches[0]] == [0, 0]


class OfAnotherSdk:
    """A span that has only what the API promises."""

    def __init__(self) -> None:
        self.context = SimpleNamespace(span_id=7, trace_flags=1)
        self.noted: dict[str, Any] = {}

    def set_attributes(self, attributes: dict[str, Any]) -> None:
        self.noted |= attributes


class Unwritable(OfAnotherSdk):
    _attributes = SimpleNamespace(_dict=MappingProxyType({}), maxlen=100)


class Raising(OfAnotherSdk):
    def set_attributes(self, attributes: dict[str, Any]) -> None:
        raise LookupError


@pytest.mark.parametrize("kind", [OfAnotherSdk, Unwritable, Raising])
def test_a_span_of_another_sdk_is_noted_and_queued_too(
    output: Kept, kind: type[Any], agent_errors: list[logging.LogRecord]
) -> None:
    piped = Piped(output)
    span: Any = kind()
    piped.pipeline.on_start(span)
    piped.pipeline.on_end(span)
    assert (piped.pipeline.books.ended, piped.pipeline.waiting) == (1, 1)
    if kind is Raising:
        assert failed(agent_errors) == ["noting a span that begins"]
    else:
        assert span.noted == {"thread.id": threading.get_ident(), "thread.name": "MainThread"}
    piped.pipeline._queue.clear()


def test_events_and_links_leave_with_their_span(output: Kept) -> None:
    piped = Piped(output)
    other = piped.tracer.start_span("other")
    span = piped.tracer.start_span("span", links=[Link(other.get_span_context())])
    span.add_event("event")
    span.end()
    other.end()
    assert piped.pipeline.flush(FOREVER)
    sent, plain = output.batches[0]
    assert [event.name for event in sent.events] == ["event"]
    assert [link.context for link in sent.links] == [other.get_span_context()]
    assert not plain.events
    assert not plain.links


def test_without_an_output_spans_are_counted_and_nothing_is_said(output: Kept, said: Callable[[], list[str]]) -> None:
    piped = Piped(output, to=())
    piped.spans("a")
    left_open = piped.tracer.start_span("open")
    assert piped.pipeline.books.dropped == {"no output": 1}
    piped.pipeline.end(FOREVER)
    assert piped.pipeline.balance() == (
        "spans: 2 started = 1 ended + 1 open + 0 forgotten; 1 ended = 0 delivered + 0 spooled + "
        "1 dropped {'no output': 1} + 0 waiting; 0 resent"
    )
    left_open.end()
    assert (output.names, said()) == ([], [])


def test_a_failure_while_flushing_is_the_agents(
    output: Kept, monkeypatch: pytest.MonkeyPatch, agent_errors: list[logging.LogRecord]
) -> None:
    piped = Piped(output)
    with monkeypatch.context() as patched:
        patched.setattr(piped.pipeline.worker, "finish", lambda _timeout: 1 / 0)
        assert piped.pipeline.force_flush() is False
        piped.pipeline.shutdown()
    assert failed(agent_errors) == ["flushing"]
    assert _containment.failures == {"flushing": 2}
    piped.spans("a")
    assert piped.pipeline.force_flush() is True


def test_a_failure_to_wake_the_worker_is_not_the_programs(
    output: Kept, monkeypatch: pytest.MonkeyPatch, agent_errors: list[logging.LogRecord]
) -> None:
    piped = Piped(output)
    with monkeypatch.context() as patched:
        patched.setattr(piped.pipeline.worker, "begin", lambda: 1 / 0)
        piped.spans("a")
    assert failed(agent_errors) == ["having a span sent"]
    assert piped.pipeline.flush(FOREVER)
    assert output.names == ["a"]


def test_spans_leave_in_batches_of_the_configured_size(output: Kept) -> None:
    piped = Piped(output, batch_size=3)
    piped.spans(*"abcdefgh")
    assert piped.pipeline.flush(FOREVER)
    assert "".join(output.names) == "abcdefgh"
    assert max(map(len, output.batches)) == 3
    piped.assert_balanced()
    assert piped.pipeline.books.delivered == 8


def test_a_full_batch_leaves_without_waiting_for_the_interval(output: Kept) -> None:
    piped = Piped(output, batch_size=3)
    piped.spans(*"ab")
    assert not output.asked.is_set()
    piped.spans("c")
    assert output.asked.wait(FOREVER)


def test_a_span_leaves_after_the_interval(output: Kept) -> None:
    piped = Piped(output, flush_interval=0.01)
    piped.spans("a")
    assert output.asked.wait(FOREVER)


def test_the_program_does_not_wait_for_an_output_that_hangs(output: Kept, said: Callable[[], list[str]]) -> None:
    piped = Piped(output, batch_size=2, queue_size=10)
    output.may_send.clear()
    piped.spans("first", "second")
    assert output.asked.wait(FOREVER)
    piped.spans(*(str(number) for number in range(15)))
    piped.assert_balanced()
    assert piped.pipeline.books.dropped == {"queue full": 5}
    assert not piped.pipeline.flush(0.01)
    output.may_send.set()
    assert piped.pipeline.flush(FOREVER)
    piped.assert_balanced()
    assert piped.pipeline.books.delivered == 12
    assert said() == ["spans dropped: 5 queue full"]


def test_what_an_output_loses_is_counted_by_reason_and_said_once_a_minute_and_at_the_end(
    output: Kept, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = Piped(output)
    output.losses = [Loss(1, "not taken", "down since noon")]
    for _ in range(3):
        piped.spans("a", "b")
        assert piped.pipeline.flush(FOREVER)
    assert piped.pipeline.books.dropped == {"not taken": 3}
    assert piped.pipeline.books.delivered == 3
    piped.assert_balanced()
    assert said() == ["spans dropped: 1 not taken (down since noon)"]
    with monkeypatch.context() as later:
        later.setattr("sw_agent.export.pipeline.SAY_AGAIN", 0)
        piped.spans("a")
        assert piped.pipeline.flush(FOREVER)
        assert piped.pipeline.worker.pause(FOREVER)
        piped.pipeline.worker.resume()
    assert said()[1:] == ["spans dropped: 3 not taken (down since noon)"]
    piped.spans("a")
    piped.pipeline.end(FOREVER)
    assert said()[2:] == ["spans dropped: 1 not taken (down since noon)"]


def test_an_output_that_raises_loses_its_batch_and_no_other(
    output: Kept, said: Callable[[], list[str]], agent_errors: list[logging.LogRecord]
) -> None:
    piped = Piped(output)
    output.while_sending = lambda: 1 / 0
    piped.spans("a")
    assert piped.pipeline.flush(FOREVER)
    output.while_sending = lambda: None
    piped.spans("b")
    assert piped.pipeline.flush(FOREVER)
    assert output.names == ["b"]
    assert piped.pipeline.books.dropped == {"failure of the agent": 1}
    assert (piped.pipeline.books.delivered, piped.pipeline.books.spooled) == (1, 0)
    assert [record.getMessage() for record in agent_errors] == ["sending spans failed; the program goes on without it"]
    agent_errors.clear()


@pytest.mark.parametrize(
    ("to", "reason", "contained"),
    [("local", "an output cannot be opened", []), ("otlp", "failure of the agent", ["opening the output otlp"])],
)
def test_an_output_that_cannot_be_opened_loses_its_spans_and_says_so(
    output: Kept,
    said: Callable[[], list[str]],
    agent_errors: list[logging.LogRecord],
    monkeypatch: pytest.MonkeyPatch,
    to: str,
    reason: str,
    contained: list[str],
) -> None:
    monkeypatch.setitem(sys.modules, "sw_agent.export.store", None)  # as on a Python without sqlite3
    piped = Piped(output, to=(to,))  # and the configuration has nothing that OTLP needs
    monkeypatch.setattr(piped.pipeline, "_open_outputs", _open_outputs)
    piped.spans("a", "b")
    assert piped.pipeline.flush(FOREVER)
    assert piped.pipeline.books.dropped == {reason: 2}
    assert said()[-1].startswith(f"spans dropped: 2 {reason}")
    assert ("local: " in said()[-1]) == (to == "local")
    assert failed(agent_errors) == contained


def test_where_no_output_can_be_opened_at_all_spans_are_dropped_until_one_can(
    output: Kept, agent_errors: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = Piped(output)
    with monkeypatch.context() as patched:
        patched.setattr(piped.pipeline, "_open_outputs", lambda *_: 1 / 0)
        piped.spans("a")
        assert piped.pipeline.flush(FOREVER)
    piped.spans("b")
    assert piped.pipeline.flush(FOREVER)
    assert piped.pipeline.books.dropped == {"failure of the agent": 1}
    assert output.names == ["b"]
    assert failed(agent_errors) == ["opening the outputs", "sending spans"]


def test_an_output_that_fails_while_it_is_closed_is_opened_again(
    output: Kept, agent_errors: list[logging.LogRecord]
) -> None:
    piped = Piped(output)
    output.while_closing = lambda: 1 / 0
    for name in "ab":
        piped.spans(name)
        assert piped.pipeline.worker.pause(FOREVER)
        piped.pipeline.worker.resume()
    assert (output.names, output.closed) == (["a", "b"], 2)
    assert failed(agent_errors) == ["closing an output"]


def test_a_span_that_is_not_sampled_is_neither_sent_nor_counted(output: Kept) -> None:
    piped = Piped(output)
    piped.provider.sampler = ALWAYS_OFF
    piped.tracer = piped.provider.get_tracer("off")
    piped.spans("a")
    assert piped.pipeline.flush(FOREVER)
    assert (piped.pipeline.books.started, output.batches) == (0, [])


def test_nor_is_one_that_is_only_recorded(output: Kept) -> None:
    piped = Piped(output)
    piped.provider.sampler = StaticSampler(Decision.RECORD_ONLY)
    piped.tracer = piped.provider.get_tracer("recording")
    piped.spans("a")
    assert piped.pipeline.flush(FOREVER)
    assert (piped.pipeline.books.started, output.batches) == (0, [])


def test_a_span_that_ends_twice_over_two_providers_is_sent_once(output: Kept) -> None:
    piped = Piped(output)
    piped.provider.add_span_processor(piped.pipeline)  # type: ignore[arg-type]
    piped.spans("a")
    assert piped.pipeline.flush(FOREVER)
    assert output.names == ["a"]


def test_spans_of_many_threads_are_all_sent_and_the_books_balance(output: Kept) -> None:
    piped = Piped(output, queue_size=100_000, batch_size=50, flush_interval=0.001)
    threads = [threading.Thread(target=piped.spans, args=("x",) * 500) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert piped.pipeline.flush(FOREVER)
    piped.assert_balanced()
    assert piped.pipeline.books.delivered == len(output.names) == 4000


# The worker


def test_the_worker_is_nowhere_in_threading(output: Kept) -> None:
    piped = Piped(output)
    before = threading.enumerate()
    output.while_sending = lambda: logging.getLogger("nobody").warning("asks for the current thread's name")
    logging.getLogger("nobody").propagate = False
    logging.getLogger("nobody").addHandler(logging.NullHandler())
    piped.spans("a")
    assert piped.pipeline.flush(FOREVER)
    piped.spans("b")
    assert piped.pipeline.flush(FOREVER)
    assert threading.enumerate() == before


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux")
def test_the_worker_is_named_and_blocks_all_signals(output: Kept) -> None:
    piped = Piped(output)

    def look() -> tuple[str, set[int]]:
        with open(f"/proc/self/task/{_thread.get_native_id()}/comm") as file:
            return file.read().strip(), signal.pthread_sigmask(signal.SIG_BLOCK, [])  # type: ignore[return-value]

    output.while_sending = look
    piped.spans("a")
    assert piped.pipeline.flush(FOREVER)
    ((name, blocked),) = output.seen  # type: ignore[misc]
    assert name == "sw-agent-export"
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD} <= blocked  # type: ignore[has-type]


def test_sending_goes_on_in_a_context_of_its_own(output: Kept) -> None:
    from opentelemetry import context, trace

    piped = Piped(output)
    output.while_sending = lambda: (
        trace.get_current_span().get_span_context().is_valid,
        context.get_value(context._SUPPRESS_INSTRUMENTATION_KEY),
    )
    with piped.tracer.start_as_current_span("outer"):
        piped.spans("a")
        assert piped.pipeline.flush(FOREVER)
    assert output.seen == [(False, True)]


def test_an_idle_worker_ends_and_lets_go_of_its_outputs(output: Kept) -> None:
    piped = Piped(output, flush_interval=0.001)
    piped.spans("a")
    while piped.pipeline.worker._running.locked():
        assert output.asked.wait(FOREVER)
    assert output.closed == 1
    piped.spans("b")
    assert piped.pipeline.flush(FOREVER)
    assert output.names == ["a", "b"]


class Sigterm:
    """Stands for `_sigterm`: whether SIGTERM is caught."""

    wanted = False

    def catch(self) -> None:
        self.wanted = True

    def drop(self) -> None:
        self.wanted = False


def test_sigterm_is_caught_as_long_as_a_span_is_open_or_waits(output: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    sigterm = Sigterm()
    monkeypatch.setattr("sw_agent.export.pipeline._sigterm", sigterm)
    piped = Piped(output)

    def caught_when_all_is_sent() -> bool:
        assert piped.pipeline.worker.pause(FOREVER)
        piped.pipeline.worker.resume()
        return sigterm.wanted

    left_open = piped.tracer.start_span("open")
    assert sigterm.wanted
    piped.spans("a")
    assert caught_when_all_is_sent()
    left_open.end()
    assert sigterm.wanted
    assert not caught_when_all_is_sent()
    assert output.names == ["a", "open"]
    Piped(output, to=()).spans("to nobody")
    assert not sigterm.wanted


def test_a_flush_from_many_threads_finds_everything_sent(output: Kept) -> None:
    piped = Piped(output, flush_interval=0.001)
    failures = []

    def end_and_flush() -> None:
        for number in range(50):
            piped.spans(f"{threading.get_ident()}-{number}")
            if not piped.pipeline.flush(FOREVER) or f"{threading.get_ident()}-{number}" not in output.names:
                failures.append(number)

    threads = [threading.Thread(target=end_and_flush) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_end_of_a_span_may_interrupt_the_end_of_a_span(output: Kept) -> None:
    """A signal handler that ends spans, at any moment."""
    piped = Piped(output, queue_size=10**6, batch_size=7, flush_interval=0.001)
    before = signal.signal(signal.SIGALRM, lambda *_: piped.spans("in the handler"))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        piped.spans(*("plain",) * 3000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert piped.pipeline.flush(FOREVER)
    piped.assert_balanced()
    assert output.names.count("plain") == 3000
    assert "in the handler" in output.names


# The end


def test_the_end_waits_no_longer_than_it_may_and_says_what_is_left(output: Kept, said: Callable[[], list[str]]) -> None:
    piped = Piped(output, batch_size=1)
    output.may_send.clear()
    output.takes = 0
    piped.spans("a")
    assert output.asked.wait(FOREVER)
    piped.spans("b", "c")
    piped.pipeline.end(0.01)
    assert piped.pipeline.books.dropped == {"not sent in time": 3}
    assert said() == ["spans dropped: 3 not sent in time (exit_timeout is 60 s)"]
    piped.assert_balanced()


def test_at_the_end_an_output_has_a_part_of_the_time_so_that_there_is_some_to_keep_the_rest(output: Kept) -> None:
    piped = Piped(output)
    piped.spans("a")
    begun = time.monotonic()
    piped.pipeline.end(FOREVER)
    (until,) = output.until
    assert until < begun + FOREVER


def test_the_end_waits_no_longer_for_outputs_that_are_not_even_open(
    output: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, may_open = threading.Event(), threading.Event()

    def open_outputs(*_: object) -> list[Kept]:
        opening.set()
        may_open.wait(FOREVER)
        return [output]

    piped = Piped(output, batch_size=1)
    monkeypatch.setattr(piped.pipeline, "_open_outputs", open_outputs)
    piped.spans("a")
    assert opening.wait(FOREVER)
    piped.pipeline.end(0.01)
    assert piped.pipeline.books.dropped == {"not sent in time": 1}
    may_open.set()


def test_at_the_end_somebody_stands_in_for_an_output_that_hangs_with_what_it_takes_out_of_the_spool(
    output: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = Piped(output, batch_size=1)
    ending, may_end, standbys = threading.Event(), threading.Event(), []

    def end_round(*_: object) -> Outcome:
        ending.set()
        may_end.wait(FOREVER)
        return Outcome()

    def standby() -> Standby:
        standbys.append(Standby(output))
        return standbys[-1]

    monkeypatch.setattr(output, "end_round", end_round)
    monkeypatch.setattr(output, "standby", standby)
    piped.spans("a")
    assert ending.wait(FOREVER)
    piped.pipeline.end(0.01)
    assert [each.closed for each in standbys] == [1]
    may_end.set()


def test_a_flush_waits_no_longer_than_it_is_told(output: Kept) -> None:
    piped = Piped(output)
    output.may_send.clear()
    piped.spans("a")
    begun = time.monotonic()
    assert not piped.provider.force_flush(10)
    assert time.monotonic() - begun < FOREVER / 2


def test_the_end_does_not_wait_for_an_output_that_hangs_while_it_is_closed(output: Kept) -> None:
    piped = Piped(output)
    may_close = threading.Event()
    output.while_closing = lambda: may_close.wait(FOREVER)
    piped.spans("a")
    begun = time.monotonic()
    piped.pipeline.end(FOREVER)
    assert time.monotonic() - begun < FOREVER / 2
    assert output.names == ["a"]
    may_close.set()


def test_what_the_worker_hangs_with_at_the_end_is_kept_aside_and_all_that_waits_behind_it(output: Kept) -> None:
    piped = Piped(output, batch_size=2, flush_interval=0.01)
    output.may_send.clear()
    piped.spans("a")
    assert not piped.pipeline.flush(0)
    assert output.asked.wait(FOREVER)
    piped.spans("b", "c", "d")
    piped.pipeline.end(0.01)
    assert output.kept_aside == ["a", "b", "c", "d"]
    assert (piped.pipeline.books.spooled, piped.pipeline.books.delivered, piped.pipeline.books.dropped) == (4, 0, {})
    output.may_send.set()
    assert output.ended.wait(FOREVER)
    assert (piped.pipeline.books.spooled, piped.pipeline.books.delivered) == (4, 0)
    piped.assert_balanced()


def test_spans_that_are_open_at_the_end_leave_as_incomplete_and_only_once(output: Kept) -> None:
    piped = Piped(output)
    open_span = piped.tracer.start_span("open", attributes={"step": 1})
    piped.spans("ended")
    piped.pipeline.end(FOREVER)
    open_span.end()
    ended, left = (span for batch in output.batches for span in batch)
    assert (ended.name, ended.attributes and "sw.incomplete" in ended.attributes) == ("ended", False)
    assert left.name == "open"
    assert left.attributes is not None
    assert (left.attributes["step"], left.attributes["sw.incomplete"]) == (1, True)
    assert left.start_time is not None
    assert left.end_time is not None
    assert left.end_time >= left.start_time
    assert (piped.pipeline.books.ended, piped.pipeline.books.dropped) == (2, {})
    piped.assert_balanced()


def test_an_open_span_that_cannot_leave_as_it_is_is_dropped_and_no_other(
    output: Kept, agent_errors: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sw_agent.export import incomplete

    as_it_is = incomplete.as_it_is

    def fail_once(span: Any) -> Any:
        return as_it_is(span) if span.name != "odd" else 1 / 0

    monkeypatch.setattr(incomplete, "as_it_is", fail_once)
    piped = Piped(output)
    left_open = [piped.tracer.start_span(name) for name in ("a", "odd", "b")]
    piped.pipeline.end(FOREVER)
    assert output.names == ["a", "b"]
    assert piped.pipeline.books.dropped == {"failure of the agent": 1}
    piped.assert_balanced()
    assert failed(agent_errors) == ["a span that is still open"]
    del left_open


def test_a_span_that_ends_while_the_open_ones_leave_is_sent_once(output: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    from sw_agent.export import incomplete

    as_it_is = incomplete.as_it_is
    piped = Piped(output)
    first, second = (piped.tracer.start_span(name) for name in ("first", "second"))

    def while_another_thread_ends_one(span: Any) -> Any:
        second.end()
        return as_it_is(span)

    monkeypatch.setattr(incomplete, "as_it_is", while_another_thread_ends_one)
    piped.pipeline.end(FOREVER)
    first.end()
    assert sorted(output.names) == ["first", "second"]
    piped.assert_balanced()


def test_what_cannot_be_kept_aside_is_dropped(
    output: Kept, agent_errors: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = Piped(output, batch_size=1)
    monkeypatch.setattr(output, "standby", lambda: 1 / 0)
    output.may_send.clear()
    piped.spans("a")
    assert output.asked.wait(FOREVER)
    piped.spans("b")
    piped.pipeline.end(0.01)
    assert piped.pipeline.books.dropped == {"not sent in time": 2}
    assert failed(agent_errors) == ["keeping spans"]
    piped.assert_balanced()


def test_a_span_that_nobody_ends_or_keeps_is_neither_kept_alive_nor_sent(output: Kept) -> None:
    piped = Piped(output)
    for _ in range(3000):
        piped.tracer.start_span("forgotten")
    gc.collect()
    piped.spans("a")
    assert piped.pipeline.flush(FOREVER)
    assert piped.pipeline.books.forgotten == 3000
    piped.tracer.start_span("forgotten")
    gc.collect()
    piped.pipeline.end(FOREVER)
    assert output.names == ["a"]
    assert piped.pipeline.books.forgotten == 3001
    piped.assert_balanced()


def test_spans_that_are_open_for_long_are_not_forgotten_however_many_they_are(output: Kept) -> None:
    piped = Piped(output, queue_size=10_000)
    left_open = [piped.tracer.start_span("open") for _ in range(3000)]
    piped.spans("a")
    assert piped.pipeline.flush(FOREVER)
    for span in left_open:
        span.end()
    assert piped.pipeline.flush(FOREVER)
    assert (output.names.count("open"), piped.pipeline.books.forgotten) == (3000, 0)
    piped.assert_balanced()


def test_what_an_output_cannot_take_now_stays_in_the_queue_in_its_order(output: Kept) -> None:
    piped = Piped(output, batch_size=2)
    output.takes = 1
    piped.spans("a", "b", "c")
    assert not piped.pipeline.flush(FOREVER)
    assert piped.pipeline.waiting == 2
    output.takes = math.inf
    assert piped.pipeline.flush(FOREVER)
    assert output.names == ["a", "b", "c"]
    assert piped.pipeline.books.delivered == 3
    piped.assert_balanced()


def test_what_is_spooled_counts_neither_as_delivered_nor_as_waiting(output: Kept) -> None:
    piped = Piped(output)
    output.spools = True
    piped.spans("a", "b")
    assert piped.pipeline.flush(FOREVER)
    assert (piped.pipeline.books.spooled, piped.pipeline.books.delivered, piped.pipeline.waiting) == (2, 0, 0)
    piped.assert_balanced()


def test_the_worker_goes_on_as_long_as_an_output_has_more_to_send(output: Kept) -> None:
    piped = Piped(output, flush_interval=0.001)
    output.waits = True
    piped.spans("a")
    while len(output.for_the_spool) < 20:
        assert not output.ended.is_set()
    output.waits = False
    assert output.ended.wait(FOREVER)


def test_an_ended_pipeline_takes_no_more_spans_and_has_no_thread(output: Kept) -> None:
    piped = Piped(output)
    piped.spans("a")
    piped.pipeline.end(FOREVER)
    piped.spans("late")
    assert output.names == ["a"]
    assert output.closed == 1
    assert not piped.pipeline.worker._running.locked()
    assert piped.pipeline.books.dropped == {"the agent has ended": 1}


def test_shutting_a_provider_down_and_ending_wait_no_longer_than_one_of_them(output: Kept) -> None:
    """As at the end of a program with a provider of its own, before a collector that hangs."""
    piped = Piped(output, flush_interval=0.01, exit_timeout=0.4)
    output.may_send.clear()
    piped.spans("a")
    assert output.asked.wait(FOREVER)
    piped.provider.shutdown()
    assert output.kept_aside == ["a"]
    begun = time.monotonic()
    piped.pipeline.end(FOREVER)
    assert time.monotonic() - begun < FOREVER / 2
    assert output.kept_aside == ["a"]
    assert piped.pipeline.books.dropped == {}


def test_shutting_a_provider_down_sends_and_goes_on(output: Kept) -> None:
    piped = Piped(output)
    piped.spans("a")
    piped.provider.shutdown()
    assert output.names == ["a"]
    piped.spans("b")
    assert piped.provider.force_flush()
    assert output.names == ["a", "b"]
    assert output.ending == [True, False]


def test_without_a_thread_the_flush_sends_by_itself(output: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of the interpreter, where none can be started."""
    piped = Piped(output)

    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr("sw_agent.export.worker.start", no_thread)
    piped.spans("a")
    assert piped.pipeline.flush(FOREVER)
    assert (output.names, output.closed) == (["a"], 1)


# A fork


def test_a_paused_worker_has_sent_everything_and_is_gone(output: Kept) -> None:
    piped = Piped(output)
    threads = os.listdir("/proc/self/task") if os.path.exists("/proc/self/task") else []
    for number in range(20):
        piped.spans(str(number))
        assert piped.pipeline.worker.pause(FOREVER)
        assert output.names == [str(n) for n in range(number + 1)]
        if threads:
            assert set(os.listdir("/proc/self/task")) <= set(threads)
        piped.pipeline.worker.resume()
    assert output.closed == 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork")
def test_an_output_of_the_parent_is_not_even_freed_in_a_forked_process(
    output: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That could close a connection which the parent goes on using."""
    piped = Piped(output)
    opened: list[weakref.ref[Kept]] = []

    def open_outputs(*_: object) -> list[Kept]:
        kept = Kept()
        opened.append(weakref.ref(kept))
        return [kept]

    monkeypatch.setattr(piped.pipeline, "_open_outputs", open_outputs)
    piped.spans("a")
    assert piped.pipeline.flush(FOREVER)
    pid = os.fork()
    if not pid:
        piped.pipeline.reset()
        gc.collect()
        os._exit(opened[0]() is None)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_worker_that_is_busy_is_not_waited_for_and_goes_on(output: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sw_agent.export.worker.LONGEST_IMPORT", FOREVER)
    piped = Piped(output)
    output.may_send.clear()
    piped.spans("a")
    assert not piped.pipeline.flush(0)
    assert output.asked.wait(FOREVER)
    begun = time.monotonic()
    assert not piped.pipeline.worker.pause(0.01)
    assert time.monotonic() - begun < FOREVER / 2
    piped.spans("b")
    output.may_send.set()
    assert piped.pipeline.flush(FOREVER)
    assert output.names == ["a", "b"]


def test_what_ends_during_a_fork_is_sent_after_it_without_being_asked(output: Kept) -> None:
    piped = Piped(output, flush_interval=0.01)
    assert piped.pipeline.worker.pause(FOREVER)
    piped.spans("a")
    assert not output.asked.is_set()
    piped.pipeline.worker.resume()
    assert output.asked.wait(FOREVER)


def test_what_ends_while_the_worker_ends_is_sent_without_being_asked(output: Kept) -> None:
    piped = Piped(output, flush_interval=0.01)
    sent = threading.Event()
    output.while_sending = sent.set

    def end_a_span() -> None:
        output.while_closing = lambda: None
        sent.clear()
        piped.spans("late")

    output.while_closing = end_a_span
    piped.spans("a")
    assert sent.wait(FOREVER)
    assert output.ended.wait(FOREVER)
    assert sent.wait(FOREVER)
    assert piped.pipeline.flush(FOREVER)
    assert output.names == ["a", "late"]


def test_secrets_do_not_reach_an_output_nor_what_the_program_sees_of_its_span(output: Kept) -> None:
    piped = Piped(output)
    secret = {"url": "redis://:pass@host/0", "text": "hunter2"}
    span = piped.tracer.start_span("work", attributes=secret)
    span.end()
    assert piped.pipeline.flush(FOREVER)
    (sent,) = output.batches[0]
    assert sent.attributes is not None
    assert (sent.attributes["url"], sent.attributes["text"]) == ("redis://REDACTED:REDACTED@host/0", "REDACTED2")
    assert {key: span.attributes[key] for key in secret} == secret  # type: ignore[attr-defined]


def test_secrets_do_not_reach_what_is_kept_aside(output: Kept) -> None:
    piped = Piped(output, flush_interval=0.01)
    output.may_send.clear()
    piped.spans("hunter")
    assert output.asked.wait(FOREVER)
    piped.pipeline.end(0.01)
    assert output.kept_aside == ["REDACTED"]


def test_secrets_do_not_reach_the_log(output: Kept, said: Callable[[], list[str]]) -> None:
    piped = Piped(output)
    output.losses = [Loss(1, "refused", "http://me:word@host: hunter")]
    piped.spans("a")
    assert piped.pipeline.flush(FOREVER)
    assert said() == ["spans dropped: 1 refused (http://REDACTED:REDACTED@host: REDACTED)"]


def test_that_spans_wait_is_said_once_a_minute_whatever_is_opened_anew(
    output: Kept, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = Piped(output)

    def open_outputs(_config: object, say: Callable[[str], None]) -> list[Kept]:
        say("spans wait")
        return [output]

    monkeypatch.setattr(piped.pipeline, "_open_outputs", open_outputs)
    for _ in range(3):
        piped.spans("a")
        assert piped.pipeline.worker.pause(FOREVER)
        piped.pipeline.worker.resume()
    assert (output.closed, said()) == (3, ["spans wait"])
    monkeypatch.setattr("sw_agent.export.pipeline.SAY_AGAIN", 0)
    piped.spans("a")
    assert piped.pipeline.flush(FOREVER)
    assert said() == ["spans wait", "spans wait"]


def test_nothing_is_taken_out_of_the_spool_while_somebody_waits_for_the_worker_to_stop(output: Kept) -> None:
    piped = Piped(output)
    for pause in (False, True, False):
        piped.spans("a")
        if pause:
            assert piped.pipeline.worker.pause(FOREVER)
            piped.pipeline.worker.resume()
        else:
            assert piped.pipeline.flush(FOREVER)
    assert output.for_the_spool == [True, False, True]


def test_the_last_flush_takes_out_of_the_spool_what_it_can_send_and_nothing_is_taken_later(output: Kept) -> None:
    piped = Piped(output)
    piped.spans("a")
    piped.pipeline.flush_finally(FOREVER)
    piped.spans("b")
    assert piped.pipeline.flush(FOREVER)
    assert output.names == ["a", "b"]
    assert output.for_the_spool == [True, False]
