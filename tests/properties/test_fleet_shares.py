"""Max-min shares, for every demand that Hypothesis thinks of."""

from hypothesis import given
from hypothesis import strategies as st

from postroom.fleet.shares import share_of

DEMANDS = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda both: (both[0], max(both))),
    min_size=1,
    max_size=9,
)


@given(DEMANDS, st.integers(1, 40), st.integers(0, 100))
def test_shares_use_the_cap_and_no_more(demands: dict[str, tuple[int, int]], cap: int, period: int) -> None:
    """F1, F4: shares add up to the cap, or to all needs and half of the rest; none is more than its replica wants."""
    shares = {me: share_of(me, demands, cap, period) for me in demands}
    needs = sum(need for need, _ in demands.values())
    wants = sum(want for _, want in demands.values())
    assert sum(shares.values()) == min(cap, needs + min(wants - needs, max(0, cap - needs) // 2))
    assert all(0 <= shares[me] <= demands[me][1] for me in demands)
    if needs <= cap:
        assert all(shares[me] >= demands[me][0] for me in demands)


@given(DEMANDS, st.integers(1, 40), st.integers(0, 100))
def test_none_is_short_while_another_has_two_more(demands: dict[str, tuple[int, int]], cap: int, period: int) -> None:
    """F4: a replica that does not get what it needs has at most one slot less than any other."""
    shares = {me: share_of(me, demands, cap, period) for me in demands}
    for me, (need, _) in demands.items():
        if shares[me] < need:
            assert max(shares.values()) <= shares[me] + 1


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1_000))
def test_a_remainder_reaches_each_replica(replicas: int, cap: int, start: int) -> None:
    """F5: with equal needs, each replica has had the remainder after as many periods as there are replicas."""
    demands = {f"r{number}": (50, 50) for number in range(replicas)}
    level = cap // replicas
    had = {
        me for period in range(start, start + replicas) for me in demands if share_of(me, demands, cap, period) > level
    }
    assert had == (set(demands) if cap % replicas else set())
