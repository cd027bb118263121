"""What the pipeline and the places where spans go say to each other."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    from opentelemetry.sdk.trace import ReadableSpan

    class Output(Protocol):
        """Where spans go; called by one thread at a time. `ending` says that the program waits for it to end."""

        def send(self, spans: Sequence[ReadableSpan], outcome: Outcome, until: float, ending: bool) -> None:
            """Deliver spans, and take no longer than to that time of `monotonic`; note what becomes of them at once.

            Another thread may look at the outcome while this one hangs.
            """

        def end_round(self, until: float, ending: bool) -> Outcome:
            """Send what could not be sent before, where it is time to; close all files until the next round."""

        @property
        def waits(self) -> bool:
            """Whether it has something to send in a later round."""

        def standby(self) -> Output:
            """Return an output that does without the network, for another thread while this one hangs."""

        def close(self) -> None:
            """Let go of connections and files."""


class Loss:
    """Some spans that are lost: how many, why in a few words, and why in full."""

    __slots__ = ("count", "detail", "reason")

    def __init__(self, count: int, reason: str, detail: str = "") -> None:
        self.count = count
        self.reason = reason
        self.detail = detail


class Outcome:
    """What became of a batch, and of what is in the spool.

    The first `done` spans of the batch are settled: `losses` tells which of them are lost, `spooled` wait on disk, all
    others are delivered. The rest is to be sent again later. Of the spool, which processes share, `resent` spans are
    delivered, and some are lost: `spool_losses`.
    """

    __slots__ = ("done", "losses", "resent", "spool_losses", "spooled")

    def __init__(self, done: int = 0, losses: Iterable[Loss] = ()) -> None:
        self.done = done
        self.losses = list(losses)
        self.spooled = 0
        self.resent = 0
        self.spool_losses: list[Loss] = []

    @property
    def lost(self) -> int:
        """How many spans of the batch are lost."""
        return sum(loss.count for loss in self.losses)

    @property
    def delivered(self) -> int:
        """How many spans of the batch are delivered."""
        return self.done - self.lost - self.spooled

    def copy(self) -> Outcome:
        """Return one that does not change any more."""
        copied = Outcome(self.done, self.losses)
        copied.spooled, copied.resent, copied.spool_losses = self.spooled, self.resent, list(self.spool_losses)
        return copied

    def add(self, other: Outcome) -> None:
        """Add what became of the same batch in another output.

        A span that one of two has lost counts as lost, a span that both have lost counts once.
        """
        self.done = other.done
        self.losses = max(self.losses, other.losses, key=lambda losses: sum(loss.count for loss in losses))
        self.spooled = min(self.spooled + other.spooled, self.done - self.lost)
        self.resent += other.resent
        self.spool_losses += other.spool_losses


class Nowhere:
    """An output that could not be opened: it loses everything."""

    waits = False

    def __init__(self, reason: str, detail: str = "") -> None:
        self._loss = reason, detail

    def send(self, spans: Sequence[ReadableSpan], outcome: Outcome, until: float, ending: bool) -> None:  # noqa: ARG002
        """Lose a batch."""
        outcome.losses.append(Loss(len(spans), *self._loss))
        outcome.done = len(spans)

    def end_round(self, until: float, ending: bool) -> Outcome:  # noqa: ARG002
        """Nothing."""
        return Outcome()

    def standby(self) -> Nowhere:
        """Return this one."""
        return self

    def close(self) -> None:
        """Nothing."""
