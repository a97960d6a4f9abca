"""The Django application."""

from django.apps import AppConfig


class PostroomConfig(AppConfig):
    """Brings the command ``run_postroom``."""

    name = "postroom.integrations.django"
    label = "postroom"
    verbose_name: str = "postroom"
