"""Another agent in the same program: its launcher, its patches, and this agent beside it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from launched import SW_PYTHON, Launch, own_environ
from receivers import http_collector
from sw_agent.export.store import read_trace, read_traces

APP = """\
import sys
from opentelemetry import trace
with trace.get_tracer("app").start_as_current_span("work"): pass
print("other" in sys.modules, sys.modules.get("sitecustomize") is not None)
"""
# A launcher as other agents have them: a folder with a `sitecustomize` first on PYTHONPATH, then the program
LAUNCHER = """\
#!{python}
import os, sys
os.environ["PYTHONPATH"] = os.pathsep.join(["{folder}", os.environ.get("PYTHONPATH", "")])
{execute}
"""
WAYS_TO_EXECUTE = {
    "execl": "os.execl(sys.executable, sys.executable, *sys.argv[2:])",
    "execvpe": "os.execvpe(sys.argv[1], sys.argv[1:], os.environ)",
}
OTHERS = {
    "that runs no other sitecustomize": "import sys; sys.modules['other'] = sys",
    "that imports the next one": """\
import os, sys
sys.path.remove(os.path.dirname(__file__))
this = sys.modules.pop("sitecustomize")
try:
    import sitecustomize
except ImportError:
    sys.modules["sitecustomize"] = this
sys.modules["other"] = this
""",
    "that loads the next one": """\
import os, sys
from importlib.machinery import PathFinder
sys.path.remove(os.path.dirname(__file__))
spec = PathFinder.find_spec("sitecustomize", path=sys.path)
if spec is not None:
    spec.loader.load_module("sitecustomize")
sys.modules["other"] = sys
""",
}


def run(folder: Path, *command: object) -> tuple[str, str, list[tuple[str, str]]]:
    """Run a command and return what it said, and service and name of each span."""
    store = folder / "traces.db"
    store.unlink(missing_ok=True)
    path = f"{folder}{os.pathsep}{own_environ(folder)['PATH']}"
    environ = own_environ(folder, SW_EXPORT_TO="local", SW_EXPORT_PATH=str(store))
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    traces = read_traces(str(store)) if store.exists() else []
    spans = [span for trace in traces for span in read_trace(str(store), trace.trace_id)]
    return done.stdout, done.stderr, [(str(span.resource["service.name"]), span.name) for span in spans]


@pytest.mark.parametrize("way", WAYS_TO_EXECUTE)
@pytest.mark.parametrize("other", OTHERS)
def test_a_program_is_traced_whoever_launches_it_first(tmp_path: Path, other: str, way: str) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(OTHERS[other])
    (tmp_path / "app.py").write_text(APP)
    known = other == "that runs no other sitecustomize"
    launcher = tmp_path / ("elasticapm-run" if known else "other-run")
    launcher.write_text(LAUNCHER.format(python=sys.executable, folder=folder, execute=WAYS_TO_EXECUTE[way]))
    launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
    for command in ((SW_PYTHON, "run", launcher), (launcher, SW_PYTHON, "run")):
        if command[0] == launcher and way == "execl":
            command = (launcher, "python", SW_PYTHON, "run")
        service = launcher.name if not known and command[0] != launcher else "app"
        assert run(tmp_path, *command, "python", "app.py") == ("True True\n", "", [(service, "work")]), command


def test_opentelemetrys_launcher_keeps_its_pipeline_and_the_agent_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    theirs = (
        "opentelemetry-instrument",
        "--traces_exporter=console",
        "--metrics_exporter=none",
        "--logs_exporter=none",
    )
    for command in ((SW_PYTHON, "run", *theirs), (*theirs, SW_PYTHON, "run")):
        out, err, spans = run(tmp_path, *command, "python", "app.py")
        assert (err, [name for _, name in spans]) == ("", ["work"])
        if command[0] == SW_PYTHON:  # else older versions take `sw-python` itself for the program, and trace no other
            assert out.count('"name": "work"') == 1


# Its patches


def test_what_the_agent_stores_is_no_query_of_the_programs(launch: Launch) -> None:
    """For an agent that patches `sqlite3`."""
    app = launch(
        """
import sqlite3, sqlite3.dbapi2
def connect(*args, **kwargs): print("connect")
sqlite3.connect = sqlite3.dbapi2.connect = connect
with S("a"): pass
trace.get_tracer_provider().force_flush()
"""
    )
    assert app.end() == ""
    assert app.names() == ["a"]


def test_what_the_agent_sends_is_no_request_of_the_programs(launch: Launch) -> None:
    """For an agent that patches `requests`."""
    with http_collector() as collector:
        app = launch(
            """
import functools, requests
original = requests.Session.send
@functools.wraps(original)
def send(session, request, **kwargs):
    request.headers["other-agent"] = "1"
    print("send")
    return original(session, request, **kwargs)
requests.Session.send = send
with S("a"): pass
""",
            SW_EXPORT_TO="otlp",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        )
        assert app.end() == ""
    assert collector.names == ["a"]


# Beside it

ASK = """
import asyncio, aiohttp
from aiohttp import web

async def answer(request): return web.json_response(dict(request.headers))

async def ask(headers, times=1):
    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    async with aiohttp.ClientSession() as session:
        for _ in range(times):
            async with session.get(url, headers=headers) as response:
                found = await response.json()
                print(*(found.get(name) for name in ("traceparent", "tracestate", "baggage")))
    await runner.cleanup()
"""
THEIRS = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "tracestate": "dd=s:1"}


def test_another_agent_keeps_its_header_and_it_is_said_once(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "ddtrace.py").write_text("")
    code = f"from opentelemetry import baggage, context\n{ASK}import ddtrace\n"
    code += "context.attach(baggage.set_baggage('a', 'b'))\n"
    app = launch(code + f"asyncio.run(ask({THEIRS}, 2))")
    out, err = app.end_with_stderr()
    assert out == f"{THEIRS['traceparent']} dd=s:1 a=b\n" * 2
    (line,) = err.splitlines()
    assert line.startswith("sw-python: WARNING: ddtrace writes the header traceparent, which is left to it")


@pytest.mark.parametrize("other", ["", "import ddtrace", "import sentry_sdk"])
def test_a_parent_that_no_other_agent_has_written_is_replaced(launch: Launch, tmp_path: Path, other: str) -> None:
    (tmp_path / "ddtrace.py").write_text("")
    (tmp_path / "sentry_sdk.py").write_text("")
    headers = {} if "ddtrace" in other else THEIRS
    app = launch(f"{ASK}{other}\nasyncio.run(ask({headers}))")
    parent, state, _ = app.end().split()
    ids = {f"00-{span.trace_id}-{span.span_id}" for span in app.spans()}
    assert (parent[:-3] in ids, state) == (True, "None")


def test_another_agent_is_recognised_and_that_is_no_noise(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "sentry_sdk.py").write_text("")
    code = "import importlib, sentry_sdk; importlib.reload(sentry_sdk)"
    assert launch(code).end() == ""
    _, err = launch(code, SW_AGENT_LOGGING_LEVEL="INFO").end_with_stderr()
    assert err == "sw-python: INFO: Sentry is here too: both agents follow the program, each with spans of its own\n"


def test_reading_the_context_of_a_request_does_not_make_logfires_propagator_warn(launch: Launch) -> None:
    """It warns a program that has not said whether it wants to go on with traces of others."""
    app = launch(
        ASK
        + """
from opentelemetry.propagate import get_global_textmap, set_global_textmap
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
class WarnOnExtractTraceContextPropagator(TraceContextTextMapPropagator):
    wrapped = get_global_textmap()
    def extract(self, *args, **kwargs): print("a context was read")
set_global_textmap(WarnOnExtractTraceContextPropagator())
with S("a"): asyncio.run(ask({}))
"""
    )
    assert "was read" not in app.end()
    assert len({span.trace_id for span in app.spans()}) == 1
    assert app.names() == ["GET", "GET /", "a"]
