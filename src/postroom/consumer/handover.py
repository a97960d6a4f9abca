"""What a tenant goes through when its database is moved: drained, closed, found again, tried with one message.

The work of one consumer, and, with a fleet, of every replica: ``Tenants`` is what users call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary, WeakSet

from postroom.consumer.batching import message_of_batch
from postroom.consumer.facts import QueueFacts
from postroom.consumer.statuses import Controlled, TenantState, TenantStatus
from postroom.display import counted
from postroom.errors import ConfigurationError, PostroomError
from postroom.events import Event, HandlerFinished, HandlerStarted, Observers
from postroom.fleet.member import Member
from postroom.fleet.names import name_or_none, shown
from postroom.redaction import describe
from postroom.resources import ResourcePool, display_key

_POLL: Final = 0.05
"""Seconds between two looks whether a tenant is quiet."""
_MOST: Final = 1_000
"""Tenants that are kept in mind, with their contexts, between their close and the next open."""
_STILL: Final = frozenset({TenantState.PAUSED, TenantState.QUARANTINED, TenantState.DIVERTED})
_NAMED: Final = 5
"""Queues that a text names."""


class ProbeOutcome(StrEnum):
    """How a probe ended."""

    HANDLED = "handled"
    """One message was handled, by the handler and with the tenant's resources."""
    OPENED = "opened"
    """The tenant's resources could be opened. No message of it waited here."""
    FAILED = "failed"
    """Its resources could not be opened, or the message's handler failed."""
    RUNNING = "running"
    """The message's handler still ran at the end of the time."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe of a paused tenant told."""

    outcome: ProbeOutcome
    error: str | None = None
    """Why it failed, without secrets."""


class Ruled(Protocol):
    """The decisions about tenants, as far as a probe needs them."""

    def __getitem__(self, key: Hashable) -> TenantStatus:
        """Return what is known of a tenant."""
        ...

    def let_one_run(self, key: Hashable, *, on: bool) -> None:
        """Let messages of a paused tenant start, one at a time, or no more."""
        ...


class Handover:
    """Works on one tenant at a time, here and in the fleet. ``attach`` connects it with a running consumer."""

    def __init__(self, rules: Ruled) -> None:
        self._rules = rules
        self._consumer: Controlled | None = None
        self._pool: ResourcePool[Any, Any] | None = None
        self._observers = Observers()
        self._member: Member | None = None
        self._facts: Callable[[], Iterable[QueueFacts]] = tuple
        """Returns what is known of each queue of the consumer."""
        self._contexts: dict[Hashable, Any] = {}

    def attach(
        self,
        consumer: Controlled,
        pool: ResourcePool[Any, Any] | None,
        observers: Observers,
        facts: Callable[[], Iterable[QueueFacts]] = tuple,
    ) -> None:
        """Work on this consumer from now on."""
        self._facts = facts
        self._consumer = consumer
        self._pool = pool
        self._observers = observers
        if pool is not None:
            _sharing.setdefault(pool, WeakSet()).add(self)

    def join(self, member: Member) -> None:
        """Work on the whole fleet from now on."""
        self._member = member

    def require_dead_letters(self, key: Hashable) -> None:
        """Refuse to end a tenant when its messages have nowhere to go. Raises ``ConfigurationError``."""
        lacking = [facts.name for facts in self._facts() if facts.known and facts.redrive is None]
        if lacking:
            what = f"queue {lacking[0]} has" if len(lacking) == 1 else f"the queues {named(lacking)} have"
            text = (
                f"{what} no dead-letter queue, so messages of {display_key(key)} would come again and again: "
                "give it a redrive policy, or divert the tenant to a queue of your choice"
            )
            raise ConfigurationError(text)

    def refuse_own_handler(self, key: Hashable, *, closes: bool = True) -> None:
        """Refuse to let a handler of a tenant wait for the end of all of them. Raises ``ConfigurationError``.

        Where its resources are to be closed, also those of other consumers of the pool: each has a lease.
        """
        others = _sharing.get(self._pool, ()) if closes and self._pool is not None else ()
        if any(each.is_called_by_handler(key) for each in {self, *others}):
            text = f"a handler of {display_key(key)} would wait for its own end: let a task do this, and do not wait"
            raise ConfigurationError(f"{text} for it in the handler; or pause() the tenant, which waits for nothing")

    def is_called_by_handler(self, key: Hashable) -> bool:
        """Whether the current task handles a message of a tenant here."""
        return self._consumer is not None and self._consumer.is_handling(key, message_of_batch())

    # -- everywhere -------------------------------------------------------------------------------------------------

    async def everywhere(self, what: str, key: Hashable, timeout: float | None) -> list[str]:
        """Do some work for a tenant here and in every replica, and return what was said.

        Raises:
            TimeoutError: it took longer. The text says what is missing.
            PostroomError: a replica could not do it.
        """
        missing = ""

        def waiting(left: int, live: int) -> None:
            nonlocal missing
            missing = (
                f"{left} of {live} replicas have not confirmed it for tenant {display_key(key)}: "
                "see what runs of it there"
            )

        try:
            async with asyncio.timeout(timeout):
                # Here first: an error here spares the fleet the work.
                own = await self.work(what, [key])
                if self._member is None:
                    return [own] if own is not None else []
                missing = "the store of the fleet cannot be reached: run this again when it answers"
                reports = await self._member.everywhere(what, key, waiting)
        except TimeoutError:
            raise TimeoutError(f"not done after {timeout:g} s: {missing or self._unfinished(what, key)}") from None
        failed = [report.error for report in reports if report.error is not None]
        if failed:
            raise PostroomError(f"{len(failed)} of {len(reports)} replicas could not {what} the tenant: {failed[0]}")
        return sorted({report.said for report in reports if report.said is not None})

    async def carry_out(self, what: str, name: str) -> str | None:
        """Do what another replica ordered for the tenant of this name."""
        return await self.work(what, self._keys_of(name))

    def _keys_of(self, name: str) -> list[Hashable]:
        tenants = [] if self._consumer is None else list(self._consumer.scheduler.tenants())
        known: list[Hashable] = [*tenants, *self._contexts, *([] if self._pool is None else self._pool.keys())]
        found = [key for key in dict.fromkeys(known) if name_or_none(key) == name]
        # A tenant that has nothing here may still have resources open; a text names itself as the
        # key.
        return found or ([shown(name)] if name.startswith("t:") else [])

    # -- here -------------------------------------------------------------------------------------------------------

    async def work(self, what: str, keys: Iterable[Hashable]) -> str | None:
        """Do some work for tenants in this process."""
        said: str | None = None
        for key in keys:
            match what:
                case "drain":
                    await self._drain(key)
                case "invalidate":
                    await self._invalidate(key)
                case "close":
                    await self._close(key)
                case "place":
                    said = await self._place(key) or said
                case _:
                    raise ConfigurationError(f"this version does not know how to {what} a tenant")
        return said

    async def _drain(self, key: Hashable) -> None:
        # A poll and not an event: a move is rare, and an event would cost something for every
        # message.
        self.require_still(key, "drained")
        while self._is_busy(key):
            await asyncio.sleep(_POLL)
            self.require_still(key, "drained")

    def require_still(self, key: Hashable, what: str) -> None:
        """Refuse to say that something was done with a tenant at rest that starts messages again.

        Raises:
            ConfigurationError: it was resumed meanwhile.
        """
        if self._rules[key].state not in _STILL:
            raise ConfigurationError(f"{display_key(key)} was not {what}: it was resumed meanwhile")

    async def _invalidate(self, key: Hashable) -> None:
        if (pool := self._pool) is not None:
            # Before the invalidation, after which the pool may not know the context.
            self._remember(key, pool)
            await pool.invalidate_where(lambda context: bool(pool.key_of(context) == key))

    async def _close(self, key: Hashable) -> None:
        await self._invalidate(key)
        while self._pool is not None and self._pool.leases_out(key) is not None:  # noqa: ASYNC110
            await asyncio.sleep(_POLL)

    async def _place(self, key: Hashable) -> str | None:
        pool = self._pool
        if pool is None or (context := self._context_of(key, pool)) is None:
            return None
        return await pool.place_of(context)

    def _remember(self, key: Hashable, pool: ResourcePool[Any, Any]) -> None:
        context = pool.context_of(key)
        if context is not None:
            self._contexts[key] = context
            if len(self._contexts) > _MOST:
                # The oldest: between a close and the next open there are minutes, not thousands of
                # tenants.
                del self._contexts[next(iter(self._contexts))]

    def _context_of(self, key: Hashable, pool: ResourcePool[Any, Any]) -> Any:
        known = pool.context_of(key)
        return self._contexts.get(key) if known is None else known

    def _is_busy(self, key: Hashable) -> bool:
        """Whether anything of a tenant runs, or is about to get its resources."""
        if self._consumer is None:
            return False
        figures = self._consumer.scheduler.figures(key)
        return figures.running > 0 or figures.suspended > 0

    # -- what is not done -------------------------------------------------------------------------------------------

    def _unfinished(self, what: str, key: Hashable) -> str:
        """Say what some work for a tenant still waits for here, and what to do."""
        tenant, pool = display_key(key), self._pool
        if what == "drain":
            return f"tenant {tenant} has {self.work_in_hand(key)}: give it more time, or end what hangs there"
        if what == "place" or pool is None:
            return f"the registry does not say where the data of tenant {tenant} is: see what it waits for"
        leases = pool.leases_out(key)
        if not leases and pool.leases_of(key) is None:
            return f"the provider does not open or close the resources of tenant {tenant}: see what it waits for"
        out = f"{counted(leases, 'lease')} out" if leases else "opened again by others"
        return (
            f"the resources of tenant {tenant} are in use ({out}): {_users_of(pool, key, leases or 0)}. Drain it in "
            "every consumer that shares the pool, stop what else leases from it, and run this again"
        )

    def running(self, key: Hashable) -> int:
        """Return how many handlers of a tenant run here."""
        return 0 if self._consumer is None else self._consumer.scheduler.figures(key).running

    def work_in_hand(self, key: Hashable) -> str:
        """Say what of a tenant runs here, or may at once: ``1 handler running in orders``. Empty where nothing does."""
        if self._consumer is None:
            return ""
        figures = self._consumer.scheduler.figures(key)
        parts = [f"{counted(figures.running, 'handler')} running"] if figures.running else []
        paused = self._rules[key].state is TenantState.PAUSED
        if waiting := figures.suspended + (0 if paused else figures.waiting):
            parts.append(f"{counted(waiting, 'message')} waiting")
        queues = named(facts.name for facts in self._facts())
        return f"{' and '.join(parts)} in {queues}" if parts else ""

    # -- a probe ----------------------------------------------------------------------------------------------------

    async def probe(self, key: Hashable, timeout: float, *, message: bool = True) -> Probe:
        """Open a paused tenant's resources, and let one of its messages run if one waits here."""
        if self._rules[key].state is not TenantState.PAUSED:
            text = f"probe() tries a paused tenant, and {display_key(key)} is not paused here: pause or drain it first"
            raise ConfigurationError(text)
        if self._consumer is None:
            return Probe(ProbeOutcome.FAILED, "the consumer does not run")
        # Before any message is risked: most failed moves show here, and cost no attempt.
        if (error := await self._open(key, timeout)) is not None:
            return Probe(ProbeOutcome.FAILED, error)
        if not message or not self._consumer.scheduler.figures(key).waiting:
            return Probe(ProbeOutcome.OPENED)
        return await self._run_one(key, timeout)

    async def _open(self, key: Hashable, timeout: float) -> str | None:
        """Open a tenant's resources and release them. Returns what went wrong."""
        pool = self._pool
        if pool is None or (context := self._context_of(key, pool)) is None:
            return None
        try:
            (await pool.acquire(context, timeout=timeout)).release()
        except Exception as error:  # whatever a provider raises: it is the answer
            return describe(error)
        return None

    async def _run_one(self, key: Hashable, timeout: float) -> Probe:
        """Let one message run: the tenant is paused again in the very moment in which its handler starts."""
        started, ended = asyncio.Event(), asyncio.get_running_loop().create_future()

        def tell(event: Event) -> None:
            if isinstance(event, HandlerStarted) and event.tenant == key:
                started.set()
                self._rules.let_one_run(key, on=False)
            elif isinstance(event, HandlerFinished) and event.tenant == key and started.is_set() and not ended.done():
                ended.set_result(event.error)

        leave = self._observers.add(tell)
        try:
            self._rules.let_one_run(key, on=True)
            error = await _in_time(ended, timeout)
        except TimeoutError:
            if started.is_set():
                return Probe(ProbeOutcome.RUNNING, f"its handler still runs after {timeout:g} s")
            return Probe(ProbeOutcome.FAILED, f"none of its messages could start within {timeout:g} s")
        finally:
            leave()
            self._rules.let_one_run(key, on=False)
        return Probe(ProbeOutcome.HANDLED) if error is None else Probe(ProbeOutcome.FAILED, describe(error))


async def _in_time(ended: Awaitable[BaseException | None], timeout: float) -> BaseException | None:
    async with asyncio.timeout(timeout):
        return await ended


def named(queues: Iterable[str]) -> str:
    """Return queues as a text names them: the first few, and how many more."""
    names = list(dict.fromkeys(queues))
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*names[:_NAMED], *more])


_sharing: Final[WeakKeyDictionary[ResourcePool[Any, Any], WeakSet[Handover]]] = WeakKeyDictionary()
"""The consumers that lease from each pool, so that a text can name them."""


def _users_of(pool: ResourcePool[Any, Any], key: Hashable, leases: int) -> str:
    """Say what uses a key's resources: consumers with work of it, and leases that are no handler's."""
    consumers = list(_sharing.get(pool, ()))
    found = sorted(filter(None, (each.work_in_hand(key) for each in consumers)))
    others = leases - sum(each.running(key) for each in consumers)
    if others > 0 or not found:
        count = "" if others < 1 else f" ({counted(others, 'lease')})"
        found.append(f"what is no consumer here, such as a web route or an outbox relay{count}")
    return "; ".join(found)
