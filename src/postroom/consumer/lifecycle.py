"""One run of a consumer: what is built at its start, and the eight steps of its stop."""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from random import Random
from typing import Any, Generic, cast

from postroom.consumer.availability import Availability
from postroom.consumer.batching import BatchHandler
from postroom.consumer.core import Core
from postroom.consumer.crew import join
from postroom.consumer.crowd import Crowd
from postroom.consumer.demand import AdaptivePolicy, SharedPolicy
from postroom.consumer.engine import Engine
from postroom.consumer.handlers import build_handle, needs_threads
from postroom.consumer.health import Health, Phase, examine
from postroom.consumer.inlet import Inlet
from postroom.consumer.job import Cancellation, Job
from postroom.consumer.loop_watch import LoopWatch
from postroom.consumer.pipeline import Pipeline
from postroom.consumer.poller import Poller, Receiver
from postroom.consumer.polls import Polls
from postroom.consumer.roster import Roster
from postroom.consumer.rota import Rota
from postroom.consumer.rotation import Rotation
from postroom.consumer.scouting import Scouting
from postroom.consumer.settings import Settings
from postroom.consumer.snapshot import snapshot_of
from postroom.consumer.statistics import ConsumerStatistics, QueueStatistics
from postroom.consumer.step_health import steps_of
from postroom.consumer.stopping import Closing, StopDiary, where_it_waits
from postroom.consumer.tenants import Tenants
from postroom.consumer.threads import Threads
from postroom.display import counted, display_key
from postroom.errors import PostroomError
from postroom.events import ConsumerStarted, ConsumerStopped, ConsumerStopping
from postroom.fleet.hints import Hints
from postroom.fleet.member import Member
from postroom.log_fields import Log, Step, about, tenant_in_words
from postroom.options import Concurrency
from postroom.payloads import Decoder
from postroom.program_end import end_with_the_program
from postroom.redaction import describe, log_error
from postroom.resources import ResourcePool
from postroom.scheduling import Scheduler
from postroom.settlement import Tally
from postroom.tasks import Tasks, clean
from postroom.transports.protocol import Client, Queue
from postroom.types import C, R, Settlement, StopReason

_log = Log("postroom.consumer", Step.STOP)

_GRACE = 1.0
"""Seconds that tasks of the consumer's own may take to end when they are cancelled."""
_NOTHING = QueueStatistics(settled={})
_NAMED = 5
"""Tenants that the line about a pool that does not close names."""
_MOMENT = 0.5
"""Seconds in which the polls of a busy queue end, and those that may be dropped are dropped."""
_LOOK = 0.1
"""Seconds after which a stop looks again whether what waits for its tenant was started, or need not be waited for."""
_AGAIN = 2.0
"""Seconds between two tries of a tenant that a stop waits for, however long its pause is."""


def _limits(settings: Settings[Any, Any], concurrency: Concurrency, *, threaded: bool) -> dict[str, Any]:
    # Without a thread a handler would hold its slot and its lease, and only wait.
    total = min(concurrency.total, concurrency.threads) if threaded else concurrency.total
    if settings.resolver is None:  # one tenant: there are no shares
        # `per_tenant` would only idle slots: there is no other tenant to keep them for.
        return {"total": total, "per_tenant": total}
    return {
        "total": total,
        "per_tenant": concurrency.per_tenant,
        "caps": _clean(concurrency.overrides),
        "weights": _clean(concurrency.weights),
        "reserved": total // 12 if concurrency.reserved is None else concurrency.reserved,
    }


def _clean(chooses: Any) -> Any:
    return clean(chooses) if callable(chooses) else chooses


class Run(Generic[C, R]):
    """Everything that lives from a consumer's start to its stop. Made by ``start``."""

    stopping: asyncio.Task[BaseException | None] | None = None
    """The stop, once it has begun: all who end the run wait for this one."""

    def __init__(
        self,
        settings: Settings[C, R],
        handler: Any,
        decode: Decoder,
        tenants: Tenants,
        *,
        client: Client,
        where: Queue | Roster,
        pool: ResourcePool[C, R] | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.settings = settings
        self._roster = where if isinstance(where, Roster) else None
        self.name: str = settings.queue if isinstance(where, Roster) else where.info.name
        """What the run is called in logs and events: its queue, or the title of its queues."""
        self.pool = pool
        self.tasks: Tasks = Tasks(self.end)
        self._tenants = tenants
        self._threads = Threads(settings.concurrency.threads) if needs_threads(handler) else None
        self.tally: Tally = Tally()
        rng = Random()  # noqa: S311 - jitter, not secrecy
        self.member: Member | None = None
        self.scheduler: Scheduler[Job] = Scheduler(**self._scheduler_limits(settings.concurrency))
        crowd = Crowd()
        fifo = not isinstance(where, Roster) and where.info.fifo
        # Scouting looks for the messages of quiet tenants behind noisy ones. With one tenant there
        # are none, and a FIFO queue hides what follows in a group, so that parking would break its
        # order.
        scout = settings.polling.scout if settings.resolver is not None and not fifo else False
        self.scouting: Scouting = Scouting(crowd, self._loop.time(), when=scout)
        policy = (AdaptivePolicy if self._roster is None else SharedPolicy)(settings.polling, self.scouting, crowd)
        hints = None if settings.fleet is None else Hints(settings.fleet.lease, rng)
        availability = Availability(pool, rng, hints, self.tasks.outages)
        self.core: Core = Core(self.scheduler, availability, tenants, policy, polling=settings.polling, rng=rng)
        self.engine: Engine = Engine(self.core, self.tasks, visible=settings.first_visibility.timeout)
        self.engine.on_end = self.end
        if settings.fleet is not None and hints is not None:
            self.member = join(
                settings.fleet,
                self.name,
                self.scheduler,
                tenants,
                self.engine,
                hints=hints,
                observers=settings.observers,
            )
            self.scheduler.adjust(**self._scheduler_limits(settings.concurrency))
        self._batches = handler if isinstance(handler, BatchHandler) else None
        self.engine.collector = self._batches
        self.watch: LoopWatch = LoopWatch(self.tasks, self._running, lambda: self.scheduler.size)
        self.client = client
        self._inlets: list[Inlet] = []
        self._poller = self._polls_of(where, policy)
        handle = build_handle(
            handler,
            middleware=settings.middleware,
            timeout=settings.concurrency.handler_timeout,
            threads=self._threads,
        )
        self.pipeline: Pipeline = Pipeline(settings, self.engine, pool, tenants, decode=decode, handle=handle)
        self.engine.connect(self.pipeline, self, self._poller, policy)
        self._diary = StopDiary(self.name, lambda: self.engine.jobs, self._loop)
        self._opened, self._closing = AsyncExitStack(), Closing()
        self._unsubscribes: Callable[[], object] | None = None
        self._polls = Polls(lambda: self.inlets, self._loop)
        self._keeps_up: asyncio.Task[None] | None = None
        """Keeps up with the list of queues, where there are several."""
        self._stop_requested = asyncio.Event()
        self._hurry = asyncio.Event()
        self._try_at = -math.inf
        """When the stop ends the pauses of tenants that it waits for."""
        self.cancelled: int = 0
        """Handlers that had to be cancelled."""
        self.reason: StopReason = StopReason.REQUESTED
        self.fatal: BaseException | None = None
        """What ended the poller or the heartbeat, or asked for the end of the process, if that is why it stops."""

    def _polls_of(self, where: Queue | Roster, policy: AdaptivePolicy) -> Poller | Rotation:
        """Make what receives from the queue, or from several."""
        settings = self.settings
        if isinstance(policy, SharedPolicy) and settings.queues is not None:
            queues, observers = settings.queues, settings.observers
            self._steps = steps_of(self.name, outages=self.tasks.outages)
            self._rota = Rota[Inlet](settings.polling, watched=queues.watched, rest=queues.rest)
            polling, looks = settings.polling, queues.watched
            return Rotation(self._rota, policy, self.engine, polling=polling, looks=looks, observers=observers)
        inlet = Inlet(settings, cast("Queue", where), self.engine, self.pool, client=self.client, tally=self.tally)
        inlet.receiver = poller = Poller(inlet.source, self.core, policy, inlet.intake, self.tasks, watch=self.watch)
        self._inlets.append(inlet)
        return poller

    def _inlet_of(self, queue: Queue) -> Inlet:
        """Make what one of several queues needs."""
        inlet = Inlet(
            self.settings,
            queue,
            self.engine,
            self.pool,
            client=self.client,
            tally=self.tally,
            steps=self._steps,
            alone=False,
        )
        inlet.receiver = Receiver(inlet.source, self.tasks, watch=self.watch)
        _say_what_may_surprise(self.settings, inlet)
        return inlet

    @property
    def inlets(self) -> list[Inlet]:
        """The queues that are consumed now, and those that something is still here of."""
        return self._inlets if self._roster is None else self._roster.inlets

    @property
    def past(self) -> QueueStatistics:
        """What was counted for queues that are closed."""
        return _NOTHING if self._roster is None else self._roster.past

    @property
    def queues(self) -> tuple[Queue, ...]:
        """The queues that are open."""
        return tuple(inlet.queue for inlet in self.inlets)

    def begin(self, opened: AsyncExitStack, closing: Closing) -> None:
        """Start to poll. What was opened is closed by the stop, and ``closing`` notes which of it."""
        self._opened, self._closing = opened, closing
        self._leaves = end_with_the_program(self.end)
        if self.pool is not None:
            self._unsubscribes = opened.callback(self.pool.subscribe(self.engine.observe))
        self._tenants.attach(
            self.engine, self.pool, self.settings.observers, lambda: (inlet.facts for inlet in self.inlets)
        )
        self.engine.begin()
        if self._batches is not None:
            self._batches.relax()
        if self.member is not None:
            self.member.begin()
        self.watch.start()
        if self._roster is not None and isinstance(self._poller, Rotation):
            self._roster.begin(self._inlet_of, self._rota, self._poller, self.tasks)
            self._poller.begin(self._polls.tasks)
            self._keeps_up = self.tasks.spawn(self._roster.run(), "postroom-queues")
            text, count = "Consuming %s: %s", counted(len(self.inlets), "queue")
            _log.info(text, count, self.name, extra=about(queue=self.name, step=Step.START))
        else:
            [inlet] = self._inlets
            inlet.begin()
            poller = cast("Poller", self._poller)
            for number in range(self.settings.polling.pollers):
                self._polls.tasks.add(self.tasks.spawn(poller.run(number), f"postroom-poller-{number}"))
            _log.info("Consuming %s", inlet.queue.info.url, extra=about(queue=self.name, step=Step.START))
            _say_what_may_surprise(self.settings, inlet)
        if self.settings.observers:
            self.settings.observers.tell(ConsumerStarted(self.name, self.statistics))

    def withdraw(self, group: str, message_id: str | None, *, behind: bool) -> None:
        """Give back, in order, what is still being resolved of a message group, except for a message itself."""
        for inlet in self.inlets:
            inlet.intake.withdraw(group, message_id, behind=behind)

    def adjust(self, concurrency: Concurrency) -> None:
        """Change how much runs at once."""
        for name in ("handler_timeout", "resolver_timeout"):
            until, then = getattr(self.settings.concurrency, name), getattr(concurrency, name)
            if until != then:
                text = "Concurrency(%s=%s) holds from the next start of the consumer of %s on, and %s until then"
                _log.warning(text, name, then, self.name, until, extra=self._about_queue())
        if self._threads is not None:
            # Before the slots: a handler that gets a new slot must find its thread.
            self._threads.resize(concurrency.threads)
        self.scheduler.adjust(**self._scheduler_limits(concurrency))
        self.core.unseat()
        self.engine.dispatch()
        self._poller.wake()

    def request_stop(self, reason: StopReason, *, now: bool = False) -> None:
        """Ask for a stop; ``now`` cancels handlers without waiting for them. The first reason counts."""
        if now:
            self._hurry.set()
            self.core.draining = False  # what would be started now would be cancelled at once
        if not self._stop_requested.is_set():
            self.reason = reason
            self._stop_requested.set()
            self._poller.stop()
            if self._keeps_up is not None:
                # A queue that is found now must not join a run that stops.
                self._keeps_up.cancel()

    def hurry(self) -> None:
        """Cancel handlers: Ctrl-C came again, where the loop is the application's."""
        text = "Ctrl-C again: cancelling what runs of %s; send it once more to end at once"
        _log.warning(text, self.name, extra=self._about_queue())
        self.request_stop(StopReason.SIGNAL, now=True)

    def end(self, error: BaseException) -> None:
        """Stop because of an error: a side task died, or the application's code asked for the end of the process."""
        # The first error is the cause; what dies after it mostly died of it.
        if self.fatal is None:
            self.fatal, name = error, self.name
            if isinstance(error, SystemExit | KeyboardInterrupt):
                text = "The application's code raised %s; the consumer of %s stops"
                _log.warning(text, describe(error), name, extra=about(queue=name, step=Step.STOP))
            else:
                what = describe(error) if isinstance(error, PostroomError) else type(error).__name__
                _log.critical("The consumer of %s stops: %s", name, what, extra=about(queue=name))
        self.request_stop(StopReason.FATAL)

    def health(self, *, stopped: bool) -> Health:
        """Return how the run is, or how it was when it ended."""
        phase = Phase.STOPPED if stopped else Phase.STOPPING if self._stop_requested.is_set() else Phase.RUNNING
        return examine(
            self.settings.queue,
            phase,
            {inlet.name: inlet.receiver for inlet in self.inlets},
            refused={} if self._roster is None else self._roster.refused,
            wait=self.settings.polling.wait,
            now=self._loop.time(),
            blocked=0.0 if stopped else self.watch.silence(),
            dead=self._dead(),
        )

    def _dead(self) -> str | None:
        """Return why the run will never receive again, other than by a stop that was asked for."""
        if self.fatal is not None:
            return f"it was ended by {type(self.fatal).__name__}"
        if self._stop_requested.is_set():
            return None
        tasks = (*(inlet.heartbeat for inlet in self.inlets), self._keeps_up, *self._polls.tasks)
        ended = [task for task in tasks if task is not None and task.done()]
        return f"its task {ended[0].get_name()} ended" if ended else None  # cancelled by others: nothing else says so

    async def stop_requested(self) -> None:
        """Wait until a stop is asked for, or a side task dies."""
        await self._stop_requested.wait()

    async def stop(self) -> None:
        """Stop in eight steps, each with a budget of its own; see ``Shutdown``.

        1. Stop asking for messages. An outstanding long poll may end; what it brings is given back.
        2. Messages that have not started go back, unless that would make dead letters of them; so do those away.
        3. Handlers get ``drain`` seconds; so do messages at their last receive that a poll still brings.
        4. The rest are cancelled with a reason, get ``cancel`` seconds, and their messages go back.
        5. Acknowledgements and returned messages are flushed, within ``flush`` seconds.
        6. The heartbeat ends.
        7. Pools that no one else uses close, within ``close`` seconds; what takes longer goes on by itself.
        8. The client closes, unless another consumer still uses it.
        """
        self.request_stop(StopReason.REQUESTED)
        self._diary.begin()
        if self.settings.observers:
            self.settings.observers.tell(ConsumerStopping(self.name, self.reason))
        # The budget of the polls runs beside the steps below, not before them.
        self._polls.end_by = polls_end = self._loop.time() + self.settings.shutdown.poll  # 1
        await self._return_unstarted()  # 2
        await self._drain_handlers(polls_end)  # 3
        await self._cancel_handlers()  # 4
        if self.member is not None:
            # Before the flush: slots of the fleet are for handlers, and no further handler starts
            # here. Other replicas can have them.
            await self.member.close()
        await self._flush(polls_end)  # 5, and 1: polls end last, because what they bring has to go back
        await self._end_heartbeat()  # 6
        await self._close_what_was_opened()  # 7, 8
        if self.settings.observers:
            self.settings.observers.tell(ConsumerStopped(self.name, self.reason, self.cancelled, self.statistics))
        text, what = "Stopped consuming %s after %.1f s", self.name if self._roster else self._inlets[0].queue.info.url
        _log.info(text, what, self._diary.end(), extra=self._about_queue())

    def ended(self, _stop: object) -> None:
        """Wait for threads no longer, and hear of the program's end no longer: the stop is over, however that was."""
        self._leaves()
        if self._unsubscribes is not None:  # its pool may be open for others, and the loop have ended before the stop
            self._unsubscribes()
        if self._threads is not None:
            self._threads.give_up()

    def is_abandoned(self) -> bool:
        """Whether its event loop was closed under it, without a stop: what it had comes back, and so the log says."""
        if not self._loop.is_closed():
            return False
        text = "The event loop of the consumer of %s was closed without a stop: what it held comes back after its "
        _log.warning(
            text + "visibility timeout. Stop it before, as `async with` does", self.name, extra=self._about_queue()
        )
        return True

    def statistics(self) -> ConsumerStatistics:
        """Return a snapshot."""
        return snapshot_of(self, self._loop.time())

    # -- the steps ----------------------------------------------------------------------------------------------

    async def _return_unstarted(self) -> None:
        moment = min(_MOMENT, self.settings.shutdown.poll)
        self._diary.enter("messages that have not started go back", moment)
        self.engine.keep_returns(self._polls.out_until, moment)
        self.core.close()
        for job in tuple(self.engine.jobs):
            # Also those that wait with their resources in hand: they hold leases that the pool's
            # close needs.
            if not job.started and not self.core.keeps(job):
                job.cancel(Cancellation.STOPPING)
        self.engine.act()  # before the wait: what is hardly ours any longer has to go back now
        try:
            await self._close_intakes()
            await self._polls.let_end(moment)
        finally:
            self.engine.let_returns_go()
            # Now, and not behind the handlers: what does not answer later may be a dead-letter queue, or another queue.
            self.engine.call_all_back()
        if self._batches is not None:
            self._batches.hurry()  # what it collects would wait for messages that do not come any longer
        self.engine.dispatch()

    async def _close_intakes(self) -> None:
        """Give back what is still being resolved, after the core was told."""
        # Together: a resolver that ignores its cancellation must not take the time of other queues.
        await asyncio.gather(*(inlet.intake.close(_GRACE) for inlet in self.inlets))

    async def _drain_handlers(self, polls_end: float) -> None:
        seconds = self.settings.shutdown.drain
        if self._unfinished():
            self._diary.waits_for_handlers(seconds)
        else:
            self._diary.enter("polls end", max(0.0, polls_end - self._loop.time()))
        ends = self._loop.time() + seconds
        drained = self.tasks.spawn(self._all_ended(polls_end, ends), "postroom-drain")
        hurry = self.tasks.spawn(self._wait_for_hurry(), "postroom-hurry")
        try:
            await asyncio.wait({drained, hurry}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            drained.cancel()
            hurry.cancel()
            # Waited for, because a task that is cancelled here would otherwise outlive the step.
            await asyncio.wait({drained, hurry})

    async def _cancel_handlers(self) -> None:
        self._diary.enter("cancelled handlers clean up", self.settings.shutdown.cancel)
        await self._polls.let_end(0.0)
        self.core.abandon()
        self.engine.act()
        await self._close_intakes()
        jobs = [job for job in self.engine.jobs if job.task is not None]
        if jobs:
            self.cancelled += sum(job.started for job in jobs)
            why = "a second signal or stop(now=True) came" if self._hurry.is_set() else "the time to finish is over"
            _log.warning("Cancelling %s: %s", counted(len(jobs), "handler"), why, extra=self._about_queue())
        for job in jobs:
            if job.started:
                what = "on_error" if job.reporting else "the handler"
                text = f"Cancelled {what} of message %s of %s (attempt %d, receive %d)%s%s"
                named = job.message.id, tenant_in_words(job.tenant), job.attempt, job.receives
                _log.warning(text, *named, where_it_waits(job), _follows(job), extra=about(job, step=Step.STOP))
            job.cancel(Cancellation.STOPPING)
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=self.settings.shutdown.cancel)
            if self._threads is not None and await self._threads.quiet(0.0):
                await asyncio.sleep(0)  # a thread that still runs is abandoned: its task ends now
        for job in tuple(self.engine.jobs):
            text = "The handler of message %s of %s did not end when it was cancelled%s"
            _log.error(text, job.message.id, tenant_in_words(job.tenant), where_it_waits(job), extra=about(job))
            # The handler may still run, but its message must not be lost with it: another consumer
            # gets it.
            self.core.give_back(job, Settlement.RETURNED)
            self.engine.act()
            job.cancel(Cancellation.STOPPING)  # a second time

    async def _flush(self, polls_end: float) -> None:
        self._diary.enter("acknowledgements and returned messages reach SQS", self.settings.shutdown.flush)
        deadline = self._loop.time() + self.settings.shutdown.flush
        # What a poll brings has to go back: half of the time is kept for that.
        polls_end = min(polls_end, deadline - self.settings.shutdown.flush / 2)
        try:
            async with asyncio.timeout_at(deadline):
                seen = None
                while seen != self._received:  # what a poll brought has to go back, too
                    seen = self._received
                    await self._settle_everything()
                    await self._polls.finish(0.0 if self._hurry.is_set() else polls_end - self._loop.time())
        except TimeoutError:
            text = "SQS did not answer within Shutdown(flush=%g) for %s: %s. They come back later"
            _log.error(text, self.settings.shutdown.flush, self.name, self._unsettled(), extra=self._about_queue())
        # Outside the timeout: however the flush ended, no poll may bring messages to settlers that
        # are about to let go.
        await self._polls.end()
        for inlet in self.inlets:
            await inlet.settler.abandon()

    async def _settle_everything(self) -> None:
        """Send what was decided, and wait for the answers, also for what is called back."""
        while True:
            await asyncio.gather(*(inlet.settler.drain() for inlet in self.inlets))
            # Each of them ends in a delete or a change of visibility, which the settlers drain.
            if not (rejecting := [task for task in self.engine.rejecting if not task.done()]):
                break
            await asyncio.wait(rejecting)
        while recalls := self.engine.recalls.out:  # also those that were out when the stop began
            await asyncio.wait(tuple(recalls))

    def _unsettled(self) -> str:
        """Return what a stop gives up, in words."""
        counts = {
            "decided about and not confirmed": sum(inlet.settler.unconfirmed for inlet in self.inlets),
            "on their way to the dead-letter queue": sum(not task.done() for task in self.engine.rejecting),
        }
        return ", ".join(f"{counted(count, 'message')} {what}" for what, count in counts.items() if count) or "nothing"

    def _about_queue(self) -> dict[str, object]:
        return about(queue=self.name)

    @property
    def _received(self) -> int:
        return sum(inlet.intake.received for inlet in self.inlets)

    async def _end_heartbeat(self) -> None:
        self.watch.close()
        self.engine.close()
        self.engine.rejections.flush()
        self.pipeline.failures.flush()
        for inlet in self.inlets:
            inlet.receiver.close()
        # Not before the flush: a message must stay ours until SQS has confirmed its delete.
        await self.tasks.close(grace=_GRACE)

    async def _close_what_was_opened(self) -> None:
        close = self.settings.shutdown.close
        self._diary.enter("pools and clients close", close)
        if self._threads is not None:
            self._threads.close()
        deadline = self._loop.time() + close + _GRACE  # a pool that was passed has a longer limit of its own
        try:
            async with asyncio.timeout_at(deadline):
                # In reverse: pools close before the client that their messages came from.
                await self._opened.aclose()
        except TimeoutError:
            what = self._closing.at(deadline)
            text = f"{what} of %s did not close within Shutdown(close=%g)%s"
            follows = "; its close was cancelled"
            if what == Closing.POOL and self.pool is not None:
                follows = f"{_left_open(self.pool)}; it goes on closing by itself"
            _log.error(text, self.name, close, follows, extra=self._about_queue())
        except Exception as error:
            text = "Closing what was opened for %s failed; the stop goes on"
            log_error(_log, logging.ERROR, text, self.name, error=error, extra=self._about_queue())

    # -- small print --------------------------------------------------------------------------------------------

    def _scheduler_limits(self, concurrency: Concurrency) -> dict[str, Any]:
        limits = _limits(self.settings, concurrency, threaded=self._threads is not None)
        return limits if self.member is None else {**limits, "bounds": self.member.bounds}

    def _tasks(self) -> set[asyncio.Task[None]]:
        return {job.task for job in self.engine.jobs if job.task is not None}

    def _resolving(self) -> set[asyncio.Task[None]]:
        return {task for inlet in self.inlets for task in inlet.intake.tasks}

    def _unfinished(self) -> int:
        return len(self.engine.jobs) + max(0, self.scheduler.ready) + len(self._resolving()) + self.core.halted

    async def _all_ended(self, polls_end: float, ends: float) -> None:
        """Wait for what is here, and for what may still start.

        That is what a poll brings until a time, since it may be at its last receive, and what waits for its tenant's
        next try after an outage, for its rate, or for a slot of the fleet. What was behind an acknowledged message in
        its group comes to a poll that is still out, as well.
        """
        releases = self.core.fifo and any(inlet.settler.unconfirmed for inlet in self.inlets)
        while True:
            late = self._try_what_is_late(ends)
            unfinished = self._unfinished()
            startable = 0 if unfinished else self.scheduler.startable_before(math.inf if late else ends)
            if not (unfinished or startable or self._polls.may_bring_the_last(polls_end)):
                if not (releases and self._polls.may_bring_the_last(ends)):
                    return
                releases = False
                await self._let_acknowledgements_bring_more()
                continue
            releases |= self.core.fifo and unfinished > 0
            self.engine.take_back()
            tasks: set[asyncio.Task[Any]] = {*self._tasks(), *self._resolving()}
            if self.core.halted:
                tasks |= self.engine.rejecting
            if unfinished and not tasks:
                # A job may have no task yet: it gets one in this turn of the loop, or later from the fleet.
                await asyncio.sleep(0 if self.member is None else _LOOK)
                continue
            now = self._loop.time()
            left: float | None = None
            if unfinished:
                self._diary.waits_for_handlers(ends - now)
                left = _LOOK if self.scheduler.blocked else None
            elif startable:
                self._diary.waits_for_tenants(startable, ends - now)
                left = _LOOK
            else:
                left = max(0.0, polls_end - now)
                self._diary.enter("polls end", left)
            if waited := tasks | self._polls.out:
                await asyncio.wait(waited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(_LOOK)

    async def _let_acknowledgements_bring_more(self) -> None:
        """Wait a moment until they reach SQS, and one more for what it hands out then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_MOMENT):
                await self._settle_everything()
        if out := self._polls.out:
            await asyncio.wait(out, timeout=_MOMENT, return_when=asyncio.FIRST_COMPLETED)

    def _try_what_is_late(self, ends: float) -> bool:
        """Try tenants again of which the pause after an outage is long. Returns whether there is time for one more.

        What is at its last receive has no other chance, and the pause may be longer than the drain.
        """
        now = self._loop.time()
        late = self.core.tried_after(now + _AGAIN, now) if self.scheduler.blocked else []
        if not late:
            self._try_at = now + _AGAIN  # what fails just now is not tried again at once
        elif now >= self._try_at:
            self._try_at = now + _AGAIN
            if self.pool is not None:
                self.pool.end_pauses(job.context for job in late if job.problem is None)
            for job in late:
                self.engine.retry_now(job.tenant)
        return bool(late) and self._try_at < ends

    async def _wait_for_hurry(self) -> None:
        await self._hurry.wait()

    def _running(self) -> dict[str, Job]:
        return {job.task.get_name(): job for job in self.engine.jobs if job.started and job.task is not None}


def _follows(job: Job) -> str:
    """Return what becomes of a message after its handler was cancelled, as far as that is known before it ends."""
    if job.settlement is not None:
        return f": its message is {job.settlement.value} already"
    becomes = "becomes a dead letter" if job.source.attempts.is_last(job) else "is handled again"
    return f": unless it still ends well, its message {becomes}"


def _left_open(pool: ResourcePool[Any, Any]) -> str:
    """Name the tenants with resources that a pool has not closed."""
    known = pool.keys()
    keys = [display_key(key) for key in known if pool.leases_out(key) is not None]
    more = f" and {counted(len(keys) - _NAMED, 'more tenant')}" if len(keys) > _NAMED else ""
    return f": the cleanup of {', '.join(keys[:_NAMED])}{more} has not ended" if keys else ""


def _say_what_may_surprise(settings: Settings[Any, Any], inlet: Inlet) -> None:
    """Say once, at start, what the queue's attributes keep the consumer from promising."""
    facts, name = inlet.facts, inlet.name
    extra = about(queue=name, step=Step.START)
    most = facts.max_receives
    wanted = None if callable(settings.retry) else settings.retry.attempts
    if not facts.known:
        text = "The attributes of queue %s may not be read: its redrive policy and retention are not known"
        _log.warning(text, name, extra=extra)
    elif most is None:
        text = "Queue %s has no dead-letter queue: a message that cannot be handled comes back until it expires%s"
        ignored = "" if wanted is None else f". RetryPolicy(attempts={wanted}) does nothing"
        _log.warning(text, name, ignored, extra=extra)
    elif wanted is not None and wanted > most:
        text = "RetryPolicy(attempts=%d) cannot be kept: maxReceiveCount of queue %s is %d"
        _log.warning(text, wanted, name, most, extra=extra)
    elif most < 2:
        text = "maxReceiveCount of queue %s is %d: a message is a dead letter when its consumer crashes once"
        _log.warning(text, name, most, extra=extra)
