"""The consumer. ``manage.py run_postroom`` runs it."""

from django.conf import settings
from django.db import transaction
from examples.django_app.shop.messages import OrderPlaced, Tenant
from examples.django_app.shop.models import Order

from postroom import Consumer, MessageContext
from postroom.integrations.django import TenantAlias, closing_connections, tenant_databases


def entry_of(tenant: Tenant) -> dict[str, object] | None:
    """Return a tenant's entry; None says that there is no such tenant. A real registry asks a table or a service."""
    tenants: dict[str, dict[str, object]] = settings.TENANTS
    return tenants.get(tenant.tenant_id)


databases = tenant_databases(entry_of)
orders: Consumer[Tenant, TenantAlias] = Consumer("orders", context=Tenant, resources=databases)


@orders.handler
@closing_connections
def place(order: OrderPlaced, ctx: MessageContext[Tenant, TenantAlias]) -> None:
    """Store an order in its tenant's database. A plain function: Django's connections belong to threads."""
    with transaction.atomic(using=ctx.resources):
        _, created = Order.objects.get_or_create(number=order.number, defaults={"amount": order.amount})
    line = f"{ctx.context.tenant_id}: {order.number} {'stored' if created else 'was there already'}\n"
    print(line, end="", flush=True)  # in one write: threads print at the same time
