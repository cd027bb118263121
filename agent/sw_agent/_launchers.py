"""What `sw-python run` and other agents' launchers do alike: a `sitecustomize` first on PYTHONPATH, then the program.

Some of the others' do not run the `sitecustomize` that theirs hides, as this agent's does: where they hide it, the
program would not be traced. So the agent, in a launcher's process, puts its own first again when the program begins.
"""

from __future__ import annotations

import os

from . import _command
from ._patching import Patch
from ._python_path import bootstrap_folder, set_python_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def be_hidden_by_none() -> None:
    """Put the agent first again in whatever this process, another agent's launcher, becomes."""
    for name in ("execv", "execve"):
        Patch(f"os:{name}", _hand_on, "before").install(os)


def _hand_on(_: None, args: tuple[Any, ...], _kwargs: object) -> None:
    environ = args[2] if len(args) > 2 else os.environ
    environ["SW_AGENT_COMMAND"] = _command.short_form(args[1])
    set_python_path(environ, bootstrap_folder())
