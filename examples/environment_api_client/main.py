"""One API client per environment. Run it with ``python -m examples.environment_api_client.main``.

The message says which environment it is for. Each environment has its own endpoint, token and number of connections.
Staging is down for the first seconds: its messages wait, and production does not notice.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from examples.running import run_example

from postroom import (
    Call,
    Concurrency,
    Consumer,
    Faults,
    MessageContext,
    OpenBackoff,
    PoolLimits,
    ResourcePool,
    RetryPolicy,
    UnknownTenant,
)
from postroom.local import LocalBroker
from postroom.sending import send
from postroom.transports.memory import MemoryClient


@dataclass(frozen=True)
class Environment:
    """The context: the environment that a message is for, from its attribute ``environment``."""

    environment: str


@dataclass(frozen=True)
class Shipment:
    """The payload."""

    order_id: str


@dataclass(frozen=True)
class Endpoint:
    """How to reach one environment."""

    url: str
    token: str
    connections: int = 4
    timeout: float = 5.0


class Api:
    """A typed client of one environment's API."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ping(self) -> None:
        """Raise if the API does not answer."""
        async with self._session.get("/health") as answer:
            answer.raise_for_status()

    async def ship(self, order_id: str) -> str:
        """Announce a shipment and return its tracking number."""
        async with self._session.post("/shipments", json={"order_id": order_id}) as answer:
            answer.raise_for_status()
            return str((await answer.json())["tracking"])


def clients(endpoints: dict[str, Endpoint]) -> ResourcePool[Environment, Api]:
    """Return a pool with one client per environment. It opens with the first message and closes at the end."""

    @asynccontextmanager
    async def client(context: Environment) -> AsyncGenerator[Api]:
        endpoint = endpoints.get(context.environment)
        if endpoint is None:
            raise UnknownTenant(context.environment)
        async with aiohttp.ClientSession(
            endpoint.url,
            headers={"Authorization": f"Bearer {endpoint.token}"},
            timeout=aiohttp.ClientTimeout(total=endpoint.timeout),
            connector=aiohttp.TCPConnector(limit=endpoint.connections),
        ) as session:
            api = Api(session)
            await api.ping()  # a client that cannot reach its API is not open: its messages wait, no attempt is lost
            yield api

    return ResourcePool(
        client,
        weight=lambda context: endpoints[context.environment].connections if context.environment in endpoints else 1,
        check=Api.ping,
        limits=PoolLimits(budget=50, check_after=30),
        backoff=OpenBackoff(base=0.2, cap=5),
    )


def retries(call: Call) -> RetryPolicy:
    """Try production more often, and sooner, than the rest."""
    return RetryPolicy(attempts=10, base=0.2, cap=30) if call.tenant == Environment("production") else RetryPolicy()


def consumer(pool: ResourcePool[Environment, Api], client: MemoryClient) -> Consumer[Environment, Api]:
    """Return the consumer: a breaker pauses an environment when all of its calls fail."""
    shipments = Consumer(
        "shipments",
        context=Environment,
        resources=pool,
        retry=retries,
        faults=Faults(breaker_after=5, base=1, cap=30),
        concurrency=Concurrency(total=16, per_tenant=4, handler_timeout=30),
        client=client,
    )

    @shipments.handler
    async def ship(shipment: Shipment, ctx: MessageContext[Environment, Api]) -> None:
        tracking = await ctx.resources.ship(shipment.order_id)
        print(f"{ctx.context.environment}: {shipment.order_id} has tracking number {tracking}")

    return shipments


class FakeApi:
    """A small API server for the example: it can be down."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.down = False
        self.shipped: list[str] = []
        app = web.Application()
        app.add_routes([web.get("/health", self._health), web.post("/shipments", self._ship)])
        self._runner = web.AppRunner(app)

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[str]:
        """Serve on a free port, and yield the address."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        finally:
            await self._runner.cleanup()

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(status=503 if self.down else 200)

    async def _ship(self, request: web.Request) -> web.Response:
        if self.down or request.headers["Authorization"] != f"Bearer {self.name}-token":
            return web.Response(status=503 if self.down else 401)
        order_id = (await request.json())["order_id"]
        self.shipped.append(order_id)
        return web.json_response({"tracking": f"{self.name}-{order_id}"})


async def main() -> None:
    """Ship three orders in each environment, while staging is down at first."""
    production, staging = FakeApi("production"), FakeApi("staging")
    staging.down = True
    async with production.serve() as first, staging.serve() as second, LocalBroker() as broker:
        endpoints = {
            "production": Endpoint(first, "production-token", connections=8),
            "staging": Endpoint(second, "staging-token", connections=2),
        }
        async with MemoryClient(broker) as client:
            broker.create_queue("shipments")
            queue = await client.queue("shipments")
            for environment in endpoints:
                for number in (1, 2, 3):
                    await send(queue, Shipment(f"order-{number}"), Environment(environment))
            pool = clients(endpoints)
            async with pool, consumer(pool, client) as shipments:
                while shipments.statistics().succeeded < 3 or not shipments.statistics().outages:  # noqa: ASYNC110 - an example waits for what it shows
                    await asyncio.sleep(0.05)
                print(f"staging is down: {len(staging.shipped)} shipped, its messages wait")
                staging.down = False
                while len(staging.shipped) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)


if __name__ == "__main__":
    run_example(main)
