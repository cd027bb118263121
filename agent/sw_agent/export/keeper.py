"""Keeps spans for a collector that does not take them: in the spool, as long as that can be used."""

from __future__ import annotations

import sqlite3
from time import monotonic

from .encoding import Encoder
from .output import Loss, Outcome
from .spool import Spool
from .store_file import is_locked
from .stored import StoreError, what_is_wrong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from .._config import Config
    from .encoding import Request

TRY_AGAIN = 30.0  # seconds after which a spool that could not be used is tried again
SHORTEST_KEEP = 0.2  # seconds, also where sending has taken all the time that there was
FAILURES = (sqlite3.Error, StoreError, OSError)


class Keeper:
    """An output that sends nothing and spools everything; also the spool that `OtlpOutput` falls back on."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._given_up = False
        self._encoder = Encoder()
        self._spool = Spool(config.path, config.name, config.spool_size, config.spool_age)
        self._unusable_until = float("inf") if not config.spool_size else 0.0
        self._trouble = "spool_size is 0"
        self.waits = False

    @property
    def usable(self) -> bool:
        """Whether the spool can be used, as far as is known."""
        return monotonic() >= self._unusable_until and not self._given_up

    @property
    def place(self) -> str:
        """Where spans wait, for people."""
        return f"in {self._spool.path}" if self.usable else f"in memory ({self._trouble})"

    def keep(self, request: Request, until: float, outcome: Outcome) -> bool:
        """Put a request into the spool; return whether it is settled, also by being lost."""
        if not self.usable:
            return False
        try:
            kept, losses = self._spool.put(request, max(until, monotonic() + SHORTEST_KEEP))
        except FAILURES as error:
            self._fail(error)
            return False
        outcome.spool_losses += losses
        if kept:
            outcome.spooled += request.spans
            self.waits = True
        else:
            outcome.losses.append(Loss(request.spans, "spool full"))
        return True

    def empty(self, sent: Callable[[bytes, int], bool], stop: float, until: float) -> None:
        """Take requests out, each for `sent(body, spans)`, until that returns False or it is time to `stop`."""
        if not self.usable:
            return
        try:
            taken = self._spool.next(None, until)
            while taken is not None:
                if monotonic() >= stop or not sent(taken.body, taken.spans):
                    self._spool.give_back(taken, until)
                    break
                taken = self._spool.next(taken, until)
            self.waits = taken is not None
        except FAILURES as error:
            self._fail(error)

    # As an output

    def send(self, spans: Sequence[ReadableSpan], until: float, ending: bool) -> Outcome:  # noqa: ARG002
        """Spool a batch."""
        outcome = Outcome()
        for request in self._encoder.requests(spans):
            if request.lost:
                outcome.losses.append(Loss(request.lost, "encoding failed"))
            elif monotonic() > until or not self.keep(request, until, outcome):
                break
            outcome.done += request.spans
        return outcome

    def end_round(self, until: float, ending: bool) -> Outcome:  # noqa: ARG002
        """Close the file."""
        self.close()
        return Outcome()

    def standby(self) -> Keeper:
        """Return another one, with a connection of its own; this one keeps nothing from now on, lest both do."""
        self._given_up = True
        return Keeper(self._config)

    def close(self) -> None:
        """Close the file."""
        self._spool.close()

    def _fail(self, error: Exception) -> None:
        self.close()
        if not is_locked(error):  # by another process, until that has written
            self._trouble = what_is_wrong(self._spool.path, error)
            self._unusable_until = monotonic() + TRY_AGAIN
            self.waits = False
