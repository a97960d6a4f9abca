"""What the business does with an order. Knows nothing of queues."""

import logging

from .order_created_event import OrderCreatedEvent
from .tenant_context import TenantContext
from .tenant_resources import TenantDataSource

log = logging.getLogger("orders")


class OrderService:
    """Processes orders in the database of the tenant that they belong to."""

    async def process_order(
        self, order: OrderCreatedEvent, tenant: TenantContext, data_source: TenantDataSource
    ) -> None:
        """Write an order to a tenant's database."""
        log.info(
            "Processing order %s for tenant %s using datasource %s", order.order_id, tenant.tenant_id, data_source.name
        )
        await data_source.save_order(order.order_id, order.customer_id, order.amount)
