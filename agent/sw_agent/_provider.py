"""The tracer provider: an SDK's, made with the first need, and handed over when the program brings its own."""

from __future__ import annotations

import os
import sys

from . import _ids, _imports, _lifecycle, carrier
from ._containment import contain
from ._hop import remember_recorded
from ._patching import Patch
from ._unhidden import Unhidden

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from opentelemetry.trace import Tracer

    from ._config import Config
    from ._sdk_provider import AgentProvider

_config: Config | None = None
_ours: AgentProvider | None = None
_fed: list[Any] = []  # the providers that have the pipeline
_trace: Any = None  # `opentelemetry.trace`
_tracers: dict[str, tuple[object, Tracer]] = {}
_broken = False
_patches_of_sdk: list[Patch] = []


def configure(config: Config) -> None:
    """Say how the provider shall be made when it is needed."""
    global _config
    _config = config
    # Who imports the SDK first is at its beginning when `opentelemetry.trace` arrives; the provider waits for its end.
    _imports.when_imported("opentelemetry.sdk.trace", _sdk_arrived)
    _lifecycle.when_forked(_in_child)


def opentelemetry_arrived(module: ModuleType) -> None:
    """Make the provider: `opentelemetry.trace` has been imported."""
    if _config is None:
        return
    _set_tracer_provider.install(module)
    if not _is_being_imported("opentelemetry.sdk.trace"):
        _provide(module)


def get_tracer(scope: str) -> Tracer:
    """Return the tracer of that name from the global provider, which is made if need be.

    Where no agent is configured it is the API's tracer, and records nothing.
    """
    global _trace
    known = _tracers.get(scope)
    if known is not None and known[0] is _trace._TRACER_PROVIDER is not None:
        return known[1]
    if _trace is None:
        from opentelemetry import trace as _trace
    trace = _trace
    if _config is not None and trace._TRACER_PROVIDER is None:
        _provide(trace)
    tracer: Tracer = trace.get_tracer(scope)
    _tracers[scope] = (trace._TRACER_PROVIDER, tracer)
    return tracer


def set_attributes(span: Any, attributes: dict[str, Any]) -> None:
    """Set attributes of a span that no other thread has, with values that need no check: no lists, but tuples."""
    try:
        bounded = span._attributes
        if bounded.max_value_len is None and len(bounded._dict) + len(attributes) <= bounded.maxlen:
            bounded._dict.update(attributes)
            return
    except (AttributeError, TypeError):  # another SDK's insides
        pass
    span.set_attributes(attributes)


def start_program_span() -> None:
    """Put what follows under one root span named after the command."""
    from . import _program_span

    assert _config is not None
    try:
        _program_span.start(_config)
    except Exception as error:
        contain("the program's span", error)


def _sdk_arrived(_module: ModuleType) -> None:
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None and not _is_being_imported("opentelemetry.trace"):
        _provide(trace)


def _provide(trace: Any) -> None:
    """Make the agent's provider the global one, unless the program has its own, or has named one in the environment.

    The API's `Once` is left unused: the program's own `set_tracer_provider` finds it as if nothing had been set.
    """
    global _ours, _broken
    if _config is None or _broken:
        return
    if trace._TRACER_PROVIDER is not None:
        _adopt(trace._TRACER_PROVIDER)
        return
    if "OTEL_PYTHON_TRACER_PROVIDER" in os.environ:
        return
    try:
        if _ours is None:
            with Unhidden():
                _ours = _make(_config)
        trace._TRACER_PROVIDER = _ours
    except Exception as error:
        _broken = True
        contain("making the tracer provider", error)


def _make(config: Config) -> AgentProvider:
    from ._sdk_provider import AgentProvider
    from .export import secret_values  # noqa: F401  the log needs it, when no file can be opened any more

    provider = AgentProvider(config)
    _feed(provider)
    return provider


def _feed(provider: Any) -> None:
    """Give the provider the agent's pipeline, once."""
    if _lifecycle.pipeline is None or any(fed is provider for fed in _fed):
        return
    if not _fed:
        carrier.prepare()
        _lifecycle.stand_aside_first()
        _lifecycle.begin_before_threads_end()
    _fed.append(provider)
    provider.add_span_processor(_lifecycle.pipeline)
    _lifecycle.flush_before_sudden_ends()
    sdk = sys.modules.get("opentelemetry.sdk.trace")
    if not _patches_of_sdk and sdk is not None and _config is not None:
        _patch_sdk(sdk, _config)


def _patch_sdk(sdk: ModuleType, config: Config) -> None:
    _patches_of_sdk.append(Patch("opentelemetry.sdk.trace:Span.record_exception", remember_recorded, "before"))
    if config.stale_parent_after > 0:
        from ._sampling import link_to_stale_parent

        interceptor = link_to_stale_parent(config.stale_parent_after)
        _patches_of_sdk.append(Patch("opentelemetry.sdk.trace:Tracer.start_span", interceptor, "before"))
    for patch in _patches_of_sdk:
        patch.install(sdk)


# The program's own provider


def _after_set_tracer_provider(
    wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    wrapped(*args, **kwargs)
    _adopt(sys.modules["opentelemetry.trace"]._TRACER_PROVIDER)


_set_tracer_provider = Patch("opentelemetry.trace:_set_tracer_provider", _after_set_tracer_provider, "around")


def _adopt(provider: Any) -> None:
    """Let the program's provider feed the pipeline too, and give it the tracers that the agent's has handed out.

    One that is no SDK provider is left alone; then the tracers from before go on as they were.
    """
    if provider is None or provider is _ours or not hasattr(provider, "add_span_processor"):
        return
    _feed(provider)
    if _ours is None or not hasattr(provider, "_active_span_processor"):
        return
    _ours.hand_over(provider)
    if (program_span := sys.modules.get("sw_agent._program_span")) is not None:
        program_span.hand_over(provider)


# The end of the agent in a program that goes on


def release() -> None:
    """Give the program back what it would have without the agent: its own provider, or none, and tracers of that."""
    global _config
    _config = None
    for patch in (_set_tracer_provider, *_patches_of_sdk):
        patch.uninstall()
    _patches_of_sdk.clear()
    _tracers.clear()
    if _ours is not None:
        if _trace_module()._TRACER_PROVIDER is _ours:
            _trace_module()._TRACER_PROVIDER = None
        _ours.release()


def starve() -> None:
    """Take the pipeline, which has ended, out of all providers."""
    for provider in _fed:
        processors = provider._active_span_processor
        with processors._lock:
            processors._span_processors = tuple(
                processor for processor in processors._span_processors if processor is not _lifecycle.pipeline
            )
    _fed.clear()


def _trace_module() -> Any:
    return sys.modules["opentelemetry.trace"]


# A forked process


def _in_child() -> None:
    _ids.reseed()
    if "opentelemetry.trace" in sys.modules:
        _hang_children_under_inherited_span()
    if _ours is not None:
        _ours.renew()


def _hang_children_under_inherited_span() -> None:
    """Put in place of the inherited current span, which is its parent process's to end, one that does not record."""
    from opentelemetry.trace import NonRecordingSpan, get_current_span, set_span_in_context

    from .snapshot import current_context, set_current_context

    span = get_current_span()
    if span.is_recording():
        set_current_context(set_span_in_context(NonRecordingSpan(span.get_span_context()), current_context()))


def _is_being_imported(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and bool(getattr(getattr(module, "__spec__", None), "_initializing", False))
