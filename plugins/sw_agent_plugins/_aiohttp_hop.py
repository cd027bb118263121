"""A hop of aiohttp's client, and what the options say of what is recorded about it."""

from __future__ import annotations

from time import time_ns

from sw_agent.http import any_of, captured_headers, mark_request_failed, mark_status, redacted_url
from sw_agent.plugin import is_failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from opentelemetry.trace import Span

    from sw_agent.carrier import ContextCarrier

REDIRECTS = frozenset((301, 302, 303, 307, 308))


class Hop:
    """One request on the wire and its span, from the wait for a connection to the end of the response's body.

    `carrier` is what the server is told, `count` how often the request was sent before. What is not recorded has no
    span. A hop that nobody refers to any more has ended.
    """

    __slots__ = ("__weakref__", "_ended_at", "_error", "_span", "carrier", "count", "is_redirect", "peer", "responded")

    def __init__(self, span: Span | None, carrier: ContextCarrier, count: int = 0) -> None:
        self._span = span
        self.carrier = carrier
        self._ended_at: int | None = None
        self._error: BaseException | None = None
        self.count = count
        self.peer: object = None  # what the socket calls it
        self.responded = self.is_redirect = False

    def respond(self, response: Any, recording: Recording) -> None:
        """Record what the headers say."""
        span, status = self._span, response.status
        if span is None:
            return
        self.responded = True
        self.is_redirect = status in REDIRECTS and ("Location" in response.headers or "URI" in response.headers)
        version = response.version
        span.set_attributes(
            {
                "http.response.status_code": status,
                "network.protocol.version": f"{version.major}.{version.minor}",
                **self._of_peer(),
                **recording.of_response(response.headers),
            }
        )
        if status >= 400:
            mark_status(span, status)

    @property
    def finished(self) -> bool:
        """Whether only what `_request` makes of it is missing."""
        return self._ended_at is not None

    def finish(self, error: BaseException | None = None) -> None:
        """Note the end. What `_request` makes of it, an error or another hop, is seen later: see `settle`."""
        if self._ended_at is None:
            self._ended_at = time_ns()
        if self._error is None:
            self._error = error

    def settle(self, error: BaseException | None = None) -> None:
        """End the span, now or at the end that was noted; `error` is what the program gets."""
        span, self._span = self._span, None
        if span is None:
            return
        cause, self._error = self._error, None
        try:
            if is_failure(error):
                cause = error
            if not self.responded and self.peer is not None:
                span.set_attributes(self._of_peer())
            if cause is not None:
                mark_request_failed(span, cause)
        finally:
            span.end(self._ended_at)

    def _of_peer(self) -> dict[str, Any]:
        peer = self.peer
        if not isinstance(peer, tuple):  # a Unix socket's is a path
            return {}
        return {"network.peer.address": peer[0], "network.peer.port": peer[1]}

    def __del__(self) -> None:
        try:
            self.settle()
        except Exception:  # the interpreter is ending
            return


class Recording:
    """What the options say, prepared."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self._request = captured_headers("request", settings["request_headers"])
        self._response = captured_headers("response", settings["response_headers"])
        self._query = settings["query"]
        self._is_excluded = any_of(settings["exclude"])

    def excludes(self, url: Any) -> bool:
        """Return whether requests for this URL have no span."""
        if self._is_excluded is None:
            return False
        path = url.raw_path
        forms = f"{url.raw_host}{path}", f"{url.raw_host}:{url.port}{path}", redacted_url(str(url), False)
        return any(map(self._is_excluded, forms))

    def full(self, url: Any) -> str:
        """Return a URL without what is secret in it."""
        return redacted_url(str(url), self._query)

    def of_request(self, headers: Any) -> dict[str, tuple[str, ...]]:
        """Return the attributes for the headers of a request."""
        return self._request(headers) if self._request is not None else {}

    def of_response(self, headers: Any) -> dict[str, tuple[str, ...]]:
        """Return the attributes for the headers of a response."""
        return self._response(headers) if self._response is not None else {}
