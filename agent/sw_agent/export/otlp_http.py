"""OTLP over HTTP, by OpenTelemetry's exporter: it brings address, headers, TLS and compression, the session the rest.

The exporter takes spans and sends them with retries of its own. Here it is given none to encode: the session puts a
request that is encoded already in the place of the empty one, and says what became of it.
"""

from __future__ import annotations

import gzip
import os
import time
import zlib
from contextlib import closing, suppress
from inspect import unwrap
from typing import TYPE_CHECKING, Any

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from .refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

# What OTLP says may pass: https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes
MAY_PASS = frozenset((429, 502, 503, 504))
LONGEST_ANSWER = 2**16  # bytes that are read of what a collector answers
PROVIDERS = tuple(f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{kind}CREDENTIAL_PROVIDER" for kind in ("", "TRACES_"))
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


class HttpWire:
    """Sends encoded requests to the collector's URL."""

    def __init__(self, endpoint: str, timeout: float) -> None:
        self._session = _session()
        self._exporter: Any = OTLPSpanExporter(endpoint=endpoint, timeout=timeout, session=self._session)

    def post(self, body: bytes, timeout: float) -> ExportTraceServiceResponse | None:
        """Send one request and return the collector's answer, None where that is not readable.

        Raises:
            Refusal: it was not taken.
        """
        session = self._session
        session.request_body, session.answer, session.seconds = body, None, timeout
        session.refusal = Refusal("the exporter sent nothing", may_pass=False)
        with suppress(Refusal):  # older exporters let it through, newer ones do not
            self._exporter.export(())
        session.request_body = b""
        refusal, session.refusal = session.refusal, None
        if refusal is not None:
            raise refusal
        return session.answer

    def close(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()


class Session(requests.Session):
    """A session that sends `request_body` in the place of what it is given, and keeps the answer or the `Refusal`.

    A `Refusal` is none of the errors after which the exporter would wait and try again by itself: when to try again is
    decided by the one who knows whether the program is ending.
    """

    request_body = b""
    seconds = 10.0
    refusal: Refusal | None = None
    answer: ExportTraceServiceResponse | None = None
    _kept_alive = False

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request, at once again where a connection kept alive turned out to be dead; follow no redirection."""
        encoding = {**self.headers, **(kwargs.get("headers") or {})}.get("Content-Encoding", "")
        kwargs["data"] = COMPRESSIONS.get(str(encoding), bytes)(self.request_body)
        kwargs.update(timeout=self.seconds, stream=True, allow_redirects=False)
        kwargs.setdefault("verify", self.verify)  # or REQUESTS_CA_BUNDLE would count for more than OpenTelemetry's
        until = time.monotonic() + self.seconds
        kept_alive, self._kept_alive = self._kept_alive, False
        try:
            try:
                response = super().request(*args, **kwargs)
            except requests.ConnectionError as error:
                kwargs["timeout"] = until - time.monotonic()
                if not kept_alive or isinstance(error, requests.Timeout) or kwargs["timeout"] <= 0:
                    raise
                response = super().request(*args, **kwargs)
            with closing(response):
                self.refusal, self.answer = _read(response, until)
        except (OSError, UnicodeError) as error:  # as all errors of requests are, and of a header that is no latin-1
            self.refusal = Refusal(_in_short(error), may_pass=not isinstance(error, ValueError))
            _forget_frames(error)
        if self.refusal is not None:
            raise self.refusal
        self._kept_alive = True
        return response

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send it as `requests` does, past what other agents have put around that: the program sends nothing."""
        return unwrap(requests.Session.send)(self, *args, **kwargs)  # type: ignore[no-any-return]


def _session() -> Session:
    """Return a session: of the provider that the environment names, as OpenTelemetry's exporter would use it."""
    name = next((os.environ[variable] for variable in PROVIDERS if os.environ.get(variable)), None)
    if name is None:
        return Session()
    from importlib.metadata import entry_points

    (provider,) = entry_points(group="opentelemetry_otlp_credential_provider", name=name)
    session: Any = provider.load()()
    session.__class__ = type("Session", (Session, type(session)), {})
    return session  # type: ignore[no-any-return]


def _read(response: requests.Response, until: float) -> tuple[Refusal | None, ExportTraceServiceResponse | None]:
    if response.status_code < 300:
        body = b""
        for chunk in response.iter_content(LONGEST_ANSWER):
            body += chunk
            if len(body) > LONGEST_ANSWER or time.monotonic() > until:
                break
        return None, _answer(body) if body else None
    wait = _seconds(response.headers.get("Retry-After", ""))
    passes = response.status_code in MAY_PASS
    return Refusal(f"{response.status_code} {response.reason}", may_pass=passes, answered=True, wait=wait), None


def _answer(body: bytes) -> ExportTraceServiceResponse | None:
    try:
        answer: ExportTraceServiceResponse = ExportTraceServiceResponse.FromString(body)
    except Exception:  # no collector's words; the status says that it was taken
        return None
    return answer


def _seconds(retry_after: str) -> float:
    """Return the seconds that a header Retry-After asks for: a number, or a date (RFC 9110, section 10.2.3)."""
    if retry_after.strip().isdecimal() and len(retry_after) < 10:
        return float(retry_after)
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0


def _in_short(error: OSError | UnicodeError) -> str:
    """Return the innermost reason: what urllib3 and requests put around it says nothing more."""
    if isinstance(error, requests.exceptions.InvalidHeader | UnicodeError):
        return "a header of OTEL_EXPORTER_OTLP_HEADERS cannot be sent"  # their text holds its value
    inner: BaseException = error
    while True:
        wrapped = getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
        if not isinstance(wrapped, BaseException):
            break
        inner = wrapped
    cause: BaseException | None = inner
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return str(cause or inner)


def _forget_frames(error: BaseException | None) -> None:
    """Let go of what the frames hold in which an error was raised: urllib3's hold the error, and the connections."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
