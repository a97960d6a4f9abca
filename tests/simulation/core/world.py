"""A consumer without asyncio: the core, and around it what its engine, pipeline, settler and pollers do.

One heap of events in virtual time; the seed decides how long everything takes and what goes wrong. The steps are those
of ``consumer/engine.py``, ``pipeline.py``, ``intake.py`` and ``lifecycle.py``, with the asyncio taken out.
"""

import zlib
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from heapq import heappop, heappush
from random import Random
from typing import Any, Final, cast

from postroom.consumer.actions import GiveBack, GoOnAt, Reject, RelieveAt, ReturnGroup
from postroom.consumer.availability import Availability, PoolView
from postroom.consumer.core import Core, Scene
from postroom.consumer.crowd import Crowd
from postroom.consumer.deferral import PATIENCE
from postroom.consumer.demand import AdaptivePolicy, Answer, Ask, Pause
from postroom.consumer.facts import QueueFacts
from postroom.consumer.job import Cancellation, Job
from postroom.consumer.scouting import Scouting
from postroom.consumer.settings import Settings
from postroom.consumer.source import Source
from postroom.consumer.tenants import Tenants
from postroom.errors import ContextError, ResourceOpenError
from postroom.message import Message
from postroom.options import MAX_BATCH, Concurrency, Shutdown, Visibility
from postroom.scheduling import Scheduler, State
from postroom.transports.protocol import Queue
from postroom.types import UNRESOLVED, AckMode, OnInvalid, Settlement
from simulation.core.outside import HIDDEN, Letter, ModelFacts, ModelPool, ModelQueue, Violation
from simulation.core.plan import Plan

_SWEEP: Final = 15.0
_LATER: Final = 30.0
_SLOW: Final = 0.25
_SETTLED: Final = 0.02
MOST_EVENTS: Final = 60_000
"""More events than any schedule needs: beyond them something turns in circles."""


class DatabaseDown(Exception):
    """A handler's failure that is its database's."""


class Turn:
    """A job that has its resources waits for a slot."""

    __slots__ = ("_done", "_tell")

    def __init__(self, tell: Callable[[bool], None]) -> None:
        self._tell = tell
        self._done = False

    def done(self) -> bool:
        """Whether it has its answer."""
        return self._done

    def set_result(self, value: bool) -> None:
        """Let it go on, or go back."""
        self._done = True
        self._tell(value)


class Task:
    """What works on a job."""

    __slots__ = ("_done", "cancelling", "job", "stage", "world")

    def __init__(self, world: "World", job: Job) -> None:
        self.world = world
        self.job = job
        self.stage = "new"
        self._done = False
        self.cancelling = False

    def done(self) -> bool:
        """Whether it has ended."""
        return self._done

    def cancel(self, _reason: str = "") -> None:
        """Cancel it, in the next turn."""
        self.cancelling = True
        self.world.soon(self.world.was_cancelled, self)

    def end(self) -> None:
        """End it."""
        self._done = True


class WatchedPolicy(AdaptivePolicy):
    """The default policy; it writes down what it is told of arrivals."""

    arrivals: deque[tuple[float, Hashable, bool]]

    def is_surplus(self, job: Job, standing: tuple[bool, bool], *, crowded: bool, now: float) -> bool:
        """Note whether the message found its tenant's share used up."""
        self.arrivals.append((now, job.tenant, any(standing)))
        return super().is_surplus(job, standing, crowded=crowded, now=now)


class Process:
    """One consumer, from its start to its stop."""

    def __init__(self, world: "World") -> None:
        plan, rng = world.plan, world.rng
        self.facts = ModelFacts(world.queue, known=plan.known)
        settings: Settings[Any, Any] = Settings(
            queue="q",
            resolver=lambda message: message,
            resources=None,
            cleanup=None,
            payload=None,
            unwrap=None,
            invalid=OnInvalid.FAIL,
            ack=plan.ack,
            concurrency=Concurrency(),
            polling=plan.polling,
            visibility=Visibility(),
            retry=plan.retry,
            shutdown=Shutdown(),
            faults=plan.faults,
            on_error=None,
            middleware=(),
            observers=cast("Any", ()),
            client=None,
        )
        self.source = Source(settings, cast("Queue", world.queue), cast("QueueFacts", self.facts))
        self.scheduler: Scheduler[Job] = Scheduler(
            total=plan.total, per_tenant=plan.per_tenant, caps=plan.caps, reserved=plan.reserved
        )
        scout = plan.polling.scout
        crowd = Crowd()
        self.scouting = Scouting(crowd, world.now, when=scout)
        self.policy = WatchedPolicy(plan.polling, self.scouting, crowd)
        self.policy.arrivals = self.arrivals = deque[tuple[float, Hashable, bool]]()
        pool = cast("PoolView", world.pool) if plan.with_pool else None
        self.availability = Availability(pool, Random(rng.random()))
        self.core = Core(
            self.scheduler,
            self.availability,
            world.tenants,
            self.policy,
            polling=plan.polling,
            rng=Random(rng.random()),
        )


class World:
    """Runs one core, and watches it."""

    def __init__(self, plan: Plan, rng: Random) -> None:
        self.plan = plan
        self.rng = rng
        self.hanging: Hashable = None
        """The tenant with handlers that hang for ``hang`` seconds."""
        self.hang = 0.0
        self.now = 0.0
        self.counts: Counter[str] = Counter()
        self._noted: list[tuple[float, str, object]] = []
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self.processed = 0
        self.queue = ModelQueue(fifo=plan.fifo, most=plan.most, retention=plan.retention)
        self.queue.on_end = self.letter_ended
        hosts = {tenant: tenant % plan.hosts if plan.hosts else None for tenant in range(plan.tenants)}
        self.pool = ModelPool(rng, hosts, lambda: self.now)
        self.tenants = Tenants()
        self.total, self.per_tenant = plan.total, plan.per_tenant
        self.broken: dict[int, float] = {}
        """Tenants with handlers that all fail, and until when."""
        self.settling_fails_until = 0.0
        self.rejecting_fails = False
        self.policy_known_at = 0.0
        self.generation = 0
        self.healed = False
        self.healed_at = 0.0
        self.last: dict[Hashable, bool] = {}
        """Whether a tenant's last run was a success, once everything works again."""
        self.start()

    def start(self) -> None:
        """Start a consumer."""
        self.generation += 1
        for letter in self.queue.open.values():
            letter.recent = 0
            # What a former process spent, this one does not know of.
            letter.excused = max(letter.excused, letter.receives - letter.attempts)
        self.process = process = Process(self)
        self.core, self.scheduler, self.source = process.core, process.scheduler, process.source
        self.facts = process.facts
        self.facts.now = self.now
        self.jobs: dict[Job, None] = {}
        self.held: dict[str, Job] = {}
        self.failed_in_stop: set[str] = set()
        """Ids of messages that failed in an earlier receive during a stop: what was kept for an attempt needs none."""
        self.rejecting: dict[Job, None] = {}
        self.resolving: dict[Hashable, deque[Job]] = {}
        self.alive: dict[Job, None] = {}
        """Jobs that were handed to the core and have not ended, as the world sees it."""
        self.stopping = self.stopped = self.abandoned = False
        self.outstanding: dict[int, tuple[Ask, float, int]] = {}
        self.pausing: dict[int, int] = {}
        self._waking: float | None = None
        self._recalling = self._relieving = False
        self._relieve_until = 0.0
        self._acting = False
        self._examined = 0
        self._poke = False
        self.waiting_for_messages: dict[int, None] = {}
        """Pollers with receives that have found nothing so far."""
        self.arrivals = process.arrivals
        tenants: Any = self.tenants
        tenants._consumer = self
        tenants._paces.clear()
        for key in list(tenants._rules):
            tenants._carry_out(key)
        self.total, self.per_tenant = self.plan.total, self.plan.per_tenant
        for number in range(self.plan.pollers):
            self.soon(self.poll, number, self.generation)
        self.later(_SWEEP, self._sweep, self.generation)

    # -- time ---------------------------------------------------------------------------------------------------

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call something at a time."""
        self._number += 1
        heappush(self._events, (max(when, self.now), self._number, call, arguments))

    def later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call something after some seconds."""
        self._number += 1
        heappush(self._events, (self.now + seconds if seconds > 0 else self.now, self._number, call, arguments))

    def soon(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call something in the next turn."""
        self._number += 1
        heappush(self._events, (self.now, self._number, call, arguments))

    def step(self, until: float) -> bool:
        """Do the next thing that is due before a time. Returns whether there was one."""
        if not self._events or self._events[0][0] > until:
            self.now = self.facts.now = max(self.now, until)
            return False
        when, _, call, arguments = heappop(self._events)
        self.now = self.facts.now = when
        self.processed += 1
        if self.processed > MOST_EVENTS:
            raise Violation(f"wake-ups: {MOST_EVENTS} events and no end, the last one {call.__name__}")
        call(*arguments)
        return True

    def note(self, what: str, of: object = "") -> None:
        """Count an event, and write it down. What it is ``of`` must not change later."""
        self.counts[what] += 1
        self._noted.append((self.now, what, of))

    def history(self) -> Iterator[str]:
        """Yield what was written down, line by line."""
        return (f"{at:.6f} {what} {of}" for at, what, of in self._noted)

    def digest(self) -> int:
        """Return a hash of the history: it proves a replay."""
        return zlib.crc32("\n".join(self.history()).encode())

    def require(self, holds: bool, oracle: str, text: object) -> None:
        """Raise unless a promise holds."""
        if not holds:
            raise Violation(f"{oracle}: {text} (at {self.now:.3f} s)")

    def chance(self, probability: float) -> bool:
        """Return True now and then, more often in troubled schedules."""
        return self.rng.random() < probability * self.plan.trouble

    def letter(self, job: Job) -> Letter:
        """Return a job's message in the queue."""
        return self.queue.letters[int(job.message.id)]

    # -- the pollers --------------------------------------------------------------------------------------------

    def poll(self, number: int, generation: int, ticket: int = 0) -> None:
        """Ask for messages as the policy says."""
        if generation != self.generation or self.stopping or number in self.outstanding:
            return
        if ticket and self.pausing.get(number) != ticket:
            return  # woken before
        self.pausing.pop(number, None)
        policy = self.process.policy
        step = policy.next(number, self.core, self.now)
        if isinstance(step, Pause):
            self._number += 1
            self.pausing[number] = self._number
            if step.seconds is not None:
                self.later(step.seconds, self.poll, number, generation, self._number)
            return
        policy.asked(step)
        self.counts["ask"] += 1
        self.outstanding[number] = (step, self.now, generation)
        self.later(self.rng.choice([0.0, 0.005, 0.05]), self.answer, number, generation)

    def wake(self) -> None:
        """Let pollers that pause look again."""
        for number in list(self.pausing):
            del self.pausing[number]
            self.soon(self.poll, number, self.generation)

    def answer(self, number: int, generation: int) -> None:
        """Answer a receive, or let it wait for messages."""
        if generation != self.generation or number not in self.outstanding:
            return
        ask, began, _ = self.outstanding[number]
        policy = self.process.policy
        if self.chance(0.02):
            del self.outstanding[number]
            self.waiting_for_messages.pop(number, None)
            policy.failed(ask)
            self.later(0.5, self._ask_again, number, generation)
            return
        deadline = began + self.plan.polling.wait
        messages = self.queue.receive(ask.limit, self.now)
        if not messages and self.now < deadline and not self.stopping:
            self.waiting_for_messages[number] = None
            self.at(min(deadline, self.queue.next_visible(self.now)), self.answer, number, generation)
            return
        del self.outstanding[number]
        self.waiting_for_messages.pop(number, None)
        runnable = self.admit(messages) if messages else 0
        policy.answered(Answer(ask, len(messages), runnable, self.now - began), self.now)
        if not ask.scouting or policy.wants_company():
            self.wake()
        self.soon(self.poll, number, generation)

    def _ask_again(self, number: int, generation: int) -> None:
        if generation == self.generation:
            self.wake()
            self.poll(number, generation)

    def poke(self) -> None:
        """Let receives that wait look at the queue again."""
        if self.outstanding and not self._poke:
            self._poke = True
            self.soon(self._poked, self.generation)

    def _poked(self, generation: int) -> None:
        if generation == self.generation:
            self._poke = False
            for number in list(self.waiting_for_messages):
                self.answer(number, generation)

    # -- the intake ---------------------------------------------------------------------------------------------

    def admit(self, messages: list[Message]) -> int:
        """Take received messages in."""
        jobs = self._take(messages)
        runnable = len(messages) - len(jobs)
        scene = self.core.scene(len(jobs))
        for job in jobs:
            letter = self.letter(job)
            self.note("received", f"{letter.number} tenant {letter.tenant} receive {letter.receives}")
            key: Hashable = letter.group if self.plan.fifo else job
            if self.plan.fifo:
                job.group = letter.group
            if not self.core.admits(job):
                self.core.return_late(job)
                self.examine()
                continue
            if key in self.resolving or (self.plan.slow_resolver and self.rng.random() < 0.5):
                self.core.resolving += 1
                line = self.resolving.setdefault(key, deque())
                line.append(job)
                if len(line) == 1:
                    self._resolve_first(key, line)
                runnable += 1
            else:
                runnable += self.enter(job, scene)
        self.dispatch()
        if self.scheduler.blocked:
            self.core.relieve(self.now)
            self.act()
        return runnable

    def _take(self, messages: list[Message]) -> list[Job]:
        jobs: list[Job] = []
        for message in messages:
            known = self.held.get(message.id)
            if known is not None:
                if known.may_be_renewed:
                    known.renew(message, received_at=self.now, visibility=HIDDEN)
                    continue
                known.lost = True
                self._drop(known)
                self._tell(known, Settlement.LOST, 0.0)
            job = self.source.of(message, received_at=self.now, visibility=HIDDEN)
            job.group = self.letter(job).group if self.plan.fifo else None
            self.held[message.id] = job
            jobs.append(job)
        self.core.held_bytes = len(self.held) * self.plan.weight
        return jobs

    def _resolve_first(self, key: Hashable, line: deque[Job]) -> None:
        job = line[0]
        seconds = self.rng.choice([0.01, 0.1, 2.0])
        if seconds > _SLOW:
            self.later(_SLOW, self._is_slow, job, key, self.generation)
        self.later(seconds, self._resolved, job, key, self.generation)

    def _is_slow(self, job: Job, key: Hashable, generation: int) -> None:
        line = self.resolving.get(key)
        if generation == self.generation and line and line[0] is job and not job.slow:
            job.slow = True
            self.core.resolving -= 1
            self.core.unresolved += 1
            self.make_room()

    def _resolved(self, job: Job, key: Hashable, generation: int) -> None:
        line = self.resolving.get(key)
        if generation != self.generation or not line or line[0] is not job:
            return
        line.popleft()
        self._no_longer_resolves(job)
        if line:
            self._resolve_first(key, line)
        else:
            del self.resolving[key]
        entered = self.enter(job)
        self.dispatch()
        if not entered or self.scheduler.blocked:
            self.make_room()

    def _no_longer_resolves(self, job: Job) -> None:
        if job.slow:
            job.slow = False
            self.core.unresolved -= 1
        else:
            self.core.resolving -= 1

    def withdraw(self, key: Hashable, *, kept: int = 0) -> None:
        """Give back what is still being resolved of a message group, from the first that is not kept on."""
        line = list(self.resolving.pop(key, ()))
        if line[:kept]:
            self.resolving[key] = deque(line[:kept])
        for job in line[kept:]:
            self._no_longer_resolves(job)
            if self.core.closing:
                self.core.return_late(job)
            else:
                self.core.return_behind(job)
        self.act()

    def enter(self, job: Job, scene: Scene | None = None) -> bool:
        """Hand a message to the core."""
        if job.lost or job.settlement is not None:
            return False
        letter = self.letter(job)
        if letter.problem:
            job.tenant, job.problem = UNRESOLVED, ContextError("no context")
        else:
            job.tenant = job.context = letter.tenant
        self.source.resolved(job)
        parked = self.core.parked
        runnable = self.core.arrive(job, self.now, scene)
        if self.core.parked > parked:
            self.parking(job)
        self.examine()
        if job.state is not State.NEW or any(job in halt.jobs for halt in self.core._halts.values()):
            self.alive[job] = None
        return runnable

    # -- the engine ---------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Give every free slot away."""
        core, now = self.core, self.now
        while (job := core.next(now)) is not None:
            self.granted(job)
            if job.turn is not None:
                if not job.turn.done():
                    job.turn.set_result(True)
            elif job.lost:
                core.give_group_back(job)
                core.finish(job, now)
            elif job.task is None:
                self.jobs[job] = None
                job.task = cast("Any", Task(self, job))
                self.soon(self.begin, job.task)
            else:
                core.put_back(job, now)
                self.soon(self.dispatch)
                break
        if core.actions:
            self.act()
        wake = self.scheduler.next_wake()
        if wake is not None and wake > now and (self._waking is None or self._waking > wake):
            self._waking = wake
            self.at(wake, self._woken, wake, self.generation)

    def _woken(self, when: float, generation: int) -> None:
        if generation == self.generation and self._waking == when:
            self._waking = None
            if not self.stopped:
                self.dispatch()
                self.wake()

    def ended(self, job: Job) -> None:
        """Note that what worked on a message ends."""
        cast("Any", job.task).end()
        self.jobs.pop(job, None)
        job.task = None
        job.turn = None
        if job.settlement is None and not job.lost and job.state in {State.WAITING, State.NEW}:
            job.running = False
        else:
            self.core.finish(job, self.now)
        self.dispatch()
        self.make_room()

    def make_room(self) -> None:
        """Look again for more messages."""
        if (len(self.core.away) or self.core.waking) and not self.core.closing:
            self.recall_soon()
        self.wake()

    def _relieve_at(self, when: float) -> None:
        """Look at a time, or when a look is due before, and again at the last time that was asked for."""
        self._relieve_until = max(self._relieve_until, when)
        if not self._relieving:
            self._relieving = True
            self.at(when, self._relieve, self.generation)

    def _relieve(self, generation: int) -> None:
        if generation != self.generation:
            return
        self._relieving = False
        if self._relieve_until > self.now:
            self._relieve_at(self._relieve_until)
        if not self.core.closing:
            self.core.relieve(self.now)
            self.act()
            self.wake()

    def _sweep(self, generation: int) -> None:
        if generation == self.generation and not self.stopping:
            self.let_go(self.core.sweep(self.now)[0])
            self.dispatch()
            self.later(_SWEEP, self._sweep, generation)
        self.queue.expire(self.now)

    def act(self) -> None:
        """Do what the core decided."""
        if self._acting:
            return
        self._acting = True
        core = self.core
        while core.actions:
            self.examine()
            self._examined = 0
            batch, core.actions = core.actions, []
            for action in batch:
                match action:
                    case GiveBack(job, settlement, delay):
                        self.give_back(job, settlement, delay)
                    case Reject(job, reason):
                        self.note("reject", f"{job.message.id} {reason}")
                        self.rejecting[job] = None
                        self.later(0.01, self._rejected, job, self.generation)
                    case ReturnGroup(group, message_id, behind):
                        line = self.resolving.get(group)
                        again = line is not None and line[0].message.id == message_id
                        if not again or behind:
                            self.withdraw(group, kept=int(again))
                    case RelieveAt(when):
                        self._relieve_at(when)
                    case GoOnAt(group, when):
                        self.at(when, self._go_on, group, when, self.generation)
        self._acting = False

    def _go_on(self, group: str, when: float, generation: int) -> None:
        if generation == self.generation:
            self.core.go_on(group, when, self.now)
            self.dispatch()
            self.make_room()

    def examine(self) -> None:
        """Show what the core has just decided to the oracles, as long as everything is as it was then."""
        actions = self.core.actions
        for place in range(self._examined, len(actions)):
            action = actions[place]
            if isinstance(action, GiveBack):
                self.giving_back(action.job, action.settlement, action.delay)
            elif isinstance(action, Reject):
                self.rejects(action.job, action.reason)
        self._examined = len(actions)

    def _rejected(self, job: Job, generation: int) -> None:
        if generation != self.generation:
            return
        self.rejecting.pop(job, None)
        if not (taken := self.reject(job)):
            if job.settlement is None and not job.lost:
                letter = self.letter(job)
                letter.excused = max(letter.excused, letter.receives)  # the reason could not be sent
            self.not_taken(job)
            self.give_back(job, Settlement.RETURNED, _LATER)
        if self.core.rejected(job, self.now, taken=taken):
            self.act()
            self.dispatch()

    def reject(self, job: Job) -> bool:
        """Send a message to the dead-letter queue, and delete it. Returns whether that was possible."""
        if self.queue.most is None or self.rejecting_fails:
            return False
        letter = self.letter(job)
        if not job.lost and job.settlement is None:
            job.settlement = Settlement.REJECTED
            self.queue.end(letter, "rejected")
            self._drop(job)
            self._tell(job, Settlement.REJECTED, 0.0)
        elif letter.fate is None:
            self.queue.end(letter, "rejected")  # its copy is in the dead-letter queue
        return True

    # -- the settler --------------------------------------------------------------------------------------------

    def give_back(self, job: Job, settlement: Settlement, delay: float) -> None:
        """Make a message visible again, in a while."""
        if job.settlement is None and not job.lost:
            job.settlement = settlement
            self.note(settlement.value, f"{job.message.id} {delay:.3f}")
            self.later(self.rng.choice([0.0, 0.01, 0.1]), self._send_back, job, delay, self.now)

    def _send_back(self, job: Job, delay: float, decided_at: float) -> None:
        settlement = job.settlement
        if job.lost or job.told or settlement is None:
            return
        letter = self.letter(job)
        if self.now < self.settling_fails_until:
            if self.now < decided_at + HIDDEN and not self.stopped:
                self.later(5.0, self._send_back, job, delay, decided_at)
                return
            self._let_go(job, letter, decided_at)
            return
        self.queue.show(job.receipt_handle, self.now + delay, decided_at)
        if settlement is Settlement.RETURNED and self.core.closing:
            letter.excused += 1
        self._drop(job)
        self._tell(job, settlement, delay)
        self.poke()

    def ack(self, job: Job) -> None:
        """Delete a message, in a while."""
        if job.settlement is None and not job.lost:
            job.settlement = Settlement.ACKED
            self.later(self.rng.choice([0.0, 0.05]), self._delete, job, self.now + HIDDEN)

    def _delete(self, job: Job, until: float) -> None:
        if job.lost or job.told:
            return
        letter = self.letter(job)
        if self.now < self.settling_fails_until:
            if self.now < until and not self.stopped:
                self.later(5.0, self._delete, job, until)
                return
            self._let_go(job, letter, until - HIDDEN)
            return
        if self.queue.of(job.receipt_handle) is letter:
            self.queue.end(letter, "acked")
        self._drop(job)
        self._tell(job, Settlement.ACKED, 0.0)
        self.poke()

    def _let_go(self, job: Job, letter: Letter, decided_at: float) -> None:
        """Give a decision up: the message comes back after its visibility timeout."""
        letter.excused += 1
        job.settlement = Settlement.LEFT
        self.queue.show(job.receipt_handle, self.now + HIDDEN, decided_at)
        self._drop(job)
        self._tell(job, Settlement.LEFT, 0.0)

    def _drop(self, job: Job) -> None:
        if self.held.get(job.message.id) is job:
            del self.held[job.message.id]

    def _tell(self, job: Job, settlement: Settlement, delay: float) -> None:
        if not job.told:
            job.told = True
            was_full = self.core.is_full
            self.core.settled(job, settlement, delay, self.now)
            self.core.held_bytes = len(self.held) * self.plan.weight
            if was_full and not self.core.is_full:
                self.wake()
            if settlement is Settlement.DEFERRED and not self.core.closing:
                self.recall_soon()

    def lose(self, job: Job) -> None:
        """Lose a message: its visibility timeout passed."""
        if job.lost or job.told:
            return
        letter = self.letter(job)
        self.note("lost", letter.number)
        last = self.queue.most is not None and letter.receives >= self.queue.most
        letter.excused = max(letter.excused + 1, letter.receives if last else 0)
        job.lost = True
        self.queue.show(job.receipt_handle, self.now, self.now)
        if job.task is not None:
            job.cancel(Cancellation.LOST)
        self.core.lost(job, self.now)
        self.act()
        self._drop(job)
        self._tell(job, Settlement.LOST, 0.0)
        self.dispatch()
        self.make_room()
        self.poke()

    # -- the pipeline -------------------------------------------------------------------------------------------

    def begin(self, task: Task) -> None:
        """Begin to handle a message that has a slot."""
        job = task.job
        job.running = True
        if job.problem is not None:
            self.blame(task, job.problem)
            return
        if self._is_quarantined(task):
            return
        pool = self.pool
        if not self.plan.with_pool or pool.tenants[job.context].open:
            if job.leads:
                self.core.leased(job)
            self.handle(task)
            return
        task.stage = "opening"
        self.core.suspend(job, self.now)
        self._relieve_at(self.now + PATIENCE)
        self.dispatch()
        refusal = pool.refusal(job.context)
        if refusal is not None:
            self.soon(self._refused, task, refusal)
            return
        access = pool.tenants[job.context]
        access.waiters.append(task)
        if not access.opening:
            pool.begin(job.context)
            self.later(self.rng.choice([0.01, 0.3, 4.0]), self._opened, job.context)

    def _opened(self, tenant: int) -> None:
        access = self.pool.tenants[tenant]
        error = self.pool.opened(tenant)
        waiters, access.waiters = access.waiters, []
        self.note("opened" if error is None else "not opened", tenant)
        if error is None and not self.stopped:
            self.available(tenant, access.host)
        for task in waiters:
            if task.world is self and task.stage == "opening":
                self.soon(self._leased if error is None else self._refused, task, error)

    def available(self, tenant: Hashable, host: Hashable | None = None) -> None:
        """Let those go on that waited for a tenant's resources, or for its host."""
        others = self.core.recovered(tenant, host, self.now)
        if others:
            self.core.wake_some()
        self.dispatch()
        if others:
            self.recall_soon()

    def _refused(self, task: Task, error: Exception) -> None:
        job = task.job
        if task.done() or task.stage != "opening" or job not in self.jobs:
            return
        self.wait(task, error)

    def wait(self, task: Task, error: Exception) -> None:
        """Let a message wait that could not have its tenant's resources."""
        job = task.job
        if job.settlement is None and not job.lost:
            self.note("refused", job.message.id)
            self.last[self.letter(job).tenant] = False
            self.let_go(self.core.refused(job, error, self.now))
        else:
            self.core.give_group_back(job)
        self.act()
        self.ended(job)

    def _leased(self, task: Task, _error: None) -> None:
        job = task.job
        if task.done() or task.stage != "opening" or job not in self.jobs:
            return
        self.available(job.tenant)
        if self.tenants.is_paused(job.tenant):
            self.not_now(task)
            return
        job.lease = cast("Any", self.pool)
        if self.core.has_to_wait(job, self.now):
            job.lease = None
            self.not_now(task)
            return
        task.stage = "turn"
        job.turn = cast("Any", Turn(lambda value: self.soon(self._turned, task, value)))
        self.core.resume(job)
        self.dispatch()

    def _turned(self, task: Task, value: bool) -> None:
        job = task.job
        if task.done() or task.stage != "turn":
            return
        job.turn = None
        if not value:
            job.lease = None
            self.not_now(task)
        elif self._is_quarantined(task):
            job.lease = None
        else:
            self.handle(task)

    def not_now(self, task: Task) -> None:
        """Put a message back that cannot run after all."""
        self.core.put_back(task.job, self.now)
        self.act()
        self.ended(task.job)

    def handle(self, task: Task) -> None:
        """Call the handler."""
        job = task.job
        if job.lost or job.settlement is not None:
            job.lease = None
            self.core.give_group_back(job)
            self.act()
            self.ended(job)
            return
        if self.core.closing and not self.source.attempts.is_short_of(job):
            job.lease = None
            self.not_now(task)
            return
        task.stage = "handling"
        job.started = True
        self.handler_starts(job)
        seconds = self.plan.duration * self.rng.uniform(0.5, 1.5)
        if self.chance(0.05):
            seconds = 30.0
        if job.tenant == self.hanging:
            seconds = self.hang
        self.later(seconds, self._handled, task)

    def _handled(self, task: Task) -> None:
        job = task.job
        if task.done() or task.stage != "handling":
            return
        job.lease = None
        letter = self.letter(job)
        letter_runs = letter.attempts + 1
        broken = self.now < self.broken.get(letter.tenant, 0.0)
        if broken and self.chance(0.2) and self.plan.with_pool:
            self.pool.close(letter.tenant)
            self.wait(task, DatabaseDown("too many connections"))
        elif broken or letter_runs < letter.succeeds_at:
            self.blame(task, ValueError("no"))
        else:
            self.note("handled", letter.number)
            letter.done = True
            self.last[letter.tenant] = self.healed and job.since >= self.healed_at
            self.core.succeeded(job, self.now)
            self.process.scouting.handled()
            if job.settlement is None and not job.lost:
                self.ack(job)
            else:
                self.core.give_group_back(job)
                self.act()
            self.ended(job)

    def blame(self, task: Task, error: Exception) -> None:
        """Count a failed attempt, and do what the retry policy says."""
        job, core, source = task.job, self.core, self.source
        letter = self.letter(job)
        letter.attempts += 1
        letter.recent += 1
        self.note("failed", f"{letter.number} attempt {letter.attempts}")
        self.last[letter.tenant] = False
        source.attempts.failed(job)
        if core.closing:
            self.failed_in_stop.add(job.message.id)
        if job.started and not core.closing:
            self.let_go(core.failed(job, error, self.now))
            poison = source.attempts.poison(job, self.plan.faults) if self.plan.ack is AckMode.ON_SUCCESS else None
            if poison is not None:
                self.obey_reject(task, error)
                return
        self.settle_failure(task, error)

    def settle_failure(self, task: Task, error: Exception) -> None:
        """Do what the acknowledgement mode says of a failure."""
        job = task.job
        if self.plan.ack is AckMode.ALWAYS:
            letter = self.letter(job)
            letter.done = True
            self.ack(job)
            self.ended(job)
        else:
            self.retry(task, error)

    def retry(self, task: Task, error: Exception) -> None:
        """Make a message visible again after a failure."""
        job = task.job
        policy = self.plan.retry
        number = job.attempt if job.started or job.counted else job.receives
        delay = min(policy.cap, policy.base * 2.0 ** min(number - 1, 30)) * self.rng.uniform(0.5, 1.0)
        if self.plan.with_pool and any(self.pool.troubles) and job.problem is None:
            delay = max(delay, self.pool.retry_after(job.context))
        if job.settlement is None and not job.lost:
            behind = [each for each in self.scheduler.behind_of(job) if each.settlement is None and not each.lost]
            self.core.retry(job, error, delay, self.now, tried=not isinstance(error, ResourceOpenError))
            given_back = [action.job for action in self.core.actions if isinstance(action, GiveBack)]
            self.failed(job, delay, [each for each in behind if each in given_back])
        else:
            self.core.give_group_back(job)
        self.act()
        self.ended(job)

    def _is_quarantined(self, task: Task) -> bool:
        if not self.tenants.ruled or self.tenants.quarantined_because(task.job.tenant) is None:
            return False
        self.obey_reject(task, ValueError("quarantine"))
        return True

    def obey_reject(self, task: Task, error: Exception) -> None:
        """Make a message a dead letter; without a dead-letter queue it has failed."""
        task.stage = "rejecting"
        self.later(0.01, self._obeyed, task, error)

    def _obeyed(self, task: Task, error: Exception) -> None:
        job = task.job
        if task.done() or task.stage != "rejecting":
            return
        if (self.facts.redrive is not None or not self.facts.known) and self.reject(job):
            self.core.give_group_back(job)
            self.act()
            self.ended(job)
        else:
            if job.settlement is None and not job.lost and not job.started:
                self.letter(job).excused += 1  # a receive that went on a quarantine
            self.retry(task, error)

    def was_cancelled(self, task: Task) -> None:
        """Give a message back that was interrupted."""
        job = task.job
        if task.done() or job not in self.jobs:
            return
        if task.stage == "handling" and not self.abandoned and self.rng.random() < 0.2:
            return  # it swallows its cancellation
        job.lease = None
        task.stage = "cancelled"
        if job.settlement is None and not job.lost:
            self.letter(job).excused += job.started
            self.core.give_back(job, Settlement.RETURNED)
        else:
            self.core.give_group_back(job)
        self.act()
        self.ended(job)

    # -- decisions ----------------------------------------------------------------------------------------------

    def decided(self, tenant: Hashable, *, paused: bool) -> None:
        """Carry out what was decided about a tenant."""
        self.let_go(self.core.decided(tenant, paused=paused))
        self.dispatch()
        self.make_room()

    def let_go(self, jobs: list[Job]) -> None:
        """Let messages wait without the resources that they have in hand."""
        for job in jobs:
            if job.turn is not None and not job.turn.done():
                job.turn.set_result(False)

    def unavailable(self, tenant: Hashable) -> None:
        """Nothing asks for it here."""

    def is_sent_away(self, job: Job) -> bool:
        """Whether a message goes to another queue."""
        return self.core.obstacles.is_sent_away(job)

    def decide(self, tenant: int, name: str, **arguments: Any) -> None:
        """Pause, resume, limit or quarantine a tenant."""
        self.note(name, tenant)
        getattr(self.tenants, name)(tenant, **arguments)
        cast("Any", self.tenants)._carry_out(tenant)

    def adjust(self, total: int, per_tenant: int) -> None:
        """Change how much runs at once."""
        self.total, self.per_tenant = total, per_tenant
        self.scheduler.adjust(total=total, per_tenant=per_tenant, caps=self.plan.caps, reserved=self.plan.reserved)
        self.dispatch()
        self.wake()

    # -- calling back -------------------------------------------------------------------------------------------

    def recall_soon(self) -> None:
        """Call messages back in the next turn."""
        if not self._recalling:
            self._recalling = True
            self.soon(self._recall_if_dry, self.generation)

    def _recall_if_dry(self, generation: int) -> None:
        if generation != self.generation:
            return
        self._recalling = False
        core = self.core
        if core.closing:
            return
        if core.waking:
            core.wake_some()
            self.dispatch()
        if self.scheduler.ready >= MAX_BATCH or not core.away.recallable(self.now):
            return
        room = core.room_for_recalls()
        if room > 0:
            self.recall(room)
        self._recalling = True
        self.later(max(_SETTLED, self.process.policy.round_trip), self._recall_if_dry, generation)

    def recall(self, count: int) -> None:
        """Make messages visible again that were parked or deferred."""
        for messages in self.core.away.take(count, self.now).values():
            for absent in messages:
                self.note("recalled", absent.receipt_handle)
                if not self.chance(0.05):
                    self.queue.show(absent.receipt_handle, self.now)
        self.poke()

    # -- stopping -----------------------------------------------------------------------------------------------

    def stop(self, drain: float) -> None:
        """Begin to stop: what has not started goes back; the rest has some seconds."""
        self.note("stop")
        self.stopping = True
        self.core.close()
        self.act()
        self._waking = None
        for job in list(self.jobs):
            if not job.started and not self.source.attempts.is_short_of(job):
                job.cancel(Cancellation.STOPPING)
        for key in list(self.resolving):
            self.withdraw(key)
        self.dispatch()
        self.poke()
        self.later(drain, self._abandon)

    def _abandon(self) -> None:
        self.abandoned = True
        self.core.abandon()
        self.act()
        for job in list(self.jobs):
            job.cancel(Cancellation.STOPPING)

    def close(self) -> None:
        """End the stop: what is still held is left to its visibility timeout."""
        self.core.away.all_over()
        self.recall(len(self.core.away))
        self.stopped = True
        for job in list(self.held.values()):
            letter = self.letter(job)
            if job.settlement in {None, Settlement.ACKED} or self.now < self.settling_fails_until:
                self._let_go(job, letter, self.now)

    # -- where the oracles watch --------------------------------------------------------------------------------

    def parking(self, job: Job) -> None:
        """See a message being parked."""

    def giving_back(self, job: Job, settlement: Settlement, delay: float) -> None:
        """See the core give a message back."""

    def rejects(self, job: Job, reason: str) -> None:
        """See the core reject a message."""

    def not_taken(self, job: Job) -> None:
        """See the dead-letter queue not take a message."""

    def failed(self, job: Job, delay: float, taken_along: list[Job]) -> None:
        """See a failed message be tried again after a delay, and what goes back behind it."""

    def granted(self, job: Job) -> None:
        """See a message get a slot."""

    def handler_starts(self, job: Job) -> None:
        """See a handler being called."""

    def letter_ended(self, letter: Letter) -> None:
        """See a message leave the queue."""
