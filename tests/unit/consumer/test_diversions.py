"""Tenants that are diverted to a queue that does not take their messages: an outage, and no fault of the messages."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from postroom import (
    AccessDenied,
    Consumer,
    Faults,
    MessageContext,
    RetryPolicy,
    ServiceUnavailable,
    Shutdown,
    TenantState,
)
from postroom.message import OutgoingMessage
from postroom.transports.memory import MemoryQueue
from support.world import Order, Tenant, World, in_world, with_world

A = Tenant("a")


class Site:
    """A consumer of orders of which a tenant is diverted, and the ids of those that it handled."""

    def __init__(self, world: World, *, receives: int = 5, **more: Any) -> None:
        world.create(dead_letters="dead", receives=receives)
        self.world = world
        self.handled: list[str] = []
        self.orders = Consumer("orders", context=Tenant, client=world.client, **more)

        @self.orders.handler
        async def handle(order: Order, _ctx: MessageContext[Tenant]) -> None:
            self.handled.append(order.order_id)

    def divert(self, queue: str = "aside") -> None:
        """Divert the tenant."""
        self.orders.tenants.divert(A, queue=queue, reason="backlog")

    async def contents(self, queue: str) -> list[tuple[str, str | None]]:
        """Return the bodies of what is in a queue, and the reasons."""
        async with self.world.client as client:
            found = await (await client.queue(queue)).receive(limit=10, wait=0, visibility=1)
        reasons = [each.message_attributes.get("postroom.reason") for each in found]
        return [
            (each.body, None if why is None else why.string_value) for each, why in zip(found, reasons, strict=True)
        ]


def run(scenario: Callable[[Site], Awaitable[Any]], **options: Any) -> Any:
    """Run a scenario with a site, and return what it returns."""

    async def main(world: World) -> Any:
        return await scenario(Site(world, **options))

    return in_world(main)


def fails(
    monkeypatch: pytest.MonkeyPatch, error: Exception, calls: list[float], *, queue: str = "aside"
) -> Callable[[], None]:
    """Let every send to a queue fail, and note when. Returns what ends that."""
    send = MemoryQueue.send
    broken = [True]

    async def failing(target: MemoryQueue, messages: Sequence[OutgoingMessage]) -> Any:
        if target.info.name == queue and broken:
            calls.append(asyncio.get_running_loop().time())
            raise error
        return await send(target, messages)

    monkeypatch.setattr(MemoryQueue, "send", failing)
    return broken.clear


@pytest.mark.parametrize("receives", [1, 5])
def test_messages_wait_until_the_queue_exists(receives: int, caplog: pytest.LogCaptureFixture) -> None:
    """An hour later each goes there, and none was spent; the log tells of it twice: what is wrong, and the end."""

    async def scenario(site: Site) -> tuple[Any, ...]:
        async with site.orders:
            site.divert()
            site.world.send_orders("1", "2", "3")
            await asyncio.sleep(3600)
            status, held = site.orders.tenants[A], site.world.counts()
            site.world.broker.create_queue("aside")
            await asyncio.sleep(31)
            return status, held, site.world.counts(), sorted(await site.contents("aside")), site.world.counts("dead")

    with caplog.at_level(logging.INFO, "postroom"):
        status, held, left, moved, dead = run(scenario, receives=receives)
    assert (held, left, dead) == ((0, 3), (0, 0), (0, 0))
    assert [why for _, why in moved] == ["diverted to aside: backlog"] * 3
    assert status.state is TenantState.DIVERTED
    assert status.reason.startswith("backlog; queue aside takes nothing: ")
    assert status.since == pytest.approx(3600, abs=1)
    begin, end = [each for each in caplog.records if "takes nothing" in each.msg or "are sent away again" in each.msg]
    assert begin.levelno == logging.ERROR
    assert "takes nothing; its messages wait" in begin.getMessage()
    assert (begin.tenant, end.tenant) == ("a:eu-west-1", "a:eu-west-1")  # type: ignore[attr-defined]
    assert "again, after 36" in end.getMessage()


@pytest.mark.parametrize("error", [AccessDenied("sqs:SendMessage"), ServiceUnavailable("503")])
def test_one_message_at_a_time_tries_a_queue_that_takes_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an hour with 50 messages costs few calls, and no receive that was promised; then all go within minutes."""
    calls: list[float] = []
    mend = fails(monkeypatch, error, calls)

    async def scenario(site: Site) -> tuple[Any, ...]:
        site.world.broker.create_queue("aside")
        async with site.orders:
            site.divert()
            site.world.send_orders(*map(str, range(50)))
            await asyncio.sleep(1800)
            mend()
            await asyncio.sleep(120)
            return site.world.counts("aside"), site.world.counts("dead"), site.orders.statistics().received

    aside, dead, received = run(scenario)
    assert (aside, dead) == ((50, 0), (0, 0))
    assert received <= 100  # of five receives each may be deferred once
    assert 60 <= len(calls) <= 500  # of a call that is tried again for a minute there are many


def test_the_end_of_a_diversion_ends_the_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while a message is being sent in vain: the others of its tenant do not wait for that."""
    fails(monkeypatch, ServiceUnavailable("503"), [])

    async def scenario(site: Site) -> tuple[Any, ...]:
        site.world.broker.create_queue("aside")
        async with site.orders:
            site.divert()
            site.world.send_orders(*map(str, range(5)))
            await asyncio.sleep(100)  # the first tries of all are over, and one tries again
            assert site.handled == []
            assert site.orders.statistics().outages == 1
            site.orders.tenants.resume(A)
            await asyncio.sleep(1)
            early = len(site.handled)
            await asyncio.sleep(60)
            return early, sorted(site.handled), site.orders.tenants[A].state, site.orders.statistics().outages

    assert run(scenario) == (4, ["0", "1", "2", "3", "4"], TenantState.ACTIVE, 0)


def test_a_tenant_that_waits_to_be_diverted_takes_no_room_from_others() -> None:
    """A thousand of its messages are in the queue: another tenant's are handled as they come."""

    async def scenario(site: Site) -> tuple[Any, ...]:
        async with site.orders:
            site.divert()
            site.world.send_orders(*map(str, range(1000)))
            await asyncio.sleep(60)
            site.world.send_orders("mine", tenant="b")
            await asyncio.sleep(5)
            return site.handled, site.world.counts("dead"), sum(site.world.counts())

    assert run(scenario) == (["mine"], (0, 0), 1000)


def test_what_waits_at_its_last_receive_when_the_consumer_stops_says_why() -> None:
    """The reason names the queue that took nothing."""

    async def scenario(site: Site) -> list[tuple[str, str | None]]:
        async with site.orders:
            site.divert("asid")
            site.world.send_orders("1")
            await asyncio.sleep(60)
        return await site.contents("dead")

    [(_, reason)] = run(scenario, receives=1, shutdown=Shutdown(drain=1))
    assert reason is not None
    assert "the consumer stopped" in reason
    assert "queue asid takes nothing" in reason


def test_one_message_that_a_queue_refuses_does_not_keep_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """It is too large for that queue: it comes again, and ends with a reason that names the queue and the refusal."""

    async def scenario(site: Site) -> tuple[Any, ...]:
        site.world.broker.create_queue("aside", {"MaximumMessageSize": "1024"})
        async with site.orders:
            site.divert()
            site.world.send_orders("1")
            await asyncio.sleep(5)
            site.world.send({"order_id": "large", "more": "x" * 2000})
            await asyncio.sleep(1)
            site.world.send_orders(*map(str, range(20)))
            await asyncio.sleep(5)
            moved = site.world.counts("aside")
            await asyncio.sleep(600)
            return moved, await site.contents("dead")

    moved, [(body, reason)] = run(scenario)
    assert moved == (21, 0)
    assert "large" in body
    assert reason is not None
    assert reason.startswith("not tried: diverted to aside: backlog; queue aside refused message ")
    assert any("could not be sent where its tenant is diverted" in each for each in caplog.messages)


def test_a_queue_that_refuses_every_message_takes_nothing() -> None:
    """A FIFO queue takes no message without a group: they wait, as for one that does not exist."""

    async def scenario(site: Site) -> tuple[Any, ...]:
        site.world.broker.create_queue("aside.fifo", {"FifoQueue": "true"})
        async with site.orders:
            site.divert("aside.fifo")
            site.world.send_orders("1", "2")
            await asyncio.sleep(3600)
            return site.world.counts("dead"), site.world.counts(), str(site.orders.tenants[A].reason)

    dead, here, reason = run(scenario)
    assert (dead, here) == ((0, 0), (0, 2))
    assert "queue aside.fifo refused message" in reason


def test_what_is_said_of_a_diversion_speaks_of_its_queue(caplog: pytest.LogCaptureFixture) -> None:
    """Not of dead letters: there are none."""

    async def scenario(site: Site) -> None:
        site.world.broker.create_queue("aside")
        async with site.orders:
            site.divert()
            attributes = {f"a{n}": "v" for n in range(8)}
            site.world.send({"order_id": "1"}, **attributes)
            await asyncio.sleep(5)
            site.world.broker.create_queue("other.fifo", {"FifoQueue": "true"})
            site.divert("other.fifo")
            site.world.send_orders("2")
            await asyncio.sleep(5)

    run(scenario)
    assert any("was sent to queue aside without room for its whole reason" in each for each in caplog.messages)
    assert any("queue other.fifo refused message" in each for each in caplog.messages)
    assert not [each for each in caplog.messages if "dead" in each]


@with_world
async def test_messages_of_the_queue_that_their_tenant_is_diverted_to_meet_its_pauses(world: World) -> None:
    """They are handled here, and everything of their tenant fails: it is left alone, and its breaker open."""
    world.create(dead_letters="dead", receives=1_000)
    more: dict[str, Any] = {"faults": Faults(breaker_after=2, base=60, cap=60), "retry": RetryPolicy(base=0)}
    orders = Consumer("orders", context=Tenant, client=world.client, **more)
    tries = 0

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant]) -> None:
        nonlocal tries
        tries += 1
        raise ValueError("everything of this tenant fails")

    async with orders:
        orders.tenants.divert(A, queue="orders", reason="backlog")
        world.send_orders(*map(str, range(5)))
        await asyncio.sleep(15)
    assert tries <= 6


@pytest.mark.parametrize("receives", [1, 3])
def test_a_quarantine_waits_while_the_dead_letter_queue_takes_nothing(
    receives: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No receive is spent on it: once resumed, all are handled, and none is a dead letter without a reason."""
    mend = fails(monkeypatch, AccessDenied("sqs:SendMessage is missing."), [], queue="dead")

    async def scenario(site: Site) -> tuple[Any, ...]:
        async with site.orders:
            site.orders.tenants.quarantine(A, reason="corrupt import")
            site.world.send_orders(*map(str, range(10)))
            await asyncio.sleep(60)
            status = site.orders.tenants[A]
            site.orders.tenants.resume(A)
            await asyncio.sleep(600)
            return status, len(site.handled), sum(site.world.counts("dead"))

    status, handled, dead = run(scenario, receives=receives)
    mend()
    assert (handled, dead) == (10, 0)
    assert status.state is TenantState.QUARANTINED
    assert status.reason.startswith("corrupt import; the dead-letter queue takes nothing: ")
    [line] = [each.getMessage() for each in caplog.records if "takes nothing" in each.msg]
    assert "sqs:SendMessage is missing. Correct that" in line
    assert line.startswith("Tenant a:eu-west-1 is in quarantine, and the dead-letter queue takes nothing; its messages")


@with_world
async def test_a_quarantine_without_a_dead_letter_queue_waits_for_one(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says so, as where the queue takes nothing, and the first message after the queue is there ends it."""
    world.create()
    orders = Consumer("orders", context=Tenant, client=world.client)

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant]) -> None: ...

    async with orders:
        orders.tenants.quarantine(A, reason="corrupt import")
        world.send_orders(*map(str, range(40)))
        await asyncio.sleep(600)
        assert str(orders.tenants[A].reason).endswith("takes nothing: queue orders has no dead-letter queue")
        said = [text for text in caplog.messages if "dead-letter queue" in text]
        assert [text.split()[0] for text in said] == ["Queue", "Tenant"]
        arn = world.broker.create_queue("dead").arn
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 5})
        world.broker.set_attributes(world.broker.queue("orders"), {"RedrivePolicy": policy})
        await asyncio.sleep(200)
    assert (sum(world.counts()), sum(world.counts("dead"))) == (0, 40)


def test_a_quarantine_goes_on_when_the_dead_letter_queue_takes_messages_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes there with the reason."""
    mend = fails(monkeypatch, AccessDenied("sqs:SendMessage"), [], queue="dead")

    async def scenario(site: Site) -> list[tuple[str, str | None]]:
        async with site.orders:
            site.orders.tenants.quarantine(A, reason="corrupt import")
            site.world.send_orders("1", "2", "3")
            await asyncio.sleep(60)
            mend()
            await asyncio.sleep(60)
            return await site.contents("dead")

    assert [why for _, why in run(scenario)] == ["corrupt import"] * 3
