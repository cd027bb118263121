"""How times, counts and names are put into words that are short, and safe to send to a terminal."""

from __future__ import annotations

import unicodedata
from datetime import datetime

from rich.cells import cell_len

_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"))


def duration(nanoseconds: float) -> str:
    """Return a duration with three significant digits, at most eight characters: `1.02 s`, `12.3 ms`, `2m 05s`."""
    if nanoseconds < 0:
        return "-" + duration(-nanoseconds)
    seconds = round(nanoseconds / 1e9)
    if seconds >= 3600:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02}m"
    if seconds >= 60:
        return f"{seconds // 60}m {seconds % 60:02}s"
    for size, unit in _UNITS:
        if nanoseconds >= size * 0.9995 or unit == "µs":
            value = nanoseconds / size
            decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
            text = f"{value:.{decimals}f}"
            return f"{'0' if value == 0 else text} {unit}"
    raise AssertionError("the last unit always fits")


def count(number: int, noun: str) -> str:
    """Return `1 span`, `2 spans`, `3 processes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def moment(nanoseconds: int) -> str:
    """Return a time since the epoch as local date and time, to the millisecond."""
    return datetime.fromtimestamp(nanoseconds / 1e9).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def ago(nanoseconds: int) -> str:
    """Return how long ago something was, in its largest unit: `5 s ago`, `3 h ago`."""
    seconds = nanoseconds / 1e9
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{int(seconds)} s ago" if seconds >= 1 else "now"


def printable(text: str) -> str:
    """Return one line in which nothing moves the cursor, changes a colour or turns the direction of the text around.

    Runs of white space become one space, other characters that are not printable `�`.
    """
    text = " ".join(text.split())
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


def shortened(text: str, width: int, *, keep_end: bool = False) -> str:
    """Return `text` in at most `width` cells of a terminal, cut with `…` at its end or in its middle."""
    if cell_len(text) <= width:
        return text
    if width <= 0:
        return ""
    tail = _take(text[::-1], (width - 1) // 2)[::-1] if keep_end else ""
    return _take(text, width - 1 - cell_len(tail)) + "…" + tail


def fit(text: str, width: int, *, keep_end: bool = False) -> str:
    """Return `text` in exactly `width` cells: shortened, or padded with blanks."""
    text = shortened(text, width, keep_end=keep_end)
    return text + " " * (width - cell_len(text))


def wrapped(text: str, width: int, *, most: int) -> list[str]:
    """Return `text` in lines of at most `width` cells, broken between words where possible, cut after `most` lines."""
    lines: list[str] = []
    while cell_len(text) > width > 0 and len(lines) < most - 1:
        line = _take(text, width + 1)
        line = line[: line.rfind(" ")] if " " in line else _take(text, width)
        if not line:
            break
        lines.append(line)
        text = text[len(line) :].lstrip()
    return [*lines, shortened(text, width)]


def _take(text: str, width: int) -> str:
    """Return as much of the beginning of `text` as fits into `width` cells."""
    used = 0
    for position, character in enumerate(text):
        used += 0 if unicodedata.combining(character) else cell_len(character)
        if used > width:
            return text[:position]
    return text
