"""A plugin of pytest's: run all tests inside a span of OpenTelemetry's SDK, to see what that alone does to them."""

from opentelemetry.context import attach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import set_span_in_context

attach(set_span_in_context(TracerProvider(shutdown_on_exit=False).get_tracer("tests").start_span("all tests")))
