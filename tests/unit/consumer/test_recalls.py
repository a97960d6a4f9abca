"""Messages that were parked or deferred are called back: entry by entry, and before a stop is over."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from postroom import Concurrency, Consumer, MessageContext, Polling, Queues, Reject
from postroom.consumer.away import Absent
from postroom.consumer.recalls import Recalls
from postroom.tasks import Tasks
from postroom.testing import run_virtual
from postroom.transports.memory import MemoryQueue
from postroom.transports.protocol import EntryFailure, VisibilityChange
from support.scripted import ScriptedQueue
from support.virtual import in_virtual_time
from support.world import Order, Tenant, World, in_world


def absent(queue: ScriptedQueue, count: int, until: float = 100.0) -> list[Absent]:
    """Return messages that are invisible until some time."""
    return [Absent(queue, f"m{number}", f"r{number}", until) for number in range(count)]


def recalled(queue: ScriptedQueue, count: int, until: float = 100.0) -> list[BaseException]:
    """Call messages back, wait until that is over, and return what ended a task."""

    async def scenario() -> list[BaseException]:
        fatal: list[BaseException] = []
        recalls = Recalls(Tasks(fatal.append))
        recalls.begin({queue: absent(queue, count, asyncio.get_running_loop().time() + until)})
        while recalls.out:
            await asyncio.wait(tuple(recalls.out))
        recalls.flush()
        return fatal

    return run_virtual(scenario())


def _fatal(error: BaseException) -> None:
    raise error


def refusing(*codes: str, sender_fault: bool = False) -> ScriptedQueue:
    """Return a queue that refuses the second entry of its first calls, each with a code."""
    queue, left = ScriptedQueue(), list(codes)

    async def on_change(changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        if not left:
            return []
        return [EntryFailure(min(1, len(changes) - 1), left.pop(0), sender_fault=sender_fault)]

    queue.on_change = on_change
    return queue


def test_an_entry_that_is_refused_for_now_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """It alone, after a pause; then nothing needs to be said."""
    queue = refusing("InternalError")
    assert recalled(queue, 3) == []
    assert [handles for _, handles in queue.changes] == [[("r0", 0), ("r1", 0), ("r2", 0)], [("r1", 0)]]
    assert caplog.messages == []


@in_virtual_time
async def test_an_entry_that_came_back_is_not_tried_again() -> None:
    """It was received while its call was out: to show it now would give it to a second consumer."""
    queue = refusing("InternalError", "InternalError")
    recalls = Recalls(Tasks(_fatal))
    recalls.begin({queue: absent(queue, 3, asyncio.get_running_loop().time() + 100)})
    recalls.came_back("m1")
    while recalls.out:
        await asyncio.wait(tuple(recalls.out))
    assert len(queue.changes) == 1


def test_what_is_refused_again_and_again_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """After four calls: how many, why, and which message."""
    queue = refusing(*["InternalError"] * 9)
    recalled(queue, 3)
    assert len(queue.changes) == 4
    [line] = caplog.messages
    assert line.startswith("1 message could not be called back (")
    assert "InternalError" in line
    assert line.endswith("Messages: m1")


def test_what_is_refused_for_good_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """No second call."""
    queue = refusing("InvalidAddress", sender_fault=True)
    recalled(queue, 3)
    assert len(queue.changes) == 1
    assert "InvalidAddress" in caplog.messages[0]


def test_a_message_that_is_visible_again_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """SQS does not know its receipt handle any longer: it came back by itself."""
    queue = refusing("ReceiptHandleIsInvalid", sender_fault=True)
    recalled(queue, 2)
    assert caplog.messages == []


def test_it_is_not_tried_when_it_comes_back_by_itself() -> None:
    """Another consumer may have it by then."""
    queue = refusing("InternalError")
    recalled(queue, 2, until=1.1)
    assert len(queue.changes) == 1


class Exit(BaseException):
    """What a library ends its own loop with."""


@pytest.mark.parametrize("error", [OSError, Exit, GeneratorExit, asyncio.CancelledError])
def test_a_call_that_fails_is_told_in_one_line(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """Thirty messages in three calls share it; they are not shown once more, since the call may have taken effect."""
    queue = ScriptedQueue()

    async def on_change(_changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        raise error

    queue.on_change = on_change
    assert recalled(queue, 30) == []
    assert len(queue.changes) == 3
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("30 messages could not be called back (")


def hidden_after_a_stop(patch: pytest.MonkeyPatch, silent: str, *, queues: Any) -> tuple[int, int]:
    """Park messages, stop while another queue is silent, and return how many were parked, and how many are hidden."""

    async def scenario(world: World) -> tuple[int, int]:
        world.create(dead_letters="dead", receives=10)
        world.create("more")
        more: dict[str, Any] = {"polling": Polling(scout="always"), "concurrency": Concurrency(total=2)}
        orders: Consumer[Tenant] = Consumer(**queues, context=Tenant, client=world.client, **more)

        @orders.handler
        async def handle(order: Order, _ctx: MessageContext[Tenant]) -> None:
            await asyncio.sleep(order.seconds)
            if order.order_id == "bad":
                raise Reject("bad")

        async with orders:
            world.send({"order_id": "bad", "seconds": 3.5}, tenant="b")
            world.send({"order_id": "1", "seconds": 3.5}, tenant="b", queue="more")
            world.send_orders(*map(str, range(60)), seconds=3)
            await asyncio.sleep(3)
            for call in ("send", "delete", "change_visibility"):
                patch.setattr(MemoryQueue, call, _silent(silent, getattr(MemoryQueue, call)))
            parked = orders.statistics().parked
        await asyncio.sleep(0.1)
        return parked, world.counts()[1]

    return in_world(scenario)


def _silent(name: str, call: Any) -> Any:
    async def answer(self: MemoryQueue, *arguments: Any) -> Any:
        if self.info.name == name:
            await asyncio.Event().wait()
        return await call(self, *arguments)

    return answer


@pytest.mark.parametrize(
    ("silent", "queues", "unanswered"),
    [("more", {"queues": Queues(["orders", "more"])}, 0), ("dead", {"queue": "orders"}, 1)],
)
def test_a_stop_calls_messages_back_whatever_else_is_not_answered(
    silent: str, queues: Any, unanswered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue of several, or a dead-letter queue: the message that goes there stays hidden, and no other."""
    parked, hidden = hidden_after_a_stop(monkeypatch, silent, queues=queues)
    assert parked > 10
    assert hidden == unanswered
