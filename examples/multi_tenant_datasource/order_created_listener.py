"""The handler: typed payload, typed context, typed resources."""

from postroom import MessageContext

from .order_created_event import OrderCreatedEvent
from .order_service import OrderService
from .tenant_context import TenantContext
from .tenant_resources import TenantResources


class OrderCreatedListener:
    """Passes each order to the order service, with the database of its own tenant.

    A function decorated with ``@consumer.handler`` would do; an object is handy when the handler needs something.
    """

    def __init__(self, order_service: OrderService) -> None:
        self._order_service = order_service

    async def __call__(self, order: OrderCreatedEvent, ctx: MessageContext[TenantContext, TenantResources]) -> None:
        """Handle one message. It is acknowledged when this returns, and seen again when this raises."""
        await self._order_service.process_order(order, ctx.context.tenant_id, ctx.resources.data_source)
