"""How messages come and go: one protocol, on Amazon SQS and in memory."""

from postroom.transports.aws import AwsClient, ClientStatistics, default_client
from postroom.transports.protocol import (
    Client,
    EntryFailure,
    Queue,
    QueueInfo,
    RedrivePolicy,
    SendResult,
    VisibilityChange,
)

__all__ = [
    "AwsClient",
    "Client",
    "ClientStatistics",
    "EntryFailure",
    "Queue",
    "QueueInfo",
    "RedrivePolicy",
    "SendResult",
    "VisibilityChange",
    "default_client",
]
