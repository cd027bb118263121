"""Secrets: whatever a program puts into its spans, none of them leaves the process by any way."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launched import PRELUDE, Launch
from receivers import attributes_of, grpc_collector, http_collector, nobody

SECRETS = """
url = "postgresql://shop:hunter2@db/orders"
with S("connect to " + url, attributes={"db.url": url, "card": "4111111111111111", "http.request.header.cookie": "hunter2"}) as span:
    span.add_event("asked", {"headers": "{'Authorization': 'Bearer hunter2-0123456789'}"})
    try:
        raise ValueError("401 for http://hunter2@host/?token=hunter2, sent Cookie: session=hunter2")
    except ValueError as error:
        span.record_exception(error)
        span.set_status(trace.StatusCode.ERROR, str(error))
open_span = tracer.start_span("open", attributes={"url": url})
"""  # noqa: E501
PATTERN = r"\b4\d{15}\b"


@pytest.fixture
def launch(launch: Launch) -> Launch:
    return partial(launch, SW_EXPORT_REDACT=PATTERN)


@pytest.mark.parametrize("way", ["local", "console", "http/protobuf", "grpc", "spool"])
def test_no_secret_leaves(launch: Launch, way: str, tmp_path: Path) -> None:
    collectors: dict[str, Any] = {"http/protobuf": http_collector, "grpc": grpc_collector, "spool": nobody}
    with collectors.get(way, nullcontext)() as collector:
        endpoint = getattr(collector, "endpoint", collector) or "http://127.0.0.1:9"
        app = launch(
            SECRETS,
            "--debug",
            SW_EXPORT_TO=way if way in ("local", "console") else "otlp",
            SW_EXPORT_ENDPOINT=endpoint.replace("://", "://me:hunter2@") if way == "spool" else endpoint,
            SW_EXPORT_PROTOCOL="grpc" if way == "grpc" else "http/protobuf",
        )
        out, err = app.end_with_stderr()
        sent = [request.SerializeToString() for request in getattr(collector, "requests", ())]
    left = b"".join([*sent, *(path.read_bytes() for path in tmp_path.glob("traces.db*")), out.encode(), err.encode()])
    assert b"REDACTED" in left
    assert b"open" in left
    assert b"hunter2" not in left
    assert b"4111111111111111" not in left


def test_where_nothing_is_compiled_the_same_spans_leave_and_no_secret(launch: Launch) -> None:
    not_compiled = "import sys\nsys.modules['sw_agent.export._plain_spans'] = None\n"
    plain = "with S('plain', attributes={'n': 1, 'f': 0.5, 't': 'text', 'b': True}): pass\n"
    seen = []
    for first in ("", not_compiled):
        with http_collector() as collector:
            app = launch(
                plain + SECRETS,
                prelude=first + PRELUDE,
                SW_EXPORT_TO="otlp",
                SW_EXPORT_ENDPOINT=collector.endpoint,
            )
            app.end()
            assert b"hunter2" not in b"".join(request.SerializeToString() for request in collector.requests)
            attributes = {span.name: attributes_of(span) for span in collector.spans}
            seen.append({name: {**each, "thread.id": None} for name, each in attributes.items()})
    assert len(seen[0]) == 3
    assert seen[0] == seen[1]
