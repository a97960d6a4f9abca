"""A worker process for the tests of the outbox: writes orders with their messages, and relays what was committed.

Configured by the environment: ENDPOINT, DIRECTORY, NAME, STORAGE (``sqlite``, ``asyncpg``, ``psycopg``,
``sqlalchemy``), DSN, and WRITE: 0 relays only.
"""

import asyncio
import os
from pathlib import Path
from random import Random
from typing import Any

from postroom import AwsClient, OutgoingMessage, Sender, datasources
from postroom.outbox import SQLITE_OUTBOX, Outbox, OutboxRelay, postgres_outbox
from postroom.transactions import MessageKey

STORAGE = os.environ["STORAGE"]
NAME = os.environ["NAME"]
SCHEMA = "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY);"


def databases() -> tuple[datasources.Provider[str, Any], Outbox]:
    """Return what opens the one database, and its outbox."""
    if STORAGE == "sqlite":
        path = Path(os.environ["DIRECTORY"], "a.sqlite3")
        return datasources.sqlite_database(
            lambda _: path, create=True, schema=SCHEMA + SQLITE_OUTBOX.schema
        ), SQLITE_OUTBOX
    dsn = os.environ["DSN"]
    provider: datasources.Provider[str, Any]
    if STORAGE == "asyncpg":
        provider = datasources.asyncpg_inbox(datasources.asyncpg_pool(lambda _: dsn), create=True)
    elif STORAGE == "psycopg":
        provider = datasources.psycopg_inbox(datasources.psycopg_pool(lambda _: dsn), create=True)
    else:
        provider = datasources.sqlalchemy_inbox(
            datasources.sqlalchemy_engine(lambda _: dsn.replace("sql", "sql+asyncpg", 1)), create=True
        )
    return provider, postgres_outbox()


async def insert(tx: Any, order: str) -> None:
    """Insert an order with whatever driver it is."""
    sql = "INSERT INTO orders VALUES ({})"
    if STORAGE == "sqlite":
        await tx.execute(sql.format("?"), (order,))
    elif STORAGE == "asyncpg":
        await tx.execute(sql.format("$1"), order)
    elif STORAGE == "psycopg":
        await tx.execute(sql.format("%s"), (order,))
    else:
        from sqlalchemy import text

        await tx.execute(text(sql.format(":id")), {"id": order})


class Changed(Exception):
    """The order is withdrawn."""


async def write(relay: OutboxRelay[str], provider: datasources.Provider[str, Any], outbox: Outbox) -> None:
    """Write orders with two messages each, one of them in order; withdraw one in five."""
    rng = Random(NAME)
    async with provider("a") as database:
        for number in range(1_000_000):
            order = f"{NAME}:{number}"
            try:
                async with database.transaction_for(MessageKey("q", order)) as tx:
                    await insert(tx, order)
                    await outbox.add(tx, "events", OutgoingMessage(body=order))
                    await outbox.add(tx, "events.fifo", OutgoingMessage(body=order, group_id=NAME))
                    if number % 5 == 4:
                        raise Changed
            except Changed:
                pass
            else:
                relay.wake("a")
            await asyncio.sleep(rng.choice((0.0, 0.002, 0.02)))


async def main() -> None:
    """Relay, and write if it is asked for."""
    provider, outbox = databases()
    client = AwsClient(region="us-east-1", endpoint_url=os.environ["ENDPOINT"])
    relay = OutboxRelay(
        provider, tenants=["a"], outbox=outbox, interval=0.1, client=client, senders=[Sender("events", client=client)]
    )
    async with relay:
        if os.environ["WRITE"] == "1":
            await write(relay, provider, outbox)
        while await relay.drain():
            pass


if __name__ == "__main__":
    asyncio.run(main())
