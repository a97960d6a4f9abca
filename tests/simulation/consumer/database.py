"""A tenant's simulated database with an inbox, as real adapters have it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from postroom import AlreadyHandled
from postroom.testing.databases import SimulatedConnection, SimulatedDatabases, SimulatedTransaction
from postroom.transactions import MessageKey

INBOX = "inbox:"
"""How keys of inbox rows begin."""
Claims = dict[tuple[str, str], asyncio.Event]
"""Inbox rows of transactions that are not at their end, over all processes: tenant and row to that end."""


class TenantDatabase:
    """A connection to a tenant's database. Fulfils ``postroom.Transactional``."""

    def __init__(self, databases: SimulatedDatabases, connection: SimulatedConnection, claims: Claims) -> None:
        self._databases = databases
        self._connection = connection
        self._claims = claims
        self.tenant = connection.tenant

    @property
    def closed(self) -> bool:
        """Whether our side closed it."""
        return self._connection.closed

    @property
    def dropped(self) -> bool:
        """Whether the server's side of it is gone."""
        return self._connection.dropped

    def transaction(self) -> AbstractAsyncContextManager[SimulatedTransaction]:
        """Work in a transaction without an inbox row."""
        return self._connection.transaction()

    @asynccontextmanager
    async def transaction_for(self, key: MessageKey, /) -> AsyncGenerator[SimulatedTransaction, None]:
        """Work in a transaction that begins with the row of a message; a duplicate waits, and finds it."""
        row = f"{INBOX}{key.id}"
        claim = (self.tenant, row)
        while (first := self._claims.get(claim)) is not None:
            await first.wait()
        if any(each.key == row for each in self._databases.rows(self.tenant)):
            raise AlreadyHandled
        ended = self._claims[claim] = asyncio.Event()
        try:
            async with self._connection.transaction() as transaction:
                transaction.insert(row)
                yield transaction
        finally:
            del self._claims[claim]
            ended.set()
