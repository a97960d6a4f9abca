"""From a receive to the core: which tenants' messages are these?"""

import asyncio
import inspect
from collections.abc import Awaitable, Hashable, Sequence
from itertools import takewhile
from typing import Any, Final, cast

from postroom.consumer.core import Core, Scene
from postroom.consumer.engine import Engine
from postroom.consumer.grouping import Grouping
from postroom.consumer.hanging import CLEANUP
from postroom.consumer.job import Job
from postroom.consumer.source import Source
from postroom.display import display_key
from postroom.errors import ContextError, Drop, Reject, Retry, in_words
from postroom.events import MessageReceived
from postroom.log_fields import Log, Step, about
from postroom.payloads import AttributeResolver
from postroom.program_end import ends_the_program
from postroom.redaction import describe
from postroom.repeats import Repeats
from postroom.resources import ResourcePool
from postroom.settlement import Moment
from postroom.stacks import waits_at
from postroom.tracebacks import raised_by_the_user
from postroom.types import UNRESOLVED

_log = Log("postroom.consumer", Step.CONTEXT)

_SLOW: Final = 0.25
"""Seconds after which a message that still waits for its resolver takes no room of others."""


class _Batch:
    """Messages of one group that async resolvers work on, one after the other; the next one last."""

    __slots__ = ("group", "task", "waiting")

    def __init__(self, group: str | None, waiting: list[tuple[Job, Awaitable[Any]]]) -> None:
        self.group = group
        self.waiting = waiting
        self.task: asyncio.Task[None] | None = None


class Intake:
    """Takes received messages in: holds them, resolves their contexts, and hands them to the core.

    When the consumer stops, it gives back what it has and what still arrives, but for what the core keeps.
    """

    def __init__(
        self,
        source: Source,
        core: Core,
        engine: Engine,
        pool: ResourcePool[Any, Any] | None,
        grouping: Grouping | None,
    ) -> None:
        self._source = source
        self._resolver = source.settings.resolver
        self._observers = source.settings.observers
        self._timeout = source.settings.concurrency.resolver_timeout
        self._core = core
        self._engine = engine
        self._pool = pool
        self._grouping = grouping
        resolver: Any = self._resolver
        self._clean = isinstance(resolver, AttributeResolver) and bool(cast("Any", resolver).is_plain)
        self._own_key: type | None = None
        """The type of contexts that are keys of their tenants, and can be hashed: there is nothing to ask."""
        if self._clean and (pool is None or pool.key is None):
            self._own_key = cast("Any", resolver).context_type
        self._plain: type = type(None)
        self._batches: dict[_Batch, None] = {}
        self._overdue: dict[Job, asyncio.TimerHandle] = {}
        """Slow resolvers, and what rings if they ignore the end of their time."""
        self._stubborn = Repeats()
        self._time = engine.tasks.time
        self.received: int = 0

    def admit(self, messages: Sequence[Any], arrived: Moment) -> tuple[int, int]:
        """Take the messages of one receive in.

        Returns how many of them lack nothing but a slot, as far as known, and how many were held already.
        """
        self.received += len(messages)
        source, core = self._source, self._core
        jobs = source.settler.take(messages, arrived)
        # Before they are held: what came back is not away, or it would be called back under an old
        # handle.
        if len(core.away):
            for message in messages:
                core.away.came_back(message.id)
        if self._engine.recalls.out:
            for message in messages:
                self._engine.recalls.came_back(message.id)
        # Before the next receive is decided: the bound on memory is checked there.
        core.held_bytes = source.tally.bytes
        now = self._time()
        runnable = again = len(messages) - len(jobs)
        later: dict[Hashable, list[tuple[Job, Awaitable[Any]]]] = {}
        source.facts.received(jobs, now)
        scene = core.scene(len(jobs))
        for job in jobs:
            if self._observers:
                # In a clean context: this task lasts, and must keep nothing that an observer sets for one message.
                self._engine.tasks.run_clean(self._observers.tell, MessageReceived(job.message))
            # Before anything goes back: a stop remembers its group.
            group = job.group = source.group_of(job.message) if source.fifo else None
            if core.closing and not core.admits(job):
                core.return_late(job)
                continue
            found = self._resolve(job)
            if type(found) is not self._plain and self._is_awaitable(found):
                # Messages of one group stay in order; all others are resolved side by side.
                later.setdefault(group or job, []).append((job, cast("Awaitable[Any]", found)))
            elif group is not None and (group in later or self._resolves(group)):
                later.setdefault(group, []).append((job, _known(found)))
            else:
                runnable += self._enter(job, found, now, scene)
        for batch in later.values():
            self._resolve_later(batch)
        self._start(now)
        return runnable + sum(map(len, later.values())), again

    def _start(self, now: float) -> None:
        """Start what can run, and let what cannot make room where there is none."""
        self._engine.dispatch(now)
        # After the dispatch: what could run has a slot by now and is not in the way.
        if self._core.scheduler.blocked:
            self._core.relieve(now)
            self._engine.act()

    def withdraw(self, group: str, message_id: str | None, *, behind: bool) -> None:
        """Give back, in order, what is still being resolved of a message group: a message before it was not done.

        Not that message itself, where it has come again; nor what is behind it then, if nothing before that went back.
        """
        for batch in [batch for batch in self._batches if batch.group == group]:
            if not (batch.waiting and batch.waiting[-1][0].message.id == message_id):
                self._withdraw(batch)
                behind = True
            elif behind:
                self._withdraw(batch, 1)

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """What works on messages that have no context yet."""
        return {batch.task for batch in self._batches if batch.task is not None}

    async def close(self, within: float) -> None:
        """Give back what has no context yet and that the core does not keep: called when it closes and abandons.

        ``within`` is how many seconds resolvers may take to end that were cancelled.
        """
        cancelled = self.tasks
        for batch in tuple(self._batches):
            # From the front, in order: nothing may overtake what goes back, nor what went back before it.
            kept = takewhile(self._core.keeps, (job for job, _ in reversed(batch.waiting)))
            self._withdraw(batch, 0 if self._core.went_back(batch.group) else sum(1 for _ in kept))
        if cancelled := cancelled - self.tasks:
            # Their `finally` must be over before the settlers drain.
            await asyncio.wait(cancelled, timeout=within)

    def _resolve(self, job: Job) -> Any:
        """Call the resolver. What it raises becomes a ``ContextError``, which is returned in the context's place."""
        if self._resolver is None:
            return None
        try:
            # A plain attribute resolver runs no code of the user's that could see context
            # variables: no copy of the context is needed.
            if self._clean:
                return self._resolver(job.message)
            return self._engine.tasks.run_clean(self._resolver, job.message)
        except BaseException as error:
            return self._not_resolved(job, error)

    def _not_resolved(self, job: Job, error: BaseException) -> ContextError:
        """Return what stands in the context's place."""
        self._heed(error)
        return _context_error(job, error)

    def _heed(self, error: BaseException | None) -> None:
        """End the consumer in order where a function of the user's called ``sys.exit``, as where a handler does.

        Raised from here, it would end the poller, and leave what came with this message to its visibility timeout.
        """
        if error is not None and ends_the_program(error):
            self._engine.end(error)

    def _is_awaitable(self, found: Any) -> bool:
        """Whether a resolver's result is to be awaited; what is not is remembered by its type, as it is always so."""
        if isinstance(found, Awaitable):
            return True
        self._plain = type(found)
        return False

    # -- async resolvers ----------------------------------------------------------------------------------------

    def _resolve_later(self, waiting: list[tuple[Job, Awaitable[Any]]]) -> None:
        self._core.resolving += len(waiting)
        group = waiting[0][0].group
        if (earlier := self._resolves(group)) is not None:  # of another receive: its message came back meanwhile
            # Behind those of the earlier receive, since the list is worked from its end.
            earlier.waiting[:0] = waiting[::-1]
            return
        batch = _Batch(group, waiting[::-1])
        self._batches[batch] = None
        batch.task = self._engine.tasks.spawn(self._resolve_in_order(batch), "postroom-resolve-context")
        batch.task.add_done_callback(lambda _task: self._batches.pop(batch, None))

    def _resolves(self, group: str | None) -> _Batch | None:
        """Return the batch of a message group that is being resolved."""
        if group is None:
            return None
        return next((batch for batch in self._batches if batch.group == group and batch.waiting), None)

    async def _resolve_in_order(self, batch: _Batch) -> None:
        while batch.waiting:
            job, awaitable = batch.waiting[-1]
            # In a task of its own: it must not see context variables of the message before it.
            resolving = self._engine.tasks.spawn(self._bounded(job, awaitable), "postroom-resolver")
            timer = self._engine.tasks.call_later(_SLOW, self._is_slow, batch, job, resolving)
            try:
                try:
                    await asyncio.wait([resolving])
                except asyncio.CancelledError:
                    resolving.cancel()
                    await asyncio.wait([resolving])
                    raise
                # It may have cancelled itself, as an old library for time limits does.
                cancelled = asyncio.CancelledError() if resolving.cancelled() else None
                found = resolving.result() if cancelled is None else _context_error(job, cancelled)
            finally:
                timer.cancel()
            failure = found.__cause__ if isinstance(found, ContextError) else None
            if not batch.waiting:  # withdrawn meanwhile, by a resolver that does not let itself be cancelled
                self._heed(failure)
                return
            batch.waiting.pop()
            self._no_longer_resolves(job)
            now = self._time()
            entered = self._enter(job, found, now)
            self._start(now)
            self._heed(failure)  # after its start: the stop would give it back at once, and tell nothing of it
            # While it was resolved it took room. What cannot run takes none, and no task of its own tells so.
            if not entered or self._core.scheduler.blocked:
                self._engine.make_room()

    def _is_slow(self, batch: _Batch, job: Job, resolving: "asyncio.Task[Any]") -> None:
        # Withdrawn, it is counted no longer, while its resolver cleans up.
        if not (batch.waiting and batch.waiting[-1][0] is job):
            return
        job.slow = True
        late = self._timeout + CLEANUP - _SLOW
        self._overdue[job] = self._engine.tasks.call_later(late, self._is_stubborn, job, resolving)
        self._core.resolving -= 1
        self._core.unresolved += 1
        self._engine.make_room()

    def _is_stubborn(self, job: Job, resolving: "asyncio.Task[Any]") -> None:
        """Say that a resolver runs on although its time is over: nothing else would tell what its message waits for."""
        where = f", at {place}" if (place := waits_at(resolving)) else ""
        text = (
            "The context resolver still runs for message %s (receive %d), %.0f s after it was cancelled by "
            "Concurrency(resolver_timeout=%g), and its message waits for it%s. Let it pass CancelledError on"
        )
        arguments = (job.message.id, job.receives, CLEANUP, self._timeout, where)
        self._stubborn.failed("resolver", _log, text, *arguments, extra=about(job))

    def _no_longer_resolves(self, job: Job) -> None:
        if job.slow:
            self._overdue.pop(job).cancel()
            job.slow = False
            self._core.unresolved -= 1
        else:
            self._core.resolving -= 1

    async def _bounded(self, job: Job, awaitable: Awaitable[Any]) -> Any:
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                return await awaitable
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            # Ours: the batch was withdrawn. Without a request, the resolver raised it by itself.
            if task is not None and task.cancelling():
                raise
            return _context_error(job, error)  # the resolver raised it
        except BaseException as error:
            if isinstance(error, TimeoutError) and limit.expired():
                text = f"the context resolver took longer than Concurrency(resolver_timeout={self._timeout:g})"
                late = ContextError(text, message_id=job.message.id)
                late.__cause__ = error
                return late
            return _context_error(job, error)

    def _withdraw(self, batch: _Batch, kept: int = 0) -> None:
        """Give a batch back, all but the first so many.

        Not left to its task: one that is cancelled before it began would never do it.
        """
        going = batch.waiting[: len(batch.waiting) - kept]
        del batch.waiting[: len(going)]
        for job, awaitable in reversed(going):
            self._no_longer_resolves(job)
            if inspect.iscoroutine(awaitable) and inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED:
                # A coroutine that never ran would warn "was never awaited" when it is collected.
                awaitable.close()
            if self._core.closing:
                self._core.return_late(job)
            else:
                self._core.return_behind(job)
        if not batch.waiting:
            self._batches.pop(batch, None)
            if batch.task is not None:
                batch.task.cancel()
        self._engine.act()
        self._engine.make_room()

    # -- to the core --------------------------------------------------------------------------------------------

    def _enter(self, job: Job, found: Any, now: float, scene: Scene | None = None) -> bool:
        # The resolver took longer than the visibility timeout, or a stop gave it back.
        if job.lost or job.settlement is not None:
            return False
        message = job.message
        try:
            job.tenant = found if type(found) is self._own_key else self._tenant_of(job, found)
        except ContextError as error:
            job.tenant, job.problem = UNRESOLVED, error
            if _is_of_the_resolver(error, found):
                self._source.resolver.failed(job, error, now)
        else:
            job.context = found
            if self._source.resolver.listens:
                self._engine.went_well(self._source.resolver, job)
            # Here, and not per queue: only now are both the sender's group and the tenant known.
            # Not by `group_id`: on Python 3.11 a property costs several times what this does.
            if self._grouping is not None and "MessageGroupId" in message.system_attributes:
                self._grouping.check(message.system_attributes["MessageGroupId"], job.tenant, found)
        self._source.resolved(job)
        return self._core.arrive(job, now, scene)

    def _tenant_of(self, job: Job, found: Any) -> Hashable:
        """Return the tenant of a context. Raises ``ContextError``, also one that was found in its place."""
        if isinstance(found, ContextError):
            raise found
        if self._resolver is None:
            return None
        if found is None:
            text = "the context resolver returned None; let it return the context, or raise when there is none"
            raise ContextError(text, message_id=job.message.id)
        if isinstance(found, BaseException):
            name = type(found).__name__
            text = f"the context resolver returned {name}, which is no context: write `raise {name}(...)`"
            raise ContextError(text, message_id=job.message.id)
        tenant = found if self._pool is None else self._key_of(job, found, self._pool)
        lacks = "is not hashable"
        try:
            hash(tenant)
            lacks = "cannot be compared"  # every dictionary of tenants would raise
            bool(tenant == tenant)  # noqa: PLR0124
        except BaseException as error:
            self._heed(error)
            what = "context" if tenant is found else f"pool's key= of {display_key(found)}"
            text = f"the {what}, a {type(tenant).__name__}, {lacks}"
            text += "; use a frozen dataclass, a NamedTuple or a tuple"
            raise ContextError(text, message_id=job.message.id) from error
        return tenant

    def _key_of(self, job: Job, found: Any, pool: ResourcePool[Any, Any]) -> Hashable:
        try:
            return pool.key_of(found)
        except BaseException as error:
            self._heed(error)
            text = f"the pool's key= failed on the context {display_key(found)}: {describe(error)}"
            raise ContextError(text, message_id=job.message.id) from error


class UnwrappingIntake(Intake):
    """Takes messages out of their envelopes before it resolves their contexts; see ``Consumer(unwrap=...)``."""

    def _resolve(self, job: Job) -> Any:
        unwrapping, resolver = self._source.settings.unwrap, self._resolver
        if resolver is None or unwrapping is None:
            return None
        try:
            inner = self._engine.tasks.run_clean(unwrapping.envelope, job)
            return resolver(inner) if self._clean else self._engine.tasks.run_clean(resolver, inner)
        except BaseException as error:
            return self._not_resolved(job, error)


def _is_of_the_resolver(error: ContextError, found: Any) -> bool:
    """Whether it may fail for every message: what one lacks is its own fault, and an instruction is no failure."""
    if isinstance(error.__cause__, Retry | Reject | Drop):
        return False
    if found is not error:  # it returned no context, or none that names a tenant
        return True
    return raised_by_the_user(error) is None and raised_by_the_user(error.__cause__) is not None


async def _known(found: Any) -> Any:
    return found


def _context_error(job: Job, error: BaseException) -> ContextError:
    if isinstance(error, ContextError):
        return error
    wrapped = ContextError(in_words(error), message_id=job.message.id)
    wrapped.__cause__ = error
    return wrapped
