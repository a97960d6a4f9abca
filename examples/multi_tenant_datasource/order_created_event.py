"""The payload: what happened?"""

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class OrderCreatedEvent:
    """An order was created. In JSON: ``{"orderId": "order-001", "customerId": "cust-123", "amount": 99.99}``."""

    order_id: str
    customer_id: str
    amount: Decimal
