"""A redrive or purge that is slow, stopped, or refused: letters stay held while it waits, and visible afterwards."""

import asyncio
from typing import Any

import pytest

from postroom.dead_letters import DeadLetterQueue, open_dead_letters
from postroom.dead_letters.walking import Walk
from postroom.errors import AccessDenied, ServiceUnavailable
from postroom.transports.protocol import VisibilityChange
from support.world import World, with_world

HOLD = 30.0


async def letters(world: World, count: int) -> DeadLetterQueue:
    """Bury some messages, and open the dead-letter queue."""
    world.create("other")
    world.create(dead_letters="dead", receives=1)
    world.send_orders(*map(str, range(count)), group="a")
    opened = await world.client.queue("orders")
    while world.counts() != (0, 0):
        await opened.receive(limit=10, wait=0, visibility=0)
    return await open_dead_letters(world.client, "dead", hold=HOLD)


@pytest.mark.parametrize("action", ["redrive", "purge"])
@with_world
async def test_letters_that_wait_for_their_turn_are_seen_by_no_other_run(world: World, action: str) -> None:
    """However long the rate has them wait: two operators at once send, or delete, each of them once."""
    async with world.client:
        queue = await letters(world, 60)
        more: dict[str, Any] = {"to": "other"} if action == "redrive" else {}

        async def act(desk: DeadLetterQueue, after: float) -> int:
            await asyncio.sleep(after)
            outcome = await getattr(desk, action)(dry_run=False, reason="try", rate=0.1, **more)
            assert not outcome.kept
            return int(outcome.done)

        another = await open_dead_letters(world.client, "dead", hold=HOLD)
        done = await asyncio.gather(act(queue, 0), act(another, 40))
        assert sum(done) == 60
        assert world.counts("other") == ((60, 0) if action == "redrive" else (0, 0))
        assert world.counts("dead") == (0, 0)


@with_world
async def test_a_run_that_waits_for_its_turn_stops_at_once(world: World) -> None:
    """Its next turn would come in a quarter of an hour; what it holds is visible again."""
    async with world.client:
        queue = await letters(world, 50)
        loop = asyncio.get_running_loop()
        loop.call_later(60, queue.stop)
        outcome = await queue.redrive(to="other", dry_run=False, reason="try", rate=0.01)
        assert loop.time() < 62
        assert (outcome.stopped, outcome.done) == (True, 10)
        assert (world.counts("other"), world.counts("dead")) == ((10, 0), (40, 0))


@with_world
async def test_a_receive_does_not_go_through_all_letters_that_are_held(world: World) -> None:
    """There may be a hundred thousand, in ten thousand receives."""

    class Counted(dict[str, tuple[float, str]]):
        looks = 0

        def items(self) -> Any:
            for each in super().items():
                self.looks += 1
                yield each

    async with world.client:
        await letters(world, 200)
        walk = Walk(await world.client.queue("dead"), hold=HOLD)
        held = walk._held = Counted()
        receives = [len(batch) async for batch in walk.batches()]
        assert sum(receives) == 200
        assert held.looks <= 2 * len(receives)
        await asyncio.sleep(HOLD * 0.6)
        await walk.extend()
        assert all(walk.owns(each) for each in list(held))
        await asyncio.sleep(HOLD * 0.6)
        assert world.counts("dead") == (0, 200)


@pytest.mark.parametrize(
    ("refusals", "told"), [([ServiceUnavailable("busy")] * 2, False), ([AccessDenied("no")], True)]
)
@with_world
async def test_letters_that_stay_invisible_after_a_look_are_told(
    world: World, refusals: list[Exception], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A call that fails for now is made again; one that is denied is a line that says for how long."""
    async with world.client:
        queue = await letters(world, 25)
        change = queue._queue.change_visibility
        left = list(refusals)

        async def refusing(changes: list[VisibilityChange]) -> Any:
            if left:
                raise left.pop()
            return await change(changes)

        queue._queue.change_visibility = refusing  # type: ignore[assignment, method-assign]
        assert len([letter async for letter in queue.letters()]) == 25
        assert await queue.hidden() == (25 if told else 0)
    said = [each.getMessage() for each in caplog.records if "visible again" in each.getMessage()]
    assert bool(said) == told
    if told:
        text = "Queue dead did not make 25 letters visible again that only were looked at; they are within 30 s: "
        assert said[0].startswith(text)


@with_world
async def test_what_is_invisible_is_not_known_without_the_permission(world: World) -> None:
    """It is nothing that a look would fail for."""
    async with world.client:
        queue = await letters(world, 1)

        async def denied() -> Any:
            raise AccessDenied("no")

        queue._queue.attributes = denied  # type: ignore[method-assign]
        assert await queue.hidden() == 0
