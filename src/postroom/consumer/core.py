"""What becomes of each message: decided here, synchronously, and carried out by the engine.

Pure: no await, no clock, no I/O. Every method takes the time, changes the state at once and completely, and leaves in
``actions`` what is to be done. A message is a ``Job`` with one state:

    NEW ──arrive──▶ WAITING ──next──▶ RUNNING ──finish──▶ DONE
                     ▲  ▲  ▲             │  │
                     │  │  └──put back───┘  │      (its tenant's resources were refused: it waits in its lane)
                     │  └──resume── SUSPENDED ◀──suspend    (they are being opened: no slot is held)
                     └──refused─────────┘

What may be spent of a message's receives is in ``attempts``, who may run in ``availability``, who is next in the
scheduler, and how much to ask for in the receive policy.
"""

import math
from collections import deque
from collections.abc import Collection, Hashable
from itertools import takewhile
from random import Random
from typing import Final

import msgspec

from postroom.consumer.actions import Action, GiveBack, GoOnAt, Reject, RelieveAt, ReturnGroup
from postroom.consumer.availability import Availability, Obstacle, ObstacleKind, Wait
from postroom.consumer.away import Absent, Away
from postroom.consumer.deferral import PATIENCE, Deferral
from postroom.consumer.demand import ReceivePolicy
from postroom.consumer.endings import Endings
from postroom.consumer.halts import MOST_HALTED, Halt
from postroom.consumer.job import Job
from postroom.consumer.obstacles import Obstacles
from postroom.consumer.tenants import Tenants
from postroom.display import without_next_try
from postroom.errors import PostroomError, Retry, in_words
from postroom.errors import Reject as RejectError
from postroom.options import Polling
from postroom.scheduling import Scheduler, State
from postroom.types import Settlement

# Looked up for every message: on Python 3.11 the member of an enum costs as much as a call.
_RUNNING, _ACKED = State.RUNNING, Settlement.ACKED

AT_ONCE: Final = 500
"""Messages that a sweep looks at in one turn of the event loop."""
_BACKOFF: Final = (0.1, 600.0)
"""Seconds that a message of a group backs off at least and at most, where it does so here and not in the queue."""
_PARK: Final = (60.0, 180.0)
"""Seconds, at random between these, for which a message is parked."""
_LAST_SECOND: Final = 1.0
"""Seconds between two messages of a tenant that find out that the consumer has to stop."""
_TURN: Final = 5.0
"""Seconds after which a tenant goes on once its host is back, even if its turn has not come."""


class Scene(msgspec.Struct, frozen=True):
    """What messages find that arrive at one moment."""

    capacity: int
    """How many messages to hold at once."""
    calm: bool
    """Whether no tenant is kept from running, and nothing was decided about any."""
    roomy: bool
    """Whether there is a slot for each of them at once, and nothing that waits for one."""
    gone: set[str]
    """Message groups of which something went back since: nothing that follows may overtake it."""


class Core:
    """The deliveries of a consumer, and every decision about them."""

    def __init__(
        self,
        scheduler: Scheduler[Job],
        availability: Availability,
        tenants: Tenants,
        policy: ReceivePolicy,
        *,
        polling: Polling,
        rng: Random,
    ) -> None:
        self.scheduler = scheduler
        self.availability = availability
        self.policy = policy
        self.away: Away = Away()
        self.actions: list[Action] = []
        self.closing: bool = False
        self.draining: bool = True
        """Whether a stop still starts what has no receive to spare."""
        self.parked: int = 0
        """Messages parked so far."""
        self.deferred: int = 0
        """Messages deferred so far."""
        self.resolving = 0
        """Messages that have waited for their resolver for a moment only: they take room."""
        self.unresolved = 0
        """Messages that have waited for their resolver for longer: they take none."""
        self.held_bytes = 0
        self.most_bytes: int = polling.memory
        """Bytes of bodies that may be held; from then on nothing is received."""
        self._tenants = tenants
        self._polling = polling
        self._rng = rng
        self.obstacles: Obstacles = Obstacles(scheduler, availability, tenants, polling=polling)
        self.endings: Endings = Endings(scheduler, availability, tenants, obstacles=self.obstacles)
        self._deferral = Deferral(scheduler, availability, self.away, polling=polling, rng=rng)
        self._relieve_after = -math.inf
        self._returned: set[str] = set()
        self._halts: dict[str, Halt] = {}
        self.waking: deque[Hashable] = deque()
        """Tenants that wait only for room to go on, after an outage of their host."""
        self.seated: deque[Job] = deque()
        """Messages that had a slot at once when they arrived, and are to be started."""
        self.fifo: bool = False
        """Whether messages come from a FIFO queue."""

    # -- what a receive policy sees -----------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """Handlers that may run at once."""
        return self.scheduler.total

    @property
    def free(self) -> int:
        """Slots that no handler has."""
        return self.scheduler.total - self.scheduler.running

    @property
    def typical(self) -> float:
        """Handler seconds of a message, as a recent average."""
        return self.scheduler.typical

    @property
    def waiting(self) -> int:
        """Messages that wait for nothing but a slot."""
        return self.scheduler.ready

    @property
    def halted(self) -> int:
        """Messages of groups that stand still."""
        return sum(len(halt.jobs) for halt in self._halts.values())

    @property
    def is_full(self) -> bool:
        """Whether the bodies that are held take as much memory as they may."""
        return self.held_bytes >= self.most_bytes

    def taken(self, capacity: int) -> int:
        """Return how much of a capacity is in use: messages of blocked tenants take no room, within limits.

        Nor do those behind another one of their message group, which can be nine: SQS gives nothing of a group that it
        has given something of.
        """
        scheduler = self.scheduler
        blocked = min(scheduler.blocked + self.unresolved, self._deferral.most_waiting(capacity))
        return scheduler.size - scheduler.behind + self.resolving + self.unresolved - blocked

    def capacity(self) -> int:
        """Return how many messages to hold at once."""
        return self.policy.capacity(self)

    # -- arrival ------------------------------------------------------------------------------------------------

    def scene(self, count: int = 0) -> Scene:
        """Return what messages find that arrive now: at most so many that are started in this very moment."""
        held_up = self.scheduler.blocked_lanes or self.availability.troubled or self._tenants.ruled
        roomy = count > 0 and not held_up and self.scheduler.has_room(count)
        return Scene(self.policy.capacity(self), not held_up, roomy, set())

    def arrive(self, job: Job, now: float, scene: Scene | None = None) -> bool:
        """Take a message in when its tenant is known, or cannot be. Returns whether it lacks nothing but a slot.

        ``scene`` is that of this moment, for a caller that has several messages of it.
        """
        source = job.source
        if source.fifo:
            self.fifo = True
        if self._halts and job.group in self._halts and not (scene and job.group in scene.gone):
            if self.admits(job):
                self._halts[job.group].add(job)
            else:
                self.return_late(job)
            return False
        # One scene for a whole receive: on a busy queue its parts cost more than the rest of an
        # arrival.
        if scene is None:
            scene = self.scene()
        if job.group in scene.gone:
            self.return_behind(job)
            return False
        if self.closing:
            self._arrive_late(job)
            return False
        blocked = not scene.calm and self.scheduler.blocked > 0 and self.scheduler.is_blocked(job.tenant)
        if not scene.calm and self._goes_away(job, now, blocked=blocked):
            if job.group is not None and job.group not in self._halts:
                scene.gone.add(job.group)
            return False
        # A message without a tenant takes no room for long: it runs at once, and fails with its
        # reason.
        chooses = source.resolves and job.problem is None and self.policy.is_choosy(job, now)
        if chooses and self._is_surplus(job, now, scene.capacity):
            self._park(job)
            return False
        if scene.roomy and not chooses and job.group is None and self.scheduler.seat(job):
            self.seated.append(job)
        else:
            self.scheduler.add(job)
        return not blocked

    def _goes_away(self, job: Job, now: float, *, blocked: bool) -> bool:
        """Defer or reject an arriving message that could only wait here, for an obstacle to be over."""
        if (blocked or self.availability.troubled or self._tenants.ruled) and self._makes_way(job, now):
            return True
        # Those that wait for an open, and not the backlogs of tenants that cannot run: these take no room, and to be
        # deferred again and again for them would cost a tenant that is well all its receives.
        if self._deferral.opens_enough() and self._is_one_too_many(job, now):
            return True
        if blocked and self._is_rejected(job, self.endings.expires(job)):
            self.give_group_back(job)
            return True
        return False

    def keeps(self, job: Job) -> bool:
        """Whether a message may still be started: always, but for a stop, which keeps only what cannot go back."""
        return not self.closing or (self.draining and job.source.attempts.is_short_of(job))

    def admits(self, job: Job) -> bool:
        """Whether a message that is received may be started: during a stop, what nothing of its group went back before.

        Asked once, before its tenant is resolved: what comes behind it later, and goes back, is no reason against it.
        """
        return not self.closing or (job.group not in self._returned and self.keeps(job))

    def return_late(self, job: Job) -> None:
        """Give back what has no tenant yet, because of a stop: what is before it in its group stays."""
        if job.group is not None:
            self._returned.add(job.group)
        self._let_go(job, Settlement.RETURNED, why=_WHY[Settlement.RETURNED])

    def went_back(self, group: str | None) -> bool:
        """Whether something of a message group went back in this stop."""
        return group in self._returned

    def _arrive_late(self, job: Job) -> None:
        """A message that arrives during a stop goes back, unless one more receive would make a dead letter of it."""
        if self.keeps(job):
            self.scheduler.add(job)
        else:
            self.give_back(job, Settlement.RETURNED)

    def _is_surplus(self, job: Job, now: float, capacity: int) -> bool:
        scheduler, policy = self.scheduler, self.policy
        # The cheap question first, for every message: most are no surplus.
        standing = scheduler.standing(job.tenant, capacity - scheduler.total)
        crowded = standing[0] and self.taken(capacity) >= capacity
        if not policy.is_surplus(job, standing, crowded=crowded, now=now):
            return False
        facts = job.source.facts
        if not job.source.attempts.may_park(job) or facts.seconds_left(job) < _PARK[1]:
            return False
        return self._deferral.may_leave(job)

    def _park(self, job: Job) -> None:
        self.parked += 1
        self.policy.parked()
        job.source.facts.hid()
        self.give_back(job, Settlement.DEFERRED, self._rng.uniform(*_PARK))

    def _makes_way(self, job: Job, now: float) -> bool:
        """Defer an arriving message of a tenant that cannot run now and has enough of them here."""
        if job.source.fifo or job.problem is not None:  # on a FIFO queue what follows in its group would overtake it
            return False
        if not self._deferral.has_enough(job):
            return False
        obstacle = self.obstacles.of(job, now)
        return obstacle is not None and self._defer(job, obstacle, now)

    def _is_one_too_many(self, job: Job, now: float) -> bool:
        """Defer a message when its tenant's resources are not open, and as many as may wait for theirs do so."""
        if job.source.fifo or self.availability.is_open(job):
            return False
        return self._defer(job, Obstacle(ObstacleKind.TENANT, job.tenant), now, soon=True)

    # -- running ------------------------------------------------------------------------------------------------

    def next(self, now: float) -> Job | None:
        """Return a message that has got a slot: it is started, or goes on if it has its resources."""
        if self.seated:
            seated = self.seated.popleft()
            seated.since = now
            return seated
        while (job := self.scheduler.grant(now)) is not None:
            if not self.availability.troubled or self._may_run(job, now):
                job.since = now
                if self._tenants.ruled:
                    self._refill(job.tenant)
                return job
        return None

    def unseat(self) -> None:
        """Let what had a slot at once, and is not started, wait for one: something was decided meanwhile."""
        while self.seated:
            self.scheduler.put_back(self.seated.pop())

    def _refill(self, tenant: Hashable) -> None:
        """Call messages of a tenant back that has a rate, before its lane runs empty."""
        rate = self._tenants.rate_of(tenant)
        if rate is not None and len(self.away):
            # For two seconds: a call back and the receive after it take less.
            missing = max(self._polling.lane, 2 * rate) - self.scheduler.figures(tenant).waiting
            self.away.release(Obstacle(ObstacleKind.DECISION, tenant), int(missing))

    def _may_run(self, job: Job, now: float) -> bool:
        if self._tenants.ruled and self.obstacles.is_sent_away(job):
            # To another queue, which takes none of its tenant's resources: their outage is no obstacle.
            if self.availability.is_undivertable(job.tenant):  # the others of its tenant wait for the end of this try
                job.leads = True
                self.scheduler.sleep(job.tenant, None, now=now)
            return True
        wait = self.availability.wait(job, now)
        if wait is None and self.availability.is_half_open(job):
            best = max((other.attempt for other in self.scheduler.waiting_of(job.tenant)), default=0)
            if best > job.attempt:  # a first try of another message tells less than one more of this
                self._put_back_untried(job)
                self.scheduler.prefer(job.tenant, _attempt_of)
                return False
            self.availability.probe(job)
            self.scheduler.sleep(job.tenant, None, now=now)
            return True
        if wait is not None:
            self._put_back_untried(job)
            if wait.until is None and self._has_waiting_probe(job.tenant):
                # What could not have its resources meanwhile stands in front of it, and waits for its end.
                self.scheduler.prefer(job.tenant, _is_probe)
            else:
                self._sleep(job, wait, now)
            return False
        if self.availability.must_open(job):  # the others of its tenant would only wait for the same open
            job.leads = True
            self.availability.tries(job)
            self.scheduler.sleep(job.tenant, None, now=now)
        return True

    def _put_back_untried(self, job: Job) -> None:
        self.scheduler.unspend(job)
        self.scheduler.put_back(job)

    def _has_waiting_probe(self, tenant: Hashable) -> bool:
        """Whether the probe of a tenant has its resources, and waits for a slot."""
        return any(map(_is_probe, self.scheduler.waiting_of(tenant)))

    def _sleep(self, job: Job, wait: Wait, now: float) -> None:
        self.scheduler.sleep(job.tenant, wait.until, now=now)
        self.availability.slept(job, wait)

    def suspend(self, job: Job, now: float) -> None:
        """Take the slot back of a message while its tenant's resources are opened."""
        self.scheduler.unspend(job)  # it takes one when it goes on: its handler starts then
        # The seconds so far count for its tenant: decoding took a slot.
        self.scheduler.suspend(job, now=now, seconds=now - job.since)

    def leased(self, job: Job) -> None:
        """Note that a message has its tenant's resources: the others of its tenant may have them, too."""
        if job.leads:
            job.leads = False
            self.availability.tried(job)
            if not job.probe:
                self.scheduler.wake(job.tenant)

    def resume(self, job: Job) -> None:
        """Let a message wait for a slot again, with its resources in hand."""
        self.leased(job)
        self.scheduler.resume(job)
        if job.probe:
            self.scheduler.wake(job.tenant)  # its lane sleeps behind it: it is granted its slot again as the probe

    def refused(self, job: Job, error: BaseException, now: float) -> list[Job]:
        """Note that a message could not have its tenant's resources: it waits in its lane, or is deferred.

        Returns messages of its tenant that wait with resources in hand and must not.
        """
        wait = self.availability.refused(job, error, now)
        idle = self._with_resources(job.tenant) if job.met_outage else []
        if job.started:  # decoded once more: its handler may have changed its payload
            job.payload, job.decoded = None, False
            job.paced = False  # its handler did start
        # Before it is put back: its next turn must not be taken for a handler that met an outage.
        job.met_outage = job.started = False
        self._wait(job, wait, now)
        return idle

    def undiverted(self, job: Job, queue: str | None, error: BaseException, now: float) -> None:
        """Note that the queue that its tenant's messages go to did not take one: it waits, or is deferred.

        ``queue`` is where it is diverted to; None for the dead-letter queue, in a quarantine.
        """
        self._wait(job, self.availability.undiverted(job, queue, error, now), now)

    def diverted(self, job: Job, now: float) -> bool:
        """Note that a message went where its tenant is diverted. Returns whether messages may be called back."""
        over = self.availability.diverted(job.tenant, now)
        self.leased(job)
        return over is not None and self.away.over(over)

    def wait_for_the_stop(self, job: Job, now: float) -> None:
        """Let a message wait that can have no resources before the stop that this asked for. Others are tried, too."""
        self._wait(job, Wait(Obstacle(ObstacleKind.TENANT, job.tenant), now + _LAST_SECOND), now)

    def _wait(self, job: Job, wait: Wait, now: float) -> None:
        self.probe_ended(job)
        if self._is_rejected(job, self.endings.expires(job) or self.endings.slips(job, now)):
            self.give_group_back(job)
            self._sleep(job, wait, now)
            return
        # A FIFO message stays: deferred, it would keep its group away for the whole pause.
        away = not job.source.fifo and self._deferral.has_enough(job) and self._defer(job, wait.obstacle, now)
        if not away:
            self.put_back(job, now)
        self._sleep(job, wait, now)

    def has_to_wait(self, job: Job, now: float) -> bool:
        """Whether a message has its resources, and its tenant is left alone by now: others may need their place."""
        return self.availability.troubled and self.availability.wait(job, now) is not None

    def _with_resources(self, tenant: Hashable) -> list[Job]:
        return [job for job in self.scheduler.waiting_of(tenant) if job.lease is not None and not job.probe]

    def put_back(self, job: Job, now: float) -> None:
        """Let a message that could not be tried wait in its lane again."""
        self.probe_ended(job)
        if not job.started:
            self.scheduler.unspend(job)
        job.started = False  # a stop gives it back at once: its handler does not run, even if it has run before
        if not self.keeps(job):
            self.give_back(job, Settlement.RETURNED)
        elif not job.lost and self._is_rejected(job, self.endings.waited(job, now)):
            self.give_group_back(job)
            self.finish(job, now)
        elif job.state is not State.WAITING:
            self.scheduler.put_back(job, seconds=now - job.since if job.state is State.RUNNING else None)

    def finish(self, job: Job, now: float) -> None:
        """Strike a message off once its end was decided."""
        if job.probe or job.leads:
            self.probe_ended(job)
        self.scheduler.finish(job, now - job.since if job.state is _RUNNING else None)

    def probe_ended(self, job: Job) -> None:
        """Let another message of a tenant be its probe, or try its resources, if this one did and told nothing."""
        if self.availability.probe_ended(job) or job.leads:
            job.leads = False
            self.availability.tried(job)
            self.scheduler.wake(job.tenant)

    # -- outcomes -----------------------------------------------------------------------------------------------

    def succeeded(self, job: Job, now: float) -> None:
        """Note that a handler returned."""
        availability = self.availability
        self.policy.handled()
        if job.source.attempts.remembers:
            job.source.attempts.succeeded(job)
        if (availability.failing or availability.met) and availability.succeeded(job, now):
            job.probe = False
            self.scheduler.wake(job.tenant)
            # Only now, after the probe: called back before it, they would come into the next
            # failure.
            self.away.over(Obstacle(ObstacleKind.TENANT, job.tenant))
        elif (
            self.away.known
            and self.away.keeps(obstacle := Obstacle(ObstacleKind.TENANT, job.tenant))
            and self.obstacles.outage(job.tenant) is None
            and availability.wait(job, now) is None
        ):
            # Another user of the pool has met an outage of what is open, and no open tells of its end.
            self.away.over(obstacle)

    def failed(self, job: Job, error: BaseException, now: float) -> list[Job]:
        """Note that a handler failed, and pause its tenant if all of it fails.

        Returns messages of its tenant that wait with resources in hand and must not.
        """
        until = self.availability.failed(job, error, job.source.faults_of(job), now)
        if until is None:
            return []
        self.scheduler.wake(job.tenant)
        self.scheduler.sleep(job.tenant, until, now=now)
        return self._with_resources(job.tenant)

    def recovered(
        self, tenant: Hashable, host: Hashable | None, now: float, invited: Collection[Hashable] = ()
    ) -> bool:
        """Note that a tenant's resources are open. Returns whether messages may be called back, or tenants go on."""
        # The tenant itself goes on at once; the others of its host take turns, see `wake_some`.
        over, woken = self.availability.recovered(tenant, host, now, invited)
        self.scheduler.wake(tenant)
        for other in woken:
            self.waking.append(other)
            self.scheduler.sleep_on(other, now + _TURN)  # its own time would come too soon: everybody's comes at once
        # Also what was not known here as an outage: another user of the pool, or another replica, has met it.
        if host is not None:
            over.append(Obstacle(ObstacleKind.HOST, host))
        if self.availability.outage(tenant) is None:
            over.append(Obstacle(ObstacleKind.TENANT, tenant))
        freed = [self.away.over(obstacle) for obstacle in over]
        return bool(woken) or any(freed)

    def room_for_recalls(self) -> int:
        """Return how many messages may be called back now.

        What waits for its tenant's resources, or to go on after an outage, has the room first. What is paused has none.
        """
        capacity = self.capacity()
        first = self.scheduler.blocked if self.waking else self.scheduler.statistics().suspended
        return capacity - max(self.taken(capacity), first)

    def wake_some(self) -> None:
        """Let the tenants of a host that is back go on as far as there is room: all at once would stop the receives.

        A stop receives nothing, and has no time for turns.
        """
        while self.waking:
            opening = self.scheduler.statistics().suspended  # each has more of its tenant behind it
            if not self.closing and self.taken(self.capacity()) + 2 * opening >= self.slots:
                return
            self.scheduler.wake(self.waking.popleft())

    def tried_after(self, time: float, now: float) -> list[Job]:
        """Return what waits first of each tenant that is tried again, after an outage, at a time or later."""
        asleep = self.scheduler.asleep_until(time)
        return [job for job in asleep if self.obstacles.outage(job.tenant) or self.availability.wait(job, now)]

    def decided(self, tenant: Hashable, *, paused: bool) -> list[Job]:
        """Note a decision about a tenant. Returns its messages that wait with resources in hand and must not."""
        self.unseat()
        if self.availability.decided(tenant) is not None:
            self.scheduler.wake(tenant)  # it may be a minute until the message is back that tried its diversion
        if not paused:
            self.away.over(Obstacle(ObstacleKind.DECISION, tenant))
            self.away.over(Obstacle(ObstacleKind.DIVERSION, tenant))
            return []
        return [job for job in self.scheduler.waiting_of(tenant) if job.lease is not None]

    def settled(self, job: Job, settlement: Settlement, delay: float, now: float) -> None:
        """Note that SQS confirmed what was decided, or that the message is not ours any longer."""
        attempts = job.source.attempts
        if job.renewal is not None:
            attempts.ended(job)
        if settlement is _ACKED or settlement is Settlement.REJECTED:
            if attempts.remembers:
                attempts.forget(job)
            return
        # SQS has counted the receive, but nothing of the user's failed: it is no attempt. What is lost was cut off.
        untried = not (job.counted or (job.started and settlement is not Settlement.LOST))
        if settlement in _SPENT or (untried and settlement is not Settlement.LEFT):
            attempts.spent(job)
        if (settlement is Settlement.DEFERRED and not job.source.fifo) or self._waits_for_a_step(job, settlement):
            self.away.add(Absent(job.source.queue, job.message.id, job.receipt_handle, now + delay), job.away_from)

    def over(self, obstacle: Obstacle, now: float) -> bool:
        """Note that what failed works again. Returns whether messages go on here: others are to be called back."""
        self.away.over(obstacle)
        groups = [group for group, halt in self._halts.items() if halt.obstacle == obstacle and halt.until is not None]
        for group in groups:
            self._halts[group].until = None
            self._go_on_if_over(group, now)
        return bool(groups)

    def _waits_for_a_step(self, job: Job, settlement: Settlement) -> bool:
        """Whether a message is tried again later than its policy says, unless what failed works again before."""
        if settlement is not Settlement.RETRIED or job.away_from is None:
            return False
        # Called back at its last receive, it would only be a dead letter sooner.
        return not self.away.is_full and not job.source.attempts.is_last(job)

    def lost(self, job: Job, now: float) -> None:
        """Note that a message is not ours any longer; strike it off if it has no task.

        What is behind it in its message group goes back now: what comes later is in order, and stays when its task
        ends.
        """
        if job.state is State.WAITING and job.task is None:
            self.give_group_back(job)
            self.finish(job, now)
        elif job.state is State.NEW and job.group is not None:
            halt = self._halts.get(job.group)
            if halt is not None and halt.first is job:
                halt.until = None
                self._go_on_if_over(job.group, now)
            else:
                self.actions.append(ReturnGroup(job.group))  # it is being resolved, and so is what follows it
        elif job.state is not State.DONE:
            self.give_group_back(job)
            job.parted = True

    # -- giving back --------------------------------------------------------------------------------------------

    def give_back(self, job: Job, settlement: Settlement, delay: float = 0.0) -> None:
        """Make a message visible again that was not tried, or not to its end.

        Reject it instead, with the reason, if SQS would make a dead letter of it: it would tell nothing.
        """
        self._let_go(job, settlement, delay, why=_WHY[settlement])
        self.give_group_back(job)

    def retry(self, job: Job, error: BaseException, delay: float, now: float, *, tried: bool) -> bool:
        """Have a message tried again after a failure; reject it when it has had all that it was promised.

        ``tried`` tells whether the user's code ran: if not, its last receive must not end without a reason. Returns
        whether this was its last receive all the same, so that SQS makes a dead letter of it by itself.
        """
        if job.rejecting:
            return False
        attempts = job.source.attempts
        if tried and job.started:  # also after a `Reject` that is not possible: tried here, it would never end
            attempts.failed(job)
        # Before its handler, a `Retry` asks for time: it is no attempt, and its own words tell why.
        untried = not (tried and (job.started or job.counted))
        reason = attempts.why_over(job, failure_named(error))
        if untried and attempts.is_last(job) and not attempts.is_over(job):
            # SQS would make a dead letter of it by itself, without a reason.
            reason = f"not tried: {without_next_try(in_words(error))}"
        if reason is not None:
            self.reject(job, reason, delay)
            if job.group is None or self.closing or self.scheduler.has_again(job):
                self.give_group_back(job)
            else:
                self._halts[job.group].take(self.scheduler.withdraw_group(job))
            return False
        if self._backs_off_here(job, delay, now):
            self._back_off(job, delay, now)
            return False
        self.actions.append(GiveBack(job, Settlement.RETRIED, delay))
        if attempts.is_last(job):
            return True  # what is behind it in its group overtakes nothing: SQS gives this one out no more
        self.give_group_back(job)
        return False

    def _backs_off_here(self, job: Job, delay: float, now: float) -> bool:
        """Whether a message that failed stays: given back, it would take those behind it along, at a receive each.

        They have not failed. So that may cost them no attempt that they were promised.
        """
        attempts, scheduler = job.source.attempts, self.scheduler
        if job.group is None or self.closing or job.problem is not None or attempts.is_last(job):
            return False
        if not (job.started or job.counted):  # in quarantine: it was not tried, and no attempts end that
            return False
        behind = scheduler.behind_of(job)
        # Where resolvers are async, some of its group may still be with them, received as often as it.
        if self.resolving or self.unresolved:
            behind.append(job)
        if all(map(attempts.may_be_taken_along, behind)) or scheduler.has_again(job) or job.group in self._halts:
            return False
        room = len(self._halts) < MOST_HALTED and not self.is_full
        # Lost meanwhile, it would come again, and be tried, before its backoff is over. Its next try takes time, too.
        stays = now + 2 * delay < job.source.ours_until(job)
        return room and stays and delay <= min(_BACKOFF[1], job.source.facts.seconds_left(job) - 1.0)

    def _back_off(self, job: Job, delay: float, now: float) -> None:
        """Let a message and what is behind it in its group wait here, without a slot, until it is tried again."""
        behind = self.scheduler.withdraw_group(job)
        self.finish(job, now)
        delay = max(delay, _BACKOFF[0])  # without a backoff it would fail as fast as it can: no receive slows it down
        obstacle = job.away_from
        job.begin_again()
        job.source.resolved(job)
        group = job.group or ""
        halt = self._halts[group] = Halt(until=now + delay, first=job, backoff=delay, obstacle=obstacle)
        for each in (job, *behind):
            halt.add(each)
        self.actions.append(GoOnAt(group, now + delay))

    def go_on(self, group: str, when: float, now: float) -> None:
        """Let a message be tried again that backed off until a time, and what is behind it go on after it."""
        halt = self._halts.get(group)
        if halt is not None and halt.until == when:  # otherwise it ended before
            if halt.left is not None and halt.left.deadline > now:  # `ctx.extend`
                halt.until = halt.left.deadline
                self.actions.append(GoOnAt(group, halt.until))
                return
            halt.until = None
            self._go_on_if_over(group, now)

    def reject(self, job: Job, reason: str, delay: float = 30.0) -> None:
        """Send a message to the dead-letter queue. What comes of its group waits for that.

        SQS gives out none of the group while this one is in flight. But an extension may have been lost: then it comes
        again with others behind it. Given back, they would come at once, again and again, and use up their receives.
        """
        job.rejecting = True
        if not (job.tried or job.counted):  # at a stop its context may not have been asked for, which numbers it
            job.attempt = job.source.attempts.number(job)
        self.actions.append(Reject(job, reason, delay))
        if job.group is not None:
            self._halts.setdefault(job.group, Halt()).out += 1

    def give_group_back(self, job: Job) -> None:
        """Give back, in order, what waits behind a message in its group: nothing may overtake it.

        What is behind a message that is rejected waits for that here: given back, it would come at once. What is still
        being resolved goes back: nothing would look whether it has the time to wait.
        """
        if job.group is not None and not job.parted and not self._is_gone(job):
            # Remembered for the stop: a poll that ends later may bring more of the group.
            if self.closing:
                self._returned.add(job.group)
            # It came again while its task went on, as after `ctx.retry`: what is behind it is in order.
            if self.scheduler.has_again(job):
                return
            # Where it is still being resolved it may have come again, too; but what went back was before that.
            behind = self.scheduler.withdraw_group(job)
            if job.settlement is Settlement.LEFT and not self.closing and job.source.attempts.is_last(job):
                self._halt_behind_left(job, behind)
                return
            halt = self._halts.get(job.group)
            if job.rejecting and not self.closing and halt is not None:
                halt.take(behind)
                behind = []
            else:
                if halt is not None:  # one behind it was rejected meanwhile
                    behind, halt.jobs = [*behind, *halt.jobs], []
                for other in behind:
                    self.return_behind(other)
            self.actions.append(ReturnGroup(job.group, job.message.id, bool(behind)))

    def _halt_behind_left(self, job: Job, behind: list[Job]) -> None:
        """Let what is behind a message wait that may be acknowledged by hand, and is given out no more after that."""
        group = job.group or ""
        halt = self._halts.setdefault(group, Halt())
        halt.until, halt.left = job.deadline, job
        halt.take(behind)
        self.actions.append(GoOnAt(group, job.deadline))

    def settled_by_hand(self, job: Job, now: float) -> bool:
        """Note that a handler's own call has settled a message. Returns whether something waited for that."""
        halt = self._halts.get(job.group) if job.group is not None else None
        if halt is None or halt.left is not job:
            return False
        halt.until = None
        return self._go_on_if_over(job.group or "", now)

    def _is_gone(self, job: Job) -> bool:
        """Whether SQS gives a message out no more: then what is behind it in its group overtakes nothing."""
        return job.settlement is not None and job.counted and not self.closing and job.source.attempts.is_last(job)

    def rejected(self, job: Job, now: float, *, taken: bool) -> bool:
        """Note that the dead-letter queue took a message, or did not. Returns whether something waited for that."""
        job.rejecting = False
        if job.group is None:
            return False
        halt = self._halts[job.group]
        halt.out -= 1
        if not (taken or job.source.attempts.is_last(job)):  # at its last receive SQS gives it out no more
            halt.refused.add(job.message.id)
        return self._go_on_if_over(job.group, now)

    def _go_on_if_over(self, group: str, now: float) -> bool:
        """Let a group go on unless something keeps it still. Returns whether something waited for that."""
        halt = self._halts[group]
        if not halt.is_over:
            return False
        del self._halts[group]
        scene = self.scene()
        # What was not taken goes back, and these with it; unless it is itself the first of them, come again.
        refused = halt.refused - {each.message.id for each in halt.jobs[:1]}
        if refused:
            scene.gone.add(group)
        for each in halt.jobs:
            if each.settlement is None and not each.lost:
                self.arrive(each, now, scene)
            elif each.settlement is not _ACKED:
                scene.gone.add(group)
        if group in scene.gone:
            again = refused.pop() if len(refused) == 1 else None
            self.actions.append(ReturnGroup(group, again, behind=bool(halt.jobs)))
        return bool(halt.jobs or group in scene.gone)

    def return_behind(self, job: Job) -> None:
        """Give a message back because one before it in its group was not done."""
        self._let_go(job, Settlement.RETURNED, why=_BEHIND)

    def _let_go(self, job: Job, settlement: Settlement, delay: float = 0.0, *, why: str) -> None:
        attempts = job.source.attempts
        if job.lost or job.settlement is not None or job.rejecting:
            return
        # Given back, SQS would make a dead letter of it at the next receive, without a reason.
        if attempts.is_last(job):
            self.reject(job, self.endings.at_last_receive(job, why))
        else:
            self.actions.append(GiveBack(job, settlement, delay))

    def _defer(self, job: Job, obstacle: Obstacle, now: float, *, soon: bool = False) -> bool:
        """Defer a message because of an obstacle. Returns whether that is so; otherwise it has to wait here.

        ``soon`` tells that its tenant may well be able to run: only an open is missing.
        """
        pause = self._deferral.pause(job, obstacle, now, soon=soon, full=self.is_full)
        if pause is None:
            return False
        facts = job.source.facts
        left = facts.seconds_left(job)
        if left < 1.0:
            return self._is_rejected(job, self.endings.expires(job))
        self.deferred += 1
        facts.hid()
        self.waits_for(job, obstacle)
        self.give_back(job, Settlement.DEFERRED, min(pause, left))
        return True

    def waits_for(self, job: Job, obstacle: Obstacle) -> None:
        """Note that a message is going to be away because of an obstacle: the end of that one calls it back."""
        job.away_from = obstacle
        # Before it leaves: were the obstacle over in between, the message would sleep its whole pause.
        self.away.stands(obstacle)

    def _is_rejected(self, job: Job, reason: str | None) -> bool:
        """Reject a message if there is a reason to. Returns whether there is."""
        if reason is not None:
            self.reject(job, reason)
        return reason is not None

    def relieve(self, now: float) -> None:
        """Defer what blocked tenants hold too much of, once there is no room for others."""
        # While a whole batch fits, what waits does no harm here, and deferring costs requests.
        if self.capacity() - self.scheduler.size >= self._polling.batch:
            return
        # A look goes through every tenant that is blocked. With thousands of them, one for each receive and each open
        # would take all of a CPU.
        if now < self._relieve_after:
            self.actions.append(RelieveAt(self._relieve_after))
            return
        self._relieve_after = now + PATIENCE
        for job, obstacle, delay in self._deferral.shed(now):
            self.deferred += 1
            job.source.facts.hid()
            if obstacle is not None:
                self.waits_for(job, obstacle)
            self.give_back(job, Settlement.DEFERRED, delay)

    # -- in passing, and at the end -----------------------------------------------------------------------------

    def sweep(self, now: float, waiting: list[Job] | None = None) -> tuple[list[Job], list[Job]]:
        """Reject what waits here and would be deleted, or be lost at its last receive, before it can run.

        Returns messages of which that is true, and which wait with resources in hand: once they let go, they are
        rejected when they are put back. And what is still to be looked at, by another call, as its ``waiting``: with
        thousands of messages one look at all would block the event loop for a tenth of a second.
        """
        idle: list[Job] = []
        if waiting is None:
            # In passing, since it takes time in proportion to what is away.
            self.away.tidy(now)
            self.availability.tidy(now, self._has_messages)
            waiting = self.scheduler.waiting_tickets()
        for job in waiting[:AT_ONCE]:
            if job.state is not State.WAITING:
                continue
            job.source.facts.keep_up(now)
            reason = self.endings.waited(job, now)
            if reason is None:
                continue
            if job.task is not None:
                idle.append(job)
            else:
                self.reject(job, reason)
                self.give_group_back(job)
                self.finish(job, now)
        rest = waiting[AT_ONCE:]
        for group, halt in () if rest else list(self._halts.items()):
            # At once: the next sweep finds it in its lane.
            if halt.until is not None and any(self.endings.has_no_time(job, now) for job in halt.jobs):
                halt.until = None
                self._go_on_if_over(group, now)
            elif halt.out:
                self._reject_halted(halt, now)
        return idle, rest

    def _reject_halted(self, halt: Halt, now: float) -> None:
        """Reject what waits behind a dead letter and has no time to: that is not taken, or not confirmed."""
        for job in tuple(halt.jobs):
            job.source.facts.keep_up(now)
            waits = job.settlement is None and not job.lost
            if waits and self._is_rejected(job, self.endings.waited(job, now, _AHEAD)):
                halt.jobs.remove(job)
                job.state = State.DONE

    def _has_messages(self, tenant: Hashable) -> bool:
        """Whether messages of a tenant are here, or away because it cannot run."""
        figures = self.scheduler.figures(tenant)
        here = figures.waiting or figures.running or figures.suspended
        return bool(here) or self.away.keeps(Obstacle(ObstacleKind.TENANT, tenant))

    def close(self) -> None:
        """Give back what has not started, except for messages that one more receive would make dead letters of."""
        self.closing = True
        # The exceptions are started during the drain: a receive that SQS has counted cannot be
        # given back.
        for job in self.scheduler.withdraw_waiting(_is_short):
            self._return(job)
        self._return_halted()
        self.wake_some()

    def abandon(self) -> None:
        """Give back what is left: there is no time to start it."""
        self.draining = False
        for job in self.scheduler.withdraw_waiting():
            self._return(job)
        self._return_halted()

    def _return_halted(self) -> None:
        for group, halt in list(self._halts.items()):
            kept = list(takewhile(self.keeps, halt.jobs))
            going = halt.jobs[len(kept) :]
            halt.jobs = kept
            halt.until = None
            if halt.first in going:
                self._returned.add(group)
                self.actions.append(GiveBack(halt.first, Settlement.RETRIED, halt.backoff))
                going.remove(halt.first)
            for job in going:
                self.return_late(job)
            self._go_on_if_over(group, 0.0)  # what is kept is started, at no time of its own

    def _return(self, job: Job) -> None:
        if job.group is not None:
            self._returned.add(job.group)
        if job.task is None:
            self.give_back(job, Settlement.RETURNED)


_SPENT: Final = frozenset({Settlement.DEFERRED, Settlement.RETURNED})
_WHY: Final[dict[Settlement, str]] = {
    Settlement.RETURNED: "the consumer stopped",
    Settlement.DEFERRED: "its tenant could not run",
}
_BEHIND: Final = "not tried: a message before it in its group was not done"
_AHEAD: Final = "a message before it in its group was still on its way to the dead-letter queue"


def failure_named(error: BaseException) -> str:
    """Return an error's type, with its text where that is for the log: others may quote what is secret."""
    if isinstance(error, Retry | RejectError):
        return in_words(error)
    name = type(error).__name__
    return f"{name}: {in_words(error)}" if isinstance(error, PostroomError) else name


def _attempt_of(job: Job) -> int:
    return job.attempt


def _is_probe(job: Job) -> bool:
    return job.probe


def _is_short(job: Job) -> bool:
    return job.source.attempts.is_short_of(job)
