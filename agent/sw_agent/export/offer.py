"""A batch on its way through the outputs, such that another thread can take it over in the midst of that."""

from __future__ import annotations

from .output import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan


class Offer:
    """A batch, what became of it in the outputs that have had it, their number, and what the current one has done."""

    __slots__ = ("batch", "current", "outcome", "stage")

    def __init__(self, batch: Sequence[ReadableSpan]) -> None:
        self.batch = batch
        self.stage = 0
        self.current = Outcome()
        self.outcome = Outcome(len(batch))

    def begin(self) -> Outcome:
        """Return where the next output notes what becomes of the batch."""
        self.current = Outcome()
        return self.current

    def end(self) -> None:
        """Add what the current output has noted."""
        self.outcome.add(self.current)
        self.stage += 1

    @property
    def rest(self) -> Sequence[ReadableSpan]:
        """What has to be sent again later: only the first output leaves anything."""
        return self.batch[self.outcome.done :]

    def settled_part(self) -> Offer:
        """Return what another thread can go on with, while the one that has this hangs in an output.

        The first output has settled a part already; another one may have done anything, and gets all of it once more.
        """
        taken = Offer(self.batch)
        taken.stage = max(1, self.stage)
        taken.outcome = (self.current if self.stage == 0 else self.outcome).copy()
        return taken
