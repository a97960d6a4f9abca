"""Configuration per customer. Run it with ``python -m examples.customer_config.main``.

The leased resource is the customer's configuration: a snapshot that is read once, kept for a minute, and read again
after that. Its tier decides how many messages a minute are started, how many run at once, and the customer's weight
against the others.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from examples.running import run_example

from postroom import Concurrency, Consumer, MessageContext, PoolLimits, ResourcePool, UnknownTenant
from postroom.local import LocalBroker
from postroom.sending import send
from postroom.transports.memory import MemoryClient


@dataclass(frozen=True)
class Customer:
    """The context: the customer that a message belongs to, from its attribute ``customerId``."""

    customer_id: str


@dataclass(frozen=True)
class Report:
    """The payload: a report that a customer asked for."""

    report_id: str


@dataclass(frozen=True)
class Tier:
    """What a customer pays for."""

    per_minute: int
    concurrency: int
    weight: float


TIERS = {
    "premium": Tier(per_minute=1_000, concurrency=8, weight=4.0),
    "standard": Tier(per_minute=100, concurrency=4, weight=2.0),
    "trial": Tier(per_minute=10, concurrency=1, weight=1.0),
}


@dataclass(frozen=True)
class Configuration:
    """The resource: what applies to one customer."""

    tier: str
    features: frozenset[str] = frozenset()


class ConfigurationService:
    """Where configurations come from. A real one asks a database, or a service over HTTP."""

    def __init__(self, configurations: dict[str, Configuration]) -> None:
        self.configurations = configurations
        self.reads = Counter[str]()

    async def read(self, customer_id: str) -> Configuration:
        """Return a customer's configuration of this moment."""
        self.reads[customer_id] += 1
        if customer_id not in self.configurations:
            raise UnknownTenant(customer_id)
        return self.configurations[customer_id]

    def tier_of(self, customer: Customer) -> Tier:
        """Return a customer's tier, as it is known in this process."""
        known = self.configurations.get(customer.customer_id)
        return TIERS["trial" if known is None else known.tier]


def snapshots(service: ConfigurationService) -> ResourcePool[Customer, Configuration]:
    """Return a pool of configurations. They count nothing against databases: it is a pool of its own."""

    @asynccontextmanager
    async def snapshot(customer: Customer) -> AsyncGenerator[Configuration]:
        yield await service.read(customer.customer_id)

    limits = PoolLimits(budget=10_000, idle=300, max_age=60)  # a change is in force within a minute
    return ResourcePool(snapshot, weight=1, limits=limits)


def consumer(
    service: ConfigurationService, pool: ResourcePool[Customer, Configuration], client: MemoryClient
) -> Consumer[Customer, Configuration]:
    """Return the consumer, with the limits of each customer's tier."""
    reports = Consumer(
        "reports",
        context=Customer,
        resources=pool,
        concurrency=Concurrency(
            total=16,
            overrides=lambda customer: service.tier_of(customer).concurrency,
            weights=lambda customer: service.tier_of(customer).weight,
        ),
        client=client,
    )
    for customer_id in service.configurations:
        customer = Customer(customer_id)
        reports.tenants.limit(customer, rate=service.tier_of(customer).per_minute / 60)

    @reports.handler
    async def render(report: Report, ctx: MessageContext[Customer, Configuration]) -> None:
        style = "with charts" if "charts" in ctx.resources.features else "plain"
        print(f"{ctx.context.customer_id} ({ctx.resources.tier}): {report.report_id}, {style}")

    return reports


async def main() -> None:
    """Render four reports for each of three customers."""
    service = ConfigurationService(
        {
            "acme": Configuration("premium", frozenset({"charts"})),
            "globex": Configuration("standard"),
            "initech": Configuration("trial"),
        }
    )
    async with LocalBroker() as broker, MemoryClient(broker) as client:
        broker.create_queue("reports")
        queue = await client.queue("reports")
        for customer_id in service.configurations:
            for number in (1, 2, 3, 4):
                await send(queue, Report(f"report-{number}"), Customer(customer_id))
        pool = snapshots(service)
        async with pool, consumer(service, pool, client) as reports:
            while reports.statistics().succeeded < 9:  # noqa: ASYNC110 - an example waits for what it shows
                await asyncio.sleep(0.05)
            print("initech waits: 10 a minute are one every 6 seconds")
            while reports.statistics().succeeded < 10:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            status = reports.tenants[Customer("initech")]
            print(f"initech may start {status.rate * 60 if status.rate else 0:g} a minute; {status.waiting} wait")
        print(f"configurations read: {dict(service.reads)}")


if __name__ == "__main__":
    run_example(main)
