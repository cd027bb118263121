"""The plugin aiohttp-client: a span for each request on the wire, with the parent that it ought to have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from aiohttp_served import Served, in_loop
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.sdk.trace import sampling
from opentelemetry.trace import SpanKind, StatusCode

from sw_agent.testing import RecordedSpans, installed
from sw_agent_plugins.aiohttp_client import plugin


def span(name: str = "program") -> Any:
    return trace.get_tracer("test").start_as_current_span(name)


def span_ids(spans: RecordedSpans) -> list[str]:
    return [f"{span.context.span_id:016x}" for span in spans if span.context and span.kind is SpanKind.CLIENT]


# Spans and what is on the wire


@in_loop
async def test_a_request_is_a_client_span_and_the_parent_of_what_the_server_does():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            for _ in range(2):  # twice on the same connection
                with span() as program:
                    async with session.get(server.url()) as response:
                        assert await response.text() == "hello"
        assert len(server.connections) == 1
    assert spans.names == ["GET", "program", "GET", "program"]
    assert server.parents == span_ids(spans)
    first, _, second, _ = spans
    assert first.kind is SpanKind.CLIENT
    assert first.status.status_code is StatusCode.UNSET
    assert second.parent is not None
    assert second.parent.span_id == program.get_span_context().span_id


@in_loop
async def test_each_hop_of_a_redirect_is_a_span_with_a_traceparent_of_its_own():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans, span():
            async with session.get(server.url("/redirect/2")):
                pass
    assert [path for path, _ in server.requests] == ["/redirect/2", "/redirect/1", "/"]
    assert server.parents == span_ids(spans)
    assert len(set(server.parents)) == 3
    hops = [hop for hop in spans if hop.name == "GET"]
    assert [(hop.attributes or {}).get("http.request.resend_count") for hop in hops] == [None, 1, 2]
    assert [(hop.attributes or {})["http.response.status_code"] for hop in hops] == [302, 302, 200]
    assert len({hop.parent.span_id for hop in hops if hop.parent}) == 1
    for before, after in pairwise(hops):
        assert (before.end_time or 0) <= (after.start_time or 0)


@in_loop
async def test_a_redirect_that_the_program_follows_itself_is_one_span_that_ends_at_once():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            response = await session.get(server.url("/redirect/1"), allow_redirects=False)
            assert spans.names == ["GET"]
            response.release()
            assert spans.names == ["GET"]


@in_loop
async def test_a_request_without_a_span_around_it_begins_a_trace():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            await session.get(server.url())
    assert spans.named("GET").parent is None
    assert server.parents == span_ids(spans)


@in_loop
async def test_the_span_is_not_current_in_the_program_so_that_siblings_stay_siblings():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans, span() as program:
            response = await session.get(server.url("/stream"))
            assert trace.get_current_span() is program
            await asyncio.gather(*(session.get(server.url()) for _ in range(3)))
            server.go.set()
            await response.read()
    assert {hop.parent and hop.parent.span_id for hop in spans if hop.name == "GET"} == {
        program.get_span_context().span_id
    }


@in_loop
async def test_the_callbacks_of_the_program_run_in_its_own_context():
    seen = []
    config = aiohttp.TraceConfig()

    async def look(*_: Any) -> None:
        seen.append(trace.get_current_span())

    for signal in (config.on_request_start, config.on_connection_create_end, config.on_request_end):
        signal.append(look)
    async with Served() as server, aiohttp.ClientSession(trace_configs=[config]) as session:
        with installed(plugin), span() as program:
            await session.get(server.url())
        assert session.trace_configs == [config]
    assert seen == [program] * 3


@pytest.mark.skipif(not hasattr(aiohttp, "DigestAuthMiddleware"), reason="middlewares came with aiohttp 3.12")
@in_loop
async def test_a_request_that_a_middleware_sends_again_is_another_hop():
    digest = aiohttp.DigestAuthMiddleware("me", "secret")
    async with Served() as server, aiohttp.ClientSession(middlewares=(digest,)) as session:
        with installed(plugin) as spans:
            async with session.get(server.url("/denied")) as response:
                assert response.status == 200
    assert server.parents == span_ids(spans)
    first, second = (dict(hop.attributes or {}) for hop in spans)
    assert (first["http.response.status_code"], second["http.response.status_code"]) == (401, 200)
    assert "http.request.resend_count" not in first
    assert second["http.request.resend_count"] == 1


@pytest.mark.skipif(not hasattr(aiohttp, "DigestAuthMiddleware"), reason="middlewares came with aiohttp 3.12")
@in_loop
async def test_what_a_middleware_sends_twice_at_once_are_two_hops():
    ended_before = []

    async def twice(request: Any, handler: Any) -> Any:
        first, second = await asyncio.gather(handler(request), handler(request))
        ended_before.append(len(spans))
        first.release()
        return second

    async with Served() as server, aiohttp.ClientSession(middlewares=(twice,)) as session:
        with installed(plugin) as spans:
            async with session.get(server.url("/stream")) as response:
                assert len(spans) == 1
                server.go.set()
                assert await response.text() == "beginend"
    assert ended_before == [0]
    assert sorted(server.parents) == sorted(span_ids(spans))
    assert len(set(server.parents)) == 2


@in_loop
async def test_a_retry_of_aiohttp_on_a_dead_connection_is_another_hop():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            await session.get(server.url("/once"))
            try:
                await session.get(server.url("/once"))
            except aiohttp.ServerDisconnectedError:  # aiohttp before 3.10 does not try again
                expected = [None, None]
            else:
                expected = [None, None, 1]
    assert server.parents == span_ids(spans)
    assert [(hop.attributes or {}).get("http.request.resend_count") for hop in spans] == expected
    died = list(spans)[1]
    assert died.status.status_code is StatusCode.ERROR
    assert (died.attributes or {})["error.type"] == "aiohttp.client_exceptions.ServerDisconnectedError"


# Headers


@in_loop
async def test_the_headers_of_the_program_are_not_changed():
    async with Served() as server:
        headers, defaults = {"X-Mine": "1"}, aiohttp.hdrs.istr("X-Default")
        async with aiohttp.ClientSession(headers={defaults: "2"}) as session:
            with installed(plugin), span():
                await session.get(server.url("/redirect/1"), headers=headers)
            assert list(session.headers) == ["X-Default"]
        assert headers == {"X-Mine": "1"}
    assert all(sent["X-Mine"] == "1" and sent["X-Default"] == "2" for _, sent in server.requests)


@in_loop
async def test_a_traceparent_that_the_program_has_copied_is_replaced_with_its_tracestate():
    copied = {"Traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "other=1"}
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans, span():
            await session.get(server.url(), headers=copied)
    ((_, sent),) = server.requests
    assert sent.getall("traceparent") == [sent["traceparent"]]
    assert server.parents == span_ids(spans)
    assert "tracestate" not in sent


@contextmanager
def propagating(name: str, value: Callable[[Any], str]) -> Iterator[None]:
    """Let the configured propagator be one that sends a header with what `value` makes of a context."""

    class Propagator:
        fields = frozenset((name,))

        def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
            carrier[name] = value(context)

    configured = propagate.get_global_textmap()
    propagate.set_global_textmap(Propagator())  # type: ignore[arg-type]
    try:
        yield
    finally:
        propagate.set_global_textmap(configured)


@in_loop
async def test_baggage_travels():
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin):
            token = context.attach(baggage.set_baggage("user", "\u00e9 1", context.Context()))
            await session.get(server.url())
            context.detach(token)
    assert server.requests[0][1]["baggage"] == "user=%C3%A9+1"


@pytest.mark.parametrize(("baggage", "sent"), [(",".join(["k=" + "v" * 97] * 100), 8099), ("k=" + "v" * 10_000, 0)])
@in_loop
async def test_as_much_baggage_is_sent_as_a_server_takes(baggage: str, sent: int):
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin), propagating("baggage", lambda _: baggage):
            assert (await session.get(server.url())).status == 200
    assert len(server.requests[0][1].get("baggage", "")) == sent


@in_loop
async def test_the_propagators_are_those_of_the_configuration():
    def shout(current: Any) -> str:
        return f"{trace.get_current_span(current).get_span_context().span_id:016x}"

    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans, propagating("x-shout", shout):
            await session.get(server.url("/redirect/1"))
    assert [sent["x-shout"] for _, sent in server.requests] == span_ids(spans)
    assert all("traceparent" not in sent for _, sent in server.requests)


# What is filtered


@pytest.mark.parametrize(
    "glob", ["127.0.0.1/health*", "127.0.0.1:*/health/live", "http://127.0.0.1:*/health/*", "*/live"]
)
@in_loop
async def test_what_is_excluded_has_no_span_and_hangs_under_the_nearest_one_that_exists(glob: str):
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin, exclude=["no.such.host/*", glob]) as spans:
            with span() as program:
                await session.get(server.url("/health/live?probe=1"))
                await session.get(server.url("/other"))
            await session.get(server.url("/health/live"))
    assert spans.names == ["GET", "program"]
    (_, excluded), (_, traced), (_, alone) = server.requests
    assert excluded["traceparent"].split("-")[2] == f"{program.get_span_context().span_id:016x}"
    assert traced["traceparent"].split("-")[2] == span_ids(spans)[0]
    assert "traceparent" not in alone


@in_loop
async def test_what_is_not_sampled_leaves_no_orphans(monkeypatch: pytest.MonkeyPatch):
    dropped = trace.NonRecordingSpan(trace.SpanContext(0xA, 0xB, is_remote=True))
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans:
            token = context.attach(trace.set_span_in_context(dropped))
            await session.get(server.url())
            context.detach(token)
            monkeypatch.setattr(plugin.tracer, "sampler", sampling.ALWAYS_OFF)
            with span() as program:
                await session.get(server.url())
            await session.get(server.url())
    assert spans.names == ["program"]
    (_, under_dropped), (_, under_program), (_, alone) = server.requests
    assert under_dropped["traceparent"] == f"00-{0xA:032x}-{0xB:016x}-00"
    assert under_program["traceparent"].split("-")[2] == f"{program.get_span_context().span_id:016x}"
    assert int(alone["traceparent"].split("-")[3], 16) & 1 == 0


@pytest.mark.parametrize(
    "key",
    [
        "suppress_instrumentation",
        "suppress_http_instrumentation",
        context._SUPPRESS_INSTRUMENTATION_KEY,
        context._SUPPRESS_HTTP_INSTRUMENTATION_KEY,
    ],
    ids=["plain", "plain http", "own", "own http"],
)
@in_loop
async def test_requests_of_an_exporter_are_left_alone(key: str):
    async with Served() as server, aiohttp.ClientSession() as session:
        with installed(plugin) as spans, span():
            token = context.attach(context.set_value(key, True))
            try:
                await session.get(server.url())
                with pytest.raises(aiohttp.InvalidURL):
                    await session.get("http:///")
            finally:
                context.detach(token)
            assert len(spans) == 0
    assert "traceparent" not in server.requests[0][1]
