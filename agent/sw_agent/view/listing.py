"""The traces of a store as a table: the id that `show` takes, when, what, how long, how many spans and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.segment import Segment

from . import wording
from .columns import BOLD, BOLD_RED, FAINT, GAP, PLAIN, Column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.style import Style

    from ..export.store import TraceSummary

_NARROW = 90
_NUMBERS = ("when", "time", "spans", "errors")


class Listing:
    """A renderable of `rich`: the traces, at least one, in their order, and how long before `now_ns` each began.

    A narrow terminal is not told date and time; services and names are cut where the width does not suffice.
    """

    def __init__(self, summaries: Sequence[TraceSummary], now_ns: int) -> None:
        self._rows = [_cells(summary, now_ns) for summary in summaries]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = {title: max(cell_len(row[title][0]) for row in (self._titles, *self._rows)) for title in self._titles}
        if options.max_width < _NARROW:
            del widths["began"]
        service, name = widths["service"], widths["root span"]
        rest = options.max_width - sum(widths.values()) - (len(widths) - 1) * len(GAP) + service + name
        widths["service"] = max(min(service, max(rest // 3, rest - name)), 1)
        widths["root span"] = max(min(name, rest - widths["service"]), 1)
        columns = [Column(title, width, number=title in _NUMBERS) for title, width in widths.items()]
        for row in (self._titles, *self._rows):
            *line, last = (Segment(column.cell(row[column.title][0]), row[column.title][1]) for column in columns)
            yield from (*line, Segment(last.text.rstrip(), last.style), Segment.line())

    @property
    def _titles(self) -> dict[str, tuple[str, Style]]:
        return {title: (title, FAINT) for title in self._rows[0]}


def _cells(summary: TraceSummary, now_ns: int) -> dict[str, tuple[str, Style]]:
    return {
        "trace": (summary.trace_id[:8], BOLD),
        "when": (wording.ago(now_ns - summary.start_ns), PLAIN),
        "began": (wording.moment(summary.start_ns)[: len("2026-11-21 10:00:00")], FAINT),
        "service": (wording.printable(summary.service), PLAIN),
        "root span": (wording.printable(summary.root_name) or "(no name)", PLAIN),
        "time": (wording.duration(summary.duration_ns), PLAIN),
        "spans": (f"{summary.spans:,}", PLAIN),
        "errors": (f"{summary.errors:,}", BOLD_RED if summary.errors else FAINT),
    }
