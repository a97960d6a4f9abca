"""The resources: what a handler gets for one tenant."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol


class TenantDataSource(Protocol):
    """One tenant's database, whatever it runs on."""

    @property
    def name(self) -> str:
        """What the database is called, such as ``tenant-a-us-east-1-db``."""
        ...

    async def save_order(self, order_id: str, customer_id: str, amount: Decimal) -> None:
        """Write an order. A second write of the same order changes nothing: SQS may deliver a message twice."""
        ...

    async def check(self) -> bool:
        """Return True when the database answers; raise what is wrong when it does not."""
        ...


@dataclass(frozen=True)
class TenantResources:
    """Everything that is leased for a tenant. A second resource, such as an API client, would be a field here."""

    data_source: TenantDataSource
