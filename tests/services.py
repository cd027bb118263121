"""The brokers that tests need, as fixtures to import: Redis and RabbitMQ, where they usually listen on this machine.

Where Redis does not answer, a `redis-server` from the PATH is started. Where there is none, or no RabbitMQ answers,
the tests are skipped with the reason; with REQUIRE_SERVICES=1 in the environment they fail. What is stored in either
must have a name of the test's own, and be deleted at the end.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

REDIS = ("127.0.0.1", 6379)
RABBITMQ = ("127.0.0.1", 5672)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Yield the URL of a Redis."""
    with running_redis() as url:
        yield url


@pytest.fixture(scope="session")
def rabbitmq_url() -> str:
    """Return the URL of a RabbitMQ."""
    return running_rabbitmq()


@contextmanager
def running_redis() -> Iterator[str]:
    """Yield the URL of the Redis that answers, or of one that runs meanwhile."""
    if _answers(*REDIS):
        yield _redis_url(REDIS[1])
        return
    with own_redis() as url:
        yield url


@contextmanager
def own_redis() -> Iterator[str]:
    """Yield the URL of a Redis that nobody else uses, and that is gone afterwards."""
    server = shutil.which("redis-server")
    if server is None:
        _without("there is no redis-server on the PATH")
    port = _free_port()
    arguments = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen([str(server), *arguments], stdout=subprocess.DEVNULL, cwd=folder) as process,
    ):
        try:
            deadline = time.monotonic() + 30
            while not _answers("127.0.0.1", port):
                assert process.poll() is None, "redis-server has ended"
                assert time.monotonic() < deadline, "redis-server does not answer"
                threading.Event().wait(0.02)
            yield _redis_url(port)
        finally:
            process.kill()


def running_rabbitmq() -> str:
    """Return the URL of the RabbitMQ that answers."""
    if not _answers(*RABBITMQ):
        _without("RabbitMQ does not answer at 127.0.0.1:5672")
    return "amqp://guest:guest@127.0.0.1:5672//"


def _without(reason: str) -> None:
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(f"{reason}, and REQUIRE_SERVICES is 1", pytrace=False)
    pytest.skip(reason)


def _redis_url(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
