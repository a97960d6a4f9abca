"""What one process may do with a message beside handling it: give it back, or make a dead letter of it."""

import asyncio
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from postroom import AckMode
from postroom.message import Message
from simulation.consumer.attempts import DIVERTED, GROUP_WENT_BACK, IT_STOPS, MEMORY_FULL, NO_LETTER, promise
from simulation.consumer.plan import Kind, OrderPlan
from simulation.consumer.watch import Receipt

if TYPE_CHECKING:
    from simulation.consumer.process import Process

EARLIEST = 0.7
"""The part of the retention period after which a message may be given up for it."""
LONG_POLL = 20.0
"""Seconds within which a process with a wrong clock knows SQS's time: a long poll may have waited for so long."""
_MOMENT = 0.5
"""Seconds in which the polls of a busy queue end at a stop, before anything else."""
_ENDING = 0.1
"""Seconds for which the task of a handler that failed may go on."""


class Licence:
    """Knows of one process what excuses it."""

    def __init__(self, process: "Process") -> None:
        self._process = process
        self._shared = process.shared
        self._plan = process.shared.plan
        self._ledger = process.ledger
        self._broken_groups: dict[str, float] = {}
        """Message group to when something of it last had to go back."""

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # -- giving back -----------------------------------------------------------------------------------------------

    def breaks_group(self, message: Message) -> None:
        """Note that the rest of a message's group has to go back, since it was not done."""
        if message.group_id is not None:
            self._broken_groups[message.group_id] = self._now()

    def breaks_groups(self, groups: Iterable[str | None]) -> None:
        """Note that messages are offered to the dead-letter queue: until it has them, nothing may overtake them."""
        self._broken_groups.update((group, self._now()) for group in groups if group is not None)

    def may_start_late(self, message_id: str) -> bool:
        """Whether a message may start while the consumer stops: it has no receive to spare, so it cannot go back."""
        process = self._process
        assert process.stopping_since is not None
        shutdown = self._plan.options["shutdown"]
        since = max(process.stopping_since, process.stillness[1])
        # While the loop is blocked the polls of a busy queue cannot end.
        since = max([since, *(until for start, until in self._shared.gaps if start <= since + _MOMENT)])
        # The drain begins when the polls of a busy queue have ended. One may arrive with the last poll.
        end = since + max(min(_MOMENT, shutdown.poll) + shutdown.drain, shutdown.poll)
        # What came while it stood still, it learns in the turns of its loop after that.
        learns = self._now() <= process.stillness[1] + _ENDING
        pressed = process.pressed_at is not None and process.pressed_at > process.stopping_since and not learns
        in_time = not (process.hurried or pressed) and self._now() < end
        # By what SQS says: it counts receives, too, that never arrived.
        return in_time and (self._is_at_its_last(message_id) or not self._ledger.has_spare(message_id))

    def excuse(self, receipt: Receipt) -> str:
        """Return why the library is not to blame for giving a message back that nothing of the user's failed on."""
        now, plan = self._now(), self._plan
        tenant = self._shared.tenants[receipt.message_id]
        stops = self._process.stopping_since is not None
        at_its_last = self._is_at_its_last(receipt.message_id)
        ends = at_its_last or self._is_old(receipt.message_id)
        reasons = (
            (IT_STOPS, stops and not (at_its_last and self._could_try(tenant, now))),
            (NO_LETTER, ends and plan.letters_fail(receipt.received_at, now)),
            (DIVERTED, self._process.decisions.was_diverted(tenant, receipt.received_at)),
            ("a function of the user's raised", self._process.functions.raised_since(tenant, receipt.received_at)),
            ("it cannot be held", not self._could_hold(receipt, now)),
            ("it was not taken for the dead letters", receipt.body in self._process.watch.offered),
        )
        for reason, is_so in reasons:
            if is_so:
                return reason
        if plan.fifo and receipt.group is not None:
            before = self._broken_groups.get(receipt.group, -1.0)
            self._broken_groups[receipt.group] = now
            # What is before it in its group may be on its way to the dead-letter queue for its age. Or it failed
            # after SQS had deleted it, and its task has not ended yet.
            waits = self._process.watch.behind.is_out(receipt.group)
            if waits or before >= receipt.received_at - _ENDING or self._is_too_old_in(receipt.group):
                return GROUP_WENT_BACK
        return MEMORY_FULL if self._process.watch.full_at >= receipt.received_at else ""

    def _is_too_old_in(self, group: str) -> bool:
        """Whether a message of a group may be given up for its age."""
        ids = self._shared.ids
        return any(
            order.group == group and order.key in ids and self._is_old(ids[order.key]) for order in self._plan.orders
        )

    def _is_old(self, message_id: str) -> bool:
        retention, ahead = self._plan.retention, max(0.0, self._plan.clock)
        if self._process.watch.knows_time(self._now() - _ENDING):  # a letter waits for a moment before it is sent
            ahead = min(ahead, LONG_POLL)
        return retention is not None and self._now() + ahead > self._shared.sent_at[message_id] + retention * EARLIEST

    def _could_hold(self, receipt: Receipt, now: float) -> bool:
        """Return whether a message can be kept from becoming visible: for as long as it may be extended."""
        visibility = self._plan.options["visibility"]
        lasts: bool = now + visibility.timeout < receipt.received_at + visibility.max_extension
        return lasts and bool(visibility.heartbeat)

    def _could_try(self, tenant: str, now: float) -> bool:
        """Return whether a consumer that stops has the time and the means to try a message all the same."""
        assert self._process.stopping_since is not None
        shutdown = self._plan.options["shutdown"]
        process = self._process
        in_a_hurry = process.hurried or process.cancelled
        calm = not (in_a_hurry or process.disturbed or process.frozen or self._shared.gaps)
        ready = (
            tenant in self._plan.tenants
            and self._shared.healthy(tenant)
            and not (process.blame.is_open(tenant) or process.decisions.is_stopped(tenant))
        )
        room = process.weight < self._plan.limits.budget  # opens that hang may take all of it
        idle = len(self._process.handlers) + self._process.reporting == 0 and ready and room
        return calm and idle and shutdown.drain >= 1.0 and now < self._process.stopping_since + shutdown.drain - 0.5

    # -- dead letters ----------------------------------------------------------------------------------------------

    def is_poison(self, message_id: str) -> bool:
        """Whether a message has to become a dead letter, as poison. What is known ends when its queue is closed."""
        plan = self._plan
        known = plan.max_receives is not None and not plan.redrives and not plan.blind and not plan.listed
        sure = plan.ack is AckMode.ON_SUCCESS and known
        return message_id in self._process.blame.poisonous and sure

    def may_be_rejected(self, message_id: str, key: str, reason: str) -> bool:
        """Whether a message may become a dead letter for this reason. Every reason is known, and has its own proof."""
        plan, process = self._shared.orders[key], self._process
        match reason.split(":", maxsplit=1)[0]:
            case "not for us":
                return plan.kind is Kind.REJECTS
            case "poison":
                return message_id in process.blame.poisonous and self._plan.ack is AckMode.ON_SUCCESS
            case "quarantine":
                return process.decisions.was_quarantined(plan.tenant)
            case "diverted to elsewhere" | "diverted to elsewhere.fifo":
                return process.decisions.was_diverted(plan.tenant)
            case "not tried" | "not tried again":
                return self._may_stay_untried(message_id, plan, reason)
            case _:
                return self._may_be_used_up(message_id, plan, reason)

    def _may_be_used_up(self, message_id: str, plan: OrderPlan, reason: str) -> bool:
        """Whether a message has had all that it gets: the attempts that it was promised, or its receives."""
        name = self._process.name
        if reason.startswith("the consumer stopped, at its last receive"):
            tried = self._ledger.failures(message_id, name)
            promised = [promise(most, self._plan.promised) for most in self._ledger.policies.values()]
            done = any(tried >= attempts for attempts in promised)  # it is not started beyond what it was promised
            return self._is_at_its_last(message_id) and (done or self._has_to_stop(plan))
        if "other receives ended" in reason:
            lost = message_id in self._process.watch.lost
            return self._is_at_its_last(message_id) and (lost or self._ledger.has_untried(message_id, name))
        return re.search(r" failed attempts?, the last one with ", reason) is not None and self._ledger.is_used_up(
            message_id, name
        )

    def _is_at_its_last(self, message_id: str) -> bool:
        """Whether one more receive would have made a dead letter of a message, as far as the consumer can know."""
        receives = [each.receives for each in self._process.watch.receipts.values() if each.message_id == message_id]
        policies = self._ledger.policies.values()
        return any(most <= max(receives, default=0) for most in policies)

    def may_stay_invisible(self, message_id: str) -> bool:
        """Whether a consumer that has stopped could neither reject a message in time nor give it back."""
        done = self._is_at_its_last(message_id) or self._ledger.is_used_up(message_id, self._process.name)
        return self._process.watch.unopened and done

    def _may_stay_untried(self, message_id: str, plan: OrderPlan, reason: str) -> bool:
        """Whether a message may be given up that was not tried, at its last receive or at the end of its time."""
        if "retention period" in reason:
            return self._is_old(message_id)
        if not self._is_at_its_last(message_id):
            return False
        if "it could be held no longer" in reason:
            return True
        if "a message before it in its group" in reason:
            return self._plan.fifo
        if "diverted to" in reason:
            return self._process.decisions.was_diverted(plan.tenant)
        first = self._ledger.of(message_id)[0].at
        unknown = plan.kind is Kind.STRANGER or self._shared.unknown_tenant(plan.tenant, first)
        return unknown or self._process.functions.raised_since(plan.tenant, first)

    def _has_to_stop(self, plan: OrderPlan) -> bool:
        """Whether a consumer that stops can neither try a message nor give it back."""
        if self._process.stopping_since is None:
            return False
        tenant = "stranger" if plan.kind is Kind.STRANGER else plan.tenant
        return not self._could_try(tenant, self._now()) or (plan.group or "") in self._broken_groups
