"""Trace, span and instance ids from a generator of the agent's own.

Not from `random`: a program that seeds it gets its own sequence, undisturbed, and its seed changes no id. `_random` has
the C type behind `random.Random`, whose methods are atomic.
"""

from __future__ import annotations

import os
from _random import Random

_random = Random(int.from_bytes(os.urandom(32), "big"))


def reseed() -> None:
    """Begin a new sequence: a forked process must not go on with its parent's."""
    _random.seed(int.from_bytes(os.urandom(32), "big"))


def instance_id() -> str:
    """Return a new id for this process, in the form of a random UUID."""
    bits = _random.getrandbits(128) & ~(0xF << 76) & ~(0x3 << 62) | (0x4 << 76) | (0x2 << 62)
    digits = f"{bits:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


class IdGenerator:
    """What an SDK's tracer asks for ids; an `opentelemetry.sdk.trace.IdGenerator` in all but its bases."""

    def generate_span_id(self) -> int:
        """Return 64 random bits, not all of them zero."""
        return _random.getrandbits(64) or self.generate_span_id()

    def generate_trace_id(self) -> int:
        """Return 128 random bits, not all of them zero."""
        return _random.getrandbits(128) or self.generate_trace_id()

    def is_trace_id_random(self) -> bool:
        """Say that samplers down the line may take the id's bits for random."""
        return True
