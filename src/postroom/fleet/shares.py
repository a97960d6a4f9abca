"""Who gets how many of a tenant's slots: max-min shares. Pure.

Needs come first: the smallest are met in full, the others get an equal level. Half of what is left over is shared in
the same way among those who want slots for what may come; the other half is free for a replica that asks next. A
remainder that does not go up goes round in the order of a line, in which the replica comes first that has waited the
longest for its turn: so a cap below the number of hungry replicas reaches each of them, however long handlers run.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Claim(NamedTuple):
    """What a replica has to do with a tenant's slots."""

    need: int
    want: int
    held: int = 0


class Share(NamedTuple):
    """A replica's part of a cap."""

    slots: int
    """What it may be granted now, as far as there is room."""
    hope: int
    """What it gets as soon as handlers of others end."""
    is_turn: bool = False
    """Whether one of the slots is of a remainder that others need too."""


def share_of(me: str, line: Mapping[str, Claim], cap: int) -> Share:
    """Return a replica's share of a cap.

    Args:
        me: the replica that is asked for.
        line: what each replica claims, ``me`` included, in the order in which a remainder reaches them.
        cap: slots in all.
    """
    needs = {replica: claim.need for replica, claim in line.items()}
    left = cap - sum(needs.values())
    if left < 0:
        return _filled(me, needs, {replica: claim.held for replica, claim in line.items()}, cap)
    spare = {replica: max(0, claim.want - claim.need) for replica, claim in line.items()}
    slots = needs[me] + _filled(me, spare, dict.fromkeys(line, 0), left // 2).slots
    return Share(slots, slots)


def _filled(me: str, demands: Mapping[str, int], held: Mapping[str, int], cap: int) -> Share:
    """Return a replica's part of a cap that may not suffice for every demand."""
    left, rest = cap, len(demands)
    for demand in sorted(demands.values()):
        level = left // rest
        if demand > level:
            break
        left -= demand
        rest -= 1
    else:
        return Share(demands[me], demands[me])
    if demands[me] <= level:
        return Share(demands[me], demands[me])
    return _above(
        me,
        {replica: held[replica] - level for replica in demands if demands[replica] > level},
        level,
        left - level * rest,
    )


def _above(me: str, hungry: Mapping[str, int], level: int, remainder: int) -> Share:
    """Return the share of one that needs more than the level, given how much more than that each holds.

    A slot that is not given back yet by one behind in the line is missing to the last before it, not to the first.
    """
    names = list(hungry)
    place = names.index(me)
    before = sum(max(1, hungry[other]) for other in names[:place])
    behind = sum(max(0, hungry[other]) for other in names[place + 1 :])
    is_turn = before + behind < remainder
    is_next = hungry[me] <= 0 and before < remainder
    return Share(level + is_turn, level + (is_turn or is_next), is_turn)
