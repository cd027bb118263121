"""A Celery app whose worker says when it is ready."""

from typing import Any

from celery import Celery
from celery.signals import worker_ready

app = Celery("benchmark", broker="memory://")


@worker_ready.connect
def say(**_told: Any) -> None:
    """Say it."""
    print("ready", flush=True)
