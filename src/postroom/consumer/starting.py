"""The start of a consumer: what a run needs is opened, and closed again where that fails."""

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final, Self, cast

from postroom.consumer.lifecycle import Run
from postroom.consumer.roster import Roster
from postroom.consumer.settings import Settings
from postroom.consumer.stopping import Closing
from postroom.consumer.tenants import Tenants
from postroom.log_fields import Log, Step, about
from postroom.options import PoolTimeouts
from postroom.payloads import Decoder
from postroom.resources import ResourcePool
from postroom.transports import default_client
from postroom.transports.protocol import Queue
from postroom.types import C, R

_log = Log("postroom.consumer", Step.START)

_LONG: Final = 10.0
"""Seconds after which a start says what it waits for."""


async def start_run(settings: Settings[C, R], handler: Any, decode: Decoder, tenants: Tenants) -> Run[C, R]:
    """Open client, queue and pool, and start to poll.

    Raises before anything runs, with everything closed again, when the queue cannot be opened.
    """
    closing = Closing()
    async with AsyncExitStack() as opening, _Waits(settings.queue) as waits:
        client = default_client() if settings.client is None else settings.client
        # First, and so closed last: everything below may talk to SQS until its own end.
        await opening.enter_async_context(client)
        opening.callback(closing.begins, Closing.CLIENT)
        for each in (*([] if settings.unwrap is None else settings.unwrap.resources), *settings.middleware):
            if isinstance(each, AbstractAsyncContextManager):
                name = type(cast("object", each)).__name__
                waits.on = f"{name} to be entered"
                await opening.enter_async_context(cast("AbstractAsyncContextManager[object]", each))
                opening.callback(closing.begins, name)
        waits.on = "SQS to tell of the queue, or for credentials"
        where: Queue | Roster
        if settings.queues is None:
            where = await client.queue(settings.queue)
        else:
            where = Roster(settings.queues, client)
            opening.push_async_callback(where.close)
            opening.callback(closing.begins, "The list of queues")
            await where.open()
        waits.on = "the pool and the fleet to open"
        pool = await _open_pool(settings, opening)
        opening.callback(closing.begins, Closing.POOL)
        run = Run(settings, handler, decode, tenants, client=client, where=where, pool=pool)
        if run.member is not None:
            # Before `open`: if that fails half-way, the fleet may already count this replica.
            opening.push_async_callback(run.member.close)
            opening.callback(closing.begins, "The fleet")
            await run.member.open()
        # From here on the run closes what was opened; an error before this line closes it here.
        run.begin(opening.pop_all(), closing)
    return run


class _Waits:
    """Says what a start waits for, if it takes long: a process that is asked for credentials has no time limit."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._timer: asyncio.TimerHandle | None = None
        self.on = "the client to open: it gets credentials"

    async def __aenter__(self) -> Self:
        self._timer = asyncio.get_running_loop().call_later(_LONG, self._tell)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        text = "The start of %s takes longer than %g s: it waits for %s"
        _log.warning(text, self._queue, _LONG, self.on, extra=about(queue=self._queue))


async def _open_pool(settings: Settings[C, R], opening: AsyncExitStack) -> ResourcePool[C, R] | None:
    """Enter the pool that was passed, or one of our own. The last user of a pool to leave it closes it."""
    resources = settings.resources
    if resources is None:
        return None
    if isinstance(resources, ResourcePool):
        pool = await opening.enter_async_context(cast("ResourcePool[C, R]", resources))
        for observer in settings.observers:
            opening.callback(pool.subscribe(observer))
        return pool
    # `Shutdown(close=0)` is allowed, but a pool's timeout must be positive.
    timeouts = PoolTimeouts(close=max(settings.shutdown.close, 0.001))
    pool = ResourcePool(
        resources,
        cleanup=settings.cleanup,
        timeouts=timeouts,
        observers=settings.observers,
        name=settings.queue,
    )
    return await opening.enter_async_context(pool)
