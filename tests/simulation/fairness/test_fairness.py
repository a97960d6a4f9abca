"""A noisy tenant costs quiet ones nearly nothing: a bounded slice of what ``make fairness`` measures."""

from functools import cache
from typing import Any

import pytest

from simulation.fairness.model import Case, Outcome, simulate


@cache
def solo() -> float:
    """Return the 99th percentile that quiet tenants see alone."""
    return simulate(Case(noisy=0, seconds=40)).percentile(0.99)


def run(**options: Any) -> Outcome:
    """Run a short case with slow noisy handlers, which need few messages to fill all slots."""
    return simulate(Case(noisy_seconds=0.5, noise_rate=400, seconds=6, **options))


@pytest.mark.parametrize("noisy", [1, 3, 10])
def test_quiet_tenants_see_what_they_see_alone(noisy: int) -> None:
    """Within a tenth at the 99th percentile, while noisy tenants get most of the handler seconds."""
    outcome = run(noisy=noisy)
    assert outcome.percentile(0.99) <= 1.10 * solo()
    assert outcome.noisy_busy >= 0.8 * 50 * 6  # the first and the last half second of the run count, too
    assert len(outcome.latencies) >= outcome.quiet_sent - 3
    assert outcome.parked > 0


def test_fast_noisy_handlers_cost_no_more_than_slow_ones() -> None:
    """5,000 messages per second against slots for 2,500."""
    outcome = simulate(Case(seconds=1.5))
    assert outcome.percentile(0.99) <= 1.10 * solo()
    assert outcome.noisy_busy >= 0.88 * 50 * 1.5


def test_without_scouts_quiet_messages_wait_behind_noisy_ones() -> None:
    """The comparison: the same run with the same scheduler but a receive path that closes, and with plain queues."""
    for policy in ("drr", "fifo", "round-robin"):
        assert run(policy=policy).percentile(0.99) >= 3 * solo()


def test_a_queue_that_learns_late_who_is_noisy_costs_little() -> None:
    """Two seconds of lag, all of them counted: skimming finds the quiet messages."""
    assert run(lag=2).percentile(0.99) <= 3 * solo()


def test_noise_that_begins_later_is_noticed_by_the_silence_of_quiet_tenants() -> None:
    """The first look is long over, and the queue has just looked who is noisy: nothing but silence tells."""
    late = Case(noisy_seconds=0.5, noise_rate=1000, lag=2, noise_from=4.1, seconds=8, seed=2)
    outcome = simulate(late)
    assert outcome.percentile(0.99) <= 3 * solo()
    assert len(outcome.latencies) >= 0.9 * outcome.quiet_sent
