"""The consumer: from a receive to a settled message."""

from postroom.consumer.batching import BatchContext
from postroom.consumer.consumer import Consumer
from postroom.consumer.context import MessageContext, current_message
from postroom.consumer.health import Health, Phase
from postroom.consumer.queues import Queues
from postroom.consumer.routing import Router, UnknownKind, by_attribute, by_field
from postroom.consumer.runner import run, serve
from postroom.consumer.settings import CallNext, Failure, Middleware
from postroom.consumer.statistics import ConsumerStatistics, QueueStatistics
from postroom.consumer.statuses import TenantState, TenantStatus
from postroom.consumer.tenants import Tenants

__all__ = [
    "BatchContext",
    "CallNext",
    "Consumer",
    "ConsumerStatistics",
    "Failure",
    "Health",
    "MessageContext",
    "Middleware",
    "Phase",
    "QueueStatistics",
    "Queues",
    "Router",
    "TenantState",
    "TenantStatus",
    "Tenants",
    "UnknownKind",
    "by_attribute",
    "by_field",
    "current_message",
    "run",
    "serve",
]
