"""How decisions are sent to SQS, ten per call."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from postroom.errors import InvalidReceiptHandle, InvalidRequest, PostroomError, ServiceUnavailable
from postroom.settlement.backoff import whole_seconds
from postroom.settlement.batcher import Batcher, Fate, error_of, named
from postroom.settlement.delivery import Decision, Delivery
from postroom.settlement.heartbeat import Heartbeat
from postroom.settlement.trouble import describe
from postroom.tasks import has_to_leave
from postroom.transports.protocol import NO_HANDLE, EntryFailure, Queue, VisibilityChange, checked_failures


class Desk(Protocol):
    """What is asked about decisions that are about to be sent, and told how they ended."""

    @property
    def heartbeat(self) -> Heartbeat:
        """What extends deliveries, and knows the time."""
        ...

    def fate(self, entry: Decision, now: float) -> Fate:
        """Return what to do with a decision that is about to be sent at a time of the loop."""
        ...

    def ended(self, decisions: Sequence[Decision], error: PostroomError | None) -> None:
        """Note how decisions ended: well, or all of them with one error."""
        ...

    def stretched(self, decision: Decision, error: PostroomError | None) -> None:
        """Note how the request for more time of one delivery ended."""
        ...

    def delete_again(self, decision: Decision) -> None:
        """Send a delete with the newest receipt handle."""
        ...

    def quiet(self, delivery: Delivery) -> None:
        """Send what waited for an extension to be answered."""
        ...


class Undeletable(ServiceUnavailable):
    """Nothing is received, because no message can be deleted: it would be handled again and again."""

    def __init__(self, queue: str, seconds: float, cause: PostroomError | None) -> None:
        why = "" if cause is None else f" ({describe(cause)})"
        text = f"for {seconds:.0f} s no message of {queue} could be deleted{why}, so what comes would be handled again "
        text += "and again"  # what to do, the cause says: access is denied for many a reason
        super().__init__(text, operation="ReceiveMessage")


class Deletes:
    """What the batches of deletes do."""

    def __init__(self, desk: Desk, queue: Queue) -> None:
        self._desk = desk
        self._queue = queue
        self.fate: Callable[[Decision, float], Fate] = desk.fate

    async def check(self, batches: Batcher[Decision], seconds: float) -> None:
        """Learn whether deletes work again, ``seconds`` after the first one failed. Raises ``Undeletable``.

        While some wait, their batches show it. Otherwise, and where SQS refuses a few that it may take no more, one is
        sent that touches no message.
        """
        error, task = batches.last_error, asyncio.current_task()
        if not batches.pending or batches.refused_alone:
            try:
                failures = checked_failures(await self._queue.delete([NO_HANDLE]), 1)
                refusals = (error_of(each, "delete") for each in failures if not each.sender_fault)
                error = next(refusals, None)
            except (InvalidRequest, InvalidReceiptHandle):
                error = None  # it was looked at
            except BaseException as raised:  # whatever a transport raises
                if has_to_leave(raised, task):
                    raise
                error = named(raised)
            if error is None:
                batches.works()
                return
        raise Undeletable(self._queue.info.name, seconds, error)

    async def send(self, entries: Sequence[Decision]) -> Sequence[EntryFailure]:
        """Delete up to ten messages."""
        handles: list[str] = []
        for entry in entries:
            # Noted before the call: the message may be received again while it is out, and `done`
            # compares.
            entry.sent_handle = handle = entry.delivery.receipt_handle
            entry.on_its_way = True
            handles.append(handle)
        try:
            return checked_failures(await self._queue.delete(handles), len(handles))
        finally:
            for entry in entries:
                entry.on_its_way = False

    def done(self, entries: Sequence[Decision], error: PostroomError | None) -> None:
        """Note how deletes ended."""
        if error is None or isinstance(error, InvalidReceiptHandle):
            renewed = [entry for entry in entries if entry.sent_handle != entry.delivery.receipt_handle]
            if renewed:
                entries = [entry for entry in entries if not self._is_sent_again(entry)]
        self._desk.ended(entries, error)

    def _is_sent_again(self, entry: Decision) -> bool:
        """Send a delete again the message of which was received again while it was on its way.

        Only the newest handle is certain to delete it.
        """
        again = entry.sent_handle not in {"", entry.delivery.receipt_handle} and not entry.over
        if again:
            self._desk.delete_again(entry)
        return again


class Changes:
    """What the batches of visibility changes do."""

    def __init__(self, desk: Desk, queue: Queue) -> None:
        self._desk = desk
        self._queue = queue

    def fate(self, entry: Decision, now: float) -> Fate:
        """Return what to do with a change: it waits for an extension that is on its way, and would overwrite it."""
        fate = self._desk.fate(entry, now)
        if fate is Fate.SEND:
            if entry.delivery.beating:
                return Fate.WAIT
            # Now, and not when its call begins: that is a turn of the loop later, and others ask meanwhile.
            entry.delivery.beating = entry.extends
        return fate

    async def send(self, entries: Sequence[Decision]) -> Sequence[EntryFailure]:
        """Change the visibility of up to ten messages."""
        heartbeat = self._desk.heartbeat
        sent_at, slept = heartbeat.now(), heartbeat.slept
        for entry in entries:
            entry.sent_handle = entry.delivery.receipt_handle
            entry.on_its_way = not entry.extends
        changes = [
            VisibilityChange(entry.sent_handle, entry.delivery.allowed(whole_seconds(entry.delay), sent_at))
            for entry in entries
        ]
        # All of them until an answer says otherwise: after an error none of the new deadlines is
        # certain.
        refused = frozenset[int](range(len(entries)))
        try:
            failures = checked_failures(await self._queue.change_visibility(changes), len(changes))
            refused = frozenset(failure.index for failure in failures)
        finally:
            heartbeat.now()
            for index, entry in enumerate(entries):
                entry.on_its_way = False
                if entry.extends:
                    until = sent_at + changes[index].timeout - (heartbeat.slept - slept)
                    self._move(entry, until, confirmed=index not in refused)
        return failures

    def done(self, entries: Sequence[Decision], error: PostroomError | None) -> None:
        """Note how changes ended."""
        for entry in entries:
            if entry.extends:
                self._desk.stretched(entry, error)
        self._desk.ended([entry for entry in entries if not entry.extends], error)

    def _move(self, entry: Decision, until: float, *, confirmed: bool) -> None:
        delivery = entry.delivery
        delivery.beating = False
        if confirmed:
            self._desk.heartbeat.confirm(delivery, entry.sent_handle, until)
        elif until < delivery.deadline and delivery.receipt_handle == entry.sent_handle:
            # It may have taken effect all the same, and it asked for less than there was.
            delivery.deadline = until
        self._desk.quiet(delivery)
