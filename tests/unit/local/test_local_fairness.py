"""Fair queues: a standard queue with messages that have a MessageGroupId delivers quiet tenants first."""

import pytest

from postroom.errors import ConfigurationError
from postroom.local import FairPolicy, LocalQueue
from postroom.local.fair import FairOrder
from unit.local.bench import Bench


def backlog(bench: Bench, tenant: str = "noisy", count: int = 200, *, taken: int = 40) -> LocalQueue:
    """Make a queue full of one tenant, with some of its messages in flight."""
    queue = bench.queue(VisibilityTimeout="43200")
    bench.send(queue, *(f"{tenant}-{number}" for number in range(count)), group=tenant)
    for _ in range(taken // 10):
        bench.take(queue)
    return queue


def noisy(queue: LocalQueue, now: float) -> list[str]:
    """Return the tenants of a queue that are noisy."""
    assert isinstance(queue.order, FairOrder)
    return queue.order.noisy_groups(now)


def test_quiet_first(bench: Bench) -> None:
    """A quiet tenant's message overtakes the whole backlog of a noisy one."""
    queue = backlog(bench)
    bench.send(queue, "quiet-0", group="quiet")
    assert bench.bodies(queue, 2) == ["quiet-0", "noisy-40"]


def test_without_a_group_everybody_is_quiet(bench: Bench) -> None:
    """A message without a group is a tenant of its own."""
    queue = backlog(bench)
    bench.send(queue, "nobody's")
    bench.send(queue, "quiet-0", group="quiet")
    assert bench.bodies(queue, 3) == ["nobody's", "quiet-0", "noisy-40"]


def test_a_queue_without_groups_is_first_come_first_served(bench: Bench) -> None:
    """Without groups nothing is reordered, however much is in flight."""
    queue = bench.queue(VisibilityTimeout="43200")
    bench.send(queue, *map(str, range(100)))
    seen = [body for _ in range(10) for body in bench.bodies(queue)]
    assert seen == list(map(str, range(100)))


@pytest.mark.parametrize(("held", "expected"), [(29, []), (30, ["t"])])
def test_at_least_thirty_in_flight(bench: Bench, held: int, expected: list[str]) -> None:
    """Below 30 messages of its own in flight, a share in flight makes no tenant noisy."""
    queue = bench.queue(VisibilityTimeout="43200")
    bench.send(queue, *map(str, range(held)), group="t")
    while bench.take(queue):
        pass
    assert noisy(queue, bench.now) == expected


@pytest.mark.parametrize(("others", "expected"), [(270, []), (269, ["t"])])
def test_more_than_a_tenth_in_flight(bench: Bench, others: int, expected: list[str]) -> None:
    """Exactly a tenth of what is in flight is not noisy; more is."""
    queue = bench.queue(VisibilityTimeout="43200")
    bench.send(queue, *map(str, range(30)), group="t")
    bench.send(queue, *map(str, range(others)))
    while bench.take(queue):
        pass
    assert noisy(queue, bench.now) == expected


def test_noisy_by_processing_time(bench: Bench) -> None:
    """A tenant with few but slow messages is noisy by its share of the processing time."""
    queue = bench.queue(VisibilityTimeout="43200")
    bench.send(queue, "slow-0", "slow-1", group="slow")
    bench.send(queue, *map(str, range(9)))
    bench.take(queue, 1)
    bench.wait(20)
    for _ in range(9):  # quick ones: no time at all
        bench.delete(queue, *[each for each in bench.take(queue) if each.body != "slow-1"])
    assert noisy(queue, bench.now) == ["slow"]
    bench.wait(0.01)
    bench.send(queue, "quiet", group="quiet")
    assert bench.bodies(queue, 1) == ["quiet"]


def test_quiet_again(bench: Bench) -> None:
    """When its messages are done and its processing time is no longer recent, a tenant is quiet again."""
    queue = bench.queue(VisibilityTimeout="43200")
    bench.send(queue, *map(str, range(40)), group="t")
    held = [message for _ in range(4) for message in bench.take(queue)]
    bench.wait(5)
    bench.delete(queue, *held)
    assert noisy(queue, bench.now) == ["t"]
    bench.wait(600)
    assert noisy(queue, bench.now) == []
    bench.send(queue, "t-next", group="t")
    bench.send(queue, "other", group="other")
    assert bench.bodies(queue) == ["t-next", "other"]


def test_nobody_is_held_back_without_need(bench: Bench) -> None:
    """Noisy tenants get everything that no quiet one asks for, oldest first among themselves."""
    queue = bench.queue(VisibilityTimeout="43200")
    for number in range(100):
        bench.send(queue, f"a{number}", group="a")
        bench.send(queue, f"b{number}", group="b")
    for _ in range(10):
        bench.take(queue)
    assert noisy(queue, bench.now) == ["a", "b"]
    assert bench.bodies(queue, 4) == ["a50", "b50", "a51", "b51"]


def test_noisy_until_the_backlog_is_drained(bench: Bench) -> None:
    """A share that falls does not make a tenant quiet while it has a backlog, unless it sends nothing for long."""
    queue = bench.queue(VisibilityTimeout="43200")
    bench.send(queue, *map(str, range(50)), group="t")
    held = [message for _ in range(4) for message in bench.take(queue)]
    bench.send(queue, *(f"other-{number}" for number in range(1_000)))
    for _ in range(100):
        bench.take(queue)
    bench.delete(queue, *held)
    assert noisy(queue, bench.now) == ["t"]  # not by its shares any longer
    bench.send(queue, "quiet", group="quiet")
    assert bench.bodies(queue, 1) == ["quiet"]
    bench.wait(301)
    assert noisy(queue, bench.now) == []
    bench.send(queue, "quiet again", group="quiet")
    assert bench.bodies(queue, 1) == ["40"]


def test_the_least_noisy_comes_first(bench: Bench) -> None:
    """Of several noisy tenants, the one with the fewest messages in flight."""
    queue = bench.queue(VisibilityTimeout="43200")
    bench.send(queue, *(f"a{number}" for number in range(60)), group="a")
    for _ in range(5):
        bench.take(queue)
    bench.send(queue, *(f"b{number}" for number in range(60)), group="b")
    for _ in range(4):
        bench.take(queue)
    assert noisy(queue, bench.now) == ["a", "b"]
    assert bench.bodies(queue, 2) == ["b40", "b41"]


def test_a_message_that_comes_back_keeps_its_tenant(bench: Bench) -> None:
    """Messages given back are counted out of flight and stay with their tenant."""
    queue = backlog(bench, count=40, taken=30)
    [*rest] = bench.take(queue)
    bench.back(queue, *rest)
    assert bench.counts(queue) == (10, 30, 0)
    bench.send(queue, "quiet", group="quiet")
    assert bench.bodies(queue, 1) == ["quiet"]


def test_lag(lagging: Bench) -> None:
    """With a lag, who became noisy is noticed at the next look, and not before."""
    queue = backlog(lagging)
    lagging.send(queue, "quiet-0", group="quiet")
    assert lagging.bodies(queue, 1) == ["noisy-40"]
    lagging.wait(10)
    assert lagging.bodies(queue, 1) == ["quiet-0"]


def test_delay_and_deletion_in_a_lane(bench: Bench) -> None:
    """Delayed and deleted messages of a tenant neither come early nor stop the others of it."""
    queue = bench.queue(VisibilityTimeout="1", MessageRetentionPeriod="60")
    bench.send(queue, "a", "b", group="t")
    bench.send(queue, "late", group="t", delay_seconds=30)
    [a] = bench.take(queue, 1)
    bench.wait(1)
    bench.delete(queue, a)  # it lay behind b
    assert bench.bodies(queue) == ["b"]
    bench.wait(30)
    assert bench.bodies(queue) == ["b", "late"]
    bench.wait(60)
    assert bench.counts(queue) == (0, 0, 0)
    bench.send(queue, "new", group="t")
    assert bench.bodies(queue) == ["new"]


def test_extended_after_the_timeout_in_a_lane(bench: Bench) -> None:
    """A message that is hidden again after it lay is not delivered from where it lay."""
    queue = bench.queue(VisibilityTimeout="1")
    bench.send(queue, "a", "b", group="t")
    [a] = bench.take(queue, 1)
    bench.wait(1)
    bench.back(queue, a, seconds=50)
    assert bench.bodies(queue, visibility_timeout=500) == ["b"]
    bench.wait(50)
    assert bench.bodies(queue) == ["a"]


def test_a_flood_of_tenants_is_forgotten(bench: Bench) -> None:
    """Tenants that come once and never again do not stay in memory."""
    queue = bench.queue()
    for number in range(5_000):
        bench.send(queue, "x", group=f"tenant-{number}")
        bench.delete(queue, *bench.take(queue))
        bench.wait(0.001)
    assert isinstance(queue.order, FairOrder)
    assert len(queue.order._lanes) <= 2_000
    assert len(queue.order._quiet) < 100 + 4 * len(queue.order._lanes)


def test_changing_sides_leaves_no_heap_behind(bench: Bench) -> None:
    """A tenant that becomes noisy and quiet again and again does not fill the heaps."""
    queue = backlog(bench, count=2_000, taken=20)
    held = bench.take(queue)
    for _ in range(500):
        bench.back(queue, *held[:5])
        held = held[5:] + bench.take(queue, 5)
    assert isinstance(queue.order, FairOrder)
    assert len(queue.order._quiet) < 300


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.0}, {"minimum": 0}, {"recent": 0}, {"lag": -1}])
def test_impossible_policies(options: dict[str, float]) -> None:
    """A policy that cannot work is refused when it is made."""
    with pytest.raises(ConfigurationError):
        FairPolicy(**options)  # type: ignore[arg-type]
