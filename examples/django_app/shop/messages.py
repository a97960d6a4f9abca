"""What a message says. It knows nothing of Django, so any service can send it."""

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class Tenant:
    """The context: from the message attribute ``tenantId``."""

    tenant_id: str


@dataclass(frozen=True)
class OrderPlaced:
    """The payload."""

    number: str
    amount: Decimal
