"""The acting half of a consumer: it starts what the core lets run, and carries out what the core decides."""

import asyncio
import math
from collections.abc import Callable, Collection, Coroutine, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol

from postroom.consumer.actions import GiveBack, GoOnAt, Reject, RelieveAt, ReturnGroup
from postroom.consumer.core import Core
from postroom.consumer.deferral import PATIENCE
from postroom.consumer.demand import ReceivePolicy
from postroom.consumer.hanging import Hanging
from postroom.consumer.job import Cancellation, Job
from postroom.consumer.recalls import Recalls
from postroom.consumer.rejections import Rejections
from postroom.consumer.standstill import Standstill
from postroom.consumer.step_health import StepHealth, is_tried_again
from postroom.errors import QueueNotFound
from postroom.events import Event, ResourceOpened
from postroom.message import Message
from postroom.options import MAX_BATCH
from postroom.scheduling import Scheduler, State
from postroom.settlement import DeadLetters, Ending
from postroom.tasks import Tasks, has_to_leave
from postroom.transports.protocol import Queue
from postroom.types import Settlement

# Looked up for every message: on Python 3.11 the member of an enum costs as much as a call.
_DEFERRED = Settlement.DEFERRED
_NEW, _WAITING = State.NEW, State.WAITING

_SWEEP: Final = 5.0
_SWEEP_PART: Final = 1 / 6
"""Seconds between two looks for messages that may reach the end of their retention period, or of their last visibility
timeout, here: the part of that timeout if it is less."""
_LATE: Final = 1.0
"""Seconds by which the answer to a long poll may be later than its wait."""
_SETTLED: Final = 0.02
"""Seconds between two rounds of calling messages back."""
_SLOW: Final = 1.0
"""Seconds for which such a round waits at most."""
_JOINED: Final = 0.02
"""Seconds after which messages that got slots at one time have joined their batches."""


class Processor(Protocol):
    """What handles a message that has a slot."""

    def process(self, job: Job) -> Coroutine[Any, Any, None]:
        """Handle one message, to its settlement, and tell the engine that it ``ended``, whatever happened."""
        ...


class Poll(Protocol):
    """What asks for messages."""

    def wake(self) -> None:
        """Look again whether there is room."""
        ...


class Groups(Protocol):
    """What still resolves messages of a message group."""

    def withdraw(self, group: str, message_id: str | None, *, behind: bool) -> None:
        """Give back, in order, what is still being resolved of a message group, except for a message itself."""
        ...


class Collector(Protocol):
    """What collects messages of a tenant before they are handled together."""

    def hand_over(self, tenant: Any) -> None:
        """Let a tenant's messages wait for others no longer."""
        ...

    def make_way(self, is_crowded: Callable[[Any], bool]) -> bool:
        """Let messages of crowded tenants wait for others no longer. Returns whether any wait still."""
        ...


class Engine:
    """Connects the core with tasks, timers and queues. Tells the settler's news to the core.

    The only place where tasks of the consumer are spawned, all of them by ``tasks``. ``visible`` is the visibility
    timeout that messages have, in seconds.
    """

    def __init__(self, core: Core, tasks: Tasks, *, visible: float = math.inf) -> None:
        self.core = core
        self.tasks = tasks
        self.jobs: dict[Job, None] = {}
        """Messages that have a task."""
        self.rejecting: set[asyncio.Task[bool]] = set()
        """Messages on their way to the dead-letter queue."""
        self.recalls: Recalls = Recalls(tasks)
        """Messages that are being made visible again."""
        self.rejections = Rejections(tasks)
        self.collector: Collector | None = None
        self.on_end: Callable[[BaseException], None]
        self._processor: Processor
        self._resolving: Groups
        self._poll: Poll
        self._policy: ReceivePolicy
        self._time = tasks.time
        self._waking: asyncio.TimerHandle | None = None
        self._recalling: asyncio.Handle | None = None
        self._sweeping: asyncio.Handle | None = None
        self._sweep_every = min(_SWEEP, visible * _SWEEP_PART)
        self._mending: set[StepHealth] = set()
        self._relieving: asyncio.TimerHandle | None = None
        self._crowding: asyncio.TimerHandle | None = None
        self._relieve_until = -math.inf
        self._going_on: dict[str, asyncio.TimerHandle] = {}
        self._acting = False
        self._standstill = Standstill(core, tasks)
        self._hanging = Hanging(core)
        self._leaving = False
        self._kept: list[GiveBack] | None = None
        self._kept_until = math.inf
        self._out_until: Callable[[Queue], float] = lambda _queue: -math.inf

    def connect(self, processor: Processor, resolving: Groups, poll: Poll, policy: ReceivePolicy) -> None:
        """Take the parts that need the engine themselves."""
        self._processor = processor
        self._resolving = resolving
        self._poll = poll
        self._policy = policy

    def end(self, error: BaseException) -> None:
        """Ask for the end of the consumer, because a handler asked for the end of the process."""
        self.on_end(error)

    @property
    def scheduler(self) -> Scheduler[Any]:
        """Where tenants have their lanes."""
        return self.core.scheduler

    # -- starting -----------------------------------------------------------------------------------------------

    def dispatch(self, now: float | None = None) -> None:
        """Give every free slot away. ``now`` is for a caller that knows the time already."""
        # Locals: this loop runs for every message.
        core, scheduler = self.core, self.core.scheduler
        if now is None:
            now = self._time()
        # The core is not asked where nothing waits, and no lane has to wake.
        while core.seated or ((scheduler.waiting or scheduler.beds) and scheduler.running < scheduler.total):
            if (job := core.next(now)) is None:
                break
            if job.turn is not None:
                # A withdrawal may have come in the same turn of the loop, and answered first.
                if not job.turn.done():
                    job.turn.set_result(True)
            # It was lost while it waited: no task is needed to find that out.
            elif job.lost:
                core.give_group_back(job)
                core.finish(job, now)
                self.tasks.call_soon(self.make_room)
            elif job.task is None:
                self.jobs[job] = None
                name = f"postroom-message-{job.message.id}"
                # Not watched: `ended` tells of defects, and a done callback for every message
                # costs.
                task = self.tasks.start(self._processor.process(job), name)
                # Where a task factory starts it eagerly, it may be over, and the message wait in its lane again.
                job.task = None if task.done() else task
            else:  # its former task ends in this very turn of the loop
                core.put_back(job, now)
                self.tasks.call_soon(self.dispatch)
                break
        if core.actions:
            self.act()
        if self.collector is not None:
            self._look_for_crowds()
        # One that is due waits for a slot: the end of a message dispatches again.
        if scheduler.beds and (wake := scheduler.next_wake()) is not None and wake > now:
            self._dispatch_at(wake)

    def _look_for_crowds(self) -> None:
        """Look a little later whether messages that wait for others of their batch take slots that others need."""
        if self._crowding is None and self.core.scheduler.ready > 0:
            self._crowding = self.tasks.call_later(_JOINED, self._make_way)

    def _make_way(self) -> None:
        self._crowding = None
        if self.collector is not None and self.collector.make_way(self._is_crowded):
            self._look_for_crowds()

    def _is_crowded(self, tenant: Any) -> bool:
        """Whether a tenant can have no further slot although its messages wait for one, or others need those it has."""
        scheduler = self.core.scheduler
        if scheduler.running >= scheduler.total and scheduler.ready > 0:
            return True
        return scheduler.figures(tenant).waiting > 0 and not scheduler.is_blocked(tenant)

    def is_ending(self) -> bool:
        """Whether the consumer stops, or all tasks are cancelled, as by ``asyncio.run`` at its end."""
        own = {job.task for job in self.jobs}
        return self.core.closing or any(task.cancelling() and task not in own for task in self.tasks)

    def ended(self, job: Job, defect: BaseException | None = None) -> None:
        """Note that the task of a message ends. The message stays if it was put back in its lane.

        ``defect`` is the error that leaves the task, if one does: it ends the consumer.
        """
        task = job.task
        core, scheduler = self.core, self.core.scheduler
        try:
            now = self._time()
            self.jobs.pop(job, None)
            if task is not None:
                self.tasks.ended(task)
            job.task = None  # it holds the context, which holds the job: such a circle would wait for the collector
            if job.turn is not None:
                job.turn = None
            # It waits in its lane again, or backs off with its group: the message is not over, only its task is.
            if job.settlement is None and not job.lost and (job.state is _WAITING or job.state is _NEW):
                job.running = False
            else:
                core.finish(job, now)
            if scheduler.waiting or scheduler.beds or core.actions or self.collector is not None:
                self.dispatch(now)
            self.make_room()
        except BaseException as error:
            defect = error
            raise
        finally:
            if defect is not None and not isinstance(defect, GeneratorExit):  # with that the loop is gone
                task = task or asyncio.current_task()  # a task factory that is eager has not returned it yet
                if task is not None:
                    self.tasks.watch(task)

    def take_back(self) -> None:
        """Give back the messages of tasks that others cancelled before their first step: they never reached their end.

        Code that cancels every task of the loop, as shutdowns do, may hit a task in the turn in which it was made.
        """
        for job in [job for job in self.jobs if job.task is not None and job.task.done()]:
            self.core.give_back(job, Settlement.RETURNED)
            self.act()
            self.ended(job)

    def make_room(self) -> None:
        """Look again for more messages: there may be room for some."""
        core = self.core
        # During a stop nothing is called back for its room: all of it is, at its beginning.
        if (core.away.known or core.waking) and not core.closing:
            self.recall_soon()
        self._poll.wake()

    def blocked(self) -> None:
        """A tenant's resources open: look a little later whether its messages are in the way of others."""
        self._relieve_at(self._time() + PATIENCE)

    def _relieve_at(self, when: float) -> None:
        """Look at a time; where a look is due before it, look then, and again at the last time that was asked for."""
        self._relieve_until = max(self._relieve_until, when)
        if self._relieving is None:
            self._relieving = self.tasks.call_at(when, self._relieve)

    def _relieve(self) -> None:
        self._relieving = None
        if self._relieve_until > self._time():
            self._relieve_at(self._relieve_until)
        if not self.core.closing:
            self.core.relieve(self._time())
            self.act()
            self._poll.wake()

    def _dispatch_at(self, when: float) -> None:
        waking = self._waking
        if waking is None or waking.when() > when or waking.cancelled():
            if waking is not None:
                waking.cancel()
            self._waking = self.tasks.call_at(when, self._woken)

    def _woken(self) -> None:
        self._waking = None
        self.dispatch()
        self._poll.wake()

    # -- carrying out -------------------------------------------------------------------------------------------

    def act(self) -> None:
        """Do what the core decided. Calls from within leave it to the outermost."""
        if self._acting:
            return
        self._acting = True
        core = self.core
        try:
            while core.actions:
                # Taken out before they are done: carrying one out may decide more.
                batch, core.actions = core.actions, []
                for action in batch:
                    match action:
                        case GiveBack(job) if self._kept is not None and job.deadline > self._kept_until:
                            self._kept.append(action)
                        case GiveBack(job, settlement, delay):
                            self.give_back(job, settlement, delay)
                        case Reject(job, reason, delay):
                            task = self.tasks.spawn(self._reject(job, reason, delay), "postroom-reject")
                            self.rejecting.add(task)
                            task.add_done_callback(partial(self._rejected, job))
                        case ReturnGroup(group, message_id, behind):
                            self._resolving.withdraw(group, message_id, behind=behind)
                        case RelieveAt(when):
                            self._relieve_at(when)
                        case GoOnAt(group, when):
                            self._go_on_at(group, when)
        finally:
            self._acting = False

    def _go_on_at(self, group: str, when: float) -> None:
        if (earlier := self._going_on.pop(group, None)) is not None:
            earlier.cancel()
        self._going_on[group] = self.tasks.call_at(when, self._go_on, group, when)

    def _go_on(self, group: str, when: float) -> None:
        del self._going_on[group]
        self.core.go_on(group, when, self._time())
        self.dispatch()
        self.make_room()

    def _rejected(self, job: Job, task: asyncio.Task[bool]) -> None:
        self.rejecting.discard(task)
        if self.core.rejected(job, self._time(), taken=not task.cancelled() and task.result()):
            self.dispatch()

    async def _reject(self, job: Job, reason: str, delay: float) -> bool:
        if not (taken := await self.reject(job, reason)):
            self.give_back(job, Settlement.RETRIED, delay)
        return taken

    def give_back(self, job: Job, settlement: Settlement, delay: float = 0.0) -> None:
        """Make a message visible again; once the consumer stops, not to its own receives that are still out."""
        job.source.settler.give_back(job, settlement, delay=self.delay_of(job, delay))

    def delay_of(self, job: Job, delay: float) -> float:
        """Return for how long a message is hidden that goes back for so many seconds."""
        return max(delay, self._hidden(job.source.queue)) if self.core.closing else delay

    def _hidden(self, queue: Queue) -> float:
        """Return the seconds until no receive of a consumer that stops can bring what is made visible."""
        return max(0.0, self._out_until(queue) + _LATE - self._time())

    def keep_returns(self, out_until: Callable[[Queue], float], seconds: float) -> None:
        """Keep what goes back, for so many seconds. A queue's receives may bring messages until ``out_until``.

        What would be visible by itself before that, or while SQS is told, goes back at once.
        """
        self._kept, self._out_until = [], out_until
        self._kept_until = self._time() + seconds + _LATE

    def let_returns_go(self) -> None:
        """Give back what was kept."""
        kept, self._kept = self._kept or [], None
        for action in kept:
            self.give_back(action.job, action.settlement, action.delay)

    async def reject(self, job: Job, reason: str) -> bool:
        """Send a message to the dead-letter queue. Returns whether that was possible; never raises."""
        taken, error = await self._send(job, reason)
        if error is not None:  # the message comes back
            self.rejections.failed(job, reason, error)
        elif taken:
            self.rejections.sent(job, reason)
        return taken

    async def divert(self, job: Job, reason: str, to: DeadLetters) -> BaseException | None:
        """Send a message where its tenant's messages go. Returns why that was not possible; never raises."""
        if not to.exists:
            return QueueNotFound(f"queue {job.source.name} has no dead-letter queue")
        # Not logged: a diversion is one decision of an operator, which is logged where it is made.
        taken, error = await self._send(job, reason, to)
        return error if taken or error is not None else QueueNotFound("there is no such queue any longer")

    async def _send(self, job: Job, reason: str, to: DeadLetters | None = None) -> tuple[bool, BaseException | None]:
        """Send a message to another queue. Returns whether it was taken, and what a transport raised, if it did."""
        task = asyncio.current_task()
        try:
            return await job.source.settler.reject(job, reason, to=to), None
        except BaseException as error:
            if has_to_leave(error, task):
                raise
            return False, error

    # -- what the settler tells ---------------------------------------------------------------------------------

    def lost(self, delivery: Job) -> None:
        """Cancel the handler of a message that is not ours any longer. Its acknowledgement is suppressed already."""
        if delivery.task is not None:
            delivery.cancel(Cancellation.LOST)
        # After the cancellation: what follows in its group is given back while its handler ends.
        self.core.lost(delivery, self._time())
        self.act()
        # It took room, and no task of its own ends: with all pollers waiting for room, none would look again.
        self.make_room()

    def settled(self, endings: Sequence[Ending]) -> None:
        """Note what became of messages."""
        core, now = self.core, self._time()
        before, deferred = core.held_bytes, False
        for ending in endings:
            job: Job = ending.delivery
            core.settled(job, ending.settlement, ending.delay, now)
            if job.beating and job.state is State.DONE:
                job.forget_body()  # an extension on its way may hang, and keep the job for as long
            deferred = deferred or ending.settlement is _DEFERRED or job.away_from is not None
        if deferred:
            if self._leaving:
                # In the next turn: it may just have come again, which takes it off the list of what is away.
                self.tasks.call_soon(self.call_all_back)
            else:
                self.recall_soon()  # its obstacle may be over by now
        core.held_bytes = endings[-1].delivery.source.tally.bytes  # of all sources together
        # Only when the bound is crossed: a wake for every settlement would cost more than the
        # receives.
        if before >= core.most_bytes > core.held_bytes:
            self._poll.wake()

    def settled_by_hand(self, job: Job) -> None:
        """Let what waited for it in its group go on behind a message that a handler's own call has settled."""
        self.rejections.settled_by_hand(job)
        if self.core.settled_by_hand(job, self._time()):
            self.dispatch()

    # -- what others tell ---------------------------------------------------------------------------------------

    def observe(self, event: Event) -> None:
        """Hear from the pool that a tenant's resources are open."""
        if isinstance(event, ResourceOpened):
            self.available(event.key, event.host, event.invited)

    def available(self, tenant: Hashable, host: Hashable | None = None, invited: Collection[Hashable] = ()) -> None:
        """Let those go on that waited for a tenant's resources, or for the host that they are on."""
        others = self.core.recovered(tenant, host, self._time(), invited)
        if others:
            self.core.wake_some()
        self.dispatch()
        if others:
            self.recall_soon()

    def decided(self, tenant: Hashable, *, paused: bool) -> None:
        """Carry out what was decided about a tenant."""
        # Its tenant's database may be moved only without a lease.
        self.let_go(self.core.decided(tenant, paused=paused))
        if self.collector is not None:
            self.collector.hand_over(tenant)
        self.dispatch()
        self.make_room()

    def let_go(self, jobs: Iterable[Job]) -> None:
        """Let messages wait without the resources that they have in hand."""
        for job in jobs:
            if job.turn is not None and not job.turn.done():
                job.turn.set_result(False)

    def is_sent_away(self, job: Job) -> bool:
        """Whether a message goes to another queue, and to no handler."""
        return self.core.obstacles.is_sent_away(job)

    def is_handling(self, tenant: Hashable, batched: Message | None) -> bool:
        """Whether the current task handles a message of a tenant, be it the first of a batch."""
        task = asyncio.current_task()
        return any((job.task is task or job.message is batched) and job.tenant == tenant for job in self.jobs)

    def retry_now(self, tenant: Hashable) -> None:
        """End a tenant's pause after failures: one of its messages tries at once."""
        self.core.availability.retry_now(tenant, self._time())
        self.core.scheduler.wake(tenant)
        self.dispatch()

    def unavailable(self, tenant: Hashable) -> tuple[str, float] | None:
        """Return why a tenant cannot run, and for how many seconds, if it cannot."""
        outage = self.core.obstacles.outage(tenant)
        return None if outage is None else (outage.cause, self._time() - outage.since)

    def troubled_tenants(self) -> list[Hashable]:
        """Return the tenants with an outage of their own, whether or not they have messages here."""
        return self.core.availability.troubled_tenants()

    def went_well(self, step: StepHealth, job: Job) -> None:
        """Call back what a step had failed for: one message while it may be by chance that it went well, then all.

        That a first attempt goes well may be such a chance: the message needs nothing of what is missing.
        """
        for each in step.levels:
            each.succeeded(job, self._time())
            if is_tried_again(job) or each not in self._mending or not each.fails:
                self._mending.add(each)
                self._call_back(each)

    def _call_back(self, step: StepHealth) -> None:
        now = self._time()
        if not step.works(now):
            self._mending.discard(step)
        elif step.fails:
            self.core.away.release(step.obstacle, 1)
        else:
            self._mending.discard(step)
            if self.core.over(step.obstacle, now):
                self.dispatch(now)
        self.recall_soon()

    # -- calling back -------------------------------------------------------------------------------------------

    def recall_soon(self) -> None:
        """Call messages back in the next turn, when others may have ended, too."""
        if self._recalling is None:
            self._recalling = self.tasks.call_soon(self._recall_if_dry)

    def _recall_if_dry(self) -> None:
        """Call messages back while slots have nothing to do."""
        self._recalling = None
        core = self.core
        now = self._time()
        if core.closing:
            return
        if core.waking:
            core.wake_some()
            self.dispatch(now)
        # While there is work, what is away is not missed; called back, it would only fill the room.
        if core.scheduler.ready >= MAX_BATCH or not core.away.recallable(now):
            return
        room = core.room_for_recalls()
        if room > 0:
            self.recall(room)
        # Not before what was called back can have arrived: until then the room looks free. But a receive that brings
        # all that it may, one message, say, may have waited for that, and counts as slow.
        seconds = min(max(_SETTLED, self._policy.round_trip), _SLOW)
        self._recalling = self.tasks.call_later(seconds, self._recall_if_dry)

    def recall(self, count: int) -> None:
        """Make messages visible again that were parked or deferred."""
        self.recalls.begin(self.core.away.take(count, self._time()), self._hidden if self.core.closing else None)

    def call_all_back(self) -> None:
        """Call back all that is away, and what is being hidden once SQS has confirmed that: the consumer stops."""
        self._leaving = True
        self.core.away.all_over()
        self.recall(len(self.core.away))

    # -- in passing ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Look now and then for messages that reach the end of their time here."""
        self._sweeping = self.tasks.call_later(self._sweep_every, self._sweep)

    def _sweep(self, waiting: list[Job] | None = None) -> None:
        """Look at what waits, or at the rest of it."""
        if waiting is None:
            self.take_back()
        before = self.core.scheduler.size
        idle, rest = self.core.sweep(self._time(), waiting)
        self.let_go(idle)
        self.dispatch()
        if self.core.scheduler.size < before:
            self.make_room()
        if rest:
            self._sweeping = self.tasks.call_soon(self._sweep, rest)
            return
        if not self.core.closing:  # a stop receives nothing anyway
            self._standstill.look(len(self.rejecting))
        self._hanging.look(self.jobs, self._time())
        for step in tuple(self._mending):
            self._call_back(step)
        self.begin()

    def close(self) -> None:
        """End every timer."""
        timers = (self._waking, self._recalling, self._sweeping, self._relieving, self._crowding)
        for timer in (*timers, *self._going_on.values()):
            if timer is not None:
                timer.cancel()
        self.recalls.flush()
