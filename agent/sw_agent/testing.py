"""What a plugin's tests import: the plugin installed for the length of a `with`, and the spans that ended meanwhile."""

from __future__ import annotations

from contextlib import contextmanager

from . import _imports, snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from .plugin import Plugin

__all__ = ["RecordedSpans", "installed", "recorded_spans"]


class RecordedSpans:
    """The spans that ended since the recording began, in the order of their ends."""

    def __init__(self) -> None:
        self.ended: list[ReadableSpan] = []

    def __iter__(self) -> Iterator[ReadableSpan]:
        return iter(tuple(self.ended))

    def __len__(self) -> int:
        return len(self.ended)

    @property
    def names(self) -> list[str]:
        """The names of the ended spans."""
        return [span.name for span in self]

    def named(self, name: str) -> ReadableSpan:
        """Return the only ended span of that name.

        Raises:
            LookupError: there is none, or more than one.
        """
        found = [span for span in self if span.name == name]
        if len(found) != 1:
            raise LookupError(f"{len(found)} spans are named {name!r}; ended are {self.names}")
        return found[0]

    def parent_of(self, name: str) -> str | None:
        """Return the name of the parent of the only span of that name; None for a root."""
        parent = self.named(name).parent
        if parent is None:
            return None
        return next(span.name for span in self if span.context and span.context.span_id == parent.span_id)


@contextmanager
def recorded_spans() -> Iterator[RecordedSpans]:
    """Record the spans that end in this process, whoever makes them."""
    _imports.when_imported("opentelemetry.context", snapshot.bind)
    from opentelemetry import trace
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider(shutdown_on_exit=False)
        trace.set_tracer_provider(provider)
    recorded = RecordedSpans()
    recording = True

    class Recorder(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            if recording:
                recorded.ended.append(span)

    provider.add_span_processor(Recorder())
    try:
        yield recorded
    finally:
        recording = False


@contextmanager
def installed(plugin: Plugin, **settings: object) -> Iterator[RecordedSpans]:
    """Install the plugin with these settings, record the spans that end, and uninstall it again."""
    with recorded_spans() as recorded:
        plugin.install(settings)
        try:
            yield recorded
        finally:
            plugin.uninstall()
