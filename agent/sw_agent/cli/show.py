"""`sw-python show`: one trace of the local store, as a waterfall or as JSON.

`--json` prints one object: `trace_id`, `start_ns`, `duration_ns`, and `spans`, an array in order of start. Times are
nanoseconds, since the epoch where they are moments. A span has

    span_id, parent_id      16 hex digits; the parent's is null for a root
    name, kind, scope       strings; the kind "INTERNAL", "SERVER", …, the scope the name of the tracer
    start_ns, end_ns, duration_ns
    status                  "UNSET", "OK" or "ERROR"
    status_description      a string, empty where nothing was said
    attributes, resource    objects; the resource is what describes the process that made the span
    events                  an array of {name, time_ns, attributes}
    links                   an array of {trace_id, span_id, attributes}
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .traces import HOW_TO_GET_ONE, add_path_arguments, holds_something, store_path

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from ..export.store import StoredSpan

_MOST_TRACES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument(
        "trace",
        nargs="?",
        default="last",
        metavar="ID",
        help="how the trace's id begins, or `last` (default: last)",
    )
    parser.add_argument("--all", action="store_true", help="show every span, also of long repetitions")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_path_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print the trace."""
    from ..export.store import StoreError, read_trace

    path = store_path(options)
    if not holds_something(path):
        raise StoreError(f"no traces yet in {path}\n{HOW_TO_GET_ONE}")
    spans = read_trace(path, options.trace)
    if options.json:
        import json

        print(json.dumps(_as_json(spans), indent=2))
    else:
        from ..view.terminal import show
        from ..view.waterfall import Waterfall

        show(Waterfall(spans, show_all=options.all))
    return 0


def print_run(path: str, run: str) -> None:
    """Print the waterfalls of all traces of one `sw-python run --show`, in order of start.

    Nothing is raised for a store that is missing or cannot be read: the program has ended, its exit status is the
    command's, and one line on stderr says what was wrong.
    """
    from ..view.terminal import until_closed

    until_closed(lambda: _print_run(path, run))


def _print_run(path: str, run: str) -> int:
    from ..export.store import StoreError, read_trace, read_traces
    from ..view.terminal import show
    from ..view.waterfall import Waterfall

    try:
        summaries = read_traces(path, limit=_MOST_TRACES, run=run) if holds_something(path) else []
        for summary in reversed(summaries):
            print()
            show(Waterfall(read_trace(path, summary.trace_id)))
    except StoreError as error:
        print(f"sw-python: {error}", file=sys.stderr)
        return 1
    if not summaries:
        print(
            "sw-python: no trace: the program made no spans (--program-span puts one around all of it), or the agent"
            " was off in it",
            file=sys.stderr,
        )
    return 0


def _as_json(spans: Sequence[StoredSpan]) -> dict[str, object]:
    start_ns = min(span.start_ns for span in spans)
    return {
        "trace_id": spans[0].trace_id,
        "start_ns": start_ns,
        "duration_ns": max(span.end_ns for span in spans) - start_ns,
        "spans": [_span_as_json(span) for span in spans],
    }


def _span_as_json(span: StoredSpan) -> dict[str, object]:
    return {
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "name": span.name,
        "kind": span.kind,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "duration_ns": span.end_ns - span.start_ns,
        "status": span.status,
        "status_description": span.status_description,
        "attributes": span.attributes,
        "events": span.events,
        "links": span.links,
        "resource": span.resource,
        "scope": span.scope,
    }
