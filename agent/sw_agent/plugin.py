"""What a plugin is made of: `Plugin`, `Option`, and the pieces that carry context from a submitter to its work.

A plugin is one file that describes one library: how work travels in it, and where. It never imports the library.

    plugin = Plugin("mypool", options=PROPAGATION, requires="mypool>=2,<4")

    @plugin.capture("mypool.queue:Job.__init__")
    def capture_at_submit(snapshot, job, args, kwargs):
        job._sw_snapshot = snapshot

    @plugin.intercept("mypool.queue:Job.run")
    def run_in_context_of_submitter(wrapped, job, args, kwargs):
        with plugin.resume(job.__dict__.pop("_sw_snapshot", None), job.function):
            return wrapped(*args, **kwargs)
"""

from __future__ import annotations

import sys
from itertools import count

from . import _imports, _log, _provider
from ._containment import contain, hide_frame, say
from ._hop import (
    NOTHING,
    Hop,
    SpanHop,
    function_name,
    inside,
    is_failure,
    mark_failed,
    record_error,
)
from ._patching import Answer, Default, Hook, Patch, TargetNotFoundError
from ._provider import set_attributes
from ._submitting import capturing, carrying, detaching, hanging, lending
from ._worker import Inbox, Outbox
from .snapshot import EMPTY, ContextSnapshot, Entry, capture, capture_if_active, current_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType
    from typing import Any, TypeVar

    from opentelemetry.trace import Tracer

    from ._patching import Kind

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "EMPTY",
    "NOTHING",
    "PROPAGATION",
    "RELATION",
    "SPANS",
    "Answer",
    "ContextSnapshot",
    "Detached",
    "DottedNames",
    "Entry",
    "Hop",
    "Inbox",
    "Option",
    "Outbox",
    "Plugin",
    "capture_if_active",
    "child_ending",
    "hide_frame",
    "inside",
    "is_failure",
    "is_installed",
    "mark_failed",
    "record_error",
    "relations",
    "service_name",
    "set_attributes",
]


class Option:
    """A key of a plugin's section in agent.toml: name, default, one line of help.

    The default's type is the option's type: bool, int, float, str, or a list of str. `choices`, if given, are the only
    values allowed. `check`, if given, is called with the value before the program starts, and raises a ValueError whose
    text says what is wrong with it.
    """

    __slots__ = ("check", "choices", "default", "help", "name")

    def __init__(
        self,
        name: str,
        default: bool | int | float | str | list[str],
        help: str,
        *,
        choices: Sequence[str] = (),
        check: Callable[[Any], None] | None = None,
    ) -> None:
        self.name = name
        self.default = default
        self.help = help
        self.choices = tuple(choices)
        self.check = check


RELATION = Option(
    "relation",
    "child",
    "how work relates to its submitter: its child, a trace of its own with a link to it, or none",
    choices=("child", "link", "none"),
)
SPANS = Option("spans", False, "a span for each piece of work, with its name and the time it waited to start")
PROPAGATION = (RELATION, SPANS)


def relations(choices: Sequence[str], example: str, help: str) -> Option:
    """Return the option `relations` for work that has names: PATTERN=relation entries, see `Plugin.relation_of`."""

    def check(entries: list[str]) -> None:
        for entry in entries:
            pattern, _, relation = entry.rpartition("=")
            if not pattern or relation not in choices:
                *forms, last = (f"PATTERN={choice}" for choice in choices)
                raise ValueError(f"{entry!r} is no {', '.join(forms)} or {last}, such as {example!r}")

    return Option("relations", [], help, check=check)


MOST_FAILURES = 100  # of one plugin in one process, with which it is switched off
_installed: dict[str, Plugin] = {}


class Plugin:
    """What the agent does to one library: interceptors at targets, and the options that change them.

    `name` is the plugin's name in the configuration, in kebab-case. `requires` names the distribution and the versions
    that the targets were written for, as in pyproject.toml (`"aiohttp>=3.9,<4"`); leave it out for the standard
    library. `settings` holds the value of each option while the plugin is installed, the defaults otherwise; other
    values come as another dict.
    """

    def __init__(self, name: str, *, options: Sequence[Option] = (), requires: str | None = None) -> None:
        self.name = name
        self._scope = f"sw_agent.{name}"
        self.options = tuple(options)
        self.requires = requires
        self.settings: Mapping[str, Any] = {option.name: option.default for option in self.options}
        self.patches: list[Patch | Default | Hook] = []
        self._failures = count(1)
        self._left_to: set[str] = set()
        self._set({})

    def intercept(self, target: str, *, optional: bool = False, when: str = "") -> Callable[[F], F]:
        """Put the decorated function around the function at `target`, `"module:Class.attribute"`.

        The interceptor is called with `(wrapped, instance, args, kwargs)`: it calls `wrapped(*args, **kwargs)` and
        returns what that returns. `wrapped` is bound already; `instance` is None for a function. Around a coroutine
        function it is a coroutine function itself and awaits `wrapped(...)`. What it raises of its own is contained; so
        is that it returns something else, which the program does not get: only the `value` of an `Answer`.
        An `optional` target may be missing in some versions of the library. `when` names an option without which the
        function is left as it is.
        """
        return self._patch(target, "around", optional=optional, when=when)

    def before(self, target: str, *, optional: bool = False, when: str = "") -> Callable[[F], F]:
        """Call the decorated function with `(instance, args, kwargs)` before the function at `target`.

        The lighter kind of interceptor: to capture a snapshot, or to change the arguments. It returns None to leave
        these alone, or the `(args, kwargs)` to go on with.
        """
        return self._patch(target, "before", optional=optional, when=when)

    def within(self, target: str, *, optional: bool = False) -> Callable[[F], F]:
        """Call the decorated function with `(instance, args, kwargs)` before the coroutine function at `target`.

        It returns None, or an object whose `leave(error)` is called when the coroutine has ended, with what it raised:
        an `Entry` that is entered, a span and its context. One more coroutine, where `intercept` takes three.
        """
        return self._patch(target, "within", optional=optional)

    def capture(self, target: str, *, optional: bool = False, after: str = "") -> Callable[[F], F]:
        """Call the decorated function with a snapshot before the function at `target`, where work is submitted.

        It is called with `(snapshot, instance, args, kwargs)`, and returns what a `before` returns. It is not called at
        all where no span and no baggage is current, or `relation` is "none", unless `spans` asks for a span anyway.
        The module `after` has the function from the target's, and calls it as it is.
        """
        return self._patch(target, lambda *wrapped: capturing(self, *wrapped), optional=optional, after=after)

    def carry(self, item: str, *, made: str, run: str) -> Callable[[F], F]:
        """Let the items of the class `item` carry the context from their method `made` to their method `run`.

        For items that are the library's own, where speed counts: it puts the context on the item and restores it around
        `run`, at a tenth of what interceptors cost. Where the options ask for more, for a span or a link, the decorated
        function is called instead, with `(snapshot, item)`, after `made`; the item then runs in an empty context, in
        which the function has seen to the rest.
        """

        def register(interceptor: F) -> F:
            self.patches.append(Default(f"{item}._sw_context", None))  # looked up on every item
            self._patch(f"{item}.{made}", lambda *wrapped: hanging(self, *wrapped))(interceptor)
            self._add(f"{item}.{run}", self, carrying)
            return interceptor

        return register

    def lend(self, target: str, attribute: str, kind: type) -> Callable[[F], F]:
        """Let an instance have another `attribute` while the method at `target` runs, where work is submitted.

        For a library that looks up there what it calls later: no frame is in its way then. The decorated function is
        called with `(context, instance)` where a `capture` is called, `context` being the current one, and returns an
        object of the class `kind`, which is lent, or None.
        """
        return self._patch(target, lambda *wrapped: lending(self, attribute, kind, *wrapped[:3]))

    def detach(self, target: str, *, optional: bool = False, unless_empty: str = "") -> None:
        """Call the method at `target` in an empty context: what it does belongs to nobody.

        Where the instance has a `_sw_context`, a context that is not empty, it is that one's instead. Where the
        instance's attribute named `unless_empty` is empty, the method calls nothing of the program's: it is called as
        it is.
        """
        self._add(target, self, lambda _target, original, *_: detaching(original, unless_empty), optional=optional)

    def hook(self, module: str) -> Callable[[F], F]:
        """Call the decorated function with a module when it has been imported: for a library that has hooks itself.

        It returns a function that undoes what it has done.
        """

        def register(use: F) -> F:
            self.patches.append(Hook(module, use))
            return use

        return register

    def _patch(self, target: str, kind: str | Kind, **more: Any) -> Callable[[F], F]:
        def register(interceptor: F) -> F:
            self._add(target, interceptor, kind, **more)
            return interceptor

        return register

    def _add(self, target: str, interceptor: object, kind: str | Kind, **more: Any) -> None:
        self.patches.append(Patch(target, interceptor, kind, contain=self.contain, **more))

    @property
    def installed(self) -> bool:
        """Whether the interceptors are in, or go in as soon as their modules arrive."""
        return _installed.get(self.name) is self

    def install(self, settings: Mapping[str, Any] | None = None) -> None:
        """Put all interceptors in, now or when their modules are imported; twice is once.

        Raises:
            ValueError: another plugin of this name is installed.
        """
        if self.installed:
            return
        if self.name in _installed:
            raise ValueError(f"a plugin named {self.name!r} is installed already")
        self._set(settings or {})
        self._failures = count(1)
        _installed[self.name] = self
        for module in dict.fromkeys(patch.module for patch in self.patches):
            _imports.when_imported(module, self._module_arrived)

    def uninstall(self) -> None:
        """Restore every patched object to the very object it was, and every setting to its default.

        Any thread may call it, also from within an interceptor. Calls and pieces of work that are under way end well.
        """
        if not self.installed or _installed.pop(self.name, None) is not self:  # two threads may be here at once
            return
        for patch in reversed(self.patches):
            _imports.forget(patch.module, self._module_arrived)
            self._take_out(patch)
        self._set({option.name: option.default for option in self.options})

    def _take_out(self, patch: Patch | Default | Hook) -> None:
        try:
            patch.uninstall()
        except Exception as error:
            contain(f"plugin {self.name}: taking out {patch.target}", error)

    def contain(self, place: str, error: BaseException) -> None:
        """Let a failure of the plugin end here: it is counted, and said when it is the first one at `place`.

        All that interceptors raise comes here by itself. A plugin that has failed `MOST_FAILURES` times is uninstalled.
        """
        contain(f"plugin {self.name}: {place}", error)
        if next(self._failures) == MOST_FAILURES and self.installed:
            self._switch_off()

    def _switch_off(self) -> None:
        from . import _bootstrap

        self.uninstall()
        why = f"it has failed {MOST_FAILURES} times"
        _bootstrap.plugin_states[self.name] = f"switched off: {why}"
        say(f"plugin {self.name} is switched off: {why}")

    def _set(self, settings: Mapping[str, Any]) -> None:
        self.settings = {**self.settings, **settings}
        relation = self.settings.get("relation", "child")
        self.captures_always = bool(self.settings.get("spans"))
        self._captures_never = relation == "none" and not self.captures_always
        self.only_restores = relation == "child" and not self.captures_always

    def captured(self) -> ContextSnapshot | None:
        """Return a snapshot for a piece of work submitted now; None where the options and the context ask for none."""
        if self.captures_always:
            return capture()
        return None if self._captures_never else capture_if_active()

    def relation_of(self, *names: str) -> str:
        """Return the relation of work that has these names: of the first pattern that fits one, else of all work."""
        if entries := self.settings["relations"]:
            from fnmatch import fnmatchcase

            for entry in entries:
                pattern, _, relation = entry.rpartition("=")
                if any(fnmatchcase(name, pattern) for name in names):
                    return str(relation)
        return str(self.settings["relation"])

    @property
    def tracer(self) -> Tracer:
        """The tracer for the plugin's own spans, of whichever provider is the global one now."""
        return _provider.get_tracer(self._scope)

    def leaves_spans_to(self, instrumentation: str) -> None:
        """Say once that the program has another instrumentation make this library's spans: the plugin makes none."""
        if instrumentation not in self._left_to:
            self._left_to.add(instrumentation)
            _log.info("plugin %s makes no spans beside those of %s", self.name, instrumentation)

    def _module_arrived(self, module: ModuleType) -> None:
        for patch in self.patches:
            # A module may call itself otherwise: gevent's take all of a compiled one's variables, also the name.
            is_its_own = module.__name__ == patch.module or sys.modules.get(patch.module) is module
            if not is_its_own or (patch.when and not self.settings[patch.when]):
                continue
            try:
                patch.install(module)
            except TargetNotFoundError as error:
                if not patch.optional:
                    contain(f"plugin {self.name}: {patch.target}", error)
            except Exception as error:
                contain(f"plugin {self.name}: {patch.target}", error)
            if not self.installed:  # it has been uninstalled meanwhile, by another thread
                self._take_out(patch)

    def resume(self, snapshot: ContextSnapshot | None, function: object = None) -> Hop:
        """Return a context manager inside which a piece of work runs that was submitted with `snapshot`.

        The option `relation` says what the work is to its submitter, the option `spans` whether it gets a span, named
        after `function`, the callable that the program submitted. Without a snapshot the work runs in an empty context,
        whatever the worker or the work before it left behind.
        """
        if not self.only_restores:
            relation = self.settings.get("relation", "child")
            if self.captures_always or (relation == "link" and snapshot):
                return SpanHop(snapshot, self.name, function, relation)
            if relation == "none":
                snapshot = None
        if snapshot is not None:
            return Hop(snapshot.context)
        return Hop(None) if current_context() else NOTHING


class DottedNames:
    """Names of modules, classes and functions: what is listed, or within what is listed, is `in` them.

    A callable of another kind, a partial or an instance, stands for the function or the class behind it.
    """

    def __init__(self, *names: str) -> None:
        self._beginnings = tuple(f"{name}." for name in names)
        self._packages = {name.partition(".")[0] for name in names}
        self._other_modules: set[str] = set()  # that are known to be in none of these packages

    def __contains__(self, named: Any) -> bool:
        return self.has(named)

    def has(self, named: Any) -> bool:
        """Return whether it is `in` them; for those who ask often."""
        if type(named) in _NAMED_BY_THEMSELVES:
            module = named.__module__
            if type(module) is str:
                if module in self._other_modules:
                    return False  # as nearly always
                if module.partition(".")[0] not in self._packages:
                    if len(self._other_modules) >= MOST_REMEMBERED:
                        self._other_modules.clear()
                    self._other_modules.add(module)
                    return False
        module, name = function_name(named)
        return f"{module}.{name}.".startswith(self._beginnings)


class Detached:
    """The work that belongs to nobody, by the dotted names of its function, or of a class of what runs it.

    A plugin knows some, its option `detached` adds others.
    """

    def __init__(self, plugin: Plugin, *names: str) -> None:
        self._plugin = plugin
        self._own = names
        self._configured: list[str] | None = None
        self._names = DottedNames()
        self._other_kind: type | None = None  # the last one that was found not to be listed

    def lists(self, function: object, kind: type | None = None) -> bool:
        """Return whether the function, or what runs it, an object of class `kind`, is one of these."""
        configured = self._plugin.settings["detached"]
        if configured is not self._configured:
            self._configured, self._names = configured, DottedNames(*self._own, *configured)
            self._other_kind = None
        names = self._names
        if names.has(function):
            return True
        if kind is not None and kind is not self._other_kind:
            for base in kind.__mro__:
                if base is not object and names.has(base):
                    return True
            self._other_kind = kind
        return False


MOST_REMEMBERED = 1024  # modules
_NAMED_BY_THEMSELVES = frozenset((type, type(function_name), type(NOTHING.enter), type(len)))


def all_installed() -> list[Plugin]:
    """Return the plugins that are installed, in the order in which they were."""
    return list(_installed.values())


def is_installed(name: str) -> bool:
    """Return whether the plugin of that name is installed: for a plugin whose work another one does already."""
    return name in _installed


def child_ending() -> None:
    """Say that a child process ends now, by `os._exit`, not as interpreters do: what it has recorded leaves first."""
    try:
        from . import _lifecycle

        _lifecycle.child_ending()
    except Exception as error:
        contain("the end of a child process", error)


def service_name() -> str:
    """Return the name of the service that this process is, empty where no agent runs."""
    from . import _bootstrap

    return _bootstrap.config.name if _bootstrap.config is not None else ""
