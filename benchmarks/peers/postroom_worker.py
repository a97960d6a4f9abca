"""postroom with everything on: typed context, pooled lease, validated payload, heartbeat, batched acknowledgements."""

import asyncio
import importlib
import os
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from unittest import mock

from benchmarks.peers.orders import Order
from benchmarks.peers.work import Arguments, Work, arguments

from postroom import AwsClient, Concurrency, Consumer, MessageContext, Shutdown, run


@dataclass(frozen=True)
class Tenant:
    """The tenant of a message: from the message attributes."""

    tenant_id: str
    region: str


@dataclass(frozen=True)
class Database:
    """What is leased for a tenant."""

    name: str


@asynccontextmanager
async def database(tenant: Tenant) -> AsyncGenerator[Database]:
    """Open a tenant's resource."""
    yield Database(tenant.tenant_id)


def trust_the_stub() -> None:
    """Let the hot path be taken over TLS: it takes no other authority than the default, which the stub's is not."""
    from postroom.transports.aws import conditions, connection  # noqa: PLC0415 - for TLS only

    trusting = ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"])
    mock.patch.object(conditions, "custom_authority", return_value=False).start()
    mock.patch.object(connection, "default_tls", return_value=trusting).start()


def consumer(told: Arguments) -> Consumer[Tenant, Database]:
    """Return the consumer."""
    orders = Consumer(
        told.queue_url,
        context=Tenant,
        resources=database,
        concurrency=Concurrency(total=told.concurrency, per_tenant=told.concurrency),
        # A measured run ends on an empty queue: there is nothing to wait for.
        shutdown=Shutdown(poll=0.0) if told.messages else Shutdown(),
        client=AwsClient(endpoint_url=told.url, hot_path=told.hot_path),
    )
    work = Work(told.messages, orders.stop)

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Tenant, Database]) -> None:
        assert ctx.resources.name == ctx.context.tenant_id
        await work.do(order.order_id, order.note)

    return orders


if __name__ == "__main__":
    told = arguments()
    if told.url.startswith("https"):
        trust_the_stub()
    if told.uvloop:
        asyncio.set_event_loop_policy(importlib.import_module("uvloop").EventLoopPolicy())
    run(consumer(told))
