"""A message is written into the outbox or refused: a plain function, which awaits nothing, loses none."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from postroom.datasources import SqliteDatabase
from postroom.errors import ConfigurationError
from postroom.message import OutgoingMessage
from postroom.outbox import SQLITE_OUTBOX, Outbox, postgres_outbox
from postroom.transactions import MessageKey

MESSAGE = OutgoingMessage(body="{}")


@pytest.mark.parametrize(
    ("outbox", "advice"), [(SQLITE_OUTBOX, "SQLITE_OUTBOX.insert"), (postgres_outbox(), "async def")]
)
def test_a_call_outside_of_an_event_loop_is_refused_with_what_to_write(outbox: Outbox, advice: str) -> None:
    """It raises at the call: what it returns would never be awaited."""
    with pytest.raises(ConfigurationError, match=advice):
        _ = outbox.add(cast("Any", object()), "invoices", MESSAGE)


@pytest.mark.parametrize("inline", [False, True])
async def test_a_transaction_of_a_plain_function_is_refused(tmp_path: Path, inline: bool) -> None:
    """Also where the function runs in the loop's thread, as in virtual time; what to write instead is taken."""
    database = await SqliteDatabase.open(tmp_path / "a.sqlite3", create=True, schema=SQLITE_OUTBOX.schema)

    def work(tx: Any) -> None:
        with pytest.raises(ConfigurationError, match="plain `def`"):
            _ = SQLITE_OUTBOX.add(tx, "invoices", MESSAGE)

    def in_thread() -> None:
        with database.sync_transaction_for(MessageKey("orders", "1")) as tx:
            (asyncio.run(_in_a_loop(work, tx)) if inline else work(tx))
            tx.run(lambda connection: SQLITE_OUTBOX.insert(connection, "invoices", MESSAGE))

    await asyncio.to_thread(in_thread)
    assert len(await database.fetch("SELECT * FROM postroom_outbox")) == 1
    await database.aclose()


async def _in_a_loop(work: Any, tx: Any) -> None:
    work(tx)
