"""The resources: what a handler gets for its tenant."""

from dataclasses import dataclass
from typing import Protocol

from .order_created_event import OrderCreatedEvent


class TenantDataSource(Protocol):
    """One tenant's database, as the order service sees it."""

    @property
    def name(self) -> str:
        """The name, for the log."""
        ...

    async def save_order(self, order: OrderCreatedEvent) -> bool:
        """Save an order. Returns False if it is there already: SQS delivers at least once, not exactly once."""
        ...


@dataclass(frozen=True)
class TenantResources:
    """Everything that belongs to one tenant. Opened once, leased to each of its messages, closed once."""

    data_source: TenantDataSource
