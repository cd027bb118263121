"""The logging plugin: every record tells its trace, and the program prints what it printed before, unless asked."""

from __future__ import annotations

import copy
import io
import json
import logging
import logging.handlers
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace

import sw_agent_plugins.logging as logging_plugin
from sw_agent.testing import installed
from sw_agent_plugins.logging import plugin


class Log:
    """A logger of the program's, apart from all others, with what its handlers printed."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.logger = logging.Logger("program.part", logging.DEBUG)
        self.logger.addHandler(self.handler)
        self.records: list[logging.LogRecord] = []
        self.handler.addFilter(lambda record: self.records.append(record) or True)

    def printed(self, format: str | None = None, **setting: Any) -> str:
        """Return what a warning looks like in this format."""
        self.handler.setFormatter(logging.Formatter(format, **setting) if format else None)
        self.logger.warning("disk %s is full", "sda")
        return self.stream.getvalue()

    @property
    def record(self) -> logging.LogRecord:
        return self.records[-1]


@pytest.fixture
def log() -> Log:
    return Log()


def span(name: str = "request") -> Any:
    return trace.get_tracer("test").start_as_current_span(name)


def ids(of: Any) -> tuple[str, str]:
    context = of.get_span_context()
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)


def ids_in(record: Any) -> tuple[str, str]:
    return record.trace_id, record.span_id


@pytest.fixture
def named_service(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(logging_plugin, "_service", ["shop"])
    return "shop"


def test_a_record_tells_the_trace_the_span_and_the_service(log: Log, named_service: str) -> None:
    with installed(plugin), span() as current:
        printed = log.printed("%(trace_id)s %(span_id)s %(service_name)s")
    assert printed == " ".join((*ids(current), "shop")) + "\n"


@pytest.mark.parametrize(("format", "style"), [("[%(trace_id)s]", "%"), ("[{trace_id}]", "{"), ("[$trace_id]", "$")])
def test_a_format_that_names_the_ids_works_without_a_span_too(log: Log, format: str, style: str) -> None:
    with installed(plugin):
        assert log.printed(format, style=style) == "[]\n"


def test_the_programs_format_is_unchanged(log: Log) -> None:
    with installed(plugin), span():
        assert log.printed("%(levelname)s:%(name)s:%(message)s") == "WARNING:program.part:disk sda is full\n"


def test_a_record_has_the_ids_of_its_creation_behind_a_queue(log: Log) -> None:
    handed_over: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    seen: list[tuple[str, str]] = []
    done = threading.Event()

    class Last(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(ids_in(record))
            done.set()

    with installed(plugin):
        listener = logging.handlers.QueueListener(handed_over, Last())
        listener.start()
        log.logger.addHandler(logging.handlers.QueueHandler(handed_over))
        with span() as current:
            log.logger.warning("over there")
        assert done.wait(30)
        listener.stop()
    assert seen == [ids(current)]


@pytest.mark.parametrize(
    "passed_on",
    [copy.copy, lambda r: pickle.loads(pickle.dumps(r)), lambda r: logging.makeLogRecord(vars(r))],
    ids=["copied", "pickled", "made from a dict"],
)
def test_a_record_that_is_passed_on_keeps_its_ids(log: Log, passed_on: Callable[..., Any]) -> None:
    with installed(plugin):
        with span() as current:
            log.logger.warning("first")
        with span("another"):
            assert ids_in(passed_on(log.record)) == ids(current)


def test_records_of_a_factory_of_the_programs_have_the_ids_and_its_own_fields_win(log: Log) -> None:
    class Record(logging.LogRecord):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.span_id = "mine"
            super().__init__(*args, **kwargs)
            self.tenant = "acme"

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Record)
    try:
        with installed(plugin), span() as current:
            log.logger.warning("made elsewhere")
    finally:
        logging.setLogRecordFactory(before)
    assert (log.record.trace_id, log.record.span_id, log.record.tenant) == (  # type: ignore[attr-defined]
        ids(current)[0],
        "mine",
        "acme",
    )


@pytest.mark.parametrize("name", ["trace_id", "span_id", "service_name"])
def test_what_the_program_passes_as_extra_wins(log: Log, name: str) -> None:
    extra = {name: "mine", "order": 7}
    with installed(plugin), span():
        log.logger.warning("with extra", extra=extra)
        logging.LoggerAdapter(log.logger, extra).warning("with an adapter")
        made = log.logger.makeRecord("n", 10, "f", 1, "m", (), None, extra=extra)
    for record in (*log.records, made):
        assert (getattr(record, name), record.order) == ("mine", 7)  # type: ignore[attr-defined]
    assert extra == {name: "mine", "order": 7}
    assert len(log.records) == 2


@pytest.mark.parametrize("module", ["opentelemetry.sdk._logs", "opentelemetry.instrumentation.logging.handler"])
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_a_handler_of_opentelemetrys_records_the_programs_fields_alone(log: Log, module: str) -> None:
    """It has trace, span and service in places of their own, and a limit to the attributes of a record."""
    from opentelemetry.sdk._logs import LoggerProvider

    provider, recorded = LoggerProvider(shutdown_on_exit=False), []
    processor: Any = SimpleNamespace(emit=recorded.append, on_emit=recorded.append, force_flush=bool)
    provider.add_log_record_processor(processor)
    handler = pytest.importorskip(module).LoggingHandler(logger_provider=provider)
    log.handler.emit = lambda _: logging.Logger("another").makeRecord("n", 10, "f", 1, "m", (), None)  # type: ignore
    log.logger.addHandler(handler)
    log.logger.warning("plain")
    with installed(plugin):
        log.logger.warning("without a span")
        with span() as current:
            log.logger.warning("in a span")
            log.logger.warning("with a field of the same name", extra={"trace_id": ids(current)[0]})
    attributes = [dict(each.log_record.attributes) for each in recorded]
    plain, without_span, in_span, with_field = [
        {name: value for name, value in of.items() if not name.startswith("code.line")} for of in attributes
    ]
    assert plain == without_span == in_span
    assert with_field == {**plain, "trace_id": ids(current)[0]}


def test_an_extra_that_logging_refuses_is_refused(log: Log) -> None:
    with installed(plugin), pytest.raises(KeyError, match="Attempt to overwrite 'lineno'"):
        log.logger.warning("no", extra={"lineno": 1, "trace_id": "mine"})


def test_a_record_names_the_line_that_logged_it(log: Log) -> None:
    with installed(plugin), span():
        log.logger.warning("here", extra={"trace_id": "mine"})
    assert (log.record.filename, log.record.funcName) == (
        "test_logging.py",
        "test_a_record_names_the_line_that_logged_it",
    )


def test_uninstalled_the_plugin_leaves_no_trace(log: Log) -> None:
    before = (logging.LogRecord.__init__, logging.Logger.makeRecord, logging.Handler.format)
    with installed(plugin, json=True):
        pass
    assert before == (logging.LogRecord.__init__, logging.Logger.makeRecord, logging.Handler.format)
    log.logger.warning("plain")
    assert not hasattr(log.record, "trace_id")


def test_the_option_format_holds_for_every_handler_of_loggings_own_formatters(log: Log) -> None:
    default = io.StringIO()
    log.logger.addHandler(logging.StreamHandler(default))
    with installed(plugin, format="%(trace_id)s|%(message)s"), span() as current:
        explicit = log.printed("%(asctime)s %(message)s")
    assert explicit == default.getvalue() == f"{ids(current)[0]}|disk sda is full\n"


def test_the_option_format_prints_times_and_exceptions_as_the_program_does(log: Log) -> None:
    class Short(logging.Formatter):
        def formatException(self, ei: Any) -> str:  # noqa: N802
            return f"<{ei[0].__name__}>"

    log.handler.setFormatter(Short("%(message)s", datefmt="on a day"))
    with installed(plugin, format="{asctime} {message}"):
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            log.logger.exception("failed")
    assert log.stream.getvalue() == "on a day failed\n<ZeroDivisionError>\n"


@pytest.mark.parametrize("settings", [{"format": "%(trace_id)s"}, {"json": True}])
def test_a_formatter_with_a_format_of_its_own_is_left_alone(log: Log, settings: dict[str, Any]) -> None:
    class Own(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return "own " + super().format(record)

    log.handler.setFormatter(Own("%(message)s"))
    with installed(plugin, **settings):
        log.logger.warning("words")
    assert log.stream.getvalue() == "own words\n"


def test_json_is_one_object_a_line(log: Log, named_service: str) -> None:
    with installed(plugin, json=True), span() as current:
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            log.logger.exception("could not %s", "pay", extra={"order": 7, "time": "mine", "who": {1, 2} - {2}})
    (line,) = log.stream.getvalue().splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found.pop("exception").endswith("ValueError: first\nsecond")
    assert found == {
        "level": "ERROR",
        "logger": "program.part",
        "message": "could not pay",
        "trace_id": ids(current)[0],
        "span_id": ids(current)[1],
        "service_name": "shop",
        "order": 7,
        "extra.time": "mine",
        "who": "{1}",
    }


def test_json_behind_a_queue_is_printed_once_not_quoted_twice(log: Log) -> None:
    handed_over: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    front = logging.Logger("front")
    front.addHandler(logging.handlers.QueueHandler(handed_over))
    with installed(plugin, json=True):
        front.warning("over there")
        log.logger.handle(handed_over.get())
    assert json.loads(log.stream.getvalue())["message"] == "over there"


@pytest.mark.parametrize("settings", [{}, {"format": "%(message)s"}, {"json": True}])
def test_arguments_that_do_not_fit_are_reported_by_logging(
    log: Log, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with installed(plugin, **settings):
        log.logger.warning("%d disks", "no")
    assert "--- Logging error ---" in capsys.readouterr().err


def test_a_format_that_is_none_is_reported_once_and_the_programs_own_is_used(
    log: Log, agent_errors: list[logging.LogRecord]
) -> None:
    with installed(plugin, format="%(message"):
        assert log.printed("%(message)s") == "disk sda is full\n"
        log.logger.warning("more")
    assert len(agent_errors) == 1
    agent_errors.clear()


def test_a_program_without_opentelemetry_stays_without_it() -> None:
    program = """
import sys
from sw_agent_plugins.logging import plugin
import logging
plugin.install({"json": True})
logging.warning("plain")
print(*[name for name in sys.modules if name.startswith("opentelemetry")])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "\n"), ran.stderr
    assert json.loads(ran.stderr)["trace_id"] == ""
