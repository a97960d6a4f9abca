"""Which database a query goes to."""

from postroom.integrations.django import TenantRouter


class Router(TenantRouter):
    """Models of the shop belong to the tenant of the message. Without one, a query raises instead of guessing."""

    tenant_apps = frozenset({"shop"})
