"""OpenTelemetry's own instrumentations, switched on by the program: no span twice, and the context arrives once."""

from __future__ import annotations

import logging
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp_served import Served, in_loop
from aiohttp_serving import application, ended, hello, serving
from celery import Celery
from celery._state import get_current_app
from celery.contrib.testing.worker import start_worker
from kombu.exceptions import OperationalError
from opentelemetry import context, trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor, create_trace_config
from opentelemetry.instrumentation.asyncio import AsyncioInstrumentor
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.logging import LoggingInstrumentor
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
from opentelemetry.trace import SpanKind

import sw_agent_plugins.aiohttp_client
import sw_agent_plugins.aiohttp_server
import sw_agent_plugins.asyncio
import sw_agent_plugins.celery
import sw_agent_plugins.concurrent_futures
import sw_agent_plugins.logging
import sw_agent_plugins.threading
from sw_agent import _log
from sw_agent.plugin import Plugin
from sw_agent.testing import RecordedSpans, installed

CLIENT = sw_agent_plugins.aiohttp_client.plugin
SERVER = sw_agent_plugins.aiohttp_server.plugin
CELERY = sw_agent_plugins.celery.plugin
THEIRS = "opentelemetry.instrumentation."

with warnings.catch_warnings():  # it inherits from `web.Application`
    warnings.simplefilter("ignore", DeprecationWarning)
    from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def span(name: str = "program") -> Any:
    return trace.get_tracer("test").start_as_current_span(name)


def current() -> str:
    return str(getattr(trace.get_current_span(), "name", ""))


@contextmanager
def instrumented(instrumentor: Any, **options: Any) -> Iterator[None]:
    instrumentor.instrument(**options)
    try:
        yield
    finally:
        instrumentor.uninstrument()


def makers(spans: RecordedSpans, kind: SpanKind) -> list[str]:
    """Return who has made the spans of that kind: the scope of each without what is the same in all."""
    scopes = [found.instrumentation_scope for found in spans if found.kind is kind]
    return [scope.name.removeprefix(THEIRS) for scope in scopes if scope is not None]


@contextmanager
def heard() -> Iterator[list[str]]:
    """Listen to what the agent says."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(f"{record.levelname}: {record.getMessage()}")  # type: ignore[method-assign]
    _log.logger().addHandler(handler)
    _log.configure("INFO")
    try:
        yield said
    finally:
        _log.logger().removeHandler(handler)
        _log.configure("WARNING")


# aiohttp's client


async def get(session: aiohttp.ClientSession, server: Served) -> None:
    with span():
        async with session.get(server.url()) as response:
            await response.read()
            assert current() == "program"


@in_loop
async def test_a_request_has_the_span_and_the_header_of_opentelemetrys_instrumentation() -> None:
    async with Served() as server:
        with installed(CLIENT) as spans, instrumented(AioHttpClientInstrumentor()):
            async with aiohttp.ClientSession() as session:
                for _ in range(2):
                    await get(session, server)
    assert makers(spans, SpanKind.CLIENT) == ["aiohttp_client"] * 2
    ids = [f"{found.context.span_id:016x}" for found in spans if found.kind is SpanKind.CLIENT and found.context]
    assert server.parents == ids
    assert all(len(headers.getall("traceparent")) == 1 for _, headers in server.requests)


@in_loop
async def test_a_session_is_traced_as_it_was_made_whatever_is_switched_on_or_off_later() -> None:
    """OpenTelemetry's instrumentation traces the sessions that are made while it is switched on, and those for good."""
    async with Served() as server, aiohttp.ClientSession() as early:
        with installed(CLIENT) as spans:
            with instrumented(AioHttpClientInstrumentor()):
                await get(early, server)
                theirs = aiohttp.ClientSession()
            async with theirs, aiohttp.ClientSession() as late:
                await get(late, server)
                await get(theirs, server)
            async with aiohttp.ClientSession(trace_configs=[create_trace_config()]) as by_hand:
                await get(by_hand, server)
    assert makers(spans, SpanKind.CLIENT) == [
        "sw_agent.aiohttp-client",
        "sw_agent.aiohttp-client",
        "aiohttp_client",
        "aiohttp_client",
    ]
    assert len(set(server.parents)) == 4


# aiohttp's server


@in_loop
async def test_a_request_that_is_served_has_one_span() -> None:
    """That of OpenTelemetry's instrumentation in an application made while it is switched on, else the agent's."""
    early = application(("/", hello))
    with installed(SERVER) as spans:
        with instrumented(AioHttpServerInstrumentor()):
            theirs = application(("/", hello))
        late = application(("/", hello))
        parent = f"00-{'a' * 32}-{'b' * 16}-01"
        for count, app in enumerate((early, theirs, late), 1):
            async with serving(app) as server:
                connection = await server.connect()
                assert (await connection.ask("/", traceparent=parent)).body == b"hello"
                assert (await connection.ask("/")).body == b"hello"
                await ended(spans, 2 * count)
    ours = "sw_agent.aiohttp-server"
    assert makers(spans, SpanKind.SERVER) == [ours, ours, "aiohttp_server", "aiohttp_server", ours, ours]
    parents = [found.parent and f"{found.parent.span_id:016x}" for found in spans]
    assert parents == ["b" * 16, None] * 3


@in_loop
async def test_the_context_of_a_request_is_there_also_around_opentelemetrys_middleware() -> None:
    seen = []

    @web.middleware
    async def outermost(request: web.Request, handler: Callable[[web.Request], Any]) -> Any:
        seen.append(trace.get_current_span().get_span_context().span_id)
        return await handler(request)

    with installed(SERVER), instrumented(AioHttpServerInstrumentor()):
        app = application(("/", hello))
        app.middlewares.insert(0, outermost)
        async with serving(app) as server:
            connection = await server.connect()
            await connection.ask("/", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
            await connection.ask("/")
    assert seen == [0xBBBBBBBBBBBBBBBB, 0]


# Celery


@pytest.fixture
def app() -> Celery:
    made = Celery("proj", broker="memory://", backend="cache+memory://", set_as_current=False)
    made.conf.update(
        task_default_queue=f"sw-test-{uuid.uuid4().hex}", broker_transport_options={"polling_interval": 0.01}
    )

    @made.task(name="look", shared=False, bind=True)
    def look(self: Any) -> str:
        return current()

    @made.task(name="leave", shared=False)
    def leave() -> None:
        context.attach(trace.set_span_in_context(trace.INVALID_SPAN))

    @made.task(name="again", shared=False, bind=True, max_retries=1)
    def again(self: Any) -> None:
        if self.request.retries == 0:
            raise self.retry(countdown=0)

    return made


@contextmanager
def working(app: Celery) -> Iterator[None]:
    with start_worker(app, perform_ping_check=False, shutdown_timeout=30):
        yield


def test_a_task_has_the_two_spans_of_opentelemetrys_instrumentation(app: Celery) -> None:
    with installed(CELERY) as spans, ExitStack() as stack:
        stack.enter_context(instrumented(CeleryInstrumentor()))
        stack.enter_context(working(app))
        for _ in range(2):  # in the same worker
            with span():
                result = app.tasks["look"].delay()
                assert current() == "program"
            assert result.get(timeout=30) == "run/look"
            app.tasks["leave"].delay().get(timeout=30)
        assert app.tasks["look"].apply().get() == "run/look"
        assert current() == ""
    assert makers(spans, SpanKind.PRODUCER) == ["celery"] * 4
    assert makers(spans, SpanKind.CONSUMER) == ["celery"] * 5
    assert not [found for found in spans if found.name.startswith(("process", "publish"))]
    published = {found.context.span_id for found in spans if found.name == "apply_async/look" and found.context}
    ran = [found.parent and found.parent.span_id for found in spans if found.name == "run/look"]
    assert set(ran) == {*published, None}


def test_what_opentelemetrys_instrumentation_leaves_current_does_not_stay(app: Celery) -> None:
    """As it does with a message that no broker takes."""
    app.conf.update(broker_url="amqp://127.0.0.1:1")
    before = get_current_app()
    app.set_current()
    try:
        with installed(CELERY), instrumented(CeleryInstrumentor()), span():
            with pytest.raises(OperationalError):
                app.tasks["look"].apply_async(retry=False)
            assert current() == "program"
            delattr(app.tasks["look"], "__otel_task_span")  # which would be left when the task is collected
    finally:
        before.set_current()


def test_a_retry_under_opentelemetrys_instrumentation_keeps_its_trace(app: Celery) -> None:
    with installed(CELERY) as spans, instrumented(CeleryInstrumentor()), working(app), span():
        app.tasks["again"].delay().get(timeout=30)
    assert makers(spans, SpanKind.CONSUMER) == ["celery"] * 2
    assert len({found.context.trace_id for found in spans if found.context}) == 1


def test_tasks_have_the_agents_spans_again_when_opentelemetrys_instrumentation_is_switched_off(app: Celery) -> None:
    with installed(CELERY) as spans, working(app):
        with instrumented(CeleryInstrumentor()):
            app.tasks["look"].delay().get(timeout=30)
        with span():
            assert app.tasks["look"].delay().get(timeout=30) == "process look"
    assert makers(spans, SpanKind.PRODUCER) == ["celery", "sw_agent.celery"]
    assert makers(spans, SpanKind.CONSUMER) == ["celery", "sw_agent.celery"]


def test_it_is_said_once_which_plugin_makes_no_spans(app: Celery) -> None:
    CELERY._left_to.clear()
    with heard() as said, installed(CELERY), instrumented(CeleryInstrumentor()):
        for _ in range(3):
            app.send_task("nobody's")
    assert said == ["INFO: plugin celery makes no spans beside those of opentelemetry.instrumentation.celery"]


# Those that make no spans


@contextmanager
def all_installed(*plugins: Plugin) -> Iterator[None]:
    with ExitStack() as stack:
        for plugin in plugins:
            stack.enter_context(installed(plugin))
        yield


class Own(threading.Thread):
    def run(self) -> None:
        self.found = current()


@pytest.fixture
def timers() -> Iterator[None]:
    """Take away what uninstrumenting leaves on `Timer`: a `start` of its own, which no later plugin would reach."""
    yield
    if "start" in vars(threading.Timer):
        del threading.Timer.start


@pytest.mark.usefixtures("timers")
def test_threads_and_pools_have_the_context_of_their_submitter_and_keep_none_of_it() -> None:
    plugins = sw_agent_plugins.threading.plugin, sw_agent_plugins.concurrent_futures.plugin

    def submit_all(pool: ThreadPoolExecutor) -> list[str]:
        thread = Own()
        thread.start()
        thread.join()
        found = [thread.found]
        timer = threading.Timer(0, lambda: found.append(current()))
        timer.start()
        timer.join()
        return [*found, pool.submit(current).result()]

    def check(pool: ThreadPoolExecutor) -> None:
        for name in ("one", "two"):
            with span(name):
                assert submit_all(pool) == [name] * 3
                assert current() == name
        assert submit_all(pool) == [""] * 3

    original = ThreadPoolExecutor.submit, threading.Thread.start, threading.Thread.run
    with ThreadPoolExecutor(1) as before, ThreadPoolExecutor(1) as since, all_installed(*plugins):
        check(before)
        with instrumented(ThreadingInstrumentor()):
            check(before)
            check(since)
        check(since)
    assert (ThreadPoolExecutor.submit, threading.Thread.start, threading.Thread.run) == original


@in_loop
async def test_tasks_and_executors_have_the_context_of_their_submitter() -> None:
    import asyncio

    async def look() -> str:
        await asyncio.sleep(0)
        return current()

    plugins = sw_agent_plugins.asyncio.plugin, sw_agent_plugins.concurrent_futures.plugin
    with all_installed(*plugins), instrumented(AsyncioInstrumentor()):
        for name in ("one", "two", ""):
            with span(name) if name else ExitStack():
                found = await asyncio.gather(asyncio.create_task(look()), look(), asyncio.to_thread(current))
                assert found == [name] * 3
                assert await asyncio.get_running_loop().run_in_executor(None, current) == name


def test_a_line_of_the_log_has_the_ids_for_either() -> None:
    with installed(sw_agent_plugins.logging.plugin), instrumented(LoggingInstrumentor(), set_logging_format=False):
        with span() as program:
            record = logging.getLogger("test").makeRecord("test", logging.INFO, "", 0, "hello", (), None)
        assert record.__dict__["span_id"] == f"{program.get_span_context().span_id:016x}"
