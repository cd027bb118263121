"""The traces of a store as a table: when, what, how long, how many spans and errors, and the id that `show` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from . import wording

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..export.store import TraceSummary


def listing(summaries: Iterable[TraceSummary], now_ns: int) -> Table:
    """Return the table, in the order of `summaries`."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("trace", no_wrap=True, min_width=8)
    table.add_column("when", no_wrap=True, overflow="ellipsis", justify="right")
    table.add_column("", no_wrap=True, overflow="ellipsis", style="dim")
    table.add_column("service", no_wrap=True, overflow="ellipsis")
    table.add_column("root span", no_wrap=True, overflow="ellipsis")
    table.add_column("time", no_wrap=True, justify="right", min_width=7)
    table.add_column("spans", no_wrap=True, justify="right", min_width=5)
    table.add_column("errors", no_wrap=True, justify="right", min_width=6)
    for summary in summaries:
        table.add_row(
            Text(summary.trace_id[:8], "bold"),
            wording.ago(now_ns - summary.start_ns),
            wording.moment(summary.start_ns)[: len("2026-11-21 10:00:00")],
            Text(wording.printable(summary.service)),
            Text(wording.printable(summary.root_name or "") or "(no name)"),
            wording.duration(summary.duration_ns),
            f"{summary.spans:,}",
            Text(str(summary.errors), "bold red") if summary.errors else Text("0", "dim"),
        )
    return table
