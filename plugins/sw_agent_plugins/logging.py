"""How `logging` tells which trace a line belongs to: each record has `trace_id`, `span_id` and `service_name`.

They are set when the record is made, in the thread that logs: a record that a `QueueHandler` passes to another thread,
or that is pickled to another process, takes them along. Without a current span both ids are empty strings, so that a
format that names them always works. What the program itself sets under one of these names stays as it is.

OpenTelemetry's own handlers take every field of a record that they do not know for an attribute of the program's. What
they record has trace, span and service in places of their own: these are no attributes there.

What is printed is the program's business, unless the options `format` or `json` ask for something else. They then hold
for every handler whose formatter is `logging`'s, be it the default one; a formatter class with a `format()` of its own
is left alone.
"""

from __future__ import annotations

import sys
from _thread import _local
from collections import deque

from sw_agent.plugin import Answer, Option, Plugin, service_name
from sw_agent.snapshot import current_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from logging import Formatter, Handler, LogRecord
    from typing import Any

NAMES = ("trace_id", "span_id", "service_name")
IDS = frozenset(NAMES)
EXTRA = 8  # its place among the arguments of Logger.makeRecord

plugin = Plugin(
    "logging",
    options=[
        Option("format", "", "print each record so, as in '%(asctime)s %(trace_id)s %(message)s'; empty: unchanged"),
        Option("json", False, "print each record as one JSON object on one line"),
    ],
)


@plugin.before("logging:LogRecord.__init__")
def set_ids(record: LogRecord, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    """Set the ids of the current span, before a subclass sets fields of the same names."""
    fields = record.__dict__
    trace_id, span_id = _current_ids()
    fields.setdefault("trace_id", trace_id)
    fields.setdefault("span_id", span_id)
    fields.setdefault("service_name", _service[0] if _service else _learn_service())


_service: list[str] = []  # asked once: a record is made in a few microseconds


def _learn_service() -> str:
    name = service_name()
    if name:
        _service.append(name)
    return name


class Recent(_local):
    """The ids of each thread's newest spans: who handles a record may have logged in other spans meanwhile."""

    def __init__(self) -> None:
        self.span_context: object = None
        self.ids = ("", "")
        self.all: deque[str] = deque(maxlen=32)


_recent = Recent()


def _current_ids() -> tuple[str, str]:
    context = current_context()
    trace = sys.modules.get("opentelemetry.trace") if context else None
    if trace is None:
        return "", ""
    span_context = trace.get_current_span(context).get_span_context()
    if not span_context.is_valid:
        return "", ""
    if span_context is not _recent.span_context:
        _recent.span_context = span_context
        _recent.ids = f"{span_context.trace_id:032x}", f"{span_context.span_id:016x}"
        _recent.all.extend(_recent.ids)
    return _recent.ids


@plugin.intercept("logging:Logger.makeRecord")
def let_the_extra_of_the_program_win(
    wrapped: Callable[..., Any], _logger: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Keep `extra={"trace_id": …}` from the KeyError with which a name that a record has already is refused."""
    extra = args[EXTRA] if len(args) > EXTRA else kwargs.get("extra")
    if not extra or IDS.isdisjoint(extra):
        return wrapped(*args, **kwargs)
    rest = {key: value for key, value in extra.items() if key not in IDS}
    if len(args) > EXTRA:
        record = wrapped(*args[:EXTRA], rest, *args[EXTRA + 1 :], **kwargs)
    else:
        record = wrapped(*args, **{**kwargs, "extra": rest})
    record.__dict__.update({key: value for key, value in extra.items() if key in IDS})
    return record


@plugin.intercept("opentelemetry.instrumentation.logging.handler:LoggingHandler._get_attributes", optional=True)
@plugin.intercept("opentelemetry.sdk._logs._internal:LoggingHandler._get_attributes", optional=True)
def leave_out_what_is_said_elsewhere(
    wrapped: Callable[..., Any], _handler: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Take the fields that are set here out of a record's attributes; the program's, of the same names, stay."""
    found = wrapped(*args, **kwargs)
    attributes = found[0] if isinstance(found, tuple) else found
    ours = ("", *_recent.all, *_service)
    for name in NAMES:
        if any(attributes.get(name) is each for each in ours):
            del attributes[name]
    return found


@plugin.intercept("logging:Handler.format")
def format_as_asked(
    wrapped: Callable[..., Any], handler: Handler, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Print a record as the options say."""
    settings = plugin.settings
    if not (settings["format"] or settings["json"]):
        return wrapped(*args, **kwargs)
    record: LogRecord = args[0] if args else kwargs["record"]
    formatter = _formatter_to_replace(handler, record)
    if formatter is None:
        return wrapped(*args, **kwargs)
    if settings["json"]:
        return Answer(_as_json(formatter, record))
    return Answer(_like(formatter, settings["format"]).format(record))


def _formatter_to_replace(handler: Handler, record: LogRecord) -> Formatter | None:
    import logging

    formatter = handler.formatter or logging._defaultFormatter  # type: ignore[attr-defined]
    if type(formatter).format is not logging.Formatter.format or record.name == "sw_agent":
        return None
    if hasattr(handler, "enqueue"):  # a QueueHandler prints nothing: the handlers of its listener do
        return None
    try:
        record.getMessage()
    except Exception:  # arguments that do not fit the message: logging reports the program's mistake
        return None
    return formatter


def _like(formatter: Formatter, format: str) -> Formatter:
    """Return a formatter for this format that prints times and exceptions as the program's own does."""
    from logging import Formatter

    made = Formatter(format, formatter.datefmt, "%" if "%(" in format else "{" if "{" in format else "$")
    made.formatTime = formatter.formatTime  # type: ignore[method-assign]
    made.formatException = formatter.formatException  # type: ignore[method-assign]
    return made


def _as_json(formatter: Formatter, record: LogRecord) -> str:
    from datetime import datetime, timezone
    from json import dumps
    from logging import LogRecord

    fields: dict[str, object] = {
        "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
        "level": record.levelname,
        "logger": record.name,
        "message": record.getMessage(),
    }
    fields.update((name, getattr(record, name, "")) for name in NAMES)
    if record.exc_info or record.exc_text:
        fields["exception"] = record.exc_text or formatter.formatException(record.exc_info)  # type: ignore[arg-type]
    if record.stack_info:
        fields["stack"] = formatter.formatStack(record.stack_info)
    of_every_record = {*vars(LogRecord("", 0, "", 0, "", (), None)), "message", "asctime"}
    for name, value in record.__dict__.items():
        if name not in of_every_record:
            fields[f"extra.{name}" if name in fields else name] = value
    return dumps(fields, default=str, skipkeys=True)
