"""The agent's tracer provider: an SDK's, that can hand its tracers over, and begins anew in a fork."""

from __future__ import annotations

import _thread
from weakref import WeakSet

from opentelemetry.sdk.trace import TracerProvider

from . import _ids
from ._resource import describe
from ._sampling import TraceSampler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from opentelemetry.trace import Tracer

    from ._config import Config


class AgentProvider(TracerProvider):
    """Makes tracers that go on working when the program sets another provider: they are that one's from then on."""

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

    @property
    def is_watched(self) -> bool:
        """Whether spans go elsewhere than into the agent's pipeline: the program has added a processor, or a provider.

        Or the program has set another sampler.
        """
        processors = getattr(self._active_span_processor, "_span_processors", ())
        return self._successor is not None or len(processors) != 1 or self.sampler is not self._own_sampler

    def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:
        """Return a tracer, of the successor if there is one."""
        if self._successor is not None:
            return self._successor.get_tracer(*args, **kwargs)  # type: ignore[no-any-return]
        tracer = super().get_tracer(*args, **kwargs)
        self._handed_out.add(tracer)
        return tracer

    def hand_over(self, successor: Any) -> None:
        """Make the tracers that were handed out those of another SDK provider."""
        self._successor = successor
        for tracer in list(self._handed_out):
            tracer.sampler = successor.sampler
            tracer.resource = successor.resource
            tracer.id_generator = successor.id_generator
            tracer.span_processor = successor._active_span_processor
            tracer._span_limits = successor._span_limits

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
