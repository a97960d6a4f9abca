"""The inbox over SQLAlchemy: transactions of a connection or of an ORM session that begin with their message's row."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, overload

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from typing_extensions import TypeVar

from postroom.datasources._postgres_inbox import PostgresDatabase, Work, add_inbox, check_inbox
from postroom.datasources._sqlalchemy_sessions import OfConnection, OfSession, once_only
from postroom.datasources.inbox import DEFAULT_TABLE, Inbox, postgres_inbox
from postroom.datasources.providers import Provider
from postroom.datasources.scope import Scope, ScopeOf
from postroom.errors import ConfigurationError
from postroom.types import C

Tx = TypeVar("Tx")
S = TypeVar("S", bound=AsyncSession, default=AsyncSession)
Begin = Callable[[AsyncEngine], AbstractAsyncContextManager[Work[Tx]]]
"""How a transaction of an engine begins."""


class SqlalchemyDatabase(PostgresDatabase[Tx], Generic[Tx]):
    """An ``AsyncEngine`` with an inbox in its database. ``sqlalchemy_inbox`` provides it."""

    def __init__(
        self, engine: AsyncEngine, inbox: Inbox, begin: Begin[Tx], *, wait: float = 60.0, scope: Scope | None = None
    ) -> None:
        super().__init__(inbox, wait=wait, scope=scope)
        self.engine = engine
        """SQLAlchemy's own engine, for what needs no transaction of the message. No scope holds there."""
        self._begin_with = begin

    def _begin(self) -> AbstractAsyncContextManager[Work[Tx]]:
        return self._begin_with(self.engine)


@asynccontextmanager
async def _begin_connection(engine: AsyncEngine) -> AsyncGenerator[Work[AsyncConnection], None]:
    async with engine.connect() as connection, connection.begin() as transaction:
        yield OfConnection(connection, connection, transaction)


def _begin_session(factory: Callable[..., S]) -> Begin[S]:
    options = once_only(factory)

    @asynccontextmanager
    async def begin(engine: AsyncEngine) -> AsyncGenerator[Work[S], None]:
        async with factory(bind=engine, **options) as session, session.begin() as transaction:
            yield OfSession(session, await session.connection(), transaction)

    return begin


@overload
def sqlalchemy_inbox(
    provider: Provider[C, AsyncEngine],
    *,
    session: None = None,
    table: str = DEFAULT_TABLE,
    create: bool = False,
    wait: float = 60.0,
    scope: ScopeOf[C] | None = None,
) -> Provider[C, SqlalchemyDatabase[AsyncConnection]]: ...


@overload
def sqlalchemy_inbox(
    provider: Provider[C, AsyncEngine],
    *,
    session: Callable[..., S],
    table: str = DEFAULT_TABLE,
    create: bool = False,
    wait: float = 60.0,
    scope: ScopeOf[C] | None = None,
) -> Provider[C, SqlalchemyDatabase[S]]: ...


def sqlalchemy_inbox(
    provider: Provider[C, AsyncEngine],
    *,
    session: Callable[..., Any] | None = None,
    table: str = DEFAULT_TABLE,
    create: bool = False,
    wait: float = 60.0,
    scope: ScopeOf[C] | None = None,
) -> Provider[C, SqlalchemyDatabase[Any]]:
    """Add an inbox to a provider of engines: ``sqlalchemy_inbox(sqlalchemy_engine(registry), session=AsyncSession)``.

    Args:
        provider: what opens the engine, for PostgreSQL. Its weight and its health check stay as
            they are.
        session: makes the ``AsyncSession`` that handlers get, called with ``bind=``: the class
            itself, or an ``async_sessionmaker(expire_on_commit=False)``. None: handlers get an
            ``AsyncConnection``.
        table: the inbox's table, with or without a schema.
        create: create the table at opening where it is missing. Otherwise your migrations do, with
            ``postgres_inbox(table).schema``.
        wait: seconds that a duplicate waits for the transaction of the first, before it counts as
            failed.
        scope: context to the tenant's part of a database that tenants share: a schema, or settings.

    Raises:
        ConfigurationError: ``table`` is no name for a table, ``session`` makes no session; at
            opening: the database is not PostgreSQL, has no such table or schema, or its connections
            are in AUTOCOMMIT.
    """
    if isinstance(session, type) and not issubclass(session, AsyncSession):
        raise ConfigurationError(f"session= takes AsyncSession or an async_sessionmaker(...); got {session.__name__}")
    check_inbox("sqlalchemy_inbox", wait=wait, create=create, scope=scope)
    inbox = postgres_inbox(table)
    begin: Begin[Any] = _begin_connection if session is None else _begin_session(session)

    async def prepare(database: SqlalchemyDatabase[Any]) -> None:
        if database.engine.dialect.name != "postgresql":
            raise ConfigurationError(f"sqlalchemy_inbox() is for PostgreSQL; this is {database.engine.dialect.name}")
        await database.prepare(create=create)

    return add_inbox(
        provider,
        lambda engine, own: SqlalchemyDatabase(engine, inbox, begin, wait=wait, scope=own),
        lambda database: database.engine,
        prepare,
        scope,
    )
