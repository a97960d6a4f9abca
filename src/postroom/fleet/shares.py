"""Who gets how many of a tenant's slots: max-min shares. Pure.

Needs come first: the smallest are met in full, the others get an equal level. Half of what is left over is shared in
the same way among those who want slots for what may come; the other half is free for a replica that asks next. A
remainder that does not go up goes round: it moves on with every
period, so that a cap below the number of hungry replicas reaches each of them.
"""

from collections.abc import Mapping


def share_of(me: str, demands: Mapping[str, tuple[int, int]], cap: int, period: int) -> int:
    """Return a replica's share of a cap, given what each replica needs and wants.

    Args:
        me: the replica that is asked for.
        demands: need and want by replica, ``me`` included.
        cap: slots in all.
        period: counts up with time; a remainder moves on with it.
    """
    needs = {replica: need for replica, (need, _want) in demands.items()}
    left = cap - sum(needs.values())
    if left < 0:
        return _filled(me, needs, cap, period)
    spare = {replica: max(0, want - need) for replica, (need, want) in demands.items()}
    return needs[me] + _filled(me, spare, left // 2, period)


def _filled(me: str, demands: Mapping[str, int], cap: int, period: int) -> int:
    """Return a replica's part of a cap that may not suffice for every demand."""
    left, rest = cap, len(demands)
    for demand in sorted(demands.values()):
        level = left // rest
        if demand > level:
            return _above(me, demands, level, left - level * rest, period)
        left -= demand
        rest -= 1
    return demands[me]


def _above(me: str, demands: Mapping[str, int], level: int, remainder: int, period: int) -> int:
    if demands[me] <= level:
        return demands[me]
    hungry = sorted(replica for replica, demand in demands.items() if demand > level)
    place = (hungry.index(me) - period * remainder) % len(hungry)
    return level + (place < remainder)
