"""The columns of a waterfall: the tree of names, process, thread, time, time waited, and the bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from .axis import BAR, REST, Axis
from .notes import FAILED, FOLLOWS, OPEN, RECORDED, notes
from .places import place
from .tree import Fold, Row
from .wording import count, duration, fit, printable, shortened, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..export.store import StoredSpan

    Line = list[Segment]

PLAIN, FAINT, BOLD = Style.null(), Style(dim=True), Style(bold=True)
RED, BOLD_RED, YELLOW = Style(color="red"), Style(color="red", bold=True), Style(color="yellow")
_HUES = ("cyan", "green", "blue", "yellow", "magenta")
_OF_PLACES = [Style(color=hue) for hue in (*_HUES, *(f"bright_{hue}" for hue in _HUES))]
_OF_NOTES = {FAILED: ("", RED), RECORDED: ("! ", YELLOW), OPEN: ("… ", YELLOW), FOLLOWS: ("↳ ", FAINT)}
_NARROW = 80
GAP = "  "
_LINES_OF_A_NOTE = 3
_NAME_OF_A_FOLD = 24


class Column(NamedTuple):
    """A column between the names and the bars; numbers stand at its right edge."""

    title: str
    width: int
    number: bool = False

    def cell(self, text: str) -> str:
        """Return the text in the column's width, and the gap after it."""
        return (text.rjust(self.width) if self.number else fit(text, self.width, keep_end=True)) + GAP


class Columns:
    """The rows of one trace in columns, on `width` cells.

    A column is as wide as its longest text; where that is too much, names are cut, and the bars keep a part of the
    width. There is a column of processes only if the trace has several, and one of time waited if a span waited and the
    terminal is not narrow.
    """

    def __init__(self, spans: Sequence[StoredSpan], rows: Sequence[Row | Fold], width: int) -> None:
        self._rows = rows
        self._width = width
        self._by_id = {span.span_id: span for span in spans}
        shown = [row for row in rows if isinstance(row, Row)]
        self._places = {id(row.span): place(row.span) for row in shown}
        places = dict.fromkeys(self._places.values())
        self._styles = {place: _OF_PLACES[number % len(_OF_PLACES)] for number, place in enumerate(places)}
        self._several_services = len({place.service for place in places}) > 1
        self._process_title = "process" if self._several_services else "pid"
        self._several_processes = len({place.of_process for place in places}) > 1
        self._narrow = width < _NARROW

        self._columns = list(self._columns_of(shown, width))
        rest = width - sum(column.width + len(GAP) for column in self._columns) - len(GAP)
        most = max(rest - (width // 5 if self._narrow else width * 3 // 10), 12)
        self._levels = max(most // (4 if self._narrow else 6), 1)  # half of the names' column for the tree
        others = width - rest - len(GAP)
        self._names = max(
            _widest("span", (self._tree(row) + _name(row) for row in shown), most),
            _widest("", ((self._tree(row) + _folded(row))[others:] for row in rows if isinstance(row, Fold)), most),
        )
        self._before_bars = others + self._names
        start_ns = min(span.start_ns for span in spans)
        end_ns = max(max(span.start_ns, span.end_ns) for span in spans)
        self._axis = Axis(start_ns, end_ns, max(rest - self._names, 4))
        self._marks = dict(self._axis.marks())

    def _columns_of(self, rows: Sequence[Row], width: int) -> Iterator[Column]:
        places = self._places.values()
        if self._several_processes:
            title = self._process_title
            yield Column(title, _widest(title, (self._process(row) for row in rows), width // 5))
        yield Column("thread", _widest("thread", (place.thread for place in places), max(width // 5, 10)))
        yield Column("time", _widest("time", (_time(row.span) for row in rows), 8), number=True)
        if not self._narrow and any(_wait_ns(row.span) for row in rows):
            yield Column("waited", _widest("waited", (_waited(row.span) for row in rows), 8), number=True)

    def heading(self) -> Line:
        """Return the line above the rows: what each column is, and the times of the marks on the axis."""
        labels = ""
        for cell, label in self._marks.items():
            begin = min(cell, self._axis.width - len(label))
            if not labels or begin > len(labels):
                labels = labels.ljust(begin) + label
        titles = "".join(column.cell(column.title) for column in self._columns)
        return [Segment(fit("span", self._names) + GAP + titles + labels, FAINT)]

    def lines(self) -> Iterator[Line]:
        """Return the line of each row, and under it its notes."""
        for row in self._rows:
            if isinstance(row, Fold):
                yield self._fold(row)
                continue
            yield self._span(row)
            for kind, text in notes(row, self._by_id):
                sign, style = _OF_NOTES[kind]
                tree = self._tree(row, below=True)
                for line in wrapped(sign + text, self._width - cell_len(tree), most=_LINES_OF_A_NOTE):
                    yield [Segment(tree, FAINT), Segment(line, style)]

    def _span(self, row: Row) -> Line:
        span, where, tree = row.span, self._places[id(row.span)], self._tree(row)
        failed, is_root = span.status == "ERROR", row.above is None
        moved = row.above is None or self._process(row.above) != self._process(row)
        cells = {
            self._process_title: (self._process(row), PLAIN if moved else FAINT),
            "thread": (where.thread, self._styles[where]),
            "time": (_time(span), PLAIN),
            "waited": (_waited(span), FAINT),
        }
        name_style = (BOLD_RED if is_root else RED) if failed else (BOLD if is_root else PLAIN)
        bar = self._axis.bar(span.start_ns, span.end_ns, _wait_ns(span))
        return [
            Segment(tree, FAINT),
            Segment(fit(_name(row), self._names - cell_len(tree)) + GAP, name_style),
            *(Segment(column.cell(cells[column.title][0]), cells[column.title][1]) for column in self._columns),
            *self._drawn(bar, RED if failed else self._styles[where]),
        ]

    def _fold(self, fold: Fold) -> Line:
        tree = self._tree(fold)
        text = fit(_folded(fold), self._before_bars - cell_len(tree)) + GAP
        start_ns, end_ns = min(span.start_ns for span in fold.spans), max(span.end_ns for span in fold.spans)
        bar = self._drawn(self._axis.stretch(start_ns, end_ns), FAINT)
        return [Segment(tree, FAINT), Segment(text, RED if fold.errors else FAINT), *bar]

    def _drawn(self, parts: list[tuple[str, str]], style: Style) -> Iterator[Segment]:
        """Yield the parts of a bar in their styles, with a faint line at each mark where there is nothing else."""
        cell = 0
        for text, part in parts:
            end = cell + len(text)
            if part == REST:
                text = "".join("┊" if at in self._marks else " " for at in range(cell, end))
            yield Segment(text.rstrip() if end == self._axis.width else text, style if part == BAR else FAINT)
            cell = end

    def _process(self, row: Row) -> str:
        where = self._places[id(row.span)]
        return f"{where.service} {where.process}" if self._several_services else where.process

    def _tree(self, row: Row | Fold, *, below: bool = False) -> str:
        """Return the tree before a row's name, or before the notes below it; of a deep one the inner end."""
        fork, corner, line, blank = ("├ ", "└ ", "│ ", "  ") if self._narrow else ("├─ ", "└─ ", "│  ", "   ")
        parts: list[str] = []
        if below:
            parts.append(line if isinstance(row, Row) and row.rows_under else blank)
        ancestor = row
        while ancestor.above is not None and len(parts) <= self._levels:
            if ancestor is row and not below:
                parts.append(corner if row.last else fork)
            else:
                parts.append(blank if ancestor.last else line)
            ancestor = ancestor.above
        if ancestor.above is not None:
            parts.append(f"⋯{ancestor.above.depth + 1}".ljust(len(blank)))
        return "".join(reversed(parts))


def _widest(title: str, texts: Iterable[str], most: int) -> int:
    return min(max([len(title), *map(cell_len, texts)]), most)


def _name(row: Row) -> str:
    mark = "◌ " if row.detached else ""
    return mark + ("✗ " if row.span.status == "ERROR" else "") + (printable(row.span.name) or "(no name)")


def _folded(fold: Fold) -> str:
    what = "spans" if fold.name is None else f"'{shortened(printable(fold.name), _NAME_OF_A_FOLD)}'"
    facts = [count(fold.errors, "error")] if fold.errors else []
    facts += [f"total {duration(fold.total_ns)}", f"max {duration(fold.longest_ns)}"]
    facts += [f"{fold.spans_under:,} under them"] if fold.spans_under else []
    return f"… {len(fold.spans):,} more {what} ({', '.join(facts)})"


def _time(span: StoredSpan) -> str:
    return duration(span.end_ns - span.start_ns)


def _wait_ns(span: StoredSpan) -> float:
    wait = span.attributes.get("sw.wait_ms")
    return wait * 1e6 if isinstance(wait, (int, float)) and 0 < wait < float("inf") else 0


def _waited(span: StoredSpan) -> str:
    wait = _wait_ns(span)
    return duration(wait) if wait else ""
