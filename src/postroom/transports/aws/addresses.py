"""What the name of a queue says: a name, a URL or an ARN.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-queue-message-identifiers.html and
https://docs.aws.amazon.com/general/latest/gr/sqs-service.html
"""

import ipaddress
import itertools
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from postroom.errors import ConfigurationError

_REGION: Final = re.compile(r"[a-z]{2,4}(-[a-z]+)+-\d+")
_ACCOUNT: Final = re.compile(r"\d{12}")
_PARTITIONS: Final = {
    "cn-": "aws-cn",
    "us-gov-": "aws-us-gov",
    "us-iso-": "aws-iso",
    "us-isob-": "aws-iso-b",
    "eu-isoe-": "aws-iso-e",
    "us-isof-": "aws-iso-f",
    "eusc-": "aws-eusc",
}
_FIRST_REGION: Final = "us-east-1"
"""The region of the oldest URLs, which name none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a queue is, as far as its name says so."""

    name: str
    url: str | None = None
    region: str | None = None
    account: str | None = None
    partition: str = "aws"

    @property
    def arn(self) -> str:
        """The ARN; empty if the region or the account is not known."""
        if self.region is None or self.account is None:
            return ""
        return f"arn:{self.partition}:sqs:{self.region}:{self.account}:{self.name}"


def address_of(name: str) -> Address:
    """Return what a name, a URL or an ARN says.

    Raises:
        ConfigurationError: it is none of them.
    """
    if name.startswith("arn:"):
        return _of_arn(name)
    if "://" in name:
        return _of_url(name)
    return Address(name=name)


def _of_arn(arn: str) -> Address:
    parts = arn.split(":")
    if len(parts) != 6 or parts[2] != "sqs" or not parts[5]:
        raise ConfigurationError(f"not the ARN of a queue (arn:aws:sqs:<region>:<account>:<name>): {arn!r}")
    return Address(name=parts[5], region=parts[3] or None, account=parts[4] or None, partition=parts[1])


def _of_url(url: str) -> Address:
    try:
        parts = [part for part in urlsplit(url).path.split("/") if part]
    except ValueError:  # half of an IPv6 address
        parts = []
    if not parts:
        raise ConfigurationError(f"not the URL of a queue (https://<host>/<account>/<name>): {url!r}")
    account = parts[-2] if len(parts) > 1 and _ACCOUNT.fullmatch(parts[-2]) else None
    region = region_of_url(url)
    return Address(name=parts[-1], url=url, region=region, account=account, partition=_partition_of(region))


def region_of_url(url: str) -> str | None:
    """Return the region that a URL of SQS names; None if it names none.

    Known are the regional, FIPS, dual-stack and VPC endpoints of every partition
    (``sqs.eu-west-1.amazonaws.com``, ``sqs-fips.us-west-2.api.aws``, ``vpce-1.sqs.cn-north-1.vpce.amazonaws.com.cn``),
    the older ones (``eu-west-1.queue.amazonaws.com``, ``queue.amazonaws.com``), and those of emulators that follow
    them, by host or by path (``/queue/eu-west-1/...``).
    """
    try:
        parts = urlsplit(url)
        labels = (parts.hostname or "").lower().split(".")
    except ValueError:  # a port or an IPv6 address that is none
        return None
    for service, region in itertools.pairwise(labels):
        if service in {"sqs", "sqs-fips"} and _REGION.fullmatch(region):
            return region
        if region == "queue" and _REGION.fullmatch(service):
            return service
    if labels[0] == "queue" and len(labels) > 1:
        return _FIRST_REGION
    path = parts.path.split("/")
    return path[2] if len(path) > 3 and path[1] == "queue" and _REGION.fullmatch(path[2]) else None


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _partition_of(region: str | None) -> str:
    return next((name for start, name in _PARTITIONS.items() if (region or "").startswith(start)), "aws")
