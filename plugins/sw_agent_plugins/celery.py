"""How work travels in Celery: as a message, from `Celery.send_task` through a broker to a worker and its pool.

Whatever publishes (`delay`, canvas, beat, a retry) ends in `send_task`, which has `AMQP.as_task_v2` make the message.
In the worker each pool calls `fast_trace_task` or `trace_task_ret` for each attempt to run a task, and a `TraceInfo` is
made for each that does not succeed. What a process of the pool cannot say, because it was killed, the main process of
the worker knows; there a message is a `Request`. A task that is applied eagerly is no message: its span is INTERNAL.

Where OpenTelemetry's own instrumentation is switched on, it makes the spans of messages and attempts, and puts the
carrier into messages. Only what it cannot see, since its process was killed or none has begun, has a span from here.
"""

from __future__ import annotations

import sys

from sw_agent.plugin import Entry, Option, Plugin, relations
from sw_agent.snapshot import capture

from ._celery_messages import received, take_out, without_ours
from ._celery_spans import Attempt, Publication, current_attempt, current_publication

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Wrapped = Callable[..., Any]
    Args = tuple[Any, ...]
    Kwargs = dict[str, Any]

OPENTELEMETRYS = "opentelemetry.instrumentation.celery"
RELATIONS = ("child", "link")


plugin = Plugin(
    "celery",
    options=[
        Option(
            "relation",
            "child",
            "how a task relates to its publisher: its child, or a trace of its own with a link to it",
            choices=RELATIONS,
        ),
        relations(
            RELATIONS,
            "reports.*=link",
            "the same for some tasks, such as reports.*=link: the first pattern that a task's name fits counts",
        ),
    ],
    requires="celery>=5.3,<6",
)


# Publishing


@plugin.intercept("celery.app.base:Celery.send_task")
def publish(wrapped: Wrapped, _app: Any, args: Args, kwargs: Kwargs) -> Any:
    """Publish in a PRODUCER span."""
    name = args[0] if args else kwargs.get("name")
    if name is None:  # the library's own TypeError
        return wrapped(*args, **kwargs)
    if kwargs.get("headers"):
        kwargs = {**kwargs, "headers": without_ours(kwargs["headers"])}
    if _is_left_to_opentelemetry():
        with capture().restore():
            return wrapped(*args, **kwargs)
    with Publication(plugin, name, kwargs):
        return wrapped(*args, **kwargs)


@plugin.intercept("celery.app.amqp:AMQP.as_task_v1")
@plugin.intercept("celery.app.amqp:AMQP.as_task_v2")
def address(wrapped: Wrapped, amqp: Any, args: Args, kwargs: Kwargs) -> Any:
    """Give the message the context of its publication."""
    message = wrapped(*args, **kwargs)
    publication = current_publication.get()
    if publication is not None:
        publication.address(message, kwargs, amqp.app.conf.task_default_queue)
    return message


# A tick of beat belongs to nobody, whatever was current where its thread or process was started.
plugin.detach("celery.beat:Scheduler.apply_async")


# Running


@plugin.intercept("celery.app.trace:fast_trace_task")
@plugin.intercept("celery.app.trace:trace_task_ret")
@plugin.intercept("celery.worker.request:fast_trace_task")  # the same, where they are imported by name
@plugin.intercept("celery.worker.request:trace_task_ret")
def run_as_the_message_says(wrapped: Wrapped, _: None, args: Args, kwargs: Kwargs) -> Any:
    """Run a task in a CONSUMER span, the child of what its message has brought, whatever is current in the worker."""
    name, _task_id, request = args[:3]
    if _is_left_to_opentelemetry():  # which finds the carrier among the headers
        with Entry(received(request)[0].context):
            return wrapped(*args, **kwargs)
    with Attempt(plugin, name, request) as attempt:
        take_out(request, attempt.origin, attempt.note)
        return wrapped(*args, **kwargs)


@plugin.before("celery.app.trace:TraceInfo.__init__")
def say_how_it_ends(_info: Any, args: Args, kwargs: Kwargs) -> None:
    """Describe an attempt that does not succeed, while the exception has its traceback."""
    attempt = current_attempt.get()
    if attempt is not None:
        attempt.say(args[0], args[1] if len(args) > 1 else kwargs.get("retval"))


@plugin.intercept("celery.app.task:Task.apply")
def run_inline(wrapped: Wrapped, task: Any, args: Args, kwargs: Kwargs) -> Any:
    """Run a task eagerly, within the caller's span; a retry, though applied within the first `apply`, follows that."""
    if _is_left_to_opentelemetry():
        return wrapped(*args, **kwargs)
    outer, retries = current_attempt.get(), kwargs.get("retries") or 0
    links: Args = ()
    if outer is not None and outer.inline and outer.state == "RETRY" and retries == outer.retries + 1:
        from opentelemetry.trace import Link

        outer.leave()
        links = (Link(outer.span_context),)
    with Attempt(plugin, task.name, {"retries": retries}, inline=True, links=links):
        return wrapped(*args, **kwargs)


# What only the main process of a worker can say


@plugin.intercept("celery.worker.request:Request._announce_revoked")
def say_that_it_was_revoked(wrapped: Wrapped, request: Any, args: Args, kwargs: Kwargs) -> Any:
    """Make the span of a task that was revoked or has expired before it ran, or was terminated with its process."""
    if _has_begun_here(request):
        return wrapped(*args, **kwargs)
    with _outside(request) as attempt:
        attempt.say("REVOKED")
        attempt.span.set_attribute("celery.revoke_reason", args[0])
        return wrapped(*args, **kwargs)


@plugin.intercept("celery.worker.request:Request._announce_cancelled", optional=True)
def say_that_it_was_cancelled(wrapped: Wrapped, request: Any, args: Args, kwargs: Kwargs) -> Any:
    """Make the span of a task whose process was killed because the worker has lost the broker, which redelivers it."""
    if _has_begun_here(request):
        return wrapped(*args, **kwargs)
    with _outside(request) as attempt:
        attempt.say("RETRY")
        return wrapped(*args, **kwargs)


@plugin.intercept("celery.worker.request:Request.on_failure")
def say_that_its_process_was_lost(wrapped: Wrapped, request: Any, args: Args, kwargs: Kwargs) -> Any:
    """Make the span of a task whose process died, or was killed when the time was over; others have their own."""
    error = getattr(args[0], "exception", None) if args else None
    error = getattr(error, "exc", error)  # billiard's ExceptionWithTraceback
    killed = type(error).__name__ in ("TimeLimitExceeded", "WorkerLostError")
    if not killed or _has_begun_here(request) or request._already_revoked or request._already_cancelled:
        return wrapped(*args, **kwargs)
    with _outside(request) as attempt:
        attempt.say("FAILURE", error)
        request._sw_snapshot = capture()
        return wrapped(*args, **kwargs)


@plugin.intercept("celery.worker.request:Request.on_timeout")
def call_back_in_its_context(wrapped: Wrapped, request: Any, args: Args, kwargs: Kwargs) -> Any:
    """Let what is called back when the time was over, after `on_failure`, belong to the task."""
    snapshot = request.__dict__.pop("_sw_snapshot", None)
    if snapshot is None:
        return wrapped(*args, **kwargs)
    with snapshot.restore():
        return wrapped(*args, **kwargs)


@plugin.intercept("celery.worker.consumer.consumer:Consumer.on_unknown_task")
@plugin.intercept("celery.worker.consumer.consumer:Consumer.on_invalid_task")
@plugin.intercept("celery.worker.consumer.consumer:Consumer.on_decode_error")
def say_that_it_was_refused(wrapped: Wrapped, _consumer: Any, args: Args, kwargs: Kwargs) -> Any:
    """Make the span of a message that no task here can take."""
    *body, message, error = args
    if isinstance(error, KeyError):
        error = sys.modules["celery.exceptions"].NotRegistered(*error.args)
    headers = {**_dict(body[0] if body else None), **_dict(message.headers), "delivery_info": message.delivery_info}
    if body and "task" not in headers:  # protocol 1
        headers = {**_dict(message.payload), "headers": message.headers, **headers}
    name = headers.get("task")
    with Attempt(plugin, name if isinstance(name, str) else "unknown", headers) as attempt:
        attempt.say("FAILURE", error)
        return wrapped(*args, **kwargs)


def _is_left_to_opentelemetry() -> bool:
    """Return whether OpenTelemetry's own instrumentation is switched on in this process now."""
    instrumentor = getattr(sys.modules.get(OPENTELEMETRYS), "CeleryInstrumentor", None)
    if not getattr(getattr(instrumentor, "_instance", None), "_is_instrumented_by_opentelemetry", False):
        return False
    plugin.leaves_spans_to(OPENTELEMETRYS)
    return True


def _dict(found: object) -> Kwargs:
    return found if isinstance(found, dict) else {}


def _has_begun_here(request: Any) -> bool:
    """Return whether an attempt has begun in this process: its own span, there, says how it ends."""
    return "is_eager" in request._request_dict  # written by `fast_trace_task` and `trace_task_ret`


def _outside(request: Any) -> Attempt:
    """Return the attempt that a pool's process cannot tell about, since it was accepted there."""
    started = request.time_start
    return Attempt(plugin, request._type, request._request_dict, int(started * 1e9) if started else None)
