"""The two ends of a worker loop: an `Inbox` whose items bring their context, an `Outbox` before which it is left.

A pool's worker process takes an item, calls a function, puts the result and comes back for the next item, all in one
frame: there is nothing to intercept between, and a wrapper around the function would be seen by it and in its
tracebacks. The queues are the places where an item's context begins and ends.
"""

from __future__ import annotations

from ._hop import NOTHING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._hop import Hop
    from .plugin import Plugin
    from .snapshot import ContextSnapshot


class Inbox:
    """A worker's queue of items that bring their own context: each `get` leaves the last item's and enters the next's.

    `snapshot_of(item)` returns the item's snapshot or None, `function_of(item)` the callable that the program
    submitted. None is no item but the word to stop. All else of the queue is the queue's own.
    """

    def __init__(
        self,
        queue: Any,
        plugin: Plugin,
        snapshot_of: Callable[[Any], ContextSnapshot | None],
        function_of: Callable[[Any], object],
    ) -> None:
        self._queue = queue
        self.plugin = plugin
        self._snapshot_of = snapshot_of
        self._function_of = function_of
        self._hop: Hop = NOTHING

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Take the next item and enter its context."""
        self.leave()
        item = self._queue.get(*args, **kwargs)
        try:
            if item is not None:
                hop = self.plugin.resume(self._snapshot_of(item), self._function_of(item))
                hop.enter()
                self._hop = hop
        except Exception as error:
            self.plugin.contain("an item's context", error)
        return item

    def leave(self, error: BaseException | None = None) -> None:
        """Leave the last item's context; `error` is what its function raised, if it did."""
        hop, self._hop = self._hop, NOTHING
        hop.leave(error)


class Outbox:
    """The same worker's queue of results: an item's context is left, and its span ended, before its result is put.

    Not after: whoever has the last result may end the worker at once. `error_of(result)` returns the exception that a
    result reports, or None.
    """

    def __init__(self, queue: Any, inbox: Inbox, error_of: Callable[[Any], BaseException | None]) -> None:
        self._queue = queue
        self._inbox = inbox
        self._error_of = error_of

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def put(self, result: Any, *args: Any, **kwargs: Any) -> None:
        """Leave the context of the item whose result this is, and put the result."""
        error = None
        try:
            error = self._error_of(result)
        except Exception as failure:
            self._inbox.plugin.contain("a worker's result", failure)
        self._inbox.leave(error)
        self._queue.put(result, *args, **kwargs)
