"""The books of snapshots, kept where the agent is told to say what it does: each is restored, or dropped, or waits."""

from __future__ import annotations

from . import snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from opentelemetry.context import Context

captured = restored = dropped = waiting = 0


class CountedSnapshot(snapshot.ContextSnapshot):
    """A snapshot that counts as restored when its context is first asked for, as dropped when it never was."""

    __slots__ = ("_context",)

    def __init__(self, context: Context | None = None) -> None:
        global captured, waiting
        super().__init__(None)
        self._context: Context | None = context
        del self.context  # so that `__getattr__` is asked for it, once
        captured += 1
        waiting += 1

    def __getattr__(self, name: str) -> Context | None:
        global restored, waiting
        if name != "context":
            raise AttributeError(name)
        self.context = self._context
        restored += 1
        waiting -= 1
        return self.context

    def __bool__(self) -> bool:
        return bool(self._context)

    def __del__(self) -> None:
        global dropped, waiting
        try:
            object.__getattribute__(self, "context")
        except AttributeError:
            dropped += 1
            waiting -= 1


def keep() -> None:
    """Count from now on."""
    snapshot.ContextSnapshot = CountedSnapshot  # type: ignore[misc]


def say() -> str:
    """Return the books as a line of text."""
    return f"snapshots: {captured} captured = {restored} restored + {dropped} dropped + {waiting} waiting"
