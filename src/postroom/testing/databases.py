"""Simulated tenant databases: durable tables behind connections that fail as real ones do.

    databases = SimulatedDatabases(Random(7))
    databases.create("acme")
    pool = ResourcePool(lambda tenant: databases.connect(tenant.tenant_id))
    databases.trouble("acme", Trouble.BLACK_HOLE)

A commit takes effect at one instant; before it nothing is there, after it everything, whatever the caller was told.
Under ``run_virtual`` the time that it takes is free.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from postroom.errors import UnknownTenant


class Trouble(StrEnum):
    """What a tenant's server suffers from."""

    NONE = "none"
    SLOW = "slow"
    """Everything takes up to two seconds."""
    REFUSING = "refusing"
    """New connections are refused; those that exist go on."""
    BLACK_HOLE = "black hole"
    """New connections and statements get no answer at all."""
    DROPPING = "dropping"
    """Half of all transactions lose their connection: before the commit, or after it, when only the answer is lost."""


class UnknownDatabase(UnknownTenant):
    """There is no such database, and so no such tenant."""


class WrongPassword(PermissionError):
    """The password is not the present one."""


class ConnectionDropped(ConnectionError):
    """The server closed the connection, or the network did."""


@dataclass(frozen=True, slots=True)
class Row:
    """A committed row."""

    key: str
    at: float
    """The loop time of the commit."""
    owner: Hashable = None
    """The owner of the connection that wrote it."""


class SimulatedConnection:
    """A connection to one tenant's database. Made by ``SimulatedDatabases.connect``."""

    def __init__(self, databases: "SimulatedDatabases", tenant: str, owner: Hashable) -> None:
        self._databases = databases
        self.tenant = tenant
        self.owner = owner
        self.dropped = False
        """Whether the server's side of it is gone."""
        self.closed = False
        """Whether our side closed it."""

    @asynccontextmanager
    async def transaction(self) -> "AsyncGenerator[SimulatedTransaction]":
        """Begin; commit at the end of the block, or roll back if it raises.

        Raises:
            ConnectionDropped: before the commit or after it: the caller cannot know.
            RuntimeError: the connection was closed.
        """
        transaction = SimulatedTransaction()
        yield transaction
        await self._databases.commit(self, transaction)


class SimulatedTransaction:
    """What one transaction is about to write."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.once: list[str] = []

    def insert(self, key: str) -> None:
        """Add a row; a second one with the same key is a second row."""
        self.rows.append(key)

    def insert_once(self, key: str) -> None:
        """Add a row unless there is one with this key: ``INSERT ... ON CONFLICT DO NOTHING``."""
        self.once.append(key)


@dataclass(eq=False, slots=True)
class _Server:
    trouble: Trouble = Trouble.NONE
    refusal: Callable[[], Exception] | None = None
    password: int = 0
    rows: list[Row] = field(default_factory=list[Row])
    once: dict[str, Row] = field(default_factory=dict[str, Row])
    connections: dict[SimulatedConnection, None] = field(default_factory=dict[SimulatedConnection, None])
    healed: asyncio.Event = field(default_factory=asyncio.Event)


class SimulatedDatabases:
    """One server per tenant.

    Args:
        rng: decides what happens.
        latency: the longest that a connect or a commit takes while there is no trouble, in seconds.
    """

    def __init__(self, rng: Random, *, latency: float = 0.02) -> None:
        self._rng = rng
        self._latency = latency
        self._servers: dict[str, _Server] = {}

    def create(self, tenant: str) -> None:
        """Create an empty database."""
        self._servers[tenant] = _Server()

    def trouble(self, tenant: str, trouble: Trouble) -> None:
        """Let a server suffer from something; ``Trouble.NONE`` ends it."""
        server = self._servers[tenant]
        server.trouble = trouble
        if trouble is not Trouble.BLACK_HOLE:
            server.healed.set()
            server.healed = asyncio.Event()

    def misconfigure(self, tenant: str, error: Callable[[], Exception] | None) -> None:
        """Let every new connection of a tenant fail as a broken deployment does, until it is None again.

        Args:
            tenant: the owner of the connections.
            error: makes what is raised: ``lambda: KeyError("BILLING_DB_HOST")`` for a missing environment variable.
        """
        self._servers[tenant].refusal = error

    def fail_over(self, tenant: str) -> None:
        """Drop every connection of a tenant; transactions that are not committed are rolled back."""
        self.drop(lambda connection: connection.tenant == tenant)

    def drop(self, which: Callable[[SimulatedConnection], bool]) -> None:
        """Drop the server's side of connections."""
        for server in self._servers.values():
            for connection in [each for each in server.connections if which(each)]:
                connection.dropped = True
                del server.connections[connection]

    def rotate(self, tenant: str) -> None:
        """Change the password. Connections that exist go on."""
        self._servers[tenant].password += 1

    def password(self, tenant: str) -> int:
        """Return the present password. Raises ``UnknownDatabase``."""
        return self._server(tenant).password

    @asynccontextmanager
    async def connect(
        self, tenant: str, *, password: int | None = None, owner: Hashable = None
    ) -> AsyncGenerator[SimulatedConnection]:
        """Connect for the time of the block.

        Args:
            tenant: the owner of the database.
            password: None for the present one.
            owner: remembered with the connection and with what it writes.

        Raises:
            UnknownDatabase, WrongPassword, ConnectionRefusedError, ConnectionDropped; or what
                ``misconfigure`` was given.
        """
        server = self._server(tenant)
        if server.refusal is not None:
            raise server.refusal()
        await self._answer(server)
        if server.trouble is Trouble.REFUSING:
            raise ConnectionRefusedError(f"the server of {tenant!r} refuses connections")
        if password is not None and password != server.password:
            raise WrongPassword(f"wrong password for {tenant!r}")
        connection = SimulatedConnection(self, tenant, owner)
        server.connections[connection] = None
        try:
            yield connection
        finally:
            connection.closed = True
            server.connections.pop(connection, None)

    async def commit(self, connection: SimulatedConnection, transaction: SimulatedTransaction) -> None:
        """Commit what a transaction wrote; ``SimulatedConnection.transaction`` calls it."""
        server = self._server(connection.tenant)
        drops = server.trouble is Trouble.DROPPING and self._rng.random() < 0.5
        answer_lost = drops and self._rng.random() < 0.5
        await self._answer(server)
        if connection.closed:
            raise RuntimeError("this connection was closed")
        if connection.dropped or (drops and not answer_lost):
            self.drop(lambda each: each is connection)
            raise ConnectionDropped("the connection was lost before the commit")
        self._write(server, connection, transaction)
        await asyncio.sleep(self._rng.random() * self._latency)
        if answer_lost or connection.dropped:
            self.drop(lambda each: each is connection)
            raise ConnectionDropped("the connection was lost after the commit")

    def rows(self, tenant: str) -> list[Row]:
        """Return every committed row of a tenant, in the order of commits."""
        server = self._servers[tenant]
        return sorted([*server.rows, *server.once.values()], key=lambda row: row.at)

    def connections(self, tenant: str | None = None) -> list[SimulatedConnection]:
        """Return the connections that a tenant's server counts now, or all of them."""
        servers = self._servers.values() if tenant is None else [self._servers[tenant]]
        return [connection for server in servers for connection in server.connections]

    def _server(self, tenant: str) -> _Server:
        try:
            return self._servers[tenant]
        except KeyError:
            raise UnknownDatabase(f"there is no database of {tenant!r}") from None

    async def _answer(self, server: _Server) -> None:
        await asyncio.sleep(self._rng.random() * (2.0 if server.trouble is Trouble.SLOW else self._latency))
        while server.trouble is Trouble.BLACK_HOLE:
            await server.healed.wait()

    def _write(self, server: _Server, connection: SimulatedConnection, transaction: SimulatedTransaction) -> None:
        now = asyncio.get_running_loop().time()
        server.rows.extend(Row(key, now, connection.owner) for key in transaction.rows)
        for key in transaction.once:
            server.once.setdefault(key, Row(key, now, connection.owner))
