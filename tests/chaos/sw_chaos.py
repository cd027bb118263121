"""Chaos: a plugin that lets all of the agent misbehave, in any program that runs with this folder on PYTHONPATH.

    PYTHONPATH=tests/chaos CHAOS="raise before" sw-python run app.py
    PYTHONPATH=$PWD/tests/chaos CHAOS=random CHAOS_SEED=7 CHAOS_QUIET=1 make compat

CHAOS says what happens at each call: one of WAYS, or "random", where it is another one each time, or none, as the seed
has it. CHAOS_AT says where: at "interceptors" (the default), "imports", the "pipeline", or at several of them.

As an entry point without triggers it is imported before all other plugins, whose interceptors it then replaces when
they are registered: nothing of this is in the agent. In the file CHAOS_LOG it writes each place that has failed, once a
process, as the agent has to say it once; with CHAOS_QUIET that says nothing, for suites that read stderr. No plugin is
switched off, lest the rest be left in peace.
"""

from __future__ import annotations

import os
import sys
import time
from binascii import crc32
from collections.abc import Callable
from functools import wraps
from itertools import count
from typing import Any

from sw_agent import _imports, _log
from sw_agent import plugin as plugins
from sw_agent.plugin import Plugin

WAYS = ("raise before", "raise after", "nonsense before", "nonsense after", "delay before", "delay after")
MOMENT = 0.002  # seconds
NONSENSE = (5, (1, 2, 3), object(), "ab", (5, 5), ((1,), {1: 2}), [1], lambda: 1)
WAY = os.environ.get("CHAOS", "random")
SEED = os.environ.get("CHAOS_SEED", "0")
AT = os.environ.get("CHAOS_AT", "interceptors")
LOG = os.environ.get("CHAOS_LOG")

plugin = Plugin("chaos")


class Unspeakable(Exception):
    """An exception that raises when it is looked at."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


ERRORS = (Unspeakable, LookupError, StopIteration, StopAsyncIteration, RecursionError, MemoryError, TimeoutError)
_calls: dict[str, count[int]] = {}
_failed: dict[str, object] = {}


class Fate:
    """What happens at one call at a place."""

    def __init__(self, place: str, *, said_as: str | None = None) -> None:
        self._said_as = said_as or place
        number = next(_calls.setdefault(place, count()))
        self._draw = crc32(f"{SEED} {place} {number}".encode())
        way = (*WAYS, "", "")[self._draw % 8] if WAY == "random" else WAY
        self._what, _, self._when = way.partition(" ")

    def comes(self, when: str) -> bool:
        """Raise, or wait, if that is what happens now; return whether nonsense is to be returned."""
        if self._when != when:
            return False
        if self._what == "delay":
            time.sleep(MOMENT)
        elif self._what == "raise":
            self.note()
            raise ERRORS[self._draw // 8 % len(ERRORS)]
        return self._what == "nonsense"

    async def comes_later(self, when: str) -> bool:
        """Do the same in a coroutine, which another task may overtake then."""
        import asyncio

        if self._when == when and self._what == "delay":
            await asyncio.sleep(MOMENT)
            return False
        return self.comes(when)

    def nonsense(self) -> Any:
        """Return what nobody expects."""
        self.note()
        return NONSENSE[self._draw // 8 % len(NONSENSE)]

    def note(self) -> None:
        """Write down that this place has failed; a forked process knows what its parent has said."""
        mine = object()
        if LOG is not None and _failed.setdefault(self._said_as, mine) is mine:
            with open(LOG, "a", encoding="utf-8", buffering=1) as file:
                file.write(f"{self._said_as}\n")


def misbehaving(function: Any, place: str, **more: Any) -> Any:
    """Return a function that does what `function` does, and what befalls it."""

    @wraps(function)
    def chaotic(*args: Any, **kwargs: Any) -> Any:
        fate = Fate(place, **more)
        if fate.comes("before"):
            return fate.nonsense()
        try:
            result = function(*args, **kwargs)
        except BaseException:
            fate.comes("after")
            raise
        return fate.nonsense() if fate.comes("after") else result

    @wraps(function)
    async def chaotic_later(*args: Any, **kwargs: Any) -> Any:
        fate = Fate(place, **more)
        if await fate.comes_later("before"):
            return fate.nonsense()
        try:
            result = await function(*args, **kwargs)
        except BaseException:
            await fate.comes_later("after")
            raise
        return fate.nonsense() if await fate.comes_later("after") else result

    return chaotic_later if function.__code__.co_flags & 0x80 else chaotic  # inspect.CO_COROUTINE


def entering(function: Any, place: str, **more: Any) -> Any:
    """Return the same for a `within`: what it returns to be left misbehaves too."""
    enter = misbehaving(function, place, **more)

    @wraps(function)
    def chaotic(*args: Any, **kwargs: Any) -> Any:
        entered = enter(*args, **kwargs)
        return Leaving(entered, place, more) if hasattr(entered, "leave") else entered

    return chaotic


class Leaving:
    """What is left badly."""

    def __init__(self, entered: Any, place: str, more: dict[str, Any]) -> None:
        self._entered, self._place, self._more = entered, place, more

    def leave(self, error: BaseException | None) -> None:
        """Leave, and fail before or after."""
        fate = Fate(f"{self._place} leave", **self._more)
        fate.comes("before")
        self._entered.leave(error)
        fate.comes("after")


def replace_interceptors() -> None:
    """Let every interceptor that is registered from now on be one that misbehaves."""
    made: dict[tuple[str, Any], Any] = {}  # one that is registered at two targets is one

    def registering(kind: str, make: Callable[..., Any]) -> Callable[..., Any]:
        original = getattr(Plugin, kind)

        def register(self: Plugin, target: str, *args: Any, **kwargs: Any) -> Any:
            place = f"{target}.{kwargs['made']}" if kind == "carry" else target

            def decorate(function: Any) -> Any:
                key = kind, function
                if key not in made or kind != "intercept":
                    made[key] = make(function, place, said_as=f"plugin {self.name}: {place}")
                original(self, target, *args, **kwargs)(made[key])
                return function

            return decorate

        return register

    for kind in ("intercept", "before", "capture", "carry", "lend", "hook"):
        setattr(Plugin, kind, registering(kind, misbehaving))
    Plugin.within = registering("within", entering)  # type: ignore[method-assign]


def replace_import_hooks() -> None:
    """Let what the agent does at an import fail."""
    call = _imports._call

    def chaotic_call(name: str, callback: Any, *args: object) -> None:
        def calling(*args: object) -> None:
            callback(*args)

        call(name, misbehaving(calling, f"handling the import of {name}"), *args)

    _imports._call = chaotic_call


PIPELINE = (
    "_sigterm:catch",
    "_sigterm:drop",
    "export.books:Books.news",
    "export.pipeline:_current_thread",
    "export.pipeline:_open_outputs",
    "export.redaction:Redaction.spans",
    "export.store:Store.close",
    "export.store:Store.end_round",
    "export.store:Store.send",
    "export.store:Store.standby",
    "export.worker:Worker.begin",
    "export.worker:Worker.wake",
)


def replace_pipeline() -> None:
    """Let the parts of the pipeline fail that have to do with the world."""
    for target in PIPELINE:
        module_name, _, path = target.partition(":")
        __import__(f"sw_agent.{module_name}")
        owner: Any = sys.modules[f"sw_agent.{module_name}"]
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, misbehaving(getattr(owner, name), target))


plugins.MOST_FAILURES = sys.maxsize  # type: ignore[misc]
if os.environ.get("CHAOS_QUIET"):
    _log.configure("CRITICAL")
if "interceptors" in AT:
    replace_interceptors()
if "imports" in AT:
    replace_import_hooks()
if "pipeline" in AT:
    replace_pipeline()
