"""Django: tenants' databases for ``def`` handlers on a real PostgreSQL, and the command that runs consumers."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import unittest
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync

from postroom import (
    Concurrency,
    ConfigurationError,
    Consumer,
    MessageContext,
    PostroomError,
    ResourceOpenError,
    ResourcePool,
)
from postroom.local import LocalBroker
from postroom.local.shapes import AttributeValue, Send
from postroom.local.threaded import ThreadedServer
from postroom.resources.failures import is_outage, is_suspect
from postroom.testing.postgres import PostgresServer
from postroom.transports.memory import MemoryClient

from support.django_shop import ask, drop, entry  # isort: skip - it sets Django up

from django.core.management import CommandError, call_command
from django.core.signals import request_finished
from django.db import connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.utils import ConnectionDoesNotExist, InternalError
from django.test import SimpleTestCase, override_settings

from postroom.integrations.django import (
    NoTenantDatabase,
    TenantAlias,
    TenantRouter,
    aliases,
    closing_connections,
    tenant_databases,
    using_tenant,
)
from support.output import read_until

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("options", [{}, {"pool": {"min_size": 1, "max_size": 2}}])
async def test_an_alias_is_known_for_as_long_as_it_is_open(
    postgres_server: PostgresServer, database: str, options: dict[str, Any]
) -> None:
    """It is registered by the first lease, and gone with its connections, and a pool of Django's own, at the close."""

    def locate(tenant: str) -> dict[str, Any]:
        return entry(postgres_server, database, **options)

    pool: ResourcePool[str, TenantAlias] = tenant_databases(locate).pool()
    async with pool, pool.lease("acme") as alias:
        assert alias in connections.settings

        def query() -> str:
            with using_tenant(alias):
                return str(ask(alias, "select current_database()"))

        assert await asyncio.to_thread(query) == database
    assert alias not in connections.settings
    drop(postgres_server, database)


async def test_a_tenant_that_cannot_be_reached_is_an_outage_of_its_pool(
    postgres_server: PostgresServer, database: str
) -> None:
    """One connection is tried at the open, so no attempt of a message is spent; an unknown tenant is unknown."""
    registry = {"acme": {**entry(postgres_server, database), "PORT": 9}}
    async with tenant_databases(registry.get).pool() as pool:
        for tenant, permanent in (("acme", False), ("nosuch", True)):
            with pytest.raises(ResourceOpenError) as refused:
                await pool.acquire(tenant)
            assert refused.value.permanent is permanent
    assert not aliases._entries


async def test_django_finds_tenants_and_does_not_walk_them(tmp_path: Path) -> None:
    """It walks all databases for each request of a web server, and begins transactions in some of them."""
    before = list(connections)
    async with sqlite(tmp_path) as alias:
        assert list(connections) == [name for name, _ in connections.settings.items()] == before
        assert alias in connections.settings
        assert connections[alias].settings_dict["NAME"] == f"{tmp_path}-acme"
        del connections[alias]
    assert alias not in connections.settings
    with pytest.raises(ConnectionDoesNotExist):
        connections[alias]


async def test_a_test_case_of_djangos_may_use_tenants(tmp_path: Path) -> None:
    """It forbids the databases that it does not name, and cannot name those that come while it runs."""

    class Case(SimpleTestCase):  # type: ignore[misc]  # Django has no types
        def runTest(self) -> None:  # noqa: N802 - unittest's name
            async_to_sync(self.use)()

        async def use(self) -> None:
            async with sqlite(tmp_path) as alias:
                assert await asyncio.to_thread(rows, alias) == []

    result = unittest.TestResult()
    await asyncio.to_thread(unittest.TestSuite([Case()]).run, result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), result


async def test_a_request_ends_with_its_connections(tmp_path: Path) -> None:
    """As Django ends those to its own databases, for a query of a view that said `using=`."""

    def view(alias: TenantAlias) -> Any:
        ask(alias, "select count(*) from orders")
        request_finished.send(None)
        return connections[alias].connection

    async with sqlite(tmp_path) as alias:
        assert await asyncio.to_thread(view, alias) is None


async def test_an_entry_that_names_no_database_leaves_no_alias() -> None:
    """Each try of the pool would leave one more."""

    def locate(tenant: str) -> dict[str, Any]:
        return {"ENGINE": "nosuch"}

    async with tenant_databases(locate).pool() as pool:
        with pytest.raises(ResourceOpenError):
            await pool.acquire("acme")
    assert not aliases._entries


async def test_an_entry_with_atomic_requests_is_refused(tmp_path: Path) -> None:
    """Django would begin a transaction in each tenant's database, for each request of a web server."""
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "a"), "ATOMIC_REQUESTS": True}
    async with tenant_databases({"acme": entry}.get).pool() as pool:
        with pytest.raises(ResourceOpenError, match="ATOMIC_REQUESTS"):
            await pool.acquire("acme")
    assert not aliases._entries


def test_a_handler_closes_what_is_obsolete_and_not_of_a_tenant(tmp_path: Path) -> None:
    """As Django does between two requests. Tenants' connections are closed by their own blocks."""
    before = connections.settings

    def handle(payload: int, ctx: MessageContext[str, TenantAlias]) -> None:
        ask("shared", "select 1")

    try:
        shared = {"default": {}, "shared": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "shared")}}
        connections.settings = connections.configure_settings(shared)
        ctx: Any = SimpleNamespace(resources=TenantAlias("tenant-x"))
        closing_connections(handle)(1, ctx)
        assert connections["shared"].connection is None
    finally:
        del connections["shared"]
        connections.settings = before


async def test_threads_that_hang_elsewhere_keep_no_tenant_from_its_database(tmp_path: Path) -> None:
    """Neither at the open nor at the close: the loop has few threads, and one less for each that hangs."""
    released = threading.Event()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as executor:
        loop.set_default_executor(executor)
        hung = loop.run_in_executor(None, released.wait)
        try:
            async with sqlite_pool(tmp_path / "orders") as pool, pool.lease("acme") as alias:
                assert alias in connections.settings
            assert alias not in connections.settings
        finally:
            released.set()
            await hung


async def test_an_open_that_was_given_up_leaves_no_pool_of_django(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread cannot be cancelled. What it makes after the close of the tenant, it closes itself."""
    asked, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    threads: list[threading.Thread] = []

    def hang(connection: Any) -> None:
        threads.append(threading.current_thread())
        loop.call_soon_threadsafe(asked.set)
        released.wait()
        assert connection.pool

    monkeypatch.setattr(DatabaseWrapper, "ensure_connection", hang)

    def locate(tenant: str) -> dict[str, Any]:
        return {"ENGINE": "django.db.backends.postgresql", "NAME": "acme", "OPTIONS": {"pool": True}}

    try:
        provider: Any = tenant_databases(locate)
        opening = asyncio.create_task(provider("acme").__aenter__())
        await asked.wait()
        opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()
    finally:
        released.set()
    [thread] = threads
    assert thread.daemon
    await asyncio.to_thread(thread.join)
    assert not DatabaseWrapper._connection_pools


@pytest.mark.parametrize(("options", "seconds"), [({}, 5), ({"connect_timeout": 60}, 60)])
async def test_a_connection_to_postgresql_has_a_limit(
    postgres_server: PostgresServer, database: str, options: dict[str, Any], seconds: int
) -> None:
    """A server that hangs holds a thread for so long. What the registry says counts, and stays as it is."""
    own = entry(postgres_server, database, **options)
    pool: ResourcePool[str, TenantAlias] = tenant_databases({"acme": own}.get).pool()
    async with pool, pool.lease("acme") as alias:
        assert connections.settings[alias]["OPTIONS"] == {"connect_timeout": seconds}
        assert own["OPTIONS"] == options


@pytest.mark.parametrize(("setting", "outage"), [("SET TRANSACTION READ ONLY", False), ("", True)])
async def test_a_refused_write_is_an_outage_where_the_server_takes_none(
    postgres_server: PostgresServer, database: str, setting: str, *, outage: bool
) -> None:
    """Otherwise the handler's transaction was read-only: it would fail at each try, and its tenant with it."""
    postgres_server.execute("CREATE TABLE orders (id int)", database=database)
    if outage:
        postgres_server.execute(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')

    def write(alias: TenantAlias) -> None:
        with using_tenant(alias), transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            if setting:
                cursor.execute(setting)
            cursor.execute("INSERT INTO orders VALUES (1)")

    pool: ResourcePool[str, TenantAlias] = tenant_databases({"acme": entry(postgres_server, database)}.get).pool()
    async with pool, pool.lease("acme") as alias:
        with pytest.raises(InternalError) as raised:
            await asyncio.to_thread(write, alias)
    assert is_outage(raised.value) is is_suspect(raised.value) is outage


async def test_a_write_that_another_database_may_have_refused_is_an_outage(
    postgres_server: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a transaction around the block, where a question would fail."""
    postgres_server.execute("CREATE TABLE orders (id int)", database=database)
    own = entry(postgres_server, database)
    shared = {"default": {}, "shared": {**own}}

    def write(alias: TenantAlias) -> None:
        try:
            with transaction.atomic(using="shared"), using_tenant(alias):
                ask(alias, "SELECT 1")
                ask("shared", "SELECT set_config('transaction_read_only', 'on', true)")
                ask("shared", "INSERT INTO orders VALUES (1) RETURNING id")
        finally:
            connections["shared"].close()

    monkeypatch.setattr(connections, "settings", connections.configure_settings(shared))
    pool: ResourcePool[str, TenantAlias] = tenant_databases({"acme": own}.get).pool()
    async with pool, pool.lease("acme") as alias:
        with pytest.raises(InternalError) as raised:
            await asyncio.to_thread(write, alias)
    assert is_outage(raised.value)


class Router(TenantRouter):
    """A router of one application."""

    tenant_apps = frozenset({"shop"})


class Model:
    """What a router looks at of a model."""

    class _meta:  # noqa: N801 - Django's name
        app_label = "shop"
        label = "shop.Order"


class Shared:
    """A model of another application."""

    class _meta:  # noqa: N801
        app_label = "auth"
        label = "auth.User"


def test_the_router_fails_closed_without_a_tenant() -> None:
    """A model of a tenant is never read from the database of another one, nor from the default one."""
    router = Router()
    with pytest.raises(NoTenantDatabase, match=r"shop\.Order"):
        router.db_for_read(Model)
    assert router.db_for_write(Shared) is None
    with using_tenant(TenantAlias("tenant-x")):
        assert router.db_for_read(Model) == "tenant-x"
    with pytest.raises(NoTenantDatabase):
        router.db_for_write(Model)


def sqlite_pool(folder: Path) -> ResourcePool[str, TenantAlias]:
    """Return a pool of tenants' SQLite files."""

    def locate(tenant: str) -> dict[str, Any]:
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{folder}-{tenant}"}

    return tenant_databases(locate).pool()


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncGenerator[TenantAlias]:
    """Lease a tenant's SQLite file that has a table."""
    async with sqlite_pool(folder) as pool, pool.lease("acme") as alias:
        await asyncio.to_thread(in_the_tenant, alias, "create table orders (number int)")
        yield alias


def in_the_tenant(alias: TenantAlias, sql: str) -> None:
    """Run a statement as a helper does that is used outside of handlers, too."""
    with using_tenant(alias), connections[alias].cursor() as cursor:
        cursor.execute(sql)


def rows(alias: TenantAlias) -> list[int]:
    """Return the orders of a tenant, and see that no connection stays open."""
    with using_tenant(alias), connections[alias].cursor() as cursor:
        cursor.execute("select number from orders order by number")
        found = [number for (number,) in cursor.fetchall()]
    assert connections[alias].connection is None
    return found


async def test_a_block_within_another_one_leaves_its_transaction_alone(tmp_path: Path) -> None:
    """Of the same tenant, or within its transaction: what was done before and after is committed, or not, as one."""
    error = ValueError("after the work")

    def handle(alias: TenantAlias, *, fail: bool, outermost: Callable[[TenantAlias], Any]) -> None:
        try:
            with outermost(alias), transaction.atomic(using=alias):
                for number in (1, 2, 3):
                    in_the_tenant(alias, f"insert into orders values ({number})")
                if fail:
                    raise error
        finally:
            connections[alias].close()  # without a block it would go with its thread

    blocks: list[Callable[[TenantAlias], Any]] = [using_tenant, nullcontext]
    for number, outermost in enumerate(blocks):
        async with sqlite(tmp_path / str(number)) as alias:
            with pytest.raises(ValueError, match="after the work"):
                await asyncio.to_thread(handle, alias, fail=True, outermost=outermost)
            assert await asyncio.to_thread(rows, alias) == []
            await asyncio.to_thread(handle, alias, fail=False, outermost=outermost)
            assert await asyncio.to_thread(rows, alias) == [1, 2, 3]


async def test_a_transaction_that_does_not_end_in_its_block_is_an_error(tmp_path: Path) -> None:
    """It is rolled back, so the message must not be acknowledged; the next message of the thread is not within it."""

    def begin(alias: TenantAlias) -> None:
        with using_tenant(alias):
            transaction.atomic(using=alias).__enter__()
            in_the_tenant(alias, "insert into orders values (1)")

    def handle(alias: TenantAlias) -> list[int]:
        with pytest.raises(PostroomError, match="did not end there"):
            begin(alias)
        in_the_tenant(alias, "insert into orders values (2)")
        return rows(alias)

    async with sqlite(tmp_path) as alias:
        assert await asyncio.to_thread(handle, alias) == [2]


def _no_autocommit(alias: TenantAlias) -> None:
    transaction.set_autocommit(False, using=alias)


def _begin_by_sql(alias: TenantAlias) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("BEGIN")


@pytest.mark.parametrize("begin", [_no_autocommit, _begin_by_sql])
@pytest.mark.parametrize("vendor", ["sqlite", "postgresql"])
async def test_a_transaction_that_django_does_not_know_is_no_other(
    request: pytest.FixtureRequest, tmp_path: Path, vendor: str, begin: Callable[[TenantAlias], None]
) -> None:
    """Its work would be lost as well, and the message acknowledged; a block within it leaves it alone."""
    where = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "orders.sqlite3")}
    if vendor == "postgresql":
        where = entry(request.getfixturevalue("postgres_server"), request.getfixturevalue("database"))

    def count(alias: TenantAlias) -> int:
        with using_tenant(alias):
            return int(ask(alias, "select count(*) from orders"))

    def insert(alias: TenantAlias, *, end: bool) -> None:
        with using_tenant(alias):
            begin(alias)
            in_the_tenant(alias, "insert into orders values (1)")
            if end:
                with connections[alias].cursor() as cursor:
                    cursor.execute("COMMIT")

    def handle(alias: TenantAlias) -> list[int]:
        in_the_tenant(alias, "create table orders (number int)")
        with pytest.raises(PostroomError, match="did not end there"):
            insert(alias, end=False)
        before = count(alias)
        insert(alias, end=True)
        return [before, count(alias)]

    pool: ResourcePool[str, TenantAlias] = tenant_databases({"acme": where}.get).pool()
    async with pool, pool.lease("acme") as alias:
        assert await asyncio.to_thread(handle, alias) == [0, 1]


def test_async_handlers_are_refused() -> None:
    """Django's connections belong to threads."""
    with pytest.raises(ConfigurationError, match="plain `def` handler"):

        @closing_connections  # type: ignore[arg-type]
        async def handle(payload: int, ctx: MessageContext[str, TenantAlias]) -> None: ...


async def test_handlers_of_two_tenants_in_the_same_threads_never_meet(postgres_server: PostgresServer) -> None:
    """Each sees its own database, and nothing of what another left in the session; no connection stays open."""
    names = {"acme": "django-acme", "beta": "django-beta"}
    for name in names.values():
        postgres_server.create_database(name)
    seen: asyncio.Queue[tuple[str, str, str, int]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    async with LocalBroker() as broker:
        broker.create_queue("orders")

        def locate(tenant: str) -> dict[str, Any]:
            return entry(postgres_server, names[tenant])

        orders: Consumer[str, TenantAlias] = Consumer(
            "orders",
            context=lambda message: message.attributes["tenantId"],
            resources=tenant_databases(locate),
            client=MemoryClient(broker),
            concurrency=Concurrency(total=2, threads=2),
        )
        router = Router()

        @orders.handler
        @closing_connections
        def handle(number: int, ctx: MessageContext[str, TenantAlias]) -> None:
            alias = router.db_for_read(Model)
            assert alias == ctx.resources
            left = ask(alias, "select current_setting('shop.tenant', true)")
            ask(alias, f"select set_config('shop.tenant', '{ctx.context}', false)")
            found = ctx.context, str(ask(alias, "select current_database()")), left or "", threading.get_ident()
            loop.call_soon_threadsafe(seen.put_nowait, found)

        async with orders:
            for number in range(20):
                tenant = "acme" if number % 2 else "beta"
                attributes = {"tenantId": AttributeValue(data_type="String", string_value=tenant)}
                broker.send("orders", Send(message_body=str(number), message_attributes=attributes))
            results = [await seen.get() for _ in range(20)]
    assert {(tenant, database) for tenant, database, _, _ in results} == set(names.items())
    assert {left for _, _, left, _ in results} == {""}
    assert len({thread for *_, thread in results}) <= 2
    for name in names.values():
        drop(postgres_server, name)


SETTINGS = """
SECRET_KEY = "x"
DATABASES = {}
INSTALLED_APPS = ["postroom.integrations.django"]
POSTROOM_CONSUMERS = ["shop_tasks:orders"]
"""
TASKS = """
from django.conf import settings
from postroom import Consumer, MessageContext

orders = Consumer("orders")

@orders.handler
def handle(number: int, ctx: MessageContext) -> None:
    print("handled", number, settings.SECRET_KEY, flush=True)
"""


def test_the_command_runs_consumers_until_a_signal(tmp_path: Path) -> None:
    """Those of the setting, with Django set up; probes are answered, SIGTERM drains, exit code 0."""
    (tmp_path / "shop_settings.py").write_text(textwrap.dedent(SETTINGS))
    (tmp_path / "shop_tasks.py").write_text(textwrap.dedent(TASKS))
    keys = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "l", "AWS_SECRET_ACCESS_KEY": "l"}
    with ThreadedServer() as server:
        server.create_queue("orders")
        server.call(lambda broker: broker.send("orders", "5"))
        own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment = {
            **own, **keys, "AWS_ENDPOINT_URL_SQS": server.endpoint_url, "DJANGO_SETTINGS_MODULE": "shop_settings",
            "PYTHONPATH": str(tmp_path), "POSTROOM_HEALTH_PORT": "0",
        }  # fmt: skip
        worker = subprocess.Popen(
            [sys.executable, "-m", "django", "run_postroom"],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        with worker:
            assert worker.stdout is not None
            seen = read_until(worker, "handled 5 x")
            pages = re.search(r"Health at (\S+)", seen)
            assert pages is not None, seen
            assert httpx.get(pages[1], timeout=10).status_code == 200
            worker.send_signal(signal.SIGTERM)
            seen += worker.stdout.read()
            assert worker.wait(30) == 0, seen
        assert server.counts("orders") == (0, 0, 0)
    assert "Stopped consuming" in seen


def test_the_command_says_what_to_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither arguments nor the setting: an error with both remedies, and the exit code of ``postroom run``."""
    with pytest.raises(CommandError, match="POSTROOM_CONSUMERS") as nothing:
        call_command("run_postroom")
    with pytest.raises(CommandError, match="not MODULE:CONSUMER") as wrong:
        call_command("run_postroom", "shop")
    assert nothing.value.returncode == wrong.value.returncode == 2
    assert not capsys.readouterr().out


@pytest.mark.parametrize("named", ["shop.nowhere:orders", "shop.nowhere:orders shop.tasks:orders"])
def test_the_setting_may_be_a_text(named: str) -> None:
    """As the environment variable of that name is; taken letter by letter, it names nothing."""
    wrong = pytest.raises(CommandError, match=r"no module 'shop\.nowhere'")
    with override_settings(POSTROOM_CONSUMERS=named), wrong as refused:
        call_command("run_postroom")
    assert "--directory" not in str(refused.value)  # an option of ``postroom run``, which manage.py does not have


@pytest.mark.parametrize("wait", ["-1", "nan"])
def test_the_wait_of_the_command_is_seconds(wait: str) -> None:
    """Anything else is refused before something starts."""
    with pytest.raises(CommandError, match="--wait: it takes a number of at least 0"):
        call_command("run_postroom", "shop.tasks:orders", f"--wait={wait}")


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_the_health_port_of_the_command_is_one(port: str) -> None:
    """Anything else is refused before something starts."""
    with pytest.raises(CommandError, match="--health-port: "):
        call_command("run_postroom", "shop.tasks:orders", f"--health-port={port}")


def test_the_command_refuses_a_consumer_that_is_named_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``postroom run`` does: it cannot run beside itself."""
    (tmp_path / "twice_tasks.py").write_text('from postroom import Consumer\n\norders = again = Consumer("orders")\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CommandError, match="the consumer of 'orders' is named twice: name each once") as refused:
        call_command("run_postroom", "twice_tasks:orders", "twice_tasks:again", "--wait=0")
    assert refused.value.returncode == 2
