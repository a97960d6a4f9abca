"""Which database a model is read from and written to: that of the tenant in use, and of no other."""

from contextvars import ContextVar
from typing import Any, ClassVar, Final

from postroom.errors import ConfigurationError, PostroomError
from postroom.integrations.django.aliases import TenantAlias, is_known


class NoTenantDatabase(ConfigurationError):
    """A model of a tenant was used where no tenant's database is in use. Nothing was read or written."""


class OtherTenantsObject(PostroomError):
    """An object of one tenant was used where another tenant's database is in use. Nothing was read or written.

    Load it again in the block that uses it. Objects that outlive a block, in a cache say, belong to the alias that they
    were loaded by. A tenant that was closed and opened again meanwhile has another one.
    """


in_use: Final[ContextVar[TenantAlias | None]] = ContextVar("postroom_django_alias", default=None)
"""The alias of the tenant that queries go to here."""


class TenantRouter:
    """A database router that sends the models of some applications to the tenant of the message that is handled.

    Name a subclass in ``DATABASE_ROUTERS``, before others. It fails closed: outside of a handler and of
    ``using_tenant`` a model of a tenant raises ``NoTenantDatabase``, unless the query says ``using=``. An object of one
    tenant, and what is related to it, raises ``OtherTenantsObject`` where another tenant is in use. One that was loaded
    from a database of the settings stays there, as everywhere in Django.
    """

    tenant_apps: ClassVar[frozenset[str]] = frozenset()
    """The labels of the applications with tenants' models."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        """Return the alias of the current tenant for its models; None for all others."""
        return self._chosen(model, hints.get("instance"))

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        """Return the alias of the current tenant for its models; None for all others."""
        return self._chosen(model, hints.get("instance"))

    def allow_relation(self, obj1: Any, obj2: Any, **_: Any) -> bool | None:
        """Return False for objects of two tenants. None for all others: Django allows those of one database."""
        one, other = _database_of(obj1), _database_of(obj2)
        two_tenants = isinstance(one, TenantAlias) and isinstance(other, TenantAlias) and one != other
        return False if two_tenants else None

    def allow_migrate(self, db: str, app_label: str, **_: Any) -> bool | None:
        """Return False for tenants' models in a database that is no tenant's, and None for all others.

        As everywhere in Django, ``migrate`` takes what it leaves out for done.

        Raises:
            OtherTenantsObject: another tenant is in use: the migration would change the data there.
        """
        alias = in_use.get()
        if app_label not in self.tenant_apps or alias == db:
            return None
        if not is_known(db):
            return False
        if alias is not None:
            raise OtherTenantsObject(f"{app_label} is to be migrated in {db}, and {alias} is in use here")
        return None

    def _chosen(self, model: Any, instance: Any) -> str | None:
        if model._meta.app_label not in self.tenant_apps:  # noqa: SLF001 - Django's documented name
            return None
        name = model._meta.label  # noqa: SLF001
        alias = in_use.get()
        if alias is None:
            text = f"{name} is a model of a tenant, and no tenant's database is in use here"
            raise NoTenantDatabase(f"{text}: wrap the handler in @closing_connections, or use `with using_tenant(...)`")
        own = _database_of(instance)
        if own is None or own == alias:
            return alias
        if isinstance(own, TenantAlias):
            text = f"{name} was asked for with an object of {own}, and {alias} is in use here: another tenant's"
            raise OtherTenantsObject(f"{text} database, or the same one opened again. Load the object again, here")
        # A shared object, such as a user, leads to what the current tenant has of it.
        return own if instance._meta.app_label in self.tenant_apps else alias  # noqa: SLF001


def _database_of(instance: Any) -> str | None:
    """Return where an object was loaded from or saved to; None for a new one."""
    found: str | None = None if instance is None else instance._state.db  # noqa: SLF001 - Django's documented name
    return found
