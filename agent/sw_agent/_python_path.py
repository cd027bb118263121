"""The bootstrap on PYTHONPATH: the folder of the agent's `sitecustomize`, which Python imports at its start."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping


def set_python_path(environ: MutableMapping[str, str], first: str | None) -> None:
    """Put the bootstrap folder first on PYTHONPATH, or take it off where a launcher around this one has put it."""
    own = bootstrap_folder()
    given = environ.get("PYTHONPATH")
    folders = [folder for folder in given.split(os.pathsep) if folder != own] if given else []
    if first is not None:
        folders.insert(0, first)
    if folders:
        environ["PYTHONPATH"] = os.pathsep.join(folders)
    elif given:
        del environ["PYTHONPATH"]


def bootstrap_folder() -> str:
    """Return the folder of the agent's `sitecustomize`: in the package, or in the checkout of an editable install."""
    package = os.path.dirname(os.path.abspath(__file__))
    installed = os.path.join(package, "_sitecustomize")
    if os.path.isdir(installed):
        return installed
    return os.path.join(os.path.dirname(os.path.dirname(package)), "sitecustomize")
