"""Run a program under other agents, alone and together with this one, and say what is not as it should be.

`python compat/agents.py [agent …]`. All that is needed is installed into `.compat/agents/`. With this agent, whichever
is launched first, the program has to print the same, to end with the same status, to say nothing more on stderr but
what is expected, to keep the context of its work, and to have each span once. Nothing is sent beyond the loopback.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from sw_agent.export.store import read_trace, read_traces

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".compat" / "agents"
BIN = FOLDER / "venv" / "bin"
PROGRAM = Path(__file__).with_name("agents_program.py")
REQUIRES = (
    "aiohttp",
    "celery",
    "ddtrace",
    "elastic-apm",
    "logfire",
    "newrelic",
    "opentelemetry-distro",
    *(f"opentelemetry-instrumentation-{name}" for name in ("aiohttp-client", "aiohttp-server", "asyncio", "celery")),
    *(f"opentelemetry-instrumentation-{name}" for name in ("logging", "threading")),
    "sentry-sdk",
)
OURS = Counter({"GET": 1, "GET /answer": 1, "publish look": 2, "process look": 2})
PROGRAMS = Counter({"one": 1, "two": 1, "request": 1, "publisher": 1})
ITS_HEADER = r"sw-python: WARNING: .* writes the header traceparent, which is left to it: .*"


class Agent(NamedTuple):
    """How another agent is switched on: by its launcher, or by the first lines of the program.

    `spans` are those that it makes in the place of this agent's; `says` is what is expected on stderr.
    """

    launcher: tuple[str, ...] = ()
    prelude: str = ""
    environ: tuple[tuple[str, str], ...] = ()
    spans: Counter[str] = OURS
    says: str = ""


NOWHERE = "http://127.0.0.1:9"
AGENTS = {
    "ddtrace": Agent(
        launcher=("ddtrace-run",),
        environ=(("DD_TRACE_AGENT_URL", NOWHERE), ("DD_INSTRUMENTATION_TELEMETRY_ENABLED", "false")),
        says=f"failed to send, dropping .*|{ITS_HEADER}",
    ),
    "elasticapm": Agent(
        launcher=("elasticapm-run",),
        environ=(("ELASTIC_APM_SERVER_URL", NOWHERE), ("ELASTIC_APM_CENTRAL_CONFIG", "false")),
        says=ITS_HEADER,
    ),
    "logfire": Agent(
        prelude="import logfire\nlogfire.configure(send_to_logfire=False, console=False)\n"
        "logfire.instrument_aiohttp_client()\n",
    ),
    "newrelic": Agent(
        launcher=("newrelic-admin", "run-program"),
        environ=(("NEW_RELIC_DEVELOPER_MODE", "true"), ("NEW_RELIC_APP_NAME", "program")),
        says=ITS_HEADER,
    ),
    "opentelemetry": Agent(
        launcher=(
            "opentelemetry-instrument",
            *(f"--{signal}_exporter=none" for signal in ("traces", "metrics", "logs")),
        ),
        spans=Counter({"GET": 1, "GET /answer": 1, "apply_async/look": 2, "run/look": 2}),
    ),
    "sentry": Agent(
        prelude=f"import sentry_sdk\nsentry_sdk.init(dsn={NOWHERE.replace('//', '//key@') + '/1'!r},"
        " traces_sample_rate=1.0)\n",
    ),
}


def prepare() -> None:
    """Make the environment; one that is there already is kept."""
    if (BIN / "sw-python").exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", BIN.parent], check=True)
    pip = (BIN / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    subprocess.run([*pip, "--editable", ROOT, *REQUIRES], check=True)


class Run:
    """The program run by a command: its status, its output, and what it and this agent have written down."""

    def __init__(self, agent: Agent, command: tuple[str, ...]) -> None:
        program, seen, store = FOLDER / "program.py", FOLDER / "seen.json", FOLDER / "traces.db"
        for file in (seen, *FOLDER.glob("traces.db*")):
            file.unlink(missing_ok=True)
        program.write_text(agent.prelude + PROGRAM.read_text())
        foreign = ("SW_", "OTEL_", "DD_", "ELASTIC_", "NEW_RELIC_", "SENTRY_", "LOGFIRE_", "PYTHON")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        environ |= {"PATH": f"{BIN}{os.pathsep}{environ['PATH']}", **dict(agent.environ)}
        environ |= {"SW_EXPORT_TO": "local", "SW_EXPORT_PATH": str(store)}
        done = subprocess.run(
            [*command, "python", program, seen], env=environ, cwd=FOLDER, capture_output=True, text=True, check=False
        )
        self.status, self.out = done.returncode, done.stdout
        self.err = [re.sub(r"\d+", "N", line) for line in done.stderr.splitlines()]
        found = json.loads(seen.read_text()) if seen.exists() else {"flows": {}, "traced": False}
        self.lost = [way for way, flows in found["flows"].items() if not flows]
        self.traced = found["traced"]
        traces = read_traces(str(store), limit=1000) if store.exists() else []
        self.spans = Counter(span.name for trace in traces for span in read_trace(str(store), trace.trace_id))


def check(name: str, agent: Agent) -> list[str]:
    """Return what is wrong with the program under this agent and the other one."""
    alone = Run(agent, agent.launcher)
    wrong = [] if alone.status == 3 else [f"alone it ends with {alone.status}: {alone.err}"]
    ways = [("sw-python", "run", *agent.launcher)]
    if agent.launcher:
        ways.append((*agent.launcher, "sw-python", "run"))
    for command in ways:
        both = Run(agent, command)
        more = [line for line in both.err if line not in alone.err and not re.fullmatch(agent.says, line)]
        for what, found, expected in (
            ("status", both.status, alone.status),
            ("stdout", both.out, alone.out),
            ("more on stderr", more, []),
            ("work without its context", both.lost, []),
            ("recording", both.traced, True),
            ("spans", both.spans - Counter({"end": 1}), agent.spans + PROGRAMS),
        ):
            if found != expected:
                wrong.append(f"{' '.join(command)}: {what}: {found!r}, not {expected!r}")
    print(f"{name}: {'; '.join(wrong) or 'nothing is wrong'}")
    return wrong


if __name__ == "__main__":
    prepare()
    results = [check(name, AGENTS[name]) for name in sys.argv[1:] or AGENTS]
    sys.exit(any(results))
