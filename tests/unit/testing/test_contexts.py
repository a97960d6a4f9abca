"""A handler is tested by calling it with a context that notes what it asks for."""

import asyncio
from typing import Any

import pytest

from postroom import ConfigurationError, Message, MessageContext
from postroom.testing import context, run_virtual
from support.shop import Tenant


def test_an_async_handler_sees_what_it_was_given() -> None:
    """Context, resources, tenant, attributes and attempt."""

    async def handle(payload: str, ctx: MessageContext[Tenant, list[str]]) -> None:
        ctx.resources.append(f"{payload} {ctx.context.tenant_id} {ctx.attempt} {ctx.message.attributes['kind']}")

    rows: list[str] = []
    ctx = context(Tenant("acme"), rows, attributes={"kind": "order"}, attempt=3)
    run_virtual(handle("x", ctx))
    assert rows == ["x acme 3 order"]
    assert (ctx.tenant, ctx.message.receive_count) == (Tenant("acme"), 3)
    assert not ctx.acked


def test_what_an_async_handler_awaits_is_noted() -> None:
    """Each call with its arguments."""

    async def handle(ctx: MessageContext[None, None]) -> None:
        await ctx.extend(30)
        await ctx.retry(delay=5)
        await ctx.ack()

    ctx = context()
    run_virtual(handle(ctx))
    assert (ctx.acked, ctx.retries, ctx.extensions) == (True, [5], [30])


def test_a_forgotten_await_shows() -> None:
    """Nothing is noted, and there is a warning."""

    async def handle(ctx: MessageContext[None, None]) -> None:
        ctx.ack()

    ctx = context()
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        run_virtual(handle(ctx))
    assert not ctx.acked


def test_what_a_plain_handler_calls_is_noted_at_once() -> None:
    """Without an event loop, and in a thread of one."""

    def handle(ctx: MessageContext[None, None]) -> None:
        ctx.ack()

    ctx = context()
    handle(ctx)
    assert ctx.acked

    async def in_thread() -> bool:
        other = context()
        await asyncio.to_thread(handle, other)
        return other.acked

    assert asyncio.run(in_thread())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"attempt": 0}, r"context\(attempt=...\) takes a whole number from 1 up; got 0"),
        ({"attempt": True}, r"got True"),
        ({"message": Message(id="1", body=""), "attributes": {"a": "b"}}, r"message= or attributes=, not both"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], text: str) -> None:
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match=text):
        context(**arguments)
