"""One trace as a waterfall: what it was in two lines, then a row for each span, then what is odd about it."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from . import wording
from .columns import BOLD, BOLD_RED, FAINT, Columns
from .places import place
from .tree import Fold, Row, arrange

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

    from ..export.store import StoredSpan
    from .columns import Line

_SKEW_NS = 1_000_000
_BETWEEN = " · "


class Waterfall:
    """A renderable of `rich`: the spans of one trace, at least one, in the width that the console has.

    With `show_all` no repetition is folded. Nothing that a span carries reaches the terminal as a control character.
    """

    def __init__(self, spans: Sequence[StoredSpan], *, show_all: bool = False) -> None:
        self._spans = spans
        self._rows = arrange(spans, fold=not show_all)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        columns = Columns(self._spans, self._rows, width)
        for line in (*self._header(width), [], columns.heading(), *columns.lines(), *self._remarks(width)):
            yield from line
            yield Segment.line()

    def _header(self, width: int) -> Iterator[Line]:
        spans = self._spans
        start_ns = min(span.start_ns for span in spans)
        places = {place(span) for span in spans}
        errors = sum(span.status == "ERROR" for span in spans)
        services = ", ".join(dict.fromkeys(place(span).service for span in spans if place(span).service))
        processes = len({place.of_process for place in places if place.process})
        threads = len({place for place in places if place.thread})
        pieces = [
            (services or "no service name", BOLD),
            (wording.duration(max(span.end_ns for span in spans) - start_ns), BOLD),
            (wording.count(len(spans), "span"), Style.null()),
            (wording.count(errors, "error"), BOLD_RED if errors else Style.null()),
        ]
        pieces += [(wording.count(processes, "process"), Style.null())] if processes else []
        pieces += [(wording.count(threads, "thread"), Style.null())] if threads else []
        yield from _side_by_side(pieces, width)
        yield from _side_by_side([(wording.moment(start_ns), FAINT), (f"trace {spans[0].trace_id}", FAINT)], width)

    def _remarks(self, width: int) -> Iterator[Line]:
        remarks = []
        rows = [row for row in self._rows if isinstance(row, Row)]
        folded = sum(len(row.spans) + row.spans_under for row in self._rows if isinstance(row, Fold))
        if folded:
            remarks.append(f"… {wording.count(folded, 'span')} folded; --all shows every one")
        if any(row.detached for row in rows):
            remarks.append("◌ its parent is not in the store: it has not ended yet, it is elsewhere, or it was lost")
        early = [row.above.span.start_ns - row.span.start_ns for row in rows if row.above is not None]
        if (most := max(early, default=0)) > _SKEW_NS:
            remarks.append(f"clocks differ: spans begin up to {wording.duration(most)} before their parents")
        if remarks:
            yield []
        for remark in remarks:
            yield from ([Segment(line, FAINT)] for line in wrap(remark, width, subsequent_indent="  "))


def _side_by_side(pieces: list[tuple[str, Style]], width: int) -> Iterator[Line]:
    """Put pieces on as few lines as they need, whole."""
    line: Line = []
    used = 0
    for text, style in pieces:
        size = cell_len(text)
        if line and used + len(_BETWEEN) + size > width:
            yield line
            line, used = [], 0
        if line:
            line.append(Segment(_BETWEEN, FAINT))
            used += len(_BETWEEN)
        line.append(Segment(text, style))
        used += size
    yield line
