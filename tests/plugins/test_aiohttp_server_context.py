"""The plugin aiohttp-server: whose child a request is, what is current in its handler, and what it leaves behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from aiohttp import web
from aiohttp_serving import application, current, ended, hello, serving, span
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, ParentBased, Sampler, SamplingResult

from sw_agent.testing import RecordedSpans, installed
from sw_agent_plugins.aiohttp_server import plugin

TRACE_ID, SPAN_ID = "a" * 32, "b" * 16
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


@pytest.fixture
def spans() -> Iterator[RecordedSpans]:
    with installed(plugin) as recorded:
        yield recorded


def is_child_of_the_sender(found: Any) -> bool:
    return found.parent is not None and (found.context.trace_id, found.parent.span_id) == (
        int(TRACE_ID, 16),
        int(SPAN_ID, 16),
    )


async def seen(_request: web.BaseRequest) -> web.Response:
    """Answer with what is current."""
    return web.json_response({"span": current(), "baggage": dict(baggage.get_all())})


def test_the_parent_and_the_baggage_come_from_the_headers_of_each_request(spans: RecordedSpans) -> None:
    async def main() -> list[bytes]:
        async with serving(application(("/", seen))) as server:
            connection = await server.connect()
            headers = {"traceparent": PARENT, "tracestate": "v=1", "baggage": "tenant=acme"}
            answers = [await connection.ask("/", **headers), await connection.ask("/"), await connection.ask("/")]
            await ended(spans, 3)
            return [answer.body for answer in answers]

    first, *others = asyncio.run(main())
    child, *roots = spans
    assert is_child_of_the_sender(child)
    assert child.context.trace_state == {"v": "1"}
    assert b'"baggage": {"tenant": "acme"}' in first
    for root, body in zip(roots, others, strict=True):
        assert root.parent is None
        assert f'{{"span": {root.context.span_id}, "baggage": {{}}}}'.encode() == body
    assert len({root.context.trace_id for root in spans}) == 3


def test_several_headers_of_one_name_are_one_list(spans: RecordedSpans) -> None:
    async def main() -> bytes:
        async with serving(application(("/", seen))) as server:
            connection = await server.connect()
            connection.send(b"GET / HTTP/1.1\r\nHost: a\r\nbaggage: a=1\r\nBaggage: b=2\r\n\r\n")
            answer = await connection.answer()
            await ended(spans)
            return answer.body

    assert b'{"a": "1", "b": "2"}' in asyncio.run(main())


def test_what_is_current_where_the_server_is_started_is_no_parent(spans: RecordedSpans) -> None:
    async def main() -> None:
        with span("ambient"):
            async with serving(application(("/", hello))) as server:
                connection = await server.connect()
                await connection.ask("/")
                await connection.ask("/")
                await ended(spans, 2)

    asyncio.run(main())
    assert [found.parent for found in spans if found.name == "GET /"] == [None, None]


async def leaves_a_context(_request: web.Request) -> web.Response:
    context.attach(baggage.set_baggage("left", "behind"))
    return web.Response()


async def leaves_a_span(_request: web.Request) -> web.Response:
    context.attach(trace.set_span_in_context(trace.get_tracer("program").start_span("left")))
    return web.Response()


async def raises(_request: web.Request) -> web.Response:
    context.attach(baggage.set_baggage("left", "behind"))
    raise web.HTTPNotFound


async def cancels_itself(_request: web.Request) -> web.Response:
    context.attach(baggage.set_baggage("left", "behind"))
    task = asyncio.create_task(asyncio.sleep(30))
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return web.Response()
    raise AssertionError


@pytest.mark.parametrize("handler", [leaves_a_context, leaves_a_span, raises, cancels_itself])
@pytest.mark.parametrize("is_pipelined", [False, True])
def test_nothing_is_left_on_a_connection(spans: RecordedSpans, handler: Any, is_pipelined: bool) -> None:
    async def main() -> list[bytes]:
        async with serving(application(("/leave", handler), ("/see", seen))) as server:
            connection = await server.connect()
            targets = ["/leave", "/see", "/leave", "/see"]
            if is_pipelined:
                for target in targets:
                    connection.send_request(target)
                answers = [await connection.answer() for _ in targets]
            else:
                answers = [await connection.ask(target) for target in targets]
            await ended(spans, 4)
            return [answers[1].body, answers[3].body]

    bodies = asyncio.run(main())
    see = [found for found in spans if found.name == "GET /see"]
    assert [found.parent for found in see] == [None, None]
    for found, body in zip(see, bodies, strict=True):
        assert f'{{"span": {found.context.span_id}, "baggage": {{}}}}'.encode() == body


def test_concurrent_requests_have_their_own_contexts(spans: RecordedSpans) -> None:
    async def handler(request: web.Request) -> web.Response:
        await arrived.wait()
        with span(f"child of {request.match_info['n']}"):
            await asyncio.sleep(0)
        return web.Response()

    async def main() -> None:
        nonlocal arrived
        arrived = asyncio.Barrier(10) if hasattr(asyncio, "Barrier") else Meeting(10)
        async with serving(application(("/{n}", handler))) as server:
            await asyncio.gather(
                *(server.ask(f"/{n}", traceparent=f"00-{n + 1:032x}-{n + 1:016x}-01") for n in range(10))
            )
            await ended(spans, 20)

    arrived: Any = None
    asyncio.run(main())
    for n in range(10):
        child = spans.named(f"child of {n}")
        parent = next(found for found in spans if found.context.span_id == child.parent.span_id)
        assert parent.attributes["url.path"] == f"/{n}"
        assert parent.parent.span_id == n + 1


class Meeting:
    """`asyncio.Barrier`, which Python 3.10 has not."""

    def __init__(self, parties: int) -> None:
        self._missing = parties
        self._all = asyncio.Event()

    async def wait(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._all.set()
        await self._all.wait()


def test_background_work_of_a_handler_is_a_child_also_when_the_request_is_over(spans: RecordedSpans) -> None:
    async def background() -> None:
        await answered.wait()
        with span("background"):
            pass

    async def in_task(_request: web.Request) -> web.Response:
        tasks.append(asyncio.create_task(background()))
        with span("beside"):
            return web.Response()

    async def main() -> None:
        nonlocal answered
        answered = asyncio.Event()
        async with serving(application(("/", in_task))) as server:
            connection = await server.connect()
            await connection.ask("/")
            await ended(spans, 2)
            await connection.ask("/")
            await ended(spans, 4)
            answered.set()
            await asyncio.gather(*tasks)

    tasks: list[Any] = []
    answered: Any = None
    asyncio.run(main())
    requests = [found.context.span_id for found in spans if found.name == "GET /"]
    assert [found.parent.span_id for found in spans if found.name == "background"] == requests


def test_work_in_an_executor_is_a_child(spans: RecordedSpans) -> None:
    from sw_agent_plugins import asyncio as asyncio_plugin
    from sw_agent_plugins import concurrent_futures

    async def handler(_request: web.Request) -> web.Response:
        with ThreadPoolExecutor(1) as pool:
            return web.Response(text=str(await asyncio.get_running_loop().run_in_executor(pool, current)))

    async def main() -> bytes:
        async with serving(application(("/", handler))) as server:
            answer = await server.ask("/")
            await ended(spans)
            return answer.body

    with installed(concurrent_futures.plugin), installed(asyncio_plugin.plugin):
        assert asyncio.run(main()) == str(spans.named("GET /").context.span_id).encode()  # type: ignore[union-attr]


# Filters and samplers


class NoServers(Sampler):
    """Drops what has no local parent: the spans of servers."""

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *args: Any, **kwargs: Any) -> Any:
        dropped = name.startswith("GET")
        return SamplingResult(Decision.DROP if dropped else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "NoServers"


def with_sampler(monkeypatch: pytest.MonkeyPatch, sampler: Sampler, app: web.Application, **headers: str) -> Any:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)

    async def main() -> None:
        async with serving(app) as server:
            connection = await server.connect()
            await connection.ask("/", **headers)
            await connection.ask("/", **headers)

    with installed(plugin) as spans:
        asyncio.run(main())
    return list(spans)


def test_the_children_of_a_dropped_request_hang_under_its_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(_request: web.Request) -> web.Response:
        with span("child"):
            return web.Response()

    children = with_sampler(monkeypatch, NoServers(), application(("/", handler)), traceparent=PARENT)
    assert [child.name for child in children] == ["child", "child"]
    assert all(is_child_of_the_sender(child) for child in children)


def test_a_request_that_is_not_sampled_has_no_spans_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(_request: web.Request) -> web.Response:
        with span("child"):
            return web.Response()

    assert with_sampler(monkeypatch, ParentBased(ALWAYS_OFF), application(("/", handler))) == []


def test_the_sender_decides_that_nothing_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    from sw_agent._sampling import TraceSampler

    async def handler(_request: web.Request) -> web.Response:
        with span("child"):
            return web.Response()

    headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"}
    assert with_sampler(monkeypatch, TraceSampler(1.0, 0), application(("/", handler)), **headers) == []


class OneHeader(TextMapPropagator):
    """A propagator of somebody else's."""

    def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
        value = carrier.get("x-trace")
        if value == "bad":
            raise ValueError(value)
        sent = trace.SpanContext(int(value or "0", 16), 5, is_remote=True, trace_flags=trace.TraceFlags(1))
        return trace.set_span_in_context(trace.NonRecordingSpan(sent), context)

    def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
        pass

    @property
    def fields(self) -> set[str]:
        return {"x-trace"}


def test_the_propagator_is_the_programs(spans: RecordedSpans, agent_errors: list[logging.LogRecord]) -> None:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(OneHeader())

    async def main() -> None:
        async with serving(application(("/", hello))) as server:
            connection = await server.connect()
            assert (await connection.ask("/", X_Trace="abc", traceparent=PARENT)).status == 200
            assert (await connection.ask("/", X_Trace="bad", traceparent=PARENT)).status == 200
            await ended(spans, 2)

    try:
        asyncio.run(main())
    finally:
        propagate.set_global_textmap(before)
    theirs, root = spans
    assert theirs.context.trace_id == 0xABC  # type: ignore[union-attr]
    assert root.parent is None
    assert len(agent_errors) == 1
    agent_errors.clear()


# Bad input


def any_route() -> web.Application:
    return application(web.route("*", "/{rest:.*}", seen))


def asked_raw(spans: RecordedSpans, head: bytes, **options: Any) -> tuple[int, Any]:
    async def main() -> tuple[int, Any]:
        async with serving(any_route(), **options) as server:
            connection = await server.connect()
            connection.send(head + b"\r\n\r\n")
            status, _ = await connection.head()
            (found,) = await ended(spans)
            return status, found

    return asyncio.run(main())


def encodable(found: Any) -> bool:
    texts = [found.name, *(value for value in found.attributes.values() if isinstance(value, str))]
    return all(text.encode("utf-8") for text in texts)


HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    "traceparent",
    [b"", b"00", b"00-" + b"0" * 32 + b"-" + b"b" * 16 + b"-01", b"\xff\xfe", b"a" * 5000, PARENT.encode() + b"-more"],
    ids=["empty", "short", "zeros", "no text", "long", "more"],
)
def test_a_malformed_traceparent_is_none(
    spans: RecordedSpans, traceparent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    status, found = asked_raw(spans, HEAD + b"traceparent: " + traceparent)
    assert (status, found.parent) == (200, None)
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_of_two_traceparents_none_is_believed(spans: RecordedSpans) -> None:
    line = b"traceparent: " + PARENT.encode()
    assert asked_raw(spans, HEAD + line + b"\r\n" + line)[1].parent is None


@pytest.mark.parametrize("state", [b"\xff=1", b"===", b"a=1," * 2000, b"a=" + b"x" * 4000])
def test_a_malformed_tracestate_leaves_the_parent(
    spans: RecordedSpans, state: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    head = HEAD + b"traceparent: " + PARENT.encode() + b"\r\ntracestate: " + state
    status, found = asked_raw(spans, head, max_field_size=65536)
    assert status == 200
    assert is_child_of_the_sender(found)
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


@pytest.mark.parametrize(
    ("sent", "valid"),
    [
        (b"a=1,b\xffad=2,c=3,\xff", {"a": "1", "c": "3"}),
        (b"a=1,nonsense,=,b c=1,d=4", {"a": "1", "d": "4"}),
        (b"a=1," + b"filler=" + b"x" * 65536, {"a": "1"}),
        (b",".join(b"k%d=%d" % (n, n) for n in range(500)), {f"k{n}": str(n) for n in range(180)}),
    ],
    ids=["no text", "no pairs", "64 KiB", "500 members"],
)
def test_of_malformed_baggage_the_valid_part_is_taken(
    spans: RecordedSpans, sent: bytes, valid: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(_request: web.Request) -> web.Response:
        taken.append(dict(baggage.get_all()))
        return web.Response()

    async def main() -> None:
        async with serving(application(("/", handler)), max_field_size=1 << 20, max_line_size=1 << 20) as server:
            connection = await server.connect()
            connection.send(HEAD + b"traceparent: " + PARENT.encode() + b"\r\nbaggage: " + sent + b"\r\n\r\n")
            assert (await connection.answer()).status == 200
            await ended(spans)

    taken: list[dict[str, Any]] = []
    asyncio.run(main())
    assert taken == [valid]
    assert is_child_of_the_sender(next(iter(spans)))
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /caf\xe9 HTTP/1.1\r\nHost: a",
        b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: \xff\xfe\r\nX-A: \xff",
        b"GET /%ff%fe?a=%ff HTTP/1.1\r\nHost: a",
        b"GET / HTTP/1.1\r\nHost: " + b"x" * 4000,
        b"GET / HTTP/1.1\r\nHost: \xff:99999999",
        b"GET / HTTP/1.1\r\nHost: a:b:c/d?e",
        b"GET / HTTP/1.1\r\nHost: ",
        b"GET http://other.test:81/path?x=1 HTTP/1.1\r\nHost: a",
        b"GET / HTTP/1.0",
        b"OPTIONS * HTTP/1.1\r\nHost: a",
        b"PROPFIND /x HTTP/1.1\r\nHost: a",
        b"GET //double//slash HTTP/1.1\r\nHost: a",
    ],
)
def test_whatever_is_asked_is_answered_as_without_the_agent_and_can_be_exported(head: bytes) -> None:
    async def main() -> bytes:
        async with serving(any_route()) as server:
            connection = await server.connect()
            connection.send(head + b"\r\nConnection: close\r\n\r\n")
            return (await connection.reader.readuntil(b"\r\n"))[:12]

    plain = asyncio.run(main())
    with installed(plugin, query=True, request_headers=["X-A"]) as spans:
        assert asyncio.run(main()) == plain
        assert all(encodable(found) for found in spans)
        assert len(spans) == (not plain.endswith(b"400"))  # the parser's own answer has no span


def test_an_absolute_target_has_its_path(spans: RecordedSpans) -> None:
    _, found = asked_raw(spans, b"GET http://other.test:81/path?x=1 HTTP/1.1\r\nHost: a.test")
    assert found.attributes["url.path"] == "/path"
    assert "url.query" not in found.attributes


def test_connect_is_answered_as_without_the_agent() -> None:
    async def main() -> bytes:
        async with serving(any_route()) as server:
            connection = await server.connect()
            connection.send(b"CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n")
            return await connection.reader.read(12)

    plain = asyncio.run(main())
    with installed(plugin) as spans:
        assert asyncio.run(main()) == plain
    assert [found.name for found in spans if encodable(found)] in ([], ["CONNECT"], ["CONNECT /{rest}"])


def test_what_is_no_request_has_no_span(spans: RecordedSpans) -> None:
    async def main() -> None:
        async with serving(any_route()) as server:
            for data in (b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"):
                connection = await server.connect()
                connection.send(data)
                assert (await connection.head())[0] == 400

    asyncio.run(main())
    assert len(spans) == 0
