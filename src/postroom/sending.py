"""Send a message as a consumer wants to read it: the context in its attributes, the tenant as its message group."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from postroom.errors import ConfigurationError, InvalidRequest
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.payloads import context_from_attributes
from postroom.transports.protocol import EntryFailure, Queue


def outgoing(
    payload: Any,
    context: Any,
    *,
    attributes: Mapping[str, str] | None = None,
    group: Callable[[Any], str] | None = None,
    delay: int | None = None,
    deduplication_id: str | None = None,
) -> OutgoingMessage:
    """Make a message of a payload and the context that it belongs to.

    Args:
        payload: text is sent as it is; anything else as JSON.
        context: a frozen dataclass, Struct or NamedTuple. Each field becomes an attribute of its name, so that
            ``Consumer(context=<its class>)`` reads it back.
        attributes: the attributes instead, where they have other names than the fields.
        group: the message group of a context. By default all of its fields, joined by "/": a queue of that many
            tenants, which SQS's fair queues keep apart.
        delay: seconds until it is visible, 0 to 900. Not on FIFO queues.
        deduplication_id: for FIFO queues.

    Raises:
        ConfigurationError: the attributes would not be read back as this context.
        ContextError: a field has a value that no consumer would accept.
    """
    fields = _fields(context)
    named = fields if attributes is None else attributes
    made = {name: MessageAttribute(string_value=value) for name, value in named.items()}
    if attributes is None:
        kind: type[Any] = context.__class__
        read = context_from_attributes(kind)(Message(id="", body="", message_attributes=made))
        if read != context:
            text = (
                f"a {type(context).__name__} is not read back from attributes named like its fields; pass attributes="
            )
            raise ConfigurationError(text)
    body = payload if isinstance(payload, str) else msgspec.json.encode(payload).decode()
    return OutgoingMessage(
        body=body,
        message_attributes=made,
        group_id="/".join(fields.values()) if group is None else group(context),
        delay=delay,
        deduplication_id=deduplication_id,
    )


async def send(queue: Queue, payload: Any, context: Any, **options: Any) -> str:
    """Send a payload of a context and return the message id. Options are those of :func:`outgoing`.

    Raises:
        ConfigurationError: the attributes would not be read back as this context.
        TransportError: SQS refused it, or could not be reached.
    """
    [result] = await queue.send([outgoing(payload, context, **options)])
    if isinstance(result, EntryFailure):
        raise InvalidRequest(f"SQS refused the message: {result.code}", operation="SendMessage", code=result.code)
    return result.message_id


def _fields(context: Any) -> dict[str, str]:
    if dataclasses.is_dataclass(context) and not isinstance(context, type):
        values = {field.name: getattr(context, field.name) for field in dataclasses.fields(context)}
    elif isinstance(context, msgspec.Struct):
        values = msgspec.structs.asdict(context)
    elif (names := getattr(context, "_fields", None)) is not None:  # a NamedTuple
        values = {name: getattr(context, name) for name in names}
    else:
        text = f"a context to send is a dataclass, a Struct or a NamedTuple; got {type(context).__name__}"
        raise ConfigurationError(text)
    return {name: str(value) for name, value in values.items() if value is not None}
