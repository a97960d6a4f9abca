"""The business logic. It knows orders and databases, and nothing of queues."""

import logging

from .order_created_event import OrderCreatedEvent
from .tenant_resources import TenantDataSource

logger = logging.getLogger(__name__)


class OrderService:
    """Processes orders."""

    async def process_order(self, order: OrderCreatedEvent, tenant_id: str, data_source: TenantDataSource) -> None:
        """Save the order in the tenant's database."""
        logger.info(
            "Processing order %s for tenant %s using datasource %s", order.order_id, tenant_id, data_source.name
        )
        if not await data_source.save_order(order):
            logger.info("Order %s was there already", order.order_id)
