"""Every adapter for plain ``def`` handlers, as the conformance suite uses it: each block in a thread of its own."""
# ruff: noqa: D102 - the base class says what each of them does

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any, ClassVar

from sqlalchemy import text
from sqlalchemy.orm import sessionmaker

from postroom.datasources import (
    Provider,
    Registry,
    psycopg_sync_inbox,
    psycopg_sync_pool,
    sqlalchemy_sync_engine,
    sqlalchemy_sync_inbox,
)
from postroom.transactions import MessageKey
from support.transactional import PostgresAdapter, SqliteAdapter


class Thread:
    """One thread, as a handler's: who waits for it may be cancelled, and waits on."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the thread."""
        call = asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
        cancelled: asyncio.CancelledError | None = None
        while not call.done():
            try:
                await asyncio.wait([call])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None and call.exception() is None:
            raise cancelled
        return call.result()

    @asynccontextmanager
    async def block(self, manager: AbstractContextManager[Any]) -> AsyncGenerator[Any]:
        """Enter and leave a context manager in the thread."""
        entered: list[Any] = []
        try:
            await self.run(lambda: entered.append(manager.__enter__()))
            yield entered[0]
        except BaseException as error:
            if not entered or not await self.run(manager.__exit__, type(error), error, error.__traceback__):
                raise
        else:
            await self.run(manager.__exit__, None, None, None)

    def end(self) -> None:
        """Let the thread end."""
        self._executor.shutdown(wait=False)


class InThread:
    """A transaction of a driver that blocks, and its thread."""

    def __init__(self, tx: Any, thread: Thread) -> None:
        self.tx = tx
        self.thread = thread

    async def commit(self) -> None:
        """Commit in the thread, which is the driver's own way and not the block's."""
        await self.thread.run(self.tx.commit)


class Threaded:
    """Resources for plain ``def`` handlers, for a suite that awaits."""

    def __init__(self, database: Any) -> None:
        self._database = database

    def __repr__(self) -> str:
        return repr(self._database)

    def transaction_for(self, key: MessageKey, /) -> AbstractAsyncContextManager[InThread]:
        """Begin in a thread."""
        return self._block(lambda: self._database.sync_transaction_for(key))

    def transaction(self) -> AbstractAsyncContextManager[InThread]:
        """Begin in a thread, without a message."""
        return self._block(self._database.transaction)

    async def purge_inbox(self, **options: Any) -> Any:
        """Purge in a thread."""
        return await asyncio.to_thread(self._database.purge_inbox, **options)

    @asynccontextmanager
    async def _block(self, make: Callable[[], AbstractContextManager[Any]]) -> AsyncGenerator[InThread]:
        thread = Thread()
        try:
            async with thread.block(make()) as tx:
                yield InThread(tx, thread)
        finally:
            thread.end()


class SqliteSyncAdapter(SqliteAdapter):
    """A file, used from threads."""

    def provider(self, **options: Any) -> Provider[str, Any]:
        return super().provider(**options).map(Threaded)

    async def execute(self, tx: Any, sql: str) -> None:
        await tx.thread.run(tx.tx.execute, sql)

    def savepoint(self, tx: Any) -> AbstractAsyncContextManager[Any]:
        return nullcontext(tx)  # each step is one


class PsycopgSyncAdapter(PostgresAdapter):
    """psycopg's pool for threads."""

    def inbox(self, registry: Registry[str], max_size: int, **options: Any) -> Provider[str, Any]:
        return psycopg_sync_inbox(psycopg_sync_pool(registry, max_size=max_size), **options).map(Threaded)

    async def execute(self, tx: Any, sql: str) -> None:
        await tx.thread.run(tx.tx.execute, sql)

    def savepoint(self, tx: Any) -> AbstractAsyncContextManager[Any]:
        block: AbstractAsyncContextManager[Any] = tx.thread.block(tx.tx.transaction())
        return block

    async def close(self, tx: Any) -> None:
        await tx.thread.run(tx.tx.close)


class SqlalchemySyncAdapter(PostgresAdapter):
    """SQLAlchemy's engine for threads, and its connections."""

    session: ClassVar[Any] = None

    def inbox(self, registry: Registry[str], max_size: int, **options: Any) -> Provider[str, Any]:
        engine = sqlalchemy_sync_engine(registry, max_size=max_size, close_timeout=0.2)
        inbox: Provider[str, Any] = sqlalchemy_sync_inbox(engine, session=type(self).session, **options)
        return inbox.map(Threaded)

    async def execute(self, tx: Any, sql: str) -> None:
        await tx.thread.run(tx.tx.execute, text(sql))

    def savepoint(self, tx: Any) -> AbstractAsyncContextManager[Any]:
        return self._savepoint(tx)

    @asynccontextmanager
    async def _savepoint(self, tx: Any) -> AsyncGenerator[None]:
        async with tx.thread.block(await tx.thread.run(tx.tx.begin_nested)):
            yield

    async def close(self, tx: Any) -> None:
        raw = await tx.thread.run(lambda: self.connection(tx.tx).connection.driver_connection)
        await tx.thread.run(raw.close)

    def connection(self, tx: Any) -> Any:
        """Return the connection of a transaction."""
        return tx


class SessionSyncAdapter(SqlalchemySyncAdapter):
    """SQLAlchemy's ORM session for threads."""

    session: ClassVar[Any] = sessionmaker(expire_on_commit=False)

    def connection(self, tx: Any) -> Any:
        return tx.connection()
