"""The console that all of it is printed on: a terminal with colours, or a pipe, a file or an old terminal without."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

_WIDTH_OF_A_PIPE = 110
_ASCII = str.maketrans(dict(zip("│├└─⋯░▏▎▍▌▋▊▉█▐▕┊✗◌↳…·µ�", "||`-~.##########:xo>~-u?", strict=True)))


def show(*renderables: RenderableType) -> None:
    """Print to stdout, in the width of the terminal, or 110 columns into a pipe (`COLUMNS` sets another width).

    Escape codes go to a terminal only, colours not where `NO_COLOR` is set. Where stdout cannot encode the lines of a
    tree, they are drawn in ASCII.
    """
    piped = not sys.stdout.isatty()
    width = _WIDTH_OF_A_PIPE if piped and not os.environ.get("COLUMNS") else None
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        for renderable in renderables:
            console.print(renderable)
    text = captured.get()
    encoding = sys.stdout.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    sys.stdout.write(text)


def until_closed(command: Callable[[], int]) -> int:
    """Run a command that prints, and return its status; that the reader closes the pipe early is no error.

    Where nothing can be written, on a full disk or to a stdout that is closed, that is said, and the status is 1.
    """
    if sys.stdout is None:
        return _cannot_print("stdout is closed")
    try:
        status = command()
        sys.stdout.flush()
    except OSError as error:
        # What is left in stdout's buffer would raise once more at exit: it goes to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if isinstance(error, BrokenPipeError) else _cannot_print(str(error))
    return status


def _cannot_print(why: str) -> int:
    if sys.stderr is not None:
        sys.stderr.write(f"sw-python: {why}\n")
    return 1
