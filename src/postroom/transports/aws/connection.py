"""What an open client and its queues share: the botocore client, the hot path, and who may use them at once."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar, cast

import msgspec

from postroom.errors import ClosedError, ServiceUnavailable
from postroom.transports.aws.conditions import Capture, Endpoint
from postroom.transports.aws.errors import translate
from postroom.transports.aws.hot_path import HotPath, log
from postroom.transports.aws.http import HttpPool
from postroom.transports.aws.statistics import ClientStatistics
from postroom.transports.aws.wire import Parameters

T = TypeVar("T")

_METHODS: Final = {
    "ReceiveMessage": "receive_message",
    "DeleteMessageBatch": "delete_message_batch",
    "ChangeMessageVisibilityBatch": "change_message_visibility_batch",
    "SendMessageBatch": "send_message_batch",
    "GetQueueUrl": "get_queue_url",
    "GetQueueAttributes": "get_queue_attributes",
}
_LONGEST_BACKOFF: Final = 20.0  # seconds between two attempts in botocore's standard retry mode


class Connection:
    """Makes calls, by the hot path where it may, and raises postroom's errors.

    Args:
        sqs: the botocore client.
        credentials: of the botocore session; None if it has none.
        stack: closes the botocore client.
        calls: receives at once, and as many other calls at once. Each kind has its own allowance, so that a delete
            or a heartbeat never waits for a long poll.
        objections: what speaks against the hot path; empty if nothing does so far.
    """

    def __init__(
        self, sqs: Any, credentials: Any, stack: AsyncExitStack, *, calls: int, objections: Sequence[str]
    ) -> None:
        self._sqs = sqs
        self._credentials = credentials
        self._stack = stack
        self._receives = asyncio.Semaphore(calls)
        self._others = asyncio.Semaphore(calls)
        config = sqs.meta.config
        self._timeouts = (float(config.connect_timeout), float(config.read_timeout))
        attempts: int = config.retries.get("total_max_attempts", 1)
        self._longest_call = attempts * (sum(self._timeouts) + _LONGEST_BACKOFF)
        self._deadlines: set[asyncio.Timeout] = set()
        self._capture: Capture | None = None
        self._hot_path: HotPath | None = None
        self._objections = tuple(objections)
        self.closed = False
        if objections:
            _log_path(objections)
        else:
            self._capture = Capture(sqs.meta.events)

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

    async def call(self, operation: str, parameters: Parameters, read: Callable[[Parameters], T], *, subject: str) -> T:
        """Make a call by the ordinary client, its retries included, and return what ``read`` makes of the answer."""
        async with self._others:
            return await self._ordinary(operation, parameters, read, subject)

    async def call_hot(
        self,
        operation: str,
        parameters: Parameters,
        read: Callable[[Parameters], T],
        decode: Callable[[bytes], T],
        *,
        subject: str,
    ) -> T:
        """Make a call by the hot path; by the ordinary client if that misses or may not be taken."""
        async with self._receives if operation == "ReceiveMessage" else self._others:
            if self._hot_path is not None:
                result = await self._hot_path.call(operation, parameters, decode)
                if result is not None:
                    return result
            return await self._ordinary(operation, parameters, read, subject)

    async def settle_path(self) -> None:
        """Decide about the hot path, once botocore's first request showed where it leads."""
        capture = self._capture
        if capture is None or not (capture.endpoint or capture.objections):
            return
        self._capture = None  # before the wait below: one decides
        endpoint = capture.endpoint
        self._objections = capture.objections
        if endpoint is not None:
            tls = await asyncio.to_thread(default_tls) if endpoint.secure else None
            if not self.closed:
                self._hot_path = self._new_hot_path(endpoint, tls)
        _log_path(self._objections, endpoint)

    async def aclose(self) -> None:
        """Close everything. Calls that are under way fail; later ones raise ``ClosedError``."""
        self.closed = True
        for deadline in self._deadlines:  # botocore would go on to retry on the closed connections
            if not deadline.expired():
                deadline.reschedule(0)
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

    async def _ordinary(
        self, operation: str, parameters: Parameters, read: Callable[[Parameters], T], subject: str
    ) -> T:
        if self.closed:
            raise ClosedError(f"{operation} on {subject}: its AwsClient is closed; use it inside `async with client:`")
        # botocore's own timeout is between two bytes: a server that drips them would hold the call for ever.
        deadline = asyncio.timeout(self._longest_call)
        method: Callable[..., Awaitable[Parameters]] = getattr(self._sqs, _METHODS[operation])
        try:
            async with deadline:
                self._deadlines.add(deadline)
                answer = await method(**parameters)
        except Exception as error:
            if self.closed:
                raise ClosedError(f"{operation} on {subject}: its AwsClient was closed meanwhile") from error
            raise translate(error, operation=operation, subject=subject) from error
        finally:
            self._deadlines.discard(deadline)
        try:
            return read(answer)
        except (AttributeError, LookupError, TypeError, ValueError, msgspec.MsgspecError) as error:
            text = f"{operation} on {subject}: the answer is not SQS's; check the endpoint URL"
            raise ServiceUnavailable(text, operation=operation, code=type(error).__name__) from error


def default_tls() -> ssl.SSLContext:
    """Return a TLS context that trusts whom botocore trusts."""
    from botocore import httpsession  # noqa: PLC0415 - loaded with the client, not before

    context = ssl.create_default_context(cafile=cast("Any", httpsession).get_cert_path(verify=True))
    context.set_alpn_protocols(["http/1.1"])
    return context


def _log_path(objections: Sequence[str], endpoint: Endpoint | None = None) -> None:
    if objections or endpoint is None:
        log.info("SQS hot path: off, because %s", "; ".join(objections))
    else:
        log.info("SQS hot path: on, to %s in %s", endpoint.scope.host, endpoint.scope.region)
