"""A sender: what a program that sends declares, opens and uses."""

import asyncio
import dataclasses
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, Self, cast

import msgspec

from postroom.checking import check_flag, check_kind, check_optional, check_queue, listed, shown
from postroom.errors import ConfigurationError, ContextError, InvalidRequest, NotOpenError, PostroomError, Unsent
from postroom.message import OutgoingMessage
from postroom.options import check_seconds
from postroom.payloads import KeyRing, sign
from postroom.payloads.encoding import Encode, encode_payload, encoder_for
from postroom.payloads.renaming import Rename
from postroom.payloads.signing import LIFETIME
from postroom.sending.batches import MAX_BYTES
from postroom.sending.making import (
    AttributeInput,
    ContextWriter,
    Inject,
    add_trace,
    check_attributes,
    check_size,
    make,
)
from postroom.sending.posting import Outcome, SendRetry, post
from postroom.transports.protocol import Client, Queue, QueueInfo, check_client
from postroom.types import C

Transform = Callable[[OutgoingMessage], OutgoingMessage | Awaitable[OutgoingMessage]]
"""Changes a message before it is signed and sent: moves a large body elsewhere, puts it into an envelope."""


_CALLS: Final = {
    "group": "(context) -> message group",
    "encode": "(payload) -> body",
    "trace": "(carrier)",
    "transform": "(OutgoingMessage) -> OutgoingMessage",
}
"""How the functions of a sender are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """How a sender signs what it sends; the consumer's side is ``signed(...)``.

    Args:
        keys: the ring; its current key signs.
        attributes: the names of the attributes that the signature covers. None: those that ``Sender(context=<class>)``
            writes, which are those that ``signed(context_from_attributes(<class>))`` checks.
        lifetime: seconds until a signature expires. Count in how long a message may wait in the queue.
    """

    keys: KeyRing
    attributes: Collection[str] | None = None
    lifetime: float = LIFETIME

    def __post_init__(self) -> None:
        check_kind("Signing(keys=...)", self.keys, KeyRing, 'keys=KeyRing({"2026-11": secret})')
        if self.attributes is not None:
            names = listed("Signing(attributes=...)", 'attributes=["tenantId"]', self.attributes)
            object.__setattr__(self, "attributes", names)
        check_seconds("Signing", "lifetime", self.lifetime, least=1, most=3e9, limit="a century")


class Sender(Generic[C]):
    """Sends messages to one queue as a consumer wants to read them.

        async with Sender("orders", context=Tenant) as sender:
            await sender.send(Order("1"), context=Tenant("acme"))

    Args:
        queue: name, URL or ARN.
        context: the tenant of a message: the class that the consumer's ``context=`` names, or a function (context) ->
            attributes. None: without a context, or written by the context's own class.
        payload: what is sent, as the consumer's handler names it; says how it is written where the payload's own class
            does not, such as ``list[Order]`` of pydantic models in unions. None: each payload by its class.
        rename: ``"camel"`` where the consumer decodes with ``decoder_for(rename="camel")``.
        encode: a function (payload) -> body instead, for a format of your own.
        group: the message group of a context. None: on standard queues the tenant, that is all attributes of the
            context, joined by "/", which makes the queue a fair one. FIFO queues need a function here, or ``group=``
            where a message is sent.
        fair: False: no message group on a standard queue.
        signing: sign what is sent.
        trace: writes the present trace context, as ``opentelemetry.propagate.inject`` does. It becomes attributes as
            far as SQS's ten have room.
        transform: called with each message before it is signed and sent.
        retry: how often a message is tried that SQS refused for now.
        client: where the queue is; by default the one AWS client of the event loop.

    Raises:
        ConfigurationError: an argument cannot work. Nothing is opened before ``async with``.

    A sender can be opened again after it was closed, and by several users at once: the last exit closes it.
    """

    def __init__(
        self,
        queue: str,
        *,
        context: type[C] | Callable[[C], Mapping[str, str]] | None = None,
        payload: Any = None,
        rename: Rename | None = None,
        encode: Encode | None = None,
        group: Callable[[C], str] | None = None,
        fair: bool = True,
        signing: Signing | None = None,
        trace: Inject | None = None,
        transform: Transform | None = None,
        retry: SendRetry = SendRetry(),  # noqa: B008 - frozen
        client: Client | None = None,
    ) -> None:
        check_kind("Sender(retry=...)", retry, SendRetry, "SendRetry(attempts=3)")
        check_client("Sender", client)
        check_flag("Sender(fair=...)", fair)
        _check_arguments(queue, context=context, group=group, encode=encode, trace=trace, transform=transform)
        if encode is not None and (payload is not None or rename is not None):
            raise ConfigurationError("Sender(encode=...) writes the whole body: leave out payload= and rename=")
        self._name = queue
        self._writer = ContextWriter(context, group)
        self._needs_context = context is not None
        self._grouped = group is not None
        self._fair = fair
        self._encode = encode or _encoder(payload, rename)
        self._signing = _checked_signing(signing, self._writer)
        self._trace = trace
        self._transform = transform
        self._retry = retry
        self._client = client
        self._users = 0
        self._stack = AsyncExitStack()
        self._queue: Queue | None = None

    @property
    def queue(self) -> str:
        """The queue, as it was named."""
        return self._name

    @property
    def info(self) -> QueueInfo:
        """What the queue said of itself. Raises ``NotOpenError`` outside of ``async with``."""
        return self._opened().info

    def message(
        self,
        payload: object,
        *,
        context: C | None = None,
        attributes: Mapping[str, AttributeInput] | None = None,
        group: str | None = None,
        delay: int | None = None,
        deduplication_id: str | None = None,
    ) -> OutgoingMessage:
        """Make a message without sending it: for ``send_messages``, or for an outbox. It needs no open sender.

        It is signed when it is sent, so that its signature does not expire in an outbox.

        Args:
            payload: anything that a consumer can decode; text and bytes are the body as they are.
            context: the tenant. Its fields become attributes, by the names that the consumer's resolver reads.
            attributes: further attributes. One that would replace one of the context is refused.
            group: the message group, instead of the one that the sender works out.
            delay: seconds until it is visible, 0 to 900. Not on FIFO queues.
            deduplication_id: on FIFO queues. None: one is made, so that a message that is tried again is not there
                twice; unless the queue itself makes one of the body (``ContentBasedDeduplication``).

        Raises:
            ConfigurationError: SQS would not take it, or no consumer would read it back. The text says what to write.
            ContextError: a field of the context has a value that no consumer would accept.
        """
        if context is None and self._needs_context:
            raise ConfigurationError("this sender writes a context: say context=... for each message")
        fifo = self._name.endswith(".fifo")
        if fifo:
            self._check_fifo(group, delay, grouped=self._grouped and context is not None)
        made = make(
            self._encode,
            self._writer,
            payload,
            context,
            attributes=attributes,
            group=group,
            delay=delay,
            deduplication_id=deduplication_id,
        )
        if not self._fair and not fifo and group is None:
            made = msgspec.structs.replace(made, group_id=None)
        # Room for the signature, which is added when the message is sent.
        keep = 0 if self._signing is None else 1
        check_attributes(made, keep=keep)
        if self._transform is None:
            check_size(made, MAX_BYTES)
        else:
            keep += 1  # it may add one, as that of a claim check does
        return made if self._trace is None else add_trace(made, self._trace, keep=keep)

    async def send(
        self,
        payload: object,
        *,
        context: C | None = None,
        attributes: Mapping[str, AttributeInput] | None = None,
        group: str | None = None,
        delay: int | None = None,
        deduplication_id: str | None = None,
    ) -> str:
        """Send one message, and return its id when SQS has taken it. Arguments as in ``message``.

        Raises:
            SendFailed: SQS did not take it, or did not answer.
            InvalidRequest: it is too large for the queue.
            ConfigurationError, ContextError: as in ``message``.
        """
        message = self.message(
            payload,
            context=context,
            attributes=attributes,
            group=group,
            delay=delay,
            deduplication_id=deduplication_id,
        )
        return (await self.send_messages([message]))[0]

    async def send_many(
        self,
        payloads: Iterable[object],
        *,
        context: C | None = None,
        attributes: Mapping[str, AttributeInput] | None = None,
        group: str | None = None,
        delay: int | None = None,
    ) -> list[str]:
        """Send messages of one context, in batches of ten and 1 MiB, and return their ids, in order.

        Nothing is sent if one of them cannot be made. Arguments and errors are those of ``send``; ``SendFailed``
        names each message that was not sent, by its place. On a FIFO queue a batch has one message of each group, and
        nothing is sent after a message of its group that was not.
        """
        if isinstance(payloads, str | bytes | Mapping) or not isinstance(cast("object", payloads), Iterable):
            raise ConfigurationError("send_many() takes several payloads, such as a list; send one with send()")
        made = [
            self.message(payload, context=context, attributes=attributes, group=group, delay=delay)
            for payload in payloads
        ]
        return await self.send_messages(made)

    async def send_messages(self, messages: Iterable[OutgoingMessage]) -> list[str]:
        """Send messages that ``message`` made, of any contexts, and return their ids, in order.

        Raises: as ``send_many``.
        """
        queue = self._opened()
        ready = [await self._ready(message, queue.info) for message in _messages("send_messages", messages)]
        outcome = await post(queue, ready, self._retry)
        outcome.raise_for_unsent(self._name)
        return [cast("str", each) for each in outcome.message_ids]

    async def post(self, messages: Sequence[OutgoingMessage]) -> Outcome:
        """Send messages, and return what became of each instead of raising.

        One that cannot be sent as it is (too large for its queue, more than ten attributes) keeps none of the others
        back; on a FIFO queue neither those behind it. One that the transform fails for keeps back those behind it in
        its group, and all of them once ``SendRetry(within=)`` is over.
        """
        queue = self._opened()
        messages = _messages("post", messages)
        outcome = Outcome([None] * len(messages), {})
        ready: list[tuple[int, OutgoingMessage]] = []
        stuck: dict[str | None, int] = {}  # the groups that a failure holds up, and its place
        time = asyncio.get_running_loop().time
        until = time() + self._retry.within
        for index, message in enumerate(messages):
            late = time() >= until  # a bucket that is away costs its time for each message
            first = next(iter(stuck.values()), None) if late else stuck.get(message.group_id)
            if first is not None and (late or queue.info.fifo):
                code, text = outcome.unsent[first].code, f"entry {first} was not sent"
                outcome.unsent[index] = Unsent(index, code, text, retryable=True, behind=True)
                continue
            try:
                ready.append((index, await self._ready(message, queue.info)))
            except Exception as error:
                # These stay what they are at the next try. What a transform raises may pass: its bucket was away.
                again = not isinstance(error, ConfigurationError | ContextError | InvalidRequest)
                outcome.unsent[index] = Unsent(index, type(error).__name__, _reason(error), again)
                if again:
                    outcome.of_transform[index] = error
                    stuck.setdefault(message.group_id, index)
        sent = await post(queue, [message for _, message in ready], self._retry)
        for (index, _), message_id in zip(ready, sent.message_ids, strict=True):
            outcome.message_ids[index] = message_id
        for unsent in sent.unsent.values():
            index = ready[unsent.index][0]
            outcome.unsent[index] = dataclasses.replace(unsent, index=index)
        outcome.of_queue.update(ready[place][0] for place in sent.of_queue)
        return outcome

    async def _ready(self, message: OutgoingMessage, info: QueueInfo) -> OutgoingMessage:
        """Return a message as it is sent: changed, signed, and with an id that is the same in each try."""
        if self._transform is not None:
            changed = self._transform(message)
            found = cast("object", await changed if isinstance(changed, Awaitable) else changed)
            if not isinstance(found, OutgoingMessage):
                text = "Sender(transform=...) returns the OutgoingMessage that is sent"
                raise ConfigurationError(f"{text}; got {type(found).__name__}")
            message = found
        # After the change: the signature covers what is sent.
        if (signing := self._signing) is not None:
            names = signing.attributes or self._writer.names
            message = sign(message, keys=signing.keys, queue=info.name, attributes=names, lifetime=signing.lifetime)
        if info.fifo and message.deduplication_id is None and not _dedups_by_content(info):
            # Before the first try, and the same in each: SQS then drops a second copy of what it had taken already.
            message = msgspec.structs.replace(message, deduplication_id=uuid.uuid4().hex)
        check_attributes(message, keep=0)
        check_size(message, _limit(info))
        return message

    def _check_fifo(self, group: str | None, delay: int | None, *, grouped: bool) -> None:
        if delay is not None:
            raise ConfigurationError("delay= is not for FIFO queues: SQS delays the whole queue there, DelaySeconds")
        if group is None and not grouped:
            text = (
                f"queue {self._name!r} is a FIFO queue, and each message needs a group: messages of one group are "
                "handled in order. Say Sender(group=lambda context: context.tenant_id), and context= for the message; "
                "or group= for the message"
            )
            raise ConfigurationError(text)

    async def __aenter__(self) -> Self:
        """Open the client and the queue.

        Raises:
            TransportError: the queue cannot be opened; ``QueueNotFound`` and ``AccessDenied`` say what to check.
        """
        if self._users == 0 or self._queue is None:
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(self._client or default_client())
                queue = await client.queue(self._name)
                if self._queue is None:  # another user may have opened it meanwhile
                    self._queue, self._stack = queue, stack.pop_all()
        self._users += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the client, unless others use it.

        Sends that are under way then end with ``SendFailed``. On a client that others keep open they go on, to their
        answer. Wait for them inside the block where you want to know.
        """
        self._users -= 1
        if not self._users:
            # Taken out before the await: a user who enters while this closes opens a queue of its own.
            stack, self._stack, self._queue = self._stack, AsyncExitStack(), None
            await stack.aclose()

    def _opened(self) -> Queue:
        if self._queue is None:
            raise NotOpenError(f"the sender of {self._name!r} is not open; write: async with sender: ...")
        return self._queue

    def __repr__(self) -> str:
        return f"<Sender of {self._name!r}, {'open' if self._queue is not None else 'not open'}>"


def default_client() -> Client:
    """Return the one AWS client of the event loop."""
    from postroom.transports.aws import default_client as shared  # noqa: PLC0415 - a memory client needs none of it

    return shared()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, PostroomError) else f"Sender(transform=...) raised {type(error).__name__}"


def _encoder(payload: Any, rename: Rename | None) -> Encode:
    return encode_payload if payload is None and rename is None else encoder_for(payload, rename=rename)


def _messages(function: str, messages: object) -> list[OutgoingMessage]:
    found = listed(f"{function}()", "[sender.message(payload)]", messages)
    for each in found:
        check_kind(f"{function}()", each, OutgoingMessage, "sender.message(payload)")
    return list(found)


def _dedups_by_content(info: QueueInfo) -> bool:
    return info.attributes.get("ContentBasedDeduplication") == "true"


def _limit(info: QueueInfo) -> int:
    text = info.attributes.get("MaximumMessageSize", "")
    return min(MAX_BYTES, int(text)) if text.isdecimal() else MAX_BYTES


def _check_arguments(queue: object, **functions: object) -> None:
    check_queue("Sender(queue)", queue)
    for name, function in functions.items():
        if name == "context":
            if function is not None and not callable(function):
                what = "a class, or a function (context) -> attributes"
                raise ConfigurationError(f"Sender(context=...) takes {what}; got {shown(function)}")
        else:
            check_optional(f"Sender({name}=...)", _CALLS[name], function)


def _checked_signing(signing: object, writer: ContextWriter) -> Signing | None:
    if signing is None:
        return None
    if not isinstance(signing, Signing):
        raise ConfigurationError(f"Sender(signing=...) takes Signing(keys=KeyRing(...)); got {type(signing).__name__}")
    if not signing.attributes and not writer.names:
        text = "Signing(attributes=...) must name the attributes that are signed, or say Sender(context=<class>)"
        raise ConfigurationError(text)
    return signing
