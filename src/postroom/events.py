"""What observers are told.

An observer is any callable that takes one event. It is called synchronously, in the event loop, and must be quick;
what it raises is logged and goes no further. No event is made without observers. No event carries a payload.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, cast

import msgspec

from postroom.checking import answered
from postroom.display import Discreet
from postroom.log_fields import Log, Step, about
from postroom.message import Attributes, Message
from postroom.program_end import heed
from postroom.redaction import describe
from postroom.repeats import Repeats
from postroom.types import Settlement, StopReason

_log = Log("postroom", Step.OBSERVER)


class Event(Discreet, msgspec.Struct, frozen=True):
    """The base of all events. What one shows of an error is a line without secrets."""

    def __repr__(self) -> str:
        shown = (f"{name}={_shown(getattr(self, name))}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({', '.join(shown)})"


class ConsumerStarted(Event, frozen=True):
    """The consumer polls."""

    queue: str
    statistics: Callable[[], Any] | None = None
    """Returns the ``ConsumerStatistics`` of this run. Any thread may call it; one that is not the event loop's may,
    rarely, meet a change and get a ``RuntimeError``: then it asks again."""


class ConsumerStopping(Event, frozen=True):
    """The consumer was asked to stop."""

    queue: str
    reason: StopReason
    """Who asked: a call, a signal, or an error that ended the consumer."""


class ConsumerStopped(Event, frozen=True):
    """The consumer stopped: nothing of it runs any longer."""

    queue: str
    reason: StopReason
    cancelled: int
    """Handlers that had to be cancelled."""
    statistics: Callable[[], Any] | None = None
    """What ``ConsumerStarted`` of this run had; it returns the final statistics now."""


class PollFailed(Event, frozen=True):
    """A receive failed; the next one follows after ``pause`` seconds."""

    queue: str
    error: Exception
    """What the transport raised; its text says what to check."""
    pause: float
    """Seconds until the next receive of this queue."""
    seconds: float = 0.0
    """How long the receive took."""


class PollFinished(Event, frozen=True):
    """A receive was answered, with ``count`` messages, after ``seconds``; a long poll waits for them."""

    queue: str
    count: int
    """Messages that came, 0 to 10."""
    seconds: float
    """How long the answer took; up to ``Polling(wait=)`` where nothing came."""


class MessageReceived(Event, frozen=True):
    """A message arrived."""

    message: Message


class HandlerStarted(Event, frozen=True):
    """The handler is called. Told in the task and the context in which it runs, before it and its middleware."""

    message: Message
    context: Any
    """The tenant's context, as the resolver made it; None without ``context=``."""
    tenant: Any = None
    """The tenant, as ``consumer.tenants[...]`` calls it."""
    attempt: int = 1
    """Which attempt this is; 1 for the first one."""
    waited: float = 0.0
    """Seconds since it was received."""
    leasing: float = 0.0
    """Seconds of them in which it waited for its tenant's resources; 0.0 where they were open."""
    attributes: Attributes | None = None
    """The attributes that stood in its envelope; None where ``Consumer(unwrap=...)`` took it out of none."""


class HandlerFinished(Event, frozen=True):
    """The handler returned, or raised ``error``, after ``seconds``. Told where it ran, after its middleware."""

    message: Message
    context: Any
    seconds: float
    """How long the handler ran, its middleware included, and without the time in which it waited for its batch."""
    error: BaseException | None
    """What it raised; None where it returned."""
    tenant: Any = None
    """The tenant, as ``consumer.tenants[...]`` calls it."""
    attempt: int = 1
    """Which attempt this was; 1 for the first one."""


class MessageFailed(Event, frozen=True):
    """A step failed; the type of ``error`` tells which."""

    message: Message
    context: Any
    """None where it was not resolved."""
    error: BaseException
    """``ContextError``, ``PayloadError``, ``ResourceError``, ``HandlerTimeout``, or the handler's own exception."""
    tenant: Any = None
    """None where it is not known, because the context could not be resolved."""
    attempt: int = 1
    """Which attempt this was; 1 for the first one."""
    attributes: Attributes | None = None
    """The attributes that stood in its envelope, as far as it was opened; see ``HandlerStarted``."""


class MessageSettled(Event, frozen=True):
    """What became of the message; for ``ACKED`` SQS has confirmed the delete."""

    message: Message
    settlement: Settlement
    """What was decided: acknowledged, retried, rejected, and so on."""
    delay: float = 0.0
    """Seconds until it is visible again, where it is."""
    tenant: Hashable = None
    """The tenant, by its key in the pool; None before its context was resolved."""


class TenantUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What one tenant cost in a time, in one consumer."""

    tenant: str
    """Its name, as the log shows it."""
    handler_seconds: float = 0.0
    """Seconds that its handlers ran."""
    lease_seconds: float = 0.0
    """Those of them with its resources leased, times the weight of these: connection seconds. 0 without resources."""
    messages: int = 0
    """Messages that were acknowledged."""
    failed: int = 0
    """Handlers that raised."""
    receives: int = 0
    """Receives of its messages, those without an attempt included: what SQS charges, in batches of up to ten."""
    dead_letters: int = 0
    """Messages that were sent to the dead-letter queue."""


class UsageReport(Event, frozen=True):
    """What each tenant cost since the last report."""

    queue: str
    began: float
    """When the time began that it covers, in seconds since the epoch."""
    seconds: float
    """How long that time was."""
    tenants: tuple[TenantUsage, ...]
    """The most expensive first; those beyond the limit together, as the last one."""


class OperatorAction(Event, frozen=True):
    """An operator decided something about a tenant, on the console's page or by its HTTP API."""

    queue: str
    """The queue, as the consumer was told it."""
    tenant: Hashable
    """The tenant, as ``consumer.tenants[...]`` calls it."""
    action: str
    """What was done, such as ``pause`` or ``limit``."""
    operator: str
    """Who did it, as ``allow=`` named them."""
    reason: str
    """Why, in the operator's words."""
    details: str = ""
    """What was chosen, such as ``concurrency=2``."""


class ResourceOpened(Event, frozen=True):
    """A provider entered, and what it opened can be leased: it was checked where the one before it broke."""

    key: Hashable
    """The context, or what ``key=`` made of it."""
    seconds: float
    """How long that took."""
    host: Hashable | None = None
    """What ``host=`` says; None without it."""
    invited: tuple[Hashable, ...] = ()
    """Others of its host that a full server had refused, and that may be tried at once."""


class ResourceOpenFailed(Event, frozen=True):
    """A provider failed; the key is left alone for ``retry_after`` seconds."""

    key: Hashable
    """The context, or what ``key=`` made of it."""
    error: BaseException
    """What the provider raised."""
    permanent: bool
    """There is no such tenant; False for an outage."""
    retry_after: float
    """Seconds until the next try; random, and longer with each failure."""
    host: Hashable | None = None
    """What ``host=`` says; None without it."""


class ResourceClosed(Event, frozen=True):
    """A provider left; ``error`` is what it raised in leaving, which does not stop anything."""

    key: Hashable
    """The context, or what ``key=`` made of it."""
    reason: str
    """Why: ``idle``, ``age``, ``capacity``, ``shutdown``, and so on, as in the log."""
    error: BaseException | None = None


class FleetUnreachable(Event, frozen=True):
    """The store of a fleet cannot be reached. What is held lasts for ``seconds`` more, then the fallback applies."""

    fleet: str
    """The name under which the replicas meet."""
    error: BaseException
    """What the store's client raised."""
    seconds: float
    """Seconds for which slots that are held may still be used."""


class FleetReachable(Event, frozen=True):
    """The store of a fleet answers again."""

    fleet: str
    """The name under which the replicas meet."""
    replicas: int
    """Replicas that are alive, this one included."""


Observer = Callable[[Event], None]


class Observers(list[Observer]):
    """Observers, told one event at a time. False when there are none."""

    __slots__ = ("_repeats",)

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        super().__init__(observers)
        self._repeats = Repeats()

    def add(self, observer: Observer) -> Callable[[], None]:
        """Tell one more observer. Returns what ends that; calling it twice does nothing more."""
        told = [observer]

        def tell(event: Event) -> None:  # one of its own for each call: the same function may come twice, and go once
            for each in tuple(told):
                each(event)

        def leave() -> None:
            if told:
                told.clear()
                self.remove(tell)

        self.append(tell)
        return leave

    def tell(self, event: Event) -> None:
        """Tell every observer. What one raises is logged; the others are told all the same."""
        for observer in tuple(self):
            try:
                if (answer := cast("Any", observer)(event)) is not None:
                    answered(answer)
            except BaseException as error:
                heed(error)
                text = "Observer %s failed on %s; the others are told all the same"
                told = (_name_of(observer), type(event).__name__)
                self._repeats.failed(id(observer), _log, text, *told, error=error, extra=_about(event))


def _about(event: Event) -> dict[str, object]:
    """Return the fields of a record about an event: what it tells of a message, a tenant, and an attempt."""
    message: Any = getattr(event, "message", None)
    tenant, attempt = getattr(event, "tenant", getattr(event, "key", None)), getattr(event, "attempt", None)
    if message is None:
        return about(queue=getattr(event, "queue", None), tenant=tenant, attempt=attempt)
    return about(queue=message.queue or None, tenant=tenant, message_id=message.id, attempt=attempt)


def _name_of(observer: object) -> str:
    """Return what an observer is called. Its ``repr`` may raise, or have secrets."""
    name = getattr(observer, "__qualname__", None)
    return name if isinstance(name, str) else type(observer).__qualname__


def _shown(value: object) -> str:
    return f"<{describe(value)}>" if isinstance(value, BaseException) else repr(value)
