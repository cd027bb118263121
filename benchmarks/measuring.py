"""What all benchmarks share: programs that run in each way in turn, and rows of medians, comparisons and spread."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
PLAIN, AGENT, PEER = "plain", "sw-python", "OpenTelemetry"
DROPPED = {"OTEL_TRACES_EXPORTER": "none"}  # spans are made, and not sent
TIMEOUT = 300  # seconds for a program that has hung

# What one unit is in what programs print: seconds, bytes, operations per second.
UNITS = {"µs": 1e-6, "ms": 1e-3, "MB": 2**20, "/s": 1.0, "k": 1e3}


@dataclass(frozen=True)
class Way:
    """One way to run a program: with which Python, behind which command, with which variables."""

    name: str
    python: Path
    launcher: tuple[str, ...]
    environ: dict[str, str]

    def start(self, *arguments: str, before: Sequence[str] = (), **variables: str) -> subprocess.Popen[str]:
        """Start Python with these arguments, behind the command `before` all others."""
        return subprocess.Popen(
            [*before, *self.launcher, str(self.python), *arguments],
            env=self.environ | variables,
            cwd=PROGRAMS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, before: Sequence[str] = (), **variables: str) -> tuple[str, str]:
        """Run Python to its end, which has to be a good one, and return what it wrote to stdout and stderr."""
        with self.start(*arguments, before=before, **variables) as process:
            try:
                output, errors = process.communicate(timeout=TIMEOUT)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise SystemExit(f"{self.name}: {' '.join(arguments)}: exit status {process.returncode}\n{errors}")
        return output, errors

    def seconds(self, *arguments: str, **variables: str) -> float:
        """Return how long a run takes, from its start to its end."""
        start = time.perf_counter()
        self.run(*arguments, **variables)
        return time.perf_counter() - start

    def numbers(self, *arguments: str, **variables: str) -> list[float]:
        """Return what the program prints, a number in each line."""
        return [float(line) for line in self.run(*arguments, **variables)[0].split()]


@dataclass
class Row:
    """A row of the table: what was measured in each way, in the base units that `UNITS` says.

    `compared` is how a way is set beside the plain one, and what the budget means: "ratio", "added", or "absolute" for
    what does not exist without an agent. More than the budget is over; less is, where `more_is_better`.
    """

    what: str
    unit: str
    budget: float | None = None
    compared: str = "ratio"
    more_is_better: bool = False
    note: str = ""
    values: dict[str, list[float]] = field(default_factory=dict)

    def cells(self) -> list[str]:
        """Return the row as text, a cell for each of `HEADINGS`."""
        medians = [self._amount(way) for way in (PLAIN, AGENT, PEER)]
        comparisons = [self._worded(self._comparison(way), signed=True) for way in (AGENT, PEER)]
        limit = "" if self.budget is None else self._worded(self.budget, signed=True)
        least = "≥ " if self.more_is_better and limit else ""
        marks = ["over"] * self.is_over() + [self.note] * bool(self.note)
        return [self.what, *medians, *comparisons, least + limit, f"{self._spread():.0%}", ", ".join(marks)]

    def is_over(self) -> bool:
        """Return whether the agent misses the budget."""
        found = self._comparison(AGENT)
        if self.budget is None or found is None:
            return False
        return found < self.budget if self.more_is_better else found > self.budget

    def _median(self, way: str) -> float | None:
        return statistics.median(self.values[way]) / UNITS[self.unit] if self.values.get(way) else None

    def _comparison(self, way: str) -> float | None:
        found, plain = self._median(way), self._median(PLAIN)
        if found is None or self.compared == "absolute":
            return found
        if plain is None:
            return None
        return found - plain if self.compared == "added" else found / plain

    def _amount(self, way: str) -> str:
        found = self._median(way)
        return "" if found is None else f"{_digits(found)} {self.unit}"

    def _worded(self, value: float | None, *, signed: bool) -> str:
        if value is None:
            return ""
        if self.compared == "ratio":
            return f"{value:.2f}"
        sign = ("+ " if value >= 0 else "- ") if signed and self.compared == "added" else ""
        return f"{sign}{_digits(abs(value))} {self.unit}"

    def _spread(self) -> float:
        """Return the interquartile range over the median, of the plain runs or the agent's, whichever is larger."""
        return max(map(_spread, (self.values.get(way, []) for way in (PLAIN, AGENT))))


HEADINGS = ("", PLAIN, AGENT, PEER, "agent", "OTel", "budget", "spread", "")


def fill(
    rows: Sequence[Row], ways: Iterable[Way], rounds: int, measure: Callable[[Way], Iterable[float]]
) -> Sequence[Row]:
    """Measure in each way in turn, as often as there are rounds; what is measured is a number for each row."""
    for _ in range(rounds):
        for way in ways:
            for row, value in zip(rows, measure(way), strict=True):
                row.values.setdefault(way.name, []).append(value)
    return rows


@contextmanager
def clean_environ() -> Iterator[dict[str, str]]:
    """Yield the environment without settings of any agent, and with a local store that is deleted in the end."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SW_", "OTEL_"))}
        yield environ | {"XDG_STATE_HOME": folder}


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    quartiles = statistics.quantiles(values, n=4)
    return (quartiles[2] - quartiles[0]) / statistics.median(values)
