"""Every key of agent.toml, as data: loading it, printing it and explaining it are all derived from `KEYS`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Value = bool | int | float | str | list[str] | None

DAY = 86400
OUTPUTS = ("otlp", "local", "console")


def _check_patterns(patterns: list[str]) -> None:
    import re
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is ambiguous is refused: the program would see the warning later
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError, Warning) as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None


class Key:
    """A key of agent.toml.

    `kind` is its type: str, bool, int, float, or list, which is a list of str. A default of None means that
    there is none. `variables` are its names in the environment, the preferred one first. `choices`, `least` and `most`
    bound it, and so does `check`, which raises a ValueError.
    `attribute` is its name on `Config`.
    """

    __slots__ = (
        "attribute",
        "check",
        "choices",
        "default",
        "help",
        "kind",
        "least",
        "most",
        "name",
        "section",
        "variables",
    )

    def __init__(
        self,
        section: str,
        name: str,
        kind: type,
        default: Value,
        help: str,
        *,
        variables: tuple[str, ...] = (),
        choices: tuple[str, ...] = (),
        least: float | None = None,
        most: float | None = None,
        attribute: str = "",
        check: Callable[[Any], None] | None = None,
    ) -> None:
        self.section = section
        self.name = name
        self.kind = kind
        self.default = default
        self.help = help
        self.variables = variables or (f"SW_{section}_{name}".upper(),)
        self.choices = choices
        self.least = least
        self.most = most
        self.attribute = attribute or name
        self.check = check

    def __str__(self) -> str:
        return f"{self.section}.{self.name}"


KEYS = (
    Key("agent", "name", str, None, "the service's name; without one it is made of the command: app.py is app"),
    Key("agent", "instance_name", str, None, "the name of this instance of the service"),
    Key("agent", "namespace", str, None, "the group of services that this one belongs to"),
    Key("agent", "enabled", bool, True, "false: programs run as if there were no agent"),
    Key(
        "agent",
        "logging_level",
        str,
        "WARNING",
        "what the agent says on stderr about itself",
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    ),
    Key("agent", "program_span", bool, False, "put all that the program does under one span, named after its command"),
    Key("sampling", "ratio", float, 1.0, "the share of traces that is recorded", least=0, most=1),
    Key(
        "sampling",
        "per_3_seconds",
        int,
        0,
        "the most traces recorded in 3 seconds; 0 is no bound",
        variables=("SW_SAMPLING_PER_3_SECONDS", "SW_SAMPLE_N_PER_3_SECS"),
        least=0,
    ),
    Key(
        "sampling",
        "stale_parent_after",
        float,
        60.0,
        "a span whose parent ended longer ago, in seconds, begins a trace of its own with a link to it; 0 is never",
        least=0,
    ),
    Key(
        "export",
        "to",
        list,
        ["auto"],
        "where spans go: one or a list; auto is otlp where an endpoint is set, else local",
        choices=("auto", *OUTPUTS, "none"),
    ),
    Key("export", "endpoint", str, None, "the collector's base URL, such as http://localhost:4318, without /v1/traces"),
    Key("export", "protocol", str, "http/protobuf", "how OTLP is spoken", choices=("http/protobuf", "grpc")),
    Key("export", "path", str, None, "the file of the local store; without one it is in XDG_STATE_HOME"),
    Key(
        "export",
        "flush_interval",
        float,
        1.0,
        "the longest wait of an ended span, in seconds",
        least=0.01,
        most=DAY,
    ),
    Key("export", "exit_timeout", float, 2.0, "the longest delay of the program's end, in seconds", least=0, most=DAY),
    Key("export", "queue_size", int, 65536, "the most ended spans that wait in memory", least=1, most=10_000_000),
    Key("export", "batch_size", int, 2048, "the most spans that are sent at once", least=1, most=10_000_000),
    Key(
        "export",
        "timeout",
        float,
        10.0,
        "the longest time that one request to the collector takes, in seconds",
        least=0.001,
        most=DAY,
        attribute="export_timeout",
    ),
    Key(
        "export",
        "store_size",
        int,
        256 * 2**20,
        "the most bytes that the local store takes",
        least=2**16,
        most=2**40,
    ),
    Key(
        "export",
        "spool_size",
        int,
        64 * 2**20,
        "the most bytes that wait on disk, beside the local store, while the collector is away; 0 is none",
        least=0,
        most=2**40,
    ),
    Key(
        "export",
        "spool_age",
        float,
        3 * DAY,
        "the longest that they wait there, in seconds",
        least=0,
    ),
    Key(
        "export",
        "redact",
        list,
        [],
        "regular expressions: what they match in any text is REDACTED, and so is the value of a key that they match",
        check=_check_patterns,
    ),
    Key("plugins", "disable", list, [], "the names of plugins to leave out", variables=("SW_AGENT_DISABLE_PLUGINS",)),
)
BY_NAME = {str(key): key for key in KEYS}
SECTIONS = tuple(dict.fromkeys(key.section for key in KEYS))

# Of the agent itself, between `sw-python run` and the processes that it starts.
INTERNAL = ("SW_AGENT_CONFIG", "SW_AGENT_COMMAND", "SW_AGENT_RUN")


def plugin_key(
    plugin: str,
    name: str,
    default: Any,
    help: str,
    choices: Sequence[str] = (),
    check: Callable[[Any], None] | None = None,
) -> Key:
    """Return an option of a plugin as a key of agent.toml."""
    variable = f"SW_PLUGIN_{in_variable(plugin)}_{in_variable(name)}"
    kind = list if isinstance(default, tuple) else type(default)
    return Key(
        f"plugins.{plugin}", name, kind, default, help, variables=(variable,), choices=tuple(choices), check=check
    )


def in_variable(name: str) -> str:
    """Return how a name in kebab-case is spelled in a variable's name."""
    return name.upper().replace("-", "_").replace(".", "_")
