"""The books of a process: where every span is that has begun here."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .output import Outcome


class Books:
    """Counts spans.

    `started` = `ended` + open + `forgotten`, which nobody has ended or kept; `ended` = `delivered` + `spooled` +
    `dropped` + waiting. A span counts as delivered when every output has taken it, as spooled when it waits on disk.
    The spool is shared: over all processes, `spooled` = `resent` + what is in there + `dropped_in_spool`.

    What the program's threads count are plain integers: `+= 1` on an attribute is not interrupted in CPython 3.10 and
    later, which switches threads at calls and backward jumps only. All else is counted by one thread at a time.
    """

    def __init__(self) -> None:
        self.started = self.forgotten = self.ended = self.delivered = self.spooled = self.resent = 0
        self.queue_full = self.too_late = self.without_output = 0
        self.dropped_in_spool: dict[str, int] = {}
        self._dropped: dict[str, int] = {}
        self._details: dict[str, str] = {}
        self._said: dict[str, int] = {}

    @property
    def dropped(self) -> dict[str, int]:
        """How many spans were dropped, by reason."""
        by_threads = {
            "queue full": self.queue_full,
            "the agent has ended": self.too_late,
            "no output": self.without_output,
        }
        return {reason: count for reason, count in {**by_threads, **self._dropped}.items() if count}

    def drop(self, count: int, reason: str, detail: str = "") -> None:
        """Count spans as dropped."""
        self._note(self._dropped, count, reason, detail)

    def settle(self, outcome: Outcome) -> None:
        """Count what became of a batch."""
        self.delivered += outcome.delivered
        self.spooled += outcome.spooled
        self.resent += outcome.resent
        for loss in outcome.losses:
            self.drop(loss.count, loss.reason, loss.detail)
        for loss in outcome.spool_losses:
            self._note(self.dropped_in_spool, loss.count, loss.reason, loss.detail)

    def _note(self, counts: dict[str, int], count: int, reason: str, detail: str) -> None:
        _add(counts, count, reason)
        self._details[reason] = detail or self._details.get(reason, "")

    def news(self) -> str:
        """Return how many spans were dropped since this was last asked for, by reason."""
        totals = self.dropped
        for reason, count in self.dropped_in_spool.items():
            _add(totals, count, reason)
        before, self._said = self._said, totals
        return ", ".join(
            f"{count - before.get(reason, 0)} {reason}"
            + (f" ({self._details[reason]})" if self._details.get(reason) else "")
            for reason, count in totals.items()
            if count > before.get(reason, 0)
        )

    def line(self, open_now: int, waiting: int) -> str:
        """Return the books as a line of text, with what is open and waiting now: they balance, or something is lost."""
        return (
            f"spans: {self.started} started = {self.ended} ended + {open_now} open + {self.forgotten} forgotten; "
            f"{self.ended} ended = {self.delivered} delivered + {self.spooled} spooled + "
            f"{sum(self.dropped.values())} dropped {self.dropped} + {waiting} waiting; {self.resent} resent"
        )


def _add(counts: dict[str, int], count: int, reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + count
