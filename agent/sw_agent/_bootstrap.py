"""The sequence run in the traced process, from `sitecustomize` to the first plugin installed.

Nothing heavy is imported here: no SDK, no exporter, no library that a plugin is for.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, and faster to import
import os
import sys

from . import _command, _config, _discovery, _imports, _log, snapshot
from ._containment import contain
from ._unhidden import Unhidden

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._config import Config
    from ._discovery import PluginEntry

_started = False
config: Config | None = None
plugin_states: dict[str, str] = {}


def start(environ: Mapping[str, str] = os.environ, argv: Sequence[str] = sys.orig_argv) -> None:
    """Start the agent in this process, once; a configuration that is wrong is said on stderr and leaves it off."""
    global _started, config
    if _started or _config.killed_by(environ) or _is_left_alone(argv) or _is_in_an_old_subinterpreter():
        return
    _started = True
    entries = _discovery.find_plugins()
    try:
        loaded = _config.load(environ, entries, argv=argv)
    except _config.ConfigError as error:
        sys.stderr.write(f"sw-python: {error}; this process is not traced\n")
        return
    if not loaded.enabled:
        return
    config = loaded
    _log.configure(config.logging_level, config.redact)
    if _command.short_form(argv) in _command.LAUNCHERS:
        from . import _launchers

        _launchers.be_hidden_by_none()
    from . import _detaching, _lifecycle, _other_agents, _provider

    if config.logging_level == "DEBUG":
        from . import _snapshot_books

        _snapshot_books.keep()
    _provider.configure(config)
    _lifecycle.start(config)
    _imports.when_imported("opentelemetry.context", snapshot.bind)
    _imports.when_imported("opentelemetry.context", _detaching.install)
    _imports.when_imported("opentelemetry.trace", _provider.opentelemetry_arrived)
    for entry in entries.values():
        if config.plugin_enabled(entry.name):
            _watch(entry)
    _other_agents.watch()
    if config.program_span:
        _provider.start_program_span()


def is_running() -> bool:
    """Return whether the agent was started in this process, and is on."""
    return config is not None


def _is_left_alone(argv: Sequence[str]) -> bool:
    """Return whether the process does no work of the program's: `sw-python` itself, multiprocessing's bookkeeper."""
    if _command.module_of_multiprocessing(argv) == "resource_tracker":
        return True
    target = list(_command.python_target(argv))[:1]
    return bool(target) and os.path.basename(target[0]) in ("sw-python", "sw-python.exe")


def _is_in_an_old_subinterpreter() -> bool:
    """Return whether this is an interpreter within the process, of a Python before 3.14, which gave them an interface.

    Before, Python aborts where one ends that still has threads, as the agent has. Asking for the descriptor to which
    signals are written is how to ask which interpreter this is; at start there is none.
    """
    if sys.version_info >= (3, 14):
        return False
    try:
        descriptor = _signal.set_wakeup_fd(-1)
    except ValueError:  # "only works in main thread of the main interpreter"
        return True
    if descriptor != -1:
        _signal.set_wakeup_fd(descriptor)
    return False


def _watch(entry: PluginEntry) -> None:
    def bring_in() -> None:
        if entry.name not in plugin_states:
            plugin_states[entry.name] = _install(entry)

    if not entry.triggers:
        bring_in()
    for trigger in entry.triggers:
        if f"{entry.module}.".startswith(f"{trigger}."):  # importing the plugin would import the library
            _imports.when_imported(trigger, lambda _library: bring_in())
        else:
            _imports.when_import_begins(trigger, bring_in)


def _install(entry: PluginEntry) -> str:
    try:
        with Unhidden():
            plugin = entry.load()
        from . import _versions

        unsupported = _versions.why_unsupported(plugin)
        if unsupported:
            _log.logger().warning("plugin %s is left out: %s", entry.name, unsupported)
            return unsupported
        assert config is not None
        plugin.install(config.plugins.get(entry.name, {}))
    except (Exception, SystemExit) as error:  # a plugin that ends the process ends only itself
        contain(f"plugin {entry.name}", error)
        return f"failed: {type(error).__name__}: {error}"
    return "installed"
