"""The payload: what happened?"""

from decimal import Decimal

import msgspec


class OrderCreatedEvent(msgspec.Struct, frozen=True, rename="camel"):
    """An order was created. In JSON: ``orderId``, ``customerId``, ``amount``.

    A pydantic model or a dataclass would do as well. Money is a ``Decimal``: 99.99 arrives digit by digit.
    """

    order_id: str
    customer_id: str
    amount: Decimal
