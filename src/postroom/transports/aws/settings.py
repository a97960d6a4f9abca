"""What an SQS client is made with."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from postroom.errors import ConfigurationError
from postroom.options import MAX_WAIT, check_count, check_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What an ``AwsClient`` was made with; see there."""

    region: str | None
    endpoint_url: str | None
    profile: str | None
    session: Any
    config: Any
    verify: bool | str | None
    connections: int
    connect_timeout: float
    read_timeout: float
    max_attempts: int
    hot_path: bool

    def __post_init__(self) -> None:
        check_count("AwsClient", "connections", self.connections)
        check_count("AwsClient", "max_attempts", self.max_attempts, limit="it counts the first attempt too")
        check_seconds("AwsClient", "connect_timeout", self.connect_timeout)
        if self.session is not None and self.profile is not None:
            raise ConfigurationError("AwsClient(profile=...) has no effect on a session: make the session with it")
        if self.endpoint_url is not None and urlsplit(self.endpoint_url).username is not None:
            raise ConfigurationError("AwsClient(endpoint_url=...) takes no user name or password: requests are signed")
        check_read_timeout(self.read_timeout)


def check_read_timeout(seconds: object) -> None:
    """Raise ``ConfigurationError`` for a read timeout that a long poll would run into."""
    if not isinstance(seconds, int | float) or not seconds > MAX_WAIT:
        raise ConfigurationError(
            f"AwsClient(read_timeout=...) must be above {MAX_WAIT} s, the longest long poll "
            f"(sqs-short-and-long-polling.html): a poll that times out here strands its messages; got {seconds!r}"
        )
