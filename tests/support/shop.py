"""The least of a shop: a tenant that its id alone tells, and an order."""

from dataclasses import dataclass

from postroom.message import Message


@dataclass(frozen=True)
class Tenant:
    """The context of the tests."""

    tenant_id: str


@dataclass(frozen=True)
class Order:
    """The payload of the tests."""

    order_id: str


def tenant_of(message: Message) -> str:
    """Return the tenant of a message."""
    return message.attributes["tenantId"]
