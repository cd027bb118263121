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
from .._unhidden import Unhidden
from .books import Books
from .offer import Offer
from .worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from opentelemetry.sdk.trace import ReadableSpan, Span

    from .._config import Config
    from .output import Output
    from .redaction import Redaction

    Opener = Callable[[Config, Callable[[str], None]], list[Output]]

SAMPLED = 1  # `opentelemetry.trace.TraceFlags.SAMPLED`
SAY_AGAIN = 60.0  # seconds
# The shares of the time at the end: for a request that was under way, for sending, for the worker to keep the rest.
LOOKING, SENDING, KEEPING = 0.25, 0.5, 0.75
GOODBYE = 0.2  # seconds at the end for the worker's own end
LEAVING = 1.0  # seconds after a last flush in which the process has ended, or goes on
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
        self._in_hand: dict[str, Offer] = {}  # the worker's batch; whoever pops it settles it
        self._sending = 0
        self._stuck = False  # whether something had to be left in the queue
        # A connection that was open over the fork is the parent's: it must not even be closed here.
        self._inherited = (*getattr(self, "_inherited", ()), getattr(self, "_outputs", None))
        self._outputs: list[Output] | None = None
        self._redaction: Redaction | None = None
        self._said_at: float | None = None
        self._said_that_spans_wait_at: float | None = None
        self._sending_until: float | None = None  # when the program ends
        self._leave_spool_until = 0.0
        self._closed = self._hangs = False
        self.books = Books()

    # What the program's threads call

    def on_start(self, span: Span, parent_context: Any = None) -> None:  # noqa: ARG002
        """Note a span that has begun, as an SDK's processor."""
        context: Any = span.context
        if context.trace_flags & SAMPLED:
            self.note(span, context.span_id)

    def note(self, span: Span, span_id: int) -> None:
        """Note the thread, and that the span began in this process."""
        self.books.started += 1
        self._open[span_id] = ref(span)
        try:
            if not _sigterm.wanted and self._config.to:
                _sigterm.catch()  # also after a fork
            thread_id, thread_name = _current_thread()
            try:
                # Past the lock and the checks of `set_attributes`, which take longer than all else here: nobody else
                # has the span yet, and the values need no check.
                bounded: Any = span._attributes
                attributes = bounded._dict
                if len(attributes) + 2 <= bounded.maxlen:  # what the program says of a span comes first
                    attributes["thread.id"] = thread_id
                    attributes["thread.name"] = thread_name
            except (AttributeError, TypeError):  # another SDK's insides
                span.set_attributes({"thread.id": thread_id, "thread.name": thread_name})
        except Exception as error:
            contain("noting a span that begins", error)

    def _on_ending(self, span: Span) -> None:
        """Nothing: part of the interface since SDK 1.27."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span, as an SDK's processor."""
        try:
            # A list of events or links has room for many, also where it has none: that is half of a span's memory.
            if not span._events:
                span._events = ()
            if not span._links:
                span._links = ()
        except AttributeError:  # another SDK's insides
            pass
        self.queue(span, span.context.span_id)

    def queue(self, span: ReadableSpan, span_id: int) -> None:
        """Queue a span that has ended, unless it began in another process and was inherited over a fork."""
        if self._open.pop(span_id, None) is None:
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
            self._queue.append(span)
            try:
                if not _sigterm.wanted:
                    _sigterm.catch()
                self.worker.begin()
                if waiting + 1 == self._batch_size:
                    self.worker.wake()
            except Exception as error:
                contain("having a span sent", error)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Send what has ended, as `TracerProvider.force_flush` asks."""
        try:
            return self.flush(timeout_millis / 1000)
        except Exception as error:
            contain("flushing", error)
            return False

    def shutdown(self) -> None:
        """Send or keep what has ended. The pipeline goes on: other providers may feed it, and spans may be open."""
        try:
            self._flush_or_keep(self._config.exit_timeout)
        except Exception as error:
            contain("flushing", error)

    def flush(self, timeout: float) -> bool:
        """Send what has ended; return whether all of it left the queue within `timeout` seconds."""
        return self.worker.finish(timeout) and not self._stuck

    @property
    def waiting(self) -> int:
        """How many ended spans are neither delivered nor spooled nor dropped yet."""
        sending = self._sending  # read before and after: a batch must not be missed on its way out, nor on its way back
        return len(self._queue) + max(sending, self._sending)

    def balance(self) -> str:
        """Return the books as a line of text."""
        return self.books.line(len(self._open), self.waiting)

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
        try:
            self._queue_open_spans()
            self.flush_finally(timeout)
        finally:  # a thread that is still there when Python is not, in a process without free files, aborts it (glibc)
            self._closed = True
            if not self._hangs and self.worker.pause(min(GOODBYE, max(0.0, deadline - monotonic()))):
                self.worker.resume()

    def _flush_or_keep(self, timeout: float) -> None:
        """Send what has ended, within `timeout` seconds; where the collector hangs, keep it on disk."""
        begun = monotonic()
        deadline = begun + timeout
        self._sending_until = begun + timeout * SENDING
        try:
            before = self._in_hand.get("offer")
            finished = self.worker.finish(timeout * LOOKING)
            if not finished and (before is None or self._in_hand.get("offer") is not before):
                finished = self.worker.finish(timeout * (KEEPING - LOOKING))
            self._leave_spool_until = deadline + LEAVING
            if finished and not self._hangs:  # nobody else could send what is under way from the spool
                finished = self.worker.finish_round(begun + timeout * KEEPING - monotonic())
            if not finished:
                self._hangs = True
                self._keep(deadline)
        finally:
            self._sending_until = None

    def _queue_open_spans(self) -> None:
        """Let the spans that nobody has ended leave as they are; where they end later, they have left."""
        if not self._open or not self._config.to:
            return
        from .incomplete import as_it_is

        for span_id in list(self._open):
            reference = self._open.pop(span_id, None)
            if reference is None:  # ended meanwhile
                continue
            span = reference()
            if span is None:
                self.books.forgotten += 1
                continue
            self.books.ended += 1
            try:
                self._queue.append(as_it_is(span))
            except Exception as error:
                contain("a span that is still open", error)
                self.books.drop(1, "failure of the agent")
        self.worker.begin()

    def _keep(self, deadline: float) -> None:
        """Let the outputs' standbys keep what the worker has not sent: it hangs in one of them."""
        if self._outputs is None:  # it still imports what they need
            self.worker.finish(deadline - monotonic())
            return
        try:
            from .redaction import Redaction

            redaction = Redaction(self._config.redact)
            standbys = [output.standby() for output in self._outputs]
            hanging = self._in_hand.pop("offer", None)
            if hanging is not None:
                self._sending = 0
                self._settle(hanging.settled_part(), redaction, standbys, deadline)
            while self._queue and self._settle(Offer(self._next_batch()), redaction, standbys, deadline):
                pass
            for output in standbys:
                self.books.settle(output.end_round(deadline, ending=True))
                output.close()
        except Exception as error:
            contain("keeping spans", error)

    def _settle(self, offer: Offer, redaction: Redaction, standbys: Sequence[Output], deadline: float) -> bool:
        self._pass_on(offer, redaction, standbys, deadline, ending=True)
        return self._book(offer)

    # What the worker calls

    def _round(self, until: float | None = None) -> None:
        """Send what is queued now; in the thread that waits for it, and until that time, where `until` is given."""
        from .quiet import on_our_own

        with on_our_own():
            outputs = self._opened()
            for _ in range(0, len(self._queue), self._batch_size):
                if not self._send_batch(outputs, *self._time(until)):
                    break
            leave_spool = self.worker.stopping or monotonic() < self._leave_spool_until
            for output in outputs:
                self.books.settle(output.end_round(*((0.0, False) if leave_spool else self._time(until))))
        self._forget_what_has_no_end()
        self._say_drops()

    def _opened(self) -> Sequence[Output]:
        if self._outputs is None:
            try:
                with Unhidden():
                    from .redaction import Redaction

                    self._redaction = Redaction(self._config.redact)
                    self._outputs = self._open_outputs(self._config, self._say_that_spans_wait)
            except Exception as error:
                contain("opening the outputs", error)
        self.worker.settled()
        return self._outputs or ()

    def _send_batch(self, outputs: Sequence[Output], until: float, ending: bool) -> bool:
        """Send one batch; return whether there is a use in going on."""
        offer = self._in_hand["offer"] = Offer(self._next_batch())
        self._pass_on(offer, self._redaction, outputs, until, ending)
        if self._in_hand.pop("offer", None) is None:
            return False  # the program ends, and its last thread has seen to this
        return self._book(offer)

    def _book(self, offer: Offer) -> bool:
        """Count what became of a batch, and put back what is left of it; return whether nothing is."""
        self.books.settle(offer.outcome)
        self._queue.extendleft(reversed(offer.rest))
        self._sending = 0
        self._stuck = bool(offer.rest)
        return not self._stuck

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

    def _pass_on(
        self, offer: Offer, redaction: Redaction | None, outputs: Sequence[Output], until: float, ending: bool
    ) -> None:
        """Give a batch without its secrets to the outputs that have not had it, one after the other."""
        from .output import Loss

        try:
            if not outputs or redaction is None:
                raise RuntimeError("no output could be opened")
            spans = redaction.spans(offer.batch[: offer.outcome.done], hurry=ending)
            for output in outputs[offer.stage :]:
                output.send(spans[: offer.outcome.done], offer.begin(), until, ending)
                offer.end()
        except Exception as error:
            contain("sending spans", error)
            offer.outcome.losses = [Loss(offer.outcome.done, "failure of the agent", repr(error))]
            offer.outcome.spooled = 0

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
            if self.waiting or self._open:  # since then, by a thread that took SIGTERM to be caught
                _sigterm.catch()

    def _forget_what_has_no_end(self) -> None:
        if len(self._open) < self._look_for_forgotten_at:
            return
        for span_id, reference in list(self._open.items()):
            if reference() is None and self._open.pop(span_id, None) is not None:
                self.books.forgotten += 1
        self._look_for_forgotten_at = max(FORGOTTEN, 2 * len(self._open))

    def _say_drops(self, *, last: bool = False) -> None:
        now = monotonic()
        if not self._config.to or (not last and self._said_at is not None and now - self._said_at < SAY_AGAIN):
            return
        if news := self.books.news():
            self._said_at = now
            self._say(f"spans dropped: {news}")

    def _say_that_spans_wait(self, message: str) -> None:
        now = monotonic()
        if self._said_that_spans_wait_at is None or now - self._said_that_spans_wait_at >= SAY_AGAIN:
            self._said_that_spans_wait_at = now
            self._say(message)

    def _say(self, message: str) -> None:
        from .._log import logger
        from .._secrets import without_secrets

        logger().warning("%s", self._redaction.text(message) if self._redaction else without_secrets(message))


def _open_outputs(config: Config, say: Callable[[str], None]) -> list[Output]:
    from .output import Nowhere

    outputs: list[Output] = []
    for name in sorted(config.to, reverse=True):  # otlp, which alone may leave spans for later, before the others
        try:
            outputs.append(_output(name, config, say))
        except ImportError as error:  # a Python without sqlite3, for example
            outputs.append(Nowhere("an output cannot be opened", f"{name}: {error}"))
        except Exception as error:
            contain(f"opening the output {name}", error)
            outputs.append(Nowhere("failure of the agent"))
    return outputs


def _output(name: str, config: Config, say: Callable[[str], None]) -> Output:
    if name == "otlp":
        from .otlp import OtlpOutput

        return OtlpOutput(config, say)
    if name == "local":
        from .store import Store

        return Store(config.path, config.store_size, config.run)
    from .console import ConsoleOutput

    return ConsoleOutput()


def _current_thread() -> tuple[int, str]:
    """Return id and name of this thread, as `threading.current_thread()` gives them, without making one up there."""
    threading = sys.modules["threading"]  # the SDK imports it
    ident = threading.get_ident()  # a greenlet's, where gevent has patched it
    thread = threading._active.get(ident)
    return ident, thread.name if thread is not None else f"thread-{ident}"
