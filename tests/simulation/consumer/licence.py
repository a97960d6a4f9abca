"""What one process may do with a message beside handling it: give it back, or make a dead letter of it."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from postroom import AckMode
from postroom.message import Message
from simulation.consumer.plan import Kind, OrderPlan
from simulation.consumer.watch import Receipt

if TYPE_CHECKING:
    from simulation.consumer.process import Process

EARLIEST = 0.2
"""The part of the retention period after which a message may be given up for it."""


class Licence:
    """Knows of one process what excuses it."""

    def __init__(self, process: "Process") -> None:
        self._process = process
        self._shared = process.shared
        self._plan = process.shared.plan
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
        end = process.stopping_since + max(shutdown.drain, shutdown.poll)  # one may arrive with the last poll
        in_time = not (process.hurried or process.cancelled) and self._now() < end
        return in_time and not process.ledger.has_spare(message_id)

    def excuse(self, receipt: Receipt) -> str:
        """Return why the library is not to blame for giving a message back that nothing of the user's failed on."""
        now, plan = self._now(), self._plan
        tenant = self._shared.tenants[receipt.message_id]
        stops = self._process.stopping_since is not None
        if stops and not (self._is_at_its_last(receipt.message_id) and self._could_try(tenant, now)):
            return "it stops"
        if self._process.functions.raised_since(tenant, receipt.received_at):
            return "a function of the user's raised"
        if not self._could_hold(receipt, now):
            return "it cannot be held"
        if receipt.body in self._process.watch.offered:
            return "nobody took it for the dead letters"
        if plan.fifo and receipt.group is not None:
            before = self._broken_groups.get(receipt.group, -1.0)
            self._broken_groups[receipt.group] = now
            if before >= receipt.received_at:
                return "its group went back"
        return ""

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
        ready = self._shared.healthy(tenant) and not self._process.blame.is_open(tenant)
        idle = len(self._process.handlers) + self._process.reporting == 0 and ready
        return calm and idle and shutdown.drain >= 1.0 and now < self._process.stopping_since + shutdown.drain - 0.5

    # -- dead letters ----------------------------------------------------------------------------------------------

    def is_poison(self, message_id: str) -> bool:
        """Whether a message has to become a dead letter, as poison."""
        plan = self._plan
        known = plan.max_receives is not None and not plan.redrives and not plan.blind
        sure = plan.ack is AckMode.ON_SUCCESS and known
        return message_id in self._process.blame.poisonous and sure

    def may_be_rejected(self, message_id: str, key: str, reason: str) -> bool:
        """Whether a message may become a dead letter for this reason."""
        plan = self._shared.orders[key]
        match reason.split(":", maxsplit=1)[0]:
            case "poison":
                return message_id in self._process.blame.poisonous and self._plan.ack is AckMode.ON_SUCCESS
            case "quarantine":
                return self._process.decisions.was_quarantined(plan.tenant)
            case "not tried" if self._process.functions.raised_since(plan.tenant, 0.0):
                return True
            case _ if "at its last receive" in reason or "other receives were spent" in reason:
                return self._is_at_its_last(message_id)
            case _:
                return self._may_be_given_up(message_id, plan)

    def _is_at_its_last(self, message_id: str) -> bool:
        """Whether one more receive would have made a dead letter of a message, as far as the consumer can know."""
        receives = [each.receives for each in self._process.watch.receipts.values() if each.message_id == message_id]
        policies = self._process.ledger.policies.values()
        return any(most <= max(receives, default=0) for most in policies)

    def _may_be_given_up(self, message_id: str, plan: OrderPlan) -> bool:
        """Whether there is a reason for a dead letter that no person and no neighbour gave."""
        if plan.kind in {Kind.REJECTS, Kind.NOBODY, Kind.STRANGER, Kind.MALFORMED}:
            return True
        first = self._process.ledger.of(message_id)[0].at
        if self._shared.unknown_tenant(plan.tenant, first):
            return True
        retention = self._plan.retention
        if retention is not None and self._now() > self._shared.sent_at[message_id] + retention * EARLIEST:
            return True
        return self._process.ledger.is_used_up(message_id) or self._has_to_end(message_id, plan)

    def _has_to_end(self, message_id: str, plan: OrderPlan) -> bool:
        """Whether a message has to go back at its last receive, for a stop or for its group: SQS says no reason."""
        receives = self._process.ledger.of(message_id)
        stops = self._process.stopping_since is not None and not self._could_try(plan.tenant, self._now())
        group = (plan.group or "") if self._plan.fifo else ""
        if not stops and self._broken_groups.get(group, -1.0) < receives[-1].at:
            return False
        number = max(each.number for each in receives)
        return any(number >= most for most in self._shared.policies.values())
