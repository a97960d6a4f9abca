"""The path of one message. To know the library, read ``Pipeline.process``."""

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random
from sys import exc_info
from typing import Any, cast

from postroom.consumer.context import MessageContext, enter_message
from postroom.consumer.core import Core, failure_named
from postroom.consumer.engine import Engine
from postroom.consumer.failing import FailureLog
from postroom.consumer.handlers import refuse_unraised, refuse_unworked
from postroom.consumer.job import Job
from postroom.consumer.settings import Failure, Handle, OnError, Settings
from postroom.consumer.settling import Settling
from postroom.consumer.step_health import StepHealth
from postroom.consumer.tenants import Tenants
from postroom.consumer.unwrapping import Unwrapping
from postroom.errors import (
    AlreadyHandled,
    ClosedError,
    ConfigurationError,
    ContextError,
    Drop,
    InvalidRequest,
    MessageError,
    NotOpenError,
    OwnershipLost,
    PayloadError,
    PoolExhaustedError,
    PostroomError,
    Reject,
    ResourceError,
    ResourceOpenError,
    Retry,
    in_words,
    retry_delay,
)
from postroom.events import HandlerFinished, HandlerStarted, MessageFailed, Observers
from postroom.log_fields import Log, Step, about, tenant_in_words
from postroom.message import Message
from postroom.program_end import ends_the_program
from postroom.redaction import describe, log_error, redact
from postroom.resources import Lease, ResourcePool, sqlstate_of
from postroom.resources.failures import is_of_server
from postroom.settlement import DeadLetters, backoff
from postroom.tasks import TimeLimit, is_cancelled, runs_as
from postroom.tracebacks import drop_if_long
from postroom.types import UNRESOLVED, AckMode, OnInvalid, Settlement

_log = Log("postroom.consumer", Step.HANDLER)

Decode = Callable[[Message], Any]


class _Quarantined(Reject):
    """The message's tenant is in quarantine: it goes to the dead-letter queue, and waits where there is none."""


class _Diverted(PostroomError):
    """The message's tenant is diverted: the message goes to another queue, named by the argument."""

    def __init__(self, queue: str, reason: str) -> None:
        super().__init__(f"diverted to {queue}: {reason}")
        self.queue, self.reason = queue, reason


class _NotNow(Exception):
    """The message cannot run after all, through no fault of its own: a stop, or a decision about its tenant."""


_GONE = frozenset({Settlement.ACKED, Settlement.REJECTED})
"""What was decided about a message that is in its queue no longer, if it was ours."""


def _is_no_failure(job: Job, error: BaseException) -> bool:
    """Whether the handling of a message raised this to say what becomes of it, also where it was cut off."""
    if isinstance(error, OwnershipLost):
        return _tells_of(job, error)
    return isinstance(error, Retry | Reject | Drop | _Diverted | _NotNow)


def _tells_of(job: Job, error: OwnershipLost) -> bool:
    """Whether a message is lost. That another one is, which its handler let out, is a failure of this one."""
    return error.message_id in {None, job.message.id} or not job.source.settler.ours(job)


class Pipeline:
    """Decode, lease, handle, settle: for each message that has a slot, in a task of its own.

    Args:
        settings: what the consumer was configured with.
        engine: frees slots and carries out what the core decides.
        pool: where resources are leased; None when the consumer has none.
        tenants: what was decided about single tenants.
        decode: body to payload.
        handle: the handler with everything around it.
    """

    def __init__(
        self,
        settings: Settings[Any, Any],
        engine: Engine,
        pool: ResourcePool[Any, Any] | None,
        tenants: Tenants,
        *,
        decode: Decode,
        handle: Handle,
    ) -> None:
        self._engine = engine
        self._core: Core = engine.core
        self._pool = pool
        self._tenants = tenants
        # By its method: calling an instance packs its arguments into a tuple first.
        self._decode: Decode = decode if inspect.isroutine(decode) else cast("Any", decode).__call__
        self._handle = handle
        self._unwrap = settings.unwrap
        self._ack_mode = settings.ack
        self._acks = settings.ack is not AckMode.MANUAL
        self._invalid = settings.invalid
        self._patience = settings.concurrency.resolver_timeout
        self._on_error: OnError | None = settings.on_error
        self._observers: Observers = settings.observers
        self._time = engine.tasks.time
        self._rng = Random()  # noqa: S311 - jitter, not secrecy
        self.failures: FailureLog = FailureLog(engine.tasks)
        """What the log says of failed attempts."""
        self.succeeded: int = 0
        self.duplicates: int = 0
        """Messages that their handlers found handled before."""
        self.failed: Counter[str] = Counter()
        """Failures by the name of their error's type."""

    async def process(self, job: Job) -> None:  # noqa: PLR0912 - a method of its own would cost each message a call
        """Tell the story of one message, from its slot to its settlement."""
        # From here on a withdrawal leaves the message to this task.
        job.running = True
        try:
            if job.problem is not None:
                raise job.problem
            # One flag, because a decision about a tenant is rare and this line runs for every
            # message.
            if self._tenants.ruled:
                self._heed_decision(job)
            if not job.decoded:
                # Before the lease: a malformed body opens no database.
                message = job.message if self._unwrap is None else await self._contents(job, self._unwrap)
                job.payload = self._decode(message)
                job.decoded = True
                # Now, and not after its handler: what fails meanwhile is no row.
                if job.source.decoder.listens:
                    self._engine.went_well(job.source.decoder, job)
            if self._pool is None:
                await self._run_handler(job, None)
            else:
                # A hit takes no await, so that an open resource costs no turn of the loop.
                held = self._pool.try_hold(job.context) or await self._lease_without_slot(job, self._pool)
                try:
                    # Before the handler runs: the others of its tenant need not wait for its end.
                    if job.leads:
                        self._core.leased(job)
                    await self._run_handler(job, held.resource)
                except Exception as error:
                    # A broken connection makes the resource suspect.
                    job.met_outage = held.report(error) and _is_of_resources(error)
                    raise
                finally:
                    job.lease = None  # it may have waited with it in hand
                    held.release()
        except BaseException as error:
            if isinstance(error, GeneratorExit) and job.task is not None and not runs_as(job.task):
                raise  # the loop is gone, and this coroutine is closed: it may await nothing
            await self._did_not_succeed(job, error)
            drop_if_long(error)
        else:
            self._did_succeed(job)
        finally:
            # An error that comes to here is a defect.
            self._engine.ended(job, exc_info()[1])

    async def _contents(self, job: Job, unwrap: Unwrapping) -> Message:
        """Return what the payload is decoded from."""
        message = await unwrap.contents(job)
        if self._tenants.ruled:
            self._heed_decision(job)  # decided while its body was fetched
        return message

    async def _lease_without_slot(self, job: Job, pool: ResourcePool[Any, Any]) -> Lease[Any]:
        """Open, or wait for, the tenant's resources: in its lane, not in a slot. Then wait for a slot again."""
        began = self._time()
        self._core.suspend(job, began)
        # Its tenant may hold what has to make room, now that its messages cannot run.
        self._engine.blocked()
        self._engine.dispatch()
        left = job.source.patience(job, began)
        lease = await pool.acquire(job.context, **({"timeout": left} if left < pool.timeouts.lease else {}))
        try:
            # Before anything else: other messages of this tenant wait for exactly this open.
            self._engine.available(job.tenant)
            if self._tenants.is_paused(job.tenant):
                raise _NotNow
            now = self._time()
            job.lease, job.leasing = lease, now - began
            # Kept while its tenant is left alone, it would keep the place in the budget of others.
            if self._core.has_to_wait(job, now):
                raise _NotNow
            job.turn = self._engine.tasks.loop.create_future()
            self._core.resume(job)
            self._engine.dispatch()
            if not job.turn.done() and self._core.endings.has_no_time(
                job, now
            ):  # the next look at what waits may be too late
                raise _NotNow
            # False: it was withdrawn in the meantime, by a stop or a decision.
            if not await job.turn:
                raise _NotNow
            self._heed_decision(job)  # decided while it waited
        except BaseException:
            job.lease = None
            lease.release()
            raise
        finally:
            job.turn = None
        return lease

    def _heed_decision(self, job: Job) -> None:
        """Raise what becomes of a message that may not be handled: its tenant may have been paused since its grant."""
        if self._tenants.is_paused(job.tenant):
            raise _NotNow
        if (reason := self._tenants.quarantined_because(job.tenant)) is not None:
            raise _Quarantined(reason)
        diverted = self._tenants.diverted(job.tenant)
        if diverted is not None and not job.source.is_called(diverted[0]):  # there it is where it was sent to
            raise _Diverted(*diverted)

    async def _run_handler(self, job: Job, resources: Any) -> None:
        if not job.source.settler.ours(job):  # the loop was blocked, or the machine suspended, while it waited
            text = f"message {job.message.id} was lost while it waited for its turn"
            raise OwnershipLost(text, message_id=job.message.id)
        # The stop may have begun while its payload was decoded or its resources opened.
        if self._core.closing and not self._core.keeps(job):
            raise _NotNow
        job.started = job.tried = True
        settling = Settling(job, self._engine)
        ctx = MessageContext(job.message, job.context, resources, job.tenant, job.attempt, settling)
        enter_message(ctx)
        try:
            if self._observers:
                await self._observed(job, ctx, settling)
            elif (result := await self._handle(job.payload, ctx)) is not None:
                refuse_unworked(result)
        except BaseExceptionGroup as group:  # of a handler with a TaskGroup
            duplicates, failures = group.split(AlreadyHandled)
            # A `TaskGroup` wraps what its tasks raise. A duplicate or an instruction among other
            # errors is a failure all the same.
            if duplicates is not None:
                raise (failures or AlreadyHandled()) from None
            if isinstance(only := _only_one_of(group), Retry | Reject | Drop):
                raise only from None
            raise

    async def _observed(self, job: Job, ctx: MessageContext[Any, Any], settling: Settling) -> None:
        """Call the handler, and tell the observers of it."""
        began = self._time()
        error: BaseException | None = None
        waited = began - job.received_at
        tenant, attempt = job.tenant, job.attempt
        self._observers.tell(
            HandlerStarted(job.message, job.context, tenant, attempt, waited, job.leasing, job.attributes)
        )
        try:
            if (result := await self._handle(job.payload, ctx)) is not None:
                refuse_unworked(result)
        except BaseException as raised:
            error = raised
            raise
        finally:
            seconds = self._time() - began - settling.idle
            self._observers.tell(HandlerFinished(job.message, job.context, seconds, error, job.tenant, job.attempt))

    # -- how it ended -------------------------------------------------------------------------------------------

    def _did_succeed(self, job: Job) -> None:
        self.succeeded += 1
        core = self._core
        core.succeeded(job, self._time())
        if core.availability.known_outages and core.availability.ends_outage(job):
            self._engine.available(job.tenant)
        if self._acks:
            # The same as `_ack`, written out because it runs for every message.
            if job.settlement is None:
                job.source.settler.ack(job)
            if job.group is not None:
                self._give_group_back(job)
        else:
            if job.settlement is None and not job.lost:
                self._engine.rejections.unacknowledged(job)
            self._leave(job)

    def _was_handled_before(self, job: Job) -> None:
        """Acknowledge a duplicate, in every mode: its work is done, and no other consumer will say so."""
        self.duplicates += 1
        _log.debug("Message %s was handled before", job.message.id, extra=about(job))
        self._ack(job)

    def _ack(self, job: Job) -> None:
        if job.settlement is None:
            job.source.settler.ack(job)
        self._give_group_back(job)

    async def _did_not_succeed(self, job: Job, error: BaseException) -> None:
        match error:
            case asyncio.CancelledError():
                await self._was_cancelled(job, error)
            case AlreadyHandled():
                self._was_handled_before(job)
            case _:
                await self._did_fail(job, error)

    async def _was_cancelled(self, job: Job, error: asyncio.CancelledError) -> None:
        """Tell apart our own cancellation, that of the whole program, and a handler that raised CancelledError."""
        if self._is_cut_off(job):
            self._return(job)
            return
        while (task := job.task) is not None and task.cancelling():
            task.uncancel()  # it was cancelled by the handler's own code, as a failure
        failure = MessageError("the handler raised CancelledError of its own", message_id=job.message.id)
        failure.__cause__ = error
        await self._did_fail(job, failure)

    async def _did_fail(self, job: Job, error: BaseException) -> None:
        """Decide what becomes of a message after its handling raised. It may be cancelled in ``on_error``."""
        try:
            # Many a library makes an error of its own of a cancellation: it is no failure of the message.
            if self._is_cut_off(job) and not _is_no_failure(job, error):
                text = "The handling of message %s of %s was cut off, and ended with %s"
                _log.warning(text, job.message.id, tenant_in_words(job.tenant), describe(error), extra=about(job))
                self._return(job)
            else:
                await self._decide(job, error)
        except asyncio.CancelledError:
            if not self._is_cut_off(job):
                self._settle_failure(job, error)  # something else than a cancellation raised it
            else:
                job.started = False  # its handler had ended: what was cut off is on_error
                self._return(job)
        # Last: the message is decided before the consumer learns that it has to stop.
        if ends_the_program(error):
            self._engine.end(error)

    def _is_cut_off(self, job: Job) -> bool:
        """Whether its task was cancelled by the consumer, or with the whole program: else the user's code did it."""
        return is_cancelled() and (job.cancellation is not None or self._engine.is_ending())

    async def _decide(self, job: Job, error: BaseException) -> None:
        match error:
            case Retry() | Reject() | Drop():
                await self._obey(job, error)
            case _Diverted():
                await self._send_away(job, error, str(error), job.source.diversions.to(error.queue))
            # Before the other cases of `ContextError`: it is an instruction in an error's clothes.
            case ContextError(__cause__=(Retry() | Reject() | Drop()) as instruction):
                await self._obey(job, instruction)  # of the resolver, or of an envelope
            case ContextError(__cause__=BaseException() as cause) if ends_the_program(cause):
                await self._report(job, error)
                self._retry(job, error)
            case _NotNow():
                self._core.put_back(job, self._time())
                self._engine.act()
            case OwnershipLost() if _tells_of(job, error):
                job.source.settler.lose(job)  # ctx.ack() may know it before the heartbeat does
                await self._report(job, error)
                self._give_group_back(job)
            case ConfigurationError() if self._leases(job):
                self._core.wait_for_the_stop(job, self._time())
                self._engine.act()
                self._engine.end(error)  # what was passed as resources= cannot work for any tenant
            # Nothing that the message did: it waits, and no attempt is counted.
            case PoolExhaustedError() | ResourceOpenError(permanent=False):
                await self._wait(job, error)
            case ClosedError() | NotOpenError() if self._leases(job):  # the application may open the pool again
                await self._wait(job, error)
            case _ if job.met_outage:
                await self._wait(job, error)
            case _:
                await self._blame(job, error)

    def _leases(self, job: Job) -> bool:
        """Whether a message was about to get its tenant's resources."""
        return self._pool is not None and job.decoded and not job.started

    async def _wait(self, job: Job, error: BaseException) -> None:
        """Let a message wait that could not have its tenant's resources, unless ``on_error`` decides otherwise."""
        instruction = None
        # Once for a message: it may meet the same outage every few seconds, for hours.
        if not job.reported:
            job.reported = True
            instruction = await self._report(job, error, quietly=True)
        if instruction is not None:
            await self._obey(job, instruction)
        # `on_error` took time: the message may have been settled or lost meanwhile.
        elif job.settlement is None and not job.lost:
            self._engine.let_go(self._core.refused(job, error, self._time()))
            self._engine.act()
        else:
            self._give_group_back(job)

    async def _blame(self, job: Job, error: BaseException) -> None:
        """Count a failed attempt, tell ``on_error``, and do what it says or the retry policy."""
        attempts = job.source.attempts
        if isinstance(error, PayloadError) and not job.decoded:
            job.source.decoder.failed(job, error, self._time())
        attempts.failed(job)
        instruction = await self._report(job, error)
        if instruction is None and isinstance(error, PayloadError) and not job.started:
            instruction = _for_invalid(error, self._invalid)
        # During a stop handlers fail because of the stop: that says nothing about their tenant.
        if job.started and job.source.resolves and not self._core.closing:
            self._engine.let_go(self._core.failed(job, error, self._time()))
            self._engine.dispatch()  # its lane may sleep from now on: a timer has to wake it
            if instruction is None and self._ack_mode is AckMode.ON_SUCCESS:
                poison = attempts.poison(job, job.source.faults_of(job))
                instruction = None if poison is None else Reject(poison)
        if instruction is not None:
            await self._obey(job, instruction)
        else:
            self._settle_failure(job, error)

    async def _report(self, job: Job, error: BaseException, *, quietly: bool = False) -> Retry | Reject | Drop | None:
        """Log the error and call ``on_error``. What that raises is logged, or obeyed if it is an instruction.

        ``quietly``: it is an outage, which is logged once for all of its messages.
        """
        if isinstance(error, MessageError) and not isinstance(error, OwnershipLost):  # which may be another message's
            with suppress(AttributeError):  # of a class of the application's, which may be frozen
                error.message_id = job.message.id
        self.failed[type(error).__name__] += 1
        level = logging.DEBUG if quietly else logging.ERROR
        if isinstance(error, ResourceOpenError) and not quietly:
            level = self._engine.rejections.level(job, type(error).__name__)
        self.failures.tell(job, error, level)
        if self._observers:
            tenant = None if job.tenant is UNRESOLVED else job.tenant
            self._observers.tell(MessageFailed(job.message, job.context, error, tenant, job.attempt, job.attributes))
        if self._on_error is None:
            return None
        limit = TimeLimit(self._patience)
        try:
            job.reporting, job.limit = True, limit
            outcome: Any = self._on_error(Failure(error, job.message, job.context, job.payload))
            if inspect.isawaitable(outcome):
                async with limit:
                    outcome = await outcome
            refuse_unraised(outcome, "on_error", Retry | Reject | Drop | AlreadyHandled)
        # The only errors of `on_error` that mean something; any other is its own defect.
        except (Retry, Reject, Drop) as instruction:
            return instruction
        except AlreadyHandled:
            return Drop("on_error says that it was handled already")
        except BaseException as raised:
            if isinstance(raised, asyncio.CancelledError) and self._is_cut_off(job):
                raise
            text = "on_error failed for message %s of %s; the message is treated as failed"
            if isinstance(raised, TimeoutError) and limit.expired():
                text = (
                    f"on_error took longer than Concurrency(resolver_timeout={self._patience:g}) for message %s of %s"
                )
            extra = about(job, step=Step.ON_ERROR)
            log_error(_log, logging.ERROR, text, job.message.id, tenant_in_words(job.tenant), error=raised, extra=extra)
            if ends_the_program(raised):
                self._engine.end(raised)
        finally:
            job.reporting, job.limit = False, None
        return None

    # -- what becomes of it -------------------------------------------------------------------------------------

    async def _obey(self, job: Job, instruction: Retry | Reject | Drop) -> None:
        match instruction:
            case Drop():
                reason = _reason_of(instruction)
                if not self._was_settled(job, "dropped", reason):
                    self._engine.rejections.dropped(job, reason)
                    self._ack(job)
            case Reject():
                await self._obey_reject(job, instruction)
            case Retry():
                # Otherwise it asked for time before its handler ran: that spends no attempt.
                if job.started or job.problem is not None:
                    job.source.attempts.failed(job)
                delay = _delay_of(job, instruction)
                self._engine.rejections.retried(job, _reason_of(instruction), delay)
                self._retry(job, instruction, delay=delay)

    async def _obey_reject(self, job: Job, instruction: Reject) -> None:
        """Make the message a dead letter; without a dead-letter queue it has failed."""
        reason = _reason_of(instruction)
        if self._was_settled(job, "rejected", reason):
            return
        redrive = job.source.facts.redrive
        # Nothing may delete it, in any mode: without a dead-letter queue it waits for one.
        if isinstance(instruction, _Quarantined) and (redrive is not None or job.source.facts.known):
            await self._send_away(job, instruction, reason, job.source.settler.dead_letters)
            return
        # Where the attributes may not be read, the dead-letter queue is tried: it may exist.
        if redrive is not None or not job.source.facts.known:
            if job.group is None:  # no slot is held while the dead-letter queue takes it
                self._core.reject(job, reason, self._backoff(job, instruction))
                self._engine.act()
            elif await self._engine.reject(job, reason):
                self._give_group_back(job)
            else:  # neither handled nor a dead letter: it comes back, in every mode
                self._retry(job, instruction)
            return
        self._engine.rejections.nowhere(job, reason, comes_back=self._ack_mode is not AckMode.ALWAYS)
        self._settle_failure(job, instruction)

    def _was_settled(self, job: Job, what: str, reason: str) -> bool:
        """Whether it was decided before what becomes of a message: then that stands, and is said."""
        if job.settlement is None and not job.lost:
            return False
        text = f"Message %s of %s is not {what} (%s): %s it before"
        before = f"its handler had {job.settlement.value}" if job.settlement is not None else "the consumer had lost"
        _log.warning(text, job.message.id, tenant_in_words(job.tenant), redact(reason), before, extra=about(job))
        self._give_group_back(job)
        return True

    async def _send_away(
        self, job: Job, instruction: _Diverted | _Quarantined, reason: str, target: DeadLetters
    ) -> None:
        """Move the message to the queue that its tenant's messages go to; where that is not possible it waits."""
        queue = instruction.queue if isinstance(instruction, _Diverted) else None
        error, now = await self._engine.divert(job, reason, target), self._time()
        if error is None:
            if queue is None:
                self._engine.rejections.sent(job, reason)
            if self._core.diverted(job, now):
                self._engine.recall_soon()
            self._give_group_back(job)
        elif not job.source.settler.ours(job):
            self._give_group_back(job)
        elif not self._stands(job, instruction):  # decided meanwhile
            self._core.put_back(job, now)
            self._engine.act()
        elif isinstance(error, InvalidRequest) and target.works:  # it takes others: this one it will never take
            self._engine.rejections.failed(job, reason, error, diverted=queue is not None)
            why = f"{instruction.reason}; {in_words(error)}"
            self._retry(job, instruction if queue is None else _Diverted(queue, why))
        else:
            self._core.undiverted(job, queue, error, now)
            self._engine.act()

    def _stands(self, job: Job, instruction: _Diverted | _Quarantined) -> bool:
        """Whether what was decided about a message's tenant is still so."""
        if isinstance(instruction, _Diverted):
            return self._tenants.diverted(job.tenant) == (instruction.queue, instruction.reason)
        return self._tenants.quarantined_because(job.tenant) == instruction.reason

    def _settle_failure(self, job: Job, error: BaseException) -> None:
        match self._ack_mode:
            case AckMode.ALWAYS:
                self._ack(job)
            case AckMode.MANUAL:
                if job.settlement is None and not job.lost and job.source.attempts.is_last(job):
                    self._engine.rejections.failed_at_last(job, failure_named(error))
                self._leave(job)
            case AckMode.ON_SUCCESS:
                self._retry(job, error)

    def _retry(self, job: Job, error: BaseException, *, delay: float | None = None) -> None:
        """Make a message visible again, not before its tenant's resources may be tried again."""
        if delay is None:
            delay = self._backoff(job, error)
        if job.settlement is None and not job.lost:
            tried = not isinstance(error, ResourceError | _Diverted)
            moves = self._core.retry(job, error, delay, self._time(), tried=tried)
            if moves and not isinstance(error, Reject):  # which the line about its letter said
                self._engine.rejections.failed_at_last(job, failure_named(error))
            self._engine.act()
        else:
            self._give_group_back(job)

    def _backoff(self, job: Job, error: BaseException) -> float:
        policy, repeats = job.source.retry_of(job), job.source.repeats
        # What was not tried has no more attempts each time, as in a quarantine: its receives space it out.
        number = job.attempt if job.started or job.counted else job.receives
        delay = backoff(policy, job.message, error, number, self._rng, repeats=repeats)
        if job.problem is not None:
            return self._spaced(job, job.source.resolver, delay)
        if job.counted and not job.decoded:
            return self._spaced(job, job.source.decoder, delay)
        # A retry that comes before the pool tries again would spend a receive for nothing.
        if self._pool is not None and self._pool.troubled:
            delay = max(delay, self._pool.retry_after(job.context))
        return delay

    def _spaced(self, job: Job, step: StepHealth, delay: float) -> float:
        """Return the seconds to the next attempt of a message that a step failed for."""
        step = step.failing
        spacing = step.spacing(job)
        if spacing <= delay:
            return delay
        self._core.waits_for(job, step.obstacle)
        return spacing

    def _return(self, job: Job) -> None:
        """Give a message back that was interrupted."""
        if job.settlement is None and not job.lost:
            self._core.give_back(job, Settlement.RETURNED)
            self._engine.act()
        else:
            self._give_group_back(job)

    def _leave(self, job: Job) -> None:
        job.source.settler.leave(job)
        self._give_group_back(job)

    def _give_group_back(self, job: Job) -> None:
        """Give back what is behind a message in its group, unless that one is gone: nothing may overtake it."""
        if job.lost or job.settlement not in _GONE:
            self._core.give_group_back(job)
            self._engine.act()


def _for_invalid(error: PayloadError, what: OnInvalid) -> Reject | Drop | None:
    """Return what becomes of a message with a body that cannot be used. The text of the error quotes no body."""
    match what:
        case OnInvalid.DROP:
            return Drop(in_words(error))
        case OnInvalid.REJECT:
            return Reject(in_words(error))
        case OnInvalid.FAIL:
            return None


def _only_one_of(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """Return the error of a group that holds one alone, however deep."""
    errors: Any = (group,)
    while len(errors) == 1 and isinstance(errors[0], BaseExceptionGroup):
        errors = errors[0].exceptions
    return errors[0] if len(errors) == 1 else None


def _is_of_resources(error: BaseException) -> bool:
    """Whether an outage that a handler met is its tenant's resources': a bare OSError may come from any other call."""
    return is_of_server(error) or sqlstate_of(error) is not None or not isinstance(error, OSError)


def _reason_of(instruction: Retry | Reject | Drop) -> str:
    """Return what an instruction says, whatever a class that is derived from it made of that."""
    try:
        return str(instruction if isinstance(instruction, Retry) else instruction.reason)
    except Exception:
        return type(instruction).__name__


def _delay_of(job: Job, instruction: Retry) -> float | None:
    """Return the delay that is asked for. A class that is derived from ``Retry`` may have set anything."""
    try:
        return retry_delay(f"{type(instruction).__name__}.delay", instruction.delay)
    except ConfigurationError as wrong:
        text = "Retry asked for message %s of %s, but %s. The backoff applies"
        _log.error(text, job.message.id, tenant_in_words(job.tenant), wrong, extra=about(job))
        return None
