"""Bodies that are too large for SQS: stored in S3, with a pointer in the message.

The format is that of the libraries ``amazon-sqs-extended-client`` for Java and for Python: what they send is read, and
what is sent here is read by them.
"""

import asyncio
import hashlib
import math
import random
import re
from collections.abc import Collection
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from uuid import uuid4

import msgspec

from postroom.aws_session import error_code
from postroom.errors import (
    AccessDenied,
    ConfigurationError,
    DecodeError,
    InvalidRequest,
    NotOpenError,
    Retry,
    ServiceUnavailable,
    TransportError,
)
from postroom.integrations._shared_client import SharedClient
from postroom.log_fields import Log, Step, about
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.options import check_count
from postroom.payloads.contents import MOST, Contents
from postroom.redaction import describe
from postroom.sending.batches import size_of
from postroom.types import Settlement

_log = Log("postroom.claim_check", Step.PAYLOAD)

THRESHOLD: Final = 262_144
"""Bytes of body and attributes above which a body goes to S3: the 256 KiB of ``amazon-sqs-extended-client``.

SQS itself takes 1 MiB (quotas-messages.html), for a message and for a whole batch.
"""
_LARGEST: Final = 1_048_576
_CLASS: Final = "software.amazon.payloadoffloading.PayloadS3Pointer"
_CLASSES: Final = (_CLASS, "com.amazon.sqs.javamessaging.MessageS3Pointer")
_SIZE: Final = "ExtendedPayloadSize"
_SIZES: Final = (_SIZE, "SQSLargePayloadSize")
_MOST_ATTRIBUTES: Final = 10
_GONE: Final = frozenset({"NoSuchKey", "NoSuchBucket", "404"})
_DENIED: Final = frozenset({"AccessDenied", "403"})
_CONNECTIONS: Final = 64
_PATIENCE: Final = 30.0
"""Seconds for which messages wait in their slots, from the beginning of an outage of S3."""
_PAUSES: Final = (0.5, 5.0)
"""Seconds between two tries of S3 in an outage: at first, and at most."""
_BEHIND: Final = 0.05
"""Seconds for which the next try is another message's: S3 may have trouble with one body alone."""
_TRIES: Final = 3
"""Tries of a body in a row while S3 gives others."""
_DELAYS: Final = (60.0, 900.0)
"""Seconds until a message is received again that S3 gave no body for: the first time, and at most. Its receives are
few, and an outage must not use them up."""
_BROKEN: Final = 500
"""HTTP statuses from here on are the server's own trouble."""
_QUIET: Final = 60.0
"""Seconds between two log lines about S3 that cannot be reached."""
_SEAL: Final = re.compile(r".*\.sha256-([0-9a-f]{64})")
# A bucket's name: https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html; or an access point.
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]|arn:aws[\w-]*:s3:[\w:/.-]+")


class _Place(msgspec.Struct):
    bucket: str = msgspec.field(name="s3BucketName")
    key: str = msgspec.field(name="s3Key")


_RANDOM: Final = random.Random()  # noqa: S311 - spreads messages, and hides nothing


class _Object(NamedTuple):
    """Where a body is."""

    bucket: str
    key: str


class _Outage:
    """S3 cannot be reached: one fetch at a time tries it, and all others wait for that."""

    def __init__(self, now: float, code: str) -> None:
        self.since = now
        self.code = code
        self.pause, self._most = _PAUSES
        self.next_try = now + self.pause
        self.over = asyncio.Event()

    def failed_again(self, now: float, code: str) -> None:
        """Space the tries out."""
        self.code = code
        self.pause = min(2 * self.pause, self._most)
        self.next_try = now + self.pause

    async def wait(self, now: float, *, behind: float) -> None:
        """Wait until it is over, or some time after the next try is due, or until there is no patience left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(self.next_try + behind, self.since + _PATIENCE) - now):
                await self.over.wait()


class ClaimCheck(Contents):
    """Fetches bodies from S3 as a step of ``Consumer(unwrap=...)``, and stores those that are sent.

        bodies = ClaimCheck("amzn-s3-demo-bucket")
        orders = Consumer("orders", context=Tenant, unwrap=bodies)

        async with bodies:
            await queue.send([await bodies.offload(message)])

    A message without a pointer is taken as it is. Which bucket a pointer names is the sender's word, so only the
    buckets that are named here are asked. A body is fetched in its message's slot, after the context is known and
    before the tenant's resources are leased. While S3 cannot be reached, messages wait for up to 30 seconds and then
    go back for 1 to 15 minutes, longer each time, and count no failed attempt; an object that is gone is a
    ``DecodeError``.

    Entered by several consumers and senders, it shares one S3 client; the last exit closes it. It belongs to the event
    loop that entered it. Sign a message after it was offloaded: the signature then covers the pointer, with the hash
    of the body in its key, and a body that does not fit is refused.

    Args:
        bucket: where bodies are stored; None for a consumer that only reads.
        buckets: from where bodies are fetched, beside ``bucket``.
        threshold: bytes of body and attributes above which a body goes to S3, up to 1,048,576, which SQS takes.
        always: whether every body goes to S3.
        prefix: how the keys of stored bodies begin, such as ``"orders/"``.
        most: bytes that a body may have that is fetched.
        delete: whether a body is deleted once SQS has confirmed that its message is. A duplicate of the message that
            comes later finds nothing then. A lifecycle rule of the bucket is the safer way.
        timeout: seconds that one call to S3 may take.
        region: the region of S3; None for what the environment says.
        endpoint_url: the address of S3, where it is not AWS; None for what the environment says.
        session: an ``aiobotocore.session.AioSession`` of your own.

    Raises:
        ConfigurationError: no bucket is named, or an argument cannot work.
    """

    def __init__(
        self,
        bucket: str | None = None,
        *,
        buckets: Collection[str] = (),
        threshold: int = THRESHOLD,
        always: bool = False,
        prefix: str = "",
        most: int = MOST,
        delete: bool = False,
        timeout: float = 10.0,
        region: str | None = None,
        endpoint_url: str | None = None,
        session: Any = None,
    ) -> None:
        self._bucket = bucket
        self._allowed = _checked_buckets(bucket, buckets)
        check_count("ClaimCheck", "threshold", threshold, least=0, most=_LARGEST, limit="SQS takes 1 MiB")
        check_count("ClaimCheck", "most", most)
        self._threshold = -1 if always else threshold
        self._prefix = prefix
        self._most = most
        self._delete = delete
        self._timeout = timeout
        self._s3 = SharedClient(
            "ClaimCheck",
            "write `async with claim_check:`, or pass it to Consumer(unwrap=...)",
            ("s3", "S3"),
            timeout=timeout,
            region=region,
            endpoint_url=endpoint_url,
            session=session,
            # A server of your own has no host name for each bucket.
            config={
                "s3": {"addressing_style": "auto" if endpoint_url is None else "path"},
                "max_pool_connections": _CONNECTIONS,
            },
        )
        self._fetched: dict[str, _Object] = {}
        self._deleting: set[asyncio.Task[None]] = set()
        self._said = -math.inf
        self._told = False
        """Whether the log tells of the outage: so it tells of its end."""
        self._outage: _Outage | None = None
        self._reached = -math.inf

    async def __aenter__(self) -> Self:
        """Open the S3 client, unless it is open."""
        await self._s3.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for deletes that are under way, and close the client, if this is the last exit."""
        await self._s3.leave(self._finish)

    async def _finish(self) -> None:
        if self._deleting:
            await asyncio.wait(self._deleting, timeout=self._timeout)
        self._outage = None  # the next loop has another clock
        self._reached = -math.inf

    # -- reading --------------------------------------------------------------------------------------------------

    async def __call__(self, message: Message, /) -> Message:
        """Return the message with its body from S3; the message itself where the body is no pointer.

        Raises:
            DecodeError: the pointer is malformed or names a bucket that is not allowed; the object is gone, too large,
                no text, or not what was stored.
            Retry: S3 cannot be reached for a while, or refuses for now.
        """
        found = self._pointer(message)
        if found is None:
            return message
        body = await self._get(found, message)
        if self._delete:
            self._fetched[message.id] = found
        attributes = {name: value for name, value in message.message_attributes.items() if name not in _SIZES}
        return msgspec.structs.replace(message, body=body, message_attributes=attributes)

    def settled(self, message: Message, settlement: Settlement, /) -> None:
        """Delete the body of a message that is deleted, where that is asked for."""
        found = self._fetched.pop(message.id, None)
        if found is not None and settlement is Settlement.ACKED:
            task = asyncio.get_running_loop().create_task(self._remove(found), name="postroom-claim-check-delete")
            self._deleting.add(task)
            task.add_done_callback(self._deleting.discard)

    def _pointer(self, message: Message) -> _Object | None:
        marked = any(name in message.message_attributes for name in _SIZES)
        if not marked and not message.body.startswith(tuple(f'["{name}"' for name in _CLASSES)):
            return None
        problem = "it is none"
        try:
            kind, place = msgspec.json.decode(message.body, type=tuple[str, _Place])
        except (msgspec.DecodeError, UnicodeEncodeError):
            kind, place = "", None
        if place is not None and kind in _CLASSES:
            if place.bucket in self._allowed:
                return _Object(place.bucket, place.key)
            problem = "it names a bucket that ClaimCheck(buckets=...) does not"
        raise DecodeError(f"the body is no pointer into S3 that can be followed: {problem}", message_id=message.id)

    async def _get(self, found: _Object, message: Message) -> str:
        """Fetch a body. In an outage of S3, wait for its end in the beginning; after that, ask for a retry."""
        time_of, tries = asyncio.get_running_loop().time, 0
        while True:
            outage, began = self._outage, time_of()
            if outage is None or began >= outage.next_try:
                if outage is not None:  # the others wait; not for longer, should this one be cancelled
                    outage.next_try = began + self._timeout + outage.pause
                try:
                    return await self._fetch(found, message)
                except _Unreachable as error:
                    now = time_of()
                    # It gave another body meanwhile: it may be this one alone that it has trouble with.
                    if self._reached >= began:
                        tries += 1
                        if tries == _TRIES:
                            raise _later(error.code, message) from error
                        await asyncio.sleep(_PAUSES[0])
                        continue
                    if self._outage is None:
                        self._outage = _Outage(now, error.code)
                    elif outage is not None:  # else it was on its way already when another one found out
                        self._outage.failed_again(now, error.code)
                    outage, behind = self._outage, _BEHIND
            else:
                behind = 0.0
            now = time_of()
            if now >= outage.since + _PATIENCE:
                raise _later(outage.code, message)
            await outage.wait(now, behind=behind)

    async def _fetch(self, found: _Object, message: Message) -> str:
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._s3.opened().get_object(Bucket=found.bucket, Key=found.key)
                async with answer["Body"] as stream:
                    size = int(answer["ContentLength"])
                    body = b"" if size > self._most else await stream.read()
        except NotOpenError:
            raise
        except Exception as error:
            code = error_code(error)
            if code not in _GONE:
                self._say(found, message, error)
                if not _is_refusal(error):
                    raise _Unreachable(code) from error
                self._answered()
                raise _later(code, message) from error
            self._answered()
            text = "the body is gone from S3: it was deleted, or its bucket was"
            raise DecodeError(text, message_id=message.id) from error
        self._answered()
        return self._checked(found, body, size, message)

    def _answered(self) -> None:
        """Note that S3 can be reached: what waits goes on."""
        self._reached = asyncio.get_running_loop().time()
        if self._outage is not None:
            if self._told:
                _log.info("S3 gives bodies again after %.0f s", self._reached - self._outage.since)
            self._told = False
            self._outage.over.set()
            self._outage = None

    def _checked(self, found: _Object, body: bytes, size: int, message: Message) -> str:
        seal = _SEAL.fullmatch(found.key)
        if size > self._most:
            text = f"the body in S3 has {size:,} bytes, more than ClaimCheck(most={self._most})"
        elif seal is not None and hashlib.sha256(body).hexdigest() != seal[1]:
            text = "the body in S3 is not the one that was sent"
        else:
            try:
                return body.decode()
            except UnicodeDecodeError as error:
                text = f"the body in S3 is no UTF-8 text (byte {error.start})"
        raise DecodeError(text, message_id=message.id)

    def _say(self, found: _Object, message: Message, error: Exception) -> None:
        """Log that S3 is not there, now and then: it concerns every message with a pointer."""
        now = asyncio.get_running_loop().time()
        if not 0 <= now - self._said < _QUIET:  # less than 0: in another event loop
            self._said, self._told = now, self._told or not _is_refusal(error)
            text = "S3 did not give the body of message %s from bucket %s (%s); such messages wait, and are retried"
            arguments = (message.id, found.bucket, describe(error))
            _log.warning(text, *arguments, extra=about(queue=message.queue or None, message_id=message.id))

    async def _remove(self, found: _Object) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._s3.opened().delete_object(Bucket=found.bucket, Key=found.key)
        except Exception as error:
            text = "The body %s of a deleted message stays in bucket %s: %s"
            _log.warning(text, found.key, found.bucket, describe(error))

    # -- sending --------------------------------------------------------------------------------------------------

    async def offload(self, message: OutgoingMessage) -> OutgoingMessage:
        """Return the message to send: with a pointer where its body is large, and else the message itself.

        Raises:
            ConfigurationError: no ``bucket`` is named to store it in.
            InvalidRequest: the message has ten attributes, and the pointer needs one; or its body is no Unicode text.
            TransportError: S3 refused the body, or could not be reached. Nothing was sent.
            NotOpenError: it is not open.
        """
        if size_of(message) <= self._threshold:
            return message
        if self._bucket is None:
            raise ConfigurationError("ClaimCheck(bucket) must name the bucket that large bodies are stored in")
        kept = {name: value for name, value in message.message_attributes.items() if name not in _SIZES}
        if len(kept) >= _MOST_ATTRIBUTES:
            text = f"the message has {len(kept)} attributes and its body goes to S3, which needs one of the ten"
            raise InvalidRequest(text, operation="SendMessage")
        try:
            body = message.body.encode()
        except UnicodeEncodeError:  # it quotes the body
            body = None
        if body is None:
            raise InvalidRequest(
                "the body has characters that have no bytes (lone surrogates)", operation="SendMessage"
            )
        key = f"{self._prefix}{uuid4()}.sha256-{hashlib.sha256(body).hexdigest()}"
        await self._put(key, body)
        pointer = [_CLASS, {"s3BucketName": self._bucket, "s3Key": key}]
        size = MessageAttribute(data_type="Number", string_value=str(len(body)))
        return msgspec.structs.replace(
            message, body=msgspec.json.encode(pointer).decode(), message_attributes={**kept, _SIZE: size}
        )

    async def _put(self, key: str, body: bytes) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._s3.opened().put_object(Bucket=self._bucket, Key=key, Body=body)
        except NotOpenError:
            raise
        except Exception as error:
            code, said = error_code(error), describe(error)
            # A bucket that is gone says nothing of the message, which is none that can never be sent.
            gone_or_not: type[TransportError] = TransportError if code in _GONE else ServiceUnavailable
            kind = AccessDenied if code in _DENIED else gone_or_not
            text = f"the body could not be stored in bucket {self._bucket} ({said}); the message was not sent"
            raise kind(text, operation="PutObject", code=code) from error

    def __repr__(self) -> str:
        return f"ClaimCheck({self._bucket!r}, buckets={sorted(self._allowed)!r})"


def _checked_buckets(bucket: str | None, buckets: Collection[str]) -> frozenset[str]:
    if isinstance(buckets, str):
        raise ConfigurationError(f"ClaimCheck(buckets=...) takes a list of names: write buckets=[{buckets!r}]")
    named = [*buckets, *([] if bucket is None else [bucket])]
    if not named:
        raise ConfigurationError(
            "ClaimCheck() must name the buckets that bodies may come from: a message's pointer alone decides nothing"
        )
    for name in named:
        if _BUCKET.fullmatch(str(name)) is None:
            raise ConfigurationError(f"ClaimCheck(bucket): {name!r} is no name of a bucket")
    return frozenset(named)


class _Unreachable(Exception):
    """S3 did not answer, or said that it has trouble."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _later(code: str, message: Message) -> Retry:
    """Ask for a retry, later each time, and not for all messages at the same time."""
    first, most = _DELAYS
    delay = min(most, first * 3 ** min(message.receive_count - 1, 9)) * _RANDOM.uniform(0.75, 1.0)
    return Retry(f"S3 does not give the body ({code})", delay=delay)


def _is_refusal(error: Exception) -> bool:
    """Return whether S3 answered, and refused this one call: that says nothing of other bodies."""
    answer: Any = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return False
    status: Any = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return int(status) < _BROKEN  # pyright: ignore[reportUnknownArgumentType]
