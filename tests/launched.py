"""Whole programs under `sw-python run`, for tests: what they print, how they end, what they leave in the store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sw_agent.export.store import StoredSpan, StoreError, read_trace, read_traces

Launch = Callable[..., "Launched"]
SW_PYTHON = str(Path(sys.executable).with_name("sw-python"))
PRELUDE = """\
from opentelemetry import trace
tracer = trace.get_tracer("program")
S = tracer.start_as_current_span
"""


def own_environ(folder: Path, **more: str) -> dict[str, str]:
    """Return this process's environment without what would configure Python or an agent, for a program in `folder`."""
    foreign = ("SW_", "OTEL_", "PYTHON", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "HOME": str(folder), **more}


class Launched:
    """A program in a folder of its own, with its own local store; every variable of the environment is given here."""

    def __init__(self, folder: Path, code: str, *options: str, prelude: str = PRELUDE, **environ: str) -> None:
        self.store = str(folder / "traces.db")
        (folder / "app.py").write_text(prelude + code)
        self.process = subprocess.Popen(
            [SW_PYTHON, "run", *options, "--", "python", "-u", "app.py"],
            cwd=folder,
            env={
                **own_environ(folder),
                "PYTHONFAULTHANDLER": "1",
                "SW_EXPORT_TO": "local",
                "SW_EXPORT_PATH": self.store,
                "SW_EXPORT_EXIT_TIMEOUT": "60",  # also on a busy machine, where imports alone take seconds
                **environ,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read_line(self) -> str:
        """Wait for the next line on stdout."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def wait_for(self, line: str) -> None:
        """Wait for the next line on stdout, which must be this one."""
        assert self.read_line() == line

    def go_on(self) -> None:
        """Let a program go on that waits for a line on stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self, expected: int = 0) -> str:
        """Wait for the end, check the exit status and that nobody complained, and return the rest of stdout."""
        out, err = self.end_with_stderr(expected)
        assert err == "", err
        return out

    def end_with_stderr(self, expected: int = 0) -> tuple[str, str]:
        """Wait for the end, check the exit status, and return the rest of stdout, and stderr."""
        try:
            out, err = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # PYTHONFAULTHANDLER: it says where it hangs
            out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == expected, err
        return out, err

    def close(self) -> None:
        """Leave nothing running, also where a test has failed in between."""
        with self.process:
            self.process.kill()

    def spans(self) -> list[StoredSpan]:
        """Return all spans in the store."""
        if not os.path.exists(self.store):
            return []
        try:
            traces = read_traces(self.store, limit=10**6)
        except StoreError as error:
            if "is empty" in str(error):  # a process is just creating it
                return []
            raise
        return [span for trace in traces for span in read_trace(self.store, trace.trace_id)]

    def names(self) -> list[str]:
        """Return the names of all spans in the store, sorted."""
        return sorted(span.name for span in self.spans())
