"""Sends dead letters home, or deletes them: chosen ones only, at a limited rate, and never losing one.

A letter is sent home first, and deleted after SQS has taken it. A process that is killed in between leaves it in both
queues; the next run with the same journal deletes it without sending it again. Killed between SQS's answer and the
journal, at most one batch of ten is sent twice.
"""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any

from postroom.dead_letters.destinations import Destination, Destinations
from postroom.dead_letters.journal import Journal
from postroom.dead_letters.outcome import Outcome, Progress
from postroom.dead_letters.reading import DeadLetter, TenantOf, read
from postroom.dead_letters.selecting import LetterFilter
from postroom.dead_letters.walking import Walk, delete, patiently, tens
from postroom.errors import InvalidRequest, TransportError
from postroom.message import Message, OutgoingMessage
from postroom.options import MAX_BATCH
from postroom.settlement.batcher import MAX_BYTES
from postroom.transports.protocol import EntryFailure, Queue, SendResult, is_of_key


@dataclass(frozen=True, slots=True)
class Scene:
    """A dead-letter queue, and how it is looked at."""

    queue: Queue
    tenant_of: TenantOf
    hold: float
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, messages: Sequence[Message]) -> list[DeadLetter]:
        """Read letters, their tenants included."""
        return [read(message, await self._tenant(message)) for message in messages]

    async def _tenant(self, message: Message) -> str | None:
        tenant = self.tenant_of(message)
        return await tenant if isawaitable(tenant) else tenant


class Job:
    """One redrive or purge."""

    def __init__(
        self,
        scene: Scene,
        outcome: Outcome,
        where: LetterFilter,
        *,
        rate: float,
        journal: Journal | None,
        progress: Progress | None,
        homes: Destinations | None,
    ) -> None:
        self.outcome = outcome
        self.where = where
        self._scene = scene
        self._queue = scene.queue
        self._journal = journal
        self._progress = progress
        self._homes = homes
        self._walk = Walk(self._queue, hold=scene.hold)
        self._pace = _Pace(rate)
        self._sent_before = set[str]() if journal is None else journal.already_sent(self._queue.info.arn)
        self._sent_now: set[str] = set()
        self._stuck: set[tuple[str, str | None]] = set()

    async def run(self) -> Outcome:
        """Walk through the queue, and act on what is meant."""
        try:
            async with aclosing(self._walk.batches()) as batches:
                async for messages in batches:
                    if self._scene.stop.is_set():  # also before the first: what was meant may not be known by then
                        self.outcome.stopped = True
                        break
                    await self._take(messages)
                    self.outcome.cut = self._walk.cut
                    if self._progress is not None:
                        self._progress(self.outcome)
            self.outcome.cut = self._walk.cut
        finally:
            # However it ends: what was only looked at would else stay invisible for ``hold`` seconds.
            await self._walk.release()
        return self.outcome

    async def note(self, event: str, *, letters: Sequence[str] = (), **more: Any) -> None:
        """Write to the journal, if there is one."""
        if self._journal is not None:
            await self._journal.write(event, queue=self._queue.info.arn, letters=letters, **more)

    async def _take(self, messages: Sequence[Message]) -> None:
        outcome = self.outcome
        outcome.seen += len(messages)
        # First: what an earlier run has sent home must not be sent again.
        left = await self._finish(messages)
        now = time.time()
        meant = [letter for letter in await self._scene.read(left) if self._is_meant(letter, now)]
        for letter in meant:
            outcome.matched += 1
            outcome.tenants[letter.tenant or ""] += 1
            outcome.reasons[letter.reason] += 1
        if self._homes is not None:
            for destination, batch in (await self._by_home(meant)).items():
                await self._send_home(destination, batch)
        elif outcome.dry_run:
            outcome.done += len(meant)
        elif meant and await self._turn(len(meant)):
            outcome.done += await self._delete([each.id for each in meant if self._may_go(each)])

    def _is_meant(self, letter: DeadLetter, now: float) -> bool:
        """Whether to act on a letter: not on one that this very run sent home and that has failed again since."""
        return self.where.matches(letter, now=now) and letter.message_id not in self._sent_now

    async def _finish(self, messages: Sequence[Message]) -> list[Message]:
        """Delete what an earlier run had sent home, and return the rest."""
        sent = [message.id for message in messages if message.id in self._sent_before]
        if sent and not self.outcome.dry_run:
            self.outcome.finished += await self._delete(sent)
        return [message for message in messages if message.id not in self._sent_before]

    async def _by_home(self, letters: Sequence[DeadLetter]) -> dict[Destination, list[DeadLetter]]:
        assert self._homes is not None  # noqa: S101 - asked only by a redrive
        homes: dict[Destination, list[DeadLetter]] = {}
        for letter in letters:
            home = await self._homes.of(letter)
            if isinstance(home, str):
                self.outcome.kept[home] += 1
            else:
                homes.setdefault(home, []).append(letter)
        return homes

    async def _send_home(self, home: Destination, letters: Sequence[DeadLetter]) -> None:
        if self.outcome.dry_run:
            self.outcome.done += len(letters)
            return
        for batch in _batches(letters, fifo=home.fifo):
            if not await self._turn(len(batch)):
                return
            # After the wait: what is visible again by then, another run may send home as well.
            ready = [each for each in batch if self._may_go(each, home if home.fifo else None)]
            if ready:
                await _to_the_end(self._move(home, ready))

    async def _turn(self, count: int) -> bool:
        """Wait until so many more letters may go, and keep what is held meanwhile. Returns False once it is to stop."""
        stop, longest = self._scene.stop, self._scene.hold / 4
        while not stop.is_set() and (left := self._pace.left()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), min(left, longest))
            await self._walk.extend()
        self.outcome.stopped = self.outcome.stopped or stop.is_set()
        if not stop.is_set():
            self._pace.take(count)
        return not stop.is_set()

    def _may_go(self, letter: DeadLetter, fifo: Destination | None = None) -> bool:
        """Whether a letter is still ours, and no earlier one stayed behind that goes to its group of a FIFO queue."""
        if not self._walk.owns(letter.id):
            self.outcome.kept["it was visible again before its turn came; run it again"] += 1
            return False
        if fifo is not None and (fifo.arn, letter.group_id) in self._stuck:
            self.outcome.kept["an earlier letter of its message group was refused"] += 1
            return False
        return True

    async def _move(self, home: Destination, letters: Sequence[DeadLetter]) -> None:
        results = await self._send(home, [letter.going_home(fifo=home.fifo) for letter in letters])
        if results is None:
            for letter in letters:  # each is noted and deleted by itself: the next one may end the run
                await self._move(home, [letter])
            return
        taken: dict[str, str] = {}
        for letter, result in zip(letters, results, strict=True):
            if isinstance(result, str):
                self.outcome.kept[result] += 1
                # What follows in its group would overtake it.
                self._stuck.add((home.arn, letter.group_id))
            else:
                taken[letter.id] = result.message_id
        self._sent_now.update(taken.values())
        self._sent_before.update(taken)  # a standard queue may hand a letter out once more, even when it is deleted
        # On disk before the delete: after a kill in between, the next run deletes these and does not send them again.
        await self.note("sent", letters=list(taken), message_ids=list(taken.values()), to=home.arn)
        self.outcome.done += len(taken)
        await self._delete(list(taken))

    async def _send(self, home: Destination, messages: Sequence[OutgoingMessage]) -> list[SendResult | str] | None:
        """Return what became of each message: sent, or why it has to stay; None if each has to be asked alone.

        Raises:
            TransportError: the queue takes nothing for now.
        """
        refused = f"queue {home.name} refused it"
        try:
            results = await patiently(home.queue.send, messages)
        except TransportError as error:
            if error.retryable:
                raise
            of_entry = isinstance(error, InvalidRequest) and not is_of_key(error.code)
            if of_entry and len(messages) > 1:  # SQS refuses a whole call for one bad entry
                return None
            if not of_entry and self._homes is not None:  # denied, or gone: letters of other queues go on
                self._homes.give_up(home, f"{refused}: {error}")
            why = f"{refused}: {error.code if of_entry else error}"
            return [why for _ in messages]
        return [f"{refused}: {each.code}" if isinstance(each, EntryFailure) else each for each in results]

    async def _delete(self, ids: Sequence[str]) -> int:
        """Delete letters, note it, and return how many are gone."""
        gone = 0
        for batch in tens(ids):
            failures = await delete(self._queue, [self._walk.handle(each) for each in batch])
            refused = {failure.index: failure.code for failure in failures}
            deleted = [each for index, each in enumerate(batch) if index not in refused]
            for each in deleted:
                self._walk.forget(each)
            for code in refused.values():
                self.outcome.kept[f"it could not be deleted: {code}"] += 1
            await self.note("deleted", letters=deleted)
            gone += len(deleted)
        return gone


class _Pace:
    """So many letters per second, at most."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next = 0.0

    def left(self) -> float:
        """Return the seconds until the next ones may go."""
        return self._next - asyncio.get_running_loop().time()

    def take(self, count: int) -> None:
        """Let so many more go now."""
        # From now at the earliest: a pause in the work must not be made up for by a burst.
        self._next = max(self._next, asyncio.get_running_loop().time()) + count / self._rate


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Run some work to its end, also when the caller is cancelled: sending and deleting stay together."""
    task = asyncio.create_task(work, name="postroom-dead-letters-move")
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        # A second cancellation ends the wait, not the work: the journal then tells what was sent.
        await asyncio.wait([task])
        raise


def _batches(letters: Sequence[DeadLetter], *, fifo: bool) -> list[list[DeadLetter]]:
    """Cut letters into calls: of up to 1 MiB, and to a FIFO queue with each message group once.

    An entry that is refused would otherwise be overtaken by a later one of its group in the same call.
    """
    batches: list[list[DeadLetter]] = []
    size = 0
    for letter in letters:
        crowded = not batches or len(batches[-1]) == MAX_BATCH or size + letter.size > MAX_BYTES
        if crowded or (fifo and any(other.group_id == letter.group_id for other in batches[-1])):
            batches.append([])
            size = 0
        batches[-1].append(letter)
        size += letter.size
    return batches
