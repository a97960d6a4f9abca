"""A noisy tenant costs quiet ones nearly nothing: a bounded slice of what ``make fairness`` measures."""

from dataclasses import replace

import pytest

from simulation.fairness.model import Case, Outcome, simulate

SLOW = Case(noisy_seconds=0.5, noise_rate=600.0, noise_from=1.0, seconds=6.0, seed=101)
"""Slow noisy handlers need few messages to fill all slots. Quiet tenants have been seen before."""
LATE = replace(SLOW, noise_from=4.7, lag=2.0)
"""The first look of the queue at who is noisy is long over, and it has just looked."""


def pooled(case: Case) -> Outcome:
    """Run a case with two seeds, and put what they showed together."""
    first, second = simulate(case), simulate(replace(case, seed=case.seed + 1))
    first.latencies += second.latencies
    first.noisy_busy += second.noisy_busy
    first.quiet_sent += second.quiet_sent
    first.parked += second.parked
    return first


LONG = [(2.0, 10), (10.0, 1), (10.0, 10)]
"""Lags with numbers of noisy tenants that take long to simulate."""


def solo(case: Case) -> float:
    """Return the 99th percentile of the same quiet messages without noise."""
    return pooled(replace(case, noisy=0)).percentile(0.99)


@pytest.mark.parametrize(
    "noisy", [pytest.param(1, marks=pytest.mark.long), 3, pytest.param(10, marks=pytest.mark.long)]
)
def test_quiet_tenants_see_what_they_see_alone(noisy: int) -> None:
    """Noisy ones get most of the handler seconds; a few messages are too few to tell a tenth exactly."""
    case = replace(SLOW, noisy=noisy)
    outcome = pooled(case)
    assert outcome.percentile(0.99) <= 1.15 * solo(case)
    assert outcome.noisy_busy >= 0.8 * 50 * 12  # the first and the last half second of each run count, too
    assert len(outcome.latencies) >= outcome.quiet_sent - 6
    assert outcome.parked > 0


@pytest.mark.parametrize("seed", [5, pytest.param(24, marks=pytest.mark.long)])
def test_noise_that_begins_with_the_consumer_costs_quiet_tenants_little(seed: int) -> None:
    """No tenant has been seen before: there is room enough here to find out who is quiet."""
    outcome = simulate(Case(noisy_seconds=0.5, noise_rate=1000.0, seconds=4.0, seed=seed))
    assert outcome.percentile(0.98) <= 0.05


@pytest.mark.long
def test_fast_noisy_handlers_cost_no_more_than_slow_ones() -> None:
    """4,000 messages per second against slots for 2,500."""
    case = Case(seconds=2.0, seed=101)
    outcome = pooled(case)
    assert outcome.percentile(0.99) <= 1.15 * solo(case)
    assert outcome.noisy_busy >= 0.88 * 50 * 4


def test_a_lone_consumer_is_as_good_as_one_with_all_receives_outstanding() -> None:
    """So comparing with it is fair."""
    alone = replace(SLOW, noisy=0, seconds=20.0)
    assert solo(alone) <= 1.02 * pooled(replace(alone, policy="wide")).percentile(0.99)


@pytest.mark.parametrize("policy", ["drr", "fifo", "round-robin"])
def test_without_scouts_quiet_messages_wait_behind_noisy_ones(policy: str) -> None:
    """The comparison: the same run with the same scheduler but a receive path that closes, and with plain queues."""
    case = replace(SLOW, policy=policy)
    assert simulate(case).percentile(0.99) >= 3 * simulate(replace(case, noisy=0)).percentile(0.99)


@pytest.mark.parametrize(("lag", "noisy"), [(2.0, 1), *(pytest.param(*each, marks=pytest.mark.long) for each in LONG)])
def test_a_queue_that_learns_late_who_is_noisy_costs_little(noisy: int, lag: float) -> None:
    """The noise begins when it has just looked; only messages sent from then on count."""
    case = replace(LATE, noisy=noisy, lag=lag, noise_from=lag + 2.7)
    outcome = pooled(case)
    assert outcome.percentile(0.99) <= (1.5 if lag < 10 else 3) * solo(case)
    assert len(outcome.latencies) >= 0.97 * outcome.quiet_sent


@pytest.mark.long
def test_a_queue_that_knows_is_not_skimmed() -> None:
    """Once it is seen that it puts quiet tenants first, only scouts go on: much less is parked than arrives."""
    case = replace(SLOW, noise_rate=1500.0)
    first, second = (simulate(replace(case, seconds=seconds)).parked for seconds in (7.5, 9.5))
    assert second - first <= 0.7 * 2 * 1500


def test_a_simulation_repeats_exactly() -> None:
    """The same seed is the same run."""
    case = replace(SLOW, seconds=2.0)
    assert simulate(case) == simulate(case)
