"""FIFO: a message that fails again and again costs those behind it in its group no receive that they need."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from postroom import AckMode, Consumer, MessageContext, Polling, RetryPolicy, Visibility
from postroom.consumer.actions import GiveBack, GoOnAt, Reject, ReturnGroup
from postroom.consumer.job import Job
from postroom.errors import Reject as RejectError
from postroom.message import Message
from postroom.scheduling import State
from postroom.types import Settlement
from support.core_scene import Scene
from support.world import Order, Tenant, World, in_world, with_world

Ctx = MessageContext[Tenant]
Handler = Callable[[Ctx], Awaitable[None]]


def failed(scene: Scene, *behind: Job, delay: float = 2.0, receives: int = 2) -> Job:
    """Let the head of a group fail, with others behind it."""
    head = scene.job("head", group="g", receives=receives)
    scene.arrive(head, *behind)
    assert scene.core.next(0.0) is head
    head.started = True
    head.payload, head.decoded = "changed by its handler", True
    scene.source.attempts.failed(head)
    scene.core.retry(head, ValueError(), delay, 0.0, tried=True)
    return head


def next_of(scene: Scene, group: str = "g", receives: int = 2) -> Job:
    """Make a message that is behind the head."""
    return scene.job("next", group=group, receives=receives)


class TestCore:
    """What is decided of a failed message of a group, with maxReceiveCount 5: four attempts are promised."""

    def test_the_first_failure_gives_the_group_back(self) -> None:
        """Another consumer may do better, and one receive may be spent."""
        scene = Scene(fifo=True, most=5)
        other = next_of(scene, receives=1)
        head = failed(scene, other, receives=1)
        assert scene.core.actions == [
            GiveBack(head, Settlement.RETRIED, 2.0),
            GiveBack(other, Settlement.RETURNED),
            ReturnGroup("g", "head", behind=True),
        ]

    def test_a_later_one_backs_off_here_with_its_group(self) -> None:
        """Nothing goes back; the payload is decoded once more, since the handler may have changed it."""
        scene = Scene(fifo=True, most=5)
        other = next_of(scene)
        head = failed(scene, other)
        assert scene.core.actions == [GoOnAt("g", 2.0)]
        assert (scene.core.halted, scene.scheduler.size) == (2, 0)
        # The third: its first receive was another consumer's.
        assert (head.decoded, head.payload, head.attempt, head.counted) == (False, None, 3, False)
        scene.core.go_on("g", 2.0, 2.0)
        assert scene.core.next(2.0) is head
        assert scene.core.next(2.0) is None
        scene.core.finish(head, 3.0)
        assert scene.core.next(3.0) is other

    def test_one_that_is_alone_goes_back(self) -> None:
        """It costs no other message anything."""
        scene = Scene(fifo=True, most=5)
        head = failed(scene)
        assert scene.core.actions == [GiveBack(head, Settlement.RETRIED, 2.0), ReturnGroup("g", "head")]

    def test_those_that_are_being_resolved_count(self) -> None:
        """An async resolver has what came with it: they have been received as often."""
        scene = Scene(fifo=True, most=5)
        scene.core.resolving = 1
        failed(scene)
        assert scene.core.actions == [GoOnAt("g", 2.0)]

    def test_where_the_queue_may_not_be_asked_it_goes_back(self) -> None:
        """Only SQS's count of receives ends its attempts: tried here, it would block its group without end."""
        scene = Scene(fifo=True, most=5, known=False)
        head = failed(scene, next_of(scene))
        assert scene.core.actions[0] == GiveBack(head, Settlement.RETRIED, 2.0)

    @pytest.mark.parametrize("delay", [700.0, 86_400.0])
    def test_a_long_backoff_goes_back(self, delay: float) -> None:
        """Nothing is held for so long, or until its retention period is over."""
        scene = Scene(fifo=True, most=5)
        failed(scene, next_of(scene), delay=delay)
        assert isinstance(scene.core.actions[0], GiveBack)

    @pytest.mark.parametrize("policy", [Visibility(heartbeat=False), Visibility(max_extension=60)])
    def test_one_that_cannot_be_held_for_so_long_goes_back(self, policy: Visibility) -> None:
        """It would be lost meanwhile, and come again, and be tried, before its backoff is over."""
        for delay, stays in ((20.0, True), (40.0, False), (70.0, False)):
            scene = Scene(fifo=True, most=5)
            head = scene.job("head", group="g", receives=2)
            head.visibility = policy
            scene.arrive(head, next_of(scene))
            head.started = scene.core.next(0.0) is head
            scene.core.retry(head, ValueError(), delay, 0.0, tried=True)
            assert scene.core.actions[0] == (GoOnAt("g", delay) if stays else GiveBack(head, Settlement.RETRIED, delay))

    def test_without_a_backoff_it_does_not_fail_as_fast_as_it_can(self) -> None:
        """No receive slows it down."""
        scene = Scene(fifo=True, most=5)
        failed(scene, next_of(scene), delay=0.0)
        assert scene.core.actions == [GoOnAt("g", 0.1)]

    def test_it_has_as_many_attempts_as_the_queue_allows_receives(self) -> None:
        """Otherwise it would be tried without end, in its second receive."""
        scene = Scene(fifo=True, most=5)
        head = failed(scene, next_of(scene))
        for attempt in range(2, 6):
            scene.core.actions.clear()
            scene.core.go_on("g", 2.0 * (attempt - 1), 2.0 * (attempt - 1))
            assert scene.core.next(0.0) is head
            scene.source.attempts.failed(head)
            scene.core.retry(head, ValueError(), 2.0 * attempt, 0.0, tried=True)
        (rejected,) = scene.core.actions
        assert isinstance(rejected, Reject)
        assert rejected.reason == "5 failed attempts, the last one with ValueError"

    def test_a_reject_that_is_not_possible_is_an_attempt(self) -> None:
        """The dead-letter queue takes nothing: tried here without a count, it would never end."""
        scene = Scene(fifo=True, most=3)
        head = scene.job("head", group="g")
        scene.arrive(head, next_of(scene, receives=1))
        for now in (0.0, 1.0, 2.0):
            scene.core.actions.clear()
            scene.core.go_on("g", now, now)
            assert scene.core.next(now) is head
            head.started = True
            scene.core.retry(head, RejectError("bad"), 1.0, now, tried=True)
        (rejected,) = scene.core.actions
        assert isinstance(rejected, Reject)
        assert rejected.reason == "3 failed attempts, the last one with Reject: bad"

    def test_one_that_is_lost_takes_its_group_with_it_at_once(self) -> None:
        """It is received again, and they are behind it."""
        scene = Scene(fifo=True, most=5)
        other = next_of(scene)
        head = failed(scene, other)
        scene.core.actions.clear()
        head.lost = True
        scene.core.lost(head, 1.0)
        assert scene.core.actions == [GiveBack(other, Settlement.RETURNED), ReturnGroup("g", behind=True)]
        scene.core.go_on("g", 2.0, 2.0)
        assert scene.core.halted == 0

    def test_a_stop_gives_it_back_with_its_backoff_and_its_group_behind_it(self) -> None:
        """Nothing is left, and the time that comes later finds nothing."""
        scene = Scene(fifo=True, most=5)
        other = next_of(scene)
        head = failed(scene, other)
        scene.core.actions.clear()
        scene.core.close()
        assert scene.core.actions == [GiveBack(head, Settlement.RETRIED, 2.0), GiveBack(other, Settlement.RETURNED)]
        scene.core.go_on("g", 2.0, 2.0)
        assert (scene.core.halted, scene.core.next(2.0)) == (0, None)

    def test_what_comes_meanwhile_waits_behind_them(self) -> None:
        """It was resolved late."""
        scene = Scene(fifo=True, most=5)
        other, late = next_of(scene), scene.job("late", group="g")
        head = failed(scene, other)
        scene.arrive(late)
        assert late.state is State.NEW
        scene.core.go_on("g", 2.0, 2.0)
        started = []
        for now in (2.0, 3.0, 4.0):
            started.append(job := scene.core.next(now))
            assert job is not None
            scene.core.finish(job, now + 1)
        assert started == [head, other, late]

    def test_one_behind_it_that_would_be_lost_at_its_last_receive_ends_the_wait(self) -> None:
        """The next look finds it in its lane, and rejects it with its reason."""
        scene = Scene(fifo=True, most=5)
        last = next_of(scene, receives=5)
        head = failed(scene, last, delay=500.0)
        scene.core.actions.clear()
        scene.core.sweep(40.0)
        assert scene.core.halted == 2
        scene.core.sweep(55.0)
        assert (scene.core.halted, scene.core.next(55.0)) == (0, head)


def calls_of(receives: int, *, down: float, count: int, **options: Any) -> tuple[dict[str, int], dict[str, str | None]]:
    """Let handlers of one group fail for some seconds. Returns the calls, and the dead letters with their reasons."""

    async def scenario(world: World) -> tuple[dict[str, int], dict[str, str | None]]:
        arn = world.broker.create_queue("dead.fifo", {"FifoQueue": "true"}).arn
        redrive = f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": {receives}}}'
        world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true", RedrivePolicy=redrive)
        orders = Consumer("orders.fifo", client=world.client, polling=Polling(pollers=1), **options)
        calls: defaultdict[str, int] = defaultdict(int)
        attempts: list[int] = []
        up = asyncio.get_running_loop().time() + down

        @orders.handler
        async def handle(order: Order, ctx: Ctx) -> None:
            calls[order.order_id] += 1
            attempts.append(ctx.attempt)
            if asyncio.get_running_loop().time() < up:
                raise RuntimeError("503")

        for number in range(count):
            world.send({"order_id": str(number)}, queue="orders.fifo", group="g")
        async with orders:
            await asyncio.sleep(1_800)
        assert max(attempts) <= receives
        dead = world.broker.queue("dead.fifo").messages.values()
        reasons = {}
        for letter in dead:
            reason = letter.attributes.get("postroom.reason")
            reasons[json.loads(letter.body)["order_id"]] = None if reason is None else reason.string_value
        return dict(calls), reasons

    return in_world(scenario)


async def resolve_later(message: Message) -> Tenant:
    """Resolve a context as a look-up does."""
    await asyncio.sleep(0.01)
    return Tenant(message.attributes["tenantId"])


@pytest.mark.parametrize("receives", [2, 3, 5, 10])
@pytest.mark.parametrize("context", [Tenant, resolve_later])
def test_those_behind_messages_that_fail_keep_their_attempts(receives: int, context: Any) -> None:
    """What the handlers call is down for longer than the first one has attempts, and not for as long as all have."""
    calls, dead = calls_of(receives, down=40.0, count=10, retry=RetryPolicy(base=2, cap=8), context=context)
    promised = receives if receives < 5 else receives - max(1, receives // 4)
    assert len(calls) == 10
    assert {number: calls[number] for number in dead if calls[number] < promised} == {}


async def ask_by_hand(ctx: Ctx) -> None:
    """Ask for a retry, and return."""
    await ctx.retry(delay=0.1)


async def fail(_ctx: Ctx) -> None:
    """Fail."""
    raise ValueError


async def leave(_ctx: Ctx) -> None:
    """Return without a word: under ``MANUAL`` the message may still be acknowledged."""


@pytest.mark.parametrize("attempts", [None, 2])
@pytest.mark.parametrize(
    ("ends", "mode"), [(ask_by_hand, AckMode.ON_SUCCESS), (fail, AckMode.MANUAL), (leave, AckMode.MANUAL)]
)
@with_world
async def test_what_is_behind_a_last_receive_is_handled(
    world: World, ends: Handler, mode: AckMode, attempts: int | None
) -> None:
    """The message is given out no more: those behind it, at their last receive, too, overtake nothing."""
    arn = world.broker.create_queue("dead.fifo", {"FifoQueue": "true"}).arn
    redrive = f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": 2}}'
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true", RedrivePolicy=redrive)
    options: dict[str, Any] = {"retry": RetryPolicy(base=0.1, attempts=attempts), "ack": mode}
    orders = Consumer("orders.fifo", client=world.client, visibility=Visibility(timeout=5), **options)
    handled: list[str] = []

    @orders.handler
    async def handle(order: Order, ctx: Ctx) -> None:
        handled.append(order.order_id)
        if order.order_id == "0":
            await ends(ctx)
        elif mode is AckMode.MANUAL:
            await ctx.ack()

    for number in range(3):
        world.send({"order_id": str(number)}, queue="orders.fifo", group="g")
    async with orders:
        await asyncio.sleep(60)
    assert world.counts("orders.fifo") == (0, 0)
    assert handled == ["0", "0", "1", "2"]


async def ack_late(ctx: Ctx) -> None:
    """Acknowledge the message a little after its handler has returned."""
    await asyncio.sleep(0.5)
    await ctx.ack()


async def retry_late(ctx: Ctx) -> None:
    """Ask for a retry after that."""
    await asyncio.sleep(0.5)
    await ctx.retry(delay=60)


async def extend_and_ack(ctx: Ctx) -> None:
    """Take more time than the visibility timeout."""
    await ctx.extend(20)
    await asyncio.sleep(10)
    await ctx.ack()


@pytest.mark.parametrize(("later", "after"), [(ack_late, 0.5), (retry_late, 0.5), (extend_and_ack, 10.0)])
@with_world
async def test_what_is_behind_a_message_that_was_left_goes_on_when_it_is_settled(
    world: World, later: Handler, after: float
) -> None:
    """At its last receive: not before, and not as late as its visibility timeout."""
    arn = world.broker.create_queue("dead.fifo", {"FifoQueue": "true"}).arn
    redrive = f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": 1}}'
    world.create("orders.fifo", FifoQueue="true", ContentBasedDeduplication="true", RedrivePolicy=redrive)
    options: dict[str, Any] = {"visibility": Visibility(timeout=5), "ack": AckMode.MANUAL}
    orders = Consumer("orders.fifo", client=world.client, **options)
    began: dict[str, float] = {}
    tasks: list[asyncio.Task[None]] = []

    @orders.handler
    async def handle(order: Order, ctx: Ctx) -> None:
        began[order.order_id] = asyncio.get_running_loop().time()
        if order.order_id == "0":
            tasks.append(asyncio.ensure_future(later(ctx)))
        else:
            await ctx.ack()

    for number in range(2):
        world.send({"order_id": str(number)}, queue="orders.fifo", group="g")
    async with orders:
        await asyncio.sleep(60)
    assert (began["1"] - began["0"]) == pytest.approx(after, abs=0.2)
