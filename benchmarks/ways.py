"""The ways in which programs run side by side: plain, under sw-python, under OpenTelemetry's zero-code agent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from measuring import AGENT, PEER, PLAIN, Way

FOLDER = Path(__file__).parents[1] / ".bench" / "opentelemetry"
REQUIRED = (
    "opentelemetry-distro[otlp]>=0.50b0,<1",
    *(
        f"opentelemetry-instrumentation-{library}>=0.50b0,<1"
        for library in ("threading", "asyncio", "aiohttp-server", "aiohttp-client", "celery")
    ),
    "aiohttp>=3.9",
    "celery>=5.3",
)


def ways(environ: dict[str, str], collector: str, *, peer: bool) -> list[Way]:
    """Return all ways; the spans of both agents go to the same collector."""
    own, other = Path(sys.executable).parent, FOLDER / "bin"
    exporting = environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }
    found = [
        Way(PLAIN, own / "python", (), environ),
        Way(AGENT, own / "python", (str(own / "sw-python"), "run"), exporting),
    ]
    if peer:
        install_peer()
        found.append(Way(PEER, other / "python", (str(other / "opentelemetry-instrument"),), exporting))
    return found


def install_peer() -> None:
    """Make OpenTelemetry's environment, where it is not there yet as it is asked for here."""
    stamp = FOLDER / "installed.txt"
    wanted = "\n".join((sys.version, *REQUIRED))
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing OpenTelemetry's agent into {FOLDER} …", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], check=True)
    pip = (FOLDER / "bin" / "python", "-m", "pip", "-qq", "--disable-pip-version-check")
    subprocess.run([*pip, "install", *REQUIRED], check=True)
    stamp.write_text(wanted)
