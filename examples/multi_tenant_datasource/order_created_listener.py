"""The handler: typed payload, typed context, typed resources."""

from postroom import MessageContext

from .order_created_event import OrderCreatedEvent
from .order_service import OrderService
from .tenant_context import TenantContext
from .tenant_resources import TenantResources


class OrderCreatedListener:
    """Hands each order, with its own tenant's database, to the service. Any object with this ``__call__`` will do."""

    def __init__(self, service: OrderService) -> None:
        self._service = service

    async def __call__(self, order: OrderCreatedEvent, ctx: MessageContext[TenantContext, TenantResources]) -> None:
        """Handle one message."""
        await self._service.process_order(order, ctx.context, ctx.resources.data_source)
