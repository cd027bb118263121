"""Code that runs in steps, each in a context of its own: whatever it is that gives the steps."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest
from opentelemetry import context
from opentelemetry.context import Context

from sw_agent._instrument import Steps

INSIDE = Context({"where": "inside"})


class Plain:
    """An awaitable that gives a plain iterator, which can only be asked for the next step."""

    def __await__(self) -> Iterator[Any]:
        return map(context.get_value, ["where", "where"])


class Asking:
    """An awaitable that gives a generator, which takes what it is sent."""

    def __await__(self) -> Generator[Any, Any, Any]:
        sent = yield context.get_value("where")
        return sent, context.get_value("where")


async def stepped(awaitable: Any) -> Any:
    return await Steps(INSIDE).of_awaitable(awaitable)


def test_each_step_of_an_awaitable_has_its_context_and_gets_what_is_sent() -> None:
    steps = stepped(Asking())
    assert steps.send(None) == "inside"
    assert context.get_value("where") is None
    with pytest.raises(StopIteration) as done:
        steps.send("sent")
    assert done.value.value == ("sent", "inside")


def test_an_exception_ends_a_plain_iterator_too() -> None:
    steps = stepped(Plain())
    assert [steps.send(None), steps.send(None)] == ["inside", "inside"]
    with pytest.raises(ValueError, match="no more"):
        steps.throw(ValueError("no more"))


def test_a_plain_iterator_can_be_closed() -> None:
    steps = stepped(Plain())
    assert steps.send(None) == "inside"
    steps.close()
    with pytest.raises(RuntimeError, match="cannot reuse"):
        steps.send(None)
