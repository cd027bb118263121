"""Other agents in this process: that one is there is said once, and what it has written stays."""

from __future__ import annotations

import sys

from . import _imports, _log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

# The modules by which they are recognised; `newrelic` itself is also imported by programs that it does not trace.
AGENTS = {
    "ddtrace": "ddtrace",
    "elasticapm": "Elastic APM",
    "logfire": "Logfire",
    "newrelic.config": "New Relic",
    "sentry_sdk": "Sentry",
}
WRITE_TRACEPARENT = ("ddtrace", "elasticapm", "newrelic.config")
_said: set[str] = set()


def watch() -> None:
    """Say of each agent that it is there, when it is."""
    for name in AGENTS:
        _imports.when_imported(name, _arrived)


def _arrived(module: ModuleType) -> None:
    if module.__name__ not in _said:
        _said.add(module.__name__)
        _log.info("%s is here too: both agents follow the program, each with spans of its own", AGENTS[module.__name__])


def another_wrote_parent(headers: Mapping[str, str]) -> bool:
    """Return whether another agent has put its own `traceparent` among the headers of a request."""
    if "traceparent" not in headers:
        return False
    name = next((name for name in WRITE_TRACEPARENT if name in sys.modules), None)
    if name is not None and "traceparent" not in _said:
        _said.add("traceparent")
        _log.logger().warning(
            "%s writes the header traceparent, which is left to it: the traces of this agent end at such requests; "
            "docs/compatibility.md says what lets both go on",
            AGENTS[name],
        )
    return name is not None
