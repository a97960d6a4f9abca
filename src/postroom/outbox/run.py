"""The loop of a relay: workers that look at one tenant's outbox after the other."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, Final, Generic

from postroom.errors import ResourceOpenError
from postroom.log_fields import Log, Step, about
from postroom.outages import Kind, cause_of
from postroom.outbox.places import Places
from postroom.outbox.rounds import Pauses, Rounds
from postroom.outbox.stores import NoOutbox
from postroom.redaction import describe, log_error
from postroom.resources import ResourcePool, display_key
from postroom.tasks import Home, Tasks, goes_on
from postroom.types import C

_log = Log("postroom.outbox", Step.SEND)

ROUNDS: Final = 10
"""Rounds for one tenant before it is the next one's turn."""
_GRACE: Final = 15.0
"""Seconds that rounds under way have at the end. Rows of a call that SQS has not answered by then stay."""
PATIENCE: Final = 3.0
"""Seconds for which a worker waits for one look. A database that hangs holds up no other tenant for longer."""
ANSWER: Final = 60.0
"""Seconds for the function that tells the tenants. One that hangs is asked again."""
_ENOUGH: Final = 10
"""Tenants without an outbox, and none with one, after which no others are asked: the relay was set up wrongly."""
_OUTBOXES: Final = Kind("Outbox could not be relayed", "tenant", _log, Step.SEND, "tenant")
_LIST: Final = "OutboxRelay(tenants=...)"
_LISTS: Final = Kind("Tenants could not be listed", "function", _log, Step.SEND, prefixed=False)
_JITTER: Final = Random()  # noqa: S311 - spreads the replicas' looks


class Run(Generic[C]):
    """One run of a relay.

    Args:
        pool: where the tenants' databases are leased.
        tenants: asks for the contexts.
        rounds: does the rounds.
        interval: seconds between two looks.
    """

    def __init__(
        self,
        pool: ResourcePool[C, Any],
        tenants: Callable[[], Awaitable[Sequence[C]]],
        rounds: Rounds,
        interval: float,
    ) -> None:
        self._pool = pool
        self._tenants = tenants
        self._rounds = rounds
        self._interval = interval
        self._tasks = Tasks(self._die)
        self.home: Home = Home()
        """Where other threads have it woken and stopped."""
        self._workers: list[asyncio.Task[Any]] = []
        self._under_way: set[asyncio.Task[Any]] = set()  # the looks
        self._line: asyncio.Queue[C | None] = asyncio.Queue()
        self._waiting: set[C] = set()
        self._busy: dict[C, bool] = {}  # and whether to look again afterwards
        self._looks: dict[C, asyncio.Lock] = {}  # so that drain() finds what a worker has in hand to be done
        self._pauses = Pauses()
        self._places = Places(pool, interval)
        self._feed_now = asyncio.Event()
        self._closing = False
        self._found = False  # whether any tenant has had an outbox
        self._listed: Sequence[C] = ()
        self._lacking: set[C] = set()  # tenants without an outbox, while none has had one
        self.stopping: asyncio.Event = asyncio.Event()
        """Set when the relay is to end."""
        self.fatal: BaseException | None = None
        """What ended it."""

    def begin(self, parallel: int) -> None:
        """Start the workers, and what gives them tenants."""
        self._tasks.spawn(self._feed(), "postroom-outbox-tenants")
        for number in range(parallel):
            self._workers.append(self._tasks.spawn(self._work(), f"postroom-outbox-{number}"))

    async def end(self) -> None:
        """Let rounds that are under way finish, and end all tasks."""
        self._closing = True
        for _ in self._workers:
            # One for each worker, behind what is in line; `_closing` keeps that from being worked
            # on.
            self._line.put_nowait(None)
        await asyncio.wait([*self._workers, *self._under_way], timeout=_GRACE)
        await self._tasks.close(grace=1.0)

    async def look(self, context: C) -> bool:
        """Do rounds for one tenant. Return whether there may be more.

        Raises:
            Exception: its database cannot be used.
        """
        lock = self._looks.setdefault(context, asyncio.Lock())
        try:
            async with lock:
                await self._places.follow(context)
                async with self._pool.lease(context) as database:
                    for _ in range(ROUNDS):
                        if self._closing or not await self._rounds.once(database, display_key(context)):
                            return False
        finally:
            # Another look may have taken it over: it must find this lock, and not a new one.
            if not lock.locked():
                self._looks.pop(context, None)
        return True

    def wake(self, context: C | None) -> None:
        """Look at one tenant at once, or at all."""
        if context is None:
            self._feed_now.set()
        else:
            self._put(context)

    def _put(self, context: C) -> None:
        if context in self._busy:
            # Noted and not put in line: two workers at one outbox would only wait for each other's
            # rows.
            self._busy[context] = True
        elif context not in self._waiting and not self._closing and not self._pauses.is_active(context):
            self._waiting.add(context)
            self._line.put_nowait(context)

    async def _feed(self) -> None:
        since, told, time = 0.0, False, asyncio.get_running_loop().time
        while goes_on():
            try:
                async with asyncio.timeout(ANSWER):
                    found = await self._tenants()
                self._places.keep(found)
                self._listed = found
                for context in found:
                    self._put(context)
                if told and self._tasks.outages.worked(_LISTS, _LIST, time()):
                    _log.warning("OutboxRelay(tenants=...) works again after %.0f s", time() - since)
                told = False
            except Exception as error:
                since, told = since if told else time(), True
                # Once, not every second for as long as a registry is down.
                if self._tasks.outages.failed(_LISTS, _LIST, cause_of(error), describe(error), time()).is_told:
                    text = (
                        "OutboxRelay(tenants=...) failed, so no outbox is looked at unless it is woken; it is asked "
                        "again every %g s: %s"
                    )
                    log_error(_log, logging.ERROR, text, self._interval, describe(error), error=error)
            self._feed_now.clear()
            try:
                # With jitter: all replicas look at the same databases.
                async with asyncio.timeout(self._interval * (0.75 + _JITTER.random() / 2)):
                    await self._feed_now.wait()
            except TimeoutError:
                continue

    async def _work(self) -> None:
        while (context := await self._line.get()) is not None and not self._closing:
            self._waiting.discard(context)
            # Before the look: a wake that comes during it asks for another one.
            self._busy[context] = False
            look = self._tasks.spawn(self._attempt(context), f"postroom-outbox-look-{display_key(context)}")
            self._under_way.add(look)
            look.add_done_callback(self._under_way.discard)
            # What failed last time may hang now: then no worker waits for it.
            patience = 0.0 if self._pauses.is_known(context) else PATIENCE
            _, hanging = await asyncio.wait([look], timeout=patience)
            if hanging and patience:
                text = "The outbox of tenant %s takes longer than %g s; it goes on, and others do not wait for it"
                _log.warning(text, display_key(context), PATIENCE, extra=about(tenant=context))

    async def _attempt(self, context: C) -> None:
        more = False
        try:
            more = await self.look(context)
            self._found = True
            self._pauses.succeeded(context)
            if self._tasks.outages.worked(_OUTBOXES, context, self._tasks.time()):
                text = "The outbox of tenant %s can be read again"
                _log.warning(text, display_key(context), extra=about(tenant=context))
        except NoOutbox as error:
            self._lacks(context, error)
        except Exception as error:
            self._failed(context, error)
        finally:
            again = self._busy.pop(context) or more
        if again:
            self._put(context)  # behind the others

    def _lacks(self, context: C, error: NoOutbox) -> None:
        """Note that a tenant has no outbox: the relay ends, unless others have one, or have not been looked at yet."""
        if self._found or (context in self._lacking and self.fatal is None):
            self._failed(context, error)
            return
        self._lacking.add(context)
        if len(self._lacking) < _ENOUGH and not (self._listed and self._lacking.issuperset(self._listed)):
            self._pauses.failed(context)  # the log tells of it at its next try
            return
        if self.fatal is None:
            # Now: the block that is left with this error may be the one of a web server, weeks later.
            _log.critical("The OutboxRelay cannot go on, and what is in the outboxes stays there: %s", error)
        self._die(error)

    def _failed(self, context: C, error: Exception) -> None:
        self._rounds.counters.failures += 1
        seconds = self._pauses.failed(context)
        cause = error.__cause__ if isinstance(error, ResourceOpenError) and error.__cause__ is not None else error
        shown, now = describe(cause), self._tasks.time()
        telling = self._tasks.outages.failed(_OUTBOXES, context, cause_of(cause), shown, now)
        level = logging.ERROR if telling.is_told else logging.DEBUG
        if _log.isEnabledFor(level):
            text = "The outbox of tenant %s could not be relayed; the next try is in %.0f s: %s"
            arguments = (display_key(context), seconds, shown)
            log_error(_log, level, text, *arguments, error=cause, extra=about(tenant=context))

    def _die(self, error: BaseException) -> None:
        self.fatal = self.fatal or error
        self.stopping.set()
