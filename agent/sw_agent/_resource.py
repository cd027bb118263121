"""The resource: what a process says about itself with every span.

Built by hand. `Resource.create` runs its detectors in a thread pool, which would use up numbers of the program's
threads and pools, and start threads in a program that has none.
"""

from __future__ import annotations

import os

from . import _ids
from ._version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from ._config import Config


def describe(config: Config) -> Resource:
    """Return the resource of this process; a forked one calls it again, for its own pid and its own instance id."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.version import __version__ as sdk_version

    attributes: dict[str, str | int] = {
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": sdk_version,
        "telemetry.distro.name": "sw-python",
        "telemetry.distro.version": VERSION,
        **config.resource_attributes,
        "service.name": config.name,
        "process.pid": os.getpid(),
    }
    if config.namespace:
        attributes["service.namespace"] = config.namespace
    if config.instance_name:
        attributes["service.instance.id"] = config.instance_name
    else:
        attributes.setdefault("service.instance.id", _ids.instance_id())
    return Resource(attributes)
