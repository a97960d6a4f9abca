"""Options that a function chooses for each message, as ``retry=`` and ``visibility=`` may be."""

from collections.abc import Callable
from typing import Generic, TypeVar, cast

from postroom.checking import shown
from postroom.log_fields import Log, Step, about, tenant_in_words
from postroom.options import Call, PerCall
from postroom.program_end import heed
from postroom.repeats import Repeats
from postroom.tasks import clean

_log = Log("postroom.consumer", Step.POLICY)

T = TypeVar("T")


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
        self._repeats = Repeats()

    def __call__(self, call: Call, default: T) -> T:
        """Return what applies to a call."""
        try:
            value = self._choose(call)
        except BaseException as error:
            heed(error)
            self._say("failed", call, default, error)
            return default
        if self._fits(value):
            return value
        self._say(f"returned {shown(value)}", call, default)
        return default

    def _say(self, what: str, call: Call, default: T, error: BaseException | None = None) -> None:
        text = "The function of %s %s for message %s of %s; %r applies"
        tenant = tenant_in_words(call.tenant)
        arguments = self._option, what, call.message.id, tenant, default
        self._repeats.failed(self._option, _log, text, *arguments, error=error, extra=about(call))


def choice(option: str, policy: PerCall[T], kind: type[T]) -> Choice[T] | T:
    """Return a policy as it is asked: a value stays what it is."""
    if not callable(policy):
        return cast("T", policy)
    return Choice[T](option, cast("Callable[[Call], T]", policy), lambda value: isinstance(value, kind))
