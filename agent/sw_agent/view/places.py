"""Where a span ran: the service, the process and the thread, as its row and its colour tell them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .wording import printable

if TYPE_CHECKING:
    from ..export.store import StoredSpan


class Place(NamedTuple):
    """One thread of one process."""

    service: str
    host: str
    process: str
    thread: str
    thread_id: object

    @property
    def of_process(self) -> tuple[str, str, str]:
        """What the process is known by: a pid alone may be another process's on another host, or in a container."""
        return self.service, self.host, self.process


def place(span: StoredSpan) -> Place:
    """Return where a span ran, as far as it is recorded."""
    resource, attributes = span.resource, span.attributes
    return Place(
        printable(str(resource.get("service.name", ""))),
        str(resource.get("host.name", "")),
        str(resource.get("process.pid", "")),
        printable(str(attributes.get("thread.name", ""))),
        attributes.get("thread.id"),
    )
