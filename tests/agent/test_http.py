"""What plugins for HTTP share: nothing secret in an attribute, and few values in a name."""

from __future__ import annotations

import asyncio
import concurrent.futures

import pytest
from multidict import CIMultiDict
from opentelemetry import context, trace
from opentelemetry.trace import StatusCode

from sw_agent import http
from sw_agent.testing import recorded_spans


def test_an_unknown_method_is_no_span_name():
    assert http.span_name("GET", "/users/{id}") == "GET /users/{id}"
    assert http.span_name("BREW") == "HTTP"
    assert http.method_attributes("BREW") == {
        "http.request.method": "_OTHER",
        "http.request.method_original": "BREW",
    }


@pytest.mark.parametrize(
    "name", ["Authorization", "Set-Cookie", "X-API-Key", "x_auth_token", "AWSAccessKeyId", "sig", "X-Goog-Signature"]
)
def test_what_holds_a_secret_is_redacted_as_header_and_as_parameter(name: str):
    assert http.redacted_query(f"a=1&{name}=hunter2&b") == f"a=1&{name}=REDACTED&b"
    attributes_of = http.captured_headers("request", [name])
    assert attributes_of is not None
    assert attributes_of(CIMultiDict({name: "hunter2"})) == {f"http.request.header.{name.lower()}": ("REDACTED",)}


@pytest.mark.parametrize("name", ["Accept", "X-Request-Id", "Keep-Alive", "design"])
def test_what_holds_none_is_recorded_with_all_its_values(name: str):
    assert http.redacted_query(f"{name}=a%20b") == f"{name}=a%20b"
    attributes_of = http.captured_headers("response", [name])
    assert attributes_of is not None
    assert attributes_of(CIMultiDict([(name, "a"), (name, "b")])) == {
        f"http.response.header.{name.lower()}": ("a", "b")
    }


def test_a_header_that_is_missing_gives_no_attribute():
    attributes_of = http.captured_headers("request", ["Accept"])
    assert attributes_of is not None
    assert attributes_of(CIMultiDict()) == {}
    assert http.captured_headers("request", []) is None


@pytest.mark.parametrize(
    ("url", "plain", "with_query"),
    [
        ("http://a/b", "http://a/b", "http://a/b"),
        ("http://a:1/b?x=1&token=2#c", "http://a:1/b", "http://a:1/b?x=1&token=REDACTED"),
        ("http://me:pass@a/b@c", "http://REDACTED:REDACTED@a/b@c", "http://REDACTED:REDACTED@a/b@c"),
        ("http://me@a?x=1", "http://REDACTED:REDACTED@a", "http://REDACTED:REDACTED@a?x=1"),
        ("", "", ""),
    ],
)
def test_a_url_tells_no_credentials_no_fragment_and_its_query_on_demand_only(url: str, plain: str, with_query: str):
    assert http.redacted_url(url, False) == plain
    assert http.redacted_url(url, True) == with_query


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "kind", "description"),
    [
        (ValueError("no"), "ValueError", "ValueError: no"),
        (ValueError("http://me:secret@host"), "ValueError", "ValueError"),
        (Wordless(), f"{Wordless.__module__}.Wordless", "Wordless: <its text raises>"),
    ],
)
def test_a_failure_is_described_without_what_may_be_secret(error: Exception, kind: str, description: str):
    with recorded_spans() as spans:
        span = trace.get_tracer("test").start_span("request")
        http.mark_request_failed(span, error)
        http.mark_request_failed(span, KeyError())  # only the first one counts
        span.end()
    failed = spans.named("request")
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, description)
    assert dict(failed.attributes or {}) == {"error.type": kind}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), concurrent.futures.CancelledError()])
def test_a_cancellation_is_no_failure(error: BaseException):
    with recorded_spans() as spans:
        span = trace.get_tracer("test").start_span("request")
        http.mark_request_failed(span, error)
        span.end()
    assert spans.named("request").status.status_code is StatusCode.UNSET


def test_what_a_context_suppresses_is_suppressed_in_it_only():
    with recorded_spans():
        assert not http.is_suppressed()
        token = context.attach(context.set_value(context._SUPPRESS_HTTP_INSTRUMENTATION_KEY, True))
        assert http.is_suppressed()
        context.detach(token)
        assert not http.is_suppressed()


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("shop.test", ("shop.test", None)),
        ("shop.test:8080", ("shop.test", 8080)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:443", ("::1", 443)),
        ("[::1]", ("::1", None)),
        ("shop.test:", ("", None)),
        ("shop.test:99999", ("", None)),
        ("shop.test:\u0663", ("", None)),
        ("::1", ("", None)),
        ("a/b", ("", None)),
        ("caf\udce9", ("", None)),
        ("x" * 256, ("", None)),
    ],
)
def test_a_host_that_is_none_is_not_recorded(header: str, host: tuple[str, int | None]):
    assert http.host_and_port(header) == host


@pytest.mark.parametrize(("came", "is_shown"), [("plain", "plain"), ("café", "café"), ("caf\udce9", "caf?")])
def test_what_nothing_can_encode_is_not_recorded(came: str, is_shown: str):
    assert http.printable(came) == is_shown
