"""agent.toml and the environment, made one read-only `Config`.

Of several sources of a key the first counts: `SW_*` (which is what options of the command line become), `OTEL_*`, the
file, the default. The file is SW_AGENT_CONFIG, else `./agent.toml`, which may be missing.
"""

from __future__ import annotations

import os

from . import _command
from ._config_schema import KEYS, Key, in_variable, plugin_key
from ._config_values import FALSE, ConfigError, checked, parsed, unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

    from ._discovery import PluginEntry

FILE_NAME = "agent.toml"

__all__ = ["FILE_NAME", "Config", "ConfigError", "default_path", "find_file", "killed_by", "load"]


class Config:
    """The resolved configuration.

    `to` holds what "auto" stands for. `endpoint` is the complete URL to send to, with the path of traces for http.
    `command` is the short form of the process's own command line; the default of `name` follows from the launched one.
    `plugins` holds the options that were set, by plugin. `sources` says where each key's value came from, `file` which
    agent.toml was read, `warnings` which of OpenTelemetry's variables were ignored, and why.
    """

    name: str
    instance_name: str | None
    namespace: str | None
    enabled: bool
    logging_level: str
    program_span: bool
    ratio: float
    per_3_seconds: int
    stale_parent_after: float
    to: tuple[str, ...]
    endpoint: str | None
    protocol: str
    path: str
    flush_interval: float
    exit_timeout: float
    queue_size: int
    batch_size: int
    export_timeout: float
    store_size: int
    spool_size: int
    spool_age: float
    redact: tuple[str, ...]
    disable: tuple[str, ...]
    resource_attributes: dict[str, str]
    command: str
    run: str | None
    plugins: dict[str, dict[str, object]]
    sources: dict[str, str]
    file: str | None
    warnings: tuple[str, ...]
    _off: dict[str, str]

    def __init__(self, values: Mapping[str, object]) -> None:
        vars(self).update(values)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"the configuration is read-only: {name}")

    def plugin_enabled(self, name: str) -> bool:
        """Return whether the plugin is to be installed."""
        return name not in self._off

    def why_disabled(self, name: str) -> str | None:
        """Return which source switched the plugin off; None where it is on."""
        return self._off.get(name)


def killed_by(environ: Mapping[str, str]) -> str | None:
    """Return the variable that switches the agent off whatever else is configured, or None."""
    if environ.get("SW_AGENT_ENABLED", "").strip().lower() in FALSE:
        return "SW_AGENT_ENABLED"
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return "OTEL_SDK_DISABLED"
    return None


def load(
    environ: Mapping[str, str] = os.environ,
    entries: Mapping[str, PluginEntry] | None = None,
    *,
    argv: Sequence[str] = (),
    said_as: Mapping[str, str] | None = None,
) -> Config:
    """Resolve the configuration of a process that runs `argv`.

    `entries` are the plugins that exist, whose sections and variables may be set. `said_as` gives the option of the
    command line that a variable stands for, to be named as its source.

    Raises:
        ConfigError: something in the file or in the environment is unknown or cannot be used.
    """
    settings = _Settings(environ, entries or {}, said_as or {})
    settings.read_file()
    settings.read_opentelemetry()
    settings.read_environment()
    return settings.resolve(argv)


def find_file(environ: Mapping[str, str]) -> str | None:
    """Return the configuration file that counts; `./agent.toml` only for a process that no launcher has looked for."""
    named = environ.get("SW_AGENT_CONFIG", "").strip()
    if named:
        return named
    return FILE_NAME if "SW_AGENT_COMMAND" not in environ and os.path.lexists(FILE_NAME) else None


class _Settings:
    """What the sources say, from the weakest to the strongest; each overwrites what the one before said of a key."""

    def __init__(
        self, environ: Mapping[str, str], entries: Mapping[str, PluginEntry], said_as: Mapping[str, str]
    ) -> None:
        self.environ = environ
        self.entries = entries
        self.said_as = said_as
        self.file = find_file(environ)
        self.values: dict[str, Any] = {str(key): key.default for key in KEYS}
        self.sources = dict.fromkeys(self.values, "default")
        self.resource_attributes: dict[str, str] = {}
        self.warnings: list[str] = []
        self.unloadable: set[str] = set()
        self._plugin_keys: dict[str, dict[str, Key]] = {}

    def set(self, key: Key, value: object, source: str) -> None:
        self.values[str(key)] = value
        self.sources[str(key)] = source

    def read_file(self) -> None:
        if self.file is None:
            return
        from ._config_file import read

        read(self.file, self)

    def read_opentelemetry(self) -> None:
        if any(variable.startswith("OTEL_") for variable in self.environ):
            from ._config_opentelemetry import read

            read(self.environ, self)

    def read_environment(self) -> None:
        for key in KEYS:
            for variable in key.variables:
                if self._read_variable(variable, key):
                    break
        plugin_variables = [variable for variable in self.environ if variable.startswith("SW_PLUGIN_")]
        if plugin_variables:
            self._read_plugin_variables(plugin_variables)

    def _read_plugin_variables(self, variables: Sequence[str]) -> None:
        names = {f"SW_PLUGIN_{in_variable(name)}_": name for name in self.entries}
        for variable in variables:
            # SW_PLUGIN_FOO_BAR_SPANS is `spans` of foo-bar, not `bar_spans` of foo, where both exist
            prefix = max((prefix for prefix in names if variable.startswith(prefix)), key=len, default="")
            if prefix:
                for key in self.plugin_keys(names[prefix], asked=variable[len(prefix) :].lower()).values():
                    if variable in key.variables:
                        self._read_variable(variable, key)

    def _read_variable(self, variable: str, key: Key) -> bool:
        text = self.environ.get(variable, "").strip()
        if not text:
            return False
        try:
            value = parsed(key, text)
            if variable == "SW_SAMPLE_N_PER_3_SECS":  # to SkyWalking all below 0 is off, as 0 is
                value = max(0, value)
            self.set(key, checked(key, value), self.said_as.get(variable, variable))
            if str(key) == "plugins.disable":
                self.check_plugin_names(value)
        except ValueError as error:
            raise ConfigError(f"{self.said_as.get(variable, variable)}: {error}") from None
        return True

    def check_plugin_names(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.entries:
                raise ValueError(f"there is no plugin {name!r}{unknown(name, self.entries)}")

    def plugin_keys(self, name: str, asked: str = "") -> dict[str, Key]:
        """Return the keys of a plugin's section; only `enabled` where that is all that is asked for.

        A plugin that cannot be imported has no other key here. It fails again where it is installed, and that says why.
        """
        enabled = {"enabled": plugin_key(name, "enabled", True, "false: leave the library untouched")}
        if asked == "enabled":
            return enabled
        if name not in self._plugin_keys:
            try:
                options = self.entries[name].load().options
            except (Exception, SystemExit):
                options = ()
                self.unloadable.add(name)
            keys = {o.name: plugin_key(name, o.name, o.default, o.help, o.choices, o.check) for o in options}
            self._plugin_keys[name] = enabled | keys
        return self._plugin_keys[name]

    def resolve(self, argv: Sequence[str]) -> Config:
        values: dict[str, Any] = {key.attribute: self.values[str(key)] for key in KEYS}
        for name in ("name", "instance_name", "namespace", "endpoint", "path"):
            values[name] = values[name] or None
        launched_as = self.environ.get("SW_AGENT_COMMAND", "").strip()
        values["command"] = _command.short_form(argv) or launched_as or "python"
        values["name"] = values["name"] or _command.service_name(launched_as or values["command"])
        if killer := killed_by(self.environ):
            values["enabled"], self.sources["agent.enabled"] = False, killer
        values["endpoint"] = self._complete_endpoint(values["endpoint"], values["protocol"])
        outputs = ["otlp" if values["endpoint"] else "local"] if "auto" in values["to"] else []
        outputs += [output for output in values["to"] if output not in ("auto", "none")]
        values["to"] = tuple(dict.fromkeys(outputs))
        values["path"] = self._absolute_path(values["path"])
        values["batch_size"] = min(values["batch_size"], values["queue_size"])
        values["redact"] = tuple(values["redact"])
        values["disable"] = tuple(values["disable"])
        return Config(
            values
            | {
                "resource_attributes": self.resource_attributes,
                "run": self.environ.get("SW_AGENT_RUN", "").strip() or None,
                "plugins": self._plugin_options(),
                "sources": self.sources,
                "file": self.file,
                "warnings": tuple(self.warnings),
                "_off": {name: why for name in self.entries if (why := self._why_off(name))},
            }
        )

    def _absolute_path(self, path: str | None) -> str:
        path = os.path.expanduser(path or default_path(self.environ))
        if path.startswith("~" + os.sep):  # a user without a home folder; Python takes HOME= for the root, too
            path = path[1:]
        if self.file and self.sources["export.path"] == self.file:
            path = os.path.join(os.path.dirname(self.file), path)
        return os.path.abspath(path)

    def _plugin_options(self) -> dict[str, dict[str, object]]:
        options: dict[str, dict[str, object]] = {}
        for name, value in self.values.items():
            section, _, option = name.rpartition(".")
            if section.startswith("plugins.") and option != "enabled":
                options.setdefault(section[len("plugins.") :], {})[option] = value
        return options

    def _why_off(self, name: str) -> str | None:
        """Return the source that leaves the plugin out: the stronger one where `disable` and `enabled` differ."""
        own = self.sources.get(f"plugins.{name}.enabled", "default")
        listed = self.sources["plugins.disable"] if name in self.values["plugins.disable"] else None
        if listed and not (own not in ("default", self.file) and listed == self.file):
            return listed
        return own if self.values.get(f"plugins.{name}.enabled") is False else None

    def _complete_endpoint(self, endpoint: str | None, protocol: str) -> str | None:
        source = self.sources["export.endpoint"]
        if endpoint is None or protocol == "grpc":
            return endpoint
        if not endpoint.startswith(("http://", "https://")):
            shown = endpoint if "://" in endpoint else endpoint.rpartition("@")[2]  # without credentials
            raise ConfigError(f"{source}: [export] endpoint: {shown!r} does not begin with http:// or https://")
        if source == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT":  # the only one that is taken as it is
            return endpoint
        base = endpoint.rstrip("/")
        return base if base.endswith("/v1/traces") else base + "/v1/traces"


def default_path(environ: Mapping[str, str]) -> str:
    """Return where the local store is unless the configuration moves it."""
    state = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # "All paths must be absolute", says the XDG specification, others are to be ignored
        state = os.path.join("~", ".local", "state")
    return os.path.join(state, "sw-python", "traces.db")
