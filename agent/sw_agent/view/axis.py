"""The common time axis: where a span's bar begins and ends on it, and where it has its marks."""

from __future__ import annotations

from dataclasses import dataclass

from .wording import duration

_FROM_LEFT = " ▏▎▍▌▋▊▉█"
BAR, WAIT, REST = "bar", "wait", "rest"


@dataclass(frozen=True)
class Axis:
    """A stretch of time, in nanoseconds since the epoch, drawn on `width` cells."""

    start_ns: int
    end_ns: int
    width: int

    def position(self, at_ns: float) -> float:
        """Return the distance of a moment from the left end, in cells; what lies outside is put on the nearer end."""
        length = self.end_ns - self.start_ns
        if length <= 0:
            return 0.0
        return min(max((at_ns - self.start_ns) / length, 0.0), 1.0) * self.width

    def marks(self) -> list[tuple[int, str]]:
        """Return cell and label of each mark: at round times, from 0, so far apart that the labels have room."""
        length = max(self.end_ns - self.start_ns, 0)
        room = max(self.width // 9, 1)
        step = next(
            digit * 10**power
            for power in range(30)
            for digit in (1, 2, 5)
            if digit * 10**power * room >= length or digit * 10**power > length
        )
        times = range(0, length + 1, step)
        return [(int(self.position(self.start_ns + at)), _label(at)) for at in times]

    def bar(self, start_ns: int, end_ns: int, wait_ns: float = 0) -> list[tuple[str, str]]:
        """Return `width` cells in parts, each a text and what it is: the span (`BAR`), its wait before it, or the rest.

        The end of the bar is right to an eighth of a cell, its beginning to a half: there are no characters that are
        filled from the right more finely. A span too short to be seen is an eighth of a cell.
        """
        most = self.width * 8
        first = min(round(self.position(start_ns) * 8), most - 1)
        last = min(max(round(self.position(end_ns) * 8), first + 1), most)
        cell, wait_cell = first // 8, int(self.position(start_ns - wait_ns))
        text = _cells(first, last)
        wait = cell - wait_cell if wait_ns > 0 else 0
        parts = [(" " * (cell - wait), REST), ("─" * wait, WAIT), (text, BAR)]
        parts.append((" " * (self.width - cell - len(text)), REST))
        return [part for part in parts if part[0]]

    def stretch(self, start_ns: int, end_ns: int) -> list[tuple[str, str]]:
        """Return `width` cells in parts as `bar` does, with a faint stretch for the time over which many spans lie."""
        first = min(int(self.position(start_ns)), self.width - 1)
        last = max(round(self.position(end_ns)), first + 1)
        parts = [(" " * first, REST), ("░" * (last - first), WAIT), (" " * (self.width - last), REST)]
        return [part for part in parts if part[0]]


def _cells(first: int, last: int) -> str:
    """Return the characters from the cell of eighth `first` on, filled up to eighth `last`."""
    begin, end = first % 8, last - first // 8 * 8
    if end > 8:
        return _filled_from(begin) + "█" * (end // 8 - 1) + _FROM_LEFT[end % 8].strip()
    middle = (begin + end) / 2
    return _FROM_LEFT[end - begin] if begin == 0 or middle < 4 else _filled_from(max(8 - (end - begin), 1))


def _filled_from(eighth: int) -> str:
    return "█" if eighth < 2 else "▐" if eighth < 6 else "▕"


def _label(nanoseconds: int) -> str:
    if nanoseconds == 0:
        return "0"
    number, _, unit = duration(nanoseconds).partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"
