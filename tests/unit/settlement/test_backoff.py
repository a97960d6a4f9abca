"""A failed message is seen again later and later, within SQS's limits."""

from random import Random

import pytest

from postroom.options import RetryPolicy
from postroom.settlement import Delivery
from postroom.settlement.backoff import backoff, exponential, whole_seconds
from support.scripted import message


@pytest.mark.parametrize(("attempt", "expected"), [(1, 2.0), (2, 4.0), (3, 8.0), (10, 100.0), (100_000, 100.0)])
def test_it_doubles_up_to_the_cap(attempt: int, expected: float) -> None:
    """Without jitter the delay is base times two to the power of the attempts before, capped."""
    assert exponential(RetryPolicy(base=2, cap=100, jitter=0), attempt, Random(1)) == expected


def test_jitter_takes_away_a_random_part() -> None:
    """With jitter 0.5 the delay lies between half of it and all of it, and is not always the same."""
    delays = {exponential(RetryPolicy(base=10, jitter=0.5), 1, Random(seed)) for seed in range(200)}
    assert all(5 <= delay <= 10 for delay in delays)
    assert len(delays) > 100


def test_a_function_decides_instead() -> None:
    """RetryPolicy(delay=...) sees the message and the error."""
    policy = RetryPolicy(delay=lambda seen, error: 7.0 if isinstance(error, KeyError) and seen.id == "m1" else 1.0)
    assert backoff(policy, message(1), KeyError("x"), 1, Random(1)) == 7.0


@pytest.mark.parametrize("returned", [-5.0, 1e9])
def test_what_a_function_returns_is_clamped(returned: float) -> None:
    """A delay outside 0..43,200 is brought inside it."""
    delay = backoff(RetryPolicy(delay=lambda _m, _e: returned), message(1), ValueError(), 1, Random(1))
    assert delay in {0.0, 43_200.0}


@pytest.mark.parametrize("returned", [float("nan"), float("inf"), "soon"])
def test_a_function_that_answers_nonsense_is_ignored(returned: float) -> None:
    """NaN, infinity or text leave the formula in force."""
    policy = RetryPolicy(base=3, jitter=0, delay=lambda _m, _e: returned)
    assert backoff(policy, message(1), ValueError(), 1, Random(1)) == 3.0


def test_a_function_that_raises_is_ignored() -> None:
    """The formula applies, and nothing goes further."""

    def broken(_message: object, _error: object) -> float:
        raise RuntimeError

    assert backoff(RetryPolicy(base=3, jitter=0, delay=broken), message(1), ValueError(), 1, Random(1)) == 3.0


def test_attempts_count_and_receives_do_not() -> None:
    """A message that the consumer itself has received ten times, and that failed once, backs off as for one failure."""
    received = Delivery.of(message(1, receive_count=10), received_at=0.0, visibility=60.0)
    assert backoff(RetryPolicy(base=2, jitter=0), received, ValueError(), 1, Random(1)) == 2.0
    assert backoff(RetryPolicy(base=2, jitter=0), received.message, ValueError(), 3, Random(1)) == 8.0


@pytest.mark.parametrize(("delay", "sent"), [(0.0, 0), (0.01, 1), (1.0, 1), (1.2, 2), (99_999.0, 43_200), (-1.0, 0)])
def test_a_delay_is_sent_in_whole_seconds(delay: float, sent: int) -> None:
    """Rounded up, so that a short delay does not turn into none."""
    assert whole_seconds(delay) == sent
