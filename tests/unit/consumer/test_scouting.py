"""The queue's own times tell whether it puts quiet tenants first; until then everything is skimmed off."""

import asyncio
from itertools import pairwise
from typing import Literal

import pytest
from msgspec import structs

from postroom import Consumer, MessageContext, Polling
from postroom.consumer.crowd import WINDOW, Crowd
from postroom.consumer.demand import SPARSE, AdaptivePolicy
from postroom.consumer.overtaking import Overtaking
from postroom.consumer.scouting import BUDGET, SCOUTS, Scouting
from postroom.message import Message
from simulation.fairness.model import FarClient
from support.jobs import job
from support.world import Order, Tenant, World, with_world


def at(sent: float, received: float, *, receives: int = 1) -> Message:
    """Make a message with the queue's times, in milliseconds."""
    system = {
        "SentTimestamp": str(int(sent)),
        "ApproximateFirstReceiveTimestamp": str(int(received)),
        "ApproximateReceiveCount": str(receives),
    }
    return Message(id="m", body="{}", system_attributes=system)


class TestOvertaking:
    """What the order of messages tells."""

    def test_a_message_that_was_overtaken_shows_that_the_queue_knows_its_tenant(self) -> None:
        """Nothing quiet lies behind such a tenant's messages; how old they are says nothing then."""
        order = Overtaking()
        assert not order.found_noisy("a", at(0, 100), now=0.1)
        assert order.depth == pytest.approx(0.1)
        order.found_quiet(at(98, 101), until=0.3)
        assert order.found_noisy("a", at(2, 102), now=0.102)
        assert order.depth == 0

    def test_messages_in_the_order_in_which_they_were_sent_show_how_long_a_quiet_one_lies(self) -> None:
        """First in, first out: the quiet one came as late as the noisy ones around it."""
        order = Overtaking()
        assert order.found_quiet(at(40, 100), until=1.0) == pytest.approx(0.06)
        assert not order.found_noisy("a", at(41, 101), now=0.1)
        assert order.depth == pytest.approx(0.06)

    def test_messages_of_one_receive_are_in_no_order(self) -> None:
        """A noisy one of the same millisecond was not overtaken."""
        order = Overtaking()
        order.found_quiet(at(98, 101), until=1.0)
        assert not order.found_noisy("a", at(2, 101), now=0.1)

    def test_what_is_known_of_one_tenant_says_nothing_of_another(self) -> None:
        """A second noisy tenant is noticed although the first one is known."""
        order = Overtaking()
        order.found_quiet(at(98, 101), until=1.0)
        order.found_noisy("a", at(2, 102), now=0.1)
        assert not order.found_noisy("b", at(97, 130), now=0.13)
        assert order.depth == pytest.approx(0.033)

    def test_what_is_known_counts_for_as_long_as_quiet_messages_come(self) -> None:
        """Old evidence is none: the queue may have changed its mind."""
        order = Overtaking()
        order.found_quiet(at(98, 101), until=0.3)
        assert order.found_noisy("a", at(2, 102), now=0.102)
        assert order.found_noisy("a", at(99, 103), now=0.299)  # known, though this one was not overtaken
        assert not order.found_noisy("a", at(2, 302), now=0.301)

    @pytest.mark.parametrize("again", [at(0, 500, receives=2), Message(id="m", body="{}")])
    def test_a_message_that_came_back_or_has_no_times_tells_nothing(self, again: Message) -> None:
        """Its place in the queue is not the one that it was sent to; but it comes last if its tenant is known."""
        order = Overtaking()
        assert order.found_quiet(again, until=1.0) == 0
        assert order.found_noisy("a", again, now=0.5) is None
        assert order.depth == 0
        order.found_quiet(at(98, 101), until=1.0)
        assert order.found_noisy("a", at(2, 102), now=0.5)
        assert order.found_noisy("a", again, now=0.5)

    def test_forgetting_and_an_empty_queue(self) -> None:
        """What was known is known no more; and nothing lies in a queue that gave less than was asked for."""
        order = Overtaking()
        order.found_quiet(at(98, 101), until=1.0)
        order.found_noisy("a", at(2, 102), now=0.1)
        order.forget()
        order.found_noisy("a", at(99, 150), now=0.15)
        assert order.depth == pytest.approx(0.051)
        order.emptied()
        assert order.depth == 0

    def test_memory_is_bounded(self) -> None:
        """Noisy tenants without number are forgotten."""
        order = Overtaking()
        order.found_quiet(at(98, 101), until=1.0)
        for number in range(3_000):
            order.found_noisy(number, at(2, 102), now=0.1)
        assert len(order._known) <= 1_000


class Look:
    """A consumer's scouting with a clock that is moved by hand."""

    def __init__(self, *, when: bool | Literal["always"] = "always", crowd: Crowd | None = None) -> None:
        self.now = 1.0
        self.scouting = Scouting(crowd or Crowd(), self.now, when=when)

    def skims(self) -> bool:
        """Return whether every poller takes full batches now."""
        return self.scouting.is_skimming(self.now)

    def pause(self, number: int = 0) -> float | None:
        """Ask whether a poller may scout."""
        return self.scouting.pause(number, self.now, pollers=8, round_trip=0.01)

    def noisy(self, lay: float, *, emptied: bool = False) -> None:
        """Receive a noisy tenant's message that lay in the queue for some milliseconds."""
        milliseconds = self.now * 1e3
        self.scouting.found_noisy("noisy", at(milliseconds - lay, milliseconds))
        self.scouting.received(self.now, emptied=emptied)

    def quiet(self, lay: float = 2) -> None:
        """Receive a quiet tenant's message that lay in the queue for some milliseconds."""
        milliseconds = self.now * 1e3
        self.scouting.found_quiet(at(milliseconds - lay, milliseconds), self.now)

    def crowded(self, seconds: float, *, noisy: float, quiet: float | None = 2, emptied: bool = False) -> None:
        """Let time pass in a crowd; every 40 ms a quiet message comes, if any does."""
        end = self.now + seconds
        tick = 0
        while self.now < end:
            self.now += 0.002
            tick += 1
            self.pause()
            if quiet is not None and tick % 20 == 0:
                self.quiet(quiet)
            self.noisy(noisy, emptied=emptied)


class TestScouting:
    """When every poller takes full batches, and when a few small receives are enough."""

    def test_a_crowd_begins_with_skimming(self) -> None:
        """It is not known yet whether the queue knows; every poller goes, one after the other within a round trip."""
        look = Look()
        assert look.pause(0) == 0.0
        assert look.pause(1) == pytest.approx(0.01 / 8)
        for number in range(1, 8):
            look.now += 0.01 / 8
            assert look.pause(number) == 0.0
        assert look.skims()

    def test_it_ends_when_quiet_messages_overtake(self) -> None:
        """From then on there are a few scouts, one after the other."""
        look = Look()
        look.crowded(2, noisy=500)
        assert not look.skims()
        assert look.pause(SCOUTS) is None
        look.now += 0.01
        assert look.pause(0) == 0.0
        assert look.pause(1) == pytest.approx(0.01 / SCOUTS)

    def test_it_goes_on_while_quiet_messages_lie_as_long_as_noisy_ones(self) -> None:
        """The queue does not know yet."""
        look = Look()
        look.crowded(3, noisy=60, quiet=60)
        assert look.skims()

    def test_what_is_tried_in_vain_is_tried_more_rarely(self) -> None:
        """Each try costs the quiet messages that come meanwhile some time."""
        look = Look()
        tries: list[float] = []
        for turn in range(15_000):
            was = look.skims()
            look.now += 0.002
            if was and not look.skims():
                tries.append(look.now)
            look.pause()
            if turn % 20 == 0:
                look.quiet(40)
            look.noisy(20)
        pauses = [later - earlier for earlier, later in pairwise(tries)]
        assert pauses == pytest.approx([2, 4, 8, 8], abs=0.01)

    def test_a_queue_that_is_kept_empty_is_tried_without(self) -> None:
        """After a second, as long as nothing lies there; it goes on as soon as something does."""
        look = Look()
        look.crowded(1.5, noisy=2, quiet=2, emptied=True)
        assert not look.skims()
        look.crowded(0.02, noisy=20, quiet=None)
        assert look.skims()

    def test_a_queue_that_is_never_empty_may_hide_quiet_messages(self) -> None:
        """However fresh the noisy ones are: it may take the wrong tenants for noisy, and put quiet ones last."""
        look = Look()
        look.crowded(1.5, noisy=2, quiet=2, emptied=True)
        assert not look.skims()
        look.crowded(0.05, noisy=2, quiet=None)
        assert not look.skims()
        look.crowded(0.02, noisy=2, quiet=None)
        assert look.skims()

    def test_one_tenant_that_is_known_does_not_end_it(self) -> None:
        """Others that the queue does not know may come in between."""
        look = Look()
        for turn in range(200):
            look.now += 0.002
            look.pause()
            if turn % 10 == 0:
                look.quiet()
            milliseconds = look.now * 1e3
            look.scouting.found_noisy(turn % 3, at(milliseconds - (500 if turn % 3 else 1), milliseconds))
            look.scouting.received(look.now, emptied=False)
        assert look.skims()

    def test_silence_of_quiet_tenants_is_looked_into_ever_more_rarely(self) -> None:
        """What was known counts no more when messages that usually come stay away; but they may have stopped."""
        look = Look()
        look.crowded(2, noisy=500)
        assert not look.skims()
        look.crowded(0.3, noisy=500, quiet=None)
        assert look.skims()
        skimmed = 0
        for _ in range(60):
            look.crowded(1, noisy=500, quiet=None)
            skimmed += look.skims()
        assert skimmed <= 12

    def test_a_crowd_of_everybody_is_not_skimmed(self) -> None:
        """Where a third of the messages is of tenants that have nothing here, none is noisy: it is all too much."""
        look = Look()
        for _ in range(2_000):
            look.now += 0.001
            look.pause()
            look.quiet(5_000)
            look.noisy(5_000)
        assert not look.skims()

    def test_it_can_be_switched_off(self) -> None:
        """It says why there is none."""
        look = Look(when=False)
        assert look.pause() is None
        assert "scout=False" in str(look.scouting.stopped_because(look.now))

    def test_it_ends_with_its_budget_and_goes_on_as_messages_are_handled(self) -> None:
        """It parks as many messages as are handled, and a bounded number beyond."""
        look = Look()
        for _ in range(BUDGET):
            look.scouting.parked()
        assert look.pause() is None
        assert "budget" in str(look.scouting.stopped_because(look.now))
        look.scouting.handled()
        assert look.pause() == 0.0
        look.scouting.parked()
        assert look.pause() is None


class TestCrowd:
    """When there is proof of a noisy tenant beside a quiet one."""

    def proved(self, *tenants: tuple[int, int], grouped: bool = True) -> bool:
        """Return whether there is proof, when so many messages of each tenant found its share used up, and room."""
        crowd = Crowd()
        for tenant, (over, within) in enumerate(tenants):
            for number in range(over + within):
                crowd.came(tenant, 1.0, over=number < over, grouped=grouped)
        return crowd.is_proved(1.5)

    def test_one_tenant_alone_is_never_noisy(self) -> None:
        """There is no other to look for."""
        assert not self.proved((1_000, 20))

    @pytest.mark.parametrize("tenants", [2, 3, 10, 100])
    def test_equal_tenants_are_never_noisy(self, tenants: int) -> None:
        """They find the same; nor are those noisy that differ as chance has it."""
        assert not self.proved(*[(100, 10)] * tenants)
        assert not self.proved(*[(60 + 40 * (number % 2), 20) for number in range(tenants)])
        assert not self.proved(*[(0, 100)] * tenants)

    @pytest.mark.parametrize("quiet", [1, 5, 50])
    def test_a_noisy_tenant_beside_quiet_ones_is_proof(self, quiet: int) -> None:
        """However many there are of these."""
        assert self.proved((1_000, 10), *[(0, 10)] * quiet)

    def test_a_few_messages_prove_nothing(self) -> None:
        """A burst of a dozen is no noise, and one message of a newcomer is no quiet tenant."""
        assert not self.proved((12, 3), (0, 3))
        assert not self.proved((1_000, 10), (0, 1))

    def test_only_tenants_whose_messages_find_their_share_used_up_are_noisy(self) -> None:
        """The others keep their place."""
        crowd = Crowd()
        for number in range(300):
            crowd.came("noisy", 1.0, over=True, grouped=True)
            if number % 10 == 0:
                crowd.came("quiet", 1.0, over=False, grouped=True)
        assert crowd.is_proved(1.5)
        assert crowd.is_noisy("noisy")
        assert not crowd.is_noisy("quiet")

    def test_proof_grows_old(self) -> None:
        """Within ten seconds without messages there is none."""
        crowd = self.seen()
        assert crowd.is_proved(2.0)
        assert not crowd.is_proved(12.0)

    def test_without_message_groups_there_is_no_scouting_unless_it_is_asked_for(self) -> None:
        """The queue hands quiet tenants' messages out first only if it knows tenants."""
        for grouped, when, expected in ((False, True, None), (True, True, 0.0), (False, "always", 0.0)):
            assert Look(when=when, crowd=self.seen(grouped=grouped)).pause() == expected  # type: ignore[arg-type]

    def seen(self, *, grouped: bool = True) -> Crowd:
        """Return a crowd of a noisy tenant and a quiet one."""
        crowd = Crowd()
        for number in range(300):
            crowd.came("noisy", 1.0, over=True, grouped=grouped)
            if number % 20 == 0:
                crowd.came("quiet", 1.0, over=False, grouped=grouped)
        return crowd

    def test_memory_is_bounded(self) -> None:
        """Tenants without number are not counted."""
        crowd = Crowd()
        for number in range(30_000):
            crowd.came(number, 1.0, over=True, grouped=True)
        assert len(crowd._counts) <= 10_000


@with_world
async def test_while_messages_come_one_by_one_three_receives_wait_for_them(world: World) -> None:
    """So that one is there when a message comes while another is on its way; in a quiet queue one is enough."""
    world.create()
    orders = Consumer("orders", context=Tenant, polling=Polling(pollers=8), client=world.client)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Tenant]) -> None:
        pass

    async with orders:
        await asyncio.sleep(50)
        waiting = [len(world.broker.polls)]
        for number in range(20):
            world.send_orders(str(number))
            await asyncio.sleep(0.05)
        waiting.append(len(world.broker.polls))
        await asyncio.sleep(50)
        waiting.append(len(world.broker.polls))
    assert waiting == [1, SPARSE, 1]


def test_reading_statistics_changes_no_decision() -> None:
    """What ``statistics()`` says of scouting is what was decided last: it neither looks again nor turns a window."""
    looked, read = Crowd(), Crowd()
    look = Look(when=True, crowd=read)
    for step in range(200):
        now = look.now = 1.0 + step * 0.3
        for crowd in (looked, read):
            crowd.came("noisy", now, over=True, grouped=True)
            crowd.came("quiet", now, over=False, grouped=True)
        if step % 7 == 0:
            assert looked.is_suspected(now) == read.is_suspected(now)
        said = look.scouting.said(now + 0.15)
        assert (said is None) == read.was_suspected(now + 0.15)
    assert look.scouting.said(look.now) is None
    assert "no message of the last seconds" in str(look.scouting.said(look.now + 3_600.0))
    assert looked.is_proved(look.now) == read.is_proved(look.now)
    assert vars_of(looked) == vars_of(read)


def vars_of(crowd: Crowd) -> dict[str, object]:
    """Return everything that a crowd remembers."""
    return {name: repr(value) for name, value in vars(crowd).items()}


@pytest.mark.parametrize("when", [True, False, "always"])
def test_messages_without_groups_are_counted_only_where_they_can_make_room(when: bool | Literal["always"]) -> None:
    """No quiet tenant's message is put first without them, so nothing is proved and nothing is looked up."""
    crowd = Crowd()
    policy = AdaptivePolicy(Polling(), Scouting(crowd, 0.0, when=when), crowd)
    plain, grouped = job("a"), job("a")
    grouped.message = structs.replace(grouped.message, system_attributes={"MessageGroupId": "a"})
    assert policy.is_choosy(plain, 1.0) is (when == "always")
    assert policy.is_choosy(grouped, 1.0) is bool(when)
    crowd.came("a", 1.0, over=False, grouped=True)
    assert policy.is_choosy(plain, 2.0) is bool(when)  # some of the messages have groups: all of them count
    assert policy.is_choosy(plain, 1.0 + 2 * WINDOW) is (when == "always")


@pytest.mark.parametrize(("seconds", "longest"), [(2.0, 2.0), (30.0, 4.0)])
@with_world
async def test_free_slots_are_for_rare_tenants_too(world: World, seconds: float, longest: float) -> None:
    """One has a backlog and as many slots as it may; another sends a message now and then, too few for any proof."""
    world.create(dead_letters="dead", receives=3)
    orders = Consumer("orders", context=Tenant, client=FarClient(world.client, 0.01))
    loop = asyncio.get_running_loop()
    late: list[float] = []

    @orders.handler
    async def handle(order: Order, ctx: MessageContext[Tenant]) -> None:
        if ctx.context.tenant_id == "rare":
            late.append(loop.time() - order.seconds)
        else:
            await asyncio.sleep(seconds)

    async with orders:
        world.send_orders(*map(str, range(2_000)), tenant="busy", group="busy")
        for _ in range(30):
            await asyncio.sleep(10)
            world.send_orders("x", tenant="rare", group="rare", seconds=loop.time())
        await asyncio.sleep(5)
        statistics = orders.statistics()
        world.broker.purge("orders")
    receives, glances = statistics.receives, statistics.scouting_receives
    assert len(late) == 30
    assert max(late) <= longest
    assert receives - glances <= 300
    assert glances <= 4 * 305


@with_world
async def test_no_glance_is_taken_without_message_groups(world: World) -> None:
    """The queue puts no tenant first then: it would bring more of the backlog."""
    world.create()
    orders = Consumer("orders", context=Tenant, client=FarClient(world.client, 0.01))

    @orders.handler
    async def handle(_order: Order, _ctx: MessageContext[Tenant]) -> None:
        await asyncio.sleep(2)

    async with orders:
        world.send_orders(*map(str, range(2_000)), tenant="busy")
        await asyncio.sleep(60)
        world.broker.purge("orders")
    assert orders.statistics().scouting_receives == 0
