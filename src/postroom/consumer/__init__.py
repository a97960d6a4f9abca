"""The consumer: from a receive to a settled message."""

from postroom.consumer.consumer import Consumer
from postroom.consumer.context import MessageContext, current_message
from postroom.consumer.health import Health, Phase
from postroom.consumer.runner import run, serve
from postroom.consumer.settings import CallNext, Failure, Middleware
from postroom.consumer.statistics import ConsumerStatistics
from postroom.consumer.tenants import Tenants, TenantState, TenantStatus

__all__ = [
    "CallNext",
    "Consumer",
    "ConsumerStatistics",
    "Failure",
    "Health",
    "MessageContext",
    "Middleware",
    "Phase",
    "TenantState",
    "TenantStatus",
    "Tenants",
    "current_message",
    "run",
    "serve",
]
