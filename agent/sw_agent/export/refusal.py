"""Why a collector has not taken a request, and when it may."""

from __future__ import annotations

LONGEST_WAIT = 600.0  # seconds; whoever asks for more is asked again nevertheless


class Refusal(Exception):
    """The collector was not reached, or did not take a request.

    `may_pass` is whether it might later, `answered` whether it was the collector that said so, and `wait` how many
    seconds it wants to be left alone.
    """

    def __init__(self, message: str, *, may_pass: bool, answered: bool = False, wait: float = 0.0) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        self.answered = answered
        self.wait = min(max(wait, 0.0), LONGEST_WAIT)
