"""The two spans of Celery: a message that is published, and an attempt to run the task that it asks for.

Names and keys are those of OpenTelemetry's conventions for messaging, and of its instrumentation for Celery. Both ends
are of the system "celery", whose queues and ids these are: a process of a pool does not know the broker. Spans are
named after the task, not the queue: most programs have one queue, whose name says nothing about what was done.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar

from sw_agent.plugin import Entry, inside, mark_failed, record_error
from sw_agent.snapshot import capture

from ._celery_messages import context_of, described, link_to_attempt, put_in, queue_of, received

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.trace import Link

    from sw_agent.plugin import Plugin

# What is raised by tasks that do not fail; and in a greenlet that is killed because its task was revoked.
STATES = {"Retry": "RETRY", "Ignore": "IGNORED", "Reject": "REJECTED", "GreenletExit": "REVOKED"}


class SpanEntry(Entry):
    """A span that is current inside."""

    __slots__ = ("span",)

    def __init__(
        self,
        plugin: Plugin,
        name: str,
        kind: str,
        parent: Context,
        attributes: dict[str, Any],
        links: list[Link] | None = None,
        start_time: int | None = None,
    ) -> None:
        from opentelemetry.trace import SpanKind

        self.span: Any = plugin.tracer.start_span(
            name, parent, kind=SpanKind[kind], attributes=attributes, links=links, start_time=start_time
        )
        super().__init__(inside(self.span, parent))

    def leave(self, error: BaseException | None = None) -> None:
        """Make current what was before, and end the span; `error` is what was raised inside. Again it does nothing."""
        super().leave()
        span = self.span
        if span is not None:
            try:
                self.conclude(error)
            finally:
                self.span = None
                span.end()

    def conclude(self, error: BaseException | None) -> None:
        """Say how it ended."""
        raise NotImplementedError


class Publication(SpanEntry):
    """A message on its way, from `send_task` until the broker has it.

    A retry carries what the attempt did that publishes it, so that attempts are siblings, and names that attempt.
    """

    __slots__ = ("_outer", "_repeated", "_snapshot")

    def __init__(self, plugin: Plugin, name: str, options: dict[str, Any]) -> None:
        attributes = {
            "messaging.system": "celery",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "celery.task_name": name,
        }
        super().__init__(plugin, f"publish {name}", "PRODUCER", context_of(capture()), attributes)
        attempt, retries = current_attempt.get(), options.get("retries")
        self._repeated = None
        if attempt is not None and attempt.id == options.get("task_id") and (retries or 0) > attempt.retries:
            self._repeated = attempt
            self.span.set_attribute("celery.retries", retries)

    def enter(self) -> None:
        """Make the span current, and let the message find it."""
        super().enter()
        self._snapshot = capture()
        self._outer = current_publication.get()
        current_publication.set(self)

    def leave(self, error: BaseException | None = None) -> None:
        """Undo that."""
        current_publication.set(self._outer)
        super().leave(error)

    def address(self, message: Any, options: dict[str, Any], default_queue: str) -> None:
        """Describe the message, and give it the carrier."""
        task_id = message.properties.get("correlation_id")
        self.span.set_attributes(
            {
                "messaging.destination.name": queue_of(options, default_queue),
                "messaging.message.id": str(task_id),
                "messaging.message.conversation_id": str(message.headers.get("root_id") or task_id),
            }
        )
        if self._repeated is not None:
            put_in(message, options.get("headers"), self._repeated.origin, self._repeated.span_context)
        else:
            put_in(message, options.get("headers"), self._snapshot, None)

    def conclude(self, error: BaseException | None) -> None:
        """Describe the error because of which it was not published."""
        if error is not None:
            mark_failed(self.span, error)


class Attempt(SpanEntry):
    """One attempt to run a task. `origin` is what its message has brought, `state` Celery's word for how it ended.

    `request` is the headers of the message, with what the worker has added. An attempt `inline` has no message, and
    its origin is the context of the caller.
    """

    __slots__ = ("_outer", "_seen", "id", "inline", "name", "note", "origin", "retries", "span_context", "state")

    def __init__(
        self,
        plugin: Plugin,
        name: str,
        request: dict[str, Any],
        start_time: int | None = None,
        *,
        inline: bool = False,
        links: tuple[Link, ...] = (),
    ) -> None:
        retries = request.get("retries")
        self.name, self.id, self.inline = name, request.get("id"), inline
        self.retries = retries if isinstance(retries, int) else 0
        self.state = ""
        self._seen: object = None
        self._outer: Attempt | None = None
        attributes: dict[str, Any] = {"celery.task_name": name, "celery.retries": self.retries}
        linked = False
        self.note: dict[str, Any] = {}
        if inline:
            self.origin = capture()
            known = list(links)
        else:
            self.origin, self.note = received(request)
            attributes.update(described(request, self.note))
            linked = plugin.relation_of(name) == "link"
            known = [link for link in (link_to_attempt(self.note), self.origin.link() if linked else None) if link]
        parent, kind = context_of(self.origin, linked=linked), "INTERNAL" if inline else "CONSUMER"
        super().__init__(plugin, f"process {name}", kind, parent, attributes, known, start_time)
        self.span_context = self.span.get_span_context()

    def __enter__(self) -> Attempt:
        self.enter()
        return self

    def enter(self) -> None:
        """Make the span current, and let a retry find it."""
        super().enter()
        self._outer = current_attempt.get()
        current_attempt.set(self)

    def leave(self, error: BaseException | None = None) -> None:
        """Undo that.

        A process of a pool that is told to end says nothing: it may be killed before it could, and so the main process
        tells about its task, which knows why.
        """
        if self.span is not None:
            current_attempt.set(self._outer)
        if error is not None and _told_to_end():
            self.span = None
        super().leave(error)

    def say(self, state: str, error: object = None) -> None:
        """Say how the attempt ends; a failure is an error, unless that of a task applied inside, which has said it."""
        self.state = state
        if state != "FAILURE" or not isinstance(error, BaseException) or error is self._seen:
            return
        if self._outer is not None:
            self._outer._seen = error
        record_error(self.span, error)

    def conclude(self, error: BaseException | None) -> None:
        """Write down the state; `error` has passed Celery by where that has not said how it ended."""
        if error is not None and not self.state:
            self.say(STATES.get(type(error).__name__, "FAILURE"), error)
        self.span.set_attribute("celery.state", self.state or "SUCCESS")
        self._seen = self._outer = None


current_publication: ContextVar[Publication | None] = ContextVar("sw_agent.celery.publication", default=None)
current_attempt: ContextVar[Attempt | None] = ContextVar("sw_agent.celery.attempt", default=None)


def _told_to_end() -> bool:
    """Return whether billiard's handler of SIGTERM, which raises SystemExit, has been called in this process."""
    return any(getattr(sys.modules.get("billiard.common"), "_should_have_exited", ()))
