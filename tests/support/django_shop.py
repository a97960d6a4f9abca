"""A Django project for tests: the models of a shop, that each tenant has in a database of its own."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from postroom import ResourcePool
from postroom.testing.postgres import PostgresServer

django = pytest.importorskip("django")

from django.apps import AppConfig  # noqa: E402
from django.conf import settings  # noqa: E402

if not settings.configured:
    settings.configure(
        DATABASES={},
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "postroom.integrations.django",
            AppConfig("shop", sys.modules[__name__]),
        ],
        USE_TZ=True,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    django.setup()

from django.db import connections, models  # noqa: E402
from django.test.utils import override_settings  # noqa: E402

from postroom.integrations.django import TenantAlias, TenantRouter, tenant_databases, using_tenant  # noqa: E402


class Order(models.Model):  # type: ignore[misc]  # Django has no types
    """An order of a tenant's."""

    name = models.CharField(max_length=50)

    class Meta:
        app_label = "shop"


class Line(models.Model):  # type: ignore[misc]
    """A line of an order."""

    order = models.ForeignKey(Order, models.CASCADE, related_name="lines")
    name = models.CharField(max_length=50)

    class Meta:
        app_label = "shop"


class User(models.Model):  # type: ignore[misc]
    """Not of a tenant's, and in a database of the settings."""

    class Meta:
        app_label = "people"


class Router(TenantRouter):
    """A router of one application."""

    tenant_apps = frozenset({"shop"})


@contextmanager
def routed() -> Generator[None]:
    """Let models of the shop go to the tenant in use."""
    with override_settings(DATABASE_ROUTERS=[Router()]):
        yield


def entry(server: PostgresServer, database: str, **options: Any) -> dict[str, Any]:
    """Return what the setting DATABASES would have for a database."""
    url = urlsplit(server.dsn(database))
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": database,
        "USER": url.username,
        "PASSWORD": url.password or "",
        "HOST": url.hostname,
        "PORT": url.port,
        "OPTIONS": options,
    }


def drop(server: PostgresServer, database: str) -> None:
    """Drop a database. The server refuses it while a connection is open, after it has waited for some seconds."""
    server.execute(f'DROP DATABASE "{database}"')


def ask(alias: str, sql: str) -> Any:
    """Return the only value of a query."""
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def files(folder: Path) -> ResourcePool[str, TenantAlias]:
    """Return a pool of tenants' SQLite files."""

    def locate(tenant: str) -> Mapping[str, Any]:
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / tenant)}

    return tenant_databases(locate).pool()


@asynccontextmanager
async def shops(folder: Path, *tenants: str) -> AsyncGenerator[list[TenantAlias]]:
    """Lease the files of tenants, each with an order that has a line. Their keys are the same, their names are not."""
    async with files(folder) as pool, AsyncExitStack() as leases:
        aliases = [await leases.enter_async_context(pool.lease(tenant)) for tenant in tenants]
        for alias, name in zip(aliases, tenants, strict=True):
            await asyncio.to_thread(open_shop, alias, name)
        yield aliases


def open_shop(alias: TenantAlias, name: str) -> None:
    """Make the tables of a tenant, an order and its line."""
    with using_tenant(alias):
        with connections[alias].schema_editor() as editor:
            editor.create_model(Order)
            editor.create_model(Line)
        Line.objects.create(order=Order.objects.create(name=f"order of {name}"), name=f"line of {name}")


def contents(alias: TenantAlias) -> list[tuple[str, str]]:
    """Return what a tenant has."""
    with using_tenant(alias):
        return list(Line.objects.values_list("order__name", "name"))
