"""Real servers behind a network that fails: the local SQS over HTTP, and PostgreSQL."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import msgspec
import pytest

from integration.faults.tcp_proxy import Mode, TcpProxy
from postroom import AwsClient, Concurrency, Consumer, MessageContext, Polling, ResourcePool, RetryPolicy, Visibility
from postroom.datasources import DataSource
from postroom.errors import PostroomError
from postroom.local import LocalBroker, LocalServer
from postroom.local.shapes import AttributeValue, Send
from postroom.options import OpenBackoff, PoolLimits, PoolTimeouts
from postroom.testing.postgres import PostgresServer
from support.aws import isolate_aws
from support.shop import Order, Tenant
from support.tenant_database import CLIENT

TENANTS = ("a", "b", "c", "d")


class Site:
    """A local SQS behind a proxy, and a ledger of what was sent."""

    def __init__(self, broker: LocalBroker, proxy: TcpProxy) -> None:
        self.broker = broker
        self.proxy = proxy
        self.sent: list[tuple[str, str]] = []
        self.client = AwsClient(
            region="us-east-1", endpoint_url=f"http://127.0.0.1:{proxy.port}", connect_timeout=1.0, read_timeout=21.0
        )

    def send(self, tenant: str) -> None:
        """Send an order."""
        order = f"{tenant}-{len(self.sent)}"
        body = msgspec.json.encode({"order_id": order}).decode()
        attributes = {"tenantId": AttributeValue(string_value=tenant, data_type="String")}
        self.broker.send("orders", Send(message_body=body, message_attributes=attributes))
        self.sent.append((tenant, order))

    async def produce(self, seconds: float) -> None:
        """Send orders for some time."""
        for _ in range(int(seconds * 20)):
            self.send(TENANTS[len(self.sent) % len(TENANTS)])
            await asyncio.sleep(0.05)

    async def empty(self) -> None:
        """Wait until nothing is left in the queue."""
        async with asyncio.timeout(60):
            while self.broker.queue("orders").messages:
                await asyncio.sleep(0.05)


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A local SQS over HTTP, behind a proxy."""
    isolate_aws(monkeypatch)
    async with LocalBroker() as broker, LocalServer(broker) as server:
        broker.create_queue("orders")
        async with TcpProxy(int(server.endpoint_url.rsplit(":", 1)[1])) as proxy:
            yield Site(broker, proxy)


def consumer(site: Site, **options: Any) -> Consumer[Any, Any]:
    """Make a consumer that looks often and extends soon."""
    return Consumer(
        "orders",
        context=Tenant,
        client=site.client,
        polling=Polling(wait=1, backoff=0.05, max_backoff=0.5),
        visibility=Visibility(timeout=3),
        retry=RetryPolicy(base=0.2, cap=1.0),
        concurrency=Concurrency(total=16, per_tenant=4),
        **options,
    )


def recording(site: Site) -> tuple[Consumer[Any, Any], set[str]]:
    """Make a consumer, and a set of what it handled."""
    seen: set[str] = set()
    orders = consumer(site)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Any, Any]) -> None:
        await asyncio.sleep(0.02)
        seen.add(order.order_id)

    return orders, seen


async def test_a_network_that_resets_and_delays_loses_nothing(site: Site) -> None:
    """Connections to SQS are reset again and again, and refused for a while: everything is handled all the same."""
    orders, seen = recording(site)
    async with orders:
        producing = asyncio.create_task(site.produce(6), name="produce")
        rng = Random(1)
        for _ in range(12):
            await asyncio.sleep(rng.uniform(0.1, 0.6))
            site.proxy.latency = rng.choice((0.0, 0.02, 0.1))
            site.proxy.linger = rng.choice((0.0, 0.2))
            site.proxy.mode = rng.choice((Mode.PASS, Mode.PASS, Mode.RESET))
            site.proxy.reset()
        site.proxy.mode = Mode.PASS
        site.proxy.latency = 0.0
        await producing
        await site.empty()
    assert seen == {order for _, order in site.sent}
    assert site.proxy.accepted > 10


async def test_a_black_hole_before_sqs_costs_time_and_nothing_else(site: Site) -> None:
    """For three seconds nothing comes through, in either direction; then connections break, and all goes on."""
    orders, seen = recording(site)
    async with orders:
        await site.produce(1)
        site.proxy.mode = Mode.BLACK_HOLE
        await site.produce(3)
        site.proxy.mode = Mode.PASS
        site.proxy.reset()
        await site.empty()
    assert seen == {order for _, order in site.sent}


class Backends:
    """Counts the backends of tenants' databases, as the server itself sees them."""

    def __init__(self, server: PostgresServer, prefix: str) -> None:
        self._server = server
        self._where = f"datname LIKE '{prefix}%' AND {CLIENT}"
        self.most = 0

    async def count(self) -> int:
        """Ask once."""
        sql = f"SELECT count(*) FROM pg_stat_activity WHERE {self._where}"
        found = await asyncio.to_thread(self._server.execute, sql)
        return int(found.strip())

    async def watch(self) -> None:
        """Ask until cancelled; a server that is down has none."""
        while True:
            with contextlib.suppress(PostroomError):
                self.most = max(self.most, await self.count())
            await asyncio.sleep(0.05)


@pytest.mark.long
@pytest.mark.postgres
async def test_postgres_killed_reset_and_swallowed_keeps_ledger_and_budget(
    site: Site, postgres_server: PostgresServer
) -> None:
    """Every order ends in its own tenant's database once; never more backends than the budget; none at the end."""
    pytest.importorskip("asyncpg")
    from postroom.datasources.asyncpg import asyncpg_pool

    for tenant in TENANTS:
        postgres_server.create_database(f"faults-{tenant}", schema="CREATE TABLE orders (id text PRIMARY KEY)")
    backends = Backends(postgres_server, "faults-")
    try:
        async with TcpProxy(postgres_server.port) as proxy:

            def locate(tenant: Tenant) -> DataSource:
                dsn = postgres_server.dsn(f"faults-{tenant.tenant_id}")
                return DataSource(dsn.replace(f":{postgres_server.port}/", f":{proxy.port}/"))

            databases = ResourcePool(
                asyncpg_pool(locate, max_size=2, connect_timeout=1.0, close_timeout=1.0),
                weight=2,
                limits=PoolLimits(budget=6, sweep=0.5, patience=0.2),
                timeouts=PoolTimeouts(lease=2.0, open=1.5, close=2.0, check=0.5),
                backoff=OpenBackoff(base=0.1, cap=0.5, permanent=0.5),
            )
            orders = consumer(site, resources=databases)

            @orders.handler
            async def record(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
                async with asyncio.timeout(2):
                    await ctx.resources.execute("INSERT INTO orders VALUES ($1) ON CONFLICT DO NOTHING", order.order_id)

            watching = asyncio.create_task(backends.watch(), name="watch")
            async with databases, orders:
                producing = asyncio.create_task(site.produce(8), name="produce")
                await asyncio.sleep(1)
                proxy.reset()
                await asyncio.sleep(0.5)
                proxy.mode = Mode.BLACK_HOLE
                await asyncio.sleep(1.5)
                proxy.mode = Mode.PASS
                proxy.reset()
                await asyncio.sleep(1)
                postgres_server.kill()
                await asyncio.sleep(0.5)
                await asyncio.to_thread(postgres_server.restart)
                proxy.target = postgres_server.port
                await producing
                await site.empty()
            watching.cancel()
            await asyncio.wait([watching])
            async with asyncio.timeout(5):
                while await backends.count():
                    await asyncio.sleep(0.05)
        assert 0 < backends.most <= 6
        for tenant in TENANTS:
            rows = postgres_server.execute("SELECT id FROM orders", database=f"faults-{tenant}").split()
            assert sorted(rows) == sorted(order for owner, order in site.sent if owner == tenant)
    finally:
        for tenant in TENANTS:
            postgres_server.drop_database(f"faults-{tenant}")
