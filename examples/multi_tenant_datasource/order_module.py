"""Puts it together: queue, context, resources, handler."""

from postroom import AwsClient, Consumer, RetryPolicy, Visibility

from .order_created_listener import OrderCreatedListener
from .order_service import OrderService
from .tenant_context import TenantContext, tenant_of
from .tenant_datasource_manager import TenantDataSourceManager
from .tenant_resources import TenantResources


def create_consumer(
    manager: TenantDataSourceManager,
    *,
    queue: str = "tenant-orders",
    client: AwsClient | None = None,
    visibility: Visibility = Visibility(),  # noqa: B008 - frozen
    retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
) -> Consumer[TenantContext, TenantResources]:
    """Make the consumer. Nothing is opened before it runs."""
    orders = Consumer(
        queue,
        context=tenant_of,  # whose message is this?
        resources=manager.resources,  # opened once per tenant, leased to each message, closed at the end
        client=client,
        visibility=visibility,
        retry=retry,
    )
    orders.handler(OrderCreatedListener(OrderService()))
    return orders
