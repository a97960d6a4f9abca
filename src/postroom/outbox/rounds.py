"""What a round does with the rows that it took: sends them, and says which are done."""

import asyncio
import dataclasses
import logging
from collections.abc import Hashable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from postroom.checking import check_queue
from postroom.errors import ConfigurationError, PostroomError, TransportError, Unsent
from postroom.log_fields import Log, Step, about
from postroom.message import OutgoingMessage
from postroom.outages import Kind, Outages, cause_of
from postroom.outbox.stores import Row, taken
from postroom.outbox.tables import Outbox
from postroom.redaction import describe, log_error
from postroom.sending import Sender, SendRetry
from postroom.sending.relaying import is_same
from postroom.transports.protocol import Client

_log = Log("postroom.outbox", Step.SEND)

_QUEUES: Final = Kind("Messages of outboxes are not taken", "queue", _log, Step.SEND, "queue")
_TRANSFORMS: Final = Kind("Sender(transform=...) failed", "tenant and queue", _log, Step.SEND, prefixed=False)

_RETRY: Final = SendRetry(attempts=3, within=10.0)
"""A short one: meanwhile a transaction is open."""
FIRST_PAUSE: Final = 1.0
"""Seconds without a try of a queue, or of a tenant's database, that has just failed. It doubles."""
LONGEST_PAUSE: Final = 60.0
"""The longest such pause."""
_FORGOTTEN: Final = 600.0
"""Seconds after a pause without another try: then nothing is left that would try it."""
_TIDY: Final = 60.0
"""Seconds between two looks for what is forgotten: thousands may fail for the first time in one of them."""
_MOST_QUEUES: Final = 10_000
"""Queues that are kept open at once, besides those of the relay's senders: rows may name one for each request."""


@dataclasses.dataclass(slots=True)
class Counters:
    """What was done so far."""

    sent: int = 0
    set_aside: int = 0
    failures: int = 0


class Pauses:
    """When what failed is tried again."""

    def __init__(self) -> None:
        self._time = asyncio.get_running_loop().time
        self._until: dict[Any, tuple[float, float]] = {}  # the time, and how long the pause is
        self._tidied = self._time()

    def active(self) -> list[Any]:
        """Return what is not to be tried now."""
        now = self._time()
        return [each for each, (until, _) in self._until.items() if until > now] if self._until else []

    def is_active(self, key: Any) -> bool:
        """Return whether it is not to be tried now."""
        return key in self._until and self._until[key][0] > self._time()

    def is_known(self, key: Any) -> bool:
        """Return whether its last try failed, also if the pause is over."""
        return key in self._until

    def failed(self, key: Any) -> float:
        """Begin a pause, twice as long as the last one. Return its seconds."""
        known, now = self._until.get(key), self._time()
        if known is None and now >= self._tidied + _TIDY:
            self._tidied, over = now, now - _FORGOTTEN
            self._until = {each: pause for each, pause in self._until.items() if pause[0] > over}
        seconds = FIRST_PAUSE if known is None else min(LONGEST_PAUSE, known[1] * 2)
        self._until[key] = (now + seconds, seconds)
        return seconds

    def succeeded(self, key: Any) -> None:
        """Forget its failures."""
        self._until.pop(key, None)


class Queues:
    """The queues that rows go to, each opened when it is first needed; and those that cannot be reached for now.

    Args:
        known: the senders that are to be used, by the name of their queue.
        client: opens the other queues.
    """

    def __init__(self, known: Mapping[str, Sender[Any]], client: Client) -> None:
        self._time = asyncio.get_running_loop().time
        self._outages = Outages(asyncio.get_running_loop())
        self._senders = dict(known)
        self._client = client
        self._own: dict[str, Sender[Any]] = {}  # those that are opened here, the oldest first
        self._opening: dict[str, asyncio.Lock] = {}  # one each: a queue that is slow to open holds up no other
        self.pauses: Pauses = Pauses()
        self._of_tenants: Pauses = Pauses()  # by tenant and queue: what a transform fails for keeps back no other's
        self._transforming: dict[str, None] = {}  # the queues of these: few, since only senders of `known` have one

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._outages.close()
        while self._own:
            await self._close_oldest()

    def paused(self, tenant: str) -> list[str]:
        """Return the queues that no message of a tenant is to be sent to now."""
        # Asked for each tenant: a list of those of all tenants would take seconds where thousands wait.
        own = [queue for queue in self._transforming if self._of_tenants.is_active((tenant, queue))]
        return self.pauses.active() + own

    async def post(self, queue: str, messages: Sequence[OutgoingMessage], tenant: str) -> dict[int, Unsent]:
        """Send messages of a tenant, and return what was not sent, by place.

        A queue that fails is paused; for this tenant alone, if a sender's transform fails for its messages.
        """
        try:
            check_queue("a row of an outbox", queue)
        except ConfigurationError as error:
            return _none_of(messages, error, retryable=False)
        try:
            sender = await self._sender(queue)
        except (TransportError, ConfigurationError) as error:  # such as an ARN cut short, or another region's queue
            self._pause(queue, str(error), type(error).__name__)
            return _none_of(messages, error, retryable=True)
        outcome = await sender.post(messages)
        unsent = outcome.unsent
        for place in outcome.of_queue & unsent.keys():  # no message is at fault, and any may be taken later
            unsent[place] = dataclasses.replace(unsent[place], retryable=True)
        own = outcome.of_transform
        again = [each for each in unsent.values() if each.retryable and not each.behind and each.index not in own]
        if again:
            self._pause(queue, again[0].reason, again[0].code)
        elif len(own) < len(messages):
            self.pauses.succeeded(queue)
            if self._worked(_QUEUES, queue):
                _log.warning("Queue %s takes messages of outboxes again", queue, extra=about(queue=queue))
        if own:
            self._pause_for(tenant, queue, next(iter(own.values())))
        else:
            self._of_tenants.succeeded((tenant, queue))
            if self._worked(_TRANSFORMS, (tenant, queue)):
                text = "Messages of tenant %s are made ready for queue %s again"
                _log.warning(text, tenant, queue, extra=about(queue=queue, tenant=tenant))
        return unsent

    async def _sender(self, queue: str) -> Sender[Any]:
        lock = self._opening.setdefault(queue, asyncio.Lock())
        try:
            async with lock:
                return self._senders.get(queue) or await self._open(queue)
        finally:
            if not lock.locked():
                self._opening.pop(queue, None)

    async def _open(self, queue: str) -> Sender[Any]:
        sender = Sender[Any](queue, retry=_RETRY, client=self._client)
        await sender.__aenter__()
        # A row may have the queue's name where a sender has its URL: without that one it would go unsigned.
        named = next((each for each in self._senders.values() if is_same(each.info, sender.info)), None)
        if named is not None:
            self._senders[queue] = named
            await sender.__aexit__(None, None, None)
            return named
        self._senders[queue] = self._own[queue] = sender
        if len(self._own) > _MOST_QUEUES:
            await self._close_oldest()  # what it sends goes on: the client stays open
        return sender

    async def _close_oldest(self) -> None:
        sender = self._own.pop(next(iter(self._own)))
        self._senders = {name: each for name, each in self._senders.items() if each is not sender}
        await sender.__aexit__(None, None, None)

    def _worked(self, kind: Kind, subject: Hashable) -> bool:
        return self._outages.worked(kind, subject, self._time())

    def _pause(self, queue: str, reason: str, code: str) -> None:
        seconds = self.pauses.failed(queue)
        telling = self._outages.failed(_QUEUES, queue, code, reason, self._time())
        level = logging.WARNING if telling.is_told else logging.DEBUG
        text = "Queue %s does not take messages of outboxes; they stay there, and the next try is in %.0f s: %s"
        _log.log(level, text, queue, seconds, reason, extra=about(queue=queue))

    def _pause_for(self, tenant: str, queue: str, error: Exception) -> None:
        self._transforming[queue] = None
        seconds, subject = self._of_tenants.failed((tenant, queue)), (tenant, queue)
        telling = self._outages.failed(_TRANSFORMS, subject, cause_of(error), describe(error), self._time())
        text = (
            "Sender(transform=...) failed for a message of tenant %s for queue %s, which stays in the outbox; the next "
            "try is in %.0f s: %s"
        )
        level = logging.WARNING if telling.is_told else logging.DEBUG
        named = about(queue=queue, tenant=tenant)
        log_error(_log, level, text, tenant, queue, seconds, describe(error), error=error, extra=named)


def _none_of(messages: Sequence[OutgoingMessage], error: PostroomError, *, retryable: bool) -> dict[int, Unsent]:
    code = error.code if isinstance(error, TransportError) else type(error).__name__
    return {index: Unsent(index, code, str(error), retryable=retryable) for index in range(len(messages))}


class Rounds:
    """Takes rows, sends them, removes them: round after round.

    Args:
        outbox: the table.
        queues: where the rows go.
        counters: counts what was done.
    """

    def __init__(self, outbox: Outbox, queues: Queues, counters: Counters) -> None:
        self._outbox = outbox
        self._queues = queues
        self.counters = counters

    async def once(self, database: object, tenant: str) -> bool:
        """Do one round. Return whether another one may find more.

        Raises:
            NoOutbox: these resources have no outbox that is known here.
            ConfigurationError: rows that were sent could not be deleted.
            Exception: the driver's: the database failed. What was sent may be sent again.
        """
        # Without the rows of queues that are paused: they would fill the round, and hold up all
        # others.
        async with taken(database, self._outbox, self._queues.paused(tenant)) as found:
            if not found.rows:
                return False
            sent: list[int] = []
            aside = [(row.id, "this row is no message of an outbox") for row in found.rows if row.message is None]
            for queue, rows in _by_queue(found.rows).items():
                unsent = await self._queues.post(queue, [message for _, message in rows], tenant)
                for index, (number, _) in enumerate(rows):
                    if index not in unsent:
                        sent.append(number)
                    elif not unsent[index].retryable:
                        aside.append((number, unsent[index].reason[:1000]))
            # In the transaction that took the rows: if it fails, they are sent again, and none is
            # lost.
            stays = await found.remove(sent) if sent else None
            if aside:
                await found.set_aside(aside)
        self.counters.sent += len(sent)
        self.counters.set_aside += len(aside)
        for number, reason in aside:
            text = "Message %d in %s of tenant %s can never be sent and is set aside there: %s"
            _log.error(text, number, self._outbox.table, tenant, reason, extra=about(tenant=tenant))
        if stays is not None:  # after the commit: rolled back, all that was sent would be sent again
            raise ConfigurationError(stays)
        return bool(sent or aside)


def _by_queue(rows: Sequence[Row]) -> dict[str, list[tuple[int, OutgoingMessage]]]:
    found: dict[str, list[tuple[int, OutgoingMessage]]] = {}
    for row in rows:
        if row.message is not None:
            found.setdefault(row.queue, []).append((row.id, row.message))
    return found
