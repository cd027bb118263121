"""Reading headers the short way gives what OpenTelemetry's propagators give."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sw_agent.carrier import Reader

BOTH = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

hexadecimal = st.text("0123456789abcdefABC_ ", min_size=15, max_size=33)
parts = st.tuples(
    st.sampled_from(["00", "01", "cc", "ff", "0"]),
    st.one_of(st.just("4bf92f3577b34da6a3ce929d0e0e4736"), st.just("0" * 32), hexadecimal),
    st.one_of(st.just("00f067aa0ba902b7"), st.just("0" * 16), hexadecimal),
    st.one_of(st.integers(0, 255).map("{:02x}".format), st.sampled_from(["", "1", "zz", "+1", "011"])),
)
traceparents = st.one_of(parts.map("-".join), parts.map(lambda some: "-".join((*some, "more"))), st.text(max_size=60))


def what_is_in(context: Context | None) -> tuple[object, object]:
    return trace.get_current_span(context).get_span_context(), baggage.get_all(context or Context())


@given(traceparents)
@example(PARENT)
@example(f" {PARENT}\t")
@example(f"{PARENT}\n")
@example("00-" + "٣" * 32 + "-00f067aa0ba902b7-01")  # digits, but no ASCII
@pytest.mark.parametrize("propagator", [BOTH, TraceContextTextMapPropagator()])
def test_a_parent_that_comes_alone_is_read_as_the_propagator_reads_it(
    propagator: TextMapPropagator, traceparent: str
) -> None:
    headers = {"traceparent": traceparent}
    assert what_is_in(Reader(propagator).context_of(headers)) == what_is_in(propagator.extract(headers, Context()))


@pytest.mark.parametrize("beside", [{"tracestate": "a=b"}, {"baggage": "user=ada"}])
def test_what_comes_beside_a_parent_is_read_too(beside: dict[str, str]) -> None:
    headers = {"traceparent": PARENT, **beside}
    assert what_is_in(Reader(BOTH).context_of(headers)) == what_is_in(BOTH.extract(headers, Context()))


def test_a_propagator_of_the_programs_own_is_asked_itself() -> None:
    class Deaf(TraceContextTextMapPropagator):
        def extract(self, carrier: object, context: Context | None = None, getter: object = None) -> Context:
            return Context()

    for propagator in (Deaf(), CompositePropagator([Deaf()]), W3CBaggagePropagator()):
        assert what_is_in(Reader(propagator).context_of({"traceparent": PARENT})) == what_is_in(None)
