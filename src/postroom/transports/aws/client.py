"""The SQS client that consumers share."""

import asyncio
import os
import sys
import weakref
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from types import TracebackType
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit

from postroom.errors import ClosedError, ConfigurationError, NotOpenError, PostroomError
from postroom.options import MAX_WAIT
from postroom.transports.aws import conditions, wire
from postroom.transports.aws.connection import ClientStatistics, Connection
from postroom.transports.aws.errors import translate
from postroom.transports.aws.queue import AwsQueue


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
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
        if self.connections < 1:
            raise ConfigurationError(f"AwsClient(connections=...) takes a whole number from 1; got {self.connections}")
        if self.max_attempts < 1:
            raise ConfigurationError(
                f"AwsClient(max_attempts=...) counts the first attempt too, so at least 1; got {self.max_attempts}"
            )
        if self.session is not None and self.profile is not None:
            raise ConfigurationError("AwsClient(profile=...) has no effect on a session: make the session with it")
        if self.endpoint_url is not None and urlsplit(self.endpoint_url).username is not None:
            raise ConfigurationError("AwsClient(endpoint_url=...) takes no user name or password: requests are signed")
        _check_read_timeout(self.read_timeout)


def _check_read_timeout(seconds: float) -> None:
    if not seconds > MAX_WAIT:
        raise ConfigurationError(
            f"AwsClient(read_timeout=...) must be above {MAX_WAIT} s, the longest long poll "
            f"(sqs-short-and-long-polling.html): a poll that times out here strands its messages; got {seconds:g}"
        )


class AwsClient:
    """A connection to Amazon SQS, shared by any number of consumers.

    Credentials, region and endpoint are found as every AWS SDK finds them: environment, configuration files, roles,
    single sign-on; ``AWS_ENDPOINT_URL_SQS`` points it to a local server. Nothing is read or opened, and nothing of
    AWS is imported, before ``async with``. Entering again counts; the last exit closes it, and the queues that it
    opened. Entered after that, it opens anew.

    Args:
        region: the region; None for AWS_DEFAULT_REGION, the profile's, or AWS_REGION.
        endpoint_url: where SQS is; None for the environment's, or AWS itself.
        profile: a profile of the AWS configuration files.
        session: an ``aiobotocore.session.AioSession`` to take credentials and configuration from.
        config: an ``aiobotocore.config.AioConfig`` with further settings (proxies, FIPS, dual-stack, ...), which
            win over those named here.
        verify: False, or the path of a CA bundle, as botocore takes it.
        connections: receives outstanding at once over all queues. Deletes, heartbeats and sends have as many
            connections of their own, so that they never wait for a long poll.
        connect_timeout: seconds to connect.
        read_timeout: seconds of silence after which a call has failed; above the 20 s of a long poll.
        max_attempts: attempts of each call, the first one included, in botocore's ``standard`` retry mode.
        hot_path: whether receives, batch deletes and visibility batches may take the short way past botocore.

    Raises:
        ConfigurationError: an option cannot work; when entered: the profile or the endpoint does not exist.
        AccessDenied: when entered: no region is known.
    """

    def __init__(
        self,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        profile: str | None = None,
        session: Any = None,
        config: Any = None,
        verify: bool | str | None = None,
        connections: int = 50,
        connect_timeout: float = 5.0,
        read_timeout: float = 25.0,
        max_attempts: int = 3,
        hot_path: bool = True,
    ) -> None:
        self._settings = _Settings(
            region=region,
            endpoint_url=endpoint_url,
            profile=profile,
            session=session,
            config=config,
            verify=verify,
            connections=connections,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            max_attempts=max_attempts,
            hot_path=hot_path,
        )
        self._opening = asyncio.Lock()
        self._users = 0
        self._connection: Connection | None = None
        self._was_open = False

    async def __aenter__(self) -> Self:
        self._users += 1  # before the wait: the opener may leave again before whoever waits here runs
        try:
            async with self._opening:
                if self._connection is None:
                    self._connection = await _open(self._settings)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        self._users -= 1
        if self._users or self._connection is None:
            return
        connection, self._connection = self._connection, None
        self._was_open = True
        self._opening = asyncio.Lock()  # the next event loop needs one of its own
        await connection.aclose()

    async def queue(self, name: str) -> AwsQueue:
        """Open a queue by name, URL or ARN: find its URL and read its attributes once.

        A name or an ARN needs the permissions ``sqs:GetQueueUrl`` and ``sqs:GetQueueAttributes``, a URL the second
        only. An ARN names the account; region and endpoint are always the client's.

        Raises:
            QueueNotFound: it does not exist in the client's region, or not in that account.
            AccessDenied: credentials are missing or expired, or lack one of the permissions.
            NotOpenError, ClosedError: it was called outside of ``async with client:``.
        """
        connection = self._opened()
        subject = f"queue {wire.name_of(name)!r}"
        url = name if "://" in name else await _find_url(connection, name, subject)
        info = await connection.call(
            "GetQueueAttributes",
            wire.attribute_parameters(url),
            lambda answer: wire.queue_info_of(url, wire.read_attributes(answer)),
            subject=subject,
        )
        await connection.settle_path()
        return AwsQueue(connection, info)

    def statistics(self) -> ClientStatistics:
        """Return a snapshot of what the client has done since it was opened.

        Raises:
            NotOpenError, ClosedError: it was called outside of ``async with client:``.
        """
        return self._opened().statistics()

    def _opened(self) -> Connection:
        if self._connection is not None:
            return self._connection
        if self._was_open:
            raise ClosedError("this AwsClient is closed: its last `async with` is over")
        raise NotOpenError("this AwsClient is not open; write `async with AwsClient(...) as client:` around its use")

    def __repr__(self) -> str:
        state = "open" if self._connection is not None else "not open"
        settings = self._settings
        return f"AwsClient(region={settings.region!r}, endpoint_url={settings.endpoint_url!r}, {state})"


async def _find_url(connection: Connection, name: str, subject: str) -> str:
    parameters: wire.Parameters = {"QueueName": wire.name_of(name)}
    if name.startswith("arn:"):
        parameters["QueueOwnerAWSAccountId"] = _account_of(name)
    return await connection.call("GetQueueUrl", parameters, lambda answer: str(answer["QueueUrl"]), subject=subject)


def _account_of(arn: str) -> str:
    parts = arn.split(":")
    if len(parts) != 6 or parts[2] != "sqs":
        raise ConfigurationError(f"not the ARN of a queue (arn:aws:sqs:<region>:<account>:<name>): {arn!r}")
    return parts[4]


async def _open(settings: _Settings) -> Connection:
    async with AsyncExitStack() as stack:
        try:
            session = _session_of(settings)
            sqs = await stack.enter_async_context(
                session.create_client(
                    "sqs",
                    region_name=_region_of(settings, session),
                    endpoint_url=settings.endpoint_url,
                    verify=settings.verify,
                    config=_config_of(settings),
                )
            )
            credentials = await session.get_credentials()
        except PostroomError:
            raise
        except ValueError as error:  # botocore's word for an endpoint that is not a URL
            raise ConfigurationError(f"opening the SQS client: {error}") from error
        except Exception as error:
            raise translate(error, operation="opening the SQS client") from error
        _check_read_timeout(sqs.meta.config.read_timeout)
        against = _objections(settings, session, sqs, credentials)
        return Connection(sqs, credentials, stack.pop_all(), calls=settings.connections, objections=against)


def _objections(settings: _Settings, session: Any, sqs: Any, credentials: Any) -> list[str]:
    if not settings.hot_path:
        return ["AwsClient(hot_path=False)"]
    found = list(conditions.objections(session, sqs, verify=settings.verify))
    if credentials is None:
        found.append("there are no credentials")
    return found


def _session_of(settings: _Settings) -> Any:
    # Importing aiobotocore takes most of a second: only who opens a client pays for it.
    from aiobotocore.session import AioSession  # noqa: PLC0415

    if settings.session is None:
        return AioSession(profile=settings.profile)
    if isinstance(settings.session, AioSession):
        return settings.session
    raise ConfigurationError(
        f"AwsClient(session=...) takes an aiobotocore.session.AioSession; got {type(settings.session).__name__}"
    )


def _region_of(settings: _Settings, session: Any) -> str | None:
    # botocore alone among the SDKs does not know AWS_REGION, which ECS, Lambda and people set.
    region: str | None = settings.region or session.get_config_variable("region") or os.environ.get("AWS_REGION")
    return region


def _config_of(settings: _Settings) -> Any:
    from aiobotocore.config import AioConfig  # noqa: PLC0415

    given = cast("dict[str, Any]", vars(settings.config)) if settings.config is not None else {}
    lost_in_merging = ("connector_args", "http_session_cls")  # by older versions of aiobotocore
    options: dict[str, Any] = {
        **{name: given[name] for name in lost_in_merging if name in given},
        "retries": {"mode": "standard", "total_max_attempts": settings.max_attempts},
        "max_pool_connections": 2 * settings.connections,
        "connect_timeout": settings.connect_timeout,
        "read_timeout": settings.read_timeout,
        "parameter_validation": False,
        "user_agent": _user_agent(),
    }
    ours: Any = AioConfig(**options)
    return ours if settings.config is None else ours.merge(settings.config)


def _user_agent() -> str:
    python = ".".join(map(str, sys.version_info[:3]))
    return f"postroom/{version('postroom')} aiobotocore/{version('aiobotocore')} python/{python}"


_shared: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[AwsClient]]] = (
    weakref.WeakKeyDictionary()
)


def default_client() -> AwsClient:
    """Return the client that everything in the running event loop shares.

    It is made, with no options, when nobody holds one. Whoever uses it enters it; nobody needs to know who else does.

    Raises:
        RuntimeError: no event loop is running.
    """
    loop = asyncio.get_running_loop()
    reference = _shared.get(loop)
    client = None if reference is None else reference()
    if client is None:
        client = AwsClient()
        _shared[loop] = weakref.ref(client)
    return client
