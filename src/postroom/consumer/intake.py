"""From a receive to the scheduler: whose messages are these?"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from random import Random
from typing import Any, cast

from postroom.consumer.faults import FaultWatch
from postroom.consumer.grouping import Grouping
from postroom.consumer.job import Job
from postroom.consumer.outages import Outages
from postroom.consumer.parking import Parking
from postroom.consumer.scouting import Scouting
from postroom.consumer.settings import Settings
from postroom.consumer.tenants import Tenants
from postroom.errors import ContextError, ResourceError
from postroom.events import MessageReceived, Observers
from postroom.message import Message
from postroom.resources import ResourcePool
from postroom.scheduling import Scheduler
from postroom.settlement import Delivery, Settler
from postroom.types import Settlement

_log = logging.getLogger("postroom.consumer")

RESOLVE_TIMEOUT = 30.0
"""Seconds that an async resolver may take for one message."""
PATIENCE = 0.25
"""Seconds that a tenant's resources may take to open before its messages have to make room for others."""
_SURPLUS_DELAY = (1.0, 5.0)
"""Seconds, at random between these, until a message that had to make room is seen again."""


class Unresolved:
    """The tenant of messages whose context could not be resolved: a lane of their own, so that they cost no other."""

    def __repr__(self) -> str:
        return "<unresolved>"


UNRESOLVED = Unresolved()


class _Batch:
    """Messages whose async resolver runs or is to run, one after the other; the next one last."""

    __slots__ = ("group", "task", "waiting")

    def __init__(self, group: str | None, waiting: list[tuple[Delivery, Awaitable[Any]]]) -> None:
        self.group = group
        self.waiting = waiting
        self.task: asyncio.Task[None] | None = None


class Intake:
    """Takes received messages in: holds them, resolves their contexts, and hands them to the scheduler.

    After :meth:`close`, whatever still arrives is given back at once.
    """

    def __init__(
        self,
        settings: Settings[Any, Any],
        *,
        fifo: bool,
        pool: ResourcePool[Any, Any] | None,
        scheduler: Scheduler[Job],
        settler: Settler,
        dispatch: Callable[[], None],
        crowded: Callable[[], bool],
        spare: Callable[[], int],
        buffer: Callable[[], int],
        parking: Parking,
        grouping: Grouping | None,
        scouting: Scouting,
        tenants: Tenants,
        faults: FaultWatch,
        outages: Outages,
    ) -> None:
        self._resolver = settings.resolver
        self._lane_limit = settings.polling.lane
        self._observers: Observers = settings.observers
        self._fifo = fifo
        self._pool = pool
        self._scheduler = scheduler
        self._settler = settler
        self._dispatch = dispatch
        self._crowded = crowded
        self._spare = spare
        self._buffer = buffer
        self._parking = parking
        self._grouping = grouping
        self._scouting = scouting
        self._tenants = tenants
        self._faults = faults
        self._outages = outages
        self._closed = False
        self._plain: type = type(None)
        self._room = 0
        self._stuck = 0
        self._troubled = False
        self._batches: dict[_Batch, None] = {}
        self._rng = Random()  # noqa: S311 - jitter, not secrecy
        self.resolving = 0
        """Messages whose async resolver runs."""
        self.received = 0

    def admit(self, messages: Sequence[Message]) -> int:
        """Take the messages of one receive in. Returns how many of them lack nothing but a slot, as far as known."""
        self.received += len(messages)
        self._stuck = 0
        self._troubled = self._scheduler.blocked > 0
        deliveries = self._settler.take(messages)
        if self._observers:
            for delivery in deliveries:
                self._observers.tell(MessageReceived(delivery.message))
        self._room = self._buffer()
        later: dict[Hashable, list[tuple[Delivery, Awaitable[Any]]]] = {}
        for delivery in deliveries:
            if self._closed:
                self._settler.give_back(delivery, Settlement.RETURNED, delay=0.0)
                continue
            found = self._resolve(delivery)
            if type(found) is not self._plain and self._is_awaitable(found):
                # Messages of one group stay in order; all others are resolved side by side.
                group = delivery.message.group_id if self._fifo else delivery
                later.setdefault(group, []).append((delivery, cast("Awaitable[Any]", found)))
            elif self._fifo and (delivery.message.group_id in later or self._resolves(delivery.message.group_id)):
                later.setdefault(delivery.message.group_id, []).append((delivery, _known(found)))
            else:
                self._enter(delivery, found)
        for batch in later.values():
            self._resolve_later(batch)
        self._dispatch()
        self.relieve()
        return len(messages) - self._stuck

    def relieve(self) -> None:
        """Defer what blocked tenants hold too much of, once there is no room for others."""
        if not self._crowded():
            return
        blocked_before = asyncio.get_running_loop().time() - PATIENCE
        shed = self._scheduler.shed(
            keep=self._lane_limit,
            blocked_before=blocked_before,
            may_go=lambda job: self._parking.spares(job.delivery),
        )
        for job in shed:
            delay = max(self._cooling(job), self._rng.uniform(*_SURPLUS_DELAY))
            self._settler.give_back(job.delivery, Settlement.DEFERRED, delay=delay)
            self.withdraw(job.group)

    def _cooling(self, job: Job) -> float:
        """Return the seconds for which a job's resources are left alone. One behind it in its group may have none."""
        if self._pool is None or job.context_error is not None:
            return 0.0
        try:
            return self._pool.retry_after(job.context)
        except ResourceError:  # host= or weight= failed: that is told when its turn comes
            return 0.0

    def withdraw(self, group: str | None) -> None:
        """Give back, in order, what is still being resolved of a message group: something before it was not done."""
        if group is not None:
            for batch in [batch for batch in self._batches if batch.group == group]:
                self._withdraw(batch)

    async def close(self) -> None:
        """Give back everything that has no slot yet, and what still arrives."""
        self._closed = True
        resolving = [batch.task for batch in self._batches if batch.task is not None]
        for batch in tuple(self._batches):
            self._withdraw(batch)
        # Before anything is awaited: whoever is cancelled meanwhile frees a slot, and would let one of these begin.
        for job in self._scheduler.withdraw_waiting():
            self._settler.give_back(job.delivery, Settlement.RETURNED, delay=0.0)
        if resolving:
            await asyncio.wait(resolving)

    def _resolve(self, delivery: Delivery) -> Any:
        """Call the resolver. What it raises becomes a ``ContextError``, which is returned in the context's place."""
        if self._resolver is None:
            return None
        try:
            return self._resolver(delivery.message)
        except Exception as error:
            return _context_error(delivery, error)

    def _is_awaitable(self, found: Any) -> bool:
        """Whether a resolver's result is to be awaited; what is not is remembered by its type, as it is always so."""
        if isinstance(found, Awaitable):
            return True
        self._plain = type(found)
        return False

    def _resolve_later(self, waiting: list[tuple[Delivery, Awaitable[Any]]]) -> None:
        self.resolving += len(waiting)
        group = waiting[0][0].message.group_id if self._fifo else None
        if (earlier := self._resolves(group)) is not None:  # of another receive, whose message came back meanwhile
            earlier.waiting[:0] = waiting[::-1]
            return
        batch = _Batch(group, waiting[::-1])
        self._batches[batch] = None
        batch.task = asyncio.create_task(self._resolve_in_order(batch), name="postroom-resolve-context")
        batch.task.add_done_callback(lambda _task: self._batches.pop(batch, None))

    def _resolves(self, group: str | None) -> _Batch | None:
        """Return the batch of a message group whose resolver runs."""
        if group is None:
            return None
        return next((batch for batch in self._batches if batch.group == group and batch.waiting), None)

    async def _resolve_in_order(self, batch: _Batch) -> None:
        while batch.waiting:
            delivery, awaitable = batch.waiting[-1]
            found = await _bounded(delivery, awaitable)
            if not batch.waiting:  # withdrawn meanwhile, by a resolver that does not let itself be cancelled
                return
            batch.waiting.pop()
            self.resolving -= 1
            self._enter(delivery, found)
            self._dispatch()

    def _withdraw(self, batch: _Batch) -> None:
        """Give a batch back. Not left to its task: one that is cancelled before it began would never do it."""
        self._batches.pop(batch, None)
        self.resolving -= len(batch.waiting)
        for delivery, awaitable in reversed(batch.waiting):
            if inspect.iscoroutine(awaitable) and inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED:
                awaitable.close()
            self._settler.give_back(delivery, Settlement.RETURNED, delay=0.0)
        batch.waiting.clear()
        if batch.task is not None:
            batch.task.cancel()

    def _enter(self, delivery: Delivery, found: Any) -> None:
        message = delivery.message
        group = message.group_id if self._fifo else None
        try:
            tenant = self._tenant_of(message, found)
        except ContextError as error:
            job = Job(UNRESOLVED, group, delivery=delivery, message=message)
            job.context_error = error
        else:
            job = Job(tenant, group, delivery=delivery, message=message, context=found)
            if self._grouping is not None and (fair := message.group_id) is not None:
                self._grouping.check(fair, tenant, found)
        if self._outages.put_off(job):
            self._stuck += 1
            return
        if self._troubled and self._scheduler.is_blocked(job.tenant):
            self._stuck += 1
        if self._is_surplus(job):
            self._parking.park(delivery)
        else:
            self._outages.let_in(job)
            self._scheduler.add(job)
            if self._faults.open and (until := self._faults.until(job.tenant)):
                self._scheduler.sleep(job.tenant, until)

    def _is_surplus(self, job: Job) -> bool:
        """Whether there is no room for a message and it can wait: others of its tenant do so here already."""
        if self._resolver is None:
            return False
        if self._tenants.is_paused(job.tenant) or self._faults.until(job.tenant):
            return self._scheduler.figures(job.tenant).waiting >= self._lane_limit and self._parking.puts_off(
                job.delivery
            )
        rate = self._tenants.rate_of(job.tenant)
        if rate is not None and self._scheduler.figures(job.tenant).waiting >= max(self._lane_limit, 2 * rate):
            return self._parking.puts_off(job.delivery)  # it could not start more of them for two seconds
        enough, has_share = self._scheduler.standing(job.tenant, room=self._room)
        if enough or has_share:
            self._scouting.found_noisy(job.tenant, job.message)
        else:
            self._scouting.found_quiet(job.message)
        return enough and self._spare() <= 0 and self._parking.puts_off(job.delivery)

    def _tenant_of(self, message: Message, found: Any) -> Hashable:
        """Return whose lane a context belongs to. Raises ``ContextError``, also one that was found in its place."""
        if isinstance(found, ContextError):
            raise found
        if self._resolver is None:
            return None
        if found is None:
            text = "the context resolver returned None; let it return the context, or raise when there is none"
            raise ContextError(text, message_id=message.id)
        try:
            tenant = found if self._pool is None else self._pool.key_of(found)
            hash(tenant)
        except TypeError as error:
            kind = type(found).__name__
            text = f"the context, a {kind}, is not hashable; use a frozen dataclass, a NamedTuple or a tuple"
            raise ContextError(text, message_id=message.id) from error
        except Exception as error:
            text = f"the pool's key= failed on the context: {type(error).__name__}"
            raise ContextError(text, message_id=message.id) from error
        return tenant


async def _known(found: Any) -> Any:
    return found


async def _bounded(delivery: Delivery, awaitable: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT):
            return await awaitable
    except Exception as error:
        return _context_error(delivery, error)


def _context_error(delivery: Delivery, error: Exception) -> ContextError:
    if isinstance(error, ContextError):
        return error
    text = str(error) or type(error).__name__
    wrapped = ContextError(text, message_id=delivery.message.id)
    wrapped.__cause__ = error
    return wrapped
