"""The acknowledger against every order of decisions, refusals, errors, duplicates and expiries."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postroom.errors import InvalidRequest, OwnershipLost, PostroomError, ServiceUnavailable
from postroom.events import Event, MessageSettled, Observers
from postroom.message import Message
from postroom.options import Visibility
from postroom.settlement import Delivery, Settler
from postroom.settlement.batcher import ATTEMPTS, Batcher
from postroom.testing.loop import run_virtual
from postroom.transports.protocol import EntryFailure, VisibilityChange
from postroom.types import Settlement
from support.scripted import ScriptedQueue, no_queue

TIMEOUT = 20.0
ANSWERS = st.sampled_from(["well", "well", "slow", "down", "wrong", "refuse", "again"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 5)),
        st.tuples(st.sampled_from(["ack", "give back", "leave", "ack now", "retry now"]), st.integers(0, 12)),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.05, 0.1, 0.5, 3.0, 25.0])),
        st.tuples(st.just("answer"), ANSWERS),
    ),
    max_size=30,
)


class Model:
    """A settler over a queue that answers as told, and a count of what each receipt was asked for."""

    def __init__(self) -> None:
        self.queue = ScriptedQueue()
        self.queue.on_delete = self._on_delete
        self.queue.on_change = self._on_change
        self.answers = "well"
        self.receives: Counter[str] = Counter()
        self.deliveries: list[Delivery] = []
        self.deletes: Counter[str] = Counter()
        self.changes: Counter[str] = Counter()
        self.endings: Counter[Delivery] = Counter()
        self.waits: list[asyncio.Task[None]] = []
        self.settler = Settler(
            self.queue,
            Visibility(timeout=TIMEOUT, heartbeat=False),
            dead_letter_queue=no_queue,
            on_lost=lambda _delivery: None,
            observers=Observers([self._observe]),
        )

    def _observe(self, event: Event) -> None:
        if isinstance(event, MessageSettled) and event.settlement is not Settlement.LEFT:
            [delivery] = [each for each in self.deliveries if each.message is event.message]
            self.endings[delivery] += 1
            assert self.endings[delivery] == 1, "S1: settled twice"

    async def _on_delete(self, handles: Sequence[str]) -> list[EntryFailure]:
        assert len(handles) == len(set(handles)), "S6: one receipt twice in a call"
        self.deletes.update(handles)
        for handle in handles:
            assert self.deletes[handle] <= ATTEMPTS, "S5"
            assert not self.changes[handle], "S1: deleted after it was given back"
            self._still_ours(handle)
        return await self._answer()

    async def _on_change(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        for change in changes:
            self.changes[change.receipt_handle] += 1
            assert self.changes[change.receipt_handle] <= ATTEMPTS, "S5"
            assert not self.deletes[change.receipt_handle], "S1: given back after a delete"
            self._still_ours(change.receipt_handle)
        return await self._answer()

    def _still_ours(self, handle: str) -> None:
        now = asyncio.get_running_loop().time()
        assert any(each.receipt_handle == handle and now < each.deadline for each in self.deliveries), "S4"

    async def _answer(self) -> list[EntryFailure]:
        match self.answers:
            case "slow":
                await asyncio.sleep(1.0)
            case "down":
                raise ServiceUnavailable("down")
            case "wrong":
                raise InvalidRequest("wrong")
            case "refuse" | "again" as how:
                return [EntryFailure(0, "Refused", sender_fault=how == "refuse")]
        return []

    async def step(self, what: str, value: object) -> None:
        """Do one step."""
        match what, value:
            case "take", int(number):
                self.receives[f"m{number}"] += 1
                count = self.receives[f"m{number}"]
                again = Message(
                    id=f"m{number}",
                    body="{}",
                    receipt_handle=f"r{number}-{count}",
                    system_attributes={"ApproximateReceiveCount": str(count)},
                )
                self.deliveries += self.settler.take([again])
            case "wait", float(seconds):
                await asyncio.sleep(seconds)
            case "answer", str(answers):
                self.answers = answers
            case _, int(place) if place < len(self.deliveries):
                self._decide(what, self.deliveries[place])

    def _decide(self, what: str, delivery: Delivery) -> None:
        match what:
            case "ack":
                self.settler.ack(delivery)
            case "give back":
                self.settler.give_back(delivery, Settlement.RETRIED, delay=1.0)
            case "leave":
                self.settler.leave(delivery)
            case "ack now":
                self._wait_for(self.settler.ack_now(delivery))
            case _:
                self._wait_for(self.settler.give_back_now(delivery, Settlement.RETRIED, delay=1.0))

    def _wait_for(self, decision: object) -> None:
        async def wait() -> None:
            try:
                assert asyncio.iscoroutine(decision)
                await decision
            except (PostroomError, OwnershipLost):
                pass

        self.waits.append(asyncio.create_task(wait(), name="wait"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, seed=st.integers(0, 1000))
def test_every_decision_is_sent_at_most_once_and_never_too_late(steps: list[tuple[str, object]], seed: int) -> None:
    """S1, S4, S5, S6, whatever SQS answers; and everybody who waits is answered."""

    async def main() -> None:
        model = Model()
        heartbeat = asyncio.create_task(model.settler.heartbeat.run(), name="heartbeat")
        try:
            for what, value in steps:
                await model.step(what, value)
            await model.settler.drain()
            if model.waits:
                await asyncio.wait_for(asyncio.gather(*model.waits), 30)
            await asyncio.sleep(2 * TIMEOUT)
            assert model.settler.held == 0, "held although its time is over"
        finally:
            heartbeat.cancel()
            await asyncio.wait([heartbeat])

    run_virtual(main(), seed=seed)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 25), st.booleans(), st.sampled_from([0.0, 0.05, 2.0])), max_size=6),
    answers=st.lists(ANSWERS, max_size=40),
)
def test_the_batcher_ends_every_entry_once(sizes: list[tuple[int, bool, float]], answers: list[str]) -> None:
    """Whatever is refused: at most ten per call, at most four times each, and one answer for every entry."""

    async def main() -> None:
        ended: Counter[int] = Counter()
        sent: Counter[int] = Counter()
        script = iter(answers)

        async def send(entries: Sequence[int]) -> Sequence[EntryFailure]:
            assert 1 <= len(entries) <= 10
            sent.update(entries)
            match next(script, "well"):
                case "down":
                    raise ServiceUnavailable("down")
                case "wrong":
                    raise InvalidRequest("wrong")
                case "slow":
                    await asyncio.sleep(1)
                case "refuse" | "again" as how:
                    return [EntryFailure(len(entries) - 1, "Refused", sender_fault=how == "refuse")]
            return []

        batcher = Batcher[int]("delete", send=send, done=lambda entry, _error: ended.update([entry]), linger=0.1)
        total = 0
        for size, urgent, pause in sizes:
            for _ in range(size):
                batcher.add(total, urgent=urgent)
                total += 1
            await asyncio.sleep(pause)
        await batcher.drain()
        assert ended == Counter(range(total))
        assert all(count <= ATTEMPTS for count in sent.values())

    run_virtual(main())
