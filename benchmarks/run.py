"""What the agent costs: every program plain, under sw-python and under OpenTelemetry's agent, alternating in one run.

`python benchmarks/run.py [--rounds N] [--no-peer] [--instructions] [BENCHMARK …]` prints one table; a whole run writes
it into RESULTS.md too.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from collector import collector
from measuring import HEADINGS, PEER, Row, Way, clean_environ
from ways import ways

RESULTS = Path(__file__).with_name("RESULTS.md")
BENCHMARKS = ("launch", "hops", "spans", "aiohttp_server", "aiohttp_client", "celery_publish", "growth")
LIBRARIES = ("aiohttp", "celery", "opentelemetry-sdk", "opentelemetry-distro", "sw-python")
WIDTHS = (61, 14, 14, 14, 12, 12, 10, 8, 0)
READING = """\
"agent" and "OTel" compare medians with the plain runs: as a ratio; as what is added, which has a sign; or alone, with a
unit only, where a plain run has nothing of the kind. The machine's noise shows in its load before the run, and in the
spread: the interquartile range over the median of the runs, plain or under sw-python, whichever is larger. A missed
budget is marked "over"."""


def main() -> None:
    """Measure what was asked for, and print each row as soon as it is there."""
    parser = argparse.ArgumentParser(description="Measure what the agent costs.", epilog=READING)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each program in each way")
    parser.add_argument("--no-peer", action="store_true", help=f"leave {PEER} out")
    parser.add_argument("--instructions", action="store_true", help="count instructions too, with valgrind")
    part = f"measure only these, and do not write the file: {', '.join(BENCHMARKS)}"
    choices = [*BENCHMARKS, []]  # the last is for none given
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", choices=choices, help=part)
    chosen = parser.parse_args()
    names = [*(chosen.benchmarks or BENCHMARKS), *["instructions"] * chosen.instructions]
    rows: list[Row] = []
    with clean_environ() as environ, collector() as receiver:
        found = ways(environ, receiver.endpoint, peer=not chosen.no_peer)
        heading = describe(found, chosen.rounds)
        print(heading, aligned(HEADINGS), sep="\n\n", flush=True)
        for name in names:
            for row in importlib.import_module(name).measure(found, chosen.rounds, receiver):
                rows.append(row)
                print(aligned(row.cells()), flush=True)
    if not chosen.benchmarks and not chosen.no_peer:
        RESULTS.write_text(as_markdown(heading, rows))


def describe(found: Sequence[Way], rounds: int) -> str:
    """Return on what, with what, when and by which commands is measured."""
    versions = "; ".join(f"{way.name}: {way.run('versions.py', *LIBRARIES)[0].strip()}" for way in found[1:])
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    commands = ", ".join(
        " ".join([*(Path(each).name for each in way.launcher[:1]), *way.launcher[1:], "python …"]) for way in found
    )
    return (
        f"{_processor()}, {os.cpu_count()} cores{load}; {platform.system()} {platform.release()}; Python"
        f" {platform.python_version()}; {versions}; {datetime.date.today()}; rounds: {rounds}; commands `{commands}`."
    )


def aligned(cells: Sequence[str]) -> str:
    """Return a line of the table for a terminal."""
    first, *rest = (f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
    return f"{first.strip():{WIDTHS[0]}}{''.join(rest[:-1])}  {rest[-1]}".rstrip()


def as_markdown(heading: str, rows: Sequence[Row]) -> str:
    """Return the whole of RESULTS.md."""
    reading = " ".join(READING.split())
    lines = [HEADINGS, ["---", *["---:"] * (len(HEADINGS) - 2), "---"], *(row.cells() for row in rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{heading}\n\n{reading} `make bench` writes this file.\n\n{table}\n"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


if __name__ == "__main__":
    main()
