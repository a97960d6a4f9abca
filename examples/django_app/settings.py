"""The settings of the project. A tenant's database is not among ``DATABASES``: tenants come and go while it runs."""

import json
import os

SECRET_KEY = "of an example"  # noqa: S105 - it protects nothing here
TIME_ZONE = "UTC"  # also that of the log: without it Django writes Chicago's time
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["postroom.integrations.django", "examples.django_app.shop"]
DATABASE_ROUTERS = ["examples.django_app.shop.routers.Router"]
DATABASES: dict[str, object] = {}  # a project that has sessions, users and the admin has "default" here

TENANTS: dict[str, dict[str, object]] = json.loads(os.environ.get("SHOP_TENANTS", "{}"))
"""What a registry would say: the entry of each tenant, as it would stand in ``DATABASES``."""

POSTROOM_CONSUMERS = ["examples.django_app.shop.tasks:orders"]  # what `manage.py run_postroom` runs
