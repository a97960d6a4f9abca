"""Who runs next: per-tenant lanes, served in proportion to the handler seconds that they use.

Pure and synchronous: no await, no I/O, no clock. The consumer tells what arrived, what ended and what time it is; the
scheduler answers who is next. A lane exists only while it has work, so that memory is bounded by what is here,
not by every tenant ever seen, and a tenant that returns has neither credit nor debt.

A ticket's life:

    add ──▶ WAITING ──grant──▶ RUNNING ──finish──▶ DONE
              ▲ ▲                │ │
              │ └────put_back────┘ │
              └──resume── SUSPENDED ◀──suspend     (its tenant's resources open: no slot is held)

While a ticket is suspended its lane grants nothing else: later tickets would wait for the same resources.

The order is a deficit round robin that charges measured seconds: an estimate when a slot is granted, corrected when
the work ends. Between two tenants that always have work waiting, what they were charged per weight differs by at most
one quantum and one job. (What runs at the same time is charged by estimate: where estimates are wrong, those jobs
count until they end.) Three rules more:

* **Reserve.** ``reserved`` slots are kept from tenants that are over their share of the rest, all of them together.
  It is void when one tenant has long been alone here.
* **Newcomers first.** The first ticket of a tenant that had nothing here goes before those of tenants in line, but
  after ``total`` such grants in a row (16 at least) one of the others has its turn.
* **Caps** hold one tenant back, never a slot: ``Scheduler.grant`` returns None only when no slot is free or no
  lane may use one.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from typing import Final, Generic

from typing_extensions import TypeVar

from postroom.scheduling.groups import Groups
from postroom.scheduling.limits import Chosen, PerTenant
from postroom.scheduling.rounds import Rounds
from postroom.scheduling.sleeping import Sleepers
from postroom.scheduling.tickets import (
    Bound,
    Bounds,
    Control,
    Lane,
    LaneStatistics,
    Pace,
    Place,
    SchedulerStatistics,
    State,
    Ticket,
    lane_of,
)

# Looked up for every message: on Python 3.11 the member of an enum costs as much as a call.
_WAITING, _RUNNING, _DONE = State.WAITING, State.RUNNING, State.DONE
_NOWHERE, _FRESH, _IN_LINE = Place.NOWHERE, Place.FRESH, Place.IN_LINE

QUANTUM: Final = 0.01
"""Handler seconds of one round. Small, because a round that is skipped costs nothing here."""
FIRST_ESTIMATE: Final = 0.02
"""Seconds that a handler is expected to take while none has ended yet."""
ALONE: Final = 10_000
"""Grants to one and the same tenant, with no other here, after which nothing is reserved any longer."""
_PATIENCE = 16
# Weights of the newest measurement in the two averages: a tenant's estimate follows within about
# five messages, the one over all tenants within about twenty, so that no single tenant sets it.
_LEARN = 0.2
_LEARN_TYPICAL = 0.05

T = TypeVar("T", bound=Ticket, default=Ticket)


class Scheduler(Generic[T]):
    """Grant slots: at most ``total`` at once, at most ``per_tenant`` for one tenant, one per message group.

    Args:
        total: slots.
        per_tenant: slots for one tenant.
        caps: which tenants have another number of slots: a mapping, or a function that returns None for the default.
            It is asked again with every decision about that tenant.
        weights: which tenants get more or less than others in proportion; 1.0 unless said otherwise.
        reserved: slots that tenants over their share leave free for the others.
        bounds: what else bounds the slots of one tenant, and may say 0; looked at with every decision about it. When it
            says more than before, ``look_again`` has to be called.
        quantum: handler seconds of one round.
    """

    def __init__(
        self,
        *,
        total: int,
        per_tenant: int,
        caps: PerTenant[int] | None = None,
        weights: PerTenant[float] | None = None,
        reserved: int = 0,
        bounds: Bounds | None = None,
        quantum: float = QUANTUM,
    ) -> None:
        self._quantum = quantum
        self._lanes: dict[Hashable, Lane[T]] = {}
        self._seats = False
        self.adjust(total=total, per_tenant=per_tenant, caps=caps, weights=weights, reserved=reserved, bounds=bounds)
        self._fresh: deque[Lane[T]] = deque()
        self._within: Rounds[T] = Rounds(over=False)
        self._over: Rounds[T] = Rounds(over=True)
        self._asleep: Sleepers[T] = Sleepers()
        self.beds: Final = self._asleep.beds
        """Empty while no lane sleeps until a time: ``next_wake`` would return None."""
        self._groups: Groups[T] = Groups()
        self._blocked: dict[Lane[T], None] = {}
        self._controls: dict[Hashable, Control] = {}
        self.running: int = 0
        """Slots in use."""
        self.waiting: int = 0
        """Tickets that wait for a slot, those behind the head of a message group included."""
        self._suspended = 0
        self._behind_blocked = 0
        self._round = 0
        self._streak = 0
        self._alone = 0
        self._met = False
        self.typical: float = FIRST_ESTIMATE
        """Handler seconds that a message takes, as a recent average over all tenants."""

    def adjust(
        self,
        *,
        total: int,
        per_tenant: int,
        caps: PerTenant[int] | None = None,
        weights: PerTenant[float] | None = None,
        reserved: int = 0,
        bounds: Bounds | None = None,
    ) -> None:
        """Change the limits. Tickets that run go on; with fewer slots none is granted until enough have ended."""
        self._seats = False
        self.total = total
        """Slots."""
        self._per_tenant = per_tenant
        self._own_caps = Chosen("Concurrency(overrides=...)", per_tenant, caps)
        self._bounds = bounds
        self._weights = Chosen("Concurrency(weights=...)", 1.0, weights, least=1e-9)
        self._chooses = self._own_caps.varies
        self._weighs = self._weights.varies
        self._varies = self._chooses or self._weighs or bounds is not None
        # At least one slot is for any tenant: with all of them reserved, one over its share never
        # runs.
        self._reserved = min(reserved, total - 1)
        self._patience = max(total, _PATIENCE)
        for lane in self._lanes.values():
            own = None if lane.control is None else lane.control.cap
            # What an operator decided stays: `adjust` changes the defaults.
            lane.bound = None
            lane.cap = own or self._cap_of(lane.tenant)[0]
            lane.weight = self._weights(lane.tenant)
            self._offer(lane)

    # -- what is here -------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Tickets that are not done."""
        return self.waiting + self.running + self._suspended

    @property
    def blocked(self) -> int:
        """Tickets that could not run if there were a slot: suspended ones, and what waits in blocked lanes."""
        return self._suspended + self._behind_blocked

    @property
    def suspended(self) -> int:
        """Tickets that wait for resources with a task of their own."""
        return self._suspended

    @property
    def blocked_lanes(self) -> int:
        """Tenants that can run nothing, however many slots are free."""
        return len(self._blocked)

    @property
    def ready(self) -> int:
        """Tickets that would run if there were slots enough, caps not considered."""
        return self.waiting - self._behind_blocked - self._groups.behind

    @property
    def behind(self) -> int:
        """Tickets that wait behind another one of their message group."""
        return self._groups.behind

    @property
    def alone(self) -> bool:
        """Whether one tenant has long been the only one here, or no second one has come yet."""
        return not self._met or self._alone >= ALONE

    def statistics(self) -> SchedulerStatistics:
        """Return the gauges as they are now."""
        return SchedulerStatistics(self.running, self.waiting, self._suspended, len(self._lanes))

    def tenants(self) -> list[Hashable]:
        """Return the tenants that have something here. Safe to call from another thread."""
        # One call in C: no other thread sees the dictionary change during it.
        return list(self._lanes)

    def own_cap(self, tenant: Hashable) -> int:
        """Return how many slots one tenant may have here, whatever else bounds them."""
        return min(self.total, int(self._own_caps(tenant)))

    def _cap_of(self, tenant: Hashable) -> tuple[int, Bound | None]:
        """Return a tenant's cap, and what else bounds it for a while."""
        cap = int(self._own_caps(tenant)) if self._chooses else self._per_tenant
        if self._bounds is None:
            return cap, None
        limit, bound = self._bounds.look(tenant)
        return cap if limit is None else min(cap, limit), bound

    def look_again(self, tenant: Hashable) -> None:
        """Let a tenant stand in line that may have more slots than before."""
        if (lane := self._lanes.get(tenant)) is not None:
            self._offer(lane)

    def heads_within_share(self) -> Iterator[T]:
        """Yield what waits first of each tenant that may have one more slot, and has less than its share."""
        # A list: the caller may start or end something between two steps of this generator.
        for lane in list(self._lanes.values()):
            if self._may_run(lane) and not self._is_over(lane):
                # Another thread may look, as that of a metrics exporter: by now it may wait no longer.
                with suppress(IndexError):
                    yield lane.waiting[0]

    def lanes(self) -> list[Lane[T]]:
        """Return the lanes of all tenants that have something here: to be looked at, not to be changed."""
        return list(self._lanes.values())

    def figures(self, tenant: Hashable) -> LaneStatistics:
        """Return what one tenant has here. Safe to call from another thread."""
        lane = self._lanes.get(tenant)
        if lane is None:
            return LaneStatistics()
        return LaneStatistics(lane.running, len(lane.waiting), lane.suspended, lane.estimate)

    def is_blocked(self, tenant: Hashable) -> bool:
        """Whether what waits of a tenant could not run if there were a slot: suspended, paused or asleep."""
        return (lane := self._lanes.get(tenant)) is not None and lane.blocked

    def standing(self, tenant: Hashable, room: int) -> tuple[bool, bool]:
        """Return whether a tenant has its part, or more, of what may wait here in all, and of what may be here at all.

        The first: more of its messages would not be served any sooner by waiting here. The second: it has as much here,
        run or waiting, as its share of the slots, or its cap, lets it run.
        """
        lane = self._lanes.get(tenant)
        if lane is None:
            return False, False
        waiting = len(lane.waiting)
        share = max(1, (self.total - self._reserved) // len(self._lanes))
        cap = lane.cap or self.own_cap(tenant)  # without a slot of the fleet's it is not noisy for that
        return waiting >= max(1, room // len(self._lanes)), lane.running + waiting >= min(cap, share)

    # -- a ticket's life ----------------------------------------------------------------------------------------

    def add(self, ticket: T) -> None:
        """Take a ticket in. It waits for its turn, and behind every earlier ticket of its message group."""
        ticket.state = _WAITING
        self.waiting += 1
        if ticket.group is None or self._groups.enter(ticket.group, ticket):
            self._line_up(ticket)

    def has_room(self, count: int) -> bool:
        """Whether so many tickets that come now can all have a slot at once, those that are reserved left aside.

        Then their order is nothing to decide about, and ``seat`` takes them in. So it is where nothing waits.
        """
        if self.waiting or self._varies or self._blocked or self._controls:
            return False
        self._streak = 0
        self._seats = self.running + count <= self.total - self._reserved
        return self._seats

    def seat(self, ticket: T) -> bool:
        """Take a ticket in and give it a slot at once, where ``has_room`` said so. Returns whether it has one.

        The same as ``add`` and ``grant``, without a line: a tenant that has its cap waits in one. So does everything,
        once anything was decided since, as by a resolver that a receive calls.
        """
        if not self._seats:
            return False
        lane = self._lanes.get(ticket.tenant)
        if lane is None:
            lane = self._lanes[ticket.tenant] = self._new_lane(ticket.tenant)
            lane.known = True
        elif lane.running >= lane.cap or lane.waiting:
            return False
        number = int(lane.served / self._quantum)
        if number > self._round:
            self._round = number
        elif number < self._round:
            lane.served = self._round * self._quantum
        ticket.lane, ticket.state = lane, _RUNNING
        self._run(ticket, lane)
        return True

    def grant(self, now: float = 0.0) -> T | None:
        """Give a slot to the next at the time ``now``, or return None."""
        if self.running >= self.total:
            return None
        if not (self.waiting or self.beds or self._fresh or self._within.numbers or self._over.numbers):
            self._streak = 0  # no lane is in line, and none has to wake
            return None
        # Before anyone is chosen: a tenant with a pause that is over has its turn in this very call.
        if self.beds:
            for woken in self._asleep.due(now):
                self._wake(woken)
        while (lane := self._next()) is not None:
            # The same as `_may_run`, written out here because it runs for every message.
            if not lane.waiting or (self._blocked and lane.blocked):
                continue
            if self._varies:
                self._look_up(lane)
            if lane.running >= lane.cap:
                continue
            # Last of all conditions: a permission taken from the pace has to be used.
            control = lane.control
            if control is not None and (pause := self._pause_of(lane.waiting[0], control, now)):
                self._sleep(lane, now, now + pause)
                continue
            ticket = lane.waiting.popleft()
            ticket.state = _RUNNING
            self.waiting -= 1
            self._run(ticket, lane)
            if lane.waiting and lane.running < lane.cap:
                self._line(lane)
            return ticket
        return None

    @staticmethod
    def _pause_of(ticket: T, control: Control, now: float) -> float:
        """Take a permission for a ticket from its tenant's pace; or return the seconds until there is one."""
        pace = control.pace
        if pace is None or (control.exempt is not None and control.exempt(ticket)):
            return 0.0
        pause = pace.take(now)
        ticket.paced = not pause
        return pause

    def unspend(self, ticket: T) -> None:
        """Give the permission back that a ticket's slot has taken from its tenant's pace: nothing started in it."""
        lane = ticket.lane
        if ticket.paced and lane is not None and lane.control is not None and lane.control.pace is not None:
            lane.control.pace.give_back()
            if lane.asleep_until is not None:  # the next of the lane may have found none left
                self._wake(lane)
        ticket.paced = False

    def finish(self, ticket: T, seconds: float | None = None) -> None:
        """Strike a ticket off: its slot goes to the next. Idempotent.

        ``seconds`` is how long it held its slot; None leaves it at the estimate.
        """
        if ticket.state is _DONE:
            return
        if ticket.lane is None and ticket.group is not None:  # it was lost while it waited behind its group's head
            self._groups.leave(ticket)
            self.waiting -= 1
            ticket.state = _DONE
            return
        lane = ticket.lane or lane_of(ticket)
        if ticket.state is _RUNNING:
            lane.running -= 1
            self.running -= 1
            if seconds is not None:
                lane.served += (seconds - ticket.charge) / lane.weight
                lane.estimate += _LEARN * (seconds - lane.estimate)
                self.typical += _LEARN_TYPICAL * (seconds - self.typical)
        elif ticket.state is State.SUSPENDED:
            self._end_suspension(lane)
        else:
            lane.waiting.remove(ticket)
            self.waiting -= 1
            self._behind_blocked -= lane.blocked
        ticket.state = _DONE
        # Before the lane is offered: the next of the group may be all that it has.
        if ticket.group is not None and (head := self._groups.next(ticket.group)) is not None:
            self._line_up(head)
        if lane.waiting:
            self._offer(lane)
        elif not lane.running:
            self._forget_if_empty(lane)

    def suspend(self, ticket: T, *, now: float = 0.0, seconds: float | None = None) -> None:
        """Take the slot back: the ticket waits for its tenant's resources, and so would the rest of its lane."""
        lane = lane_of(ticket)
        ticket.state = State.SUSPENDED
        self._stop_running(ticket, lane, seconds or 0.0)
        was_blocked = lane.blocked
        # It blocks the whole lane: the others of its tenant would wait for the same open.
        lane.suspended += 1
        self._suspended += 1
        self._note_blocked(lane, was_blocked=was_blocked, now=now)

    def resume(self, ticket: T) -> None:
        """Let a suspended ticket wait for a slot again, first in its lane."""
        lane = lane_of(ticket)
        self._end_suspension(lane)
        self._wait_first(ticket, lane)

    def put_back(self, ticket: T, *, seconds: float | None = None) -> None:
        """Let a running or suspended ticket wait again, first in its lane, because it could not be tried."""
        lane = lane_of(ticket)
        if ticket.state is State.SUSPENDED:
            self._end_suspension(lane)
        else:
            self._stop_running(ticket, lane, seconds or 0.0)
        self._wait_first(ticket, lane)

    def prefer(self, tenant: Hashable, better: Callable[[T], int]) -> None:
        """Move the ticket of a tenant for which ``better`` says most to the front of its lane."""
        lane = self._lanes.get(tenant)
        if lane is None or len(lane.waiting) < 2:
            return
        best = max(range(len(lane.waiting)), key=lambda place: better(lane.waiting[place]))
        # Order among messages of one tenant is not promised on a standard queue; a FIFO lane has
        # heads only.
        if best:
            ticket = lane.waiting[best]
            del lane.waiting[best]
            lane.waiting.appendleft(ticket)

    def waiting_of(self, tenant: Hashable) -> list[T]:
        """Return what waits in a tenant's lane, in order."""
        lane = self._lanes.get(tenant)
        return [] if lane is None else list(lane.waiting)

    def waiting_tickets(self) -> list[T]:
        """Return what waits in any lane, and behind the heads of message groups, running ones included."""
        waiting = [ticket for lane in self._lanes.values() for ticket in lane.waiting]
        return waiting + self._groups.all_behind()

    # -- striking off -------------------------------------------------------------------------------------------

    def has_again(self, ticket: T) -> bool:
        """Whether the work of the head of a message group has come again, before all that waits behind it."""
        return self._groups.has_again(ticket)

    def behind_of(self, ticket: T) -> list[T]:
        """Return, in order, what waits behind the head of a message group."""
        return self._groups.behind_of(ticket)

    def withdraw_group(self, ticket: T) -> list[T]:
        """Strike off, in order, what waits behind a ticket in its message group, because that ticket is not done."""
        behind = self._groups.strike_off(ticket)
        self.waiting -= len(behind)
        return behind

    def shed(self, *, keep: int, blocked_before: float, may_go: Callable[[T], bool] = lambda _ticket: True) -> list[T]:
        """Strike off, the newest first, what lanes hold beyond ``keep`` that have been blocked since before a time.

        It ends in each lane at the first ticket that may not go, or that has one behind it in its group that may not.
        """
        shed: list[T] = []
        for lane in list(self._blocked):
            if lane.blocked_since <= blocked_before:
                while lane.size > keep and lane.waiting and self._groups.holds(lane.waiting[-1], may_go):
                    self._strike_off(lane.waiting.pop(), lane, shed)
        return shed

    def withdraw_waiting(self, keep: Callable[[T], bool] = lambda _ticket: False) -> list[T]:
        """Strike off, in order within each message group, everything that waits for a slot: the consumer stops.

        What runs or is suspended stays: its own task finishes it or is cancelled. So does what ``keep`` wants to keep,
        but nothing that would then overtake an earlier ticket of its group.
        """
        withdrawn: list[T] = []
        for ticket in self._groups.strike_off_all(keep):
            self.waiting -= 1
            withdrawn.append(ticket)
        # Those behind go first from their groups; in the result they follow, so that each group
        # keeps its order.
        heads: list[T] = []
        for lane in list(self._lanes.values()):
            for ticket in [ticket for ticket in lane.waiting if not keep(ticket)]:
                lane.waiting.remove(ticket)
                self._strike_off(ticket, lane, heads)
            self._forget_if_empty(lane)
        return heads + withdrawn

    # -- control of one tenant ----------------------------------------------------------------------------------

    def control(
        self,
        tenant: Hashable,
        *,
        paused: bool = False,
        pace: Pace | None = None,
        cap: int | None = None,
        exempt: Callable[[T], bool] | None = None,
        now: float = 0.0,
    ) -> None:
        """Pause a tenant, let it go on at a pace, or with a cap of its own. It stays until it is said otherwise.

        ``exempt`` says which of its tickets need no permission from the pace.
        """
        self._seats = False
        control = Control(paused, pace, cap, exempt) if paused or pace is not None or cap is not None else None
        if control is None:
            self._controls.pop(tenant, None)
        else:
            self._controls[tenant] = control
        lane = self._lanes.get(tenant)
        if lane is None:
            return
        was_blocked = lane.blocked
        lane.paused = paused
        lane.control = control
        # At once: the lane may be in line already, and is not asked again before its turn.
        lane.cap = cap or self._cap_of(tenant)[0]
        if lane.asleep_until is not None:  # its pace may have changed; who may run when is asked again at its turn
            lane.asleep, lane.asleep_until = False, None
        self._note_blocked(lane, was_blocked=was_blocked, now=now)
        self._offer(lane)

    def sleep(self, tenant: Hashable, until: float | None, *, now: float = 0.0) -> None:
        """Grant a tenant's lane nothing before a time; None: until it is woken."""
        lane = self._lanes.get(tenant)
        if lane is not None:
            self._sleep(lane, now, until)

    def sleep_on(self, tenant: Hashable, until: float) -> None:
        """Let a lane that sleeps until a time sleep until a later one."""
        lane = self._lanes.get(tenant)
        if lane is not None and lane.asleep_until is not None and lane.asleep_until < until:
            self._asleep.put(lane, until)

    def withhold(self, tenant: Hashable, *, withheld: bool, now: float = 0.0) -> None:
        """Count what waits of a tenant among what cannot run, while its bound leaves it nothing."""
        lane = self._lanes.get(tenant)
        if lane is not None and lane.withheld is not withheld:
            was_blocked = lane.blocked
            lane.withheld = withheld
            self._note_blocked(lane, was_blocked=was_blocked, now=now if withheld else lane.blocked_since)
            self._offer(lane)

    def is_withheld(self, tenant: Hashable) -> bool:
        """Whether its bound leaves a tenant nothing for now, as ``withhold`` was told."""
        return (lane := self._lanes.get(tenant)) is not None and lane.withheld

    def startable_before(self, end: float) -> int:
        """Return how many tickets wait for nothing but a time before ``end``, or a bound that leaves them nothing now.

        As a tenant's next try after an outage, and the next start at its pace. Not what is paused, nor what is woken by
        something that runs.
        """
        return sum(
            len(lane.waiting)
            for lane in self._blocked
            if not (lane.paused or lane.suspended)
            and (not lane.asleep or (lane.asleep_until is not None and lane.asleep_until < end))
        )

    def asleep_until(self, time: float) -> list[T]:
        """Return what waits first of each tenant that sleeps, and for nothing else, until a time or for longer."""
        lanes = [lane for lane in self._blocked if lane.waiting and not (lane.paused or lane.withheld)]
        return [lane.waiting[0] for lane in lanes if lane.asleep_until is not None and lane.asleep_until >= time]

    def wake(self, tenant: Hashable) -> None:
        """End a tenant's sleep."""
        lane = self._lanes.get(tenant)
        if lane is not None and lane.asleep:
            self._wake(lane)

    def next_wake(self) -> float | None:
        """Return when the next lane that sleeps may be granted a slot again; None when none sleeps."""
        return self._asleep.next()

    # -- who is next -------------------------------------------------------------------------------------------

    def _next(self) -> Lane[T] | None:
        """Take the next lane out of its line; it may turn out that it cannot use a slot any longer."""
        fresh = self._fresh
        # Bounded: new tenants that come all the time must not keep the others from their turns.
        if fresh and self._streak < self._patience and (lane := self._next_fresh()) is not None:
            return lane
        self._streak = 0
        return self._next_in_line() or (self._next_fresh() if fresh else None)

    def _next_fresh(self) -> Lane[T] | None:
        while self._fresh:
            lane = self._fresh.popleft()
            if lane.place is _FRESH:
                lane.place = _NOWHERE
                self._streak += 1
                return lane
        return None

    def _next_in_line(self) -> Lane[T] | None:
        # Alone for a long time, a tenant may use all: a reserve for others who never come is waste.
        free = self.total - self.running > (self._reserved if self._alone < ALONE else 0)
        within, over = self._within, self._over
        while True:
            lane = within.first()
            if free and over.numbers and (other := over.first()) and (lane is None or other.round < lane.round):
                lane = other
            if lane is None:
                return None
            number = lane.round
            (over if lane.over else within).take(lane)
            if int(lane.served / self._quantum) > number:  # what it ran has cost more than was thought
                self._line(lane)
            elif not free and lane.running and self._is_over(lane):
                over.put(lane, number)  # it had less when it lined up, or others have come since
            else:
                # Never back: a lane that was idle enters at this round, and would overtake all
                # others.
                self._round = max(self._round, number)
                return lane

    def _is_over(self, lane: Lane[T]) -> bool:
        """Whether a lane runs its share, or more, of the slots that are not reserved; of few slots that is one."""
        return lane.running > 0 and (lane.running + 1) * len(self._lanes) > self.total - self._reserved

    def _may_run(self, lane: Lane[T]) -> bool:
        if not lane.waiting or (self._blocked and lane.blocked):
            return False
        if self._varies:
            self._look_up(lane)
        return lane.running < lane.cap

    def _look_up(self, lane: Lane[T]) -> None:
        """Look up a lane's cap and weight, each time: the user's function may answer differently by now."""
        tenant = lane.tenant
        cap = int(self._own_caps(tenant)) if self._chooses else self._per_tenant
        if (bounds := self._bounds) is not None:
            limit: int | None
            if (bound := lane.bound) is not None and bounds.time() < bound.expires:
                bound.idle, limit = 0, bound.limit
            else:
                limit, lane.bound = bounds.look(tenant)
            if limit is not None and limit < cap:
                cap = limit
        lane.cap = cap if lane.control is None else lane.control.cap or cap
        if self._weighs:
            lane.weight = self._weights(tenant)

    def _line(self, lane: Lane[T]) -> None:
        """Let a lane stand in line in the round in which what it was charged so far is paid."""
        over = self._reserved > 0 and lane.running > 0 and self._is_over(lane)
        (self._over if over else self._within).put(lane, int(lane.served / self._quantum))

    def _offer(self, lane: Lane[T]) -> None:
        """Let a lane that could use a slot stand in line; one that stands too far back moves up."""
        place, number = lane.place, int(lane.served / self._quantum)
        in_line = place is _IN_LINE
        if place is _FRESH or (in_line and not lane.over and number >= lane.round) or not self._may_run(lane):
            return
        if not in_line:
            # Turns that a lane could not use are not saved up.
            lane.served = max(lane.served, self._round * self._quantum)
            self._line(lane)
            return
        over = self._reserved > 0 and self._is_over(lane)
        if number < lane.round or over is not lane.over:
            (self._over if over else self._within).put(lane, min(number, lane.round))

    # -- bookkeeping --------------------------------------------------------------------------------------------

    def _run(self, ticket: T, lane: Lane[T]) -> None:
        # Charged by estimate, before the end is known: otherwise one tenant with slow handlers
        # would get all the slots.
        ticket.charge = charge = lane.estimate
        lane.served += charge / lane.weight
        lane.running += 1
        self.running += 1
        if len(self._lanes) == 1:
            self._alone += 1
        else:
            self._alone = 0
            self._met = True

    def _line_up(self, ticket: T) -> None:
        lane = self._lanes.get(ticket.tenant)
        if lane is None:
            lane = self._lanes[ticket.tenant] = self._new_lane(ticket.tenant)
            lane.known, lane.place = True, _FRESH
            self._fresh.append(lane)
        ticket.lane = lane
        lane.waiting.append(ticket)
        if self._blocked and lane.blocked:
            self._behind_blocked += 1
        elif lane.place is _NOWHERE:
            self._offer(lane)

    def _new_lane(self, tenant: Hashable) -> Lane[T]:
        cap, weight, bound = self._per_tenant, 1.0, None
        if self._varies:
            cap, bound = self._cap_of(tenant)
            if self._weighs:
                weight = self._weights(tenant)
        # From the present round: from 0 it would have all turns until it has caught up with the
        # others.
        lane: Lane[T] = Lane(tenant, cap, weight, self._round * self._quantum, self.typical)
        lane.bound = bound
        control = self._controls.get(tenant) if self._controls else None
        if control is not None:
            lane.control = control
            lane.cap = control.cap or cap
            lane.paused = control.paused
            if lane.paused:
                self._blocked[lane] = None
        return lane

    def _stop_running(self, ticket: T, lane: Lane[T], seconds: float | None) -> None:
        lane.running -= 1
        self.running -= 1
        if seconds is not None:
            lane.served += (seconds - ticket.charge) / lane.weight
        ticket.charge = 0.0

    def _wait_first(self, ticket: T, lane: Lane[T]) -> None:
        ticket.state = _WAITING
        self.waiting += 1
        lane.waiting.appendleft(ticket)
        self._behind_blocked += lane.blocked
        self._offer(lane)

    def _end_suspension(self, lane: Lane[T]) -> None:
        lane.suspended -= 1
        self._suspended -= 1
        # If something else still blocks the lane, it has been blocked since the same time as
        # before.
        self._note_blocked(lane, was_blocked=True, now=lane.blocked_since)

    def _sleep(self, lane: Lane[T], now: float, until: float | None) -> None:
        was_blocked = lane.blocked
        lane.asleep = True
        lane.asleep_until = until
        if until is not None:
            self._asleep.put(lane, until)
        self._note_blocked(lane, was_blocked=was_blocked, now=now)

    def _wake(self, lane: Lane[T]) -> None:
        was_blocked = lane.blocked
        lane.asleep, lane.asleep_until = False, None
        self._note_blocked(lane, was_blocked=was_blocked, now=lane.blocked_since)
        self._offer(lane)

    def _note_blocked(self, lane: Lane[T], *, was_blocked: bool, now: float) -> None:
        """Keep the count of what waits in blocked lanes, after a lane may have become blocked or free."""
        if lane.blocked and not was_blocked:
            lane.blocked_since = now
            self._blocked[lane] = None
            self._behind_blocked += len(lane.waiting)
        elif was_blocked and not lane.blocked:
            del self._blocked[lane]
            self._behind_blocked -= len(lane.waiting)

    def _strike_off(self, ticket: T, lane: Lane[T], into: list[T]) -> None:
        """Strike off a ticket that was taken out of its lane, and what waits behind it in its group, after it."""
        into.append(ticket)
        into.extend(self.withdraw_group(ticket))
        ticket.state = _DONE
        self.waiting -= 1
        self._behind_blocked -= lane.blocked
        if ticket.group is not None:
            self._groups.next(ticket.group)

    def _forget_if_empty(self, lane: Lane[T]) -> None:
        # By its own mark: to look it up costs a hash of the tenant, which a user's class may
        # compute.
        if lane.known and not (lane.waiting or lane.running or lane.suspended):
            lane.known = False
            del self._lanes[lane.tenant]
            if self._blocked:
                self._blocked.pop(lane, None)
            lane.asleep, lane.asleep_until = False, None  # its entry among the sleepers is stale now
