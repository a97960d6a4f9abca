"""From queue to queue: each message is sent with everything it has, and deleted only after that."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from postroom.checking import check_kind, check_plain, check_queue
from postroom.display import counted
from postroom.errors import ConfigurationError, QueueNotFound, TransportError
from postroom.log_fields import Log, Step, about
from postroom.message import Message, OutgoingMessage
from postroom.options import MAX_BATCH, MAX_WAIT
from postroom.sending.posting import SendRetry, post
from postroom.sending.sender import default_client
from postroom.transports.protocol import Client, Queue, QueueInfo, VisibilityChange

_log = Log("postroom.sending", Step.SEND)

Target = str | Callable[[Message], str | None]
"""A queue by name, URL or ARN; or a function that names one for each message, and None for what is to stay."""
Change = Callable[[Message, OutgoingMessage], OutgoingMessage | None]
"""What is sent instead of a message; None for what is to stay."""

VISIBILITY: Final = 120.0
"""Seconds for which a message is ours: the pauses of its tries, and a call that is answered late."""
_RETRY: Final = SendRetry(within=30.0)
_PAUSES: Final = (0.2, 1.0, 3.0, 5.0)
"""Seconds between the tries of a receive, and of a delete."""
_RELEASE: Final = 5.0
"""Seconds that a relay that is cancelled has to make visible what it has in hand."""
_MOST_TARGETS: Final = 100
"""Queues that are kept open at once."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """What became of the messages of a queue."""

    sent: int
    """Sent to their target, and deleted here."""
    left: int
    """Still here: their target refused them for good, there is none, or they were to stay. The log says why."""


async def relay(
    source: str,
    target: Target,
    *,
    change: Change | None = None,
    limit: int | None = None,
    parallel: int = 4,
    wait: float = 1.0,
    client: Client | None = None,
) -> Relayed:
    """Send the messages of one queue to another, until no more come, and return how many there were.

    Each keeps its body, its attributes, its message group and its trace header. It is deleted after its target has
    taken it: nothing is lost, and what is sent just before a crash is sent twice. On FIFO queues the order of each
    group is kept, and the deduplication id is the id of the message, so that one that is sent again within SQS's five
    minutes is there once. At most ``10 * parallel`` messages are in memory.

    Args:
        source: where they are: name, URL or ARN.
        target: where they go; a function (Message) -> queue where they go to several.
        change: called with each message and what would be sent; returns what is sent, or None to let it stay.
        limit: the most that is sent.
        parallel: receives at once.
        wait: seconds without a message after which the queue counts as empty, 1 to 20.
        client: where the queues are; by default the one AWS client of the event loop.

    Raises:
        SendFailed: a target could not be reached, after retries. What was not sent is visible in the source again.
        TransportError: the source cannot be read.
        ConfigurationError: an argument cannot work.
    """
    check_queue("relay(source)", source)
    if callable(target):
        check_plain("relay(target)", "(Message) -> queue", target)
    else:
        check_queue("relay(target)", target)
    if change is not None:
        check_plain("relay(change=...)", "(Message, OutgoingMessage) -> OutgoingMessage", change, arguments=2)
    _check_bounds(limit, parallel, wait)
    async with client or default_client() as opened:
        source_queue = await opened.queue(source)
        work = _Relay(opened, source_queue, target, change or _unchanged, limit=limit, wait=wait)
        # A queue that does not exist is told before anything is received.
        if isinstance(target, str) and is_same((await work.open(target)).info, source_queue.info):
            raise ConfigurationError(f"relay(target) is the source itself; name another queue than {target!r}")
        return await work.run(parallel)


def copy_of(message: Message, *, fifo: bool) -> OutgoingMessage:
    """Return what is sent to have a message in another queue as it is."""
    return OutgoingMessage(
        body=message.body,
        message_attributes=message.message_attributes,
        group_id=message.group_id,
        # The same at each try, so that SQS drops what was sent twice.
        deduplication_id=message.id if fifo else None,
        trace_header=message.trace_header,
    )


class _Relay:
    """One relay under way: workers that receive, send and delete."""

    def __init__(
        self,
        client: Client,
        source: Queue,
        target: Target,
        change: Change,
        *,
        limit: int | None,
        wait: float,
    ) -> None:
        self._client = client
        self._source = source
        self._target = target
        self._change = change
        self._room = limit
        self._wait = wait
        self._targets: dict[str, Queue] = {}
        self._left: dict[str, str] = {}  # SQS bounds it: these are in flight, 120,000 at most
        self._in_hand: dict[str, str] = {}  # received, and neither sent nor left
        self._refused: dict[tuple[str, str], int] = {}  # by target and reason: how many a target that takes none left
        self._sent = 0
        self._failed: Exception | None = None

    async def run(self, parallel: int) -> Relayed:
        """Run so many workers until no more messages come."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(parallel):
                    group.create_task(self._work(), name=f"postroom-relay-{self._source.info.name}-{number}")
        finally:
            # Also after an error or a cancellation: what is here would stay invisible for two minutes.
            task = asyncio.current_task()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RELEASE if task is not None and task.cancelling() else None):
                    await self._show_again()
            self._tell_refused()
        if self._failed is not None:
            raise self._failed
        return Relayed(self._sent, len(self._left))

    async def open(self, name: str) -> Queue:
        """Open a target, or return the one that is open."""
        found = self._targets.get(name)
        if found is None:
            if len(self._targets) >= _MOST_TARGETS:
                # A function may name a queue for each tenant. Opening one again takes a single call.
                del self._targets[next(iter(self._targets))]
            found = self._targets[name] = await self._client.queue(name)
        return found

    async def _work(self) -> None:
        try:
            await self._loop()
        except Exception as error:  # ends the other workers after what they have in hand
            self._failed = self._failed or error

    async def _loop(self) -> None:
        while self._failed is None and (ask := MAX_BATCH if self._room is None else min(MAX_BATCH, self._room)):
            if self._room is not None:
                self._room -= ask  # before the await: other workers ask meanwhile
            received = await self._receive(ask)
            self._in_hand |= {message.id: message.receipt_handle for message in received}
            sent = await self._relay(received)
            for message in received:
                self._in_hand.pop(message.id, None)
            if self._room is not None:
                self._room += ask - sent
            if all(message.id in self._left for message in received):  # nothing, or nothing but what stays
                return

    async def _receive(self, limit: int) -> Sequence[Message]:
        for pause in _PAUSES:
            try:
                return await self._source.receive(limit=limit, wait=self._wait, visibility=VISIBILITY)
            except TransportError as error:
                if not error.retryable:
                    raise
                _log.debug("A receive failed and is tried again in %g s: %s", pause, error)
            await asyncio.sleep(pause)
        return await self._source.receive(limit=limit, wait=self._wait, visibility=VISIBILITY)

    async def _relay(self, received: Sequence[Message]) -> int:
        """Send messages, delete those that were sent, and return how many that are."""
        by_target: dict[str, list[tuple[Message, OutgoingMessage]]] = {}
        for message in received:
            named = await self._outgoing(message)
            if isinstance(named, str):
                self._leave(message, named)
            else:
                by_target.setdefault(named[0], []).append((message, named[1]))
        sent = 0
        for name, pairs in by_target.items():
            sent += await self._send(await self.open(name), pairs)
        self._sent += sent
        return sent

    async def _outgoing(self, message: Message) -> tuple[str, OutgoingMessage] | str:
        """Return where a message goes and what is sent, or why it stays."""
        try:
            name = self._target if isinstance(self._target, str) else self._target(message)
            if name is None:
                return "it does not say where it goes"
            check_queue("relay(target)", name)
            queue = await self.open(name)
        except QueueNotFound as error:
            return str(error)
        if is_same(queue.info, self._source.info):  # it would be received and sent again without an end
            return "its target is the queue that it is in"
        changed = self._change(message, copy_of(message, fifo=queue.info.fifo))
        if changed is not None:
            check_kind("relay(change=...)", changed, OutgoingMessage, "return outgoing, or None to let it stay")
        return "it is to stay" if changed is None else (name, changed)

    async def _send(self, target: Queue, pairs: Sequence[tuple[Message, OutgoingMessage]]) -> int:
        outcome = await post(target, [outgoing for _, outgoing in pairs], _RETRY)
        # Deleted before anything else is decided: from now on a crash would send these twice.
        sent = [message for index, (message, _) in enumerate(pairs) if index not in outcome.unsent]
        await self._delete(sent)
        back: list[Message] = []
        for index, unsent in outcome.unsent.items():
            if unsent.retryable:
                back.append(pairs[index][0])
            elif index in outcome.of_queue:  # it would say the same of each message
                message = pairs[index][0]
                refusal = (target.info.name, unsent.reason)
                self._refused[refusal] = self._refused.get(refusal, 0) + (message.id not in self._left)
                self._left[message.id] = message.receipt_handle
            else:
                self._leave(pairs[index][0], unsent.reason)
        if back:
            await self._give_back([message.receipt_handle for message in back])
        if any(unsent.retryable and not unsent.behind for unsent in outcome.unsent.values()):
            outcome.raise_for_unsent(target.info.name)
        return len(sent)

    async def _delete(self, messages: Sequence[Message]) -> None:
        """Delete what was sent. What cannot be deleted comes again, and is sent twice."""
        left = [message.receipt_handle for message in messages]
        for pause in (*_PAUSES, 0.0):
            if not left:
                return
            try:
                left = [left[failure.index] for failure in await self._source.delete(left)]
            except TransportError as error:
                _log.debug("Deleting relayed messages failed: %s", error)
            if left:
                await asyncio.sleep(pause)
        if left:
            text = "Relayed %s of queue %s, which could not be deleted: to be relayed again"
            _log.warning(
                text, counted(len(left), "message"), self._source.info.name, extra=about(queue=self._source.info.name)
            )

    async def _give_back(self, receipt_handles: Sequence[str]) -> None:
        changes = [VisibilityChange(handle, 0) for handle in receipt_handles]
        with contextlib.suppress(TransportError):  # then it is visible after its timeout
            await self._source.change_visibility(changes)

    async def _show_again(self) -> None:
        """Make visible what stays. During the work it was not, so that it was not received again and again."""
        handles = [*self._left.values(), *self._in_hand.values()]
        for first in range(0, len(handles), MAX_BATCH):
            await self._give_back(handles[first : first + MAX_BATCH])

    def _tell_refused(self) -> None:
        source = self._source.info.name
        for (target, reason), count in self._refused.items():
            text = "Relayed none of %s to queue %s, which takes none; they stay in queue %s: %s"
            _log.warning(text, counted(count, "message"), target, source, reason, extra=about(queue=source))

    def _leave(self, message: Message, reason: str) -> None:
        if message.id not in self._left:
            text = "Message %s was not relayed and stays in queue %s: %s"
            named = about(queue=self._source.info.name, message_id=message.id)
            _log.warning(text, message.id, self._source.info.name, reason, extra=named)
        self._left[message.id] = message.receipt_handle


def is_same(one: QueueInfo, other: QueueInfo) -> bool:
    """Whether two are one queue. One may be named by its URL, and the right to ask for an ARN may be missing."""
    return one.url == other.url or (bool(one.arn) and one.arn == other.arn)


def _unchanged(_: Message, copy: OutgoingMessage) -> OutgoingMessage:
    return copy


def _check_bounds(limit: object, parallel: object, wait: object) -> None:
    for name, value in (("limit", limit), ("parallel", parallel)):
        if not (name == "limit" and value is None) and not (type(value) is int and value >= 1):
            raise ConfigurationError(f"relay({name}=...) takes a whole number from 1 up; got {value!r}")
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 1 <= wait <= MAX_WAIT:
        raise ConfigurationError(f"relay(wait=...) takes seconds from 1 to {MAX_WAIT}; got {wait!r}")
