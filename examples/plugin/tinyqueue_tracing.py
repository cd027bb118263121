"""How work travels in tinyqueue: `Queue.put()` makes a `Job`, and a worker thread that outlives it calls `Job.run()`.

The plugin never imports tinyqueue. It is a module outside of it, because the agent imports the plugin first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sw_agent.plugin import PROPAGATION, ContextSnapshot, Plugin

plugin = Plugin("tinyqueue", options=PROPAGATION, requires="tinyqueue>=1,<2")


@plugin.capture("tinyqueue:Job.__init__")
def capture_at_put(snapshot: ContextSnapshot, job: Any, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    """Hang the context of the code that puts the job into the queue on the job."""
    job._sw_snapshot = snapshot


@plugin.intercept("tinyqueue:Job.run")
def run_in_context_of_putter(wrapped: Callable[[], None], job: Any, _args: Any, _kwargs: Any) -> None:
    """Run the job in that context; where the plugin's options ask for a span, say whether the job failed."""
    with plugin.resume(job.__dict__.pop("_sw_snapshot", None), job.function) as hop:
        wrapped()
        if job.error is not None:
            hop.fail(job.error)
