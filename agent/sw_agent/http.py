"""What plugins for HTTP share: names, values and redaction, by OpenTelemetry's stable HTTP conventions.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/ (stable since 1.23.0). Nothing here imports a library.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

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


class CapturedHeaders:
    """The headers that the configuration asks for, as attributes `http.request.header.NAME` or `http.response…`.

    `direction` is "request" or "response". Those that hold secrets are REDACTED whatever the configuration says.
    """

    def __init__(self, direction: str, names: Iterable[str]) -> None:
        self._keys = [(name, f"http.{direction}.header.{name.lower()}", is_sensitive(name)) for name in names]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def attributes(self, values_of: Callable[[str], Sequence[str]]) -> dict[str, list[str]]:
        """Return the attributes; `values_of(name)` returns all values of a header, none where it is missing."""
        found = {}
        for name, key, sensitive in self._keys:
            values = values_of(name)
            if values:
                found[key] = [REDACTED] if sensitive else list(values)
        return found
