"""Oracle *bytes*: a process keeps no body of a message that it gave back, and what it holds is bounded."""

import gc
import weakref
from collections.abc import Callable, Iterable

import msgspec

from postroom.message import Message

GRACE = 5.0
"""Seconds after SQS confirmed an end within which the body has to be let go."""
FEW = 0
"""Bodies that may linger beside the last answers of the pollers: in a task that just ended, in a probe of an outage."""


class Found(Message, frozen=True, weakref=True, gc=True):
    """A message, and with it a body, that can be found for as long as it lives."""


class Bodies:
    """The bodies that live in one process.

    Args:
        ended_at: receipt handle to when its end was confirmed; None while the message is held.
        answers: messages of the pollers' last answers, at most: a variable keeps these until the next answer.
        most_bytes: what may be held at once; None while there is no option that says it.
    """

    def __init__(
        self, ended_at: Callable[[str], float | None], *, answers: int = 0, most_bytes: int | None = None
    ) -> None:
        self._ended_at = ended_at
        self._few = answers + FEW
        self._most_bytes = most_bytes
        self._alive: dict[str, weakref.ref[Found]] = {}
        self._told = False

    def marked(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages with bodies that can be found."""
        marked: list[Message] = []
        for message in messages:
            found = Found(**msgspec.structs.asdict(message))
            self._alive[found.receipt_handle] = weakref.ref(found)
            marked.append(found)
        return marked

    def judge(self, now: float) -> str | None:
        """Return what is kept without need, or None. It is told once."""
        if self._told:
            return None
        self._forget_dead()
        for generation in (1, 2):  # an exception's traceback is a circle; a full collection is slow
            if len(self._kept(now)) > self._few or self._is_too_much(now):
                gc.collect(generation)
                self._forget_dead()
        wrong = self._wrong(now)
        self._told = wrong is not None
        return wrong

    def _wrong(self, now: float) -> str | None:
        if len(kept := self._kept(now)) > self._few:
            return f"keeps {len(kept)} bodies of messages that it gave back or deleted more than {GRACE:g} s ago"
        if self._is_too_much(now):
            return f"holds {self._held(now)} bytes of bodies, more than {self._most_bytes}"
        return None

    def _held(self, now: float) -> int:
        """Return the bytes of what is alive. A call that is out keeps what ended meanwhile, for a moment."""
        alive = ((handle, found) for handle, each in self._alive.items() if (found := each()) is not None)
        return sum(len(found.body) for handle, found in alive if not self._ended_since(handle, now - GRACE))

    def _ended_since(self, handle: str, when: float) -> bool:
        at = self._ended_at(handle)
        return at is not None and at >= when

    def _is_too_much(self, now: float) -> bool:
        return self._most_bytes is not None and self._held(now) > self._most_bytes

    def _kept(self, now: float) -> list[str]:
        ended = ((handle, self._ended_at(handle)) for handle in self._alive)
        return [handle for handle, at in ended if at is not None and at < now - GRACE]

    def _forget_dead(self) -> None:
        self._alive = {handle: found for handle, found in self._alive.items() if found() is not None}
