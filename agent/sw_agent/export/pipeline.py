"""From a span's end to its outputs: a bounded queue, a worker that sends in batches, and the books of both.

The program's threads only append to the queue. Whatever happens behind it (a collector that hangs, a full disk) they do
not wait, and nothing is raised to them.
"""

from __future__ import annotations

import sys
from _collections import deque  # type: ignore[import-not-found]
from time import monotonic

from .._containment import contain
from .worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from opentelemetry.sdk.trace import ReadableSpan, Span

    from .._config import Config

    Rest = Callable[[float], bool]

    class Output(Protocol):
        """Where spans go; called by one thread at a time."""

        def send(self, spans: Sequence[ReadableSpan]) -> list[Loss]:
            """Deliver the spans; return what could not be delivered."""

        def close(self) -> None:
            """Let go of connections and files."""


SAMPLED = 1  # `opentelemetry.trace.TraceFlags.SAMPLED`
SAY_DROPS_EVERY = 60.0  # seconds


class Loss:
    """Some spans of a batch that an output could not deliver: how many, why in two words, and why in full.

    `interrupted` says that it would have tried again, had the worker not been wanted to end.
    """

    __slots__ = ("count", "detail", "interrupted", "reason")

    def __init__(self, count: int, reason: str, detail: str = "", *, interrupted: bool = False) -> None:
        self.count = count
        self.reason = reason
        self.detail = detail
        self.interrupted = interrupted


class Pipeline:
    """The agent's span processor; in everything but its bases an `opentelemetry.sdk.trace.SpanProcessor`.

    The books: `started` = `ended` + open; `ended` = `delivered` + `waiting` + dropped. A span counts as delivered when
    every output has taken it. The counters are plain integers: `+= 1` on an attribute is never interrupted in CPython
    3.10 and later, which switches threads at calls and backward jumps only.
    """

    def __init__(
        self, config: Config, open_outputs: Callable[[Config, float, Rest], list[Output]] | None = None
    ) -> None:
        self._config = config
        self._open_outputs = open_outputs or _open_outputs
        self._size = config.queue_size
        self._batch_size = config.batch_size
        self.started = 0
        self.ended = 0
        self.delivered = 0
        self.dropped: dict[str, int] = {}
        self.reset()
        self.worker = Worker(self._send_queued, self._close_outputs, lambda: self.waiting, config.flush_interval)

    def reset(self) -> None:
        """Begin anew in a forked process: what was queued or open is the parent's to send."""
        self._queue: deque[ReadableSpan] = deque()
        self._open: set[int] = set()
        self._sending = 0
        # A connection that was open over the fork is the parent's: it must not even be closed here.
        self._inherited = getattr(self, "_outputs", None)
        self._outputs: list[Output] | None = None
        self._details: dict[str, str] = {}
        self._said: dict[str, int] = {}
        self._said_at: float | None = None
        self._ending = self._closed = False
        self._open_for_spans = bool(self._config.to)
        self.started = self.ended = self.delivered = 0
        self.dropped = {}

    # What the program's threads call

    def on_start(self, span: Span, parent_context: Any = None) -> None:  # noqa: ARG002
        """Note the thread, and that the span began in this process."""
        context: Any = span.context
        if not context.trace_flags & SAMPLED:
            return
        self.started += 1
        self._open.add(context.span_id)
        thread_id, thread_name = _current_thread()
        try:
            # Past the lock and the checks of `set_attributes`, which take longer than all else here: nobody else has
            # the span yet, and the values need no check.
            attributes: Any = span._attributes._dict  # type: ignore[union-attr]
            attributes["thread.id"] = thread_id
            attributes["thread.name"] = thread_name
        except (AttributeError, TypeError):  # another SDK's insides
            span.set_attributes({"thread.id": thread_id, "thread.name": thread_name})

    def _on_ending(self, span: Span) -> None:
        """Nothing: part of the interface since SDK 1.27."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span, unless it began in another process and was inherited over a fork."""
        try:
            self._open.remove(span.context.span_id)
        except KeyError:
            return
        self.ended += 1
        waiting = len(self._queue)
        if not self._open_for_spans:
            self._drop(1, "the agent has ended" if self._closed else "no output")
        elif waiting >= self._size:
            self._drop(1, "queue full")
        else:
            self._queue.append(span)
            self.worker.begin()
            if waiting + 1 == self._batch_size:
                self.worker.wake()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Send what has ended, as `TracerProvider.force_flush` asks."""
        return self.flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Send what has ended. The pipeline goes on: other providers may feed it, and spans may still be open."""
        self.flush(self._config.exit_timeout)

    def flush(self, timeout: float) -> bool:
        """Send what has ended; return whether all of it left the queue within `timeout` seconds."""
        return self.worker.finish(timeout)

    @property
    def waiting(self) -> int:
        """How many ended spans are neither delivered nor dropped yet."""
        return len(self._queue) + self._sending

    def end(self, timeout: float) -> None:
        """Send what has ended, within `timeout` seconds, and count the rest as dropped; say what was dropped."""
        deadline = monotonic() + timeout
        self._ending = True
        self.worker.hurry()
        finished = self.flush(timeout)
        self._closed = True
        self._open_for_spans = False
        if finished and self.worker.pause(max(0.05, deadline - monotonic())):
            self.worker.resume()
        if self.waiting:
            self._drop(self.waiting, "not sent in time", f"exit_timeout is {self._config.exit_timeout:g} s")
            self._queue.clear()
        self._say_drops(last=True)

    # What the worker calls

    def _send_queued(self, patience: float | None = None) -> None:
        """Send what is queued now; with `patience`, in about that many seconds, and leave the rest."""
        export_timeout = self._config.export_timeout
        deadline = None if patience is None else monotonic() + patience
        for _ in range(0, len(self._queue), self._batch_size):
            patience = export_timeout if deadline is None else min(deadline - monotonic(), export_timeout)
            if patience <= 0:
                break
            batch: list[ReadableSpan] = []
            while self._queue and len(batch) < self._batch_size:
                self._sending += 1
                batch.append(self._queue.popleft())
            if not batch:
                break
            try:
                losses: list[Loss] | None = self._send(batch, patience)
            except Exception as error:
                contain("sending spans", error)
                losses = [Loss(len(batch), "failure of the agent", repr(error))]
            if losses is None:
                self._queue.extendleft(reversed(batch))
                self._sending = 0
                break
            for loss in losses:
                self._drop(loss.count, loss.reason, loss.detail)
            self.delivered += len(batch) - sum(loss.count for loss in losses)
            self._sending = 0
        self._say_drops()

    def _send(self, batch: list[ReadableSpan], patience: float) -> list[Loss] | None:
        """Give the batch to the outputs, those that may be interrupted first; return None where one was: it stays."""
        from .quiet import on_our_own

        with on_our_own():
            if self._outputs is None:
                self._outputs = self._open_outputs(self._config, patience, self.worker.rest)
            self.worker.settled()
            worst: list[Loss] = []
            for output in self._outputs:
                losses = output.send(batch)
                if any(loss.interrupted for loss in losses) and not self._ending:
                    return None
                # A span that one of two outputs has lost counts as dropped, a span that both have lost counts once.
                worst = max(worst, losses, key=lambda found: sum(loss.count for loss in found))
        return worst

    def _close_outputs(self) -> None:
        outputs, self._outputs = self._outputs, None
        for output in outputs or ():
            try:
                output.close()
            except Exception as error:
                contain("closing an output", error)

    def _drop(self, count: int, reason: str, detail: str = "") -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        if detail:
            self._details[reason] = detail

    def _say_drops(self, *, last: bool = False) -> None:
        if not self._config.to:
            return
        now = monotonic()
        if not last and self._said_at is not None and now - self._said_at < SAY_DROPS_EVERY:
            return
        news = {reason: count - self._said.get(reason, 0) for reason, count in self.dropped.items()}
        parts = [
            f"{count} {reason}" + (f" ({self._details[reason]})" if reason in self._details else "")
            for reason, count in news.items()
            if count
        ]
        if not parts:
            return
        self._said, self._said_at = dict(self.dropped), now
        from .._log import logger

        logger().warning("spans dropped: %s", ", ".join(parts))


def _open_outputs(config: Config, patience: float, rest: Rest) -> list[Output]:
    outputs: list[Output] = []
    for name in sorted(config.to, reverse=True):  # otlp before the others
        if name == "otlp":
            from .otlp import OtlpOutput

            outputs.append(OtlpOutput(config, patience, rest))
        elif name == "local":
            from .store import Store

            outputs.append(Store(config.path, config.store_size, config.run, patience))
        elif name == "console":
            from .console import ConsoleOutput

            outputs.append(ConsoleOutput())
    return outputs


def _current_thread() -> tuple[int, str]:
    """Return id and name of this thread, as `threading.current_thread()` gives them, without making one up there."""
    threading = sys.modules["threading"]  # the SDK imports it
    ident = threading.get_ident()  # a greenlet's, where gevent has patched it
    thread = threading._active.get(ident)
    return ident, thread.name if thread is not None else f"thread-{ident}"
