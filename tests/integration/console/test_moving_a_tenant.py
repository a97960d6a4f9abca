"""A tenant is moved between two real PostgreSQL servers, under load, by the command; and interrupted at every step."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from postroom import Concurrency, Consumer, Fleet, MessageContext, Polling, TenantState
from postroom.console import ConsoleServer, allow_token
from postroom.datasources import asyncpg_pool
from postroom.local import LocalBroker
from postroom.local.shapes import AttributeValue, Send
from postroom.testing.postgres import PostgresServer
from postroom.testing.valkey import ValkeyServer
from postroom.transports.memory import MemoryClient
from support.shop import tenant_of
from support.valkey import valkey_server

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(120)]

TOKEN = "correct horse battery"
SWITCH = """
import asyncio, asyncpg, sys

async def main(old, new, registry, target):
    if target == new:  # copied as a whole, so that it may be run again
        source, copy = await asyncpg.connect(old), await asyncpg.connect(new)
        rows = await source.fetch("SELECT order_id FROM orders")
        async with copy.transaction():
            await copy.execute("TRUNCATE orders")
            await copy.executemany("INSERT INTO orders VALUES ($1)", rows)
        await source.close(), await copy.close()
    open(registry, "w").write(target)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def second_server() -> Iterator[PostgresServer]:
    """Another server, to which the tenant moves."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def store() -> Iterator[ValkeyServer]:
    """Run a Valkey in which the replicas meet."""
    yield from valkey_server()


class Site:
    """Two processes' worth of consumers, each with its console, and a load that does not stop."""

    def __init__(self, broker: LocalBroker, old: str, new: str, directory: Path, store: ValkeyServer | None) -> None:
        self.broker = broker
        self.store = store
        self.dsns = {"old": old, "new": new}
        self.registry = directory / "registry"
        self.registry.write_text(old)
        self.script = directory / "switch.py"
        self.script.write_text(SWITCH)
        self.sent = 0
        self.urls: list[str] = []
        self.consumers: list[Consumer[str, Any]] = []

    def _dsn(self, _tenant: str) -> str:
        return self.registry.read_text()

    def consumer(self) -> Consumer[str, Any]:
        """Make a consumer that writes each order into the database that the registry names."""
        orders: Consumer[str, Any] = Consumer(
            "orders",
            context=tenant_of,
            resources=asyncpg_pool(self._dsn, max_size=4),
            client=MemoryClient(self.broker),
            concurrency=Concurrency(total=8, per_tenant=4),
            polling=Polling(wait=1.0, scout=False),
            fleet=None if self.store is None else Fleet(self.store.url, per_tenant=6, lease=3.0, tick=0.25),
        )

        @orders.handler
        async def handle(order: dict[str, str], ctx: MessageContext[str, Any]) -> None:
            async with ctx.resources.acquire() as connection:
                await connection.execute("INSERT INTO orders SELECT $1 FROM pg_sleep(0.02)", order["id"])

        return orders

    async def load(self) -> None:
        """Send orders until the end."""
        while True:
            self.send()
            await asyncio.sleep(0.01)

    def send(self) -> None:
        """Send one order."""
        named = {"tenantId": AttributeValue(string_value="acme", data_type="String")}
        body = msgspec.json.encode({"id": str(self.sent)}).decode()
        self.broker.send("orders", Send(message_body=body, message_attributes=named))
        self.sent += 1

    async def move(
        self,
        target: str,
        *,
        stop: str | None = None,
        by: int | Callable[[], None] = signal.SIGINT,
        drain: float = 60,
        go_on: bool = False,
    ) -> tuple[int, str]:
        """Run the command; at a step, send it a signal, or call a function. Returns its exit code and what it said."""
        command = f"{sys.executable} {self.script} {self.dsns['old']} {self.dsns['new']} {self.registry}"
        other = "old" if target == "new" else "new"
        place = self.dsns[target].rpartition("@")[2]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "postroom", "tenant", "move", "acme", "--reason", "disk is full", "--to", place,
            "--drain", str(drain), *(["--go-on"] if go_on else []),
            "--switch", f"{command} {self.dsns[target]}", "--back", f"{command} {self.dsns[other]}",
            *(word for url in self.urls for word in ("--url", url)),
            env={**os.environ, "POSTROOM_CONSOLE_TOKEN": TOKEN}, stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stderr is not None
        said: list[str] = []
        async for line in process.stderr:
            said.append(line.decode())
            if stop is not None and said[-1].split()[1:2] == [stop]:
                stop = None
                if callable(by):
                    by()
                else:
                    process.send_signal(by)
        return await process.wait(), "".join(said)

    async def rows(self, name: str) -> Counter[str]:
        """Return how often each order is in a database."""
        connection = await asyncpg.connect(self.dsns[name])
        try:
            return Counter(row[0] for row in await connection.fetch("SELECT order_id FROM orders"))
        finally:
            await connection.close()

    async def settle(self) -> None:
        """Wait until every order was handled."""
        async with asyncio.timeout(60):
            while sum(int(self.broker.attributes("orders")[name]) for name in _COUNTS):
                await asyncio.sleep(0.05)

    def states(self) -> set[TenantState]:
        """Return the states of the tenant."""
        return {consumer.tenants["acme"].state for consumer in self.consumers}


_COUNTS = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")


@asynccontextmanager
async def site(
    first: PostgresServer,
    second: PostgresServer,
    database: str,
    directory: Path,
    store: ValkeyServer | None = None,
) -> AsyncIterator[tuple[Site, asyncio.Task[None]]]:
    """Run two consumers with their consoles; as one fleet, where one console is enough, if there is a store."""
    second.drop_database(database)  # another test's, of the same name
    second.create_database(database)
    for server in (first, second):
        server.execute("CREATE TABLE orders (order_id text)", database=database)
    async with LocalBroker() as broker, AsyncExitStack() as stack:
        broker.create_queue("orders")
        made = Site(broker, first.dsn(database), second.dsn(database), directory, store)
        for _ in range(2):
            consumer = await stack.enter_async_context(made.consumer())
            made.consumers.append(consumer)
            if store is None or not made.urls:
                console = ConsoleServer(consumer, port=0, allow=allow_token(TOKEN))
                made.urls.append((await stack.enter_async_context(console)).url)
        load = asyncio.create_task(made.load())
        stack.callback(load.cancel)
        async with asyncio.timeout(20):
            while sum((await made.rows("old")).values()) < 10:
                await asyncio.sleep(0.05)
        yield made, load


async def test_a_tenant_moves_between_two_servers_under_load(
    postgres_server: PostgresServer, second_server: PostgresServer, database: str, tmp_path: Path
) -> None:
    """No order is lost, none is there twice, and all of them are in the new database, where one was tried first."""
    async with site(postgres_server, second_server, database, tmp_path) as (made, load):
        code, said = await made.move("new")
        assert code == 0, said
        load.cancel()
        await made.settle()
        assert await made.rows("new") == Counter(map(str, range(made.sent)))
        assert made.states() == {TenantState.ACTIVE}
        assert sum((await made.rows("old")).values()) < made.sent


async def both_worked(made: Site, orders: int = 1) -> None:
    """Wait until each of the consumers has handled so many orders."""
    async with asyncio.timeout(20):
        while min(consumer.statistics().succeeded for consumer in made.consumers) < orders:
            await asyncio.sleep(0.05)


async def test_a_tenant_moves_over_a_fleet_by_one_of_its_consoles(
    postgres_server: PostgresServer, second_server: PostgresServer, store: ValkeyServer, database: str, tmp_path: Path
) -> None:
    """Both replicas drain, close and go on with the new database, of which only one was told; no order is lost."""
    async with site(postgres_server, second_server, database, tmp_path, store) as (made, load):
        await both_worked(made)
        code, said = await made.move("new")
        assert code == 0, said
        before = [consumer.statistics().succeeded for consumer in made.consumers]
        async with asyncio.timeout(20):
            while any(
                consumer.statistics().succeeded == was for consumer, was in zip(made.consumers, before, strict=True)
            ):
                await asyncio.sleep(0.05)
        load.cancel()
        await made.settle()
        assert await made.rows("new") == Counter(map(str, range(made.sent)))
        assert made.states() == {TenantState.ACTIVE}
        assert sum((await made.rows("old")).values()) < made.sent


@pytest.mark.long
@pytest.mark.parametrize("step", ["drain", "switch"])
async def test_a_move_without_the_store_goes_back(
    step: str,
    postgres_server: PostgresServer,
    second_server: PostgresServer,
    store: ValkeyServer,
    tmp_path: Path,
) -> None:
    """It is not moved half: it runs as before, or stays paused and says so; with the store back it can be moved."""
    name = postgres_server.create_database(f"without-a-store-{step}").rpartition("/")[2]
    async with site(postgres_server, second_server, name, tmp_path, store) as (made, load):
        await both_worked(made)
        code, said = await made.move("new", stop=step, by=store.kill, drain=4.0)
        assert code == 1, said
        assert made.registry.read_text() == made.dsns["old"]
        assert ("It runs as before" if step == "drain" else "it is still PAUSED") in said
        store.restart()
        async with asyncio.timeout(20):
            while made.states() != {TenantState.ACTIVE if step == "drain" else TenantState.PAUSED}:
                await asyncio.sleep(0.05)
        code, said = await made.move("new", go_on=step == "switch")
        assert code == 0, said
        load.cancel()
        await made.settle()
        assert await made.rows("new") == Counter(map(str, range(made.sent)))
        assert made.states() == {TenantState.ACTIVE}


@pytest.mark.long
@pytest.mark.parametrize("step", ["drain", "switch", "probe"])
async def test_an_interrupted_move_leaves_no_order_behind(
    step: str, postgres_server: PostgresServer, second_server: PostgresServer, database: str, tmp_path: Path
) -> None:
    """Ctrl-C goes back, or forward after the probe; a kill -9 leaves a pause that says so, and the next run goes on."""
    async with site(postgres_server, second_server, database, tmp_path) as (made, load):
        code, said = await made.move("new", stop=step)
        assert code == 3, said
        assert made.states() == {TenantState.ACTIVE}
        moved = made.registry.read_text() == made.dsns["new"]
        assert not moved or step == "probe"
        assert f"to {made.dsns['new'].rpartition('@')[2]}" in said if moved else "It runs as before" in said
        if not moved:
            code, said = await made.move("new", stop=step, by=signal.SIGKILL)
            assert code == -signal.SIGKILL
            if step != "probe":  # a probe that was ordered goes on in its consumer, and pauses the tenant again
                assert made.states() == {TenantState.PAUSED}
            assert "being moved: disk is full" in (made.consumers[0].tenants["acme"].reason or "")
            code, said = await made.move("new", go_on=True)
            assert code == 0, said
        load.cancel()
        await made.settle()
        assert await made.rows("new") == Counter(map(str, range(made.sent)))
        assert made.states() == {TenantState.ACTIVE}
