"""Oracle *spacing*: a step that fails for everything uses up no attempts in a hurry.

A message that it failed for comes back by itself at last. It comes at once when its process has seen the step work.
"""

from collections.abc import Iterable
from typing import Final

from postroom import AckMode
from simulation.consumer.attempts import HANDED_OUT_TWICE, LONG, Receive
from simulation.consumer.functions import UserFunctions
from simulation.consumer.plan import Plan, Raising

_ROW: Final = 10
"""Messages in a row after which a process knows that a step fails for everything."""
_CALLED_BACK: Final = 120.0
_EACH: Final = 10.0
"""Seconds after which what waits for a step is called back, once that works again; and for each that has to be handled
first: there may be one slot."""
_LASTS: Final = 600.0
"""Seconds that the attempts of a message last then."""


class Works:
    """Knows since when the functions of a process raise no longer."""

    def __init__(self, functions: UserFunctions) -> None:
        self._functions = functions
        self._since = -1.0

    def goes_well(self, now: float) -> None:
        """Note that a resolver returned."""
        if self._since <= self._functions.raised_at:
            self._since = now

    @property
    def since(self) -> float | None:
        """When it returned for the first time since one raised; None if it has not."""
        return self._since if self._since > self._functions.raised_at else None


def fails_until(plan: Plan) -> float | None:
    """Return until when the resolver fails for everything from the start on, where messages are tried again."""
    if plan.ack is not AckMode.ON_SUCCESS or 1 in {plan.promised, plan.max_receives} or plan.redrives:
        return None
    return next((each.end for each in plan.raising if _is_total(each) and each.start == 0.0), None)


def _is_total(raising: Raising) -> bool:
    return raising.function == "resolver" and raising.tenant is None and raising.part == 1.0 and raising.end < _LASTS


def judge_dead_letters(dead: Iterable[list[Receive]], processes: int, until: float) -> str | None:
    """Judge dead letters, by their receives: ten of each process, at most, end before it knows."""
    hurried = sum(_is_hurried(receives, until) for receives in dead)
    if hurried <= _ROW * processes:
        return None
    return f"{hurried} are dead letters within {until:g} s, because the resolver failed for everything"


def _is_hurried(receives: list[Receive], until: float) -> bool:
    """Whether each receive ended with a failure of the step, and SQS has confirmed that the message waits."""
    return bool(receives) and all(
        each.at < until and each.failed > 0 and each.confirmed and each.excuse != HANDED_OUT_TWICE for each in receives
    )


def calls_back_in(left: int) -> float:
    """Return the seconds in which a process calls back what a step failed for, with some messages left to handle."""
    return _CALLED_BACK + _EACH * left


def is_put_off(receive: Receive, now: float) -> bool:
    """Whether a message is still away because a step failed for it."""
    return receive.delay > LONG and receive.failed > 0 and (receive.given_back or 0.0) + receive.delay > now
