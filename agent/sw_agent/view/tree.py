"""The spans of one trace as the rows of a tree: parents before children, in order of time, long repetitions folded."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..export.store import StoredSpan

    Children = defaultdict[int, list[StoredSpan]]  # by the id() of the span that they hang under

MOST_ALIKE = 10
MOST_SIBLINGS = 200
_FIRST_SHOWN, _FAILED_SHOWN = 5, 3


@dataclass(eq=False)
class Row:
    """One row: a span, at its place in the tree.

    `above` is the row that it hangs under, None for a root. `last` says that no sibling follows. `detached` says that
    the span has a parent which is not in the store, or is its own ancestor: it is shown as a root.
    """

    above: Row | None
    last: bool
    span: StoredSpan
    detached: bool = False
    rows_under: list[Row | Fold] = field(default_factory=list)
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        self.depth = 0 if self.above is None else self.above.depth + 1


@dataclass(eq=False)
class Fold:
    """One row that stands for siblings alike which are not shown: their name, how many, and what they come to.

    `spans_under` counts the spans below them, which are not shown either.
    """

    above: Row | None
    last: bool
    name: str | None
    spans: list[StoredSpan]
    spans_under: int

    @property
    def total_ns(self) -> int:
        """The sum of the durations."""
        return sum(span.end_ns - span.start_ns for span in self.spans)

    @property
    def longest_ns(self) -> int:
        """The longest of the durations."""
        return max(span.end_ns - span.start_ns for span in self.spans)

    @property
    def errors(self) -> int:
        """How many of them failed."""
        return sum(span.status == "ERROR" for span in self.spans)


def arrange(spans: Sequence[StoredSpan], *, fold: bool = True) -> list[Row | Fold]:
    """Return the rows of a trace, from top to bottom.

    With `fold`, of more than `MOST_ALIKE` siblings whose names differ in digits at most, the first few, the longest and
    a few that failed are shown, the others are one row; so are those beyond the first `MOST_SIBLINGS` of any names.
    """
    roots, children = _forest(sorted(spans, key=lambda span: (span.start_ns, -span.end_ns)))
    rows: list[Row | Fold] = []
    waiting = _siblings(None, roots, children, fold)[::-1]
    while waiting:
        row = waiting.pop()
        rows.append(row)
        if row.above is not None:
            row.above.rows_under.append(row)
        if isinstance(row, Row):
            row.detached = row.above is None and row.span.parent_id is not None
            waiting.extend(reversed(_siblings(row, children[id(row.span)], children, fold)))
    return rows


def _forest(spans: Sequence[StoredSpan]) -> tuple[list[StoredSpan], Children]:
    """Return the roots, and the children of each span, in the order of `spans`.

    Of spans that have the same id the first has the children. Of a circle of parents the first is a root.
    """
    by_id: dict[str | None, StoredSpan] = {}
    for span in spans:
        by_id.setdefault(span.span_id, span)
    children: Children = defaultdict(list)
    for span in spans:
        if (parent := by_id.get(span.parent_id)) is not None:
            children[id(parent)].append(span)
    roots = [span for span in spans if span.parent_id not in by_id]
    reached = {id(span) for span in _with_all_under(roots, children)}
    for span in spans:
        if id(span) not in reached:
            children[id(by_id[span.parent_id])].remove(span)
            roots.append(span)
            reached.update(id(under) for under in _with_all_under([span], children))
    return sorted(roots, key=lambda span: span.start_ns), children


def _with_all_under(spans: Iterable[StoredSpan], children: Children) -> list[StoredSpan]:
    found = {id(span): span for span in spans}
    waiting = list(found.values())
    while waiting:
        for span in children[id(waiting.pop())]:
            if id(span) not in found:
                found[id(span)] = span
                waiting.append(span)
    return list(found.values())


def _siblings(above: Row | None, spans: list[StoredSpan], children: Children, fold: bool) -> list[Row | Fold]:
    rows: list[Row | Fold] = [Row(above, False, span) for span in spans]
    if fold and len(spans) > MOST_ALIKE:
        rows = _folded(above, spans, children)
    if rows:
        rows[-1].last = True
    return rows


def _folded(above: Row | None, spans: list[StoredSpan], children: Children) -> list[Row | Fold]:
    alike: dict[str, list[StoredSpan]] = defaultdict(list)
    for span in spans:
        alike[_shape(span)].append(span)
    kept: set[int] = set()
    hidden_after: dict[int, list[StoredSpan]] = {}
    for group in alike.values():
        shown = _shown_of(group)
        kept.update(map(id, shown))
        hidden_after[id(shown[-1])] = [span for span in group if id(span) not in kept]
    rows: list[Row | Fold] = []
    for span in spans:
        if id(span) in kept:
            rows.append(Row(above, False, span))
        if hidden := hidden_after.get(id(span)):
            rows.append(_fold(above, span.name, hidden, children))
    if len(rows) > MOST_SIBLINGS:
        beyond: list[StoredSpan] = []
        for row in rows[MOST_SIBLINGS:]:
            beyond += [row.span] if isinstance(row, Row) else row.spans
        rows[MOST_SIBLINGS:] = [_fold(above, None, beyond, children)]
    return rows


def _shape(span: StoredSpan) -> str:
    return re.sub(r"\d+", "0", span.name)


def _shown_of(alike: list[StoredSpan]) -> list[StoredSpan]:
    if len(alike) <= MOST_ALIKE:
        return alike
    failed = [span for span in alike[_FIRST_SHOWN:] if span.status == "ERROR"]
    longest = max(alike, key=lambda span: span.end_ns - span.start_ns)
    chosen = {id(span) for span in (*alike[:_FIRST_SHOWN], *failed[:_FAILED_SHOWN], longest)}
    return [span for span in alike if id(span) in chosen]


def _fold(above: Row | None, name: str | None, spans: list[StoredSpan], children: Children) -> Fold:
    if name is not None and len({span.name for span in spans}) > 1:
        name = re.sub(r"\d+", "#", name)
    return Fold(above, False, name, spans, len(_with_all_under(spans, children)) - len(spans))
