"""What a stop says that cannot end in order: which queue, how many messages, which tenants."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from postroom import Consumer, MessageContext, Reject, ResourcePool, Shutdown
from postroom.message import Message
from support.passing import PassingClient
from support.world import Order, Tenant, World, in_world


class Silent(PassingClient):
    """A client with queues that answer neither deletes nor sends, once that is asked of it."""

    silent = False

    async def queue(self, name: str) -> Any:
        """Open a queue."""
        return _Queue(self, await super().queue(name))


class _Queue:
    def __init__(self, client: Silent, inner: Any) -> None:
        self._client = client
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._inner, name)
        if name not in {"delete", "send"}:
            return call

        async def answered(*arguments: Any) -> Any:
            if self._client.silent:
                await asyncio.Event().wait()
            return await call(*arguments)

        return answered


def line(caplog: pytest.LogCaptureFixture, part: str) -> str:
    """Return the one line with a text."""
    [found] = [each.getMessage() for each in caplog.records if part in each.getMessage()]
    return found


def test_a_pool_that_does_not_close_names_its_tenants(caplog: pytest.LogCaptureFixture) -> None:
    """The process ends before the pool's own line about them would come."""

    @asynccontextmanager
    async def database(tenant: Tenant) -> AsyncGenerator[str]:
        yield tenant.tenant_id
        if tenant.tenant_id.startswith("hangs"):
            await asyncio.Event().wait()

    async def scenario(world: World) -> None:
        world.create()
        shutdown = Shutdown(close=1)
        pool = ResourcePool(database, weight=1)  # one of its own would have the consumer's time, and name each
        orders = Consumer("orders", context=Tenant, resources=pool, client=world.client, shutdown=shutdown)

        @orders.handler
        async def handle(_order: Order, _ctx: MessageContext[Tenant, str]) -> None: ...

        async with orders:
            for tenant in ("well", *(f"hangs-{number}" for number in range(6))):
                world.send_orders("1", tenant=tenant)
            await asyncio.sleep(5)
        await asyncio.sleep(60)  # a process that goes on: the pool gives the cleanups up

    with caplog.at_level(logging.INFO, "postroom"):
        in_world(scenario)
    said = line(caplog, "did not close within Shutdown")
    assert said.startswith(
        "The pool of orders did not close within Shutdown(close=1): the cleanup of hangs-0:eu-west-1, "
    )
    assert said.endswith(" and 1 more tenant has not ended; it goes on closing by itself")
    assert "well" not in said


class HangingClient(PassingClient):
    """A client that does not end."""

    async def __aexit__(self, *_: object) -> None:
        await asyncio.Event().wait()


class HangingMiddleware(AbstractAsyncContextManager[None]):
    """A middleware that does not end."""

    async def __aexit__(self, *_: object) -> None:
        await asyncio.Event().wait()

    async def __call__(self, payload: Any, ctx: Any, call_next: Callable[[Any, Any], Any]) -> None:
        """Handle a message."""
        await call_next(payload, ctx)


@pytest.mark.parametrize("hangs", ["HangingMiddleware", "The client"])
@pytest.mark.parametrize("pooled", [False, True])
def test_what_does_not_close_is_named(hangs: str, pooled: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The first that hangs, and not a pool or a client that closes well."""

    @asynccontextmanager
    async def database(tenant: Tenant) -> AsyncGenerator[str]:
        yield tenant.tenant_id

    async def scenario(world: World) -> None:
        world.create()
        orders: Consumer[Tenant, Any] = Consumer(
            "orders",
            context=Tenant,
            resources=database if pooled else None,
            client=HangingClient(world.client) if hangs == "The client" else world.client,
            middleware=[HangingMiddleware()] if hangs == "HangingMiddleware" else [],
            shutdown=Shutdown(close=1),
        )

        @orders.handler
        async def handle(_order: Order, _ctx: MessageContext[Tenant, Any]) -> None: ...

        async with orders:
            world.send_orders("1", tenant="acme")
            await asyncio.sleep(5)

    in_world(scenario)
    said = line(caplog, "did not close within Shutdown")
    assert said == f"{hangs} of orders did not close within Shutdown(close=1); its close was cancelled"


def test_a_stop_that_sqs_does_not_answer_says_what_it_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    """Also what was on its way to the dead-letter queue, which is named nowhere else."""

    async def scenario(world: World) -> None:
        world.create(dead_letters="dead", receives=5)
        client = Silent(world.client)
        orders = Consumer("orders", context=Tenant, client=client, shutdown=Shutdown(flush=1))

        @orders.handler
        async def handle(order: Order, _ctx: MessageContext[Any, Any]) -> None:
            if int(order.order_id) < 3:
                raise Reject("no such article")

        async with orders:
            client.silent = True
            world.send_orders(*map(str, range(5)), tenant="acme")
            await asyncio.sleep(1)

    with caplog.at_level(logging.INFO, "postroom"):
        in_world(scenario)
    assert line(caplog, "SQS did not answer within") == (
        "SQS did not answer within Shutdown(flush=1) for orders: 2 messages decided about and not confirmed, "
        "3 messages on their way to the dead-letter queue. They come back later"
    )


@pytest.mark.parametrize(
    ("resolves", "said"), [(0.0, "1 message that waits for resources"), (5.0, "messages that have not started")]
)
def test_a_stop_tells_what_it_waits_for_where_no_handler_runs(
    resolves: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A message at its last receive, of which the tenant is being found out, or its resources opened."""

    async def context(message: Message) -> Tenant:
        await asyncio.sleep(resolves)
        return Tenant(message.id)

    @asynccontextmanager
    async def database(tenant: Tenant) -> AsyncGenerator[str]:
        await asyncio.sleep(5)
        yield tenant.tenant_id

    async def scenario(world: World) -> None:
        world.create(dead_letters="dead", receives=1)
        orders = Consumer("orders", context=context, resources=database, client=world.client)

        @orders.handler
        async def handle(_order: Order, _ctx: MessageContext[Tenant, str]) -> None: ...

        async with orders:
            world.send_orders("1")
            await asyncio.sleep(1)

    with caplog.at_level(logging.INFO, "postroom"):
        in_world(scenario)
    assert line(caplog, "waiting up to") == f"Stopping orders: waiting up to 13 s for {said}"
