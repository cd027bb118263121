"""Where the brokers of the tests come from, and what happens where there is none."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator

import pytest

import services


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no broker answer."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setattr(services, "REDIS", bound.getsockname())
        monkeypatch.setattr(services, "RABBITMQ", bound.getsockname())
        yield


@pytest.mark.usefixtures("nowhere")
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server on the PATH")
def test_where_redis_does_not_answer_one_is_started_and_ended() -> None:
    redis = pytest.importorskip("redis")
    with services.running_redis() as url, redis.Redis.from_url(url) as client:
        assert client.ping()
        assert client.config_get("save") == {"save": ""}
    with pytest.raises(redis.exceptions.ConnectionError):
        redis.Redis.from_url(url).ping()


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("required", [False, True])
def test_tests_without_their_broker_are_skipped_or_fail_where_services_are_required(
    monkeypatch: pytest.MonkeyPatch, required: bool
) -> None:
    monkeypatch.setenv("REQUIRE_SERVICES", "1" if required else "")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    outcome = pytest.fail.Exception if required else pytest.skip.Exception
    with pytest.raises(outcome, match=r"RabbitMQ does not answer at 127\.0\.0\.1"):
        services.running_rabbitmq()
    with pytest.raises(outcome, match="no redis-server on the PATH"), services.running_redis():
        pass
