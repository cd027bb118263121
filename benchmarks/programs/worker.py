"""A Celery app whose worker says when it is ready."""

import sys
from typing import Any

from celery import Celery
from celery.signals import worker_ready

app = Celery("benchmark", broker="memory://")


@worker_ready.connect
def say(**_told: Any) -> None:
    """Say it on the stdout that Celery has not put a log in the place of."""
    assert sys.__stdout__ is not None
    print("ready", file=sys.__stdout__, flush=True)
