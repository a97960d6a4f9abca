"""Django: a management command that runs consumers, and tenants' databases for ``def`` handlers.

Add ``"postroom.integrations.django"`` to ``INSTALLED_APPS``, and run
``python manage.py run_postroom shop.tasks:orders``.
"""

from postroom.integrations.django.aliases import TenantAlias
from postroom.integrations.django.databases import closing_connections, tenant_databases, using_tenant
from postroom.integrations.django.routing import NoTenantDatabase, OtherTenantsObject, TenantRouter

__all__ = [
    "NoTenantDatabase",
    "OtherTenantsObject",
    "TenantAlias",
    "TenantRouter",
    "closing_connections",
    "tenant_databases",
    "using_tenant",
]
