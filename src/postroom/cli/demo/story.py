"""What the demo sends, and what must have come of it."""

import json
import shlex
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

from postroom.message import MessageAttribute, OutgoingMessage

Row = tuple[str, str, Decimal]
"""Order id, customer id and amount, as they stand in a database."""


@dataclass(frozen=True)
class Order:
    """One message of the example."""

    order_id: str
    customer_id: str
    amount: Decimal
    tenant_id: str | None
    region: str | None = None
    remark: str = ""

    @property
    def body(self) -> str:
        """The message body, as the example's README has it."""
        return f'{{"orderId":"{self.order_id}","customerId":"{self.customer_id}","amount":{self.amount}}}'

    @property
    def row(self) -> Row:
        """What must stand in the tenant's database."""
        return self.order_id, self.customer_id, self.amount

    @property
    def attributes(self) -> dict[str, str]:
        """The message attributes that name its tenant."""
        named = {"tenantId": self.tenant_id, "region": self.region}
        return {name: value for name, value in named.items() if value is not None}

    def outgoing(self) -> OutgoingMessage:
        """Return what is sent."""
        attributes = {name: MessageAttribute("String", string_value=value) for name, value in self.attributes.items()}
        return OutgoingMessage(body=self.body, message_attributes=attributes)

    def command(self, queue_url: str, endpoint_url: str | None) -> str:
        """Return the ``aws`` command line that sends it, ready to paste."""
        lines = ["aws sqs send-message", f"--queue-url {shlex.quote(queue_url)}"]
        lines.append(f"--message-body {shlex.quote(self.body)}")
        if self.attributes:
            shown = {name: {"DataType": "String", "StringValue": value} for name, value in self.attributes.items()}
            lines.append(f"--message-attributes {shlex.quote(json.dumps(shown))}")
        if endpoint_url is not None:
            lines.append(f"--endpoint-url {shlex.quote(endpoint_url)}")
        return " \\\n  ".join(lines)


SERVED = (
    Order("order-001", "cust-123", Decimal("99.99"), "tenant-a", "us-east-1", "tenant A"),
    Order("order-002", "cust-456", Decimal("149.99"), "tenant-b", "eu-west-1", "tenant B"),
    Order("order-003", "cust-789", Decimal("199.99"), "tenant-a", "us-east-1", "tenant A again: a pool hit"),
)
"""What must reach its tenant's database."""
NOBODYS = Order("order-999", "cust-999", Decimal("99.99"), None, None, "no tenant attributes")
"""What must reach the dead-letter queue: trying it again cannot help."""
REASON = "Missing required tenant attributes"
"""What it must carry there."""
DOWN = Order("order-998", "cust-998", Decimal("99.99"), "tenant-c", "us-east-1", "a tenant with its database down")
"""What must be kept until the database is back: in the queue, or in the dead-letter queue when its receives are up."""
FAILING = (NOBODYS, DOWN)


@dataclass(frozen=True)
class Finding:
    """One thing that was read back, beside what it must be."""

    what: str
    found: Any
    expected: Any

    @property
    def right(self) -> bool:
        """Whether it is as it must be."""
        return bool(self.found == self.expected)

    def __str__(self) -> str:
        wrong = "" if self.right else f" (must be {_shown(self.expected)})"
        return f"{self.what}: {_shown(self.found)}{wrong}"


def rows_of(tenant_id: str) -> list[Row] | None:
    """Return what must be in a tenant's database; None: no table at all."""
    return [order.row for order in SERVED if order.tenant_id == tenant_id] or None


def _shown(value: Any) -> str:
    """Return a value for people: rows line up their fields, several things are listed."""
    if value is None:
        return "no table"
    if isinstance(value, set):
        value = tuple(sorted(cast("set[str]", value)))
    if not isinstance(value, list | tuple):
        return str(value)
    parts = cast("list[Any]", value)
    separator = "; " if isinstance(value, list) else " " if any(isinstance(part, Decimal) for part in parts) else ", "
    return separator.join(map(_shown, parts)) or "none"
