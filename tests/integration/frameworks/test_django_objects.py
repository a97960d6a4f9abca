"""Django's objects of one tenant where another tenant's database is in use: neither read nor written there."""

import asyncio
import gc
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from asgiref.sync import sync_to_async

from postroom.integrations.django import NoTenantDatabase, OtherTenantsObject, TenantAlias, TenantRouter, using_tenant
from support.django_shop import Line, Order, Router, User, ask, contents, files, open_shop, routed, shops

from django.contrib.contenttypes.models import ContentType  # isort: skip
from django.core.checks import run_checks  # isort: skip
from django.db import connections  # isort: skip
from django.db.backends.base.base import RAN_DB_VERSION_CHECK, BaseDatabaseWrapper  # isort: skip
from django.test.utils import override_settings  # isort: skip

pytestmark = pytest.mark.usefixtures("_routed")
A = [("order of a", "line of a")]
B = [("order of b", "line of b")]


@pytest.fixture
def _routed() -> Iterator[None]:
    with routed():
        yield


class Shops(NamedTuple):
    """The aliases of two tenants."""

    a: TenantAlias
    b: TenantAlias


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Shops]:
    """Two tenants. Their rows have the same keys."""
    async with shops(tmp_path, "a", "b") as (a, b):
        yield Shops(a, b)
        assert await asyncio.to_thread(contents, a) == A
        assert await asyncio.to_thread(contents, b) == B


def loaded(alias: TenantAlias) -> tuple[Any, Any]:
    """Return an order, and its line."""
    with using_tenant(alias):
        line = Line.objects.get(pk=1)
        return line.order, line


USES: dict[str, Callable[[Any, Any], Any]] = {
    "save": lambda order, _: order.save(),
    "save a related object that it holds": lambda _, line: line.order.save(),
    "delete": lambda order, _: order.delete(),
    "refresh_from_db": lambda order, _: order.refresh_from_db(),
    "read a deferred field": lambda order, _: (order.__dict__.pop("name", None), order.name),
    "read what it refers to": lambda _, line: line._state.fields_cache.clear() or line.order,
    "read what refers to it": lambda order, _: list(order.lines.all()),
    "create what refers to it": lambda order, _: order.lines.create(name="x"),
    "update what refers to it": lambda order, _: order.lines.update(name="x"),
    "refer to it": lambda order, _: Line(order=order).save(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_an_object_of_another_tenant_is_refused(two: Shops, use: Callable[[Any, Any], Any]) -> None:
    """Its keys are those of other rows there."""

    def handle() -> None:
        order, line = loaded(two.a)
        with using_tenant(two.b), pytest.raises(OtherTenantsObject, match=f"{two.a}.*{two.b}"):
            use(order, line)
        with pytest.raises(NoTenantDatabase):
            use(order, line)

    await asyncio.to_thread(handle)


async def test_objects_of_two_tenants_are_not_joined(two: Shops) -> None:
    """Django's own words for it."""

    def handle() -> None:
        order, _ = loaded(two.b)
        _, line = loaded(two.a)
        with using_tenant(two.b):
            with pytest.raises(ValueError, match="prevents this relation"):
                order.lines.add(line)
            with pytest.raises(ValueError, match="prevents this relation"):
                line.order = order

    await asyncio.to_thread(handle)


async def test_a_tenants_own_objects_are_used_as_ever(two: Shops) -> None:
    """Also in a later block of the same lease."""

    def handle() -> None:
        order, line = loaded(two.a)
        with using_tenant(two.a):
            order.save()
            order.refresh_from_db()
            line.refresh_from_db()
            assert [each.name for each in line.order.lines.all()] == ["line of a"]
            order.lines.create(name="x").delete()
            Line(order=order, name="y").save()
            order.lines.filter(name="y").delete()

    await asyncio.to_thread(handle)


async def test_a_shared_object_leads_to_what_the_tenant_in_use_has(two: Shops) -> None:
    """A user of the default database has orders with each tenant; which relations there may be, others say."""
    user = User()
    user._state.db = "default"

    def handle() -> None:
        order, _ = loaded(two.a)
        with using_tenant(two.a):
            assert Router().db_for_read(Order, instance=user) == two.a
        assert Router().db_for_read(User, instance=order) is None
        assert Router().allow_relation(user, order) is None

    await asyncio.to_thread(handle)


async def test_an_object_of_a_database_of_the_settings_stays_there(two: Shops) -> None:
    """As everywhere in Django: what it refers to is there, and not with the tenant in use."""
    order = Order(name="template")
    order._state.db = "archive"
    with using_tenant(two.a):
        assert Router().db_for_read(Line, instance=order) == "archive"
        assert Router().db_for_write(Order, instance=order) == "archive"
        assert Router().db_for_write(Order, instance=Order(name="new")) == two.a


async def test_a_migration_does_not_meet_another_tenants_data(two: Shops) -> None:
    """Its queries go where the router says, whatever database is migrated."""
    router = Router()
    with using_tenant(two.a):
        assert router.allow_migrate(two.a, "shop") is None
        assert router.allow_migrate(two.b, "people") is None
        with pytest.raises(OtherTenantsObject, match=f"shop .*{two.b}.*{two.a}"):
            router.allow_migrate(two.b, "shop", model_name="order")
    assert router.allow_migrate(two.b, "shop") is None


async def test_tenants_tables_are_in_their_databases_only(two: Shops) -> None:
    """A data migration of theirs cannot run in a shared database: `migrate` and `test` would fail."""
    router = Router()
    for block in (using_tenant(two.a), nullcontext()):
        with block:
            assert router.allow_migrate("default", "shop", model_name="order") is False
            assert router.allow_migrate("default", "people") is None
    with using_tenant(TenantAlias("default")):
        assert router.allow_migrate("default", "shop") is None
    assert router.allow_migrate(str(two.b), "shop") is None


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (frozenset({"shop", "contenttypes"}), None),
        (frozenset(), "Wrong.tenant_apps names no applications"),
        ("shop", "Wrong.tenant_apps names no applications"),
        (frozenset({"shop", "examples.shop"}), "Wrong.tenant_apps: no application has the label 'examples.shop'"),
    ],
)
def test_a_label_that_no_application_has_is_found_by_djangos_checks(labels: Any, problem: str | None) -> None:
    """Its models would be those of the default database, for all tenants. Each command of `manage.py` checks first."""

    class Wrong(TenantRouter):
        tenant_apps = labels

    with override_settings(DATABASE_ROUTERS=[Wrong()]):
        found = [each.msg for each in run_checks() if each.id.startswith("postroom.")]
    assert found == ([] if problem is None else [problem])


async def test_an_object_outlives_no_alias(tmp_path: Path) -> None:
    """A tenant that is opened again has another alias, and its file may be another tenant's by then."""
    async with files(tmp_path) as pool:
        async with pool.lease("a") as first:
            await asyncio.to_thread(open_shop, first, "a")
            order, _ = await asyncio.to_thread(loaded, first)
        await pool.invalidate("a")
        async with pool.lease("a") as second:
            with using_tenant(second), pytest.raises(OtherTenantsObject, match="Load the object again"):
                order.save()


ALIAS = """
import asyncio, sys
import support.django_shop
from pathlib import Path
async def main():
    async with support.django_shop.files(Path(sys.argv[1])) as pool, pool.lease("a") as alias:
        print(alias)
asyncio.run(main())
"""


async def test_two_processes_have_no_alias_in_common(tmp_path: Path) -> None:
    """An object that one of them put into a cache has its alias with it."""

    async def alias() -> str:
        command = (sys.executable, "-c", ALIAS, str(tmp_path))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.PIPE)
        out, _ = await process.communicate()
        return out.decode().strip()

    first, second = await asyncio.gather(alias(), alias())
    assert first.startswith("tenant-")
    assert first != second


async def test_a_pickled_object_is_of_its_tenant(two: Shops) -> None:
    """Django's caches pickle objects."""
    order, _ = await asyncio.to_thread(loaded, two.a)
    order = pickle.loads(pickle.dumps(order))  # noqa: S301 - our own
    with using_tenant(two.b), pytest.raises(OtherTenantsObject):
        order.save()


async def test_a_connection_is_not_closed_under_a_query(tmp_path: Path) -> None:
    """SQLite's driver would crash. The thread closes it when it opens the next one."""
    started, gone = threading.Event(), threading.Event()

    def wait() -> int:
        started.set()
        gone.wait()
        return 1

    def use(first: TenantAlias, second: list[TenantAlias]) -> Any:
        connections[first].ensure_connection()
        driver = connections[first].connection
        driver.create_function("wait", 0, wait)
        assert ask(first, "select wait()") == 1
        assert ask(second[0], "select 2") == 2
        connections[second[0]].close()
        return driver

    second: list[TenantAlias] = []
    async with files(tmp_path) as pool:
        async with pool.lease("a") as first:
            using = asyncio.create_task(asyncio.to_thread(use, first, second), name="using")
            await asyncio.to_thread(started.wait)
        await pool.invalidate("a")
        async with pool.lease("b") as alias:
            second.append(alias)
            gone.set()
            driver = await using
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        driver.execute("select 3")


async def test_nothing_of_an_alias_outlives_it(tmp_path: Path) -> None:
    """Neither in a thread that used it nor in what Django keeps by alias: tenants come and go for weeks."""

    def use(alias: TenantAlias) -> None:
        with connections[alias].schema_editor() as editor:
            editor.create_model(ContentType)
        ContentType.objects.db_manager(alias).get_for_model(Order)

    gone = set()
    async with files(tmp_path) as pool:
        for block in (using_tenant, nullcontext):
            async with pool.lease("a") as alias:
                with block(alias):
                    await sync_to_async(use)(alias)
            await pool.invalidate("a")
            (tmp_path / "a").unlink()
            gone.add(alias)
        async with pool.lease("the next") as alias:
            await sync_to_async(use)(alias)
    gc.collect()
    objects = [each for each in gc.get_objects() if issubclass(type(each), BaseDatabaseWrapper)]
    assert not gone & {each.alias for each in objects}
    assert not gone & RAN_DB_VERSION_CHECK
    assert not gone & ContentType.objects._cache.keys()
