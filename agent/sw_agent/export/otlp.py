"""OTLP: each batch to the collector, and into the spool what it does not take for now.

After a failure the collector is left alone for a while, longer each time, or as long as it asks for; what ends in that
time goes into the spool at once. Where the spool cannot be used, spans stay in the pipeline's queue.
"""

from __future__ import annotations

import random
import sys
from time import monotonic

from .._threads import calmly, sleep
from . import quiet
from .keeper import NOT_ENCODED, Keeper
from .output import Loss, Outcome
from .refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
    from opentelemetry.sdk.trace import ReadableSpan

    from .._config import Config

    class Wire(Protocol):
        """The way to the collector."""

        def post(self, body: bytes, timeout: float) -> ExportTraceServiceResponse | None:
            """Send a request and return the answer, None where that is not readable; raise a `Refusal`."""

        def close(self) -> None:
            """Close the connection."""


DEFAULT_ENDPOINTS = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318/v1/traces"}
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds in which the collector is left alone
SHORTEST_TRY = 0.05  # seconds
SLICE = 0.5  # seconds of a round for what is in the spool: then it is the turn of what has ended since
LOOK_AGAIN = 10.0  # seconds between two looks into a spool that was empty: another process may have left something
REFUSED = "refused by the collector"


class OtlpOutput:
    """Sends spans to a collector; `say(message)` is told each time that does not take them."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self._config = config
        self._say = say
        self._endpoint = config.endpoint or DEFAULT_ENDPOINTS[config.protocol]
        self._keeper = Keeper(config, self._endpoint)
        quiet.silence_libraries()
        with quiet.without_thread_pool():
            self._wire = _wire(config.protocol, self._endpoint, config.export_timeout)
        self._refusal: Refusal | None = None  # the last one, as long as nothing has been taken since
        self._pause = FIRST_PAUSE
        self._not_before = self._look_again = 0.0
        _keep_off_the_random_numbers_of_the_program()
        quiet.silence_libraries()

    @property
    def waits(self) -> bool:
        """Whether there is something in the spool to be sent."""
        return self._keeper.waits

    def send(self, spans: Sequence[ReadableSpan], outcome: Outcome, until: float, ending: bool) -> None:
        """Send a batch, or spool it; leave what can neither be sent nor spooled."""
        self._keeper.begin()
        if not self._keeper.usable and not self._may_try(until, ending):
            return
        for request in self._keeper.encoder.requests(spans if ending else calmly(spans)):
            loss = Loss(request.lost, NOT_ENCODED) if request.lost else None
            refusal = None
            if loss is None:
                refusal, loss = self._post(request.body, request.spans, until, ending)
            if refusal is None:
                settled = self._keeper.settle(request, outcome, loss)
            else:
                settled = self._keeper.keep(request, until, outcome)
            if not settled:
                break
        self._say_refusal()

    def end_round(self, until: float, ending: bool) -> Outcome:
        """Send what is in the spool, where it is time to."""
        outcome = Outcome()
        now = monotonic()
        if (self._keeper.waits or now >= self._look_again) and self._may_try(until, ending):
            self._look_again = now + LOOK_AGAIN

            def sent(body: bytes, spans: int) -> bool:
                refusal, loss = self._post(body, spans, until, ending)
                if refusal is not None:
                    return False
                outcome.spool_losses += [loss] if loss is not None else []
                outcome.resent += spans - (loss.count if loss is not None else 0)
                return True

            self._keeper.empty(sent, until if ending else now + SLICE, until)
        self._keeper.close()
        return outcome

    def standby(self) -> Keeper:
        """Return what keeps spans on disk while the collector lets this thread hang."""
        self._refusal = self._refusal or Refusal("no answer", may_pass=True)
        self._say_refusal()
        return self._keeper.standby()

    def close(self) -> None:
        """Close the connection."""
        self._keeper.close()
        self._wire.close()

    def _post(self, body: bytes, spans: int, until: float, ending: bool) -> tuple[Refusal | None, Loss | None]:
        """Send a request; return why it has to be kept, or None where it has not, and what is lost of it.

        Where the program ends, a collector that only asks for patience is asked again as long as there is time.
        """
        while self._may_try(until, ending):
            sleep(max(0.0, self._not_before - monotonic()))
            try:
                answer = self._wire.post(body, min(until - monotonic(), self._config.export_timeout))
            except Refusal as refusal:
                if not refusal.may_pass:
                    return None, Loss(spans, REFUSED, f"{self._endpoint}: {refusal}")
                self._leave_alone(refusal)
                continue
            self._refusal, self._pause, self._not_before = None, FIRST_PAUSE, 0.0
            if answer is not None and answer.partial_success.rejected_spans > 0:
                rejected = min(answer.partial_success.rejected_spans, spans)
                return None, Loss(rejected, REFUSED, f"{self._endpoint}: {answer.partial_success.error_message}")
            return None, None
        self._refusal = self._refusal or Refusal("no time to send them", may_pass=True)
        return self._refusal, None

    def _may_try(self, until: float, ending: bool) -> bool:
        if ending and self._refusal is not None and self._refusal.answered:
            return max(monotonic(), self._not_before) + SHORTEST_TRY < until
        now = monotonic()
        return now >= self._not_before and now + SHORTEST_TRY < until

    def _leave_alone(self, refusal: Refusal) -> None:
        # Without its traceback, whose frames hold connections: only the garbage collector would find those.
        self._refusal = refusal.with_traceback(None)
        self._not_before = monotonic() + max(self._pause, refusal.wait)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _say_refusal(self) -> None:
        if self._refusal is not None:
            self._say(f"spans wait {self._keeper.place} for the collector {self._endpoint}: {self._refusal}")


def _wire(protocol: str, endpoint: str, timeout: float) -> Wire:
    if protocol == "grpc":
        from .otlp_grpc import GrpcWire

        return GrpcWire(endpoint, timeout)
    from .otlp_http import HttpWire

    return HttpWire(endpoint, timeout)


def _keep_off_the_random_numbers_of_the_program() -> None:
    """Give the exporters a random generator of their own for the jitter that they compute with every batch."""
    for name, module in list(sys.modules.items()):
        if name.startswith("opentelemetry.exporter.otlp.") and getattr(module, "random", None) is random:
            module.random = random.Random()  # type: ignore[attr-defined]
