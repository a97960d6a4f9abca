"""A worker process for the tests: one consumer, a database per tenant, and a diary of what happened.

Configured by the environment: ENDPOINT, QUEUE, DIRECTORY, VISIBILITY, TOTAL, DRAIN, and STORAGE: ``plain`` for SQLite
files without an inbox, ``sqlite`` for files with one, else a driver of PostgreSQL with an inbox, which needs DSN. Those
with ``sync`` in their names have a plain ``def`` handler. With BUDGET the resources are in a pool of that budget. With
QUIET there is no diary of what went well; instead, every now and then, the file ``memory`` says how many blocks of
memory Python has given out, and how many bytes the C library.
"""

import asyncio
import contextlib
import ctypes
import gc
import itertools
import os
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postroom import (
    AlreadyHandled,
    AwsClient,
    Concurrency,
    Consumer,
    MessageContext,
    Shutdown,
    Visibility,
    run,
)
from postroom import datasources as ds
from postroom.datasources import Provider
from postroom.events import Event, HandlerFinished
from postroom.options import PoolLimits

DIRECTORY = Path(os.environ["DIRECTORY"])
STORAGE = os.environ.get("STORAGE", "plain")
SCHEMA = "CREATE TABLE IF NOT EXISTS orders (order_id TEXT)"
TOTAL = int(os.environ.get("TOTAL", "10"))
QUIET = "QUIET" in os.environ
_orders = itertools.count()


@dataclass(frozen=True)
class Tenant:
    """The tenant of a message."""

    tenant_id: str


@dataclass(frozen=True)
class Order:
    """What happened, and how long it takes to handle."""

    order_id: str
    seconds: float = 0.0


def note(line: str) -> None:
    """Append a line to the diary, at once and whole, so that a killed process leaves no half lines."""
    if QUIET:
        return
    descriptor = os.open(DIRECTORY / "diary", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def note_memory() -> None:
    """Write down how much memory is in use, for one order in five hundred."""
    if QUIET and next(_orders) % 500 == 0:
        gc.collect()
        said = DIRECTORY / "memory.new"
        said.write_text(f"{sys.getallocatedblocks()} {malloc_in_use()}")
        said.rename(DIRECTORY / "memory")


class _Mallinfo2(ctypes.Structure):
    """What ``mallinfo2`` of glibc returns; see mallinfo(3)."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names.split())


def malloc_in_use() -> int:
    """Return the bytes that the C library has given out, its own mappings included; 0 where it does not say."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


def note_duplicates(event: Event) -> None:
    """Write down which messages were found handled before."""
    if isinstance(event, HandlerFinished) and isinstance(event.error, AlreadyHandled):
        note(f"duplicate {event.message.id}")


@asynccontextmanager
async def plain_file(tenant: Tenant) -> AsyncGenerator[sqlite3.Connection]:
    """Open the tenant's own file, without an inbox."""
    with contextlib.closing(sqlite3.connect(DIRECTORY / f"{tenant.tenant_id}.db", timeout=30)) as connection:
        connection.execute(SCHEMA)
        note(f"open {tenant.tenant_id}")
        try:
            yield connection
        finally:
            note(f"close {tenant.tenant_id}")


async def without_inbox(order: Order, ctx: MessageContext[Tenant, sqlite3.Connection]) -> None:
    """Write the order to the tenant's database."""
    note(f"start {order.order_id}")
    await asyncio.sleep(order.seconds)
    with ctx.resources:
        ctx.resources.execute("INSERT INTO orders VALUES (?)", (order.order_id,))
    note(f"done {order.order_id}")


def insert(tx: Any, order_id: str) -> Any:
    """Insert an order in the words of the driver. What is returned is to be awaited where the driver does not block."""
    if STORAGE == "asyncpg":
        return tx.execute("INSERT INTO orders VALUES ($1)", order_id)
    if STORAGE.startswith("psycopg"):
        return tx.execute("INSERT INTO orders VALUES (%s)", (order_id,))
    if STORAGE.startswith("sqlalchemy"):
        from sqlalchemy import text

        return tx.execute(text("INSERT INTO orders VALUES (:id)"), {"id": order_id})
    return tx.execute("INSERT INTO orders VALUES (?)", (order_id,))


async def with_inbox(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
    """Write the order in the inbox's transaction, and dawdle before and after its commit."""
    async with ctx.transaction() as tx:
        await insert(tx, order.order_id)
        await asyncio.sleep(order.seconds)
    note(f"done {order.order_id}")
    note_memory()
    await asyncio.sleep(order.seconds)


def with_inbox_in_a_thread(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
    """Do the same as a plain handler."""
    with ctx.transaction() as tx:
        insert(tx, order.order_id)
        time.sleep(order.seconds)
    note(f"done {order.order_id}")
    time.sleep(order.seconds)


def on_postgres() -> Provider[Tenant, Any]:
    """Return what opens a tenant's database on the server, with the driver that STORAGE names."""
    size = int(os.environ.get("CONNECTIONS", "5"))

    def locate(tenant: Tenant) -> str:
        return f"{os.environ['DSN']}-{tenant.tenant_id}"

    match STORAGE:
        case "psycopg":
            return ds.psycopg_inbox(ds.psycopg_pool(locate, max_size=size))
        case "sqlalchemy":
            return ds.sqlalchemy_inbox(ds.sqlalchemy_engine(locate, max_size=size))
        case "sqlalchemy-session":
            from sqlalchemy.ext.asyncio import AsyncSession

            return ds.sqlalchemy_inbox(ds.sqlalchemy_engine(locate, max_size=size), session=AsyncSession)
        case "psycopg-sync":
            return ds.psycopg_sync_inbox(ds.psycopg_sync_pool(locate, max_size=size))
        case "sqlalchemy-sync":
            from sqlalchemy.orm import Session

            return ds.sqlalchemy_sync_inbox(ds.sqlalchemy_sync_engine(locate, max_size=size), session=Session)
        case _:
            return ds.asyncpg_inbox(ds.asyncpg_pool(locate, max_size=size))


def resources() -> Any:
    """Return what opens a tenant's database; with BUDGET, a pool of those, which counts their connections."""
    if STORAGE == "plain":
        return plain_file
    found: Provider[Tenant, Any]
    if STORAGE.startswith("sqlite"):
        found = ds.sqlite_database(
            lambda tenant: ds.tenant_file(DIRECTORY, tenant.tenant_id), create=True, schema=SCHEMA
        )
    else:
        found = on_postgres()
    budget = os.environ.get("BUDGET")
    return found if budget is None else found.pool(limits=PoolLimits(budget=int(budget)))


consumer: Consumer[Tenant, Any] = Consumer(
    os.environ.get("QUEUE", "orders"),
    context=Tenant,
    resources=resources(),
    concurrency=Concurrency(total=TOTAL, per_tenant=int(os.environ.get("PER_TENANT", str(TOTAL)))),
    visibility=Visibility(timeout=float(os.environ.get("VISIBILITY", "30"))),
    shutdown=Shutdown(drain=float(os.environ.get("DRAIN", "30"))),
    observers=[] if STORAGE == "plain" or QUIET else [note_duplicates],
    client=AwsClient(region="us-east-1", endpoint_url=os.environ["ENDPOINT"]),
)
if STORAGE.endswith("-sync"):
    consumer.handler(with_inbox_in_a_thread)
else:
    consumer.handler(without_inbox if STORAGE == "plain" else with_inbox)

if __name__ == "__main__":
    run(consumer)
