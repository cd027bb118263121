"""What all tests share: modules beside the tests can be imported, and the agent may not report an error unasked."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sw_agent import _containment, _log

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "plugins")]  # receivers.py; contract.py


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def agent_errors() -> Iterator[list[logging.LogRecord]]:
    """Collect what the agent logs at ERROR, and fail the test unless it has taken the records out of the list."""
    _containment.failures.clear()
    collector = _Collector()
    logger = _log.logger()  # it does not propagate: pytest's own capture never sees it
    logger.addHandler(collector)
    try:
        yield collector.records
    finally:
        logger.removeHandler(collector)
        _containment.failures.clear()
    messages = [_Collector.format(collector, record) for record in collector.records]
    assert not messages, "\n".join(messages)
