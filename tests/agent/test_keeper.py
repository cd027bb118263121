"""Two threads with one batch: at the end one takes over what the other hangs with, and only one of them keeps it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from made_spans import span
from sw_agent.export.keeper import Keeper
from sw_agent.export.output import Outcome
from sw_agent.export.stored import read_spool


@pytest.fixture
def config(tmp_path: Path) -> Any:
    return SimpleNamespace(
        path=str(tmp_path / "traces.db"), name="shop", spool_size=1 << 20, spool_age=60.0, export_timeout=1.0
    )


def keep(keeper: Keeper) -> Outcome:
    outcome = Outcome()
    keeper.send([span()], outcome, time.monotonic() + 30, True)
    keeper.close()
    return outcome


def test_what_is_just_being_kept_is_settled_before_another_thread_takes_over(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper(config, "http://here")
    outcomes: list[Outcome] = []
    begun, may_put = threading.Event(), threading.Event()
    put = keeper._spool.put

    def slow_put(*arguments: Any) -> Any:
        begun.set()
        may_put.wait(30)
        return put(*arguments)

    monkeypatch.setattr(keeper._spool, "put", slow_put)
    monkeypatch.setattr("sw_agent.export.keeper.LONGEST_PUT", 30)
    hanging = threading.Thread(target=lambda: outcomes.append(keep(keeper)))
    hanging.start()
    assert begun.wait(30)
    taking_over = threading.Thread(target=keeper.standby)
    taking_over.start()
    may_put.set()
    taking_over.join()
    hanging.join()
    assert (outcomes[0].done, outcomes[0].spooled) == (1, 1)


def test_what_another_thread_has_taken_over_is_kept_by_that_one_only(config: Any) -> None:
    keeper = Keeper(config, "http://here")
    standby = keeper.standby()
    assert keep(keeper).done == 0
    assert keep(standby).spooled == 1
    (waiting,) = read_spool(config.path)
    assert waiting.spans == 1
    keeper.begin()
    assert keep(keeper).spooled == 1


def test_a_request_of_the_spool_that_another_thread_has_taken_over_is_put_back_and_no_other_is_taken(
    config: Any,
) -> None:
    keeper = Keeper(config, "http://here")
    keep(keeper)
    asked = 0

    def hang_and_return(body: bytes, spans: int) -> bool:
        nonlocal asked
        asked += 1
        keeper.standby().end_round(time.monotonic() + 30, True)
        return True

    keeper.empty(hang_and_return, time.monotonic() + 30, time.monotonic() + 30)
    assert asked == 1
    assert spans_from(Keeper(config, "http://here")) == [1]


def test_a_request_of_the_spool_whose_sending_fails_in_an_unknown_way_is_put_back(config: Any) -> None:
    keeper = Keeper(config, "http://here")
    keep(keeper)

    def fail(body: bytes, spans: int) -> bool:
        raise LookupError

    with pytest.raises(LookupError):
        keeper.empty(fail, time.monotonic() + 30, time.monotonic() + 30)
    assert spans_from(keeper) == [1]


def spans_from(keeper: Keeper) -> list[int]:
    taken: list[int] = []

    def note(body: bytes, spans: int) -> bool:
        taken.append(spans)
        return True

    keeper.empty(note, time.monotonic() + 30, time.monotonic() + 30)
    return taken
