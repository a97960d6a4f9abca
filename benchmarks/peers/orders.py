"""The payload of the stub's messages, for workers that decode by msgspec."""

import msgspec


class Item(msgspec.Struct):
    """A line of an order."""

    sku: str
    quantity: int


class Order(msgspec.Struct):
    """What a message carries."""

    order_id: str
    customer_id: str
    amount: str
    currency: str
    items: list[Item]
    note: str
