"""What the log says of a relay that cannot work: its beginning, another cause, its end. Never a line for each try."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from postroom import AccessDenied, InvalidRequest, OutgoingMessage, QueueNotFound, Sender, TransportError
from postroom.local import LocalBroker
from postroom.outbox.rounds import Counters, Pauses, Queues, Rounds
from postroom.outbox.run import Run
from postroom.outbox.stores import NoOutbox
from postroom.resources import ResourcePool
from postroom.testing.loop import run_virtual
from postroom.transports.memory import MemoryClient, MemoryQueue
from postroom.transports.protocol import EntryFailure, SendResult
from support.virtual import in_virtual_time


@asynccontextmanager
async def database(tenant: str) -> AsyncGenerator[str]:
    """Open a database that never fails."""
    yield tenant


class Looks:
    """Rounds that find nothing, or raise what they are told to."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.trouble: Exception | None = None
        self.of: str | None = None

    async def once(self, database: object, tenant: str) -> bool:
        """Do one round."""
        del database
        if self.trouble is not None and (self.of is None or self.of == tenant):
            raise self.trouble
        return False


def run(looks: Looks, tenants: Callable[[], Awaitable[list[str]]], story: Callable[[], Awaitable[None]]) -> None:
    """Let a relay run through a story, in virtual time."""

    async def main() -> None:
        async with ResourcePool(database, weight=1) as pool:
            relay = Run[Any](pool, tenants, cast("Rounds", looks), 1.0)
            relay.begin(4)
            await story()
            await relay.end()

    run_virtual(main())


def test_a_relay_that_cannot_go_on_says_so_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """The block that is left with the error may be the one of a web server, weeks later."""
    looks = Looks()
    looks.trouble = NoOutbox("OutboxRelay(databases=...) takes asyncpg_inbox(...)")

    async def tenants() -> list[str]:
        return ["acme", "beta"]

    async def story() -> None:
        await asyncio.sleep(30)

    run(looks, tenants, story)
    [record] = caplog.records
    assert record.levelno == logging.CRITICAL
    assert record.getMessage().startswith("The OutboxRelay cannot go on, and what is in the outboxes stays there: ")
    assert record.getMessage().endswith(" takes asyncpg_inbox(...)")


def test_a_tenant_without_an_outbox_ends_no_relay_that_others_use(caplog: pytest.LogCaptureFixture) -> None:
    """Such as a new one in the registry, with a database of another kind: it alone fails."""
    looks = Looks()

    async def tenants() -> list[str]:
        return ["acme"]

    async def story() -> None:
        await asyncio.sleep(10)
        looks.trouble = NoOutbox("OutboxRelay(databases=...) takes asyncpg_inbox(...)")
        await asyncio.sleep(300)

    run(looks, tenants, story)
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("The outbox of tenant acme could not be relayed; the next try is in 1 s: ")


def test_a_tenant_without_an_outbox_that_is_looked_at_first_ends_no_relay(caplog: pytest.LogCaptureFixture) -> None:
    """After a restart nothing is known of the others yet."""
    looks = Looks()
    looks.trouble = NoOutbox("OutboxRelay(databases=...) takes asyncpg_inbox(...)")
    looks.of = "odd"

    async def tenants() -> list[str]:
        return ["odd", "acme"]

    async def story() -> None:
        await asyncio.sleep(300)

    run(looks, tenants, story)
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("The outbox of tenant odd could not be relayed; the next try is in 2 s: ")


def test_a_registry_that_is_down_for_minutes_is_told_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """It is asked every second: a line for each would be thousands, and say nothing new."""
    caplog.set_level(logging.INFO, "postroom.outbox")
    trouble: list[Exception] = [ConnectionError("postgres://app:hunter2@db refused")]

    async def tenants() -> list[str]:
        if trouble:
            raise trouble[-1]
        return ["acme"]

    async def story() -> None:
        await asyncio.sleep(300)
        trouble.append(LookupError("no such table"))
        await asyncio.sleep(300)
        trouble.clear()
        await asyncio.sleep(300)

    run(Looks(), tenants, story)
    first, second, third = caplog.records
    assert first.getMessage().startswith(
        "OutboxRelay(tenants=...) failed, so no outbox is looked at unless it is woken"
    )
    assert first.getMessage().endswith("ConnectionError: postgres://app:***@db refused")
    assert first.exc_text
    assert "LookupError: no such table" in second.getMessage()
    assert third.getMessage().startswith("OutboxRelay(tenants=...) works again after 6")
    assert [each.levelname for each in caplog.records] == ["ERROR", "ERROR", "WARNING"]


def test_an_outbox_that_cannot_be_relayed_is_told_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    """Once, once more where the cause is another one, and when it can be read again."""
    caplog.set_level(logging.INFO, "postroom.outbox")
    looks = Looks()

    async def tenants() -> list[str]:
        return ["acme"]

    async def story() -> None:
        for trouble in (OSError("disk gone"), LookupError("no such table"), None):
            looks.trouble = trouble
            await asyncio.sleep(300)

    run(looks, tenants, story)
    first, second, third = caplog.messages
    assert first == "The outbox of tenant acme could not be relayed; the next try is in 1 s: OSError: disk gone"
    assert (
        second == "The outbox of tenant acme could not be relayed; the next try is in 60 s: LookupError: no such table"
    )
    assert third == "The outbox of tenant acme can be read again"


@pytest.mark.parametrize(
    "error",
    [
        AccessDenied("allow sqs:SendMessage"),
        QueueNotFound("it was deleted"),
        InvalidRequest("its key is disabled", code="KMS.DisabledException"),
    ],
)
def test_rows_of_a_queue_that_refuses_all_stay_and_the_log_says_why(
    error: TransportError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A permission that is missing for an hour sets no message aside: it would have to be brought back by hand."""
    caplog.set_level(logging.INFO, "postroom.outbox")
    send, away = MemoryQueue.send, [True]

    async def sending(self: MemoryQueue, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        if away:
            raise error
        return await send(self, messages)

    async def main() -> None:
        async with LocalBroker() as broker, MemoryClient(broker) as client, Queues({}, client) as queues:
            broker.create_queue("invoices")
            messages = [OutgoingMessage(body="1"), OutgoingMessage(body="2")]
            unsent = await queues.post("invoices", messages, "acme")
            assert [each.retryable for each in unsent.values()] == [True, True]
            assert queues.pauses.active() == ["invoices"]
            away.clear()
            await asyncio.sleep(60)
            assert not await queues.post("invoices", messages, "acme")

    monkeypatch.setattr(MemoryQueue, "send", sending)
    run_virtual(main())
    kept, again = caplog.messages
    assert kept.startswith(
        "Queue invoices does not take messages of outboxes; they stay there, and the next try is in "
    )
    assert str(error) in kept
    assert again == "Queue invoices takes messages of outboxes again"


@in_virtual_time
async def test_a_transform_that_fails_for_one_tenant_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """It may need a bucket of that tenant. The log names the tenant and the cause, once, and the end."""
    caplog.set_level(logging.INFO, "postroom.outbox")
    away = [True]

    def transform(message: OutgoingMessage) -> OutgoingMessage:
        if message.body == "large" and away:
            raise ConnectionError("no route to the bucket")
        return message

    async with LocalBroker() as broker, MemoryClient(broker) as client:
        broker.create_queue("invoices")
        async with Sender[Any]("invoices", transform=transform, client=client) as sender:
            queues = Queues({"invoices": sender}, client)
            for _ in range(2):
                unsent = await queues.post("invoices", [OutgoingMessage(body="large")], "acme")
                assert [each.retryable for each in unsent.values()] == [True]
                assert queues.paused("acme") == ["invoices"]
                assert queues.paused("beta") == []
                assert not await queues.post("invoices", [OutgoingMessage(body="small")], "beta")
            away.clear()
            assert not await queues.post("invoices", [OutgoingMessage(body="large")], "acme")
            assert queues.paused("acme") == []
    failed, again = caplog.messages
    assert failed == (
        "Sender(transform=...) failed for a message of tenant acme for queue invoices, which stays in the outbox; the "
        "next try is in 1 s: ConnectionError: no route to the bucket"
    )
    assert again == "Messages of tenant acme are made ready for queue invoices again"


@in_virtual_time
async def test_a_queue_that_is_slow_to_open_holds_up_no_other() -> None:
    """Such as one of a region that this network does not reach."""

    class Client(MemoryClient):
        async def queue(self, name: str) -> MemoryQueue:
            if name == "far":
                await asyncio.sleep(60)
            return await super().queue(name)

    time = asyncio.get_running_loop().time
    async with LocalBroker() as broker, Client(broker) as client, Queues({}, client) as queues:
        broker.create_queue("far")
        broker.create_queue("near")
        far = [asyncio.create_task(queues.post("far", [OutgoingMessage(body="1")], "acme")) for _ in range(2)]
        await asyncio.sleep(1)
        began = time()
        assert not await queues.post("near", [OutgoingMessage(body="2")], "acme")
        seconds = time() - began
        assert await asyncio.gather(*far) == [{}, {}]
    assert seconds < 1


def test_queues_that_rows_name_are_not_kept_open_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request may name one of its own for its answer. The senders of the relay stay, and what is sent goes on."""
    monkeypatch.setattr("postroom.outbox.rounds._MOST_QUEUES", 2, raising=False)
    opened: list[str] = []
    slow = asyncio.Event()
    send = MemoryQueue.send

    class Client(MemoryClient):
        async def queue(self, name: str) -> MemoryQueue:
            opened.append(name)
            return await super().queue(name)

    async def sending(self: MemoryQueue, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        if messages[0].body == "slow":
            slow.set()
            await asyncio.sleep(1)
        return await send(self, messages)

    async def main() -> None:
        async with LocalBroker() as broker, Client(broker) as client:
            for name in ("invoices", "a", "b", "c"):
                broker.create_queue(name)
            async with Sender[Any]("invoices", client=client) as sender, Queues({"invoices": sender}, client) as queues:
                first = asyncio.create_task(queues.post("a", [OutgoingMessage(body="slow")], "acme"))
                await slow.wait()
                for name in ("invoices", "b", "c", "invoices", "c", "a"):
                    assert not await queues.post(name, [OutgoingMessage(body="1")], "acme")
                assert not await first

    monkeypatch.setattr(MemoryQueue, "send", sending)
    run_virtual(main())
    assert opened == ["invoices", "a", "b", "c", "a"]


@in_virtual_time
async def test_what_is_tried_no_more_is_forgotten() -> None:
    """Such as a queue that is gone, with its rows: ten minutes after its pause, when others have failed."""
    pauses = Pauses()
    pauses.failed("gone")
    await asyncio.sleep(600)
    pauses.failed("one")
    assert pauses.is_known("gone")
    await asyncio.sleep(60)
    pauses.failed("other")
    assert not pauses.is_known("gone")
    assert pauses.active() == ["other"]


@in_virtual_time
async def test_thousands_that_fail_are_not_gone_through_for_each_of_them() -> None:
    """A transform that fails for every tenant, or a server with all databases, would take the relay's whole CPU."""
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    async with LocalBroker() as broker, MemoryClient(broker) as client, Queues({}, client) as queues:
        names = [Name(number) for number in range(1_000)]
        for name in names:
            queues._pause_for(name, "invoices", ValueError())
        compared = 0
        assert [queues.paused(str(name)) for name in names] == [["invoices"]] * 1_000
        assert queues.paused("another") == []
        assert compared < 10_000
    pauses = Pauses()
    known = pauses._until
    for name in names:
        pauses.failed(name)
    assert pauses._until is known


def test_an_end_is_told_of_also_where_others_failed_meanwhile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its pause is long over and forgotten; what the log told of it is not."""
    send, away = MemoryQueue.send, {"invoices", "orders"}

    async def sending(self: MemoryQueue, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        if self.info.name in away:
            raise AccessDenied("allow sqs:SendMessage")
        return await send(self, messages)

    async def main() -> None:
        async with LocalBroker() as broker, MemoryClient(broker) as client, Queues({}, client) as queues:
            for name in away:
                broker.create_queue(name)
            messages = [OutgoingMessage(body="1")]
            await queues.post("invoices", messages, "acme")
            await asyncio.sleep(1200)
            await queues.post("orders", messages, "acme")
            away.clear()
            assert not await queues.post("invoices", messages, "acme")

    monkeypatch.setattr(MemoryQueue, "send", sending)
    run_virtual(main())
    assert caplog.messages[-1] == "Queue invoices takes messages of outboxes again"


def test_an_outbox_that_can_be_read_again_is_told_of_also_where_others_failed_meanwhile(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As for a queue: the relay has long forgotten its pause."""
    looks = Looks()
    listed = ["acme"]

    async def tenants() -> list[str]:
        return listed

    async def story() -> None:
        looks.trouble = OSError("no")
        await asyncio.sleep(5)
        listed.clear()
        await asyncio.sleep(1200)
        listed.append("beta")
        await asyncio.sleep(5)
        looks.trouble = None
        listed.append("acme")
        await asyncio.sleep(120)

    run(looks, tenants, story)
    assert caplog.messages.count("The outbox of tenant acme can be read again") == 1
    assert caplog.messages.count("The outbox of tenant beta can be read again") == 1
