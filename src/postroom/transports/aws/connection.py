"""What the queues of one region share: the botocore client, the hot path, and who may use them at once."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import msgspec

from postroom.errors import ServiceUnavailable
from postroom.log_fields import Log, Step
from postroom.transports.aws import answers
from postroom.transports.aws.conditions import Capture, Endpoint
from postroom.transports.aws.errors import NOT_SQS, Subject, clock_skew, translate
from postroom.transports.aws.hot_path import HotPath
from postroom.transports.aws.http import HttpPool
from postroom.transports.aws.room import Room
from postroom.transports.aws.statistics import ClientStatistics
from postroom.transports.aws.wire import Parameters
from postroom.transports.calls import Calls

T = TypeVar("T")

log: Final = Log("postroom.transports", Step.CLIENT)

_METHODS: Final = {
    "ReceiveMessage": "receive_message",
    "DeleteMessageBatch": "delete_message_batch",
    "ChangeMessageVisibilityBatch": "change_message_visibility_batch",
    "SendMessageBatch": "send_message_batch",
    "GetQueueUrl": "get_queue_url",
    "GetQueueAttributes": "get_queue_attributes",
}
_LONGEST_BACKOFF: Final = 20.0  # seconds between two attempts in botocore's standard retry mode
_POLLS_WAIT: Final = (
    "A receive waits for more than %g s for a connection: %d receives are out by the client's ordinary path, and "
    "AioConfig(max_pool_connections=...) allows no more; messages arrive late until it is raised"
)


@dataclass(slots=True, kw_only=True, repr=False)
class Request:
    """One call of SQS. Its text never shows the parameters: bodies are the tenant's."""

    operation: str
    parameters: Parameters
    subject: Subject

    def __str__(self) -> str:
        return f"{self.operation} on {self.subject.text}"


class Connection:
    """Makes calls to one region, by the hot path where it may, and raises postroom's errors.

    Args:
        sqs: the botocore client.
        credentials: of the botocore session; None if it has none.
        stack: closes the botocore client.
        objections: what speaks against the hot path; empty if nothing does so far.
    """

    def __init__(self, sqs: Any, credentials: Any, stack: AsyncExitStack, *, objections: Sequence[str]) -> None:
        self._sqs = sqs
        self._credentials = credentials
        self._stack = stack
        self._calls = Calls("AwsClient")
        config = sqs.meta.config
        self._polls = Room(_most_polls(config.max_pool_connections), _POLLS_WAIT)
        self._timeouts = (float(config.connect_timeout), float(config.read_timeout))
        attempts: int = config.retries.get("total_max_attempts", 1)
        self._longest_call = attempts * (sum(self._timeouts) + _LONGEST_BACKOFF)
        self._capture: Capture | None = None
        self._hot_path: HotPath | None = None
        self._objections = tuple(objections)
        if objections:
            _log_path(objections)
        else:
            self._capture = Capture(sqs.meta.events)
        answers.watch(sqs.meta.events)

    @property
    def region(self) -> str:
        """The region that requests are signed for."""
        return str(self._sqs.meta.region_name)

    @property
    def endpoint_url(self) -> str:
        """Where requests go."""
        return str(self._sqs.meta.endpoint_url)

    @property
    def has_credentials(self) -> bool:
        """Whether there is anything to sign with."""
        return self._credentials is not None

    @property
    def rotating(self) -> bool:
        """Whether the credentials are temporary ones, which are replaced in time."""
        # Those that botocore refreshes do not like to be asked for their token outside of a refresh.
        return hasattr(self._credentials, "refresh_needed") or getattr(self._credentials, "token", None) is not None

    def statistics(self) -> ClientStatistics:
        """Return a snapshot of what happened so far."""
        hot = self._hot_path
        return ClientStatistics(
            hot_path=hot is not None,
            objections=self._objections,
            hot_calls=0 if hot is None else hot.hits,
            hot_misses=0 if hot is None else hot.misses,
            hot_connections=0 if hot is None else hot.connections,
        )

    async def call(self, request: Request, read: Callable[[Parameters], T], *, room: Room | None = None) -> T:
        """Make a call by the ordinary client, its retries included, and return what ``read`` makes of the answer."""
        return await self._calls.make(request, self._call, request, read, None, room)

    async def call_hot(
        self, request: Request, read: Callable[[Parameters], T], decode: Callable[[bytes], T], *, room: Room
    ) -> T:
        """Make a call by the hot path; by the ordinary client if that misses or may not be taken."""
        return await self._calls.make(request, self._call, request, read, decode, room)

    async def settle_path(self) -> None:
        """Decide about the hot path, once botocore's first request showed where it leads."""
        capture = self._capture
        if capture is None or not (capture.endpoint or capture.objections):
            return
        self._capture = None  # before the wait below: one decides
        endpoint = capture.endpoint
        self._objections = capture.objections
        if endpoint is not None:
            try:
                tls = await asyncio.to_thread(default_tls) if endpoint.secure else None
            except BaseException:
                self._capture = capture  # who was to decide was cancelled: the next one does
                raise
            # The client may have been closed during the wait: a pool that is made now would never
            # be closed.
            if not self._calls.closed:
                self._hot_path = self._new_hot_path(endpoint, tls)
        _log_path(self._objections, endpoint)

    async def aclose(self) -> None:
        """Close everything. Calls that are out end at once, and later ones too, with ``ClosedError``."""
        self._calls.end()  # first: a call that begins while the rest closes must not open a connection
        hot_path, self._hot_path = self._hot_path, None
        try:
            if hot_path is not None:
                await hot_path.aclose()
        finally:
            await self._stack.aclose()

    def _new_hot_path(self, endpoint: Endpoint, tls: ssl.SSLContext | None) -> HotPath:
        connect, read = self._timeouts
        pool = HttpPool(endpoint.host, endpoint.port, tls=tls, connect_timeout=connect, timeout=read)
        return HotPath(endpoint, self._credentials, pool)

    async def _call(
        self,
        request: Request,
        read: Callable[[Parameters], T],
        decode: Callable[[bytes], T] | None,
        room: Room | None,
    ) -> T:
        if room is not None:
            async with room:
                return await self._by_some_path(request, read, decode)
        return await self._by_some_path(request, read, decode)

    async def _by_some_path(
        self, request: Request, read: Callable[[Parameters], T], decode: Callable[[bytes], T] | None
    ) -> T:
        if decode is not None and self._hot_path is not None:
            result = await self._hot_path.call(request.operation, request.parameters, decode)
            if result is not None:  # None is a miss: botocore retries it, and translates its errors
                return result
        if request.operation == "ReceiveMessage":
            async with self._polls:  # long polls last 20 s: without a bound they would take every connection
                return await self._ordinary(request, read)
        return await self._ordinary(request, read)

    async def _ordinary(self, request: Request, read: Callable[[Parameters], T]) -> T:
        method: Callable[..., Awaitable[Parameters]] = getattr(self._sqs, _METHODS[request.operation])
        try:
            # botocore's own timeout is between two bytes: a server that drips them would hold the call without end.
            async with asyncio.timeout(self._longest_call):
                answer = await method(**request.parameters)
        except Exception as error:
            # Before the error is raised: a retry must be signed with the time that SQS just told.
            self._set_clock(clock_skew(error))
            raise translate(error, operation=request.operation, subject=request.subject) from error
        self._set_clock(0.0)
        # A proxy may answer 200 with a page of its own, and botocore reads an empty answer out of
        # it.
        answers.check(answer, operation=request.operation, subject=request.subject)
        try:
            return read(answer)
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError, msgspec.MsgspecError) as error:
            text = f"{request}: {NOT_SQS}"
            raise ServiceUnavailable(text, operation=request.operation, code=type(error).__name__) from error

    def _set_clock(self, skew: float | None) -> None:
        if skew is not None and self._hot_path is not None:
            self._hot_path.set_clock(skew)


def _most_polls(connections: int) -> int:
    """Return how many of the ordinary client's connections long polls may take, so that some are left for the rest."""
    return max(1, connections - max(2, connections // 4))


def default_tls() -> ssl.SSLContext:
    """Return a TLS context that trusts the authorities that botocore trusts."""
    from botocore import httpsession  # noqa: PLC0415 - loaded with the client, not before

    context = ssl.create_default_context(cafile=cast("Any", httpsession).get_cert_path(verify=True))
    # The hot path speaks nothing else: a server that may choose HTTP/2 would.
    context.set_alpn_protocols(["http/1.1"])
    return context


def _log_path(objections: Sequence[str], endpoint: Endpoint | None = None) -> None:
    if objections or endpoint is None:
        log.info("SQS hot path: off, because %s", "; ".join(objections))
    else:
        log.info("SQS hot path: on, to %s in %s", endpoint.scope.host, endpoint.scope.region)
