"""What plugins for HTTP share: names, values and redaction, by OpenTelemetry's stable HTTP conventions.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/ (stable since 1.23.0). Nothing here imports a library.
"""

from __future__ import annotations

from .carrier import ContextCarrier, header_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from .snapshot import ContextSnapshot

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


class CapturedHeaders:
    """The headers that the configuration asks for, as attributes `http.request.header.NAME` or `http.response…`.

    `direction` is "request" or "response". Those that hold secrets are REDACTED whatever the configuration says.
    """

    def __init__(self, direction: str, names: Iterable[str]) -> None:
        self._keys = [(name, f"http.{direction}.header.{name.lower()}", is_sensitive(name)) for name in names]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def attributes(self, values_of: Callable[[str], Sequence[str]]) -> dict[str, tuple[str, ...]]:
        """Return the attributes; `values_of(name)` returns all values of a header, none where it is missing."""
        found = {}
        for name, key, sensitive in self._keys:
            values = values_of(name)
            if values:
                found[key] = (REDACTED,) if sensitive else tuple(map(printable, values))
        return found


def context_in(headers: Any) -> ContextSnapshot:
    """Return the context that the headers of a request bring; what is malformed of it counts as missing.

    `headers` is a mapping with several values for a name, as `multidict.CIMultiDict` is, with its method `getall`.
    """
    names = header_names()
    if names is None:
        names = {name.lower() for name in headers}  # type: ignore[assignment]
    carrier = ContextCarrier()
    for name in names:  # type: ignore[union-attr]
        values = headers.getall(name, None)
        if values:
            carrier[name] = values[0] if len(values) == 1 else ",".join(values)
    return carrier.extract()


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
