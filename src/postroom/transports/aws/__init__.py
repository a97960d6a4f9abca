"""Amazon SQS."""

from postroom.transports.aws.client import AwsClient, default_client
from postroom.transports.aws.connection import ClientStatistics

__all__ = ["AwsClient", "ClientStatistics", "default_client"]
