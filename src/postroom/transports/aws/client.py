"""The SQS client that consumers share."""

import asyncio
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

from postroom.checking import check_endpoint, check_flag, check_text, shown
from postroom.errors import ClosedError, ConfigurationError, NotOpenError
from postroom.transports.aws.settings import ClientSettings
from postroom.transports.aws.statistics import ClientStatistics

if TYPE_CHECKING:
    from postroom.transports.aws.queue import AwsQueue
    from postroom.transports.aws.regions import Regions


class AwsClient:
    """A connection to Amazon SQS, shared by any number of consumers.

    Credentials, region and endpoint are found as every AWS SDK finds them: environment, configuration files, roles,
    single sign-on; ``AWS_ENDPOINT_URL_SQS`` points it to a local server. Nothing is read or opened, and nothing of
    AWS is imported, before ``async with``. Entering again counts; the last exit closes it, and the queues that it
    opened. Entered after that, it opens again.

    Args:
        region: the region of queues that are opened by their mere name; None for AWS_DEFAULT_REGION, AWS_REGION, or
            the profile's. A queue that is named by its URL or ARN is used in the region that this says.
        endpoint_url: where SQS is; None for the environment's, or AWS itself.
        profile: a profile of the AWS configuration files.
        session: an ``aiobotocore.session.AioSession`` to take credentials and configuration from.
        config: an ``aiobotocore.config.AioConfig`` with further settings (proxies, FIPS, dual-stack, ...), which
            win over those named here.
        verify: False, or the path of a CA bundle, as botocore takes it.
        connections: receives outstanding at once on each queue that is opened. Deletes may be as many beside them,
            and so may heartbeats and sends, so that none waits for a long poll, or for deletes that hang.
        connect_timeout: seconds to connect.
        read_timeout: seconds of silence after which a call has failed; above the 20 s of a long poll.
        max_attempts: attempts of each call, the first one included, in botocore's ``standard`` retry mode.
        hot_path: whether receives, batch deletes and visibility batches may take the short way past botocore.

    Raises:
        ConfigurationError: an option cannot work; when entered: the profile or the endpoint does not exist.
        AccessDenied: when entered: the credentials cannot be read.
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
        if endpoint_url is not None:
            check_endpoint("AwsClient(endpoint_url=...)", endpoint_url)
        if region is not None:
            check_text("AwsClient(region=...)", region, 'region="eu-west-1"')
        if profile is not None:
            check_text("AwsClient(profile=...)", profile, 'profile="dev"')
        if verify is not None and not isinstance(cast("object", verify), bool | str):
            text = "AwsClient(verify=...) takes True, False or the path of a file with certificates"
            raise ConfigurationError(f"{text}; got {shown(verify)}")
        _check_sdk("config", config, "merge", "aiobotocore.config.AioConfig(...)")
        check_flag("AwsClient(hot_path=...)", hot_path)
        self._settings = ClientSettings(
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
        self._regions: Regions | None = None
        self._was_open = False

    async def __aenter__(self) -> Self:
        self._users += 1  # before the wait: the opener may leave again before those who wait here run
        try:
            async with self._opening:
                if self._regions is None:
                    # What speaks to AWS is loaded by who opens a client, not by who imports the package.
                    from postroom.transports.aws.regions import open_regions  # noqa: PLC0415

                    self._regions = await open_regions(self._settings)
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
        if self._users or self._regions is None:
            return
        regions, self._regions = self._regions, None
        self._was_open = True
        self._opening = asyncio.Lock()  # the next event loop needs one of its own
        await regions.aclose()

    async def queue(self, name: str) -> "AwsQueue":
        """Open a queue by name, URL or ARN: find its URL and read its attributes once.

        A URL or an ARN says the region, and an ARN the account: that queue is used, or none. The permissions
        ``sqs:GetQueueUrl`` and ``sqs:GetQueueAttributes`` are used if they are there. Without the second,
        ``QueueInfo.attributes_known`` is False and one warning says what is not known; the first is needed for a mere
        name only.

        Raises:
            QueueNotFound: it does not exist in that region and account.
            AccessDenied: credentials or the region are missing, credentials have expired, or a permission is missing.
            ConfigurationError: it is not the name of a queue, or the client's endpoint leads to another region.
            NotOpenError, ClosedError: it was called outside of ``async with client:``.
        """
        return await self._opened().queue(name)

    def statistics(self) -> ClientStatistics:
        """Return a snapshot of what the client has done since it was opened.

        Raises:
            NotOpenError, ClosedError: it was called outside of ``async with client:``.
        """
        return self._opened().statistics()

    def _opened(self) -> "Regions":
        if self._regions is not None:
            return self._regions
        if self._was_open:
            raise ClosedError("this AwsClient is closed: its last `async with` is over")
        raise NotOpenError("this AwsClient is not open; write `async with AwsClient(...) as client:` around its use")

    def __repr__(self) -> str:
        state = "open" if self._regions is not None else "not open"
        settings = self._settings
        return f"AwsClient(region={settings.region!r}, endpoint_url={settings.endpoint_url!r}, {state})"


def _check_sdk(name: str, value: Any, method: str, example: str) -> None:
    """Refuse what is none of aiobotocore's own objects, without importing it."""
    if value is not None and not callable(getattr(value, method, None)):
        raise ConfigurationError(f"AwsClient({name}=...) takes {example}; got {shown(value)}")


_shared: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[AwsClient]]] = (
    weakref.WeakKeyDictionary()
)


def default_client() -> AwsClient:
    """Return the client that everything in the running event loop shares.

    It is made, with no options, when none is held. Each user enters it, and none needs to know of the others.

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
