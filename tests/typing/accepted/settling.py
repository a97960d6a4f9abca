"""What both checkers accept of settling by hand, in async and in plain handlers, and of options per call."""
# ruff: noqa: D103 - declarations to be looked at by checkers

import asyncio
from dataclasses import dataclass
from typing import Any, assert_type

from postroom import AckMode, Concurrency, Consumer, Faults, MessageContext, RetryPolicy, Shutdown, Visibility
from postroom.options import Call


@dataclass(frozen=True)
class Tenant:
    tenant_id: str


@dataclass
class Order:
    order_id: str


def retry(call: Call) -> RetryPolicy:
    assert_type(call.attempt, int)
    return RetryPolicy(base=0.1 if call.tenant == Tenant("premium") else 1.0)


def visibility(call: Call) -> Visibility:
    return Visibility(timeout=30.0 * call.attempt)


by_hand = Consumer("q", context=Tenant, ack=AckMode.MANUAL, retry=retry, visibility=visibility)
in_threads = Consumer("q", context=Tenant, ack=AckMode.MANUAL, faults=lambda call: Faults(poison_after=None))
assert_type(by_hand, Consumer[Tenant, None])
by_hand.adjust(Concurrency(total=8))
assert_type(Shutdown(within=50).drain, float)
assert_type(Shutdown(drain=50).total, float)


@by_hand.handler
async def settle(order: Order, ctx: MessageContext[Tenant]) -> None:
    assert_type(ctx.attempt, int)
    assert_type(ctx.tenant, Any)
    await ctx.extend(60)
    async with asyncio.TaskGroup() as group:
        group.create_task(ctx.extend(60))
    if ctx.attempt > 1:
        assert_type(await ctx.retry(delay=5), None)
    await asyncio.wait_for(ctx.ack(), timeout=5)


@in_threads.handler
def settle_in_a_thread(order: Order, ctx: MessageContext[Tenant]) -> None:
    ctx.extend(60)
    ctx.ack()
