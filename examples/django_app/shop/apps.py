"""The application, by a short name."""

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """Its label is what the router goes by."""

    name = "examples.django_app.shop"
    label = "shop"
