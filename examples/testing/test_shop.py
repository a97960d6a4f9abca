"""Tests of the shop, from the quickest kind to the most real one."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random

import boto3
import pytest
from examples.testing.shop import Ledger, Ledgers, OrderPlaced, Tenant, make_orders, place, sqlite_ledgers

from postroom import Consumer, Reject, Settlement
from postroom.datasources import tenant_file
from postroom.local import LocalBroker
from postroom.local.threaded import ThreadedServer
from postroom.sending import send
from postroom.testing import assert_no_leaks, context, deliver, run_virtual
from postroom.testing.faults import ClientFaults, FaultyClient
from postroom.transports.memory import MemoryClient

ACME = Tenant("acme")
ORDER = OrderPlaced("order-1", 250)


class FakeLedger:
    """A ledger in memory. It is down for as long as a test says."""

    def __init__(self) -> None:
        self.orders: dict[str, int] = {}
        self.down = False
        self.opened: list[float] = []

    async def add(self, order: OrderPlaced) -> None:
        """Add an order, once."""
        self.orders[order.order_id] = order.amount

    def ledgers(self) -> Ledgers:
        """Return this ledger as that of each tenant."""

        @asynccontextmanager
        async def open_ledger(_tenant: Tenant) -> AsyncGenerator[Ledger]:
            self.opened.append(asyncio.get_running_loop().time())
            if self.down:
                raise ConnectionRefusedError("the ledger does not listen")
            yield self

        return open_ledger


# 1. The handler is a function: call it.


def test_an_order_is_added() -> None:
    """``context(...)`` makes the handler's second argument."""
    ledger = FakeLedger()
    run_virtual(place(ORDER, context(ACME, ledger)))
    assert ledger.orders == {"order-1": 250}


def test_an_order_without_an_amount_is_rejected() -> None:
    """The handler says so with an exception."""
    with pytest.raises(Reject):
        run_virtual(place(OrderPlaced("order-1", 0), context(ACME, FakeLedger())))


# 2. One message through the whole path: what becomes of it?


def test_a_rejected_order_is_a_dead_letter_with_its_reason() -> None:
    """Resolver, decoder, lease, handler and settlement all take part."""
    orders = make_orders(FakeLedger().ledgers())
    found = run_virtual(deliver(orders, OrderPlaced("order-1", 0), context=ACME))
    assert (found.settlement, found.reason) == (Settlement.REJECTED, "an order needs an amount")


def test_a_body_of_the_wrong_shape_fails_before_the_handler() -> None:
    """A sender that forgot the amount. The message comes back after the first step of the backoff."""
    found = run_virtual(deliver(make_orders(FakeLedger().ledgers()), {"order_id": "1"}, context=ACME))
    assert (found.handled, found.delay) == (False, 60)
    assert "amount" in str(found.error)


def test_a_ledger_that_is_down_costs_no_attempt() -> None:
    """The message waits: neither handled nor failed."""
    ledger = FakeLedger()
    ledger.down = True
    found = run_virtual(deliver(make_orders(ledger.ledgers()), ORDER, context=ACME))
    assert (found.settlement, found.handled) == (Settlement.RETURNED, False)


def test_an_order_is_in_the_tenants_own_file(tmp_path: Path) -> None:
    """The real ledger, in real time: ``asyncio.run`` instead of ``run_virtual``."""
    found = asyncio.run(deliver(make_orders(sqlite_ledgers(tmp_path)), ORDER, context=ACME))
    assert found.settlement is Settlement.ACKED
    assert rows(tmp_path) == [("order-1", 250)]


# 3. Hours in milliseconds, and SQS at its worst.


def test_an_outage_of_an_hour_delays_orders_and_loses_none() -> None:
    """The consumer runs; the ledger is down for an hour of virtual time."""
    ledger = FakeLedger()

    async def an_hour_without_a_ledger() -> None:
        ledger.down = True
        async with LocalBroker() as broker, MemoryClient(broker) as client:
            broker.create_queue("orders")
            await send(await client.queue("orders"), ORDER, ACME)
            async with make_orders(ledger.ledgers(), client):
                await asyncio.sleep(3600)
                assert not ledger.orders
                ledger.down = False
                await asyncio.sleep(120)

    run_virtual(an_hour_without_a_ledger())
    assert ledger.orders == {"order-1": 250}
    assert len(ledger.opened) > 10, "it was tried again and again"


@pytest.mark.parametrize("seed", range(10))
def test_every_order_is_added_although_sqs_misbehaves(seed: int) -> None:
    """Throttled calls, lost answers and duplicates; each seed is another course of events, and repeats exactly."""
    ledger = FakeLedger()

    async def bad_day() -> None:
        faults = ClientFaults(throttled=0.2, lost=0.1, duplicated=0.2, reordered=0.5)
        async with LocalBroker(seed=seed) as broker, MemoryClient(broker) as client:
            broker.create_queue("orders")
            queue = await client.queue("orders")
            for number in range(25):
                await send(queue, OrderPlaced(f"order-{number}", 1), ACME)
            orders = make_orders(ledger.ledgers(), FaultyClient(client, Random(seed), faults))
            async with assert_no_leaks(orders), orders:
                await asyncio.sleep(600)

    run_virtual(bad_day(), seed=seed)
    assert len(ledger.orders) == 25


# 4. For real: SQS's protocol over HTTP, sent with boto3, and a file on disk.


def test_what_boto3_sends_is_added(sqs_server: ThreadedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer finds the server as it finds AWS: by the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", sqs_server.endpoint_url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    boto3.client("sqs", **sqs_server.client_options).send_message(
        QueueUrl=sqs_server.create_queue("orders"),
        MessageBody=json.dumps({"order_id": "order-1", "amount": 250}),
        MessageAttributes={"tenantId": {"DataType": "String", "StringValue": "acme"}},
    )
    asyncio.run(consume_one(make_orders(sqlite_ledgers(tmp_path))))
    assert rows(tmp_path) == [("order-1", 250)]
    assert sqs_server.counts("orders") == (0, 0, 0)


async def consume_one(orders: Consumer[Tenant, Ledger]) -> None:
    """Run a consumer until it has settled a message."""
    async with orders, asyncio.timeout(60):
        while not orders.statistics().settled:  # noqa: ASYNC110 - statistics are asked for
            await asyncio.sleep(0.01)


def rows(directory: Path) -> list[tuple[str, int]]:
    """Read the file of acme."""
    with closing(sqlite3.connect(tenant_file(directory, "acme"))) as connection:
        return connection.execute("SELECT order_id, amount FROM orders").fetchall()
