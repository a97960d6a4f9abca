"""Who runs next: per-tenant lanes, served round robin.

Pure and synchronous: no await, no I/O, no clock. The consumer tells what arrived and what ended; the scheduler
answers whose turn it is. Every operation is O(1), amortised, and a lane exists only while it has work.

A ticket's life::

    add ──▶ WAITING ──grant──▶ RUNNING ──finish──▶ DONE
               ▲                  │
               └──resume── SUSPENDED ◀──suspend     (its tenant's resources open: no slot is held)

While a ticket is suspended its lane grants nothing else: whoever came later would wait for the same resources.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic

from typing_extensions import TypeVar


class State(Enum):
    """Where a ticket is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    SUSPENDED = "suspended"
    DONE = "done"


class Ticket:
    """One piece of work of one tenant, optionally of one message group. Subclass it to carry the work itself."""

    __slots__ = ("group", "lane", "state", "tenant")

    def __init__(self, tenant: Hashable, group: str | None = None) -> None:
        self.tenant = tenant
        self.group = group
        self.state = State.WAITING
        self.lane: Lane[Any] | None = None


T = TypeVar("T", bound=Ticket, default=Ticket)


class Lane(Generic[T]):
    """What one tenant has here: tickets that wait, and how many run or are suspended."""

    __slots__ = ("blocked_since", "in_rotation", "running", "suspended", "tenant", "waiting")

    def __init__(self, tenant: Hashable) -> None:
        self.tenant = tenant
        self.waiting: deque[T] = deque()
        self.running = 0
        self.suspended = 0
        self.blocked_since = 0.0
        self.in_rotation = False

    @property
    def size(self) -> int:
        """Tickets of this tenant that are not done, those behind the head of a message group not counted."""
        return len(self.waiting) + self.running + self.suspended


class Group(Generic[T]):
    """One message group: its head, of which there is always one, and what waits behind it in order."""

    __slots__ = ("behind", "head")

    def __init__(self, head: T) -> None:
        self.head = head
        self.behind: deque[T] = deque()


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """A snapshot of the scheduler's gauges."""

    running: int
    waiting: int
    suspended: int
    tenants: int


class Scheduler(Generic[T]):
    """Grant slots: at most ``total`` at once, at most ``per_tenant`` for one tenant, one per message group.

    Tenants take turns, one ticket of each per turn. It is work-conserving: :meth:`grant` returns None only when no
    slot is free or nobody may use one.
    """

    def __init__(self, *, total: int, per_tenant: int) -> None:
        self._total = total
        self._per_tenant = per_tenant
        self._lanes: dict[Hashable, Lane[T]] = {}
        self._rotation: deque[Lane[T]] = deque()
        self._groups: dict[str, Group[T]] = {}
        self._blocked: dict[Lane[T], None] = {}
        self._running = 0
        self._waiting = 0
        self._suspended = 0
        self._behind_blocked = 0

    @property
    def waiting(self) -> int:
        """Tickets that wait for a slot, those behind the head of a message group included."""
        return self._waiting

    @property
    def size(self) -> int:
        """Tickets that are not done."""
        return self._waiting + self._running + self._suspended

    @property
    def blocked(self) -> int:
        """Tickets that could not run if there were a slot: suspended ones and what waits behind them in their lanes."""
        return self._suspended + self._behind_blocked

    def statistics(self) -> SchedulerStatistics:
        """Return the gauges as they are now."""
        return SchedulerStatistics(self._running, self._waiting, self._suspended, len(self._lanes))

    def add(self, ticket: T) -> None:
        """Take a ticket in. It waits for its turn, and behind every earlier ticket of its message group."""
        self._waiting += 1
        if ticket.group is not None:
            group = self._groups.get(ticket.group)
            if group is not None:
                group.behind.append(ticket)
                return
            self._groups[ticket.group] = Group(ticket)
        self._line_up(ticket)

    def grant(self) -> T | None:
        """Give a slot to whose turn it is, or return None."""
        if self._running >= self._total:
            return None
        while self._rotation:
            lane = self._rotation.popleft()
            lane.in_rotation = False
            if not self._may_run(lane):
                continue
            ticket = lane.waiting.popleft()
            ticket.state = State.RUNNING
            lane.running += 1
            self._running += 1
            self._waiting -= 1
            self._offer(lane)
            return ticket
        return None

    def suspend(self, ticket: T, *, now: float = 0.0) -> None:
        """Take the slot back: the ticket waits for its tenant's resources, and so would the rest of its lane."""
        lane = _lane_of(ticket)
        ticket.state = State.SUSPENDED
        lane.running -= 1
        if not lane.suspended:
            lane.blocked_since = now
            self._blocked[lane] = None
            self._behind_blocked += len(lane.waiting)
        lane.suspended += 1
        self._running -= 1
        self._suspended += 1

    def resume(self, ticket: T) -> None:
        """Let a suspended ticket wait for a slot again, first in its lane."""
        lane = _lane_of(ticket)
        ticket.state = State.WAITING
        self._end_suspension(lane)
        self._waiting += 1
        lane.waiting.appendleft(ticket)
        if lane.suspended:
            self._behind_blocked += 1
        self._offer(lane)

    def finish(self, ticket: T) -> None:
        """Strike off the head of its group or a ticket without one: its slot goes to the next. Idempotent."""
        if ticket.state is State.DONE:
            return
        lane = _lane_of(ticket)
        if ticket.state is State.RUNNING:
            lane.running -= 1
            self._running -= 1
        elif ticket.state is State.SUSPENDED:
            self._end_suspension(lane)
        else:
            lane.waiting.remove(ticket)
            self._waiting -= 1
            if lane.suspended:
                self._behind_blocked -= 1
        ticket.state = State.DONE
        if ticket.group is not None:
            self._pass_group_on(ticket.group)
        self._offer(lane)
        self._forget_if_empty(lane)

    def withdraw_group(self, ticket: T) -> list[T]:
        """Strike off, in order, what waits behind a ticket in its message group, because that ticket failed."""
        group = self._groups.get(ticket.group) if ticket.group is not None else None
        if group is None or group.head is not ticket:
            return []
        behind = list(group.behind)
        group.behind.clear()
        self._waiting -= len(behind)
        for other in behind:
            other.state = State.DONE
        return behind

    def shed(self, *, keep: int, blocked_before: float) -> list[T]:
        """Strike off, the newest first, what lanes hold beyond ``keep`` that have been blocked since before a time."""
        shed: list[T] = []
        for lane in self._blocked:
            if lane.blocked_since <= blocked_before:
                while lane.size > keep and lane.waiting:
                    ticket = lane.waiting.pop()
                    self._behind_blocked -= 1
                    shed.append(ticket)
                    shed.extend(self.withdraw_group(ticket))
                    ticket.state = State.DONE
                    self._waiting -= 1
                    if ticket.group is not None:
                        del self._groups[ticket.group]
        return shed

    def withdraw_waiting(self) -> list[T]:
        """Strike off, in order within each message group, everything that waits for a slot: the consumer stops.

        What runs or is suspended stays: it is finished or cancelled by its own task.
        """
        withdrawn: list[T] = []
        for lane in list(self._lanes.values()):
            withdrawn.extend(lane.waiting)
            if lane.suspended:
                self._behind_blocked -= len(lane.waiting)
            lane.waiting.clear()
            self._forget_if_empty(lane)
        for group in self._groups.values():
            withdrawn.extend(group.behind)
            group.behind.clear()
        for ticket in withdrawn:
            ticket.state = State.DONE
        self._groups = {name: group for name, group in self._groups.items() if group.head.state is not State.DONE}
        self._waiting = 0
        return withdrawn

    def _line_up(self, ticket: T) -> None:
        lane = self._lanes.get(ticket.tenant)
        if lane is None:
            lane = self._lanes[ticket.tenant] = Lane(ticket.tenant)
        ticket.lane = lane
        lane.waiting.append(ticket)
        if lane.suspended:
            self._behind_blocked += 1
        self._offer(lane)

    def _end_suspension(self, lane: Lane[T]) -> None:
        lane.suspended -= 1
        self._suspended -= 1
        if not lane.suspended:
            del self._blocked[lane]
            self._behind_blocked -= len(lane.waiting)

    def _may_run(self, lane: Lane[T]) -> bool:
        return bool(lane.waiting) and not lane.suspended and lane.running < self._per_tenant

    def _offer(self, lane: Lane[T]) -> None:
        """Put a lane at the end of the rotation, once, if it could use a slot."""
        if not lane.in_rotation and self._may_run(lane):
            lane.in_rotation = True
            self._rotation.append(lane)

    def _pass_group_on(self, name: str) -> None:
        group = self._groups[name]
        if group.behind:
            group.head = group.behind.popleft()
            self._line_up(group.head)
        else:
            del self._groups[name]

    def _forget_if_empty(self, lane: Lane[T]) -> None:
        if not lane.size:
            self._lanes.pop(lane.tenant, None)


def _lane_of(ticket: T) -> Lane[T]:
    if ticket.lane is None:
        text = "this ticket was never added, or waits behind the head of its message group"
        raise ValueError(text)
    return ticket.lane
