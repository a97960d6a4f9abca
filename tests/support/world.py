"""A small world for consumer tests: a real local broker in process, and tenants' resources that keep a diary."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from postroom.local import LocalBroker
from postroom.local.shapes import AttributeValue, Send
from postroom.testing.loop import run_virtual
from postroom.transports.memory import MemoryClient
from support.virtual import in_scene

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Tenant:
    """The context of the tests."""

    tenant_id: str
    region: str = "eu-west-1"


@dataclass(frozen=True)
class Order:
    """The payload of the tests."""

    order_id: str
    seconds: float = 0.0


@dataclass
class Database:
    """A tenant's resource: knows its tenant, whether it is open, and what was written to it."""

    tenant: Tenant
    open: bool = True
    rows: list[str] = field(default_factory=list)

    def write(self, row: str) -> None:
        """Write a row. A closed database does not take it."""
        assert self.open, "written to after it was closed"
        self.rows.append(row)


class Databases:
    """A provider of databases that counts opens and closes, and fails or hangs as told."""

    def __init__(self) -> None:
        self.made: list[Database] = []
        self.diary: list[str] = []
        self.failures: dict[str, Callable[[], Exception]] = {}
        self.hanging: set[str] = set()
        self.seconds = 0.0
        self.opening = 0
        self.most_opening = 0

    @asynccontextmanager
    async def __call__(self, tenant: Tenant) -> AsyncIterator[Database]:
        """Open a tenant's database for the time of the block."""
        self.opening += 1
        self.most_opening = max(self.most_opening, self.opening)
        try:
            if tenant.tenant_id in self.hanging:
                await asyncio.Event().wait()
            await asyncio.sleep(self.seconds)
            if tenant.tenant_id in self.failures:
                failure = self.failures[tenant.tenant_id]
                raise failure()
        finally:
            self.opening -= 1
        database = Database(tenant)
        self.made.append(database)
        self.diary.append(f"open {tenant.tenant_id}")
        try:
            yield database
        finally:
            database.open = False
            self.diary.append(f"close {tenant.tenant_id}")

    def rows(self, tenant: str) -> list[str]:
        """Return every row of a tenant, over all databases that were opened for it."""
        return [row for database in self.made if database.tenant.tenant_id == tenant for row in database.rows]


class World:
    """The broker, a client for it, and a shorthand for sending."""

    def __init__(self, broker: LocalBroker) -> None:
        self.broker = broker
        self.client = MemoryClient(broker)

    def create(
        self, name: str = "orders", *, dead_letters: str | None = None, receives: int = 3, **attributes: str
    ) -> None:
        """Create a queue, with a dead-letter queue after so many receives if one is named."""
        if dead_letters is not None:
            arn = self.broker.create_queue(dead_letters).arn
            policy = {"deadLetterTargetArn": arn, "maxReceiveCount": str(receives)}
            attributes["RedrivePolicy"] = msgspec.json.encode(policy).decode()
        self.broker.create_queue(name, attributes)

    def send(
        self, body: object, *, tenant: str | None = "a", queue: str = "orders", group: str | None = None, **more: str
    ) -> str:
        """Send a message of a tenant, and return its id. A body that is not text is sent as JSON."""
        text = body if isinstance(body, str) else msgspec.json.encode(body).decode()
        named = {} if tenant is None else {"tenantId": tenant, "region": "eu-west-1"}
        attributes = {
            name: AttributeValue(string_value=value, data_type="String") for name, value in {**named, **more}.items()
        }
        request = Send(message_body=text, message_attributes=attributes, message_group_id=group)
        return self.broker.send(queue, request).message_id

    def send_orders(self, *order_ids: str, tenant: str = "a", seconds: float = 0.0, group: str | None = None) -> None:
        """Send orders of a tenant with handlers that take some seconds."""
        for order_id in order_ids:
            self.send({"order_id": order_id, "seconds": seconds}, tenant=tenant, group=group)

    def counts(self, queue: str = "orders") -> tuple[int, int]:
        """Return how many messages are visible and how many are in flight."""
        said = self.broker.attributes(queue)
        return int(said["ApproximateNumberOfMessages"]), int(said["ApproximateNumberOfMessagesNotVisible"])


@asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    """Make a world, for the time of the block."""
    async with LocalBroker(seed=1, epoch=1_800_000_000.0) as broker:
        yield World(broker)


def in_world(scenario: Callable[[World], Coroutine[Any, Any, T]], *, seed: int | None = None) -> T:
    """Run a scenario in a world of its own, in virtual time, and return what it returns."""

    async def main() -> T:
        async with a_world() as world:
            return await scenario(world)

    return run_virtual(main(), seed=seed)


def with_world(test: Callable[Concatenate[World, P], Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in a world of its own, in virtual time: its first argument."""
    return in_scene(a_world)(test)
