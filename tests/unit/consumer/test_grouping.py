"""MessageGroupId, the tenant of SQS's fair queues, is compared with the tenant of the context."""

import asyncio
import logging
from typing import Any

import pytest

from postroom import Consumer, ConsumerStatistics, MessageContext
from postroom.consumer.grouping import REMEMBER, Grouping
from postroom.resources import ResourcePool
from support.world import Databases, Order, Tenant, World, in_world

A, B = Tenant("a"), Tenant("b")


class Clock:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        """Return its time."""
        return self.now


def test_groups_and_tenants_that_go_together_are_no_mismatch() -> None:
    """Whatever the groups are called, and whether or not the contexts are the same objects."""
    grouping = Grouping(clock=Clock())
    for _ in range(3):
        grouping.check("tenant-1", Tenant("a"), Tenant("a"))
        grouping.check("tenant-2", Tenant("b"), Tenant("b"))
    assert grouping.mismatches == 0


def test_a_group_of_two_tenants_is_a_mismatch() -> None:
    """Each message of the tenant that did not come first counts."""
    grouping = Grouping(clock=Clock())
    for tenant in (A, B, A, B):
        grouping.check("g", tenant, tenant)
    assert grouping.mismatches == 2


def test_a_tenant_of_many_groups_is_a_mismatch_unless_it_is_many_contexts() -> None:
    """A random group per message hides a noisy tenant; where a pool's key puts contexts together, many are right."""
    grouping = Grouping(clock=Clock())
    for number in range(4):
        grouping.check(f"random-{number}", A, A)
        grouping.check(f"context-{number}", "host", Tenant(str(number)))
    assert grouping.mismatches == 3


def test_it_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """However many there are; what a sender chose as group is shown with its control characters escaped."""
    clock = Clock()
    grouping = Grouping(clock=clock)
    with caplog.at_level(logging.WARNING, "postroom.consumer"):
        for second in range(120):
            clock.now = float(second)
            grouping.check("a\nb", A if second % 2 else B, None)
    assert grouping.mismatches == 60
    said = (
        "MessageGroupId and context disagree ({} so far): message group 'a\\nb' has messages of several tenants, which"
    )
    assert [record.getMessage() for record in caplog.records] == [
        f"{said.format(count)} are one to SQS's fair queues" for count in (1, 31)
    ]


def test_memory_is_bounded() -> None:
    """Groups without number are forgotten."""
    grouping = Grouping(clock=Clock())
    for number in range(2 * REMEMBER):
        grouping.check(str(number), number, number)
    assert max(len(grouping._tenants), len(grouping._groups)) <= REMEMBER


def consume(*, queue: str = "orders", pooled: bool = False, **attributes: Any) -> tuple[int, ConsumerStatistics]:
    """Consume a group of two tenants; return how many messages were handled."""

    async def scenario(world: World) -> tuple[int, ConsumerStatistics]:
        world.create(queue, **attributes)
        databases = Databases()
        pool = ResourcePool(databases, key=lambda tenant: tenant.region) if pooled else None
        orders: Consumer[Tenant, Any] = Consumer(queue, context=Tenant, resources=pool, client=world.client)
        handled = 0

        @orders.handler
        async def record(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
            nonlocal handled
            handled += 1

        for number in range(10):
            world.send({"order_id": str(number)}, tenant="ab"[number % 2], queue=queue, group="g")
        async with orders:
            await asyncio.sleep(5)
            return handled, orders.statistics()

    return in_world(scenario)


def test_a_mismatch_is_counted_and_fails_nothing() -> None:
    """By default, on a standard queue."""
    handled, statistics = consume()
    assert (handled, statistics.group_mismatches, statistics.failed) == (10, 5, {})


def test_tenants_that_share_a_resource_by_its_key_are_one() -> None:
    """They are one tenant here as well."""
    assert consume(pooled=True)[1].group_mismatches == 0


def test_the_group_of_a_fifo_queue_is_no_tenant() -> None:
    """It is the unit of order there."""
    handled, statistics = consume(queue="orders.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    assert (handled, statistics.group_mismatches) == (10, 0)
