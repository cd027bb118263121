"""The agent's tracer provider: an SDK's, that can hand its tracers over, and begins anew in a fork; and its tracers."""

from __future__ import annotations

import _thread
from weakref import WeakSet

from opentelemetry.sdk.trace import Tracer, TracerProvider, _Span
from opentelemetry.trace import NonRecordingSpan, ProxyTracerProvider, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation import _SPAN_KEY

from . import _ids
from ._resource import describe
from ._sampling import TraceSampler
from ._sdk_span import AgentSpan, started, suits
from ._span_context import NO_STATE
from .snapshot import current_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from opentelemetry import trace
    from opentelemetry.trace import Span

    from ._config import Config

# The flags of a span's context: those of W3C Trace Context that the SDK in use knows.
_RANDOM = getattr(TraceFlags, "RANDOM_TRACE_ID", 0)  # unknown to older SDKs
_SAMPLED = TraceFlags.SAMPLED
_KNOWN = _SAMPLED | _RANDOM
_FLAGS = tuple(map(TraceFlags, range(4)))
# What a tracer has that does not count its spans for the SDK's own metrics; older SDKs never do.
_NO_METRICS = ("NoneType", "NoOpTracerMetrics")
_RECORDING = (AgentSpan, _Span)


class AgentTracer(Tracer):
    """The SDK's tracer without its detours where nothing is out of the ordinary.

    The ids are the agent's then, and so is the sampler, which looks at no attributes and no links; and the parent has
    not ended.
    """

    if not hasattr(Tracer, "_is_enabled"):  # in older SDKs

        def _is_enabled(self) -> bool:
            return True

    def start_span(
        self,
        name: str,
        context: Any = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Any = (),
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Span:
        """Start a span, as the SDK's tracer does."""
        around = current_context() if context is None else context
        parent: Any = around.get(_SPAN_KEY) if around else None
        sampler, ids = self.sampler, self.id_generator
        if (
            links
            or type(sampler) is not TraceSampler
            or type(ids) is not _ids.IdGenerator  # type: ignore[comparison-overlap]
            or not (
                parent is None
                or type(parent) is NonRecordingSpan
                or (type(parent) in _RECORDING and not parent._end_time)
            )
            or not self._is_enabled()
        ):
            return super().start_span(
                name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception
            )
        outer = parent._context if parent is not None else None
        if outer is not None and outer.is_valid:
            trace_id, _, _, flags, state, _ = outer
        else:
            trace_id, outer, state = ids.generate_trace_id(), None, NO_STATE
            flags = _RANDOM | sampler.takes(trace_id)
        own: Any = (trace_id, ids.generate_span_id(), False, _FLAGS[flags & _KNOWN], state, True)
        own = tuple.__new__(SpanContext, own)
        if not flags & _SAMPLED:
            return NonRecordingSpan(own)
        return started(
            self, name, own, outer, kind, attributes, start_time, record_exception, set_status_on_exception, context
        )


class AgentProvider(TracerProvider, ProxyTracerProvider):
    """Makes tracers that go on working when the program sets another provider: they are that one's from then on.

    A program that looks whether a provider has been set finds a `ProxyTracerProvider`, as without the agent, and sets
    its own; another one finds an SDK's, and adds its processors.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._own_sampler = TraceSampler(config.ratio, config.per_3_seconds)
        self._handed_out: WeakSet[Any] = WeakSet()
        self._successor: Any = None
        super().__init__(
            sampler=self._own_sampler,
            resource=describe(config),
            shutdown_on_exit=False,
            id_generator=_ids.IdGenerator(),  # type: ignore[arg-type]
        )

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        """Return a tracer, of the successor if there is one."""
        if self._successor is not None:
            return self._successor.get_tracer(*args, **kwargs)  # type: ignore[no-any-return]
        tracer: Any = super().get_tracer(*args, **kwargs)
        metrics = type(getattr(tracer, "_tracer_metrics", None)).__name__
        if type(tracer) is Tracer and metrics in _NO_METRICS and suits(tracer):
            tracer.__class__ = AgentTracer
        self._handed_out.add(tracer)
        return tracer  # type: ignore[no-any-return]

    def hand_over(self, successor: Any) -> None:
        """Make the tracers that were handed out those of another SDK provider."""
        self._successor = successor
        for tracer in list(self._handed_out):
            tracer.sampler = successor.sampler
            tracer.resource = successor.resource
            tracer.id_generator = successor.id_generator
            tracer.span_processor = successor._active_span_processor
            tracer._span_limits = successor._span_limits

    def release(self) -> None:
        """Make the tracers that were handed out, and will be, those that the API has for a program without an agent."""
        self._successor = ProxyTracerProvider()
        for tracer in list(self._handed_out):
            scope = tracer._instrumentation_scope
            without_agent = self._successor.get_tracer(scope.name, scope.version, scope.schema_url, scope.attributes)
            # What is just starting a span still finds what it had.
            vars(tracer).update(vars(without_agent))
            tracer.__class__ = type(without_agent)

    def renew(self) -> None:
        """Become the provider of a forked child: other locks, another pid, another instance."""
        self._own_sampler.renew_lock()
        self._resource = describe(self._config)
        if self._successor is None:
            for tracer in list(self._handed_out):
                tracer.resource = self._resource

    def _handle_fork(self) -> None:
        """Leave the resource to `renew`.

        The SDK (1.45) detects it anew, in a thread pool: in a fork's child that waits for ever where
        `concurrent.futures` has been imported after the provider was made, and holds its lock during the fork.
        """
        self._tracers_lock = _thread.allocate_lock()
