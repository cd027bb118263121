"""What plugins for HTTP share: names, values and redaction, by OpenTelemetry's stable HTTP conventions.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/ (stable since 1.23.0). Nothing here imports a library.
"""

from __future__ import annotations

from ._hop import error_text, error_type, is_failure
from ._other_agents import another_wrote_parent as another_wrote_parent
from .carrier import reader
from .snapshot import current_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

LONGEST_HOST = 255  # characters, of a domain name: RFC 1035, section 2.3.4
_NO_HOST = frozenset(' "#/<>?@[\\]^`{|}\t')
REDACTED = "REDACTED"
OTHER = "_OTHER"
# The methods that the conventions know: those of RFC 9110 and PATCH of RFC 5789.
METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))
# Parts of names, without "-" and "_". The conventions name `sig`, `Signature`, `AWSAccessKeyId` and `X-Goog-Signature`.
SENSITIVE = (
    "accesskey",
    "apikey",
    "authorization",
    "cookie",
    "credential",
    "password",
    "secret",
    "session",
    "signature",
    "token",
)


def method_attributes(method: str) -> dict[str, str]:
    """Return the attributes for a request's method; an unknown one is OTHER, beside what it was."""
    if method in METHODS:
        return {"http.request.method": method}
    return {"http.request.method": OTHER, "http.request.method_original": method}


def span_name(method: str, target: str = "") -> str:
    """Return the name of a span: method and, where it is known and of few values, the target, such as a route."""
    name = method if method in METHODS else "HTTP"
    return f"{name} {target}" if target else name


def is_sensitive(name: str) -> bool:
    """Return whether a header or a parameter of that name holds a secret, in upper or lower case."""
    plain = name.lower().replace("-", "").replace("_", "")
    return plain == "sig" or any(word in plain for word in SENSITIVE)


def redacted_query(query: str) -> str:
    """Return a URL's query, as it stands there, with the values of sensitive parameters REDACTED."""
    pairs = []
    for pair in query.split("&"):
        name, equals, _ = pair.partition("=")
        pairs.append(f"{name}={REDACTED}" if equals and is_sensitive(name) else pair)
    return "&".join(pairs)


def any_of(globs: list[str]) -> Callable[[str], object] | None:
    """Return what tells whether a text, such as a path, fits one of these patterns; None where there are none."""
    if not globs:
        return None
    import re
    from fnmatch import translate

    return re.compile("|".join(map(translate, globs))).match


def captured_headers(direction: str, names: Iterable[str]) -> Callable[[Any], dict[str, tuple[str, ...]]] | None:
    """Return what makes attributes of the headers that the configuration asks for; None where it asks for none.

    They are `http.request.header.NAME` or `http.response…`, as `direction` is "request" or "response". Those that hold
    secrets are REDACTED whatever the configuration says. The headers are a mapping with several values for a name, as
    `multidict.CIMultiDict` is, with its method `getall`.
    """
    keys = [(name, f"http.{direction}.header.{name.lower()}", is_sensitive(name)) for name in names]

    def attributes_of(headers: Any) -> dict[str, tuple[str, ...]]:
        found = {}
        for name, key, sensitive in keys:
            values = headers.getall(name, None)
            if values:
                found[key] = (REDACTED,) if sensitive else tuple(map(printable, values))
        return found

    return attributes_of if keys else None


def redacted_url(url: str, query: bool) -> str:
    """Return a URL for `url.full`: no fragment, no credentials, and no query, or one without the sensitive values.

    The conventions' way to leave credentials out is to replace both: `https://REDACTED:REDACTED@example.com/`.
    """
    url = url.partition("#")[0]
    url, mark, values = url.partition("?")
    scheme, colon, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        url = f"{scheme}{colon}{REDACTED}:{REDACTED}@{authority.rpartition('@')[2]}{slash}{path}"
    return f"{url}{mark}{redacted_query(values)}" if query and mark else url


def mark_status(span: Span, status: int) -> None:
    """Give a span the status ERROR for a response's status code; the code says why."""
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", str(status))
    span.set_status(StatusCode.ERROR)


def mark_request_failed(span: Span, error: BaseException) -> None:
    """Give a span the status ERROR for an exception, unless it has it; a cancellation is none.

    The exception's text is left out where it may hold a URL, and with it a secret.
    """
    from opentelemetry.trace import StatusCode

    status = getattr(span, "status", None)
    if not is_failure(error) or (status is not None and status.status_code is StatusCode.ERROR):
        return
    span.set_attribute("error.type", error_type(error))
    name, text = type(error).__name__, error_text(error)
    may_hold_url = any(mark in text for mark in ("://", "?", "@"))
    span.set_status(StatusCode.ERROR, name if may_hold_url else f"{name}: {text}")


def is_suppressed() -> bool:
    """Return whether OpenTelemetry's context says that what happens now is not to be traced, as exporters say."""
    context = current_context()
    if not context:
        return False
    return any(context.get(key) for key in _suppressing())


_suppressing_keys: tuple[str, ...] = ()


def _suppressing() -> tuple[str, ...]:
    global _suppressing_keys
    if not _suppressing_keys:
        from opentelemetry import context

        names = "suppress_instrumentation", "suppress_http_instrumentation"
        keys = (getattr(context, f"_{name.upper()}_KEY", name) for name in names)
        _suppressing_keys = (*names, *keys)
    return _suppressing_keys


def context_in(headers: Any) -> Context | None:
    """Return the context that the headers of a request bring, None for none; what is malformed counts as missing.

    `headers` is a mapping with several values for a name, as `multidict.CIMultiDict` is, with its method `getall`.
    """
    configured = reader()
    parents = headers.getall("traceparent", ())
    if len(parents) == 1 and "tracestate" not in headers and "baggage" not in headers:
        context = configured.parent_in(parents[0])
        if context is not None:
            return context
    names = configured.names if configured.names is not None else {name.lower() for name in headers}
    found = {}
    for name in names:
        values = headers.getall(name, None)
        if values:
            found[name] = values[0] if len(values) == 1 else ",".join(values)
    return configured.context_of(found) if found else None


def host_and_port(host: str) -> tuple[str, int | None]:
    """Return the two parts of a header `Host`; ("", None) where it is no host at all."""
    name, colon, digits = host.rpartition(":")
    port = None
    if not colon or host.endswith("]"):
        name = host
    elif digits.isdecimal() and digits.isascii() and len(digits) <= 5:
        port = int(digits)
    else:
        return "", None
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    elif ":" in name:
        return "", None
    is_host = 0 < len(name) <= LONGEST_HOST and name.isascii() and _NO_HOST.isdisjoint(name)
    return (name, port) if is_host and (port or 0) <= 65535 else ("", None)


def printable(value: str) -> str:
    """Return a value with "?" for bytes that were no UTF-8: they are lone surrogates here, which nothing can encode."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
