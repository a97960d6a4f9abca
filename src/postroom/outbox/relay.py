"""Sends what outboxes hold, tenant by tenant."""

import dataclasses
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, cast

from postroom.checking import listed
from postroom.errors import ConfigurationError, NotOpenError
from postroom.outbox.rounds import Counters, Queues, Rounds
from postroom.outbox.run import Run
from postroom.outbox.tables import Outbox
from postroom.resources import ResourcePool
from postroom.sending import Sender
from postroom.sending.sender import default_client
from postroom.transports.protocol import Client
from postroom.types import C

TenantsOf = Iterable[C] | Callable[[], Iterable[C] | Awaitable[Iterable[C]]]
"""The contexts of the databases that have an outbox; a function is asked in each round."""


@dataclass(frozen=True, slots=True)
class OutboxStatistics:
    """What a relay has done since it was made."""

    sent: int
    """Messages sent and removed."""
    set_aside: int
    """Messages that SQS will never take; they stay in the table, with the reason."""
    failures: int
    """Rounds that ended with an error."""


class OutboxRelay(Generic[C]):
    """Sends what was committed to the tenants' outboxes, and removes it. Run as many replicas as you like.

        relay = OutboxRelay(databases, tenants=registry_ids, outbox=outbox, senders=[invoices])
        async with relay:
            await relay.wait_for_stop()

    At least once: what was sent just before a crash, or an outage of the database, is sent twice. On FIFO queues SQS
    itself drops the second one within five minutes, and the order of each group is kept: one relay at a time has a
    group. A message that SQS will never take is set aside in its table and logged; those behind it go on.

    Args:
        databases: what opens a tenant's database: ``asyncpg_inbox(...)``, ``psycopg_inbox(...)``,
            ``sqlalchemy_inbox(...)`` or ``sqlite_database(...)``; or a ``ResourcePool`` of it, which others may use.
        tenants: the contexts of the outboxes that are looked at, or a function that returns them, sync or async.
        outbox: the table: ``postgres_outbox()`` or ``SQLITE_OUTBOX``.
        senders: what sends to queues that need a signature or a transformation. Any other queue gets a plain sender.
        interval: seconds between two looks at outboxes that were empty. ``wake`` looks at once.
        parallel: tenants that are looked at at once. At most 4 MiB of messages are in memory for each.
        client: where the queues are; by default the one AWS client of the event loop.

    Raises:
        ConfigurationError: an argument cannot work. Nothing is opened before ``async with``.
    """

    def __init__(
        self,
        databases: Callable[[C], AbstractAsyncContextManager[Any]] | ResourcePool[C, Any],
        *,
        tenants: TenantsOf[C],
        outbox: Outbox,
        senders: Iterable[Sender[Any]] = (),
        interval: float = 1.0,
        parallel: int = 4,
        client: Client | None = None,
    ) -> None:
        senders = listed("OutboxRelay(senders=...)", "senders=[invoices]", senders)
        _check(databases, tenants, outbox, senders, interval=interval, parallel=parallel)
        self._pool: ResourcePool[C, Any] = _pool_of(databases)
        self._tenants_of = tenants if callable(tenants) else tuple(tenants)
        self._outbox = outbox
        self._known = {sender.queue: sender for sender in senders}
        self._interval = interval
        self._parallel = parallel
        self._client = client
        self._counters = Counters()
        self._stack = AsyncExitStack()
        self._run: Run[C] | None = None

    async def __aenter__(self) -> Self:
        """Open the pool and the senders, and begin.

        Raises:
            ConfigurationError: it is open already.
            TransportError: the queue of one of ``senders`` cannot be opened.
        """
        if self._run is not None:
            raise ConfigurationError("this OutboxRelay is open already")
        async with AsyncExitStack() as stack:
            for sender in self._known.values():
                # First, and so closed last: the rounds that finish at the end still send.
                await stack.enter_async_context(sender)
            pool = await stack.enter_async_context(self._pool)
            client = await stack.enter_async_context(self._client or default_client())
            queues = await stack.enter_async_context(Queues(self._known, client))
            self._run = Run(pool, self._current_tenants, Rounds(self._outbox, queues, self._counters), self._interval)
            self._run.begin(self._parallel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish the rounds that are under way, within 15 seconds, and close what it opened."""
        run, self._run = self._run, None
        try:
            if run is not None:
                await run.end()
        finally:
            await self._stack.aclose()
        if run is not None and run.fatal is not None and error is None:
            raise run.fatal

    async def drain(self) -> int:
        """Send what the outboxes hold now, and return how many messages that were; for tests, and before an exit.

        What cannot be sent now stays. Unlike the loop, it raises when a tenant's database cannot be used.

        Raises:
            NotOpenError: outside of ``async with``.
        """
        run = self._opened()
        before = self._counters.sent
        for context in await self._current_tenants():
            while await run.look(context):
                pass
        return self._counters.sent - before

    def wake(self, context: C | None = None) -> None:
        """Look at a tenant's outbox at once. Call it after a commit; calling it again does no harm.

        It is a hint within this process: without it the messages are found within ``interval``. Any thread may call
        it, such as that of a plain ``def`` handler.

        Args:
            context: the tenant; None for all of them.
        """
        if (run := self._run) is not None:
            run.home.call(run.wake, context)

    def stop(self) -> None:
        """Ask for a stop: ``wait_for_stop`` returns. Any thread may call it."""
        if (run := self._run) is not None:
            run.home.call(run.stopping.set)

    async def wait_for_stop(self) -> None:
        """Return when ``stop`` was called, or when the relay cannot go on; leaving the block then says why."""
        await self._opened().stopping.wait()

    def statistics(self) -> OutboxStatistics:
        """Return what was done since the relay was made."""
        return OutboxStatistics(**dataclasses.asdict(self._counters))

    async def _current_tenants(self) -> Sequence[C]:
        found: Any = self._tenants_of() if callable(self._tenants_of) else self._tenants_of
        return list(await found if inspect.isawaitable(found) else found)

    def _opened(self) -> "Run[C]":
        if self._run is None:
            raise NotOpenError("this OutboxRelay is not open; write: async with relay: ...")
        return self._run

    def __repr__(self) -> str:
        return f"<OutboxRelay of {self._outbox.table!r}, {'open' if self._run is not None else 'not open'}>"


def _pool_of(databases: Callable[[C], AbstractAsyncContextManager[Any]] | ResourcePool[C, Any]) -> ResourcePool[C, Any]:
    if isinstance(databases, ResourcePool):
        return cast("ResourcePool[C, Any]", databases)
    return ResourcePool(databases, name="outbox")


def _check(
    databases: object,
    tenants: object,
    outbox: object,
    senders: Sequence[object],
    *,
    interval: object,
    parallel: object,
) -> None:
    if not callable(databases) and not isinstance(databases, ResourcePool):
        text = "OutboxRelay(databases) takes a provider, such as asyncpg_inbox(...), or a ResourcePool"
        raise ConfigurationError(f"{text}; got {type(databases).__name__}")
    if not callable(tenants) and (isinstance(tenants, str) or not isinstance(tenants, Iterable)):
        text = "OutboxRelay(tenants=...) takes the contexts, or a function that returns them"
        raise ConfigurationError(f"{text}; got {type(tenants).__name__}")
    if not isinstance(outbox, Outbox):
        text = "OutboxRelay(outbox=...) takes postgres_outbox() or SQLITE_OUTBOX"
        raise ConfigurationError(f"{text}; got {type(outbox).__name__}")
    for sender in senders:
        if not isinstance(sender, Sender):
            raise ConfigurationError(f"OutboxRelay(senders=...) takes senders; got {type(sender).__name__}")
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not 0 < interval < math.inf:
        raise ConfigurationError(f"OutboxRelay(interval=...) takes seconds, more than 0; got {interval!r}")
    if type(parallel) is not int or parallel < 1:
        raise ConfigurationError(f"OutboxRelay(parallel=...) takes a whole number from 1 up; got {parallel!r}")
