"""Whether the library that is installed here is one that a plugin was written for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .plugin import Plugin


def installed_version(plugin: Plugin) -> str | None:
    """Return the version of the plugin's library; None for the standard library, and where it is not installed."""
    if plugin.requires is None:
        return None
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    try:
        return version(Requirement(plugin.requires).name)
    except PackageNotFoundError:
        return None


def why_unsupported(plugin: Plugin) -> str | None:
    """Say why the plugin's targets do not fit the library that is installed, or return None where they do.

    A library without metadata (vendored, or on PYTHONPATH) is taken to fit: a target that is not there is said anyway.
    """
    if plugin.requires is None or (version := installed_version(plugin)) is None:
        return None
    from packaging.requirements import Requirement

    requirement = Requirement(plugin.requires)
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} {version} is installed, supported is {requirement.specifier}"
