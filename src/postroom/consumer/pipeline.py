"""The path of one message. Whoever has read :meth:`Pipeline.process` knows the library."""

import asyncio
import inspect
import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable
from random import Random
from typing import Any

import msgspec

from postroom.consumer.context import MessageContext, enter_message
from postroom.consumer.faults import FaultWatch
from postroom.consumer.job import Cancellation, Job
from postroom.consumer.outages import Outages
from postroom.consumer.settings import Failure, Handle, Settings
from postroom.errors import (
    AlreadyHandled,
    ContextError,
    MessageError,
    OwnershipLost,
    PayloadError,
    PoolExhaustedError,
    PostroomError,
    Reject,
    ResourceError,
    ResourceOpenError,
    Retry,
)
from postroom.events import HandlerFinished, HandlerStarted, MessageFailed, Observers
from postroom.message import Message
from postroom.resources import Lease, ResourcePool
from postroom.scheduling import Scheduler, State
from postroom.settlement import Delivery, Settler, backoff, exponential
from postroom.types import AckMode, Settlement

_log = logging.getLogger("postroom.consumer")

Decode = Callable[[Message], Any]

MOST_HELD = 1_000
"""Messages of one tenant held here at the most because one more receive could make dead letters of them."""

_WHAT_FAILED: tuple[tuple[type[BaseException], str], ...] = (
    (ContextError, "Context resolution failed"),
    (PayloadError, "Payload decoding failed"),
    (ResourceError, "Resource provisioning failed"),
)


class _Quarantined(Reject):
    """The message's tenant is in quarantine. Where there is no dead-letter queue it stays in its own."""


class _Stopping(Exception):
    """The consumer stops, and this message has not been started."""


class Pipeline:
    """Decode, lease, handle, settle: for each granted job, in a task of its own.

    Args:
        settings: what the consumer was configured with.
        decode: body to payload.
        pool: where resources are leased; None when the consumer has none.
        handle: the handler with everything around it.
        scheduler: grants slots. A slot is freed when its message ends, whatever else is going on.
        settler: holds the deliveries and settles them.
        faults: tells poison messages from broken tenants.
        outages: knows whose resources are down.
        spares: whether a message can do with one receive less.
        quarantined_because: why a tenant's messages go to the dead-letter queue at once; None for all others.
        on_slot_free: called when a message ended.
        on_blocked: called when a message begins to wait for its tenant's resources.
        on_group_back: called with the group of a message that is not done, on a FIFO queue: what is still on its way
            to the scheduler has to go back as well.
    """

    def __init__(
        self,
        settings: Settings[Any, Any],
        *,
        decode: Decode,
        pool: ResourcePool[Any, Any] | None,
        handle: Handle,
        scheduler: Scheduler[Job],
        settler: Settler,
        faults: FaultWatch,
        outages: Outages,
        spares: Callable[[Delivery], bool],
        quarantined_because: Callable[[Hashable], str | None],
        on_slot_free: Callable[[], None],
        on_blocked: Callable[[], None],
        on_group_back: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._decode = decode
        self._pool = pool
        self._handle = handle
        self._scheduler = scheduler
        self._settler = settler
        self._observers: Observers = settings.observers
        self._faults = faults
        self._outages = outages
        self._spares = spares
        self._quarantined_because = quarantined_because
        self._waking: asyncio.TimerHandle | None = None
        self._on_slot_free = on_slot_free
        self._on_blocked = on_blocked
        self._on_group_back = on_group_back
        self._rng = Random()  # noqa: S311 - jitter, not secrecy
        self._closing = False
        self.on_fatal: Callable[[BaseException], None] = lambda _error: None
        self.jobs: dict[Delivery, Job] = {}
        """Jobs that have a task."""
        self.succeeded = 0
        self.duplicates = 0
        """Messages whose handlers found them handled before."""
        self.failed: Counter[str] = Counter()
        """Failures by the name of their error's type."""

    def dispatch(self, now: float | None = None) -> None:
        """Give every free slot away. ``now`` is for a caller who knows the time already."""
        if now is None:
            now = self._loop.time()
        while (job := self._scheduler.grant(now)) is not None:
            job.since = now
            if self._faults.open and (until := self._faults.until(job.tenant)):
                if until > now:  # a lane that came anew, or was woken by a decision about its tenant
                    self._scheduler.sleep(job.tenant, until)
                    self._scheduler.put_back(job)
                    continue
                job.probe = until
                self._scheduler.sleep(job.tenant, math.inf)  # this one is the probe, and the only one
            if job.turn is not None:
                if not job.turn.done():
                    job.turn.set_result(None)
                continue
            self.jobs[job.delivery] = job
            job.task = self._loop.create_task(self.process(job), name=f"postroom-message-{job.message.id}")
        wake = self._scheduler.next_wake()
        if wake is not None and wake > now:  # one that is due waits for a slot, and whoever frees one calls
            self._dispatch_at(wake)

    def _dispatch_at(self, when: float) -> None:
        """Give slots away again at a time, when a tenant that sleeps or has a pace may have one."""
        if self._waking is None or self._waking.when() > when or self._waking.cancelled():
            if self._waking is not None:
                self._waking.cancel()
            self._waking = self._loop.call_at(when, self._woken)

    def _woken(self) -> None:
        self._waking = None
        self.dispatch()

    async def process(self, job: Job) -> None:
        """Tell the story of one message, from its slot to its settlement."""
        job.begun = True
        try:
            if job.context_error is not None:
                raise job.context_error
            if (reason := self._quarantined_because(job.tenant)) is not None:
                raise _Quarantined(reason)
            job.payload = self._decode(job.message)  # before the lease: a malformed body opens nobody's database
            if self._pool is None:
                await self._run_handler(job, resources=None)
            else:
                lease = self._pool.try_lease(job.context) or await self._lease_without_slot(job, self._pool)
                try:
                    await self._run_handler(job, resources=lease.resource)
                except Exception as error:
                    lease.report(error)  # a broken connection makes the resource suspect
                    raise
                finally:
                    lease.release()
        except asyncio.CancelledError as error:
            await self._was_cancelled(job, error)
        except Exception as error:
            await self._did_fail(job, error)
        except AlreadyHandled:
            self._was_handled_before(job)
        except BaseException as error:  # the program ends
            self._settler.give_back(job.delivery, Settlement.RETURNED, delay=0.0)
            self.on_fatal(error)
        else:
            self._did_succeed(job)
        finally:
            self._free_slot(job)

    def close(self) -> None:
        """Start no handler any more. What waits for its tenant's resources is cancelled and goes back."""
        self._closing = True
        if self._waking is not None:
            self._waking.cancel()
        for job in self.jobs.values():
            if not job.started:
                job.cancel(Cancellation.STOPPING)

    def lost(self, delivery: Delivery) -> None:
        """Cancel the handler of a message that is not ours any more. Its acknowledgement is suppressed already."""
        job = self.jobs.get(delivery)
        if job is not None:
            job.cancel(Cancellation.LOST)

    async def _lease_without_slot(self, job: Job, pool: ResourcePool[Any, Any]) -> Lease[Any]:
        """Open, or wait for, the tenant's resources: in its lane, not in a slot. Then wait for a slot again."""
        now = self._loop.time()
        self._scheduler.suspend(job, now=now, seconds=now - job.since)
        self._on_blocked()
        self.dispatch()
        lease = await self._acquire(job, pool)
        try:
            job.turn = self._loop.create_future()
            self._scheduler.resume(job)
            self._end_probe(job)  # its lane sleeps behind it: let it be granted its slot again, as the probe
            self.dispatch()
            await job.turn
            if (reason := self._quarantined_because(job.tenant)) is not None:  # decided while it waited
                raise _Quarantined(reason)
        except BaseException:
            lease.release()
            raise
        finally:
            job.turn = None
        return lease

    async def _acquire(self, job: Job, pool: ResourcePool[Any, Any]) -> Lease[Any]:
        """Wait for a lease; through refusals, too, if one more receive could make a dead letter of the message."""
        held = False
        while True:
            try:
                lease = await pool.acquire(job.context)
            except (PoolExhaustedError, ResourceOpenError) as error:
                if (isinstance(error, ResourceOpenError) and error.permanent) or not self._must_be_held(job):
                    raise
                refusal = error
            else:
                self._outages.end(job)
                return lease
            if not held:
                _log.warning("Message %s is held here, it has no receive to spare: %s", job.message.id, refusal)
            held = True
            await self._outages.wait(job, refusal)
            if (reason := self._quarantined_because(job.tenant)) is not None:
                raise _Quarantined(reason)

    async def _run_handler(self, job: Job, *, resources: Any) -> None:
        if job.delivery.lost:  # while it waited
            text = f"message {job.message.id} was lost while it waited for its turn"
            raise OwnershipLost(text, message_id=job.message.id)
        if self._closing:
            raise _Stopping
        job.started = True
        ctx = MessageContext(
            job.message,
            job.context,
            resources,
            job.tenant,
            job.message.receive_count,
            _Settling(self._settler, job, self._settings, loop=self._loop),
        )
        enter_message(ctx)
        try:
            await (self._observed(job, ctx) if self._observers else self._handle(job.payload, ctx))
        except BaseExceptionGroup as group:  # of a handler with a TaskGroup
            duplicates, failures = group.split(AlreadyHandled)
            if duplicates is None:
                raise
            raise (failures or AlreadyHandled()) from None

    async def _observed(self, job: Job, ctx: MessageContext[Any, Any]) -> None:
        """Call the handler, and tell the observers of it."""
        started = self._loop.time()
        error: BaseException | None = None
        self._observers.tell(HandlerStarted(job.message, job.context))
        try:
            await self._handle(job.payload, ctx)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._observers.tell(HandlerFinished(job.message, job.context, self._loop.time() - started, error))

    def _did_succeed(self, job: Job) -> None:
        self.succeeded += 1
        if self._faults.succeeded(job.tenant, job.message.id):
            self._scheduler.wake(job.tenant)
        if self._settings.ack is AckMode.MANUAL:
            self._leave(job)
        else:
            self._ack(job)

    def _was_handled_before(self, job: Job) -> None:
        """Acknowledge a duplicate, in every mode: its work is done, and nobody else will say so."""
        self.duplicates += 1
        _log.debug("Message %s was handled before", job.message.id)
        self._ack(job)

    def _ack(self, job: Job) -> None:
        if job.delivery.settlement is None:
            self._settler.ack(job.delivery)
        elif job.delivery.settlement is not Settlement.ACKED:
            self._return_group(job)

    async def _did_fail(self, job: Job, error: Exception) -> None:
        """Decide what becomes of a message whose handling raised. Never raises: it may be cancelled in on_error."""
        try:
            await self._decide(job, error)
        except asyncio.CancelledError:
            if job.cancellation is None and not _is_cancelled():
                self._settle_failure(job, error)  # on_error raised it
                return
            self._settler.give_back(job.delivery, Settlement.RETURNED, delay=0.0)
            self._return_group(job)

    async def _decide(self, job: Job, error: Exception) -> None:
        match error:
            case Retry() | Reject():
                await self._obey(job, error)
            case _Stopping():
                self._settler.give_back(job.delivery, Settlement.RETURNED, delay=0.0)
            case OwnershipLost():
                self._settler.lose(job.delivery)  # ctx.ack() may know it before the heartbeat does
                await self._report(job, error)
                self._return_group(job)
            case PoolExhaustedError() | ResourceOpenError(permanent=False):
                await self._report(job, error)
                self._defer(job, error)
            case _:
                instruction = await self._report(job, error) or self._blame(job, error)
                if instruction is not None:
                    await self._obey(job, instruction)
                else:
                    self._settle_failure(job, error)

    def _blame(self, job: Job, error: Exception) -> Reject | None:
        """Count a failure of the handler against its tenant and its message; return a rejection if that is poison."""
        if not job.started or self._settings.resolver is None or self._closing:
            return None
        now = self._loop.time()
        before = self._faults.until(job.tenant)
        probe = job.probe != 0.0 and job.probe == before
        rejection = self._faults.failed(job.tenant, job.message.id, error, now, probe=probe)
        if (until := self._faults.until(job.tenant)) != before:
            job.probe = 0.0
            self._scheduler.wake(job.tenant)
            self._scheduler.sleep(job.tenant, until)
        return rejection if self._settings.ack is AckMode.ON_SUCCESS else None

    async def _was_cancelled(self, job: Job, error: asyncio.CancelledError) -> None:
        """Tell apart our own cancellation, that of the whole program, and a handler that raised CancelledError."""
        if job.cancellation is None and not _is_cancelled():
            failure = MessageError("the handler raised CancelledError of its own", message_id=job.message.id)
            failure.__cause__ = error
            await self._did_fail(job, failure)
            return
        self._settler.give_back(job.delivery, Settlement.RETURNED, delay=0.0)
        self._return_group(job)

    async def _report(self, job: Job, error: Exception) -> Retry | Reject | None:
        """Log the error and call ``on_error``. What that raises is logged, or obeyed if it is an instruction."""
        if isinstance(error, MessageError):
            error.message_id = job.message.id
        self.failed[type(error).__name__] += 1
        _log_failure(job.message, error)
        if self._observers:
            self._observers.tell(MessageFailed(job.message, job.context, error))
        if self._settings.on_error is None:
            return None
        try:
            outcome = self._settings.on_error(Failure(error, job.message, job.context, job.payload))
            if inspect.isawaitable(outcome):
                await outcome
        except (Retry, Reject) as instruction:
            return instruction
        except Exception:
            _log.exception("on_error failed for message %s; the message is treated as failed", job.message.id)
        return None

    async def _obey(self, job: Job, instruction: Retry | Reject) -> None:
        if isinstance(instruction, Reject) and await self._rejected(job, instruction):
            return
        delay = instruction.delay if isinstance(instruction, Retry) else None
        if delay is None:
            delay = backoff(self._settings.retry, job.message, instruction, self._rng)
        self._settler.give_back(job.delivery, Settlement.RETRIED, delay=delay)
        self._return_group(job)

    async def _rejected(self, job: Job, instruction: Reject) -> bool:
        """Make the message a dead letter; without a dead-letter queue it has failed. False: it could not be sent."""
        try:
            if not await self._settler.reject(job.delivery, instruction.reason):
                if isinstance(instruction, _Quarantined):
                    return False  # its handler was not called: nothing may delete it, in any mode
                self._settle_failure(job, instruction)
        except PostroomError as error:
            # Neither handled nor a dead letter: it comes back, in every mode.
            _log.error("Message %s could not be made a dead letter: %s", job.message.id, error)
            return False
        return True

    def _settle_failure(self, job: Job, error: Exception) -> None:
        match self._settings.ack:
            case AckMode.ALWAYS:
                self._settler.ack(job.delivery)
            case AckMode.MANUAL:
                self._leave(job)
            case AckMode.ON_SUCCESS:
                delay = backoff(self._settings.retry, job.message, error, self._rng)
                self._settler.give_back(job.delivery, Settlement.RETRIED, delay=delay)
                self._return_group(job)

    def _defer(self, job: Job, error: PoolExhaustedError | ResourceOpenError) -> None:
        """Not tried, so not failed: seen again when its tenant's resources may be back, in every mode."""
        delay = exponential(self._settings.retry, job.message.receive_count, self._rng)
        self._outages.defer(job, error, delay=delay)
        self._return_group(job)

    def _must_be_held(self, job: Job) -> bool:
        """Whether one more receive could make a dead letter of a message that was not even tried."""
        if self._closing or job.delivery.lost or self._spares(job.delivery):
            return False
        return self._scheduler.figures(job.tenant).waiting < MOST_HELD

    def _end_probe(self, job: Job) -> None:
        """Let the next message of a broken tenant be the probe: this one ended without telling anything.

        Unless its breaker opened anew meanwhile: that pause, and its probe, are another's.
        """
        if job.probe:
            if self._faults.until(job.tenant) in {0.0, job.probe}:
                self._scheduler.wake(job.tenant)
            job.probe = 0.0

    def _leave(self, job: Job) -> None:
        self._settler.leave(job.delivery)
        if job.delivery.settlement is not Settlement.ACKED:
            self._return_group(job)

    def _return_group(self, job: Job) -> None:
        """Give back, in order, what waits behind a message in its group: nothing may overtake it."""
        for other in self._scheduler.withdraw_group(job):
            self._settler.give_back(other.delivery, Settlement.RETURNED, delay=0.0)
        if job.group is not None:
            self._on_group_back(job.group)

    def _free_slot(self, job: Job) -> None:
        now = self._loop.time()
        self.jobs.pop(job.delivery, None)
        if job.probe:
            self._end_probe(job)
        job.task = None  # it holds the context, which holds the job: such a circle would wait for the collector
        if job.state is not State.WAITING:  # it is held: it will be granted another slot, and another task
            self._scheduler.finish(job, seconds=now - job.since)
        self.dispatch(now)
        self._on_slot_free()


class _Settling(msgspec.Struct, eq=False):
    """What stands behind ``ctx.ack()`` and ``ctx.retry()`` of one message."""

    _settler: Settler
    _job: Job
    _settings: Settings[Any, Any]
    transactions: int = 0

    loop: Any = None

    async def extend(self, seconds: float) -> None:
        raise NotImplementedError

    async def acknowledge(self) -> None:
        """Delete the message and return when that is confirmed."""
        await self._settler.ack_now(self._job.delivery)

    async def give_back(self, delay: float | None) -> None:
        """Leave the message in the queue and return when that is confirmed."""
        job = self._job
        if delay is None:
            # No error led here; the formula counts receives.
            delay = exponential(self._settings.retry, job.message.receive_count, Random())  # noqa: S311 - jitter
        await self._settler.give_back_now(job.delivery, Settlement.RETRIED, delay=delay)


def _is_cancelled() -> bool:
    """Return whether somebody cancelled the current task, as opposed to code that raised CancelledError."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _log_failure(message: Message, error: Exception) -> None:
    for kind, what in _WHAT_FAILED:
        if isinstance(error, kind):
            _log.error("%s for message %s: %s", what, message.id, error)
            return
    _log.error("Handler failed for message %s (receive %d)", message.id, message.receive_count, exc_info=error)
