"""What all tests share: modules beside the tests can be imported, and the agent may not report an error unasked."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sw_agent import _containment, _log

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "plugins")]  # launched.py; contract.py

from launched import Launch, Launched  # noqa: E402
from tls import tls  # noqa: E402, F401  a fixture

# A shell lets what it runs in the background ignore Ctrl-C, and so would all programs that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def agent_errors() -> Iterator[list[logging.LogRecord]]:
    """Collect what the agent logs at ERROR, and fail the test unless it has taken the records out of the list."""
    _containment.forget()
    collector = _Collector()
    logger = _log.logger()  # it does not propagate: pytest's own capture never sees it
    logger.addHandler(collector)
    try:
        yield collector.records
    finally:
        logger.removeHandler(collector)
        _containment.forget()
    messages = [_Collector.format(collector, record) for record in collector.records]
    assert not messages, "\n".join(messages)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start programs under the agent, in the test's folder; none is left running."""
    launched: list[Launched] = []

    def start(code: str, *options: str, **more: Any) -> Launched:
        launched.append(Launched(tmp_path, code, *options, **more))
        return launched[-1]

    yield start
    for each in launched:
        each.close()
