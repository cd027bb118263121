"""The agent taken out of a program that goes on: what `_bootstrap.start` began is undone, the last thing first."""

from __future__ import annotations

import os
import sys
from types import FunctionType, ModuleType

from . import _bootstrap, _detaching, _imports, _lifecycle, _provider, _python_path, carrier
from ._containment import contain
from ._patching import Unbound, without_stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPLACEMENTS = (FunctionType, Unbound)


def uninstall() -> None:
    """Take the agent out, once; no thread forks meanwhile."""
    with _lifecycle.without_forks():
        if not _bootstrap.is_running():
            return
        _bootstrap.config = None
        for step in _steps():
            try:
                step()
            except Exception as error:
                contain("uninstalling", error)


def _steps() -> Iterator[Callable[[], object]]:
    """Yield what is to be done; what one step cannot do leaves the others as they are."""
    from . import plugin

    yield lambda: _python_path.set_python_path(os.environ, None)
    yield lambda: os.environ.pop("SW_AGENT_COMMAND", None)
    for installed in reversed(plugin.all_installed()):
        yield installed.uninstall
    _bootstrap.plugin_states.clear()
    yield _provider.release
    if (program_span := sys.modules.get("sw_agent._program_span")) is not None:
        yield program_span.end
        yield program_span.release
    yield _lifecycle.end
    yield _provider.starve
    yield _lifecycle.release
    yield _detaching.uninstall
    yield _imports.stop
    yield carrier.release
    yield _put_back_under_other_names


def _put_back_under_other_names() -> None:
    """Put the originals where modules have bound, by `from … import`, what stood for them."""
    for module in list(sys.modules.values()):
        if not issubclass(type(module), ModuleType):
            continue
        variables = object.__getattribute__(module, "__dict__")  # a lazy one imports its module when it is asked
        for name, value in variables.copy().items():
            if type(value) in REPLACEMENTS:
                original = without_stopped(value)
                if original is not value and callable(original) and variables.get(name) is value:
                    variables[name] = original
