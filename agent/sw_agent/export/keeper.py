"""Keeps spans for a collector that does not take them: in the spool, as long as that can be used."""

from __future__ import annotations

from time import monotonic

from .._threads import acquire, allocate_lock
from .encoding import Encoder
from .output import Loss, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from opentelemetry.sdk.trace import ReadableSpan

    from .._config import Config
    from .encoding import Request
    from .spool import Taken

TRY_AGAIN = 30.0  # seconds after which a spool that could not be used is tried again
SHORTEST_KEEP = 0.2  # seconds, also where sending has taken all the time that there was
LONGEST_PUT = 0.5  # seconds to wait at the end for a request that is just being kept
NOT_ENCODED = "encoding failed"
LEASE = 120.0  # seconds that a request may be under way from the spool, at least


class Keeper:
    """An output that sends nothing and spools everything; also the spool that `OtlpOutput` falls back on.

    What becomes of a request is noted under a lock: while one thread hangs with it another may take it over, and only
    one of them may keep it.
    """

    def __init__(self, config: Config, endpoint: str, under_way: Taken | None = None) -> None:
        from .._secrets import without_secrets

        self._config = config
        self._endpoint = endpoint
        self._settling = allocate_lock()
        self._taken_over = self.waits = False
        self._under_way = under_way  # out of the spool, with the collector
        self.encoder = Encoder()
        self._unusable_until, self._trouble = 0.0, ""
        self._spool: Any = None
        try:
            from . import spool
        except ImportError as error:  # a Python without sqlite3
            self._unusable_until, self._trouble = float("inf"), str(error)
            return
        self._failures, self._is_locked, self._what_is_wrong = spool.FAILURES, spool.is_locked, spool.what_is_wrong
        lease = max(LEASE, 2 * config.export_timeout)
        size, age = config.spool_size, config.spool_age
        self._spool = spool.Spool(config.path, config.name, without_secrets(endpoint), size, age, lease)
        if not size:
            self._unusable_until, self._trouble = float("inf"), "spool_size is 0"

    @property
    def usable(self) -> bool:
        """Whether the spool can be used, as far as is known."""
        return monotonic() >= self._unusable_until

    @property
    def place(self) -> str:
        """Where spans wait, for people."""
        return f"in {self._config.path}" if self.usable else f"in memory ({self._trouble})"

    def begin(self) -> None:
        """Let this thread have what comes from now on, whatever another one has taken over before."""
        self._taken_over = False

    def settle(self, request: Request, outcome: Outcome, loss: Loss | None = None) -> bool:
        """Note that a request is delivered, or lost in part; return False where another thread has taken it over."""
        with self._settling:
            if self._taken_over:
                return False
            outcome.losses += [loss] if loss is not None else []
            outcome.done += request.spans
            return True

    def keep(self, request: Request, until: float, outcome: Outcome) -> bool:
        """Put a request into the spool; return whether it is settled, also by being lost."""
        with self._settling:
            if self._taken_over or not self.usable:
                return False
            try:
                kept, losses = self._spool.put(request, max(until, monotonic() + SHORTEST_KEEP))
            except self._failures as error:
                self._fail(error)
                return False
            outcome.spool_losses += losses
            if kept:
                outcome.spooled += request.spans
                self.waits = True
            else:
                outcome.losses.append(Loss(request.spans, "spool full"))
            outcome.done += request.spans
            return True

    def empty(self, sent: Callable[[bytes, int], bool], stop: float, until: float) -> None:
        """Take requests out, each for `sent(body, spans)`, until that returns False or it is time to `stop`."""
        if not self.usable:
            return
        taken = None
        try:
            try:
                while (taken := self._next(taken, until)) is not None:
                    if monotonic() >= stop or not sent(taken.body, taken.spans):
                        break
            finally:
                self._give_back(until)
            self.waits = taken is not None
        except self._failures as error:
            self._fail(error)

    def _next(self, sent: Taken | None, until: float) -> Taken | None:
        """Delete what has been sent, and take the next request, unless another thread has taken over."""
        with self._settling:
            self._under_way = None
            self._under_way = taken = self._spool.next(sent, max(until, monotonic() + SHORTEST_KEEP))
        return None if self._taken_over else taken

    def _give_back(self, until: float) -> None:
        """Put back the request that is under way, if there is one."""
        with self._settling:
            taken, self._under_way = self._under_way, None
            if taken is not None:
                self._spool.give_back(taken, max(until, monotonic() + SHORTEST_KEEP))

    # As an output

    def send(self, spans: Sequence[ReadableSpan], outcome: Outcome, until: float, ending: bool) -> None:  # noqa: ARG002
        """Spool a batch."""
        for request in self.encoder.requests(spans):
            if request.lost:
                self.settle(request, outcome, Loss(request.lost, NOT_ENCODED))
            elif monotonic() > until or not self.keep(request, until, outcome):
                break

    def end_round(self, until: float, ending: bool) -> Outcome:  # noqa: ARG002
        """Put back what was under way from the spool; close the file."""
        try:
            self._give_back(until)
        except self._failures as error:
            self._fail(error)
        self.close()
        return Outcome()

    def standby(self) -> Keeper:
        """Return another one, with a connection of its own; what this one has not settled is that one's."""
        settled = acquire(self._settling, timeout=LONGEST_PUT)
        self._taken_over = True
        under_way, self._under_way = self._under_way, None
        if settled:
            self._settling.release()
        return Keeper(self._config, self._endpoint, under_way)

    def close(self) -> None:
        """Close the file."""
        if self._spool is not None:
            self._spool.close()

    def _fail(self, error: Exception) -> None:
        self.close()
        if not self._is_locked(error):  # by another process, until that has written
            self._trouble = self._what_is_wrong(self._config.path, error)
            self._unusable_until = monotonic() + TRY_AGAIN
            self.waits = False
