"""The outbox over every adapter: what is committed is sent, what is rolled back is not, order and others stay."""

import asyncio
import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import msgspec
import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine

from postroom import ConfigurationError, Consumer, Message, MessageContext, NotOpenError, OutgoingMessage, Sender
from postroom.datasources import (
    Provider,
    Registry,
    Scope,
    SqliteDatabase,
    WrongDatabase,
    asyncpg_inbox,
    asyncpg_pool,
    postgres_inbox,
    sqlite_database,
    tenant_file,
)
from postroom.local import LocalBroker
from postroom.outbox import SQLITE_OUTBOX, Outbox, OutboxRelay, OutboxStatistics, postgres_outbox
from postroom.outbox.stores import BYTES, groups_sql, rows_sql, taken
from postroom.testing.faults import ClientFaults, FaultyClient
from postroom.testing.postgres import PostgresServer
from postroom.transactions import MessageKey
from postroom.transports.memory import MemoryClient
from support.quick_postgres import QuickServer
from support.tenant_database import TenantDatabase
from support.transactional import (
    Adapter,
    AsyncpgAdapter,
    PsycopgAdapter,
    PsycopgConnectionsAdapter,
    SessionAdapter,
    SqlalchemyAdapter,
    SqlalchemyPsycopgAdapter,
    SqliteAdapter,
)

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(120)]
OUTBOX = postgres_outbox()
EVENTS = Sender("events")
POSTGRES = {
    each.__name__: each
    for each in (
        AsyncpgAdapter,
        PsycopgAdapter,
        PsycopgConnectionsAdapter,
        SqlalchemyAdapter,
        SqlalchemyPsycopgAdapter,
        SessionAdapter,
    )
}


@pytest.fixture
def tenant(postgres_server: QuickServer, database: str) -> TenantDatabase:
    """A database with the outbox's table."""
    tables = "CREATE TABLE orders (id text PRIMARY KEY);"
    postgres_server.execute(f"{OUTBOX.schema} {tables}", database=database)
    return TenantDatabase(postgres_server, database)


SOME = ["SqliteAdapter", "AsyncpgAdapter", "PsycopgAdapter"]
some = pytest.mark.parametrize("adapter", SOME, indirect=True)


@pytest.fixture(params=["SqliteAdapter", *POSTGRES])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Adapter:
    """Each adapter in turn."""
    if request.param == "SqliteAdapter":
        return SqliteAdapter(tmp_path / "a.sqlite3")
    made: Adapter = POSTGRES[request.param](request.getfixturevalue("tenant"))
    return made


@pytest.fixture
async def client() -> AsyncIterator[MemoryClient]:
    """A queue, a FIFO queue, and a small one."""
    async with LocalBroker(seed=1) as broker:
        broker.create_queue("events")
        broker.create_queue("small", {"MaximumMessageSize": "1024"})
        broker.create_queue("events.fifo", {"FifoQueue": "true"})
        async with MemoryClient(broker) as opened:
            yield opened


async def _received(client: MemoryClient, queue: str = "events") -> list[Message]:
    opened = await client.queue(queue)
    found: list[Message] = []
    while batch := await opened.receive(limit=10, wait=0, visibility=3600):
        found += batch
        await opened.delete([message.receipt_handle for message in batch])
    return found


def _provider(adapter: Adapter) -> tuple[Provider[str, Any], Outbox]:
    if isinstance(adapter, SqliteAdapter):
        schema = f"{SQLITE_OUTBOX.schema} CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY) STRICT;"
        return sqlite_database(lambda _: adapter.path, create=True, schema=schema), SQLITE_OUTBOX
    return adapter.provider(create=True), OUTBOX


async def test_what_is_committed_is_sent_and_what_is_rolled_back_is_not(adapter: Adapter, client: MemoryClient) -> None:
    """With everything that it has; afterwards the table is empty."""
    databases, outbox = _provider(adapter)
    attributes: dict[str, Any] = {"raw": b"\0", "text": "\N{EURO SIGN}"}
    whole = EVENTS.message('a "quote",\n\\u0000 \N{EURO SIGN} % :p1 $1', attributes=attributes, group="g", delay=0)
    async with databases("a") as db:
        async with db.transaction_for(MessageKey("q", "1")) as tx:
            await adapter.execute(tx, "INSERT INTO orders VALUES ('1')")
            await outbox.add(tx, EVENTS, whole, EVENTS.message("2"))
        with suppress(ZeroDivisionError):
            async with db.transaction_for(MessageKey("q", "2")) as tx:
                await outbox.add(tx, "events", EVENTS.message("never"))
                raise ZeroDivisionError
    relay = OutboxRelay(databases, tenants=["a"], outbox=outbox, client=client, interval=60)
    async with relay:
        assert await relay.drain() <= 2  # the loop may have been quicker
        found = {message.body: message for message in await _received(client)}
    assert set(found) == {whole.body, "2"}
    assert found[whole.body].message_attributes == whole.message_attributes
    assert found[whole.body].group_id == "g"
    assert relay.statistics() == OutboxStatistics(sent=2, set_aside=0, failures=0)
    assert adapter.column("id", "postroom_outbox") == []


async def _fill(db: Any, outbox: Outbox, count: int, *, groups: int = 0) -> None:
    async with db.transaction_for(MessageKey("q", f"fill-{groups}")) as tx:
        if not groups:
            await outbox.add(tx, EVENTS, *(EVENTS.message(str(number)) for number in range(count)))
        for number in range(count if groups else 0):
            message = OutgoingMessage(body=str(number), group_id=f"g{number % groups}")
            await outbox.add(tx, "events.fifo", message)


@some
async def test_replicas_share_the_work_and_send_nothing_twice(adapter: Adapter, client: MemoryClient) -> None:
    """Three relays over 400 rows; the order of each group is that in which its messages were written."""
    databases, outbox = _provider(adapter)
    async with databases("a") as db:
        await _fill(db, outbox, 400)
        await _fill(db, outbox, 60, groups=4)
    slow = FaultyClient(client, Random(1), ClientFaults(latency=0.005, refused=0.05))
    relays = [OutboxRelay(databases, tenants=["a"], outbox=outbox, client=slow, interval=0.01) for _ in range(3)]
    async with AsyncExitStack() as stack:
        for relay in relays:
            await stack.enter_async_context(relay)
        async with asyncio.timeout(60):
            while sum(relay.statistics().sent for relay in relays) < 460:
                await asyncio.sleep(0.01)
    assert Counter(message.body for message in await _received(client)) == {str(number): 1 for number in range(400)}
    ordered = [(message.group_id, int(message.body)) for message in await _received(client, "events.fifo")]
    assert len(ordered) == 60
    for group in range(4):
        own = [number for name, number in ordered if name == f"g{group}"]
        assert own == sorted(own)


@some
async def test_what_can_never_be_sent_is_set_aside(
    adapter: Adapter, client: MemoryClient, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason, in the table and in the log; what is behind it goes on. It may be tried again by hand."""
    databases, outbox = _provider(adapter)
    async with databases("a") as db, db.transaction_for(MessageKey("q", "1")) as tx:
        await adapter.execute(tx, "INSERT INTO postroom_outbox (queue, message) VALUES ('small', 'no message')")
        await outbox.add(tx, "small", EVENTS.message("x" * 2000), EVENTS.message("fits"))
    async with OutboxRelay(databases, tenants=["a"], outbox=outbox, client=client, interval=60) as relay:
        await relay.drain()
        assert [message.body for message in await _received(client, "small")] == ["fits"]
        assert relay.statistics().set_aside == 2
        assert adapter.column("reason", "postroom_outbox") == [
            "the message has 2,000 bytes, attributes included, and its queue takes 1,024",
            "this row is no message of an outbox",
        ]
    assert "of tenant a can never be sent and is set aside there" in caplog.text


@some
async def test_a_queue_that_is_not_there_holds_up_no_other(
    adapter: Adapter, client: MemoryClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Its messages wait, and go when it is there; the log says it once."""
    databases, outbox = _provider(adapter)
    async with databases("a") as db, db.transaction_for(MessageKey("q", "1")) as tx:
        await outbox.add(tx, "later", *(EVENTS.message("later") for _ in range(150)))
        await outbox.add(tx, "events", EVENTS.message("now"))
    async with OutboxRelay(databases, tenants=["a"], outbox=outbox, client=client, interval=0.05) as relay:
        async with asyncio.timeout(20):
            while relay.statistics().sent < 1:
                await asyncio.sleep(0.01)
            client.broker.create_queue("later")
            while relay.statistics().sent < 151:
                await asyncio.sleep(0.01)
    assert len(await _received(client, "later")) == 150
    told = [each.message for each in caplog.records if each.name == "postroom.outbox" and each.levelname == "WARNING"]
    failed, again = told
    assert failed.startswith("Queue later does not take messages of outboxes; they stay there")
    assert again == "Queue later takes messages of outboxes again"


@pytest.mark.parametrize("name", ["orders events", "https://sqs.eu-west-1.amazonaws.com/", "x" * 81])
async def test_a_row_with_an_impossible_queue_is_set_aside(client: MemoryClient, tmp_path: Path, name: str) -> None:
    """``add`` and ``insert`` refuse the name. A row that has it all the same is set aside; other tenants go on."""
    databases: Provider[str, SqliteDatabase] = sqlite_database(
        lambda tenant: tmp_path / tenant, create=True, schema=SQLITE_OUTBOX.schema
    )
    for tenant, queue in (("a", name), ("b", "events")):
        async with databases(tenant) as db:
            row = (queue, None, '{"body": "1"}')
            await db.run(partial(_put, row=row))
            with pytest.raises(ConfigurationError, match="takes the name, URL or ARN of a queue"):
                await db.run(lambda c: SQLITE_OUTBOX.insert(c, name, EVENTS.message("1")))
            with pytest.raises(ConfigurationError, match="takes the name, URL or ARN of a queue"):
                async with db.transaction_for(MessageKey("q", "1")) as tx:
                    await SQLITE_OUTBOX.add(tx, name, EVENTS.message("1"))
    relay = OutboxRelay(databases, tenants=["a", "b"], outbox=SQLITE_OUTBOX, client=client, interval=0.05, parallel=1)
    async with relay, asyncio.timeout(20):
        while relay.statistics().sent < 1 or relay.statistics().set_aside < 1:
            assert not relay._opened().stopping.is_set()
            await asyncio.sleep(0.01)
    assert len(await _received(client)) == 1
    async with databases("a") as db:
        [found] = await db.fetch("SELECT reason FROM postroom_outbox WHERE failed_at IS NOT NULL")
    assert found[0].startswith("a row of an outbox takes the name, URL or ARN of a queue")


async def test_a_tenant_whose_settings_cannot_work_holds_up_no_other(
    client: MemoryClient, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ``ConfigurationError`` of one tenant, such as ``WrongDatabase``, is a failure of that tenant only."""
    files: Provider[str, SqliteDatabase] = sqlite_database(
        lambda tenant: tmp_path / tenant, create=True, schema=SQLITE_OUTBOX.schema
    )

    async def refused(*_: object, **__: object) -> None:
        raise WrongDatabase("the connection leads to user 'other', and the registry says 'app'")

    @asynccontextmanager
    async def databases(tenant: str) -> AsyncIterator[SqliteDatabase]:
        async with files(tenant) as db:
            if tenant == "wrong":
                # Open already: its next connection is refused, as in the pool of a driver.
                monkeypatch.setattr(db, "run", refused)
            yield db

    async with files("b") as db:
        await db.run(lambda c: SQLITE_OUTBOX.insert(c, EVENTS, EVENTS.message("1")))
    relay = OutboxRelay(
        databases, tenants=["wrong", "b"], outbox=SQLITE_OUTBOX, client=client, interval=0.05, parallel=1
    )
    async with relay, asyncio.timeout(20):
        while relay.statistics().sent < 1 or relay.statistics().failures < 2:
            assert not relay._opened().stopping.is_set()
            await asyncio.sleep(0.01)
    assert "The outbox of tenant wrong could not be relayed" in caplog.text


async def test_a_handler_sends_in_its_own_transaction(client: MemoryClient, tmp_path: Path) -> None:
    """A message that is delivered twice sends once; the relay is woken after the commit."""
    databases: Provider[str, SqliteDatabase] = sqlite_database(
        lambda name: tenant_file(tmp_path, name), create=True, schema=SQLITE_OUTBOX.schema
    )
    client.broker.create_queue("orders")
    orders = Consumer(
        "orders", context=lambda message: message.attributes["tenant"], resources=databases, client=client
    )
    relay = OutboxRelay(databases, tenants=["a", "b"], outbox=SQLITE_OUTBOX, client=client, interval=3600)

    @orders.handler
    async def record(body: str, ctx: MessageContext[str, Any]) -> None:
        async with ctx.transaction(key=body) as tx:
            await SQLITE_OUTBOX.add(tx, EVENTS, EVENTS.message(f"{ctx.context}: {body}"))
        relay.wake(ctx.context)

    sender = Sender[str]("orders", context=lambda tenant: {"tenant": tenant}, client=client)
    async with relay, sender, orders, asyncio.timeout(20):
        for tenant in ("a", "b"):
            await sender.send_many(["1", "1", "2"], context=tenant)
        while relay.statistics().sent < 4:
            await asyncio.sleep(0.01)
    assert sorted(message.body for message in await _received(client)) == ["a: 1", "a: 2", "b: 1", "b: 2"]


async def test_a_unit_of_work_of_sqlite_writes_too(client: MemoryClient, tmp_path: Path) -> None:
    """It is a plain function."""
    databases: Provider[str, SqliteDatabase] = sqlite_database(
        lambda _: tmp_path / "a", create=True, schema=SQLITE_OUTBOX.schema
    )
    async with databases("a") as db:
        await db.run(lambda connection: SQLITE_OUTBOX.insert(connection, EVENTS, EVENTS.message("1")))
    async with OutboxRelay(databases, tenants=["a"], outbox=SQLITE_OUTBOX, client=client, interval=60) as relay:
        await relay.drain()
    assert [message.body for message in await _received(client)] == ["1"]


async def test_a_request_sends_in_its_own_transaction(tenant: TenantDatabase, client: MemoryClient) -> None:
    """With connections and sessions that postroom did not make. Outside of a transaction it is refused."""
    message = EVENTS.message("1")
    raw: asyncpg.Connection[Any] = await asyncpg.connect(tenant.dsn)
    with pytest.raises(ConfigurationError, match="no open transaction"):
        await OUTBOX.add(raw, EVENTS, message)
    async with raw.transaction():
        await OUTBOX.add(raw, EVENTS, message)
    await raw.close()
    async with await psycopg.AsyncConnection.connect(tenant.dsn, autocommit=True) as connection:
        with pytest.raises(ConfigurationError, match="no open transaction"):
            await OUTBOX.add(connection, EVENTS, message)
        async with connection.transaction():
            await OUTBOX.add(connection, EVENTS, message)
    engine = create_async_engine(tenant.dsn.replace("postgresql", "postgresql+asyncpg", 1))
    async with AsyncSession(engine) as session:
        await OUTBOX.add(session, EVENTS, message)
        await session.commit()
        await OUTBOX.add(session, EVENTS, message)  # not committed
    await engine.dispose()
    databases = AsyncpgAdapter(tenant).provider(create=True)
    async with OutboxRelay(databases, tenants=["a"], outbox=OUTBOX, client=client, interval=60) as relay:
        await relay.drain()
    assert len(await _received(client)) == 3


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql+psycopg"])
@pytest.mark.parametrize("kind", [AsyncConnection, AsyncSession])
async def test_a_connection_that_commits_each_statement_is_refused(
    tenant: TenantDatabase, scheme: str, kind: type[Any]
) -> None:
    """SQLAlchemy says in AUTOCOMMIT, too, that there is a transaction; its rollback would take nothing back."""
    engine = create_async_engine(tenant.dsn.replace("postgresql", scheme, 1), isolation_level="AUTOCOMMIT")
    async with kind(engine) as tx:
        with pytest.raises(ConfigurationError, match="no open transaction"):
            await OUTBOX.add(tx, EVENTS, EVENTS.message("1"))
    await engine.dispose()
    assert tenant.server.execute("SELECT count(*) FROM postroom_outbox", database=tenant.name) == "0"


async def test_connections_may_have_a_codec_for_json(tenant: TenantDatabase, client: MemoryClient) -> None:
    """As many have with asyncpg: both those that write and those of the relay."""

    async def init(connection: Any) -> None:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    registry = Registry({"a": tenant.dsn})
    databases = asyncpg_inbox(asyncpg_pool(registry, init=init), create=True)
    async with databases("a") as db, db.transaction() as tx:
        await OUTBOX.add(tx, EVENTS, EVENTS.message("1"))
        await OUTBOX.add(tx, "events.fifo", OutgoingMessage(body="2", group_id="g"))
        await OUTBOX.add(tx, "small", EVENTS.message("x" * 2000))
    async with OutboxRelay(databases, tenants=["a"], outbox=OUTBOX, client=client, interval=60) as relay:
        await relay.drain()
        assert relay.statistics() == OutboxStatistics(sent=2, set_aside=1, failures=0)


@pytest.mark.parametrize("adapter", list(POSTGRES), indirect=True)
async def test_a_round_sees_what_was_committed_meanwhile(adapter: Adapter, tenant: TenantDatabase) -> None:
    """Also where the database's default is SERIALIZABLE: relays would fail for each other, after they have sent."""
    tenant.server.execute(f"ALTER DATABASE \"{tenant.name}\" SET default_transaction_isolation = 'serializable'")
    databases, _ = _provider(adapter)
    async with databases("a") as db:
        await _fill(db, OUTBOX, 110)
        async with taken(db, OUTBOX, ()) as mine:
            async with taken(db, OUTBOX, ()) as theirs:
                await theirs.remove([row.id for row in theirs.rows])
            await mine.remove([row.id for row in mine.rows])
        async with db.work(read_committed=True) as work:
            assert await work.value("SELECT count(*) FROM postroom_outbox") == 0
            tenant.server.execute("INSERT INTO orders VALUES ('1')", database=tenant.name)
            assert await work.value("SELECT count(*) FROM orders") == 1


LIMITED = f"""
    DROP ROLE IF EXISTS limited;
    CREATE ROLE limited LOGIN PASSWORD 'geheim';
    {postgres_inbox().schema}
    GRANT ALL ON postroom_inbox TO limited;
    INSERT INTO postroom_outbox (queue, message) VALUES ('events', '{{"body": "1"}}');
"""
POLICIES = "".join(
    f"CREATE POLICY p_{each} ON postroom_outbox FOR {each} TO limited USING (true);" for each in ("SELECT", "UPDATE")
)


@pytest.mark.parametrize(
    ("sql", "sent", "advice"),
    [
        (
            "GRANT SELECT, UPDATE ON postroom_outbox TO limited",
            False,
            "GRANT SELECT, UPDATE, DELETE ON postroom_outbox",
        ),
        (
            "GRANT SELECT, DELETE ON postroom_outbox TO limited",
            False,
            "GRANT SELECT, UPDATE, DELETE ON postroom_outbox",
        ),
        (
            "GRANT ALL ON postroom_outbox TO limited; ALTER TABLE postroom_outbox ENABLE ROW LEVEL SECURITY;"
            + POLICIES,
            True,
            "1 message of postroom_outbox was sent, .* deleted 0 of the rows .* set aside .* row-level security",
        ),
        (
            "DROP TABLE postroom_outbox",
            False,
            r"no table postroom_outbox.* add postgres_outbox\('postroom_outbox'\).schema",
        ),
        (
            "GRANT ALL ON postroom_outbox TO limited; ALTER TABLE postroom_outbox DROP COLUMN reason",
            False,
            r"without all of its columns: add postgres_outbox\('postroom_outbox'\).schema",
        ),
    ],
    ids=["no delete", "no update", "no policy", "no table", "no column"],
)
async def test_a_table_of_which_rows_cannot_be_deleted_is_a_failure_with_what_to_do(
    tenant: TenantDatabase, client: MemoryClient, sql: str, sent: bool, advice: str
) -> None:
    """What was sent would be sent again in each round. It is told before that, or set aside by the first round."""
    tenant.server.execute(f"{LIMITED} {sql}", database=tenant.name)
    dsn = tenant.dsn.replace(f"{tenant.server.user}:{tenant.server.password}@", "limited:geheim@")
    databases = asyncpg_inbox(asyncpg_pool(Registry({"a": dsn})))
    relay = OutboxRelay(databases, tenants=["a"], outbox=OUTBOX, client=client, interval=60)
    async with relay, asyncio.timeout(20):
        with pytest.raises(ConfigurationError, match=advice) as raised:
            await relay.drain()
    assert "geheim" not in str(raised.value)
    assert bool(await _received(client)) == sent
    tenant.server.execute("DROP OWNED BY limited; DROP ROLE limited", database=tenant.name)


@pytest.mark.parametrize("adapter", list(POSTGRES), indirect=True)
async def test_rows_that_a_trigger_keeps_are_sent_once_and_no_other_again(
    adapter: Adapter, tenant: TenantDatabase, client: MemoryClient
) -> None:
    """Rolled back, the deletes of the others would send those again, too, once a minute."""
    tenant.server.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN IF OLD.id = 2 THEN RETURN NULL; END IF; RETURN OLD; END'; "
        "CREATE TRIGGER keep BEFORE DELETE ON postroom_outbox FOR EACH ROW EXECUTE FUNCTION keep()",
        database=tenant.name,
    )
    databases, _ = _provider(adapter)
    async with databases("a") as db:
        await _fill(db, OUTBOX, 3)
    async with OutboxRelay(databases, tenants=["a"], outbox=OUTBOX, client=client, interval=60) as relay:
        with pytest.raises(ConfigurationError, match=r"deleted 2 of the rows .* set aside"):
            await relay.drain()
        await relay.drain()
        assert len(await _received(client)) == 3
        left = tenant.server.execute("SELECT id, reason FROM postroom_outbox", database=tenant.name)
        assert left == "2|sent, and the row could not be deleted"


async def test_nothing_is_sent_while_another_process_writes_a_file(tmp_path: Path) -> None:
    """The row could not be deleted: until the other is at its end, its message would go again and again."""
    databases: Provider[str, SqliteDatabase] = sqlite_database(
        lambda _: tmp_path / "a", create=True, schema=SQLITE_OUTBOX.schema, busy_timeout=0.01
    )
    with contextlib.closing(sqlite3.connect(tmp_path / "a", isolation_level=None)) as other:
        async with databases("a") as db:
            await db.run(lambda c: SQLITE_OUTBOX.insert(c, EVENTS, EVENTS.message("1")))
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                async with taken(db, SQLITE_OUTBOX, ()):
                    pytest.fail("its message would be sent")
            other.execute("ROLLBACK")
            async with taken(db, SQLITE_OUTBOX, ()) as found:
                assert len(found.rows) == 1


async def test_a_file_without_the_table_says_what_to_write(tmp_path: Path) -> None:
    """It has no migrations."""
    databases: Provider[str, SqliteDatabase] = sqlite_database(lambda _: tmp_path / "a", create=True)
    async with databases("a") as db:
        with pytest.raises(ConfigurationError, match=r"no such table: postroom_outbox: pass SQLITE_OUTBOX\.schema"):
            async with taken(db, SQLITE_OUTBOX, ()):
                pass


async def test_a_tenant_whose_database_is_down_holds_up_no_other(
    tenant: TenantDatabase, client: MemoryClient, caplog: pytest.LogCaptureFixture
) -> None:
    """It is paused, and the log says so without its password."""
    dead = "postgresql://app:geheim@127.0.0.1:1/nowhere"
    registry = Registry({"dead": dead, "a": tenant.dsn})
    databases = asyncpg_inbox(asyncpg_pool(registry), create=True)
    async with databases("a") as db:
        await _fill(db, OUTBOX, 20)
    async with OutboxRelay(
        databases, tenants=lambda: ["dead", "a", "unknown"], outbox=OUTBOX, client=client, interval=0.05, parallel=1
    ) as relay:
        async with asyncio.timeout(30):
            while relay.statistics().sent < 20 or relay.statistics().failures < 2:
                await asyncio.sleep(0.01)
    assert "The outbox of tenant dead could not be relayed" in caplog.text
    assert "geheim" not in caplog.text


async def test_a_database_that_hangs_holds_up_no_other(
    client: MemoryClient, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even with one worker; the log names it, and the stop does not wait for it."""
    monkeypatch.setattr("postroom.outbox.run.PATIENCE", 0.05, raising=False)
    monkeypatch.setattr("postroom.outbox.run._GRACE", 0.05)
    opened: Provider[str, SqliteDatabase] = sqlite_database(
        lambda name: tenant_file(tmp_path, name), create=True, schema=SQLITE_OUTBOX.schema
    )
    met = asyncio.Event()

    class Frozen(SqliteDatabase):
        """A database that never answers."""

        async def run(self, work: Any, *, write: bool = True) -> Any:
            met.set()
            await asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def databases(name: str) -> AsyncIterator[SqliteDatabase]:
        async with opened(name) as database:
            if name == "frozen":
                database.__class__ = Frozen
            yield database

    async with opened("a") as db, db.transaction_for(MessageKey("q", "1")) as tx:
        await SQLITE_OUTBOX.add(tx, EVENTS, EVENTS.message("now"))
    relay = OutboxRelay(databases, tenants=["frozen", "a"], outbox=SQLITE_OUTBOX, client=client, parallel=1)
    async with asyncio.timeout(20), relay:
        await met.wait()
        while relay.statistics().sent < 1:
            await asyncio.sleep(0.01)
    assert "The outbox of tenant frozen takes longer than 0.05 s" in caplog.text


async def test_a_function_that_hangs_is_asked_again(
    client: MemoryClient, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that tells the tenants; the log says so."""
    monkeypatch.setattr("postroom.outbox.run.ANSWER", 0.05, raising=False)
    databases: Provider[str, SqliteDatabase] = sqlite_database(
        lambda name: tenant_file(tmp_path, name), create=True, schema=SQLITE_OUTBOX.schema
    )
    asked: list[None] = []

    async def tenants() -> list[str]:
        asked.append(None)
        return ["a"] if len(asked) > 1 else await asyncio.get_running_loop().create_future()

    async with databases("a") as db, db.transaction_for(MessageKey("q", "1")) as tx:
        await SQLITE_OUTBOX.add(tx, EVENTS, EVENTS.message("now"))
    relay = OutboxRelay(databases, tenants=tenants, outbox=SQLITE_OUTBOX, client=client, interval=0.01)
    async with asyncio.timeout(20), relay:
        while relay.statistics().sent < 1:
            await asyncio.sleep(0.01)
    assert "OutboxRelay(tenants=...) failed, so no outbox is looked at" in caplog.text


@pytest.mark.parametrize(("row", "sender"), [("name", "url"), ("url", "arn"), ("arn", "name")])
async def test_a_sender_is_found_however_its_queue_is_named(
    client: MemoryClient, tmp_path: Path, row: str, sender: str
) -> None:
    """By name, URL or ARN: what it is to sign or to change does not go as it is."""
    info = (await client.queue("events")).info
    databases: Provider[str, SqliteDatabase] = sqlite_database(
        lambda name: tenant_file(tmp_path, name), create=True, schema=SQLITE_OUTBOX.schema
    )
    changing = Sender[Any](
        getattr(info, sender), transform=lambda message: msgspec.structs.replace(message, body="changed"), client=client
    )
    async with databases("a") as db, db.transaction_for(MessageKey("q", "1")) as tx:
        await SQLITE_OUTBOX.add(tx, getattr(info, row), EVENTS.message("now"))
    relay = OutboxRelay(databases, tenants=["a"], outbox=SQLITE_OUTBOX, senders=[changing], client=client)
    async with asyncio.timeout(20), relay:
        while relay.statistics().sent < 1:
            await asyncio.sleep(0.01)
    assert [message.body for message in await _received(client)] == ["changed"]


def _in_two_schemas(postgres_server: PostgresServer, database: str) -> Provider[str, Any]:
    """Return the provider of two tenants, `a` and `b`, with a schema and an outbox each in one database."""
    for schema in ("t_a", "t_b"):
        sql = f"CREATE SCHEMA {schema}; SET search_path = {schema}; {OUTBOX.schema}"
        postgres_server.execute(sql, database=database)
    registry = Registry(dict.fromkeys("ab", postgres_server.dsn(database)))
    return asyncpg_inbox(asyncpg_pool(registry), create=True, scope=lambda name: Scope(schema=f"t_{name}"))


async def test_a_schema_of_a_shared_database_has_an_outbox_of_its_own(
    postgres_server: PostgresServer, database: str, client: MemoryClient
) -> None:
    """The relay looks into each tenant's."""
    databases = _in_two_schemas(postgres_server, database)
    for name in "ab":
        async with databases(name) as db, db.transaction() as tx:
            await OUTBOX.add(tx, EVENTS, EVENTS.message(name))
    async with OutboxRelay(databases, tenants=["a", "b"], outbox=OUTBOX, client=client, interval=60) as relay:
        await relay.drain()
    assert sorted(message.body for message in await _received(client)) == ["a", "b"]


async def test_groups_of_one_name_in_two_schemas_do_not_wait_for_each_other(
    postgres_server: PostgresServer, database: str
) -> None:
    """They are those of two tenants: the backlog of one would keep the other's messages back until it is sent."""
    databases = _in_two_schemas(postgres_server, database)
    async with databases("a") as one, databases("b") as other:
        for db in (one, other):
            await _fill(db, OUTBOX, 1, groups=1)
        async with taken(one, OUTBOX, ()) as mine, taken(one, OUTBOX, ()) as again, taken(other, OUTBOX, ()) as theirs:
            assert [len(each.rows) for each in (mine, again, theirs)] == [1, 0, 1]


async def test_a_long_backlog_is_read_by_its_indexes(tenant: TenantDatabase) -> None:
    """A round looks at its own rows, and not at all that wait."""
    tenant.server.execute(
        "INSERT INTO postroom_outbox (queue, ordered_by, message) "
        "SELECT 'q.fifo', CASE WHEN n % 2 = 0 THEN 'g' || (n % 1000) END, '{}' FROM generate_series(1, 40000) n; "
        "ANALYZE postroom_outbox",
        database=tenant.name,
    )
    for sql in (groups_sql(OUTBOX.table), rows_sql(OUTBOX.table)):
        filled = sql.replace("$1", "'[]'").replace("$2", """'[["q.fifo", "g2"], ["q.fifo", "g4"]]'""")
        plan = tenant.server.execute(f"EXPLAIN {filled}", database=tenant.name)
        assert "Index" in plan
        assert "Seq Scan" not in plan


async def test_memory_is_bounded_by_bytes(tenant: TenantDatabase, client: MemoryClient) -> None:
    """A round takes 4 MiB of messages, and all of them go in the end."""
    databases = AsyncpgAdapter(tenant).provider(create=True)
    async with databases("a") as db, db.transaction() as tx:
        for number in range(12):
            await OUTBOX.add(tx, EVENTS, EVENTS.message(f"{number} ".ljust(900_000, "x")))
        async with taken(db, OUTBOX, ()) as before:
            assert before.rows == []
    sizes: list[int] = []
    async with databases("a") as db, taken(db, OUTBOX, ()) as mine, taken(db, OUTBOX, ()) as theirs:
        sizes += [sum(len(row.message.body) for row in each.rows if row.message) for each in (mine, theirs)]
    assert 0 < sizes[0] <= BYTES + 1_048_576
    assert sizes[1] == 0  # the other rows are locked as well
    async with OutboxRelay(databases, tenants=["a"], outbox=OUTBOX, client=client, interval=60) as relay:
        await relay.drain()
    assert len(await _received(client)) == 12


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"databases": 3}, "takes a provider"),
        ({"tenants": "abc"}, "takes the contexts"),
        ({"outbox": "postroom_outbox"}, "postgres_outbox\\(\\)"),
        ({"senders": ["events"]}, "takes senders"),
        ({"interval": 0}, "more than 0"),
        ({"parallel": 0}, "from 1 up"),
    ],
)
def test_wrong_arguments_say_what_to_write(changed: dict[str, Any], text: str) -> None:
    """When the relay is made."""
    arguments = {"databases": lambda _: None, "tenants": ["a"], "outbox": OUTBOX} | changed
    with pytest.raises(ConfigurationError, match=text):
        OutboxRelay(arguments.pop("databases"), **arguments)  # type: ignore[arg-type]


async def test_resources_without_an_outbox_end_the_relay(client: MemoryClient) -> None:
    """It says which resources have one."""

    @asynccontextmanager
    async def other(_: str) -> AsyncIterator[object]:
        yield object()

    relay = OutboxRelay(other, tenants=["a"], outbox=OUTBOX, client=client)
    with pytest.raises(NotOpenError, match="async with relay"):
        await relay.drain()
    with pytest.raises(ConfigurationError, match="takes asyncpg_inbox"):
        async with relay:
            await relay.wait_for_stop()


async def test_a_message_for_a_fifo_queue_needs_a_group_and_gets_an_id(tmp_path: Path) -> None:
    """The id is made when it is written, so that it is the same however often it is sent."""
    databases: Provider[str, SqliteDatabase] = sqlite_database(
        lambda _: tmp_path / "a", create=True, schema=SQLITE_OUTBOX.schema
    )
    async with databases("a") as db:
        with pytest.raises(ConfigurationError, match="needs a group"):
            await db.run(lambda c: SQLITE_OUTBOX.insert(c, "e.fifo", OutgoingMessage(body="1")))
        with pytest.raises(ConfigurationError, match="SQLITE_OUTBOX is for"):
            async with db.transaction_for(MessageKey("q", "1")) as tx:
                await OUTBOX.add(tx, EVENTS, EVENTS.message("1"))
        with pytest.raises(ConfigurationError, match=r"sender\.message"):
            await db.run(lambda c: SQLITE_OUTBOX.insert(c, EVENTS, "1"))  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="name of a queue"):
            await db.run(lambda c: SQLITE_OUTBOX.insert(c, "", OutgoingMessage(body="1")))
        await db.run(lambda c: SQLITE_OUTBOX.insert(c, "e.fifo", OutgoingMessage(body="1", group_id="g")))
        [row] = await db.fetch("SELECT message FROM postroom_outbox")
    assert msgspec.json.decode(row[0])["deduplication_id"]
    with pytest.raises(ConfigurationError, match="plain lower-case name"):
        postgres_outbox("Outbox; DROP TABLE x")


def _put(connection: sqlite3.Connection, row: tuple[str | None, ...]) -> None:
    """Write a row past the checks of the outbox."""
    connection.execute(SQLITE_OUTBOX.sqlite_insert, row)
