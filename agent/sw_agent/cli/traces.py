"""`sw-python traces`: the traces in the local store, newest first, as a table or as JSON.

`--json` prints one array of objects: `trace_id` (32 hex digits), `service`, `root_name` (strings), `start_ns` (since
the epoch), `duration_ns`, `spans` and `errors` (integers).
"""

from __future__ import annotations

import os
import re
import time
from argparse import ArgumentTypeError
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from ..export.store import TraceSummary

HOW_TO_GET_ONE = (
    "A trace gets there when a program that makes spans runs under the agent and no OTLP endpoint is configured:"
    "\n\n    sw-python run app.py\n\n"
    "A program without spans of its own gets one around all of it with --program-span."
)
_MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4, "h": 3.6e6, "d": 8.64e7}
_MOST = 1_000_000
_LAST_NS = 9.2e18  # in 2261; SQLite's integers end soon after


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    parser.add_argument("--service", metavar="NAME", help="only traces that this service took part in")
    parser.add_argument("--name", help="only traces with this in a span's name")
    parser.add_argument(
        "--min-duration",
        metavar="TIME",
        type=milliseconds,
        help="only traces that took at least so long: 250ms, 1.5s; a bare number is milliseconds",
    )
    parser.add_argument("--errors", action="store_true", help="only traces with a failed span")
    parser.add_argument(
        "--since", metavar="WHEN", type=moment, help="only traces that began since then: 10m, 2h, 1d, 2026-11-21T10:00"
    )
    parser.add_argument("--limit", metavar="N", type=_positive, default=20, help="at most so many (default: 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    add_path_arguments(parser)


def add_path_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which store is read."""
    parser.add_argument("--path", metavar="FILE", help="the store to read (default: the configured one)")
    parser.add_argument("--config", metavar="FILE", help="the configuration to use (default: as for `run`)")


def run(options: argparse.Namespace) -> int:
    """Print the list."""
    from ..export.store import read_traces

    path = store_path(options)
    summaries = []
    if holds_something(path):
        summaries = read_traces(
            path,
            limit=options.limit,
            service=options.service,
            name=options.name,
            min_duration_ms=options.min_duration,
            errors_only=options.errors,
            since_ns=options.since,
        )
    if options.json:
        import json

        print(json.dumps([_as_json(summary) for summary in summaries], indent=2))
    elif summaries:
        from ..view.listing import Listing
        from ..view.terminal import show

        show(Listing(summaries, time.time_ns()))
    elif any((options.service, options.name, options.min_duration, options.errors, options.since)):
        print(f"No trace in {path} is like that.")
    else:
        print(f"No traces yet in {path}.\n{HOW_TO_GET_ONE}")
    return 0


def store_path(options: argparse.Namespace) -> str:
    """Return the store file that the options name, else the one of the configuration.

    Raises:
        ConfigError: the configuration is needed, and wrong.
    """
    if options.path:
        return str(options.path)
    from .. import _config, _discovery

    environ = dict(os.environ)
    if options.config:
        environ["SW_AGENT_CONFIG"] = os.path.abspath(options.config)
    return _config.load(environ, _discovery.find_plugins()).path


def holds_something(path: str) -> bool:
    """Return whether there is a file at all, with anything in it: without one nothing is wrong, it is just early."""
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False
    except OSError:  # whoever reads it says why it cannot be read
        return True


def milliseconds(text: str) -> float:
    """Return the milliseconds in `250ms`, `1.5s`, `2m`, or `250`.

    Raises:
        ArgumentTypeError: it is no time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zµ]*)", text.strip())
    factor = _MILLISECONDS.get(match[2] or "ms") if match else None
    if match is None or factor is None:
        raise ArgumentTypeError(f"{text!r} is no time such as 250ms, 1.5s or 2m")
    return float(match[1]) * factor


def moment(text: str) -> int:
    """Return the nanoseconds since the epoch of `10m` (ago), or of a date and time, local where it has no zone.

    Raises:
        ArgumentTypeError: it is neither.
    """
    try:
        if re.fullmatch(r"[\d.]+\s*[a-zµ]+", text.strip()):
            nanoseconds = time.time_ns() - milliseconds(text) * 1e6
        else:
            nanoseconds = datetime.fromisoformat(text.strip().replace("Z", "+00:00")).timestamp() * 1e9
    except (ValueError, OverflowError, ArgumentTypeError):
        raise ArgumentTypeError(f"{text!r} is no time such as 10m, 2h, 2026-11-21 or 2026-11-21T10:00") from None
    return int(min(max(nanoseconds, 0.0), _LAST_NS))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is no number above 0")
    return min(int(text), _MOST)


def _as_json(summary: TraceSummary) -> dict[str, object]:
    keys = ("trace_id", "service", "root_name", "start_ns", "duration_ns", "spans", "errors")
    return {key: getattr(summary, key) for key in keys}
