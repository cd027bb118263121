"""The plugin against the real library: `sw_agent.testing` installs it and records the spans that end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tinyqueue
from opentelemetry import trace
from tinyqueue_tracing import plugin

from sw_agent.testing import installed

tracer = trace.get_tracer("tests")


def work(name: str) -> None:
    with tracer.start_as_current_span(name):
        if name == "broken":
            raise ValueError(name)


@pytest.fixture
def queue() -> Iterator[tinyqueue.Queue]:
    queue = tinyqueue.Queue()
    yield queue
    queue.close()


def test_a_job_runs_in_the_context_of_the_code_that_puts_it(queue: tinyqueue.Queue) -> None:
    with installed(plugin) as spans:
        with tracer.start_as_current_span("first request"):
            first = queue.put(work, "first")
        with tracer.start_as_current_span("second request"):
            second = queue.put(work, "second")
        nobodys = queue.put(work, "nobody's")
        for job in (first, second, nobodys):
            job.wait()
    assert spans.parent_of("first") == "first request"
    assert spans.parent_of("second") == "second request"
    assert spans.parent_of("nobody's") is None


def test_a_job_has_a_span_where_the_options_ask_for_it(queue: tinyqueue.Queue) -> None:
    with installed(plugin, spans=True) as spans:
        with tracer.start_as_current_span("request"):
            job = queue.put(work, "broken")
        with pytest.raises(ValueError, match="broken"):
            job.wait()
        queue.put(int).wait()
    span = spans.named("work")
    assert spans.parent_of("work") == "request"
    assert spans.parent_of("broken") == "work"
    assert span.attributes is not None
    assert span.attributes["error.type"] == "ValueError"
    assert span.status.status_code is trace.StatusCode.ERROR


def test_uninstalled_it_leaves_the_library_as_it_was() -> None:
    before = vars(tinyqueue.Job)["__init__"], vars(tinyqueue.Job)["run"]
    with installed(plugin):
        assert vars(tinyqueue.Job)["run"] is not before[1]
    assert (vars(tinyqueue.Job)["__init__"], vars(tinyqueue.Job)["run"]) == before
