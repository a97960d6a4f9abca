"""Puts the parts together: one consumer, one pool of tenant databases."""

from collections.abc import Iterable

from postroom import (
    Consumer,
    ContextError,
    Failure,
    PayloadError,
    PoolLimits,
    Reject,
    ResourcePool,
    RetryPolicy,
    Visibility,
)
from postroom.events import Observer
from postroom.payloads import decoder_for
from postroom.transports import Client

from .order_created_event import OrderCreatedEvent
from .order_created_listener import OrderCreatedListener
from .order_service import OrderService
from .tenant_context import TenantContext, resolve_tenant
from .tenant_datasource_manager import TenantDataSourceManager
from .tenant_resources import TenantResources

Orders = Consumer[TenantContext, TenantResources]


def reject_what_cannot_get_better(failure: Failure) -> None:
    """Send a message that only its sender can mend straight to the dead-letter queue."""
    if isinstance(failure.error, ContextError | PayloadError):
        raise Reject(str(failure.error)) from failure.error


def create_orders(
    manager: TenantDataSourceManager,
    *,
    queue: str = "tenant-orders",
    client: Client | None = None,
    retry: RetryPolicy = RetryPolicy(base=1, cap=60),  # noqa: B008 - frozen
    observers: Iterable[Observer] = (),
) -> Orders:
    """Make the consumer of the service. Nothing is opened before it is started."""
    databases = ResourcePool(
        manager.resources,
        weight=manager.connections,
        check=manager.check,
        limits=PoolLimits(budget=50, idle=600, max_age=3600),
        observers=observers,
        name="tenant databases",
    )
    orders = Consumer(
        queue,
        context=resolve_tenant,
        resources=databases,
        payload=decoder_for(OrderCreatedEvent, rename="camel"),
        visibility=Visibility(timeout=30),
        retry=retry,
        on_error=reject_what_cannot_get_better,
        observers=observers,
        client=client,
    )
    orders.handler(OrderCreatedListener(OrderService()))
    return orders
