"""``manage.py migrate_tenants``: Django's ``migrate`` for each tenant's database."""

import asyncio
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand
from examples.django_app.shop.messages import Tenant
from examples.django_app.shop.models import Order
from examples.django_app.shop.tasks import databases

from postroom.integrations.django import TenantAlias, using_tenant


class Command(BaseCommand):
    """Migrate the tenants, one after the other, and say how many orders each of them has."""

    help = "Migrate the database of each tenant."

    def handle(self, *_: Any, **__: Any) -> None:
        """Lease each tenant's database as the consumer does, and migrate it in a thread."""
        asyncio.run(self._migrate_all())

    async def _migrate_all(self) -> None:
        async with databases.pool() as pool:
            for name in settings.TENANTS:
                async with pool.lease(Tenant(name)) as alias:
                    count = await asyncio.to_thread(_migrate, alias)
                self.stdout.write(f"{name}: migrated, has {count} orders")


def _migrate(alias: TenantAlias) -> int:
    with using_tenant(alias):
        call_command("migrate", database=alias, verbosity=0)
        return int(Order.objects.count())
