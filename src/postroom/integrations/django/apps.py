"""The Django application."""

from typing import Any

from django.apps import AppConfig
from django.apps import apps as django_apps
from django.core import checks as django_checks

checks: Any = django_checks  # Django has no types
_apps: Any = django_apps


class PostroomConfig(AppConfig):
    """Brings the command ``run_postroom``, and a check of the routers."""

    name = "postroom.integrations.django"
    label = "postroom"
    verbose_name: str = "postroom"

    def ready(self) -> None:
        """Let ``manage.py check``, and each command that checks first, look at the routers."""
        checks.register(check_routers)


def check_routers(**_: Any) -> list[Any]:
    """Return an error for each label of a ``TenantRouter`` that no application has: it sends nothing to any tenant."""
    from django.db import router  # noqa: PLC0415 - not before the settings are there

    from postroom.integrations.django.routing import TenantRouter  # noqa: PLC0415

    routers: Any = router.routers
    return [problem for each in routers if isinstance(each, TenantRouter) for problem in _problems(each)]


def _problems(router: Any) -> list[Any]:
    name, labels = type(router).__name__, router.tenant_apps
    if isinstance(labels, str) or not labels:
        hint = 'such as tenant_apps = frozenset({"shop"})'
        return [checks.Error(f"{name}.tenant_apps names no applications", hint=hint, id="postroom.E001")]
    known = {each.label for each in _apps.get_app_configs()} | _apps.all_models.keys()
    hint = "It is the label of an application and not its name. Its models would be read from the default database"
    return [
        checks.Error(f"{name}.tenant_apps: no application has the label {label!r}", hint=hint, id="postroom.E002")
        for label in sorted(set(labels) - known)
    ]
