"""Options that a function chooses for each message, as ``retry=`` and ``visibility=`` may be."""

import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar, cast

from postroom.checking import shown
from postroom.display import display_key
from postroom.log_fields import Log, Step, about
from postroom.options import Call, PerCall
from postroom.tasks import clean, ends_the_program

_log = Log("postroom.consumer", Step.POLICY)

T = TypeVar("T")

QUIET: Final = 60.0
"""Seconds for which further failures of one function are counted, and not logged: each message may meet one."""


class Choice(Generic[T]):
    """The function of one option, asked for each message.

    It runs outside of every message's context. One that raises, or returns what the option does not take, is logged
    once a minute, and the default applies: it concerns its message only, and must not end the consumer.

    Args:
        option: what the option is called, as the user wrote it.
        choose: the function.
        fits: tells whether the option takes a value.
    """

    def __init__(self, option: str, choose: Callable[[Call], T], fits: Callable[[object], bool]) -> None:
        self._option = option
        self._choose = clean(choose)
        self._fits = fits
        self._quiet_until = 0.0
        self._unsaid = 0

    def __call__(self, call: Call, default: T) -> T:
        """Return what applies to a call."""
        try:
            value = self._choose(call)
        except BaseException as error:
            if ends_the_program(error):
                raise
            self._say("failed", call, default, error)
            return default
        if self._fits(value):
            return value
        self._say(f"returned {shown(value)}", call, default)
        return default

    def _say(self, what: str, call: Call, default: T, error: BaseException | None = None) -> None:
        now = time.monotonic()
        if now < self._quiet_until:
            self._unsaid += 1
            return
        unsaid, self._unsaid, self._quiet_until = self._unsaid, 0, now + QUIET
        more = f"; {unsaid} more times since the last such line" if unsaid else ""
        text = "The function of %s %s for message %s of tenant %s; %r applies%s"
        shown_to = display_key(call.tenant)
        _log.error(
            text, self._option, what, call.message.id, shown_to, default, more, extra=about(call), exc_info=error
        )


def choice(option: str, policy: PerCall[T], kind: type[T]) -> Choice[T] | T:
    """Return a policy as it is asked: a value stays what it is."""
    if not callable(policy):
        return cast("T", policy)
    return Choice[T](option, cast("Callable[[Call], T]", policy), lambda value: isinstance(value, kind))
