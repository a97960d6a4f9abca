"""Django's async calls in a tenant's database: their thread is Django's, and no connection stays there."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async

from postroom import ClosedError, ResourcePool
from postroom.integrations.django import TenantAlias, tenant_databases, using_tenant
from postroom.testing.postgres import PostgresServer
from support.django_shop import Order, ask, contents, drop, entry, open_shop, routed

from django.db import connections, transaction  # isort: skip
from django.db.utils import OperationalError  # isort: skip

pytestmark = [pytest.mark.postgres, pytest.mark.usefixtures("_routed")]
Shop = ResourcePool[str, TenantAlias]


@pytest.fixture
def _routed() -> Iterator[None]:
    with routed():
        yield


@asynccontextmanager
async def shop(server: PostgresServer, **options: Any) -> AsyncGenerator[Shop]:
    """Open the pool of a tenant that has an order. At its end no connection is left."""
    server.create_database("django-async")
    pool: Shop = tenant_databases({"acme": entry(server, "django-async", **options)}.get).pool()
    async with pool:
        async with pool.lease("acme") as alias:
            await asyncio.to_thread(open_shop, alias, "acme")
        yield pool
    drop(server, "django-async")


@pytest.fixture
async def alias(postgres_server: PostgresServer) -> AsyncIterator[TenantAlias]:
    """The alias of a tenant that has an order."""
    async with shop(postgres_server) as pool, pool.lease("acme") as alias:
        yield alias


def is_open(alias: TenantAlias) -> bool:
    """Whether this thread has a connection."""
    return hasattr(connections._connections, alias)


@pytest.mark.parametrize("context", [nullcontext, ThreadSensitiveContext], ids=["anywhere", "in a request"])
async def test_a_block_in_async_code_closes_what_it_opened(alias: TenantAlias, context: Any) -> None:
    """In Django's thread, before the next block's queries: nothing of a session is left for them."""
    async with context():
        for _ in range(2):
            with using_tenant(alias):
                assert await Order.objects.acount() == 1
                assert not await sync_to_async(ask)(alias, "select current_setting('shop.tenant', true)")
                await sync_to_async(ask)(alias, "select set_config('shop.tenant', 'acme', false)")
        assert not await sync_to_async(is_open)(alias)


async def test_django_may_allow_queries_in_the_loop(alias: TenantAlias, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in notebooks and browser tests: they are closed as well."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    with using_tenant(alias):
        assert Order.objects.count() == await Order.objects.acount() == 1
    assert not is_open(alias)
    assert not await sync_to_async(is_open)(alias)


async def test_blocks_at_the_same_time_each_have_their_tenant(
    alias: TenantAlias, postgres_server: PostgresServer
) -> None:
    """They share a thread, and one that ends takes no connection from the other for good."""
    own = entry(postgres_server, "postgres")
    ended = asyncio.Event()

    async def short(other: TenantAlias) -> None:
        with using_tenant(other):
            assert await sync_to_async(ask)(other, "select current_database()") == "postgres"
        with using_tenant(alias):
            assert await Order.objects.acount() == 1
        ended.set()

    async with tenant_databases({"other": own}.get).pool() as pool, pool.lease("other") as other:
        with using_tenant(alias):
            assert await Order.objects.acount() == 1
            task = asyncio.create_task(short(other))
            await ended.wait()
            assert await Order.objects.acount() == 1
        await task
        assert not await sync_to_async(is_open)(alias)
        assert not await sync_to_async(is_open)(other)


async def test_an_inner_block_leaves_the_connection_to_the_outer_one(alias: TenantAlias) -> None:
    """As in a thread."""
    with using_tenant(alias):
        await sync_to_async(ask)(alias, "select set_config('shop.tenant', 'acme', false)")
        with using_tenant(alias):
            assert await Order.objects.acount() == 1
        assert await sync_to_async(ask)(alias, "select current_setting('shop.tenant', true)") == "acme"


async def test_async_code_within_a_block_of_a_thread_is_in_its_transaction(alias: TenantAlias) -> None:
    """Its queries run in that thread, so a block in it closes nothing."""

    async def audit() -> None:
        with using_tenant(alias):
            await Order.objects.acreate(name="x")

    def handle() -> None:
        with using_tenant(alias), transaction.atomic(using=alias):
            async_to_sync(audit)()
            assert Order.objects.count() == 2
            transaction.set_rollback(True, using=alias)

    assert await Order.objects.using(alias).acount() == 1  # a connection without a block, in another thread
    await asyncio.to_thread(handle)
    assert await asyncio.to_thread(contents, alias) == [("order of acme", "line of acme")]


async def test_a_connection_without_a_block_is_ended_with_the_alias(postgres_server: PostgresServer) -> None:
    """Of Django's async calls, and of threads where a query says `using=`."""
    async with shop(postgres_server) as pool, pool.lease("acme") as alias:
        assert await Order.objects.using(alias).acount() == 1
        assert await asyncio.to_thread(Order.objects.using(alias).count) == 1


async def test_what_a_thread_opened_without_a_block_goes_with_the_thread(alias: TenantAlias) -> None:
    """Also while the alias is open: a web server may have a thread for each request."""

    def query() -> weakref.ref[Any]:
        assert ask(alias, "select 1") == 1
        connections[alias].close()  # else the driver warns of it
        return weakref.ref(connections[alias])

    with ThreadPoolExecutor(1) as executor:
        connection = await asyncio.get_running_loop().run_in_executor(executor, query)
    gc.collect()
    assert connection() is None


@pytest.mark.parametrize("options", [{}, {"pool": {"min_size": 1, "max_size": 1}}], ids=["alone", "pool"])
async def test_a_query_that_was_given_up_ends_with_the_alias(
    postgres_server: PostgresServer, options: dict[str, Any]
) -> None:
    """Its thread cannot be cancelled: it would wait for the server, and keep the process from its end."""
    started = threading.Event()
    errors: list[BaseException] = []

    def wait(alias: TenantAlias) -> None:
        connections[alias].ensure_connection()
        connections[alias].connection.add_notice_handler(lambda _: started.set())
        try:
            ask(alias, "do $$ begin raise notice 'it runs'; perform pg_sleep(60); end $$")
        except OperationalError as error:
            errors.append(error)

    async with shop(postgres_server, **options) as pool:
        async with pool.lease("acme") as alias:
            thread = threading.Thread(target=wait, args=(alias,))
            thread.start()
            await asyncio.to_thread(started.wait)
        await pool.invalidate("acme")
        await asyncio.to_thread(thread.join)
    assert len(errors) == 1


async def test_a_thread_opens_nothing_after_the_alias_has_gone(postgres_server: PostgresServer) -> None:
    """Nothing would close it."""
    asked, gone = threading.Event(), threading.Event()

    def query(alias: TenantAlias) -> Any:
        assert Order.objects.using(alias).count() == 1
        connections[alias].close()
        asked.set()
        gone.wait()
        with pytest.raises(ClosedError, match="resources of this tenant were closed"):
            Order.objects.using(alias).count()
        return connections[alias].connection

    async with shop(postgres_server) as pool:
        async with pool.lease("acme") as alias:
            querying = asyncio.create_task(asyncio.to_thread(query, alias), name="querying")
            await asyncio.to_thread(asked.wait)
        await pool.invalidate("acme")
        gone.set()
        assert await querying is None
