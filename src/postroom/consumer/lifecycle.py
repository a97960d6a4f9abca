"""One run of a consumer: what is built at start, and the eight steps of a stop."""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from random import Random
from typing import Any, Generic, cast

from postroom.consumer.faults import FaultWatch
from postroom.consumer.grouping import Grouping
from postroom.consumer.handlers import build_handle, is_async
from postroom.consumer.inflight import InFlight
from postroom.consumer.intake import PATIENCE, Intake
from postroom.consumer.job import Cancellation, Job
from postroom.consumer.loop_watch import LoopWatch
from postroom.consumer.outages import Outages
from postroom.consumer.parking import Parking
from postroom.consumer.pipeline import Pipeline
from postroom.consumer.poller import Poller
from postroom.consumer.scouting import Scouting
from postroom.consumer.settings import Settings
from postroom.consumer.statistics import ConsumerStatistics
from postroom.consumer.tenants import Tenants
from postroom.consumer.threads import Threads
from postroom.events import ConsumerStarted, ConsumerStopped, ConsumerStopping
from postroom.options import Concurrency, PoolTimeouts
from postroom.payloads import Decoder
from postroom.resources import ResourcePool
from postroom.scheduling import Scheduler
from postroom.settlement import Delivery, Settler
from postroom.tasks import Tasks
from postroom.transports import default_client
from postroom.transports.protocol import Client, Queue
from postroom.types import C, R, Settlement, StopReason

_log = logging.getLogger("postroom.consumer")

MOST_BLOCKED = 10_000
"""Messages of blocked tenants that take no room from others: those that have no receive to spare can only wait here."""


async def start(settings: Settings[C, R], handler: Any, decode: Decoder, tenants: Tenants) -> "Run[C, R]":
    """Open client, queue and pool, and start to poll.

    Raises before anything runs, with everything closed again, when the queue cannot be opened.
    """
    async with AsyncExitStack() as opening:
        client = default_client() if settings.client is None else settings.client
        await opening.enter_async_context(client)
        queue = await client.queue(settings.queue)
        pool = await _open_pool(settings, opening)
        run = Run(settings, handler, decode, tenants, client=client, queue=queue, pool=pool, opened=opening.pop_all())
    run.begin()
    return run


async def _open_pool(settings: Settings[C, R], opening: AsyncExitStack) -> ResourcePool[C, R] | None:
    """Enter the pool that was passed, or one of our own. The last user of a pool to leave it closes it."""
    resources = settings.resources
    if resources is None:
        return None
    if isinstance(resources, ResourcePool):
        return await opening.enter_async_context(cast("ResourcePool[C, R]", resources))
    timeouts = PoolTimeouts(close=max(settings.shutdown.close, 0.001))
    pool = ResourcePool(
        resources,
        cleanup=settings.cleanup,
        timeouts=timeouts,
        observers=settings.observers,
        name=settings.queue,
    )
    return await opening.enter_async_context(pool)


def _scheduler(settings: Settings[Any, Any], total: int) -> Scheduler[Job]:
    if settings.resolver is None:  # one tenant: nothing to be fair about
        return Scheduler[Job](total=total, per_tenant=total)
    concurrency = settings.concurrency
    return Scheduler[Job](
        total=total,
        per_tenant=concurrency.per_tenant,
        caps=concurrency.overrides,
        weights=concurrency.weights,
        reserved=total // 12 if concurrency.reserved is None else concurrency.reserved,
    )


def _threads(settings: Settings[Any, Any]) -> Threads:
    return Threads(settings.concurrency.threads)


class Run(Generic[C, R]):
    """Everything that lives from a consumer's start to its stop. Made by :func:`start`."""

    def __init__(
        self,
        settings: Settings[C, R],
        handler: Any,
        decode: Decoder,
        tenants: Tenants,
        *,
        client: Client,
        queue: Queue,
        pool: ResourcePool[C, R] | None,
        opened: AsyncExitStack,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.settings = settings
        self._client = client
        self.queue = queue
        self.pool = pool
        self._opened = opened
        self._threads = None if is_async(handler) else _threads(settings)
        concurrency = settings.concurrency
        total = concurrency.total if self._threads is None else min(concurrency.total, concurrency.threads)
        self.scheduler = _scheduler(settings, total)
        self._settler = Settler(
            queue,
            settings.visibility,
            dead_letter_queue=self._dead_letter_queue,
            on_lost=self._on_lost,
            observers=settings.observers,
        )
        faults = FaultWatch(settings.faults, rng=Random())  # noqa: S311 - jitter, not secrecy
        self._total = total
        self._tenants = tenants
        self._recalling: asyncio.Handle | None = None
        self._in_flight = InFlight(queue, clock=self._loop.time)
        self._parking = Parking(queue, self._settler, clock=self._loop.time, in_flight=self._in_flight)
        self._outages = Outages(
            pool,
            self._settler,
            self._parking,
            clock=self._loop.time,
            in_flight=self._in_flight,
            is_paused=tenants.is_paused,
            is_flooded=self._is_flooded,
            behind=lambda tenant: self.scheduler.figures(tenant).waiting,
            on_over=self._call_back,
        )
        self._scouting = Scouting(
            self._parking,
            clock=self._loop.time,
            alone=lambda: self.scheduler.alone,
            enabled=settings.polling.scout and settings.resolver is not None,
        )
        self._pipeline = Pipeline(
            settings,
            decode=decode,
            pool=pool,
            handle=build_handle(
                handler,
                middleware=settings.middleware,
                timeout=concurrency.handler_timeout,
                threads=self._threads,
            ),
            scheduler=self.scheduler,
            settler=self._settler,
            faults=faults,
            outages=self._outages,
            spares=self._parking.spares,
            quarantined_because=tenants.quarantined_because,
            on_slot_free=self._on_slot_free,
            on_blocked=self._on_blocked,
            on_group_back=self._on_group_back,
        )
        self._pipeline.on_fatal = self._on_fatal
        # On a FIFO queue the group is the unit of order, not a tenant.
        fair = settings.resolver is not None and not queue.info.fifo
        self._grouping = Grouping(clock=self._loop.time) if fair else None
        self._intake = Intake(
            settings,
            fifo=queue.info.fifo,
            pool=pool,
            scheduler=self.scheduler,
            settler=self._settler,
            dispatch=self._pipeline.dispatch,
            crowded=lambda: self._capacity() - self.scheduler.size < settings.polling.batch,
            spare=lambda: self._capacity() - self._held(),
            buffer=self._buffer,
            parking=self._parking,
            grouping=self._grouping,
            scouting=self._scouting,
            tenants=tenants,
            faults=faults,
            outages=self._outages,
        )
        self._poller = Poller(
            queue,
            settings.polling,
            settings.visibility,
            capacity=self._capacity,
            scouting=self._scouting,
            held=self._held,
            starving=lambda: self.scheduler.waiting == 0,
            admit=self._intake.admit,
            on_over_limit=self._in_flight.refused,
            observers=settings.observers,
        )
        self._watch = LoopWatch(Tasks(lambda _error: None), lambda: [t.get_name() for t in self._tasks()])
        self._watch.start()
        self._polls: set[asyncio.Task[None]] = set()
        self._heartbeat: asyncio.Task[None] | None = None
        self._early_recall: asyncio.Task[None] | None = None
        self._stop_requested = asyncio.Event()
        self._hurry = asyncio.Event()
        self._cancelled = 0
        self.reason = StopReason.REQUESTED
        self.fatal: BaseException | None = None
        """What ended the poller or the heartbeat, if that is why the consumer stopped."""

    def begin(self) -> None:
        """Start to poll."""
        self._tenants.attach(self.scheduler, self._pipeline.dispatch, held=self._outages.held)
        self._heartbeat = self._side_task(self._settler.heartbeat.run(), "postroom-heartbeat")
        for number in range(self.settings.polling.pollers):
            task = self._side_task(self._poller.run(number), f"postroom-poller-{number}")
            self._polls.add(task)
        _log.info("Consuming %s", self.queue.info.url)
        if self.settings.observers:
            self.settings.observers.tell(ConsumerStarted(self.queue.info.name))

    def request_stop(self, reason: StopReason, *, now: bool = False) -> None:
        """Ask for a stop; ``now`` cancels handlers without waiting for them. The first reason counts."""
        if now:
            self._hurry.set()
        if not self._stop_requested.is_set():
            self.reason = reason
            self._stop_requested.set()
            self._poller.stop()

    def adjust(self, concurrency: Concurrency) -> None:
        """Change how many handlers run at once."""
        if self._threads is not None:
            self._threads.resize(concurrency.threads)

    async def stop_requested(self) -> None:
        """Wait until somebody asks for a stop, or a side task dies."""
        await self._stop_requested.wait()

    async def stop(self) -> None:
        """Stop in eight steps, each with a budget of its own; see :class:`~postroom.options.Shutdown`.

        1. Stop asking for messages. An outstanding long poll may end; what it brings is given back at once.
        2. Messages that have not started go back with visibility 0.
        3. Handlers get ``drain`` seconds.
        4. The rest are cancelled with a reason, get ``cancel`` seconds, and their messages go back.
        5. Acknowledgements and returned messages are flushed, within ``flush`` seconds.
        6. The heartbeat ends.
        7. Owned pools close, within ``close`` seconds.
        8. The client closes, unless somebody else still uses it.
        """
        self.request_stop(StopReason.REQUESTED)
        if self.settings.observers:
            self.settings.observers.tell(ConsumerStopping(self.queue.info.name, self.reason))
        polls_end = self._loop.time() + self.settings.shutdown.poll  # 1
        await self._return_unstarted()  # 2
        await self._drain_handlers()  # 3
        await self._cancel_handlers()  # 4
        await self._finish_polls(polls_end)  # 1, as long as there was something else to wait for
        await self._flush()  # 5
        await self._end_heartbeat()  # 6
        await self._close_what_was_opened()  # 7, 8
        if self.settings.observers:
            self.settings.observers.tell(ConsumerStopped(self.queue.info.name, self.reason, self._cancelled))
        _log.info("Stopped consuming %s", self.queue.info.url)

    def statistics(self) -> ConsumerStatistics:
        """Return a snapshot."""
        gauges = self.scheduler.statistics()
        last = self._poller.last_success
        return ConsumerStatistics(
            received=self._intake.received,
            succeeded=self._pipeline.succeeded,
            duplicates=self._pipeline.duplicates,
            failed=dict(self._pipeline.failed),
            settled=self._settler.counts(),
            settlement_failures=self._settler.failures,
            extensions=self._settler.heartbeat.extended,
            poll_failures=self._poller.failures,
            cancelled=self._cancelled,
            running=gauges.running,
            waiting=gauges.waiting,
            suspended=gauges.suspended,
            held=self._settler.held,
            tenants=gauges.tenants,
            parked=self._parking.total,
            scouting_stopped=self._scouting.stopped_because,
            group_mismatches=0 if self._grouping is None else self._grouping.mismatches,
            last_poll_age=None if last is None else self._loop.time() - last,
            pool=None if self.pool is None else self.pool.statistics(),
        )

    async def _finish_polls(self, deadline: float) -> None:
        """Wait for outstanding polls until the deadline, then give them up.

        They are left alone for as long as messages go back: SQS may serve those to a poll that nobody reads any more,
        and they would stay invisible. A poll that is alive brings them back here, and they are returned once more.
        """
        if self._polls:
            seconds = 0.0 if self._hurry.is_set() else max(0.0, deadline - self._loop.time())
            _, late = await asyncio.wait(self._polls, timeout=seconds)
            for poll in late:
                poll.cancel()
            if late:
                await asyncio.wait(late)

    async def _return_unstarted(self) -> None:
        self._pipeline.close()
        await self._intake.close()
        self._outages.close()
        if self._parking.total:  # what is parked has not started either
            self._early_recall = asyncio.create_task(self._recall_at_once(), name="postroom-recall-at-stop")

    async def _recall_at_once(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.shutdown.flush):
                await self._settler.drain()
                self._parking.recall_all()

    async def _drain_handlers(self) -> None:
        if not self._tasks():
            return
        names = ", ".join(sorted(job.message.id for job in self._pipeline.jobs.values())[:5])
        seconds = self.settings.shutdown.drain
        _log.info("Waiting up to %g s for %d handlers (messages %s)", seconds, len(self._tasks()), names)
        drained = asyncio.create_task(self._all_ended(), name="postroom-drain")
        hurry = asyncio.create_task(self._hurry.wait(), name="postroom-hurry")
        try:
            await asyncio.wait({drained, hurry}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            drained.cancel()
            hurry.cancel()
            await asyncio.wait({drained, hurry})

    async def _cancel_handlers(self) -> None:
        jobs = [job for job in self._pipeline.jobs.values() if job.task is not None]
        if not jobs:
            return
        self._cancelled += len(jobs)
        _log.warning("Cancelling %d handlers: their time to finish is over", len(jobs))
        for job in jobs:
            job.cancel(Cancellation.STOPPING)
        deadline = self._loop.time() + self.settings.shutdown.cancel
        await asyncio.wait(self._tasks(), timeout=self.settings.shutdown.cancel)
        if self._threads is not None:
            await self._threads.quiet(max(0.0, deadline - self._loop.time()))
            await asyncio.sleep(0)
        for job in list(self._pipeline.jobs.values()):
            _log.error("The handler of message %s did not end when it was cancelled", job.message.id)
            self._settler.give_back(job.delivery, Settlement.RETURNED, delay=0.0)
            job.cancel(Cancellation.STOPPING)  # a second time: a thread that still runs is abandoned

    async def _flush(self) -> None:
        deadline = self._loop.time() + self.settings.shutdown.flush
        try:
            async with asyncio.timeout_at(deadline):
                await self._settler.drain()
        except TimeoutError:
            _log.error("SQS did not answer within Shutdown(flush=%g)", self.settings.shutdown.flush)
        await self._settler.abandon()
        await self._recall_parked(deadline)

    async def _recall_parked(self, deadline: float) -> None:
        await self._in_flight.close()
        if self._early_recall is not None:
            await asyncio.wait([self._early_recall])
        try:
            async with asyncio.timeout_at(deadline):
                await self._parking.close()
        except TimeoutError:
            _log.warning("Parked messages could not be called back in time; they come by themselves")

    async def _end_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.wait([self._heartbeat])

    async def _close_what_was_opened(self) -> None:
        self._watch.close()
        if self._threads is not None:
            self._threads.close()
        try:
            await self._opened.aclose()
        except Exception:
            _log.exception("Closing what was opened for %s failed; the stop goes on", self.queue.info.name)

    async def _all_ended(self) -> None:
        while tasks := self._tasks():
            await asyncio.wait(tasks)

    def _tasks(self) -> set[asyncio.Task[None]]:
        return {job.task for job in self._pipeline.jobs.values() if job.task is not None}

    async def _dead_letter_queue(self) -> Queue | None:
        redrive = self.queue.info.redrive
        return None if redrive is None else await self._client.queue(redrive.dead_letter_queue)

    def _on_fatal(self, error: BaseException) -> None:
        self.fatal = error
        self.request_stop(StopReason.FATAL)

    def _on_lost(self, delivery: Delivery) -> None:
        self._pipeline.lost(delivery)

    def _held(self) -> int:
        """Count what takes room: messages of blocked tenants do not, within limits.

        Nor do those behind another one of their message group, which can be nine: SQS gives nothing of a group that it
        has given something of.
        """
        scheduler = self.scheduler
        most = self._capacity() if self.queue.info.fifo else max(MOST_BLOCKED, self._capacity())
        return scheduler.size - scheduler.behind + self._intake.resolving - min(scheduler.blocked, most)

    def _is_flooded(self) -> bool:
        """Whether as much waits for resources as may be held of everything else: no more of it is let in then."""
        blocked = self.scheduler.blocked
        return blocked > 0 and blocked >= self._capacity()

    def _capacity(self) -> int:
        """Return how many messages to hold at once: those that run, and enough behind them."""
        return self._total + self._buffer()

    def _buffer(self) -> int:
        """Return how many messages to hold beyond those that run, so that no slot waits for the network.

        Twice what is handled during one round trip, and a batch. More would only wait here instead of in the queue,
        where SQS keeps quiet tenants' messages in front. On a FIFO queue four batches: nobody is in front there, what
        counts is message groups, and tenants can share the slots only as far as their groups are here.
        """
        polling = self.settings.polling
        handled = self._total * self._poller.round_trip / max(self.scheduler.typical, 0.001)
        most = 10 * self._total + polling.batch if polling.prefetch is None else polling.prefetch
        batches = 4 if self.queue.info.fifo else 1
        return min(most, batches * polling.batch + int(2 * handled))

    def _on_group_back(self, group: str) -> None:
        self._intake.withdraw(group)

    def _on_slot_free(self) -> None:
        if self._parking.total or self._outages.releasing:
            self._call_back()
        self._poller.wake()

    def _call_back(self) -> None:
        if self._recalling is None:
            self._recalling = self._loop.call_soon(self._recall_if_dry)  # others may end in this very turn

    def _recall_if_dry(self) -> None:
        """Call parked messages back while slots have nothing to do, and let those go on that waited for resources."""
        self._recalling = None
        if self._stop_requested.is_set() or self.scheduler.ready >= self.settings.polling.batch:
            return
        more = self._outages.go_on(self._poller.room)
        if self._parking.count() and not self._is_flooded():
            # They come with the receives that are outstanding, so the room of these is theirs. More than may wait for
            # resources would only be parked again, for one more receive each.
            room = self._capacity() - max(self._held(), self.scheduler.blocked)
            self._parking.recall(max(0, room))
            more = True
        if more:
            self._recalling = self._loop.call_later(max(0.02, self._poller.round_trip), self._recall_if_dry)

    def _on_blocked(self) -> None:
        """A tenant's resources open: look a little later whether its messages are in the way of others."""
        self._loop.call_later(PATIENCE, self._relieve)

    def _relieve(self) -> None:
        self._intake.relieve()
        self._poller.wake()

    def _side_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._side_task_ended)
        return task

    def _side_task_ended(self, task: asyncio.Task[None]) -> None:
        """Stop the consumer when a side task dies: one that polls no more must not look alive."""
        if task.cancelled() or task.exception() is None:
            return
        self.fatal = task.exception()
        _log.critical("%s died; the consumer of %s stops", task.get_name(), self.queue.info.name, exc_info=self.fatal)
        self.request_stop(StopReason.FATAL)
