"""The plugin aiohttp-server: one span a request, whoever built the application, with what the conventions say of it."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp_serving import application, ended, hello, serving, span
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from sw_agent.testing import RecordedSpans, installed
from sw_agent_plugins.aiohttp_server import plugin, recording


@pytest.fixture
def spans() -> Iterator[RecordedSpans]:
    with installed(plugin) as recorded:
        yield recorded


def asked(spans: RecordedSpans, app: Any, target: str = "/", method: str = "GET", **headers: str) -> Any:
    """Return the span of a request, the second of two that must be alike; on one connection if aiohttp keeps it."""

    async def main() -> list[Any]:
        async with serving(app) as server:
            connection = await server.connect()
            for _ in range(2):
                answer = await connection.ask(target, method, **headers)
                if answer.headers.get("connection") == "close":
                    connection = await server.connect()
            return (await ended(spans, before + 2))[before:]

    before = len(spans)
    first, second = asyncio.run(main())
    port = {"network.peer.port": 0}
    assert (first.name, {**first.attributes, **port}) == (second.name, {**second.attributes, **port})
    return second


def test_each_request_has_its_own_attributes_however_many_hosts_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sw_agent_plugins._aiohttp_exchange.MOST_REMEMBERED", 2)
    agents = "short", "long" * 200, "other"
    asked_for = [
        (f"host{number % 4}", 8000 + number % 2, agents[number % 3], query)
        for number in range(12)
        for query in ("q=1", None, None)
    ]

    async def main() -> None:
        async with serving(application(("/", hello))) as server:
            connection = await server.connect()
            for host, port, agent, query in asked_for:
                await connection.ask(f"/?{query or ''}", Host=f"{host}:{port}", **{"User-Agent": agent})
            await ended(spans, len(asked_for))

    with installed(plugin, query=True) as spans:
        asyncio.run(main())
        assert len(recording().known_attributes) <= 2
    keys = "server.address", "server.port", "user_agent.original", "url.query"
    assert [tuple((span.attributes or {}).get(key) for key in keys) for span in spans] == asked_for


@web.middleware
async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
    with span("middleware"):
        return await handler(request)  # type: ignore[no-any-return]


def quiet_subclass() -> web.Application:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # aiohttp's own, about subclasses

        class Derived(web.Application):
            pass

        return Derived()


@pytest.mark.parametrize(
    "build",
    [
        web.Application,
        lambda: web.Application(middlewares=()),
        lambda: web.Application(middlewares=[]),
        quiet_subclass,
    ],
    ids=["plain", "middlewares=()", "middlewares=[]", "a subclass"],
)
def test_any_application_has_one_span_a_request(spans: RecordedSpans, build: Any) -> None:
    app = build()
    app.router.add_get("/users/{id}", hello)
    assert asked(spans, app, "/users/7").name == "GET /users/{id}"
    assert len(app.middlewares) == 0


def test_a_middleware_runs_inside_the_span(spans: RecordedSpans) -> None:
    async def main() -> None:
        async with serving(application(("/", hello), middlewares=[middleware])) as server:
            await server.ask("/")
            await ended(spans, 2)

    asyncio.run(main())
    assert spans.parent_of("middleware") == "GET /"


def test_the_test_utilities_of_aiohttp_are_traced_too(spans: RecordedSpans) -> None:
    async def main() -> None:
        async with TestClient(TestServer(application(("/", hello)))) as client:
            assert await (await client.get("/")).text() == "hello"
            await ended(spans)

    asyncio.run(main())
    assert spans.names == ["GET /"]


def test_a_low_level_server_has_spans_without_routes(spans: RecordedSpans) -> None:
    async def main() -> Any:
        async with serving(web.Server(hello)) as server:
            assert (await server.ask("/any")).body == b"hello"
            return await ended(spans)

    (found,) = asyncio.run(main())
    assert found.name == "GET"
    assert "http.route" not in found.attributes
    assert found.attributes["http.response.status_code"] == 200


class View(web.View):
    async def get(self) -> web.Response:
        return web.Response(text="view")


def nested() -> web.Application:
    inner = application(("/items/{item}", hello))
    middle = application()
    middle.add_subapp("/v1", inner)
    outer = application()
    outer.add_subapp("/api", middle)
    return outer


def by_domain() -> web.Application:
    outer = application()
    outer.add_domain("shop.test", application(("/cart", hello)))
    return outer


@pytest.mark.parametrize(
    ("app", "target", "route"),
    [
        (lambda: application(("/plain", hello)), "/plain", "/plain"),
        (lambda: application((r"/users/{id:\d+}", hello)), "/users/7", "/users/{id}"),
        (lambda: application(("/files/{name:.*}", hello)), "/files/a/b", "/files/{name}"),
        (lambda: application(web.static("/static", Path(__file__).parent)), "/static/contract.py", "/static"),
        (lambda: application(web.view("/view", View)), "/view", "/view"),
        (lambda: application(web.route("*", "/all", hello)), "/all", "/all"),
        (nested, "/api/v1/items/3", "/api/v1/items/{item}"),
        (by_domain, "/cart", "/cart"),
    ],
    ids=["plain", "dynamic", "rest", "static", "view", "any method", "sub-applications", "domain"],
)
def test_the_name_has_the_template_of_the_route(spans: RecordedSpans, app: Any, target: str, route: str) -> None:
    found = asked(spans, app(), target)
    assert found.name == f"GET {route}"
    assert found.attributes["http.route"] == route
    assert found.attributes["url.path"] == target
    assert found.kind is SpanKind.SERVER


@pytest.mark.parametrize(("method", "status"), [("GET", 404), ("POST", 405)])
def test_what_no_route_takes_has_none(spans: RecordedSpans, method: str, status: int) -> None:
    target = "/there" if status == 405 else "/nowhere/12345"
    found = asked(spans, application(("/there", hello)), target, method)
    assert found.name == method
    assert "http.route" not in found.attributes
    assert found.attributes["http.response.status_code"] == status
    assert found.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("name", ["checkout", "GET"])
def test_a_name_that_the_program_sets_wins(spans: RecordedSpans, name: str) -> None:
    async def handler(_request: web.Request) -> web.Response:
        get_current_span().update_name(name)
        return web.Response()

    found = asked(spans, application(("/", handler)))
    assert found.name == name
    assert found.attributes["http.route"] == "/"


# Attributes

KEYS = {
    value
    for module in ("client", "error", "http", "network", "server", "url", "user_agent")
    for name, value in vars(__import__(f"opentelemetry.semconv.attributes.{module}_attributes", fromlist=["_"])).items()
    if name.isupper() and isinstance(value, str)
}


def test_the_attributes_are_those_of_the_stable_conventions(spans: RecordedSpans) -> None:
    found = asked(spans, application(("/a", hello)), "/a?token=1&b=2", User_Agent="curl/8", host="shop.test:8080")
    attributes = {key: found.attributes[key] for key in found.attributes if not key.startswith("thread.")}
    port = attributes.pop("network.peer.port")
    assert isinstance(port, int)
    assert attributes == {
        "http.request.method": "GET",
        "url.path": "/a",
        "url.scheme": "http",
        "http.route": "/a",
        "http.response.status_code": 200,
        "server.address": "shop.test",
        "server.port": 8080,
        "client.address": "127.0.0.1",
        "network.peer.address": "127.0.0.1",
        "network.protocol.version": "1.1",
        "user_agent.original": "curl/8",
    }


def test_every_key_is_a_constant_of_the_stable_conventions() -> None:
    async def failing(_request: web.Request) -> web.Response:
        raise web.HTTPServiceUnavailable

    with installed(plugin, query=True, request_headers=["X-A"], response_headers=["X-A", "Server"]) as spans:
        found = asked(spans, application(("/", failing)), "/?a=b", "PROPFIND", X_A="1", User_Agent="curl/8")
        more = asked(spans, application(("/", failing)), "/?a=b", host="a:1")
    keys = {*found.attributes, *more.attributes}
    assert {"http.request.method_original", "url.query", "error.type", "server.port"} <= keys
    templates = ("http.request.header.", "http.response.header.")
    unknown = {key for key in keys if key not in KEYS and not key.startswith((*templates, "thread."))}
    assert not unknown
    assert {"http.request.header.x-a", "http.response.header.server"} <= keys


def test_a_method_that_the_conventions_do_not_know_is_no_name(spans: RecordedSpans) -> None:
    found = asked(spans, application(web.route("*", "/pot", hello)), "/pot", "PROPFIND")
    assert found.name == "HTTP /pot"
    assert found.attributes["http.request.method"] == "_OTHER"
    assert found.attributes["http.request.method_original"] == "PROPFIND"


# Errors


async def raises_value_error(_request: web.Request) -> web.Response:
    raise ValueError("no stock")


def exception_events(found: Any) -> list[Any]:
    return [event for event in found.events if event.name == "exception"]


@pytest.fixture
def aiohttps_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.ERROR, "aiohttp.server")
    return caplog


def test_an_exception_is_a_500_and_recorded_once(spans: RecordedSpans, aiohttps_log: pytest.LogCaptureFixture) -> None:
    found = asked(spans, application(("/", raises_value_error)))
    assert found.name == "GET /"
    assert found.status.status_code is StatusCode.ERROR
    assert found.attributes["error.type"] == "ValueError"
    assert found.attributes["http.response.status_code"] == 500
    (event,) = exception_events(found)
    assert event.attributes["exception.message"] == "no stock"


def test_a_timeout_is_a_504(spans: RecordedSpans, aiohttps_log: pytest.LogCaptureFixture) -> None:
    async def handler(_request: web.Request) -> web.Response:
        raise asyncio.TimeoutError

    found = asked(spans, application(("/", handler)))
    assert found.attributes["http.response.status_code"] == 504
    assert found.attributes["error.type"].endswith("TimeoutError")
    assert found.status.status_code is StatusCode.ERROR
    assert len(exception_events(found)) == 1


@pytest.mark.parametrize(
    ("error", "status"), [(web.HTTPFound("/login"), 302), (web.HTTPNotFound(), 404), (web.HTTPGone(), 410)]
)
def test_a_response_that_is_raised_is_no_error(spans: RecordedSpans, error: Any, status: int) -> None:
    kind, arguments = type(error), ("/login",) if status == 302 else ()

    async def handler(_request: web.Request) -> web.Response:
        raise kind(*arguments)

    found = asked(spans, application(("/", handler)))
    assert found.attributes["http.response.status_code"] == status
    assert found.attributes["http.route"] == "/"
    assert found.status.status_code is StatusCode.UNSET
    assert "error.type" not in found.attributes
    assert not found.events


@pytest.mark.parametrize("is_raised", [True, False])
def test_a_response_of_5xx_is_an_error_without_exception(spans: RecordedSpans, is_raised: bool) -> None:
    async def handler(_request: web.Request) -> web.Response:
        if is_raised:
            raise web.HTTPServiceUnavailable
        return web.Response(status=503)

    found = asked(spans, application(("/", handler)))
    assert found.status.status_code is StatusCode.ERROR
    assert found.attributes["error.type"] == "503"
    assert not found.events


def test_a_handler_that_returns_nothing_is_an_error(
    spans: RecordedSpans, aiohttps_log: pytest.LogCaptureFixture
) -> None:
    async def handler(_request: web.Request) -> None:
        return None

    async def main() -> Any:
        async with serving(application(("/", handler))) as server:
            connection = await server.connect()
            connection.send_request("/", Connection="close")
            answered = await connection.reader.read()
            (found,) = await ended(spans)
            return answered, found

    answered, found = asyncio.run(main())
    assert found.status.status_code is StatusCode.ERROR
    assert found.attributes.get("http.response.status_code") == (500 if answered else None)  # none of aiohttp 3.9's


def test_an_exception_while_the_response_is_prepared_is_recorded_and_logged_by_aiohttp_without_the_agent(
    spans: RecordedSpans, aiohttps_log: pytest.LogCaptureFixture
) -> None:
    app = application(("/", hello))

    async def fail(_request: web.Request, _response: web.StreamResponse) -> None:
        raise ValueError("bad header")

    app.on_response_prepare.append(fail)

    async def main() -> Any:
        async with serving(app) as server:
            connection = await server.connect()
            connection.send_request("/")
            assert await connection.reader.read() == b""
            return await ended(spans)

    (found,) = asyncio.run(main())
    assert found.status.status_code is StatusCode.ERROR
    assert found.attributes["error.type"] == "ValueError"
    assert "http.response.status_code" not in found.attributes
    assert len(exception_events(found)) == 1
    (record,) = aiohttps_log.records
    assert_without_the_agent(record)


def assert_without_the_agent(record: logging.LogRecord) -> None:
    assert record.exc_info is not None
    traceback = record.exc_info[2]
    files = []
    while traceback is not None:
        files.append(traceback.tb_frame.f_code.co_filename)
        traceback = traceback.tb_next
    assert files
    if sys.version_info >= (3, 11):
        assert not [name for name in files if f"sw_agent{os.sep}" in name or "sw_agent_plugins" in name]


def test_aiohttp_logs_an_exception_once_and_without_the_agent(
    spans: RecordedSpans, aiohttps_log: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(application(("/", raises_value_error))) as server:
            await server.ask("/")
            await ended(spans)

    asyncio.run(main())
    (record,) = aiohttps_log.records
    assert record.getMessage().startswith("Error handling request")
    assert_without_the_agent(record)


def test_the_access_log_is_as_without_the_agent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aiohttp.access")

    async def main() -> None:
        async with serving(application(("/", hello)), access_log_format='%r %s %b "%{User-Agent}i"') as server:
            await server.ask("/?a", User_Agent="curl")

    asyncio.run(main())
    with installed(plugin):
        asyncio.run(main())
    plain, traced = (record.getMessage() for record in caplog.records)
    assert traced == plain == 'GET /?a HTTP/1.1 200 {} "curl"'.format(plain.split(" ")[4])


def test_the_representation_of_what_a_handler_gets_is_as_without_the_agent() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.task is not None
        return web.Response(text=f"{request!r} {list(request)} {request.match_info!r}")

    async def main() -> bytes:
        async with serving(application(("/{n}", handler))) as server:
            return (await server.ask("/7")).body.partition(b" handler=")[0]

    plain = asyncio.run(main())
    with installed(plugin):
        assert asyncio.run(main()).split(b" at 0x")[0] == plain.split(b" at 0x")[0]


# Options


@pytest.mark.parametrize("target", ["/health", "/static/a/b", "/health?x=1"])
def test_an_excluded_path_has_no_span_and_its_children_hang_under_the_sender(target: str) -> None:
    async def handler(_request: web.Request) -> web.Response:
        with span("child"):
            return web.Response()

    with installed(plugin, exclude=["/health", "/static/*"]) as spans:
        app = application(("/health", handler), ("/static/{rest:.*}", handler), ("/healthy", handler))

        async def main() -> None:
            async with serving(app) as server:
                connection = await server.connect()
                for _ in range(2):
                    await connection.ask(target, traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
                await connection.ask("/healthy")

        asyncio.run(main())
    first, second, _, other = spans
    assert other.name == "GET /healthy"
    for child in (first, second):
        assert child.parent.span_id == int("b" * 16, 16)
        assert child.context.trace_id == int("a" * 32, 16)


def test_headers_are_recorded_where_the_options_ask_for_them_and_secrets_are_not() -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(headers={"X-Cache": "hit", "Set-Cookie": "id=1"})

    options = {"request_headers": ["X-Id", "authorization"], "response_headers": ["x-cache", "Set-Cookie", "X-None"]}
    with installed(plugin, **options) as spans:
        found = asked(spans, application(("/", handler)), X_Id="7", Authorization="Bearer secret")
    headers = {key: value for key, value in found.attributes.items() if ".header." in key}
    assert headers == {
        "http.request.header.x-id": ("7",),
        "http.request.header.authorization": ("REDACTED",),
        "http.response.header.x-cache": ("hit",),
        "http.response.header.set-cookie": ("REDACTED",),
    }


def test_the_query_is_recorded_where_the_option_asks_for_it_without_secrets() -> None:
    with installed(plugin, query=True) as spans:
        found = asked(spans, application(("/", hello)), "/?q=a%20b&token=hunter2")
    assert found.attributes["url.query"] == "q=a%20b&token=REDACTED"


def test_without_the_option_no_value_of_the_query_is_recorded(spans: RecordedSpans) -> None:
    found = asked(spans, application(("/", hello)), "/?q=hunter2")
    assert not [value for value in found.attributes.values() if "hunter2" in str(value)]


# The library


def test_uninstalled_the_plugin_leaves_the_library_as_it_was() -> None:
    from aiohttp import web_protocol, web_response, web_server, web_ws

    owners = (
        web_protocol.RequestHandler,
        web_response.StreamResponse,
        web_server.Server,
        web_ws.WebSocketResponse,
        web,
    )
    before = [dict(vars(owner)) for owner in owners]
    with installed(plugin):
        assert [dict(vars(owner)) for owner in owners] != before
    assert [dict(vars(owner)) for owner in owners] == before


def test_the_plugin_costs_nothing_where_the_server_is_not_used() -> None:
    program = """
import sys
from sw_agent_plugins.aiohttp_server import plugin
plugin.install({})
loaded = [name for name in sys.modules if name.startswith(("opentelemetry", "aiohttp", "asyncio", "logging", "re"))]
import aiohttp.web
print([name for name in loaded if name != "re" and not name.startswith("re.")], "opentelemetry" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[] False\n", "")


def test_the_first_request_finds_all_imported() -> None:
    program = """
import asyncio, sys
from sw_agent_plugins.aiohttp_server import plugin
plugin.install({})
from aiohttp import web
async def handler(request): return web.Response()
async def main():
    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    before = set(sys.modules)
    reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
    writer.write(b"GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
    await reader.read()
    writer.close()
    await runner.cleanup()
    print([name for name in sys.modules if name not in before and name.startswith("opentelemetry")])
asyncio.run(main())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[]\n", "")
