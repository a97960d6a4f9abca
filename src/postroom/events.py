"""What observers are told.

An observer is any callable that takes one event. It is called synchronously, in the event loop, and must be quick;
what it raises is logged and goes no further. No event is made when nobody observes. No event carries a payload.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from postroom.message import Message
from postroom.types import Settlement, StopReason

_log = logging.getLogger("postroom")


@dataclass(frozen=True, slots=True)
class Event:
    """The base of all events."""


@dataclass(frozen=True, slots=True)
class ConsumerStarted(Event):
    """The consumer polls."""

    queue: str


@dataclass(frozen=True, slots=True)
class ConsumerStopping(Event):
    """The consumer was asked to stop."""

    queue: str
    reason: StopReason


@dataclass(frozen=True, slots=True)
class ConsumerStopped(Event):
    """The consumer stopped: nothing of it runs any more."""

    queue: str
    reason: StopReason
    cancelled: int
    """Handlers that had to be cancelled."""


@dataclass(frozen=True, slots=True)
class PollFailed(Event):
    """A receive failed; the next one follows after ``pause`` seconds."""

    queue: str
    error: Exception
    pause: float


@dataclass(frozen=True, slots=True)
class MessageReceived(Event):
    """A message arrived."""

    message: Message


@dataclass(frozen=True, slots=True)
class HandlerStarted(Event):
    """The handler was called."""

    message: Message
    context: Any


@dataclass(frozen=True, slots=True)
class HandlerFinished(Event):
    """The handler returned, or raised ``error``, after ``seconds``."""

    message: Message
    context: Any
    seconds: float
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class MessageFailed(Event):
    """A step failed; the type of ``error`` tells which."""

    message: Message
    context: Any
    error: BaseException


@dataclass(frozen=True, slots=True)
class MessageSettled(Event):
    """What became of the message; for ``ACKED`` SQS has confirmed the delete."""

    message: Message
    settlement: Settlement
    delay: float = 0.0
    """Seconds until it is visible again, where it is."""


@dataclass(frozen=True, slots=True)
class ResourceOpened(Event):
    """A provider entered."""

    key: Hashable
    seconds: float


@dataclass(frozen=True, slots=True)
class ResourceOpenFailed(Event):
    """A provider failed; the key is left alone for ``retry_after`` seconds."""

    key: Hashable
    error: BaseException
    permanent: bool
    retry_after: float


@dataclass(frozen=True, slots=True)
class ResourceClosed(Event):
    """A provider left; ``error`` is what it raised in leaving, which does not stop anything."""

    key: Hashable
    reason: str
    error: BaseException | None = None


Observer = Callable[[Event], None]


class Observers:
    """A fixed set of observers, told one event at a time. False when nobody listens."""

    __slots__ = ("_observers",)

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def __bool__(self) -> bool:
        return bool(self._observers)

    def __iter__(self) -> Iterator[Observer]:
        return iter(self._observers)

    def tell(self, event: Event) -> None:
        """Tell every observer. What one raises is logged; the others are told all the same."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                _log.exception("Observer %r failed on %s", observer, type(event).__name__)
