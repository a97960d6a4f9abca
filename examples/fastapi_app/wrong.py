"""Consumers that must not ship: ``postroom check`` says of each what is wrong, and what to write instead."""

from typing import Any

from examples.fastapi_app.main import Order, Settings, Tenant

from postroom import Concurrency, Consumer, MessageContext, PoolLimits, RetryPolicy, Shutdown, Visibility
from postroom.datasources import Registry, asyncpg_pool

LIMITED = Concurrency(handler_timeout=10)


def _with_handler(consumer: Consumer[Tenant, Any]) -> Consumer[Tenant, Any]:
    @consumer.handler
    async def handle(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
        raise NotImplementedError

    return consumer


def misspelt() -> Consumer[Tenant, Any]:
    """The queue does not exist."""
    return _with_handler(Consumer("ordres", context=Tenant, concurrency=LIMITED))


def twice() -> Consumer[Tenant, Any]:
    """Handlers may run for longer than the message is theirs."""
    slow = Concurrency(handler_timeout=60)
    visibility = Visibility(timeout=30, heartbeat=False)
    return _with_handler(Consumer("orders", context=Tenant, concurrency=slow, visibility=visibility))


def unpromised() -> Consumer[Tenant, Any]:
    """SQS moves a message to the dead letters before it has had its attempts."""
    return _with_handler(Consumer("orders", context=Tenant, concurrency=LIMITED, retry=RetryPolicy(attempts=20)))


def killed() -> Consumer[Tenant, Any]:
    """The platform kills the process before it has stopped."""
    return _with_handler(Consumer("orders", context=Tenant, concurrency=LIMITED, shutdown=Shutdown(within=60)))


def greedy() -> Consumer[Tenant, Any]:
    """All replicas together may open more connections than the server has."""
    databases = asyncpg_pool(Registry(Settings.from_environment().databases)).pool(limits=PoolLimits(budget=40))
    return _with_handler(Consumer("orders", context=Tenant, concurrency=LIMITED, resources=databases))


def mistyped() -> Consumer[Any, Any]:
    """The handler expects another context than the consumer makes."""
    consumer: Consumer[Any, Any] = Consumer("orders", context=Tenant, concurrency=LIMITED)

    @consumer.handler
    async def handle(order: Order, ctx: MessageContext[str, Any]) -> None:
        raise NotImplementedError

    return consumer
