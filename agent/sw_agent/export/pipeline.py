"""From a span's end to its outputs: a bounded queue, a worker that sends in batches, and the books of both.

The program's threads only append to the queue. Whatever happens behind it (a collector that hangs, a full disk) they do
not wait, and nothing is raised to them.
"""

from __future__ import annotations

import sys
from _collections import deque  # type: ignore[import-not-found]
from _weakref import ref
from time import monotonic

from .. import _sigterm
from .._containment import contain
from .books import Books
from .worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from opentelemetry.sdk.trace import ReadableSpan, Span

    from .._config import Config
    from .output import Outcome, Output
    from .redaction import Redaction

    Opener = Callable[[Config, Callable[[str], None]], list[Output]]

SAMPLED = 1  # `opentelemetry.trace.TraceFlags.SAMPLED`
SAY_DROPS_EVERY = 60.0  # seconds
# The shares of the time at the end in which spans are sent, and in which the worker keeps what could not be sent.
SENDING, KEEPING = 0.5, 0.75
GOODBYE = 0.2  # seconds at the end for the worker's own end
FORGOTTEN = 1000  # open spans after which those are looked for that have gone without an end


class Pipeline:
    """The agent's span processor; in everything but its bases an `opentelemetry.sdk.trace.SpanProcessor`."""

    def __init__(self, config: Config, open_outputs: Opener | None = None) -> None:
        self._config = config
        self._open_outputs = open_outputs or _open_outputs
        self._size = config.queue_size
        self._batch_size = config.batch_size
        self.reset()
        self.worker = Worker(
            self._round, self._rest, lambda: self.waiting, self._has_more_to_send, config.flush_interval
        )

    def reset(self) -> None:
        """Begin anew in a forked process: what was queued or open is the parent's to send."""
        self._queue: deque[ReadableSpan] = deque()
        self._open: dict[int, ref[Span]] = {}
        self._look_for_forgotten_at = FORGOTTEN
        self._in_hand: dict[str, Sequence[ReadableSpan]] = {}  # the worker's batch; whoever pops it settles it
        self._sending = 0
        self._stage = 0  # the place of the output that has the batch
        # A connection that was open over the fork is the parent's: it must not even be closed here.
        self._inherited = getattr(self, "_outputs", None)
        self._outputs: list[Output] | None = None
        self._redaction: Redaction | None = None
        self._said_at: float | None = None
        self._sending_until: float | None = None  # when the program ends
        self._closed = self._hangs = False
        self.books = Books()

    # What the program's threads call

    def on_start(self, span: Span, parent_context: Any = None) -> None:  # noqa: ARG002
        """Note the thread, and that the span began in this process."""
        context: Any = span.context
        if not context.trace_flags & SAMPLED:
            return
        self.books.started += 1
        self._open[context.span_id] = ref(span)
        if not _sigterm.wanted and self._config.to:
            _sigterm.catch()
        thread_id, thread_name = _current_thread()
        try:
            # Past the lock and the checks of `set_attributes`, which take longer than all else here: nobody else has
            # the span yet, and the values need no check.
            bounded: Any = span._attributes
            attributes = bounded._dict
            if len(attributes) + 2 <= bounded.maxlen:  # what the program says of a span comes first
                attributes["thread.id"] = thread_id
                attributes["thread.name"] = thread_name
        except (AttributeError, TypeError):  # another SDK's insides
            span.set_attributes({"thread.id": thread_id, "thread.name": thread_name})

    def _on_ending(self, span: Span) -> None:
        """Nothing: part of the interface since SDK 1.27."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span, unless it began in another process and was inherited over a fork."""
        if self._open.pop(span.context.span_id, None) is None:
            return
        books = self.books
        books.ended += 1
        waiting = len(self._queue)
        if self._closed:
            books.too_late += 1
        elif not self._config.to:
            books.without_output += 1
        elif waiting >= self._size:
            books.queue_full += 1
        else:
            _without_empty_lists(span)
            self._queue.append(span)
            self.worker.begin()
            if waiting + 1 == self._batch_size:
                self.worker.wake()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Send what has ended, as `TracerProvider.force_flush` asks."""
        return self.flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Send or keep what has ended. The pipeline goes on: other providers may feed it, and spans may be open."""
        self._flush_or_keep(self._config.exit_timeout)

    def flush(self, timeout: float) -> bool:
        """Send what has ended; return whether all of it left the queue within `timeout` seconds."""
        return self.worker.finish(timeout)

    @property
    def waiting(self) -> int:
        """How many ended spans are neither delivered nor spooled nor dropped yet."""
        return len(self._queue) + self._sending

    # The end

    def flush_finally(self, timeout: float) -> None:
        """Send or keep what has ended, within `timeout` seconds; count the rest as dropped, and say so."""
        self._flush_or_keep(timeout)
        if self.waiting:
            self.books.drop(self.waiting, "not sent in time", f"exit_timeout is {self._config.exit_timeout:g} s")
            self._queue.clear()
            self._sending = 0
        self._say_drops(last=True)

    def end(self, timeout: float) -> None:
        """Send or keep what has ended, and what is still open as incomplete, and take no more."""
        deadline = monotonic() + timeout
        self._queue_open_spans()
        self.flush_finally(timeout)
        self._closed = True
        if not self._hangs and self.worker.pause(min(GOODBYE, max(0.0, deadline - monotonic()))):
            self.worker.resume()

    def _flush_or_keep(self, timeout: float) -> None:
        """Send what has ended, within `timeout` seconds; where the collector hangs, keep it on disk."""
        deadline = monotonic() + timeout
        self._sending_until = monotonic() + timeout * SENDING
        try:
            if not self.flush(timeout * KEEPING):
                self._hangs = True
                self._keep(deadline)
        finally:
            self._sending_until = None

    def _queue_open_spans(self) -> None:
        """Let the spans that nobody has ended leave as they are; where they end later, they have left."""
        begun, self._open = self._open, {}
        spans = [span for span in (reference() for reference in begun.values()) if span is not None]
        self.books.forgotten += len(begun) - len(spans)
        if not spans or not self._config.to:
            return
        from .incomplete import as_it_is

        for span in spans:
            try:
                self._queue.append(as_it_is(span))
            except Exception as error:
                contain("a span that is still open", error)
            else:
                self.books.ended += 1
        self.worker.begin()

    def _keep(self, deadline: float) -> None:
        """Let the outputs' standbys keep what the worker has not sent: it hangs in one of them."""
        if self._outputs is None:  # it still imports what they need
            self.flush(deadline - monotonic())
            return
        try:
            from .redaction import Redaction

            redaction = Redaction(self._config.redact)
            standbys = [output.standby() for output in self._outputs]
            batch = self._in_hand.pop("batch", ())
            outputs: Sequence[Output] = standbys[self._stage :]
            while batch or self._queue:
                batch = batch or self._next_batch()
                outcome = self._offer(batch, redaction, outputs, deadline, ending=True)
                self.books.settle(outcome)
                if outcome.done < len(batch):
                    self._queue.extendleft(reversed(batch[outcome.done :]))
                    break
                batch, outputs = (), standbys
            self._sending = 0
            for output in standbys:
                output.close()
        except Exception as error:
            contain("keeping spans", error)

    # What the worker calls

    def _round(self, until: float | None = None) -> None:
        """Send what is queued now; in the thread that waits for it, and until that time, where `until` is given."""
        from .quiet import on_our_own

        with on_our_own():
            outputs = self._opened()
            for _ in range(0, len(self._queue), self._batch_size):
                if not self._send_batch(outputs, *self._time(until)):
                    break
            for output in outputs:
                self.books.settle(output.end_round(*self._time(until)))
        self._forget_what_has_no_end()
        self._say_drops()

    def _opened(self) -> Sequence[Output]:
        if self._outputs is None:
            try:
                from .redaction import Redaction

                self._redaction = Redaction(self._config.redact)
                self._outputs = self._open_outputs(self._config, self._say)
            except Exception as error:
                contain("opening the outputs", error)
        self.worker.settled()
        return self._outputs or ()

    def _send_batch(self, outputs: Sequence[Output], until: float, ending: bool) -> bool:
        """Send one batch; return whether there is a use in going on."""
        if until <= monotonic() and not ending:  # else the outputs know what to do without time
            return False
        batch = self._in_hand["batch"] = self._next_batch()
        outcome = self._offer(batch, self._redaction, outputs, until, ending)
        if self._in_hand.pop("batch", None) is None:
            return False  # the program ends, and its last thread has seen to this
        self.books.settle(outcome)
        self._queue.extendleft(reversed(batch[outcome.done :]))
        self._sending = 0
        return outcome.done == len(batch)

    def _time(self, until: float | None) -> tuple[float, bool]:
        """Return to when what is done now may last, and whether the program waits for it to end."""
        ends = [time for time in (until, self._sending_until) if time is not None]
        return (min(ends), True) if ends else (monotonic() + self._config.export_timeout, False)

    def _next_batch(self) -> list[ReadableSpan]:
        batch: list[ReadableSpan] = []
        while self._queue and len(batch) < self._batch_size:
            self._sending += 1  # first: whoever waits for a flush must not find it in neither place
            batch.append(self._queue.popleft())
        return batch

    def _offer(
        self,
        batch: Sequence[ReadableSpan],
        redaction: Redaction | None,
        outputs: Sequence[Output],
        until: float,
        ending: bool,
    ) -> Outcome:
        """Give a batch without its secrets to one output after the other, and return what became of it."""
        from .output import Loss, Outcome

        if not outputs or redaction is None:
            return Outcome(len(batch), [Loss(len(batch), "failure of the agent")])
        all_together = Outcome(len(batch))
        try:
            spans = redaction.spans(batch)
            for self._stage, output in enumerate(outputs):
                all_together.add(output.send(spans[: all_together.done], until, ending))
        except Exception as error:
            contain("sending spans", error)
            all_together.losses = [Loss(all_together.done, "failure of the agent", repr(error))]
            all_together.spooled = 0
        return all_together

    def _has_more_to_send(self) -> bool:
        return any(output.waits for output in self._outputs or ())

    def _rest(self) -> None:
        """Let go of everything: there is nothing to send any more."""
        outputs, self._outputs = self._outputs, None
        for output in outputs or ():
            try:
                output.close()
            except Exception as error:
                contain("closing an output", error)
        if not self._open:
            _sigterm.drop()

    def _forget_what_has_no_end(self) -> None:
        if len(self._open) < self._look_for_forgotten_at:
            return
        for span_id, reference in list(self._open.items()):
            if reference() is None and self._open.pop(span_id, None) is not None:
                self.books.forgotten += 1
        self._look_for_forgotten_at = max(FORGOTTEN, 2 * len(self._open))

    def _say_drops(self, *, last: bool = False) -> None:
        now = monotonic()
        if not self._config.to or (not last and self._said_at is not None and now - self._said_at < SAY_DROPS_EVERY):
            return
        if news := self.books.news():
            self._said_at = now
            self._say(f"spans dropped: {news}")

    def _say(self, message: str) -> None:
        from .._log import logger
        from .._secrets import without_secrets

        logger().warning("%s", self._redaction.text(message) if self._redaction else without_secrets(message))


def _without_empty_lists(span: Any) -> None:
    """Let an ended span take half the memory: a list of events or links has room for many, also where it has none."""
    try:
        if not span._events:
            span._events = ()
        if not span._links:
            span._links = ()
    except AttributeError:  # another SDK's insides
        return


def _open_outputs(config: Config, say: Callable[[str], None]) -> list[Output]:
    outputs: list[Output] = []
    for name in sorted(config.to, reverse=True):  # otlp, which alone may leave spans for later, before the others
        if name == "otlp":
            from .otlp import OtlpOutput

            outputs.append(OtlpOutput(config, say))
        elif name == "local":
            from .store import Store

            outputs.append(Store(config.path, config.store_size, config.run))
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
