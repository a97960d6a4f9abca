"""The code in docs/inbox.md runs as it stands."""

import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from postroom import AlreadyHandled, Consumer
from postroom.datasources import Registry, asyncpg_inbox, asyncpg_pool, postgres_inbox
from postroom.testing.postgres import PostgresServer
from postroom.transactions import MessageKey

TEXT = (Path(__file__).parents[2] / "docs" / "inbox.md").read_text(encoding="utf-8")


def _run() -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(block, namespace)  # noqa: S102 - our own document
    return namespace


@pytest.fixture(autouse=True)
def region(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name a region, as the consumers' clients need one."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def test_its_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The consumers are declared, and the migration is printed."""
    namespace = _run()
    assert isinstance(namespace["orders"], Consumer)
    assert isinstance(namespace["invoices"], Consumer)
    assert isinstance(namespace["payments"], Consumer)
    assert "CREATE TABLE IF NOT EXISTS postroom_inbox" in capsys.readouterr().out


@pytest.mark.postgres
async def test_the_resources_of_ones_own_have_an_inbox(postgres_server: PostgresServer) -> None:
    """A duplicate is told so, and a swallowed error leaves neither row nor effect."""
    namespace = _run()
    table = "CREATE TABLE done (queue text, id text, PRIMARY KEY (queue, id))"
    dsn = postgres_server.create_database("ledger", schema=f"{table}; {postgres_inbox().schema}")
    ledgers = asyncpg_inbox(asyncpg_pool(Registry({"a": dsn}))).map(namespace["Ledger"])

    async def swallow(ledger: Any) -> None:
        async with ledger.transaction_for(MessageKey("orders", "m-2")) as tx:
            with pytest.raises(asyncpg.PostgresError):
                await tx.connection.execute("SELECT 1/0")

    async with ledgers("a") as ledger:
        async with ledger.transaction_for(MessageKey("orders", "m-1")):
            pass
        with pytest.raises(AlreadyHandled):
            async with ledger.transaction_for(MessageKey("orders", "m-1")):
                pass
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await swallow(ledger)
    assert postgres_server.execute("SELECT id FROM done", database="ledger") == "m-1"
