"""The toolkit inside a program that records spans."""

import asyncio
import contextlib
import inspect
import json
import pickle
import subprocess
import sys

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach

import sw_agent
from sw_agent.testing import RecordedSpans, recorded_spans

tracer = trace.get_tracer("tests")


@pytest.fixture
def spans():
    with recorded_spans() as recorded:
        yield recorded


def current_name() -> str | None:
    return getattr(trace.get_current_span(), "name", None)


def test_a_traced_function_is_a_child_of_its_caller_and_current_inside(spans: RecordedSpans):
    @sw_agent.trace
    def work(number: int) -> tuple[int, str | None]:
        return number, current_name()

    with tracer.start_as_current_span("caller"):
        number, name = work(3)
        assert current_name() == "caller"

    assert (number, name.rpartition(".")[2]) == (3, "work")
    assert spans.parent_of(name) == "caller"


def test_the_decorated_function_keeps_its_kind_name_and_signature():
    @sw_agent.trace
    def function(a, b=2): ...

    @sw_agent.trace
    async def coroutine(a): ...

    @sw_agent.trace
    def generator(a):
        yield

    @sw_agent.trace
    async def async_generator(a):
        yield

    assert function.__name__ == "function"
    assert str(inspect.signature(function)) == "(a, b=2)"
    assert inspect.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(async_generator)


def test_arguments_are_recorded_except_the_skipped_ones(spans: RecordedSpans):
    class Unprintable:
        def __repr__(self) -> str:
            raise RuntimeError

    @sw_agent.trace(name="pay", skip=["card"], fields={"order.id": lambda order, **_: order["id"], "kind": "web"})
    def pay(order, card, note=None): ...

    pay({"id": 7}, card="4111", note=Unprintable())

    attributes = spans.named("pay").attributes
    assert attributes["arg.order"] == "{'id': 7}"
    assert "Unprintable" in attributes["arg.note"]
    assert (attributes["order.id"], attributes["kind"]) == (7, "web")
    assert "arg.card" not in attributes


def test_no_argument_is_recorded_where_all_are_skipped(spans: RecordedSpans):
    @sw_agent.trace(name="login", skip=True)
    def login(user, password): ...

    login("ada", "secret")
    assert not spans.named("login").attributes


def test_a_wrong_call_raises_what_it_raises_without_the_decorator():
    @sw_agent.trace
    def work(a): ...

    with pytest.raises(TypeError, match=r"work\(\) missing 1 required positional argument: 'a'"):
        work()


def test_an_exception_is_recorded_once_where_it_was_raised(spans: RecordedSpans):
    @sw_agent.trace(name="inner")
    def inner():
        raise ValueError("no")

    @sw_agent.trace(name="outer")
    def outer():
        inner()

    with pytest.raises(ValueError, match="no"):
        outer()

    assert [event.name for event in spans.named("inner").events] == ["exception"]
    assert not spans.named("outer").events
    assert {span.status.status_code for span in spans} == {trace.StatusCode.ERROR}


def test_a_second_exception_in_a_caller_is_recorded_too(spans: RecordedSpans):
    @sw_agent.trace(name="inner")
    def inner():
        raise ValueError("first")

    @sw_agent.trace(name="outer")
    def outer():
        with contextlib.suppress(ValueError):
            inner()
        raise KeyError("second")

    with pytest.raises(KeyError):
        outer()
    assert len(spans.named("outer").events) == 1


def test_an_exception_without_text_is_the_programs_all_the_same(spans: RecordedSpans):
    class Wordless(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @sw_agent.trace(name="fails")
    def fails():
        raise Wordless

    with pytest.raises(Wordless):
        fails()
    assert spans.named("fails").status.description == "Wordless: <its text raises>"


def test_cancellation_is_no_error(spans: RecordedSpans):
    @sw_agent.trace(name="waiting")
    async def waiting():
        await asyncio.Event().wait()

    async def main():
        task = asyncio.ensure_future(waiting())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert spans.named("waiting").status.status_code is trace.StatusCode.UNSET
    assert not spans.named("waiting").events


def test_links_say_what_a_call_follows_from(spans: RecordedSpans):
    with tracer.start_as_current_span("before") as before:
        taken = sw_agent.capture()

    @sw_agent.trace(name="after", links=lambda item: [item])
    def after(item):
        sw_agent.follows_from(item)

    after(taken)
    linked = [link.context.span_id for link in spans.named("after").links]
    assert linked == [before.get_span_context().span_id] * 2
    assert spans.named("after").parent is None


def test_between_two_steps_of_a_generator_the_consumer_sees_its_own_context(spans: RecordedSpans):
    @sw_agent.trace(name="producer")
    def producer():
        with tracer.start_as_current_span("inside"):
            received = yield current_name()
            yield received, current_name()
        return "done"

    with tracer.start_as_current_span("consumer"):
        steps = producer()
        assert next(steps) == "inside"
        assert current_name() == "consumer"
        with tracer.start_as_current_span("between"):
            assert steps.send("hello") == ("hello", "inside")
            assert current_name() == "between"
        with pytest.raises(StopIteration) as stop:
            next(steps)
        assert stop.value.value == "done"
        assert current_name() == "consumer"

    assert spans.parent_of("between") == "consumer"
    assert spans.parent_of("producer") == "consumer"
    assert spans.parent_of("inside") == "producer"


def test_a_generator_left_early_ends_its_span_without_error(spans: RecordedSpans):
    closed = []

    @sw_agent.trace(name="numbers")
    def numbers():
        try:
            yield from range(10)
        finally:
            closed.append(current_name())

    for _ in numbers():
        break
    assert closed == ["numbers"]
    assert spans.named("numbers").status.status_code is trace.StatusCode.UNSET


def test_exceptions_thrown_into_a_generator_arrive_there(spans: RecordedSpans):
    @sw_agent.trace
    def echo():
        try:
            yield 1
        except KeyError:
            yield "caught"

    steps = echo()
    next(steps)
    assert steps.throw(KeyError("x")) == "caught"
    steps.close()


def test_an_async_generator_is_entered_at_each_step(spans: RecordedSpans):
    @sw_agent.trace(name="pages")
    async def pages():
        for page in range(3):
            await asyncio.sleep(0)
            yield page, current_name()

    async def main():
        with tracer.start_as_current_span("reader"):
            seen = []
            async for page, name in pages():
                assert name == "pages"
                with tracer.start_as_current_span(f"page {page}"):
                    seen.append(current_name())
            left = pages()
            await left.asend(None)
            await left.aclose()
            return seen

    assert asyncio.run(main()) == ["page 0", "page 1", "page 2"]
    assert spans.parent_of("page 1") == "reader"
    assert spans.names.count("pages") == 2


def test_exceptions_thrown_into_an_async_generator_arrive_there(spans: RecordedSpans):
    @sw_agent.trace(name="echo")
    async def echo():
        try:
            yield 1
        except KeyError as error:
            yield error.args[0]

    async def main():
        steps = echo()
        assert await steps.asend(None) == 1
        assert await steps.athrow(KeyError("x")) == "x"
        with pytest.raises(StopAsyncIteration):
            await steps.asend(None)

    asyncio.run(main())
    assert not spans.named("echo").events


def test_an_exception_thrown_into_an_async_generator_that_leaves_it_is_recorded_once(spans: RecordedSpans):
    @sw_agent.trace(name="echo")
    async def echo():
        yield 1

    async def main():
        steps = echo()
        await steps.asend(None)
        with pytest.raises(KeyError):
            await steps.athrow(KeyError("x"))

    asyncio.run(main())
    assert [event.name for event in spans.named("echo").events] == ["exception"]
    assert not spans.named("echo").status.is_ok


def test_a_coroutine_stepped_by_hand_leaves_nothing_in_its_driver(spans: RecordedSpans):
    class Pause:
        def __await__(self):
            yield "paused"

    @sw_agent.trace(name="stepped")
    async def stepped():
        await Pause()
        return current_name()

    coroutine = stepped()
    assert coroutine.send(None) == "paused"
    assert current_name() is None
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    assert stop.value.value == "stepped"


def test_trace_id_and_tag_speak_of_the_current_span(spans: RecordedSpans):
    assert sw_agent.trace_id() == ""
    sw_agent.tag("nobody", "listens")
    with tracer.start_as_current_span("work") as span:
        sw_agent.tag("size", 3)
        assert sw_agent.trace_id() == f"{span.get_span_context().trace_id:032x}"
    assert spans.named("work").attributes["size"] == 3


def test_a_snapshot_restores_span_and_baggage_and_nothing_stays(spans: RecordedSpans):
    token = attach(baggage.set_baggage("user", "ada"))
    with tracer.start_as_current_span("submitter"):
        taken = sw_agent.capture()
    detach(token)

    with taken.restore():
        assert (current_name(), baggage.get_baggage("user")) == ("submitter", "ada")
    assert taken.run(current_name) == "submitter"
    assert taken.wrap(current_name)() == "submitter"
    assert (current_name(), baggage.get_baggage("user")) == (None, None)


def test_what_is_attached_inside_an_empty_snapshot_does_not_stay():
    with sw_agent.ContextSnapshot().restore():
        attach(baggage.set_baggage("left", "behind"))
    assert baggage.get_baggage("left") is None


def test_a_wrapped_callable_is_taken_for_the_one_it_wraps(spans: RecordedSpans):
    with tracer.start_as_current_span("submitter"):
        wrapped = sw_agent.capture().wrap(current_name)
    assert wrapped == current_name
    assert hash(wrapped) == hash(current_name)
    assert repr(wrapped) == repr(current_name)
    assert wrapped.__name__ == "current_name"


def test_a_carrier_brings_the_context_through_text(spans: RecordedSpans):
    token = attach(baggage.set_baggage("user", "ada"))
    with tracer.start_as_current_span("sender") as sender:
        carrier = json.loads(json.dumps(sw_agent.ContextCarrier.inject()))
    detach(token)

    with sw_agent.ContextCarrier(carrier).extract().restore(), tracer.start_as_current_span("receiver"):
        assert baggage.get_baggage("user") == "ada"
    assert spans.named("receiver").parent.span_id == sender.get_span_context().span_id


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": "nonsense"},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {"traceparent": b"\xff\xfe", "baggage": None},
        {"traceparent": "00-" + "a" * 32 + "-" + "b" * 15},
        {"baggage": "," * 10_000},
    ],
)
def test_a_malformed_carrier_gives_an_empty_context(headers):
    snapshot = sw_agent.ContextCarrier(headers).extract()
    with snapshot.restore():
        assert not trace.get_current_span().get_span_context().is_valid


def test_a_pickled_snapshot_is_the_same_context_and_knows_when_it_was_taken(spans: RecordedSpans):
    with tracer.start_as_current_span("submitter") as span:
        taken = sw_agent.capture()
    copy = pickle.loads(pickle.dumps(taken))
    assert copy.taken_at == taken.taken_at
    assert copy.link().context.span_id == span.get_span_context().span_id
    assert not pickle.loads(pickle.dumps(sw_agent.ContextSnapshot()))


def test_without_agent_and_opentelemetry_everything_works_and_nothing_is_loaded():
    program = """
import asyncio, sys, sw_agent
@sw_agent.trace
def f(x): return x + 1
@sw_agent.trace(name="g", skip=True, fields={"a": 1})
async def g(x): return x + 2
@sw_agent.trace
def h():
    yield from (1, 2)
@sw_agent.trace
async def i():
    yield 3
async def main(): return [v async for v in i()] + [await g(1)]
sw_agent.tag("k", "v")
taken = sw_agent.capture()
sw_agent.follows_from(taken)
with taken.restore():
    results = [f(1), *h(), *asyncio.run(main()), taken.run(f, 5), taken.wrap(f)(6), sw_agent.trace_id()]
    results += [sw_agent.ContextCarrier.inject(), bool(sw_agent.ContextCarrier().extract())]
assert "opentelemetry" not in sys.modules
print(results)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[2, 1, 2, 3, 3, 6, 7, '', {}, False]"
    assert result.stderr == ""


def test_methods_of_a_class_are_traced_in_either_order_of_the_decorators(spans: RecordedSpans):
    class Shop:
        @sw_agent.trace(name="above", skip=True)
        @classmethod
        def above(cls):
            return cls.__name__

        @classmethod
        @sw_agent.trace(name="below", skip=True)
        def below(cls):
            return cls.__name__

        @sw_agent.trace(name="static", skip=True)
        @staticmethod
        def static():
            return "static"

    assert (Shop.above(), Shop().below(), Shop().static()) == ("Shop", "Shop", "static")
    assert spans.names == ["above", "below", "static"]
