"""What `sw-python doctor` looks at: each function finds out one thing, and changes nothing."""

from __future__ import annotations

import os
import shutil
import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from .._config_schema import INTERNAL, KEYS, in_variable, plugin_key
from .._secrets import without_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._config import Config
    from .._discovery import PluginEntry

CONNECT_TIMEOUT = 1.0  # seconds
VERSIONS = ("sw-python", "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp")
OTHER_AGENTS = ("ddtrace", "elastic-apm", "logfire", "newrelic", "sentry-sdk")
# OpenTelemetry's own instrumentations, each with the plugin that makes no spans beside its own
OPENTELEMETRYS = {
    f"opentelemetry-instrumentation-{plugin}": plugin for plugin in ("aiohttp-client", "aiohttp-server", "celery")
}
SKYWALKING = "apache-skywalking"


def interpreter() -> dict[str, Any]:
    """Return which Python this is, and which one `python` on the PATH is."""
    return {
        "executable": sys.executable,
        "version": ".".join(map(str, sys.version_info[:3])),
        "implementation": sys.implementation.name,
        "python_on_path": shutil.which("python"),
    }


def installed_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those of the distributions that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def is_compiled() -> bool:
    """Return whether the modules in C are there, or not needed here."""
    try:
        from .. import _sigterm_handler  # noqa: F401
        from ..export import _plain_spans  # noqa: F401
    except ImportError:
        return sys.platform == "win32"
    return True


def collector(config: Config) -> dict[str, Any] | None:
    """Try to connect to the collector, where spans go to one; nothing is sent."""
    if "otlp" not in config.to:
        return None
    import socket
    from urllib.parse import urlsplit

    from ..export.otlp import DEFAULT_ENDPOINTS

    url = config.endpoint or DEFAULT_ENDPOINTS[config.protocol]
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 4317)
        socket.create_connection((parts.hostname or "", port), CONNECT_TIMEOUT).close()
    except ValueError:  # its text may hold a part of a password
        why: str | None = "this is no URL with a host and a port"
    except OSError as error:
        why = str(error)
    else:
        why = None
    return {"endpoint": without_credentials(url), "reachable": why is None, "why": why}


def without_credentials(endpoint: str | None) -> str | None:
    """Return a collector's URL, or its host and port alone, as it may be shown."""
    if endpoint is None or "://" in endpoint:
        return endpoint and without_secrets(endpoint)
    return without_secrets(f"grpc://{endpoint}").removeprefix("grpc://")


def store(config: Config) -> dict[str, Any]:
    """Look at the local store: whether it can be read and written, or made where there is none yet."""
    from ..export.store import StoreError, read_traces

    path = config.path
    result: dict[str, Any] = {"path": path, "exists": os.path.exists(path), "bytes": 0, "writable": False, "why": None}
    if not result["exists"]:
        folder = os.path.dirname(path)
        while not os.path.exists(folder):
            folder = os.path.dirname(folder)
        result["writable"] = os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
        result["why"] = None if result["writable"] else f"nothing can be written to {folder}"
        return result
    result["bytes"] = os.path.getsize(path)
    result["writable"] = os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK)
    try:
        read_traces(path, limit=1)
    except StoreError as error:
        result["writable"], result["why"] = False, str(error)
    if not result["writable"]:
        result["why"] = result["why"] or "it cannot be written"
    return result


def spool(config: Config) -> list[dict[str, Any]]:
    """Look at what waits in the local store's file for collectors: of each service how much, and since when."""
    from ..export.stored import StoreError, read_spool

    try:
        return [waiting._asdict() for waiting in read_spool(config.path)]
    except StoreError:  # none was made yet, or `store` says what is wrong with it
        return []


def unknown_variables(environ: Mapping[str, str], entries: Mapping[str, PluginEntry]) -> dict[str, str | None]:
    """Return the SW_* variables that mean nothing to the agent, each with the valid name nearest to it."""
    valid = {variable for key in KEYS for variable in key.variables} | set(INTERNAL)
    unloadable = []
    for entry in entries.values():
        valid.update(plugin_key(entry.name, "enabled", True, "").variables)
        try:
            options = entry.load().options
        except (Exception, SystemExit):
            unloadable.append(f"SW_PLUGIN_{in_variable(entry.name)}_")
            continue
        for option in options:
            valid.update(plugin_key(entry.name, option.name, option.default, "").variables)
    unknown = [v for v in sorted(environ) if v.startswith("SW_") and v not in valid and environ[v]]
    return {
        variable: next(iter(get_close_matches(variable, valid, n=1, cutoff=0.8)), None)
        for variable in unknown
        if not variable.startswith(tuple(unloadable))
    }
