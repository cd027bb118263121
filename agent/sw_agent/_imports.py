"""Do something when a module arrives, without importing it: one finder at the head of `sys.meta_path`.

The finder lets the other finders find the module, and hangs itself on the loader for the time of one execution, so that
`module.__spec__` and `module.__loader__` are what they are without the agent.
"""

from __future__ import annotations

import sys

from ._containment import contain, hide_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_before: dict[str, list[Callable[[], None]]] = {}
_after: dict[str, list[Callable[[ModuleType], None]]] = {}


def when_imported(name: str, callback: Callable[[ModuleType], None]) -> None:
    """Call `callback(module)` each time that the module has been executed; at once where it is loaded already."""
    _watch()
    _after.setdefault(name, []).append(callback)
    module = sys.modules.get(name)
    if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        _call(name, callback, module)


def when_import_begins(name: str, callback: Callable[[], None]) -> None:
    """Call `callback()` once, before the module's first line runs; at once where it is loaded already."""
    if name in sys.modules:
        _call(name, callback)
    else:
        _watch()
        _before.setdefault(name, []).append(callback)


def forget(name: str, callback: Callable[[ModuleType], None]) -> None:
    """Undo `when_imported`."""
    if callback in _after.get(name, ()):
        _after[name].remove(callback)


def stop() -> None:
    """Watch nothing any more."""
    _before.clear()
    _after.clear()
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


class _Finder:
    """Finds nothing by itself: passes the watched names on to the finders behind it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _before and name not in _after:
            return None
        spec = self._find_behind(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        for callback in _before.pop(name, ()):
            _call(name, callback)
        if _after.get(name):
            if isinstance(spec.loader, type):
                spec.loader = _OwnLoader(spec.loader)  # type: ignore[assignment]
            _notify_after_execution(spec.loader, name)
        return spec

    def _find_behind(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


class _OwnLoader:
    """For one execution, in the place of a class that loads all modules of its kind: those built in, those frozen."""

    def __init__(self, shared: Any) -> None:
        self._shared = shared
        self.create_module = shared.create_module

    def exec_module(self, module: ModuleType) -> None:
        for owner, name in (module, "__loader__"), (module.__spec__, "loader"):
            if getattr(owner, name, None) is self:
                setattr(owner, name, self._shared)
        self._shared.exec_module(module)


_finder = _Finder()


def _watch() -> None:
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _notify_after_execution(loader: object, name: str) -> None:
    def exec_module(module: ModuleType) -> None:
        vars(loader).pop("exec_module", None)
        try:
            loader.exec_module(module)  # type: ignore[attr-defined]
        except BaseException as error:
            hide_frame(error)
            raise
        for callback in _after.get(name, ()):  # and those that they add: a plugin within the library comes in here
            _call(name, callback, module)

    try:
        loader.exec_module = exec_module  # type: ignore[attr-defined]
    except AttributeError as error:  # a loader with slots
        contain(f"watching the import of {name}", error)


def _call(name: str, callback: Callable[..., None], *args: object) -> None:
    try:
        callback(*args)
    except Exception as error:
        contain(f"handling the import of {name}", error)
