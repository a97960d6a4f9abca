"""Amazon SQS."""

from postroom.transports.aws.client import AwsClient, default_client
from postroom.transports.aws.statistics import ClientStatistics

__all__ = ["AwsClient", "ClientStatistics", "default_client"]
