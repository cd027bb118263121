"""The spool: what the collector has not taken waits there, for whoever of the same service sends next, once."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from made_spans import LARGE, send, span
from sw_agent.export import spool as module
from sw_agent.export.encoding import Request
from sw_agent.export.spool import Spool
from sw_agent.export.store import Store, StoreError, read_traces
from sw_agent.export.stored import read_spool

HOUR = 3600.0
LARGE_BODY = module.SMALL  # bytes from which on a request has a row of its own


def soon() -> float:
    return time.monotonic() + 30


def request(number: int, size: int = LARGE_BODY, spans: int = 1) -> Request:
    return Request(bytes([number]) * size, spans)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "traces.db")


@pytest.fixture
def spool_of(path: str) -> Iterator[Callable[..., Spool]]:
    opened: list[Spool] = []

    def make(service: str = "shop", max_bytes: int = LARGE, endpoint: str = "http://here") -> Spool:
        opened.append(Spool(path, service, endpoint, max_bytes, HOUR))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def spool(spool_of: Callable[..., Spool]) -> Spool:
    return spool_of()


def numbers(spool: Spool) -> list[int]:
    """Take all requests out, as if each had been sent, and return their numbers."""
    found = []
    taken = spool.next(None, soon())
    while taken is not None:
        found.append(taken.body[0])
        taken = spool.next(taken, soon())
    return found


def test_requests_come_out_in_their_order_and_once(spool: Spool) -> None:
    for number in range(3):
        assert spool.put(request(number), soon()) == (True, [])
    assert numbers(spool) == [0, 1, 2]
    assert numbers(spool) == []


def test_small_requests_become_one_that_has_the_spans_of_all(spool: Spool) -> None:
    for number in range(5):
        spool.put(request(number, size=100, spans=2), soon())
    taken = spool.next(None, soon())
    assert taken is not None
    assert (taken.spans, taken.body) == (10, b"".join(bytes([number]) * 100 for number in range(5)))
    assert spool.next(taken, soon()) is None


def test_a_request_that_somebody_is_sending_is_neither_taken_twice_nor_added_to(
    spool: Spool, spool_of: Callable[..., Spool]
) -> None:
    other = spool_of("shop")
    spool.put(request(1, size=100), soon())
    taken = spool.next(None, soon())
    assert taken is not None
    assert other.next(None, soon()) is None
    other.put(request(2, size=100), soon())
    spool.give_back(taken, soon())
    assert numbers(spool) == [1, 2]


def test_what_a_process_had_taken_when_it_was_killed_is_free_again_later(
    path: str, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.put(request(1), soon())
    assert spool.next(None, soon()) is not None
    assert numbers(spool) == []
    later = time.time_ns() + 121 * 10**9
    monkeypatch.setattr(module, "time_ns", lambda: later)
    assert numbers(spool) == [1]


def test_a_clock_that_was_set_far_back_frees_what_was_taken(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.put(request(1), soon())
    assert spool.next(None, soon()) is not None
    now = time.time_ns()
    monkeypatch.setattr(module, "time_ns", lambda: now - 60 * 10**9)
    assert numbers(spool) == []
    monkeypatch.setattr(module, "time_ns", lambda: now - 3600 * 10**9)
    assert numbers(spool) == [1]


def test_what_another_process_has_taken_since_is_not_deleted_by_the_first(
    spool: Spool, spool_of: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = spool_of()
    spool.put(request(1, size=10), soon())
    first = spool.next(None, soon())
    spool.put(request(2, size=10), soon())
    later = time.time_ns() + 121 * 10**9
    monkeypatch.setattr(module, "time_ns", lambda: later)
    second = other.next(None, soon())
    assert second is not None
    assert first is not None
    assert second.body == first.body
    third = spool.next(first, soon())
    assert third is not None
    assert third.body == bytes([2]) * 10
    other.give_back(second, soon())
    assert other.next(None, soon()) is not None


def test_services_do_not_send_each_others_requests(spool: Spool, spool_of: Callable[..., Spool]) -> None:
    other = spool_of("stock")
    other.put(request(1), soon())
    spool.put(request(2), soon())
    assert numbers(spool) == [2]
    assert numbers(other) == [1]


def test_what_is_for_one_collector_is_not_sent_to_another(spool: Spool, spool_of: Callable[..., Spool]) -> None:
    spool.put(request(1), soon())
    assert numbers(spool_of(endpoint="http://there")) == []
    assert numbers(spool) == [1]


def test_the_oldest_make_room_for_new_ones_and_are_counted(spool_of: Callable[..., Spool]) -> None:
    spool = spool_of(max_bytes=4 * LARGE_BODY)
    lost = []
    for number in range(10):
        kept, losses = spool.put(request(number, spans=number + 1), soon())
        assert kept
        lost += [(loss.count, loss.reason) for loss in losses]
    assert lost == [(count, "spool full") for count in range(1, 7)]
    assert numbers(spool) == [6, 7, 8, 9]


def test_a_request_that_is_larger_than_the_spool_is_not_kept_and_costs_no_other(spool_of: Callable[..., Spool]) -> None:
    spool = spool_of(max_bytes=LARGE_BODY)
    spool.put(request(1), soon())
    assert spool.put(request(2, size=LARGE_BODY + 1), soon()) == (False, [])
    assert numbers(spool) == [1]


def test_what_is_too_old_goes_and_is_counted(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.put(request(1, spans=7), soon())
    later = time.time_ns() + int(HOUR * 10**9) + 1
    monkeypatch.setattr(module, "time_ns", lambda: later)
    _, losses = spool.put(request(2), soon())
    assert [(loss.count, loss.reason) for loss in losses] == [(7, "too old in the spool")]
    assert numbers(spool) == [2]


def test_it_lives_in_the_local_store_without_taking_its_room(path: str, spool_of: Callable[..., Spool]) -> None:
    store = Store(path, 300_000)
    spool = spool_of("shop")
    assert send(store, [span(1)]) == []
    for number in range(10):
        spool.put(request(number), soon())
    assert send(store, [span(2)]) == []
    store.close()
    assert len(read_traces(path)) == 2
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_store_from_before_there_was_a_spool_gets_one(path: str, spool: Spool) -> None:
    store = Store(path, LARGE)
    send(store, [span(1)])
    store.close()
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE spool")
    database.close()
    assert read_spool(path) == []
    spool.put(request(1), soon())
    assert numbers(spool) == [1]
    assert len(read_traces(path)) == 1


def test_people_see_what_waits_for_whom(path: str, spool: Spool, spool_of: Callable[..., Spool]) -> None:
    other = spool_of("stock")
    before = time.time_ns()
    spool.put(request(1, spans=3), soon())
    spool.put(request(2, spans=4), soon())
    other.put(request(3, size=10, spans=5), soon())
    shop, stock = read_spool(path)
    assert (shop.service, shop.spans, shop.bytes) == ("shop", 7, 2 * LARGE_BODY)
    assert (stock.service, stock.spans, stock.bytes) == ("stock", 5, 10)
    assert before <= shop.oldest_ns <= stock.oldest_ns <= time.time_ns()


def test_nothing_is_made_by_looking(path: str, spool: Spool) -> None:
    assert spool.next(None, soon()) is None
    assert not os.path.exists(os.path.dirname(path))


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0garbage" * 100])
def test_a_file_that_is_something_else_is_not_touched(path: str, spool: Spool, content: bytes) -> None:
    os.makedirs(os.path.dirname(path))
    Path(path).write_bytes(content)
    with pytest.raises((StoreError, sqlite3.Error)):
        spool.put(request(1), soon())
    assert Path(path).read_bytes() == content


def test_many_processes_fill_and_empty_one_spool_and_nothing_comes_twice_or_not_at_all(
    path: str, spool_of: Callable[..., Spool]
) -> None:
    program = f"""
import sys, time
from sw_agent.export.encoding import Request
from sw_agent.export.spool import Spool
spool = Spool({path!r}, "shop", "http://here", 10**9, 3600)
writer = sys.argv[1]
print("ready", flush=True)
sys.stdin.readline()
for number in range(30):
    kept, losses = spool.put(Request(f"{{writer}}.{{number}} ".encode(), 1), time.monotonic() + 60)
    assert kept and not losses
    if number % 3 == 0:
        taken = spool.next(None, time.monotonic() + 60)
        if taken is not None:
            print(taken.body.decode(), taken.spans, flush=True)
            if number % 2:
                spool.give_back(taken, time.monotonic() + 60)
                print("BACK", flush=True)
            else:
                rest = spool.next(taken, time.monotonic() + 60)
                if rest is not None:
                    spool.give_back(rest, time.monotonic() + 60)
spool.close()
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    came = []
    for process in processes:
        out, _ = process.communicate()
        assert process.returncode == 0
        lines = out.splitlines()
        came += [line for line, after in zip(lines, [*lines[1:], ""], strict=True) if "BACK" not in (line, after)]
    spool = spool_of()
    taken = spool.next(None, soon())
    while taken is not None:
        came.append(f"{taken.body.decode()} {taken.spans}")
        taken = spool.next(taken, soon())
    items: list[str] = []
    for line in came:
        *names, spans = line.split()
        assert len(names) == int(spans)
        items += names
    assert sorted(items) == sorted(f"{writer}.{number}" for writer in range(4) for number in range(30))
