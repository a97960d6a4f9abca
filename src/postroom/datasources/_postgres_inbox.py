"""Transactions of PostgreSQL that begin with their message's row: what is the same for every driver."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final, Generic

from typing_extensions import TypeVar

from postroom.checking import check_kind, check_optional
from postroom.datasources.inbox import KEEP, PURGED_AT_ONCE, Inbox, check_age
from postroom.datasources.providers import Provider
from postroom.datasources.registry import ask_registry, check_switches, check_times
from postroom.datasources.scope import Scope, ScopeOf, quoted, set_local
from postroom.display import display_key
from postroom.errors import AlreadyHandled, ConfigurationError
from postroom.log_fields import Log, Step, about
from postroom.redaction import sqlstate_of
from postroom.tasks import TimeLimit
from postroom.transactions import MessageKey, TransactionRolledBack
from postroom.types import C, R

Tx = TypeVar("Tx")
D = TypeVar("D", default=Any)
_log = Log("postroom.datasources", Step.RESOURCES)
_ONE_AT_A_TIME: Final = "SELECT pg_advisory_xact_lock(hashtext('postroom inbox'))"
_READ_COMMITTED: Final = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"
_BEGUN: Final = "SELECT now()::text"  # the time at which the transaction began
_ABORTED: Final = "25P02"
_BYPASS: Final = (
    "SELECT rolname || CASE WHEN rolsuper OR rolbypassrls THEN ' is a superuser or has BYPASSRLS' "
    "ELSE (SELECT ' owns ' || min(pg_class.oid::regclass::text) FROM pg_class "
    "WHERE relrowsecurity AND NOT relforcerowsecurity AND pg_has_role(relowner, 'USAGE')) END "
    "FROM pg_roles WHERE rolname = current_user"
)
"""Why row-level security does not apply to the present user, if that is so."""
SWALLOWED: Final = (
    "a statement of this transaction failed and the error did not leave the block, so PostgreSQL has rolled all of it "
    "back: nothing was done. Let the error leave the block, or run the statement in a savepoint"
)
ENDED: Final = (
    "the block ended its transaction itself, with a COMMIT, a ROLLBACK or by closing it: what came afterwards was no "
    "part of it. Leave the end of the transaction to the end of the block"
)


class Work(ABC, Generic[Tx]):
    """One open transaction of a driver.

    Args:
        tx: what the handler gets.
    """

    def __init__(self, tx: Tx) -> None:
        self.tx = tx

    @abstractmethod
    async def value(self, sql: str, *parameters: Any) -> Any:
        """Run one statement with parameters ``$1``, ``$2``; return the first value, or None."""

    @abstractmethod
    async def run(self, sql: str) -> None:
        """Run statements without parameters."""

    @abstractmethod
    async def finish(self) -> None:
        """Send what the driver still keeps back, and look at what it knows of the transaction.

        Raises:
            TransactionRolledBack: it has ended, or is aborted.
        """


class PostgresDatabase(ABC, Generic[Tx]):
    """A driver's resources with an inbox in their database.

    Args:
        inbox: the table, and the SQL that uses it.
        wait: seconds that a duplicate waits for the transaction of the first.
        scope: the tenant's part of a shared database; None where it has a database of its own.
    """

    def __init__(self, inbox: Inbox, *, wait: float = 60.0, scope: Scope | None = None) -> None:
        self.inbox = inbox
        """The table, and the SQL that uses it."""
        self.scope = scope
        """The tenant's part of the database, where it shares one."""
        self.bypass: str | None = None
        """Why row-level security does not apply to the user, although ``scope`` has settings; known once prepared."""
        self._wait = wait

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inbox!r})"

    @abstractmethod
    def _begin(self) -> AbstractAsyncContextManager[Work[Tx]]:
        """Begin a transaction of the driver; commit at the end of the block, or roll back when it raises."""

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Tx, None]:
        """Yield what the driver works with, in a transaction in the tenant's scope, without a message's row.

        For work that needs no inbox, such as reading.

        Raises:
            TransactionRolledBack: at its end: the block swallowed an error of the database, or
                ended the transaction.
        """
        async with self.work() as work:
            yield work.tx

    @asynccontextmanager
    async def work(self, *, read_committed: bool = False) -> AsyncGenerator[Work[Tx], None]:
        """Yield what runs statements, whatever the driver, in a transaction in the tenant's scope.

        Args:
            read_committed: each statement is to see what was committed before it, whatever the database's default is.

        Raises:
            TransactionRolledBack: as ``transaction``.
        """
        async with self._begin() as work:
            if read_committed:
                await work.run(_READ_COMMITTED)  # before any query: not after the scope
            await self._enter_scope(work)
            yield work
            await work.finish()
            await _number(work)

    @asynccontextmanager
    async def transaction_for(self, key: MessageKey, /) -> AsyncGenerator[Tx, None]:
        """Yield what the driver works with, in a transaction that begins with the row of ``key`` in the inbox.

        While another transaction has written the same row and is not at its end, PostgreSQL's
        unique index makes this one wait. A commit that loses its answer with its connection raises;
        whether it was done, the next receive of the message finds out.

        Raises:
            AlreadyHandled: the row was there. Nothing was done.
            TimeoutError: the other transaction was not at its end after ``wait`` seconds. Nothing
                was done.
            TransactionRolledBack: at its end: the block swallowed an error of the database, or
                ended the transaction.
            Exception: the driver's: the database failed. Before the commit nothing was done.
        """
        async with self._begin() as work:
            await self._enter_scope(work)
            begun = await self._claim(work, key if self.scope is None else self.scope.key(key))
            if begun is None:
                raise AlreadyHandled
            yield work.tx
            await work.finish()
            # One more round trip. Only the server knows that this is still the transaction with the row: the block may
            # have said COMMIT and BEGIN, or swallowed an error, and a driver need not tell.
            if await _number(work) != begun:
                raise TransactionRolledBack(ENDED)

    async def purge_inbox(self, *, older_than: float = KEEP) -> int:
        """Delete the inbox's rows that are older than ``older_than`` seconds, and return how many there were.

        A message that comes after its row was purged is handled again: keep rows for longer than
        the queue keeps messages. The default is the most that SQS allows, and a day. In
        transactions of 10,000 rows.
        """
        check_age(older_than)
        total = 0
        while count := await self._purge_some(float(older_than)):
            total += count
        return total

    async def prepare(self, *, create: bool) -> None:
        """Look for the table, and create it where it is missing and ``create`` is set.

        Raises:
            ConfigurationError: there is no such table or schema, or statements are committed one by
                one.
        """
        await self._look_for_the_table(create=create)
        if self.scope is not None and self.scope.settings:
            with suppress(Exception):  # of a server that hides its roles it stays unknown
                async with self._begin() as work:
                    await self._enter_scope(work)
                    said = await work.value(_BYPASS)
                    self.bypass = said.decode(errors="replace") if isinstance(said, bytes) else said  # of SQL_ASCII

    async def _look_for_the_table(self, *, create: bool) -> None:
        async with self._begin() as work:
            if await work.value(_BEGUN) != await work.value(_BEGUN):
                text = "the inbox needs transactions, and these connections commit each statement: not AUTOCOMMIT"
                raise ConfigurationError(text)
            await self._require_schema(work)
            await self._enter_scope(work)
            if await self._has_table(work):
                return
            if not create:
                remedy = f"add postgres_inbox({self.inbox.table!r}).schema to your migrations, or pass create=True"
                raise ConfigurationError(f"this tenant's database has no table {self.inbox.table}: {remedy}")
            await work.value(_ONE_AT_A_TIME)  # IF NOT EXISTS fails when two do it at the same time
            await work.run(self.inbox.schema)

    async def _enter_scope(self, work: Work[Tx]) -> None:
        if self.scope is not None:
            sql, parameters = set_local(self.scope)
            await work.value(sql, *parameters)

    async def _claim(self, work: Work[Tx], key: MessageKey) -> int | None:
        deadline = TimeLimit(self._wait)
        try:
            async with deadline:
                number = await work.value(self.inbox.claim, *key)
        except TimeoutError:
            if not deadline.expired():
                raise
            text = f"another transaction has held the row of this message for more than {self._wait:g} s"
            raise TimeoutError(text) from None
        return None if number is None else int(number)

    async def _purge_some(self, older_than: float) -> int:
        async with self._begin() as work:
            await self._enter_scope(work)
            return int(await work.value(self.inbox.purge, older_than, PURGED_AT_ONCE))

    async def _has_table(self, work: Work[Tx]) -> bool:
        return await work.value("SELECT to_regclass($1)::oid", self.inbox.table) is not None

    async def _require_schema(self, work: Work[Tx]) -> None:
        schema = None if self.scope is None else self.scope.schema
        if schema is None or await work.value("SELECT to_regnamespace($1)::oid", quoted(schema)) is not None:
            return
        raise ConfigurationError(f"this tenant's database has no schema {schema!r}, or its user may not see it")


async def _number(work: Work[Any]) -> int | None:
    """Return the number of the present transaction, if it has one yet. Raises ``TransactionRolledBack``."""
    try:
        number = await work.value("SELECT txid_current_if_assigned()")
    except Exception as error:
        if sqlstate_of(error) == _ABORTED:
            raise TransactionRolledBack(SWALLOWED) from error
        raise
    return None if number is None else int(number)


def check_inbox(owner: str, *, wait: object, create: object, scope: object) -> None:
    """Refuse what an inbox cannot work with, where it is written. Raises ``ConfigurationError``."""
    check_times(owner, wait=wait)
    check_switches(owner, create=create)
    check_optional(f"{owner}(scope=...)", '(context) -> Scope(schema="acme")', scope)


def add_inbox(
    provider: Provider[C, R],
    database: Callable[[R, Scope | None], D],
    resource_of: Callable[[D], R],
    prepare: Callable[[D], Awaitable[None]],
    scope: ScopeOf[C] | None,
) -> Provider[C, D]:
    """Return a provider of what ``database`` makes of the resources of another, with its weight and its check.

    Raises:
        ConfigurationError: ``provider`` is none.
    """
    check_kind("an inbox's first argument", provider, Provider, "asyncpg_inbox(asyncpg_pool(registry))")
    check = provider.check
    told: set[object] = set()

    @asynccontextmanager
    async def enter(context: C) -> AsyncGenerator[D, None]:
        own = None if scope is None else await ask_registry(scope, context)
        async with provider(context) as resource:
            made = database(resource, own)
            await prepare(made)
            bypass: object = getattr(made, "bypass", None)
            if bypass and bypass not in told:  # once for a provider: all tenants have the same user, mostly
                told.add(bypass)
                who = display_key(context)
                _log.warning(
                    "Tenant %s: its scope has settings, and row-level security does not apply: its user %s. It sees "
                    "the rows of all tenants of its database, unless something else reads the settings. Let the DSN "
                    "name a user who owns no table",
                    who,
                    bypass,
                    extra=about(tenant=who),
                )
            yield made

    async def healthy(made: D) -> bool:
        return check is None or await check(resource_of(made))

    return Provider(
        enter,
        weight=provider.weight,
        check=None if check is None else healthy,
        place=provider.place,
        scoped=scope is not None,
    )
