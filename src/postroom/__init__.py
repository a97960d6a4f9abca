"""postroom: consume Amazon SQS in multi-tenant systems.

For each message it resolves a typed context (which tenant's message is this?), leases that context's typed resources
(their real database), decodes and validates the payload, calls the handler, and settles the message.

A name is imported when it is first used, so that the import of the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from postroom.consumer import (
        BatchContext,
        CallNext,
        Consumer,
        ConsumerStatistics,
        Failure,
        Health,
        MessageContext,
        Middleware,
        Phase,
        Queues,
        QueueStatistics,
        Router,
        Tenants,
        TenantState,
        TenantStatus,
        UnknownKind,
        by_attribute,
        by_field,
        current_message,
        run,
        serve,
    )
    from postroom.errors import (
        AccessDenied,
        AlreadyHandled,
        ClosedError,
        ConfigurationError,
        ContextError,
        DecodeError,
        Drop,
        HandlerTimeout,
        InvalidReceiptHandle,
        InvalidRequest,
        MessageError,
        MissingAttribute,
        NotOpenError,
        OwnershipLost,
        PayloadError,
        PoolExhaustedError,
        PostroomError,
        QueueNotFound,
        Reject,
        ResourceError,
        ResourceOpenError,
        ResourceUnhealthyError,
        Retry,
        SendFailed,
        ServiceUnavailable,
        Throttled,
        TransportError,
        UnknownTenant,
        Unsent,
        ValidationError,
    )
    from postroom.fleet import Fleet
    from postroom.message import Message, MessageAttribute, OutgoingMessage
    from postroom.options import (
        Call,
        Concurrency,
        Faults,
        OpenBackoff,
        Polling,
        PoolLimits,
        PoolTimeouts,
        RetryPolicy,
        Shutdown,
        Visibility,
    )
    from postroom.payloads import attribute
    from postroom.resources import Lease, OpenFailure, PoolStatistics, ResourcePool, is_outage
    from postroom.sending import Sender, SendRetry, Signing
    from postroom.transactions import SyncTransactional, Transactional, TransactionRolledBack
    from postroom.transports import AwsClient
    from postroom.types import AckMode, ExitCode, OnInvalid, Settlement, StopReason
__all__ = [
    "AccessDenied",
    "AckMode",
    "AlreadyHandled",
    "AwsClient",
    "BatchContext",
    "Call",
    "CallNext",
    "ClosedError",
    "Concurrency",
    "ConfigurationError",
    "Consumer",
    "ConsumerStatistics",
    "ContextError",
    "DecodeError",
    "Drop",
    "ExitCode",
    "Failure",
    "Faults",
    "Fleet",
    "HandlerTimeout",
    "Health",
    "InvalidReceiptHandle",
    "InvalidRequest",
    "Lease",
    "Message",
    "MessageAttribute",
    "MessageContext",
    "MessageError",
    "Middleware",
    "MissingAttribute",
    "NotOpenError",
    "OnInvalid",
    "OpenBackoff",
    "OpenFailure",
    "OutgoingMessage",
    "OwnershipLost",
    "PayloadError",
    "Phase",
    "Polling",
    "PoolExhaustedError",
    "PoolLimits",
    "PoolStatistics",
    "PoolTimeouts",
    "PostroomError",
    "QueueNotFound",
    "QueueStatistics",
    "Queues",
    "Reject",
    "ResourceError",
    "ResourceOpenError",
    "ResourcePool",
    "ResourceUnhealthyError",
    "Retry",
    "RetryPolicy",
    "Router",
    "SendFailed",
    "SendRetry",
    "Sender",
    "ServiceUnavailable",
    "Settlement",
    "Shutdown",
    "Signing",
    "StopReason",
    "SyncTransactional",
    "TenantState",
    "TenantStatus",
    "Tenants",
    "Throttled",
    "TransactionRolledBack",
    "Transactional",
    "TransportError",
    "UnknownKind",
    "UnknownTenant",
    "Unsent",
    "ValidationError",
    "Visibility",
    "attribute",
    "by_attribute",
    "by_field",
    "current_message",
    "is_outage",
    "run",
    "serve",
]

_HOMES: Final = {
    "consumer": (
        "BatchContext CallNext Consumer ConsumerStatistics Failure Health MessageContext Middleware Phase Queues "
        "QueueStatistics Router Tenants TenantState TenantStatus UnknownKind by_attribute by_field current_message run "
        "serve"
    ),
    "fleet": "Fleet",
    "message": "Message MessageAttribute OutgoingMessage",
    "options": "Call Concurrency Faults OpenBackoff Polling PoolLimits PoolTimeouts RetryPolicy Shutdown Visibility",
    "payloads": "attribute",
    "resources": "Lease OpenFailure PoolStatistics ResourcePool is_outage",
    "sending": "SendRetry Sender Signing",
    "transactions": "SyncTransactional TransactionRolledBack Transactional",
    "transports": "AwsClient",
    "types": "AckMode ExitCode OnInvalid Settlement StopReason",
}
"""Where names are found that are not errors."""
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names.split()}


if not TYPE_CHECKING:  # type checkers would be told that every name exists

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"postroom.{_HOME_OF.get(name, 'errors')}"), name)
        return value


def __dir__() -> list[str]:
    return __all__
