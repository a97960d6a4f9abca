"""Max-min shares, for every demand that Hypothesis thinks of."""

import math
from itertools import cycle
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from postroom.fleet import Ask, Request
from postroom.fleet.memory import Store
from postroom.fleet.shares import Claim, share_of

DEMANDS = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda both: (both[0], max(both))),
    min_size=1,
    max_size=9,
)


@given(DEMANDS, st.integers(1, 40), st.randoms())
def test_shares_use_the_cap_and_no_more(demands: dict[str, tuple[int, int]], cap: int, random: Random) -> None:
    """F1, F4: shares add up to the cap, or to all needs and half of the rest; none is more than its replica wants."""
    line = {replica: Claim(*demands[replica]) for replica in random.sample(sorted(demands), len(demands))}
    shares = {me: share_of(me, line, cap).slots for me in demands}
    needs = sum(need for need, _ in demands.values())
    wants = sum(want for _, want in demands.values())
    assert sum(shares.values()) == min(cap, needs + min(wants - needs, max(0, cap - needs) // 2))
    assert all(0 <= shares[me] <= demands[me][1] for me in demands)
    if needs <= cap:
        assert all(shares[me] >= demands[me][0] for me in demands)


@given(DEMANDS, st.integers(1, 40), st.randoms())
def test_none_is_short_while_another_has_two_more(
    demands: dict[str, tuple[int, int]], cap: int, random: Random
) -> None:
    """F4: a replica that does not get what it needs has at most one slot less than any other."""
    line = {replica: Claim(*demands[replica]) for replica in random.sample(sorted(demands), len(demands))}
    shares = {me: share_of(me, line, cap).slots for me in demands}
    for me, (need, _) in demands.items():
        if shares[me] < need:
            assert max(shares.values()) <= shares[me] + 1


@given(st.integers(1, 9), st.integers(1, 9))
def test_a_remainder_goes_to_those_first_in_line(replicas: int, cap: int) -> None:
    """F5: with equal needs, those first in line have a turn, as many as there are slots above the equal level."""
    line = [f"r{number}" for number in range(replicas)]
    shares = {me: share_of(me, dict.fromkeys(line, Claim(50, 50)), cap) for me in line}
    level, remainder = divmod(cap, replicas)
    assert [me for me in line if shares[me].is_turn] == line[:remainder]
    assert all(share.slots == level + share.is_turn for share in shares.values())


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 5), st.integers(1, 4), st.lists(st.floats(0.01, 40.0), min_size=1, max_size=30))
def test_each_has_a_turn_however_long_handlers_run(replicas: int, cap: int, lengths: list[float]) -> None:
    """F5: in the time of one turn for each, with handlers of any lengths, every hungry replica has a slot."""
    lease, now = 10.0, 0.0
    store = Store(lambda: now)
    names = [f"r{number}" for number in range(replicas)]
    running: dict[str, list[float]] = {name: [] for name in names}
    length, had, sequence = cycle(lengths), set[str](), 0
    for _ in range(math.ceil(math.ceil(replicas / cap) * (lease + max(lengths) + 2))):
        now += 1.0
        for name in names:
            running[name] = [end for end in running[name] if end > now]
            sequence += 1
            ask = Ask("t", cap, len(running[name]), 50, 50)
            grant = store.exchange("f", Request(name, sequence, "", lease, 1.0, (ask,))).grants[0]
            while len(running[name]) < min(grant.slots, grant.share):
                running[name].append(now + next(length))
                had.add(name)
    assert had == set(names)
