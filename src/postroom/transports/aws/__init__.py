"""Amazon SQS."""

from postroom.transports.aws.client import AwsClient, default_client

__all__ = ["AwsClient", "default_client"]
