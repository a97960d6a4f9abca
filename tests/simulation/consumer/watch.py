"""What is seen of a schedule, and what must never be seen: the oracles, named by the numbers of docs/design.md."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from postroom import AckMode
from postroom.errors import AccessDenied
from postroom.events import Event, MessageSettled
from postroom.message import Message, OutgoingMessage
from postroom.settlement import batcher
from postroom.testing.faults import FaultyQueue
from postroom.transports.protocol import NO_HANDLE, Client, EntryFailure, QueueInfo, SendResult, VisibilityChange
from postroom.types import Settlement
from simulation.consumer.attempts import CROWDED, CROWDED_FOR, LONG, LONGEST_BACKOFF, NO_LETTER, Ledger
from simulation.consumer.behind import Behind
from simulation.consumer.bodies import FEW, Bodies
from simulation.consumer.plan import How, Plan
from support.passing import PassingClient

LOST = "the message is not ours any longer: its visibility timeout is over"
STOPPING = "the consumer stops and its drain time is over"
ATTEMPTS: int | None = getattr(batcher, "ATTEMPTS", None)
"""How often one entry is sent; None where it is sent until the deadline of its delivery."""
PACE = 0.1
"""Seconds that such tries are apart, on average, at the least."""
REASON = "postroom.reason"
_LATE = 1.0
"""Seconds after which the answer to a call comes late."""
SMALL = 100
"""Bytes of a body that is no longer than it needs to be, at most."""
PUT_OFF = frozenset({"deferred", "parked"})
"""Settlements of messages that were not tried."""


class History:
    """Everything that happened, in order, and every promise that was broken."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, str, tuple[Any, ...]]] = []
        self.violations: list[str] = []

    def note(self, who: str, *what: Any) -> None:
        """Write something down."""
        self.lines.append((asyncio.get_running_loop().time(), who, what))

    def broken(self, oracle: str, text: str) -> None:
        """Write a broken promise down; the schedule goes on, so that its history tells the rest."""
        at = asyncio.get_running_loop().time()
        self.lines.append((at, "ORACLE", (oracle, text)))
        self.violations.append(f"{oracle} at {at:.3f}: {text}")

    def text(self) -> str:
        """Return the history as lines."""
        return "\n".join(f"{at:9.3f} {who:8} {' '.join(map(str, what))}" for at, who, what in self.lines)


class Receipt:
    """What the watcher knows of one receive of a message: the local clock's view, worked out independently."""

    __slots__ = (
        "arrived_at",
        "beating",
        "body",
        "changes",
        "deadline",
        "deletes",
        "ended",
        "ended_at",
        "group",
        "let_go_at",
        "message_id",
        "received_at",
        "receives",
        "refused",
        "settled_at",
        "sure_until",
        "tenant",
    )

    def __init__(self, message: Message, received_at: float, visibility: float) -> None:
        self.received_at = received_at
        self.arrived_at = received_at
        """When it was read: later than it was handed out, where the process stood still."""
        self.receives = message.receive_count
        self.message_id = message.id
        self.body = message.body
        self.tenant = message.message_attributes["tenantId"].string_value if has_tenant(message) else None
        self.group = message.group_id
        self.deadline = received_at + visibility
        self.sure_until = self.deadline
        """Until when its process can be sure that it is its own: it need not know when SQS handed it out."""
        self.deletes = 0
        self.changes = 0
        self.beating = 0
        self.settled_at: float | None = None
        """When a visibility change that is no extension was first sent."""
        self.ended = ""
        """What SQS confirmed: deleted, or changed."""
        self.ended_at: float | None = None
        self.let_go_at = math.inf
        """When it was left to its visibility timeout, or lost."""
        self.refused = False
        """Whether an extension was refused for good."""


def is_of_handle(failure: EntryFailure) -> bool:
    """Return whether an entry was refused for its receipt handle."""
    return "ReceiptHandle" in failure.code + failure.text or "MessageNotInflight" in failure.code


def has_tenant(message: Message) -> bool:
    """Return whether a message names a tenant."""
    return "tenantId" in message.message_attributes


class Watch:
    """The eyes on one process: what its consumer may do follows from what it did before."""

    def __init__(
        self,
        history: History,
        name: str,
        plan: Plan,
        on_rejected: Callable[[Sequence[str]], None],
        ledger: Ledger,
    ) -> None:
        self.on_rejected = on_rejected
        self.ledger = ledger
        self._crowded = plan.crowded
        self._crowded_for = CROWDED_FOR if plan.retention is None else 0  # never beyond the retention period
        self._long = LONG if plan.retention is None else LONGEST_BACKOFF  # for the same reason
        polling = plan.options["polling"]
        self._wait: float = polling.wait
        watched = plan.queues if plan.queues > 1 else 0  # what idle ones may bring has no room set aside
        # An extension that is never answered keeps its batch.
        hung = any(each.how is How.HANGS for each in plan.obstructions)
        answers = polling.batch * polling.pollers + 10 * watched + 10 * bool(plan.faults.hung)
        answers += len(plan.orders) * hung
        memory: int | None = getattr(polling, "memory", None)
        # A handler may go on after it has acknowledged its message.
        beside = answers + FEW + plan.options["concurrency"].total
        most_bytes = None if memory is None else memory + beside * (plan.body_bytes + SMALL)
        self._memory = memory if plan.body_bytes else None
        self.full_at = -1.0
        """When the bodies that are held took all the memory that they may, last."""
        self.bodies = Bodies(self._ended_at, answers=answers, most_bytes=most_bytes)
        self.handed_out_at: Callable[[str], float | None] = lambda _message_id: None
        """When SQS handed out what a process that stood still reads late; None for what it reads in time."""
        self.on_offered: Callable[[Iterable[str | None]], None] = lambda _groups: None
        """Told the groups of messages that are sent to the dead-letter queue."""
        self.letters_failed_at = -math.inf
        """When a call to the dead-letter queue failed last: the next one comes after a pause."""
        self.offering: set[str] = set()
        """Messages that were sent to the dead-letter queue, and are not settled: each may hold a slot."""
        self.unread_since: Callable[[], float] = lambda: 0.0
        """When what the process reads now may have arrived, at the earliest."""
        self.patience: Callable[[], float] = lambda: 1.0
        """Seconds after its handling within which a message has to be settled: what settles it may be paused."""
        self.blocked_since: Callable[[float], float] = lambda _when: 0.0
        """Seconds for which nothing could run since a time."""
        self.excuse: Callable[[Receipt], str] = lambda _receipt: ""
        """Why the library cannot be blamed for giving a message back; empty where it can."""
        self.receives = 0
        """Receives that brought something."""
        self.deferred = 0
        """Messages that were deferred, whether for an outage or for want of room."""
        self.history = history
        self.name = name
        self.ack = plan.ack
        self.blind = plan.blind
        self.redrives = bool(plan.redrives)
        self.foreign = bool(plan.faults.foreign)
        """Whether calls raise what the protocol does not name: that may mean that nothing can be sent any longer."""
        self.may_be_rejected: Callable[[str, str, str], bool] = lambda *_: True
        """Message id, key and reason to whether it may become a dead letter for that."""
        self.is_poison: Callable[[str], bool] = lambda _id: False
        self.stopping = False
        self.receipts: dict[str, Receipt] = {}
        self.newest: dict[str, str] = {}
        """Message id to the newest receipt handle that this process was given, by SQS's count of receives."""
        self.latest: dict[str, str] = {}
        """Message id to the one that arrived last. Answers may overtake: that can be an older one."""
        self.finished: set[str] = set()
        """Messages with a handler that returned."""
        self.handled: set[str] = set()
        """Messages that were found handled before."""
        self.failed: set[str] = set()
        self.asked_for_time: set[str] = set()
        """Messages with a handler that raised ``Retry``, or ``Reject``, which may be in vain."""
        self.acked_by_hand: set[str] = set()
        self.retried_by_hand: set[str] = set()
        """Messages for which the last handler asked for a retry: it may be cut off before SQS confirms that."""
        self.offered: set[str] = set()
        """Bodies that were sent to the dead-letter queue, whether it took them or not."""
        self.letters_answered: set[str] = set()
        """Messages of which a letter was taken, or refused: at their last receive they come no more."""
        self.rejected: set[str] = set()
        """Bodies that the dead-letter queue took."""
        self.started: set[str] = set()
        """Receipt handles with a handler that was called."""
        self.ended_at: dict[str, float] = {}
        """Message id to the time at which its handling ended, until it is received again."""
        self.left: set[str] = set()
        """Messages that were left to their visibility timeout."""
        self.lost: set[str] = set()
        """Messages that were given up as lost; the answer to an older receive of one may still arrive."""
        self.refused: set[str] = set()
        """Receipt handles with a delete, or a change, that was refused for good."""
        self.behind = Behind()
        self._fifo = plan.fifo
        self.settled: Counter[str] = Counter()
        self.sending = 0
        """Sends to the dead-letter queue under way: each holds a slot."""
        self.unopened = False
        """Whether an open of the dead-letter queue was cut off, and with it the letters that waited for that."""

    # -- receive -------------------------------------------------------------------------------------------------

    def received(self, messages: Sequence[Message], visibility: float, asked_at: float) -> list[Message]:
        """Remember what arrived. Returns it as it is handed on."""
        now = asyncio.get_running_loop().time()
        self.receives += bool(messages)
        for message in messages:
            held = self.newest.get(message.id)
            overlaps = held is not None and self.receipts[held].deadline > now and not self.receipts[held].ended
            self.ledger.received(
                message.receipt_handle, message.id, self.name, message.receive_count, now, overlaps=overlaps
            )
            served = self.handed_out_at(message.id)
            receipt = Receipt(message, now if served is None else served, visibility)
            receipt.arrived_at = now
            if served is not None:  # all that it knows is when it asked, and since when it may not have read
                receipt.sure_until = min(receipt.deadline, max(asked_at, self.unread_since()) + visibility)
            self.receipts[message.receipt_handle] = receipt
            self.ended_at.pop(message.id, None)
            self.latest[message.id] = message.receipt_handle
            known = self.newest.get(message.id)
            if known is None or self.receipts[known].receives <= message.receive_count:
                self.newest[message.id] = message.receipt_handle
        if self._memory is not None:
            ours = [each for each in self.receipts.values() if not each.ended and each.deadline > now]
            if sum(len(each.body) for each in ours) >= self._memory:
                self.full_at = now
        if messages:
            self.history.note(self.name, "received", *(each.id[:4] for each in messages))
        return self.bodies.marked(messages)

    def _ended_at(self, handle: str) -> float | None:
        """Return when SQS confirmed the end of a receive; None while it is held, here or in a newer receive."""
        receipt = self.receipts[handle]
        return receipt.ended_at if self.newest[receipt.message_id] == handle else None

    def knows_time(self, by: float = math.inf) -> bool:
        """Return whether a process with a wrong clock can know SQS's time: a message was received for the first time.

        SQS says when that was, and it was after the process asked. Of later receives it does not say when they were.
        """
        return any(receipt.receives == 1 and receipt.arrived_at < by for receipt in self.receipts.values())

    def most_sends(self, receipt: Receipt, now: float) -> float:
        """Return how often an entry of a receive may have been sent by now."""
        return 4 + (now - receipt.received_at) / PACE if ATTEMPTS is None else ATTEMPTS

    def has_ended(self, message: Message) -> None:
        """Note that the handling of a message is over, unless it was received again meanwhile."""
        if self.latest[message.id] == message.receipt_handle:
            self.ended_at[message.id] = asyncio.get_running_loop().time()

    def owns(self, message_id: str, handle: str | None = None) -> bool:
        """Return whether a message is still this process's, for all it can know.

        By its newest receipt, unless that is of a receive apart, which has a handler of its own.
        """
        newest, latest = self.newest[message_id], self.latest[message_id]
        known = self.receipts[newest]
        over = known.let_go_at <= self.receipts[latest].arrived_at
        over = over or known.deadline <= self.receipts[latest].received_at
        if known.ended or over:  # a duplicate that came after that has only its own receipt
            newest = latest
        if handle is not None and self.receipts[handle].let_go_at <= self.receipts[newest].arrived_at:
            newest = handle  # what came after it was lost is a receive apart, although its handler has not begun yet
        receipt = self.receipts[newest if handle is None or newest not in self.started else handle]
        return not receipt.refused and asyncio.get_running_loop().time() < receipt.sure_until

    def judge_owner(self, message: Message, blocked_since: Callable[[float], float]) -> None:
        """Oracle *owner*: a handler that ends untold was cancelled if its message was lost, whatever hangs."""
        newest, own = self.receipts[self.newest[message.id]], self.receipts[message.receipt_handle]
        deadline = max(newest.deadline, own.deadline)
        # A decision on its way is waited for; of a receive apart, which may be an older one, it is its own.
        if any(each.ended or each.settled_at is not None or each.deletes for each in (newest, own)):
            return
        late = asyncio.get_running_loop().time() - deadline - blocked_since(deadline)
        if late > 1.0:
            text = f"{self.name} runs {message.id[:4]} on for {late:.3f} s although it lost it"
            self.history.broken("owner", text)

    # -- settle --------------------------------------------------------------------------------------------------

    def deletes(self, handles: Sequence[str]) -> None:
        """Judge a delete as it leaves the consumer."""
        now = asyncio.get_running_loop().time()
        self.history.note(self.name, "delete", *(self._short(each) for each in handles))
        if len(set(handles)) != len(handles):
            self.history.broken("S1", f"{self.name} named one receipt twice in a delete")
        for handle in handles:
            receipt = self.receipts[handle]
            receipt.deletes += 1
            self._check_live(receipt, now, "delete")
            if receipt.deletes > self.most_sends(receipt, now):
                self.history.broken("S5", f"{self.name} deleted {self._short(handle)} {receipt.deletes} times")
            newest = self.newest[receipt.message_id]
            let_go = receipt.message_id in self.left or receipt.message_id in self.lost
            apart = newest in self.started or self.receipts[newest].ended or let_go
            if handle != newest and not apart:
                self.history.broken("S6", f"{self.name} deletes {self._short(handle)} with an older receipt handle")
            if receipt.settled_at is not None:
                self.history.broken("S1", f"{self.name} deletes {self._short(handle)}, which it gave back")
            if not self.may_delete(receipt):
                self.history.broken("S2", f"{self.name} deletes {self._short(handle)} before its work is done")

    def may_delete(self, receipt: Receipt) -> bool:
        """Return whether the work of a message is done, or was given up as the mode says."""
        message_id = receipt.message_id
        if receipt.body in self.rejected or message_id in self.acked_by_hand or message_id in self.handled:
            return True
        if self.ack is AckMode.MANUAL:
            return False
        # A rejected message counts as failed while there is no dead-letter queue.
        given_up = self.ack is AckMode.ALWAYS and (message_id in self.failed or self.redrives)
        return message_id in self.finished or given_up

    def changes(self, changes: Sequence[VisibilityChange], *, beat: bool) -> None:
        """Judge a visibility change as it leaves the consumer: an extension, or a decision."""
        now = asyncio.get_running_loop().time()
        what = "extend" if beat else "change"
        self.history.note(self.name, what, *(f"{self._short(each.receipt_handle)}={each.timeout}" for each in changes))
        for change in changes:
            receipt = self.receipts[change.receipt_handle]
            if beat:
                receipt.beating += 1
                ended_at = self.ended_at.get(receipt.message_id)
                # Decided a turn of the loop before it leaves: the answer to the delete may come in between.
                ended = receipt.ended and receipt.ended_at != now
                deleting = self.may_delete(receipt) and not ended and now < receipt.deadline
                late = ended_at is not None and now - self.blocked_since(ended_at) > ended_at + self.patience()
                thaws = self.unread_since() < now  # it had decided to, and was frozen
                if ended_at is not None and late and not (self.sending or deleting or thaws):
                    text = f"{self.name} extends {receipt.message_id[:4]}, which it has done with since {ended_at:.3f}"
                    self.history.broken("S4", text)
                if receipt.settled_at is not None:
                    text = f"{self.name} extends {self._short(change.receipt_handle)} after its backoff was sent"
                    self.history.broken("S3", text)
                continue
            receipt.changes += 1
            self._check_live(receipt, now, "change")
            if receipt.beating:
                text = f"{self.name} sends the backoff of {self._short(change.receipt_handle)} beside an extension"
                self.history.broken("S3", text)
            if receipt.changes > self.most_sends(receipt, now):
                self.history.broken("S5", f"{self.name} changed {self._short(change.receipt_handle)} too often")
            if receipt.deletes:
                self.history.broken("S1", f"{self.name} gives back {self._short(change.receipt_handle)} it deletes")
            if receipt.settled_at is None:
                receipt.settled_at = now
                self.ledger.gives_back(change.receipt_handle, now, change.timeout)
                failed = self.ledger.has_failed(receipt.message_id)  # then it goes back for itself
                group = receipt.group if self._fifo else None  # on a standard queue a group orders nothing
                wrong = self.behind.gives_back(receipt.message_id, group, receipt.received_at, failed=failed)
                if wrong is not None and not self.stopping:
                    self.history.broken("expense", f"{self.name} {wrong}")
                crowded = self._crowded and change.timeout >= self._crowded_for
                why = self.excuse(receipt)
                if crowded and why != NO_LETTER:
                    why = CROWDED
                if why:
                    self.ledger.excuses(change.receipt_handle, why)

    def answered_late(self, message: Message) -> bool:
        """Whether SQS was slow to confirm that a message goes back: until then what is behind it is held."""
        receipt = self.receipts.get(message.receipt_handle)
        if receipt is None or receipt.settled_at is None:
            return False
        return asyncio.get_running_loop().time() > receipt.settled_at + _LATE

    def recalls(self, changes: Sequence[VisibilityChange]) -> None:
        """Judge a recall: only what was deferred before, to be seen at once, or after the last polls of a stop."""
        self.history.note(self.name, "recall", *(self._short(each.receipt_handle) for each in changes))
        for change in changes:
            receipt = self.receipts[change.receipt_handle]
            hidden = self._wait + 2 if self.stopping else 0
            if receipt.ended != "change" or receipt.deletes or change.timeout > hidden:
                self.history.broken("S1", f"{self.name} recalls {receipt.message_id[:4]}, which it did not defer")
            receive = self.ledger.receives[change.receipt_handle]
            if receive.failed and receive.delay <= self._long:
                self.history.broken(
                    "S1", f"{self.name} recalls {receipt.message_id[:4]}, which backs off after a failure"
                )
            # Not by SQS's count alone: the answer to an older receive may arrive last, and be what was deferred.
            others = [
                each
                for each in self.receipts.values()
                if each.message_id == receipt.message_id and each.receives >= receipt.receives
            ]
            if any(each.arrived_at > (receipt.settled_at or 0.0) for each in others):
                self.history.broken("S1", f"{self.name} recalls {receipt.message_id[:4]}, which has come back since")

    def answered(self, handles: Sequence[str], failures: Sequence[EntryFailure], what: str) -> None:
        """Note which entries SQS confirmed."""
        refused = {failure.index for failure in failures}
        now = asyncio.get_running_loop().time()
        self.refused.update(handles[failure.index] for failure in failures if failure.sender_fault)
        for index, handle in enumerate(handles):
            if index not in refused:
                self.receipts[handle].ended = what
                self.receipts[handle].ended_at = now
                (self.ledger.forgets if what == "delete" else self.ledger.confirms)(handle)

    def extended(
        self, changes: Sequence[VisibilityChange], failures: Sequence[EntryFailure] | None, sent_at: float
    ) -> None:
        """Note what became of extensions; None: it is not known."""
        by_place = None if failures is None else {failure.index: failure for failure in failures}
        for index, change in enumerate(changes):
            receipt = self.receipts[change.receipt_handle]
            receipt.beating -= 1
            if by_place is None:
                continue
            failure = by_place.get(index)
            if failure is None:
                receipt.deadline = sent_at + change.timeout
                # An answer that comes after the deadline changes nothing: it is given up then.
                if asyncio.get_running_loop().time() < receipt.sure_until:
                    receipt.sure_until = receipt.deadline
            elif failure.sender_fault and is_of_handle(failure):
                receipt.refused = True

    def rejects(self, messages: Sequence[OutgoingMessage]) -> None:
        """Judge dead letters as they leave the consumer."""
        for message in messages:
            self.offered.add(str(message.body))
            said = message.message_attributes.get(REASON)
            reason = "" if said is None else said.string_value or ""
            key = message.message_attributes["key"].string_value or ""
            self.history.note(self.name, "dead letter", key, reason)
            mine = [receipt for receipt in self.receipts.values() if receipt.body == message.body]
            now = asyncio.get_running_loop().time()
            if all(now >= receipt.deadline for receipt in mine):
                self.history.broken("S4", f"{self.name} makes {key} a dead letter, which it lost")
            for receipt in mine:
                self.behind.offers(receipt.message_id, receipt.group, now)
            self.offering.update(receipt.message_id for receipt in mine)
            if not any(self.may_be_rejected(each, key, reason) for each in {receipt.message_id for receipt in mine}):
                self.history.broken("poison", f"{self.name} makes {key} a dead letter: {reason}")
            self.on_offered([receipt.group for receipt in mine])  # last: it excuses what is behind, not itself

    def was_offered(self, bodies: set[str]) -> None:
        """Note that the dead-letter queue has answered, or has not: until now a process worked on these messages."""
        now = asyncio.get_running_loop().time()
        self.on_offered([each.group for each in self.receipts.values() if each.body in bodies])
        for message_id in {each.message_id for each in self.receipts.values() if each.body in bodies}:
            self.letters_answered.add(message_id)
            if message_id in self.ended_at:
                self.ended_at[message_id] = now

    def _check_verdict(self, message: Message, settlement: Settlement) -> None:
        """Poison is rejected."""
        if self.stopping or message.id in self.retried_by_hand:
            return
        if settlement is Settlement.RETRIED and self.is_poison(message.id) and message.body not in self.offered:
            self.history.broken("poison", f"{self.name} tries {message.id[:4]} again, although it is poison")

    def _check_given_up(self, message: Message) -> None:
        """S5: a delete is tried as long as its message is held; where it is denied, for five minutes."""
        newest = self.newest[message.id]
        own = message.receipt_handle  # of a receive apart, where that is not the newest: it answers for itself
        excused = not self.refused.isdisjoint({own, newest}) or self.stopping or self.foreign
        receipt = self.receipts[newest]  # of a message that comes again with its old handle it was confirmed
        if receipt.deletes and receipt.ended != "delete" and not excused:
            self.history.broken("S5", f"{self.name} gives the delete of {message.id[:4]} up, which it holds")

    def observe(self, event: Event) -> None:
        """Count settlements: each receive ends once (MANUAL may acknowledge what it first left)."""
        if isinstance(event, MessageSettled):
            self.history.note(self.name, "settled", event.message.id[:4], event.settlement.value)
            handle = event.message.receipt_handle
            self.offering.discard(event.message.id)
            self.behind.ends(event.message.id)
            self._check_verdict(event.message, event.settlement)
            self.deferred += event.settlement.value in PUT_OFF
            if event.settlement is Settlement.LEFT:
                self._check_given_up(event.message)
                self.left.add(event.message.id)
                newest = self.newest[event.message.id]
                # With the receipts of later receives that reached it before its handler ended.
                for each in {handle} if newest in self.started else {handle, newest}:
                    self.receipts[each].let_go_at = asyncio.get_running_loop().time()
            else:
                if event.settlement is Settlement.LOST:
                    self.lost.add(event.message.id)
                    self.receipts[handle].let_go_at = asyncio.get_running_loop().time()
                self.settled[handle] += 1
                if self.settled[handle] > 1:
                    self.history.broken("S1", f"{self.name} settled {self._short(handle)} twice")

    def _check_live(self, receipt: Receipt, now: float, what: str) -> None:
        if now >= receipt.deadline:
            text = f"{self.name} sends a {what} of {receipt.message_id[:4]}, which it lost at {receipt.deadline:.3f}"
            self.history.broken("S4", text)
        if receipt.ended:
            text = f"{self.name} sends a {what} of {receipt.message_id[:4]} after its {receipt.ended} was confirmed"
            self.history.broken("S1", text)

    def _short(self, handle: str) -> str:
        return self.receipts[handle].message_id[:4]


class WatchedClient(PassingClient):
    """The client of one process. Once the process is dead, nothing gets out of it any longer."""

    def __init__(self, inner: Client, watch: Watch, gate: "Gate") -> None:
        super().__init__(inner)
        self._watch = watch
        self._gate = gate

    async def queue(self, name: str) -> "WatchedQueue":
        """Open a queue. The dead-letter queue is opened by the first letter: that letter is on its way meanwhile."""
        self._gate.check()
        self._watch.sending += 1
        try:
            inner = await super().queue(name)
        except asyncio.CancelledError:
            self._watch.unopened = True
            raise
        finally:
            self._watch.sending -= 1
        return WatchedQueue(inner, self._watch, self._gate)


class Gate:
    """Whether a process is alive: a dead one's clean-up code runs, but reaches no server."""

    def __init__(self) -> None:
        self.alive = True

    def check(self) -> None:
        """Raise CancelledError in a dead process."""
        if not self.alive:
            raise asyncio.CancelledError


class WatchedQueue:
    """A queue that has every call judged as it leaves the consumer."""

    def __init__(self, inner: FaultyQueue, watch: Watch, gate: Gate) -> None:
        self._inner = inner
        self._watch = watch
        self._gate = gate
        self._looked = 0.0, -1.0
        """From when to when it was last looked whether deletes work: a receive begins with that."""

    @property
    def info(self) -> QueueInfo:
        """What the queue said of itself; next to nothing to a role that may not ask."""
        info = self._inner.info
        return msgspec.structs.replace(info, redrive=None, attributes={}) if self._watch.blind else info

    async def receive(
        self, *, limit: int, wait: float, visibility: float, attempt_id: str | None = None
    ) -> list[Message]:
        """Receive, and remember."""
        self._gate.check()
        now = asyncio.get_running_loop().time()
        began, ended = self._looked
        asked_at = began if ended == now else now
        messages = await self._inner.receive(limit=limit, wait=wait, visibility=visibility, attempt_id=attempt_id)
        self._gate.check()
        return self._watch.received(messages, visibility, asked_at)

    async def delete(self, receipt_handles: Sequence[str]) -> list[EntryFailure]:
        """Judge, then delete."""
        self._gate.check()
        if receipt_handles == [NO_HANDLE]:  # a look whether deletes work
            began = asyncio.get_running_loop().time()
            failures = await self._inner.delete(receipt_handles)
            self._looked = began, asyncio.get_running_loop().time()
            return failures
        self._watch.deletes(receipt_handles)
        failures = await self._inner.delete(receipt_handles)
        self._watch.answered(receipt_handles, failures, "delete")
        return failures

    async def change_visibility(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        """Judge, then change. The name of the calling task tells an extension from a decision."""
        self._gate.check()
        task = asyncio.current_task()
        beat = task is not None and ("heartbeat" in task.get_name() or "extend" in task.get_name())
        if task is not None and "recall" in task.get_name():
            self._watch.recalls(changes)
            return await self._inner.change_visibility(changes)
        self._watch.changes(changes, beat=beat)
        if not beat:
            failures = await self._inner.change_visibility(changes)
            self._watch.answered([each.receipt_handle for each in changes], failures, "change")
            return failures
        sent_at = asyncio.get_running_loop().time()
        answer: list[EntryFailure] | None = None
        try:
            answer = await self._inner.change_visibility(changes)
        finally:
            self._watch.extended(changes, answer, sent_at)
        return answer

    async def send(self, messages: Sequence[OutgoingMessage]) -> list[SendResult | EntryFailure]:
        """Send to the dead-letter queue."""
        self._gate.check()
        self._watch.rejects(messages)
        self._watch.sending += 1
        try:
            results = await self._inner.send(messages)
        except BaseException:
            self._watch.letters_failed_at = asyncio.get_running_loop().time()
            raise
        finally:
            self._watch.sending -= 1
            self._watch.was_offered({each.body for each in messages})
        accepted = [each for each, result in zip(messages, results, strict=True) if isinstance(result, SendResult)]
        self._watch.rejected.update(each.body for each in accepted)
        self._watch.on_rejected([each.message_attributes["key"].string_value or "" for each in accepted])
        self._watch.history.note(self._watch.name, "dead letter sent")
        return results

    async def attributes(self) -> Mapping[str, str]:
        """Ask for the attributes."""
        self._gate.check()
        if self._watch.blind:
            text = "GetQueueAttributes: the role may not read the attributes of this queue"
            raise AccessDenied(text, operation="GetQueueAttributes", code="AccessDenied")
        return await self._inner.attributes()
