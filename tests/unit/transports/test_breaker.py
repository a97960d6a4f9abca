"""When the hot path is left alone."""

from postroom.transports.aws.breaker import Breaker


def test_it_allows_until_misses_come_in_a_row() -> None:
    """Two misses, a hit and two misses pause nothing; three in a row do."""
    breaker = Breaker(misses=3, pause=5)
    assert [breaker.miss(0), breaker.miss(0), breaker.hit(), breaker.miss(0), breaker.miss(0)] == [
        None,
        None,
        False,
        None,
        None,
    ]
    assert breaker.allows(0)
    assert breaker.miss(0) == 5
    assert not breaker.allows(4.9)


def test_one_throttle_pauses() -> None:
    """A throttle pauses at once: botocore's retries know how to slow down, the hot path does not."""
    breaker = Breaker(pause=5)
    assert breaker.miss(10, throttled=True) == 5
    assert not breaker.allows(14.9)
    assert breaker.allows(15)


def test_after_a_pause_one_call_probes() -> None:
    """Until the probe has told, no other request takes the path; its success opens it to all."""
    breaker = Breaker(misses=1, pause=5)
    breaker.miss(0)
    assert breaker.allows(5)
    assert not breaker.allows(5)
    assert breaker.hit()
    assert breaker.allows(5)
    assert breaker.allows(5)
    assert not breaker.hit()


def test_a_probe_that_never_tells_does_not_close_the_path_for_good() -> None:
    """A cancelled probe is followed by another one after the same pause."""
    breaker = Breaker(misses=1, pause=5)
    breaker.miss(0)
    assert breaker.allows(5)
    assert not breaker.allows(9)
    assert breaker.allows(20)


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_success() -> None:
    """A path that stays broken is tried ever more rarely."""
    breaker = Breaker(misses=1, pause=5, longest=12)
    now, pauses = 0.0, []
    for _ in range(4):
        pause = breaker.miss(now)
        assert pause is not None
        pauses.append(pause)
        now += pause
        assert breaker.allows(now)
    assert pauses == [5, 10, 12, 12]
    breaker.hit()
    assert breaker.miss(now) == 5


def test_calls_from_before_the_pause_prove_nothing() -> None:
    """A long poll that began before the throttle neither ends the pause nor makes it longer."""
    breaker = Breaker(misses=3, pause=5)
    breaker.miss(0, throttled=True)
    assert not breaker.hit()
    assert breaker.miss(1) is None
    assert not breaker.allows(4.9)
    assert breaker.allows(5)
