"""What broken, dead and very many tenants cost: a bounded slice of what ``benchmarks/tenants`` measures."""

from dataclasses import replace

import pytest

from postroom import PoolLimits
from simulation.tenants.cases import black_hole, dead_host
from simulation.tenants.crowd import count_state, run_crowd
from simulation.tenants.world import Plan, Stream, Tenant, Trouble, World, simulate


def test_a_black_holed_tenant_with_half_of_the_traffic_costs_nothing() -> None:
    """It holds no slot, the others are as quick as if it were well, and one open at a time is tried, after a pause."""
    found = black_hole(1, seconds=12.0, rate=80.0)
    assert found.slots_held == 0
    assert found.ratio <= 1.05
    assert found.early_opens == 0
    assert found.opens >= 2
    assert found.handled == 1.0


@pytest.mark.long
def test_a_tenant_that_goes_dark_in_its_handlers_has_its_slots_until_they_time_out() -> None:
    """What already runs cannot be taken back; then its breaker opens, and the others are as quick as before."""
    found = black_hole(1, seconds=12.0, trouble=Trouble.HANGING, begin=4.0)
    assert found.slots_held == 16  # its per_tenant, so the watch can see slots
    assert found.ratio <= 1.05


@pytest.mark.parametrize(
    ("trouble", "max_receives", "rate", "outage"),
    [
        (Trouble.REFUSING, 3, 50.0, 20.0),
        pytest.param(Trouble.REFUSING, 3, 100.0, 30.0, marks=pytest.mark.long),
        pytest.param(Trouble.REFUSING, 5, 100.0, 30.0, marks=pytest.mark.long),
        pytest.param(Trouble.OPENS_HANG, 5, 100.0, 30.0, marks=pytest.mark.long),
    ],
)
def test_a_dead_host_is_found_out_once_and_costs_others_nothing_and_comes_back_at_once(
    trouble: Trouble, max_receives: int | None, rate: float, outage: float
) -> None:
    """300 tenants, 20 or 30 s: five opens tell all, no message is dead-lettered, and throughput is back within 2 s."""
    found = dead_host(
        1, trouble=trouble, max_receives=max_receives, tenants=300, rate=rate, before=8.0, outage=outage, after=8.0
    )
    assert found.failed_before_trip == 5
    assert found.most_opening <= 16
    assert found.others_during <= 1.05 * found.others_before
    assert found.others_after <= 1.5 * found.others_before  # of 200 messages; a wave would be a matter of seconds
    assert (found.dead_letters, found.handled) == (0, 1.0)
    if trouble is Trouble.REFUSING:  # an open that goes nowhere is only given up after PoolTimeouts.open
        assert found.recovered_after <= 2.0
        assert found.caught_up_after <= 5.0


@pytest.mark.long
def test_a_host_that_goes_silent_has_slots_only_until_its_first_handlers_time_out() -> None:
    """With a health check and a timeout for handlers: what is open there is checked, without a slot, before its use."""
    found = dead_host(
        1, trouble=Trouble.HANGING, tenants=300, rate=100.0, before=8.0, after=8.0, handler_timeout=1.0, check=True
    )
    assert found.others_during <= 1.1  # those that were sent in that second
    assert found.others_after <= 1.3 * found.others_before
    assert (found.dead_letters, found.handled) == (0, 1.0)


@pytest.mark.long
def test_two_thousand_tenants_of_a_dead_host_are_back_within_two_seconds() -> None:
    """As many as the promise says, with less traffic than the benchmark has."""
    found = dead_host(1, tenants=2_000, rate=120.0, before=6.0, after=7.0)
    assert found.failed_before_trip <= 5
    assert found.most_opening <= 16
    assert found.recovered_after <= 2.0
    assert found.handled == 1.0


@pytest.mark.long
def test_a_crowd_over_few_pools_keeps_the_budget_and_opens_no_more_than_an_lru_cache_would() -> None:
    """10,000 tenants, 200 pools of two connections; when all is idle, nothing is left of any of them."""
    many = run_crowd(seconds=10.0)
    few = run_crowd(seconds=10.0, tenants=500, seed=2)
    assert many.most_weight == many.most_connections == 400  # the budget, and never more
    assert few.most_connections == 400
    assert many.hit_rate >= many.lru - 0.02
    assert few.hit_rate >= few.lru - 0.02
    assert many.optimum > many.lru
    assert many.seen > 3 * few.seen
    assert many.left == few.left == 0
    # What is left is the message group of each tenant, in two tables: they are emptied at 10,000.
    assert many.state - 2 * many.seen == few.state - 2 * few.seen < 200


def test_the_count_of_what_is_kept_sees_open_pools() -> None:
    """The test above could not fail otherwise."""
    names = tuple(Tenant(f"tenant-{number}", "host") for number in range(50))
    counts: list[int] = []
    plan = Plan(streams=(Stream(tenants=names, rate=100.0),), seconds=5.0, limits=PoolLimits(idle=1.0, sweep=0.5))

    def note(world: World) -> None:
        counts.append(count_state(world))

    simulate(replace(plan, settle=10.0), at_end=note)
    simulate(replace(plan, settle=0.2), at_end=note)
    assert counts[1] > counts[0] + 50
