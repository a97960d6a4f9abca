"""What is looked at when a process has stopped, and when everything is over."""

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

from postroom import AckMode
from postroom.local.messages import MessageState, Stored
from postroom.testing.loop import describe_tasks
from simulation.consumer.database import INBOX
from simulation.consumer.plan import ENDLESS, How, Operation, OrderPlan, Reaction, disturbs
from simulation.consumer.process import Process
from simulation.consumer.spacing import fails_until, judge_dead_letters

if TYPE_CHECKING:
    from simulation.consumer.schedule import Simulation

CALLS_PER_MESSAGE = 0.2
"""Receives that bring something, per handled message, where equal tenants have a backlog."""
_REST = 32
"""Messages of equal tenants that may be deferred: what is left in the queue when a backlog ends."""
START = 10
"""Such receives that are not counted: of the start, and of the end."""
GLANCES = 4.0
"""Receives per second of each process that may look for tenants of which nothing is here, while slots are free."""
TIME_TO_REJECT = 5.0
"""Seconds before a message expires in which it cannot be expected any longer that it is rejected for that."""


class Verdicts:
    """Judges what is left behind."""

    def __init__(self, simulation: "Simulation") -> None:
        self._world = simulation
        self.history = simulation.history
        self.plan = simulation.plan
        self.shared = simulation.shared
        self.databases = simulation.databases
        self.queues = simulation.queues

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def check_stopped(self, process: Process, began: float) -> None:
        """I4, I8, S7: a stopped process leaves nothing running, nothing open, nothing invisible."""
        self.check_nothing_left(process)
        self._check_statistics(process)
        options = self.plan.options["shutdown"]
        budget = options.poll + options.drain + options.cancel + options.flush + options.close + 0.5
        took = self._now() - began - process.lingered - self.shared.blocked_since(began)
        if took > budget + process.frozen:
            self.history.broken("stop", f"{process.name} took {took:.3f} s to stop, more than {budget:g}")
        # A loop that was blocked for longer than the flush may take sends nothing.
        if not process.disturbed and not self.shared.blocked_since(began):
            self._check_returned(process, began)

    def check_nothing_left(self, process: Process) -> None:
        """I4, I8: neither a task nor a connection nor a resource."""
        broken = self.history.broken
        left = [task for task in process.tasks if not task.done()]
        if left and not process.stubborn:
            broken("I8", f"{process.name} stopped, but still runs {describe_tasks(left)}")
        if process.opened != process.closed or process.weight:
            text = f"{process.name} opened {process.opened}, closed {process.closed}, weight {process.weight}"
            broken("I4", text)
        if connections := [each for each in self.databases.connections() if each.owner is process]:
            broken("I8", f"{process.name} stopped, but has {len(connections)} connections")

    def _check_statistics(self, process: Process) -> None:
        stats = process.consumer.statistics()
        if stats.held or stats.waiting or stats.suspended or (stats.running and not process.stubborn):
            self.history.broken("I8", f"{process.name} stopped, but holds messages: {stats}")
        pool = stats.pool
        if pool is not None and (pool.live or pool.weight or pool.waiting or (pool.leased and not process.stubborn)):
            self.history.broken("I8", f"{process.name} stopped, but its pool is not empty: {pool}")

    def _check_returned(self, process: Process, began: float) -> None:
        """S7: what was not started is visible again at once; nothing else of the process stays invisible unasked."""
        everything = [(queue, message) for queue in self.queues for message in queue.messages.values()]
        for queue, message in everything:
            handle = queue.handles.make(message)
            receipt = process.watch.receipts.get(handle)
            if receipt is None or message.state is not MessageState.IN_FLIGHT or not process.watch.owns(message.id):
                continue
            if self.plan.ack is AckMode.MANUAL and (
                handle in process.watch.started or message.id in process.watch.left
            ):
                continue
            if not (receipt.ended or process.licence.may_stay_invisible(message.id)):
                self.history.broken("S7", f"{process.name} stopped and left {message.id[:4]} invisible")
        watch = process.watch
        # Received again while its handler ran: then it is started, under the receipt that was never settled.
        running = {
            watch.receipts[handle].message_id for handle in watch.started if watch.receipts[handle].settled_at is None
        }
        for handle, receipt in watch.receipts.items():
            if handle in watch.started or receipt.settled_at is None or receipt.settled_at < began:
                continue
            if receipt.message_id in running:
                continue
            late = receipt.settled_at - max(began, receipt.received_at)
            if late > 2.0 and process.ledger.has_spare(receipt.message_id):
                self.history.broken("S7", f"{process.name} returned {receipt.message_id[:4]} {late:.3f} s late")

    # -- the end ---------------------------------------------------------------------------------------------------

    def check_end(self) -> None:
        """No loss, isolation, attempts, expense: what became of every order, and what it cost."""
        failed = {id_ for process in self._world.processes for id_ in process.watch.failed}
        dead = self._dead()
        for order in self.plan.orders:
            message = self._world.stored[order.key]
            count = sum(row.key == order.key for row in self.databases.rows(order.tenant))
            given_up = self.plan.ack is AckMode.ALWAYS and message.id in failed
            if not count and order.key not in dead and not given_up:
                self._judge_missing(order, message.id)
            if count > 1 and (self.plan.idempotent or self.plan.inbox):
                self.history.broken("once", f"{order.key} is there {count} times")
            if count and order.kind in ENDLESS and order.reaction is not Reaction.GOES_ON:
                self.history.broken("isolation", f"{order.key} ({order.kind}) was committed")
        for tenant in self.plan.tenants:
            for row in self.databases.rows(tenant):
                if not row.key.startswith(INBOX) and self.shared.orders[row.key].tenant != tenant:
                    self.history.broken("isolation", f"{row.key} is in the database of {tenant}")
        for text in islice(self.shared.ledger.judge_expense(), 3):
            self.history.broken("expense", text)
        self._judge_stops()
        self._judge_spacing(dead)
        self._judge_sum()
        self._collect_facts()

    def _judge_missing(self, order: OrderPlan, message: str) -> None:
        """No loss: a message that is nowhere was swallowed, unless it was too old before it could be tried."""
        if self.plan.retention is None or self._now() < self.shared.sent_at[message] + self.plan.retention:
            self.history.broken("no loss", f"{order.key} ({order.kind}) is nowhere")
        elif self._could_have_rejected(order, message, self.shared.sent_at[message] + self.plan.retention):
            text = f"{order.key} ({order.kind}) expired untried; nothing rejected it while there was time"
            self.history.broken("no loss", text)

    def _could_have_rejected(self, order: OrderPlan, message: str, expiry: float) -> bool:
        """Return whether a healthy process had an untried message in its hands, or had put it off, till it expired."""
        receives = self.shared.ledger.of(message)
        if not receives or any(each.tried for each in receives) or self.plan.max_receives is None:
            return False
        last = receives[-1]
        process = next(each for each in self._world.processes if each.name == last.process)
        ended = process.stopping_since is not None and process.stopping_since < expiry
        decided = process.decisions.has_decided(order.tenant)
        faults = self.plan.faults
        if last.excuse or ended or decided or process.frozen or faults.foreign or faults.hung:
            return False
        knows_time = not self.plan.clock or process.watch.knows_time(expiry - 2 * TIME_TO_REJECT)
        # Or it knows of no dead-letter queue, or not even of the retention period.
        knows = knows_time and not self.plan.blind and self.shared.ledger.policies.has_redrive(expiry)
        if not knows or self.plan.letters_fail(last.at, expiry):
            return False
        if not process.gate.alive or self.shared.gaps:
            return False
        if last.given_back is None:
            owned_until = process.watch.receipts[last.handle].deadline
            return last.at < expiry - TIME_TO_REJECT < owned_until
        return last.given_back < expiry - TIME_TO_REJECT < last.given_back + last.delay

    def _judge_stops(self) -> None:
        """Expense: where calls are answered in time, a stop spends one receive of a message at most."""
        if self.plan.faults.duplicated or self.shared.gaps:
            return
        calm = {
            each.name: each.stopping_since
            for each in self._world.processes
            if each.stopping_since is not None and not (each.disturbed or each.frozen)
        }
        for text in islice(self.shared.ledger.judge_stops(calm), 3):
            self.history.broken("expense", text)

    def _judge_spacing(self, dead: set[str]) -> None:
        until = fails_until(self.plan)
        if until is None:
            return
        processes = [each for each in self._world.processes if each.began < until]
        messages = [self._world.stored[key] for key in dead]
        receives = [self.shared.ledger.of(each.id) for each in messages if self._arrived(each)]
        if (wrong := judge_dead_letters(receives, len(processes), until)) is not None:
            self.history.broken("spacing", wrong)

    def _arrived(self, message: Stored) -> bool:
        """Whether every receive of a message arrived."""
        return len(self.shared.ledger.of(message.id)) == message.receives

    def _judge_sum(self) -> None:
        """Expense: where equal tenants have a backlog and nothing goes wrong, next to nothing is spent.

        A receive can bring ten messages of one tenant. At the end of the backlog the others then have more left than
        it has, and for an instant look like noise: what is left may be deferred, once.
        """
        if not self.plan.equal:
            return
        handled = len(self.plan.orders)
        looks = sum(process.consumer.statistics().scouting_receives for process in self._world.processes)
        calls = sum(process.watch.receives for process in self._world.processes) - looks
        deferred = sum(process.watch.deferred for process in self._world.processes)
        if deferred > _REST:
            self.history.broken("expense", f"{deferred} messages of equal tenants were deferred, of {handled}")
        # Glances are bounded by time alone: a few for each message of handlers that take seconds.
        if looks > GLANCES * self._now() * len(self._world.processes):
            self.history.broken("expense", f"{looks} receives looked for others while all tenants were equal")
        if calls > CALLS_PER_MESSAGE * handled + START:
            self.history.broken("expense", f"{calls} receives for {handled} messages of equal tenants")

    def _collect_facts(self) -> None:
        facts, processes, ledger = self._world.facts, self._world.processes, self.shared.ledger
        facts["handlers"] = sum(self.shared.attempts.values())
        facts["trips"] = sum(process.blame.trips for process in processes)
        facts["probes"] = sum(process.blame.probes for process in processes)
        facts["poison"] = sum(len(process.blame.poisonous) for process in processes)
        facts["duplicates"] = sum(len(process.watch.handled) for process in processes)
        facts["decisions"] = sum(process.decisions.count for process in processes)
        facts["redelivered"] = sum(count > 1 for count in self.shared.attempts.values())
        facts["failures"] = sum(each.failed for each in ledger.receives.values())
        facts["spent"] = sum(len(ledger.spent(message)) for message in self.shared.tenants)

    def _dead(self) -> set[str]:
        """Return the orders in the dead-letter queue; each has a reason, or was tried as often as it was promised."""
        elsewhere = self._world.elsewhere
        diverted = () if elsewhere is None else elsewhere.messages.values()
        keys = {message.attributes["key"].string_value or "" for message in diverted}
        if self._world.dead_letters is None:
            return keys
        for message in self._world.dead_letters.messages.values():
            key = message.attributes["key"].string_value or ""
            keys.add(key)
            if "postroom.reason" in message.attributes or self.shared.committed(key):
                continue
            if message.receives < min(self.shared.policies.values()):
                self.history.broken("no loss", f"{message.id[:4]} is a dead letter without a reason")
            if (wrong := self.shared.ledger.judge_dead_letter(message.id) or self._slipped(message.id)) is not None:
                self.history.broken("attempts", wrong)
        return keys

    def _slipped(self, message: str) -> str | None:
        """Judge a dead letter without a reason that a healthy process held untried, until its time was over."""
        receives = self.shared.ledger.of(message)
        if not receives or receives[-1].tried or receives[-1].given_back is not None or receives[-1].excuse:
            return None
        # Too late to be deleted, it is there twice. Handed out twice, it has one receive more than was seen.
        if self.plan.faults.duplicated or message in self._rejected():
            return None
        last = receives[-1]
        process = next(each for each in self._world.processes if each.name == last.process)
        until = process.watch.receipts[last.handle].deadline
        # What was handled at an earlier receive, or was acknowledged although it failed, is not handled again.
        if any(each.deletes for each in process.watch.receipts.values() if each.message_id == message):
            return None
        most = self.shared.policies.known_at(until)
        ended = process.stopping_since is not None and process.stopping_since < until
        stood_still = process.frozen or any(start < until and end > last.at for start, end in self.shared.gaps)
        if most is None or last.number < most or ended or stood_still or not process.gate.alive:
            return None
        if not self._could_send(last.at, until):
            return None
        return f"{message[:4]} is a dead letter without a reason, untried: {process.name} let its last receive slip"

    def _rejected(self) -> set[str]:
        """Return the messages with a dead letter that has a reason."""
        assert self._world.dead_letters is not None
        letters = self._world.dead_letters.messages.values()
        ids = [each.attributes.get("postroom.message_id") for each in letters]
        return {each.string_value or "" for each in ids if each is not None}

    def _could_send(self, since: float, until: float) -> bool:
        """Return whether nothing that was planned may have kept a letter from the dead-letter queue in a time."""
        plan = self.plan
        stormy = any(event.what in {"storm", "partition"} for event in plan.events) or disturbs(plan.faults)
        # Where extensions are throttled, SQS counts as out of reach: once it is back, the extension goes first.
        throttled = any(each.call is Operation.EXTEND and each.how is How.THROTTLED for each in plan.obstructions)
        return not (plan.letters_fail(since, until) or stormy or throttled or plan.blind or plan.faults.denied)
