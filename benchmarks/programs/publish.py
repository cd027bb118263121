"""Publishes Celery tasks in a span, and prints the time of one."""

from celery import Celery
from timing import best, tracer

app = Celery("benchmark", broker="memory://")
app.conf.task_ignore_result = True


@app.task
def add(x: int, y: int) -> int:
    """Add."""
    return x + y


def publish(count: int) -> None:
    """Publish."""
    for _ in range(count):
        add.delay(1, 2)


publish(200)
with tracer.start_as_current_span("publisher"):
    print(best(publish, 100, repeats=40))
