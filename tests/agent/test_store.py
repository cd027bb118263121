"""The local store: what is written can be read, by many at once, and nothing else is touched."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.status import Status, StatusCode

from made_spans import LARGE, context, send, span
from sw_agent.export.store import Store, StoreError, read_trace, read_traces


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "traces.db")


def write(path: str, *spans: ReadableSpan, max_bytes: int = LARGE, run: str | None = None) -> list[str]:
    store = Store(path, max_bytes, run)
    try:
        return [loss.detail for loss in send(store, spans)]
    finally:
        store.close()


def test_a_span_is_read_as_it_was_written(path: str) -> None:
    write(
        path,
        span(
            0xABC,
            2,
            parent=1,
            name="pay",
            kind=SpanKind.CLIENT,
            attributes={"amount": 12.5, "items": ("a", "b"), "ok": True},
            events=[Event("retry", {"n": 1}, timestamp=5)],
            links=[Link(context(0xF, 0xE), {"why": "batch"})],
            status=Status(StatusCode.ERROR, "declined"),
        ),
        run="r1",
    )
    (found,) = read_trace(path, "last")
    assert found.trace_id == f"{0xABC:032x}"
    assert (found.span_id, found.parent_id) == (f"{2:016x}", f"{1:016x}")
    assert (found.name, found.kind, found.scope, found.run) == ("pay", "CLIENT", "tests", "r1")
    assert (found.start_ns, found.end_ns) == (1000 * 0xABC + 2, 1000 * 0xABC + 12)
    assert (found.status, found.status_description) == ("ERROR", "declined")
    assert found.attributes == {"amount": 12.5, "items": ["a", "b"], "ok": True}
    assert found.events == [{"name": "retry", "time_ns": 5, "attributes": {"n": 1}}]
    assert found.links == [{"trace_id": f"{0xF:032x}", "span_id": f"{0xE:016x}", "attributes": {"why": "batch"}}]
    assert found.resource == {"service.name": "shop", "process.pid": 7}


def test_a_resource_without_a_pid_gets_that_of_the_process(path: str) -> None:
    write(path, span(resource=Resource({"service.name": "own"})))
    assert read_trace(path, "last")[0].resource["process.pid"] == os.getpid()


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())  # with lone surrogates
    | st.binary()
    | st.builds(lambda: 10**5000)
    | st.builds(Unprintable)
    | st.builds(object),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(attributes=st.dictionaries(st.text(st.characters()), VALUES), name=st.text(st.characters()))
def test_no_value_of_one_span_loses_the_batch(
    tmp_path_factory: pytest.TempPathFactory, attributes: dict[str, Any], name: str
) -> None:
    path = str(tmp_path_factory.mktemp("store") / "traces.db")
    odd = span(number=2, name=name, attributes=attributes, status=Status(StatusCode.ERROR, name))
    assert write(path, span(number=1), odd, span(number=3)) == []
    found = read_trace(path, "last")
    assert [each.span_id for each in found] == [f"{number:016x}" for number in (1, 2, 3)]
    json.dumps(found, allow_nan=False).encode()


def test_folder_and_file_are_the_users_alone(path: str) -> None:
    store = Store(path, LARGE)
    send(store, [span()])
    try:
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
        for name in os.listdir(os.path.dirname(path)):
            assert stat.S_IMODE(os.stat(os.path.join(os.path.dirname(path), name)).st_mode) == 0o600
    finally:
        store.close()


# Reading


def test_traces_are_listed_newest_first_with_their_roots(path: str) -> None:
    failed = Status(StatusCode.ERROR)
    write(path, span(1, 2, parent=1, name="child", status=failed), span(1, 1, name="old"), span(2, 1, name="new"))
    new, old = read_traces(path)
    assert (new.root_name, new.spans, new.errors, new.service) == ("new", 1, 0, "shop")
    assert (old.root_name, old.spans, old.errors, old.start_ns, old.duration_ns) == ("old", 2, 1, 1001, 11)


def test_the_list_of_traces_can_be_filtered(path: str) -> None:
    write(path, span(1, 1, name="Checkout"), span(1, 2, parent=1, name="pay"))
    write(path, span(2, 1, name="slow", end_time=2001 + 5_000_000, status=Status(StatusCode.ERROR)), run="r2")
    write(path, span(3, 1, resource=Resource({"service.name": "stock", "process.pid": 1})))

    def found(**filters: Any) -> list[int]:
        return [int(trace.trace_id, 16) for trace in read_traces(path, **filters)]

    assert found() == [3, 2, 1]
    assert found(limit=2) == [3, 2]
    assert found(service="stock") == [3]
    assert found(name="checkout") == [1]
    assert found(name="pay") == [1]
    assert found(min_duration_ms=5) == [2]
    assert found(min_duration_ms=6) == []
    assert found(errors_only=True) == [2]
    assert found(since_ns=2001) == [3, 2]
    assert found(run="r2") == [2]
    assert found(run="r2", service="stock") == []


def test_a_trace_is_found_by_the_beginning_of_its_id(path: str) -> None:
    write(path, span(0xAB << 120, 1), span(0xAC << 120, 1), span(0xAC << 120, 2))
    assert len(read_trace(path, "ab")) == 1
    assert len(read_trace(path, "AC")) == 2
    with pytest.raises(StoreError, match="more than one trace has an id that begins with a"):
        read_trace(path, "a")
    with pytest.raises(StoreError, match="no trace has an id that begins with ff"):
        read_trace(path, "ff")


def test_a_store_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        read_traces(str(tmp_path / "none.db"))
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreError, match="is empty"):
        read_trace(str(tmp_path / "empty.db"), "last")


def test_listing_a_hundred_thousand_spans_takes_no_more_than_a_few_scans_of_them(path: str) -> None:
    store = Store(path, LARGE * 10)
    for trace in range(1, 101):
        assert send(store, [span(trace, number, parent=1 if number > 1 else None) for number in range(1, 1001)]) == []
    store.close()
    with sqlite3.connect(path) as database:
        begun = time.perf_counter()
        assert sum(len(json.loads(row[0])) for row in database.execute("SELECT attributes FROM spans")) == 0
        whole_scan = time.perf_counter() - begun
    database.close()
    begun = time.perf_counter()
    assert len(read_traces(path)) == 20
    assert len(read_trace(path, "last")) == 1000
    assert time.perf_counter() - begun < 10 * whole_scan


# Files that are something else


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"x"])
def test_a_file_that_is_no_database_is_not_touched(path: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path))
    Path(path).write_bytes(content)
    (said,) = write(path, span())
    assert "is no SQLite database" in said
    assert path in said
    assert Path(path).read_bytes() == content
    assert os.listdir(os.path.dirname(path)) == ["traces.db"]
    with pytest.raises(StoreError, match="is no SQLite database"):
        read_traces(path)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("CREATE TABLE theirs (x)", "another program"),
        ("PRAGMA application_id = 5", "another program"),
        ("PRAGMA user_version = 3", "another program"),
    ],
)
def test_a_database_of_another_program_is_not_touched(path: str, statement: str, said: str) -> None:
    os.makedirs(os.path.dirname(path))
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()
    before = Path(path).read_bytes()
    assert said in write(path, span())[0]
    assert Path(path).read_bytes() == before


def test_a_store_of_another_version_is_not_touched(path: str) -> None:
    write(path, span())
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    assert "another version" in write(path, span())[0]
    with pytest.raises(StoreError, match="another version"):
        read_traces(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_file_loses_spans_and_says_so_as_its_owner(path: str) -> None:
    write(path, span(1))
    os.chmod(path, 0o400)
    assert "readonly" in write(path, span(2))[0]


def test_a_folder_in_place_of_the_file_is_said(path: str) -> None:
    os.makedirs(path)
    assert f"{path} is no file" in write(path, span())[0]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file" in write(str(tmp_path / "file" / "traces.db"), span())[0]


def test_a_full_disk_loses_what_does_not_fit_and_no_more(path: str) -> None:
    """A limit on the size of files stands for the full disk: writing fails in the midst of the file."""
    write(path, span(1, name="before"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = Store(path, LARGE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
        losses = send(store, [span(2, number, attributes={"filler": "x" * 1000}) for number in range(1, 500)])
        assert [loss.count for loss in losses] == [499]
        assert path in losses[0].detail
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert send(store, [span(3, name="after")]) == []
    store.close()
    assert [trace.root_name for trace in read_traces(path)] == ["after", "before"]


# Size, deletion, many writers


def test_the_oldest_traces_make_room_for_new_ones(path: str) -> None:
    store = Store(path, 300_000)
    for trace in range(1, 200):
        assert send(store, [span(trace, number, attributes={"filler": "x" * 500}) for number in range(1, 6)]) == []
    store.close()
    kept = [int(trace.trace_id, 16) for trace in read_traces(path, limit=1000)]
    assert kept == list(range(199, 199 - len(kept), -1))
    assert len(kept) > 20
    assert os.path.getsize(path) < 400_000


def test_a_store_deleted_while_it_is_in_use_is_made_anew(path: str) -> None:
    store = Store(path, LARGE)
    send(store, [span(1)])
    os.unlink(path)
    assert send(store, [span(2)]) == []
    assert [int(trace.trace_id, 16) for trace in read_traces(path)] == [2]
    os.rename(path, path + ".old")
    write(path, span(3))
    assert send(store, [span(4)]) == []
    store.close()
    assert [int(trace.trace_id, 16) for trace in read_traces(path)] == [4, 3]


def test_many_processes_write_into_one_store(path: str) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from made_spans import LARGE, Store, send, span
store = Store({path!r}, LARGE)
number = int(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for batch in range(20):
    losses = send(store, [span(number, batch * 10 + n + 1) for n in range(10)])
    assert not losses, losses[0].detail
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for number in range(1, 9)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert [trace.spans for trace in read_traces(path)] == [200] * 8
