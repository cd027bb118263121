"""Which traces are recorded, and when a span begins a trace of its own because its parent is long over."""

from __future__ import annotations

from _thread import allocate_lock
from time import monotonic, time_ns

from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import INVALID_SPAN, Link, get_current_span, set_span_in_context
from opentelemetry.trace.propagation import _SPAN_KEY

from .snapshot import current_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

WINDOW = 3.0  # seconds, of the limit that SkyWalking calls sample_n_per_3_secs


class TraceSampler(Sampler):
    """Follows the parent's decision; of new traces it takes a share, and no more than a number in three seconds.

    The share is decided by the trace id's low 64 bits, as OpenTelemetry's `TraceIdRatioBased` does: services with the
    same ratio decide alike.
    """

    def __init__(self, ratio: float, per_3_seconds: int) -> None:
        self._ratio = ratio
        self._bound = round(ratio * (1 << 64))
        self._limit = per_3_seconds
        self._begun: list[float] = []  # when the last traces began, at most as many as the limit
        self._lock = allocate_lock()

    def should_sample(
        self,
        parent_context: Any,
        trace_id: int,
        name: str,  # noqa: ARG002
        kind: Any = None,  # noqa: ARG002
        attributes: Any = None,
        links: Any = None,  # noqa: ARG002
        trace_state: Any = None,
    ) -> SamplingResult:
        """Decide about one span."""
        parent = get_current_span(parent_context).get_span_context()
        if parent.is_valid:
            sampled, trace_state = parent.trace_flags.sampled, parent.trace_state
        else:
            sampled, trace_state = self.takes(trace_id), None
        if sampled:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, trace_state)
        return SamplingResult(Decision.DROP, None, trace_state)

    def get_description(self) -> str:
        """Say what is sampled."""
        return f"sw-python{{ratio={self._ratio}, per_3_seconds={self._limit or 'unlimited'}}}"

    def renew_lock(self) -> None:
        """Take a new lock, in a forked process: a thread that is not there may hold the old one."""
        self._lock = allocate_lock()

    def takes(self, trace_id: int) -> bool:
        """Decide about a new trace."""
        if trace_id & 0xFFFFFFFFFFFFFFFF >= self._bound:
            return False
        if not self._limit:
            return True
        with self._lock:
            now = monotonic()
            if len(self._begun) >= self._limit:
                if now - self._begun[0] < WINDOW:
                    return False
                del self._begun[0]
            self._begun.append(now)
        return True


def link_to_stale_parent(limit: float) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
    """Return what goes before `Tracer.start_span`: a parent that ended more than `limit` seconds ago becomes a link.

    It bounds what a worker lazily started in a request, or a timer that sets itself again, would pile up in one trace
    for ever. A parent in another process never is stale: nobody here knows its end.
    """
    limit_ns = int(limit * 1e9)

    def before_start_span(
        _tracer: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        context = args[1] if len(args) > 1 else kwargs.get("context")
        around = current_context() if context is None else context
        parent: Any = around.get(_SPAN_KEY) if around else None
        if parent is None or (ended := getattr(parent, "end_time", None)) is None:
            return None
        named = {**dict(zip(_START_SPAN, args, strict=False)), **kwargs}
        if (named.get("start_time") or time_ns()) - ended <= limit_ns:
            return None
        named["links"] = (*(named.get("links") or ()), Link(parent.get_span_context()))
        named["context"] = set_span_in_context(INVALID_SPAN, context)
        return (), named

    return before_start_span


# The API's order of `Tracer.start_span`'s parameters
_START_SPAN = (
    "name",
    "context",
    "kind",
    "attributes",
    "links",
    "start_time",
    "record_exception",
    "set_status_on_exception",
)
