"""The HTTP session that OTLP's exporter sends with: it notes why the collector did not take a batch."""

from __future__ import annotations

from typing import Any

import requests

# What OTLP says may pass: https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes
MAY_PASS = frozenset((429, 502, 503, 504))


class Refusal(Exception):
    """The collector was not reached or did not take the batch; `may_pass` is whether it might later."""

    def __init__(self, message: str, may_pass: bool) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class Session(requests.Session):
    """A session that raises what is no success as a `Refusal`, and keeps the last one.

    A `Refusal` is none of the errors after which the exporter would wait and try again by itself: when to try again is
    decided by the one who knows whether the program is ending.
    """

    refusal: Refusal | None = None

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send one request, at once again where a connection kept alive turned out to be dead."""
        try:
            try:
                response = super().request(*args, **kwargs)
            except requests.ConnectionError:
                response = super().request(*args, **kwargs)
        except requests.RequestException as error:
            self.refusal = Refusal(_in_short(error), isinstance(error, requests.ConnectionError | requests.Timeout))
            raise self.refusal from error
        if response.status_code >= 400:
            self.refusal = Refusal(f"{response.status_code} {response.reason}", response.status_code in MAY_PASS)
            raise self.refusal
        return response


def _in_short(error: requests.RequestException) -> str:
    """Return the innermost reason: what urllib3 and requests put around it says nothing more."""
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
