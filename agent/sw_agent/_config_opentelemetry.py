"""OpenTelemetry's own variables: which of them mean the same as a key of agent.toml, and how their values read.

Names, units and defaults are those of its specification ("Environment Variable Specification", "OpenTelemetry Protocol
Exporter"). A value that nobody can use is ignored, with a warning, as it says there. OTLP's headers and certificates
are read by the exporter itself.
"""

from __future__ import annotations

from ._config_schema import BY_NAME
from ._config_values import checked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._config import _Settings
    from ._config_schema import Value


def _text(value: str) -> str:
    return value


def _milliseconds(value: str) -> float:
    return int(value) / 1000


def _exporters(value: str) -> list[str]:
    names = {"otlp": "otlp", "console": "console", "logging": "console", "none": "none"}
    return [names[part.strip().lower()] for part in value.split(",") if part.strip()]


# key -> (variable, how its value reads), the first that is set counts; the reader raises KeyError or ValueError
VARIABLES: dict[str, tuple[tuple[str, Callable[[str], Value]], ...]] = {
    "agent.name": (("OTEL_SERVICE_NAME", _text),),
    "export.to": (("OTEL_TRACES_EXPORTER", _exporters),),
    "export.endpoint": (("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", _text), ("OTEL_EXPORTER_OTLP_ENDPOINT", _text)),
    "export.protocol": (("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", _text), ("OTEL_EXPORTER_OTLP_PROTOCOL", _text)),
    "export.flush_interval": (("OTEL_BSP_SCHEDULE_DELAY", _milliseconds),),
    "export.queue_size": (("OTEL_BSP_MAX_QUEUE_SIZE", int),),
    "export.batch_size": (("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", int),),
    # In seconds, as the Python SDK reads the two of OTLP; other languages read milliseconds.
    "export.timeout": (
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", float),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", float),
        ("OTEL_BSP_EXPORT_TIMEOUT", _milliseconds),
    ),
}

# OTEL_RESOURCE_ATTRIBUTES' names for keys; below OTEL_SERVICE_NAME.
RESOURCE = {
    "service.name": "agent.name",
    "service.instance.id": "agent.instance_name",
    "service.namespace": "agent.namespace",
}

# OTEL_TRACES_SAMPLER -> the ratio; None: it is OTEL_TRACES_SAMPLER_ARG.
SAMPLERS = {
    "always_on": 1.0,
    "always_off": 0.0,
    "traceidratio": None,
    "parentbased_always_on": 1.0,
    "parentbased_always_off": 0.0,
    "parentbased_traceidratio": None,
}

# Read by themselves: a switch, and those that stand for a value together.
_OTHERS = {
    "agent.enabled": ("OTEL_SDK_DISABLED",),
    "sampling.ratio": ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"),
}


def variables_for(key: str) -> list[str]:
    """Return the variables that say the same as a key, the strongest first."""
    named = [variable for variable, _ in VARIABLES.get(key, ())]
    resource = ["OTEL_RESOURCE_ATTRIBUTES"] if key in RESOURCE.values() else []
    return [*named, *resource, *_OTHERS.get(key, ())]


def read(environ: Mapping[str, str], settings: _Settings) -> None:
    """Give what the variables say to `settings`."""
    _read_resource_attributes(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""), settings)
    if sampler := environ.get("OTEL_TRACES_SAMPLER", "").strip():
        _read_sampler(sampler.lower(), environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip(), settings)
    for variable in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"):
        for number, part in enumerate(environ.get(variable, "").split(","), 1):
            name, equals, _ = part.strip().partition("=")
            if part.strip() and not (equals and part.isascii() and len(name.split()) == 1):
                settings.warnings.append(f"{variable}: part {number} is no name=value; it is ignored")
    for name, variables in VARIABLES.items():
        for variable, reads in variables:
            if text := environ.get(variable, "").strip():
                try:
                    settings.set(BY_NAME[name], checked(BY_NAME[name], reads(text)), variable)
                    break
                except (ValueError, KeyError):
                    settings.warnings.append(f"{variable}: {text!r} cannot be used here; it is ignored")


def _read_resource_attributes(text: str, settings: _Settings) -> None:
    for number, pair in enumerate(text.split(","), 1):
        if not pair.strip():
            continue
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name:
            # not what it is: it may be the end of a secret with a comma in it
            settings.warnings.append(f"OTEL_RESOURCE_ATTRIBUTES: part {number} is no key=value; it is ignored")
            continue
        if "%" in value:
            from urllib.parse import unquote

            value = unquote(value)
        if name not in RESOURCE:
            settings.resource_attributes[name] = value
        elif value:
            settings.set(BY_NAME[RESOURCE[name]], value, "OTEL_RESOURCE_ATTRIBUTES")


def _read_sampler(sampler: str, argument: str, settings: _Settings) -> None:
    if sampler not in SAMPLERS:
        settings.warnings.append(f"OTEL_TRACES_SAMPLER: {sampler!r} cannot be used here; it is ignored")
        return
    ratio = SAMPLERS[sampler]
    key = BY_NAME["sampling.ratio"]
    try:
        value = checked(key, float(argument or 1.0)) if ratio is None else ratio
        settings.set(key, value, "OTEL_TRACES_SAMPLER")
    except ValueError:
        settings.warnings.append(f"OTEL_TRACES_SAMPLER_ARG: {argument!r} is no ratio; it is ignored")
