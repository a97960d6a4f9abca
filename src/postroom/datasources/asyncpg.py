"""asyncpg: one connection pool per context. Needs ``pip install 'postroom[asyncpg]'``."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from postroom.datasources._attempts import Attempts
from postroom.datasources.registry import CANARY, DataSource, Locate, Provider, located, verify
from postroom.types import C

try:
    import asyncpg
except ModuleNotFoundError as error:  # pragma: no cover - the test environment has it
    raise ModuleNotFoundError("asyncpg is missing: pip install 'postroom[asyncpg]'", name="asyncpg") from error

_log = logging.getLogger("postroom.datasources")


class Init(Protocol):
    """Prepares a new connection: type codecs, for instance."""

    async def __call__(self, connection: "asyncpg.Connection[asyncpg.Record]", /) -> None:
        """Prepare ``connection``."""


def asyncpg_pool(
    locate: Locate[C],
    *,
    max_size: int = 4,
    idle: float = 60.0,
    connect_timeout: float = 5.0,
    close_timeout: float = 5.0,
    canary: bool = True,
    init: Init | None = None,
    options: Mapping[str, Any] | None = None,
) -> "Provider[C, asyncpg.Pool[asyncpg.Record]]":
    """Provide an ``asyncpg.Pool`` per context. It opens its first connection at once, and others as they are needed.

    asyncpg's own ``close()`` waits without bound for connections that are held. This one terminates them after
    ``close_timeout``: nothing of the pool is open when it has been left.

    Args:
        locate: context to DSN or ``DataSource``; ``LookupError`` for a context that is nobody's.
        max_size: connections at most; the weight of one resource.
        idle: seconds after which an unused connection is closed, down to none.
        connect_timeout: seconds for one connection to be made, the canary included.
        close_timeout: seconds that held connections may take at close.
        canary: check database and user of every new connection against the registry (``WrongDatabase``).
        init: called with each new connection, after the canary: type codecs, for instance.
        options: further keywords for ``asyncpg.create_pool``, such as ``ssl`` or ``statement_cache_size``.

    Raises:
        LookupError: at opening: the registry does not know the context.
        WrongDatabase: at opening: the canary found another database or user.
        asyncpg.PostgresError, OSError, TimeoutError: at opening: the first connection could not be made.
    """

    @asynccontextmanager
    async def enter(context: C) -> "AsyncGenerator[asyncpg.Pool[asyncpg.Record], None]":
        source = await located(locate, context)
        attempts = Attempts(connect_timeout, _discard)
        keywords: dict[str, Any] = dict(options or {})
        if source.password is not None:
            keywords["password"] = source.password

        async def connect(*arguments: Any, **keywords: Any) -> "asyncpg.Connection[asyncpg.Record]":
            return await attempts.make(
                lambda: asyncpg.connect(*arguments, **keywords),
                lambda connection: _greet(connection, source if canary else None),
            )

        pool = asyncpg.create_pool(
            source.dsn,
            min_size=0,
            max_size=max_size,
            max_inactive_connection_lifetime=idle,
            connect=connect,
            init=init,
            **keywords,
        )
        try:
            await pool
            # An open that never connected would prove nothing about the tenant's database.
            async with pool.acquire():
                pass
            yield pool
        finally:
            try:
                await attempts.close()
            finally:
                await _close(pool, close_timeout)

    return Provider(enter, weight=max_size, check=_check)


async def _greet(connection: "asyncpg.Connection[asyncpg.Record]", source: DataSource | None) -> None:
    if source is not None:
        row = await connection.fetchrow(CANARY)
        assert row is not None  # noqa: S101 - it has no FROM and no WHERE
        verify(source, row[0], row[1])


async def _discard(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    connection.terminate()
    await asyncio.sleep(0)  # an aborted socket closes in the next turn of the loop


async def _check(pool: "asyncpg.Pool[asyncpg.Record]") -> bool:
    """Ask one idle connection. A pool whose connections are all in use is in use: its users report what they find."""
    if pool.get_size() == pool.get_max_size() and pool.get_idle_size() == 0:
        return True
    async with pool.acquire() as connection:
        await connection.execute("SELECT 1")
    return True


async def _close(pool: "asyncpg.Pool[asyncpg.Record]", timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await pool.close()
    except TimeoutError:
        _log.warning("Connections of an asyncpg pool were still held after %.1f s and were terminated", timeout)
    finally:
        pool.terminate()  # after close() it does nothing; without it a cancelled or failed close leaks
        await asyncio.sleep(0)  # an aborted socket closes in the next turn of the loop
