"""Import what the agent needs, also where a module beside the program hides one of Python's: that one is the program's.

Python looks into the program's folder first, whoever imports. A `random.py` there may well be a program of its own, and
to import it would run it. And what the agent has imported before the program is what that gets in the place of its own
module. So in here the program's folder is passed over for modules of the standard library, and the names of those that
it hides are given back.
"""

from __future__ import annotations

import sys
from _frozen_importlib import BuiltinImporter, FrozenImporter
from _frozen_importlib_external import PathFinder
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import TracebackType
    from typing import Any

OURS = ("sw_agent", "sw_agent_plugins")
_importing: dict[int, Unhidden] = {}  # by thread


class Unhidden:
    """A context manager for imports; within another one, in the same thread, it does nothing.

    `folder` is the program's; without one it is the head of `sys.path`, once Python has put it there.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._thread = get_ident()
        self._folder = sys.path[0] if folder is None and sys.path else folder
        self._borrowed: set[str] = set()

    def __enter__(self) -> None:
        safe = self._folder is None or getattr(sys.flags, "safe_path", False)  # since 3.11
        if not safe and self._thread not in _importing:
            _importing[self._thread] = self
            sys.meta_path.insert(0, self)

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if _importing.get(self._thread) is self:
            del _importing[self._thread]
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            for name in [name for name in list(sys.modules) if name.partition(".")[0] in self._borrowed]:
                del sys.modules[name]

    def find_spec(self, name: str, path: Any = None, _target: object = None) -> ModuleSpec | None:
        """Find a module that the program's folder hides, as one of `sys.meta_path`."""
        if path is not None or self._folder is None or get_ident() != self._thread:
            return None
        if name not in sys.stdlib_module_names and name not in OURS:  # others are shared with the program
            return None
        if BuiltinImporter.find_spec(name) or FrozenImporter.find_spec(name):
            return None
        hiding = PathFinder.find_spec(name, [self._folder])
        if hiding is None or hiding.origin is None:  # a folder without `__init__.py` hides nothing
            return None
        hidden = PathFinder.find_spec(name, [entry for entry in sys.path if entry != self._folder])
        if hidden is None or hidden.origin in (None, hiding.origin):
            return None
        if name not in OURS:
            self._borrowed.add(name)
        return hidden
