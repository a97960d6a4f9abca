"""What each tenant has in a database of its own."""

from django.db import models


class Order(models.Model):
    """An order. Its number is unique, so that an order that is delivered twice is stored once."""

    number = models.CharField(max_length=40, unique=True)
    amount = models.DecimalField(max_digits=12, decimal_places=2)

    class Meta:
        """The label that the router goes by."""

        app_label = "shop"

    def __str__(self) -> str:
        return str(self.number)
