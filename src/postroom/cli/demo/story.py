"""What the demo sends, and what must have come of it."""

import json
from dataclasses import dataclass
from typing import Any, cast

from postroom.message import MessageAttribute, OutgoingMessage


@dataclass(frozen=True)
class Order:
    """One message of the example."""

    order_id: str
    customer_id: str
    amount: float
    tenant_id: str | None
    region: str | None = None
    remark: str = ""

    @property
    def body(self) -> str:
        """The message body, as the example's README has it."""
        fields = {"orderId": self.order_id, "customerId": self.customer_id, "amount": self.amount}
        return json.dumps(fields, separators=(",", ":"))

    @property
    def attributes(self) -> dict[str, str]:
        """The message attributes that say whose it is."""
        named = {"tenantId": self.tenant_id, "region": self.region}
        return {name: value for name, value in named.items() if value is not None}

    def outgoing(self) -> OutgoingMessage:
        """Return what is sent."""
        attributes = {name: MessageAttribute("String", string_value=value) for name, value in self.attributes.items()}
        return OutgoingMessage(body=self.body, message_attributes=attributes)

    def command(self, queue_url: str, endpoint_url: str) -> str:
        """Return the ``aws`` command line that sends it, ready to paste."""
        lines = ["aws sqs send-message", f"--queue-url {queue_url}", f"--message-body '{self.body}'"]
        if self.attributes:
            shown = {name: {"DataType": "String", "StringValue": value} for name, value in self.attributes.items()}
            lines.append(f"--message-attributes '{json.dumps(shown)}'")
        return " \\\n  ".join([*lines, f"--endpoint-url {endpoint_url}"])


ORDERS = (
    Order("order-001", "cust-123", 99.99, "tenant-a", "us-east-1", "tenant A"),
    Order("order-002", "cust-456", 149.99, "tenant-b", "eu-west-1", "tenant B"),
    Order("order-003", "cust-789", 199.99, "tenant-a", "us-east-1", "tenant A again: its datasource is open already"),
    Order("order-999", "cust-999", 99.99, None, None, "no tenant attributes"),
    Order("order-998", "cust-998", 99.99, "tenant-c", "us-east-1", "a tenant whose database is down"),
)
ROWS = {"tenant-a": ["order-001", "order-003"], "tenant-b": ["order-002"]}
"""What must be in each tenant's database."""
DEAD = {"order-998", "order-999"}
"""What must be in the dead-letter queue."""


@dataclass(frozen=True)
class Finding:
    """One thing that was read back, beside what it must be."""

    what: str
    found: Any
    expected: Any

    @property
    def shown(self) -> str:
        """What was found, for people."""
        several = isinstance(self.expected, list | set)
        return ", ".join(sorted(cast("list[str]", self.found))) if several else str(self.found)

    @property
    def right(self) -> bool:
        """Whether it is as it must be."""
        return bool(self.found == self.expected)
