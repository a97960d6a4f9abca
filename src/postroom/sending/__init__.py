"""Sending: messages as a consumer wants to read them, from a program, a handler or another queue."""

from collections.abc import Mapping
from typing import Any

from postroom.message import OutgoingMessage
from postroom.payloads.encoding import encode_payload
from postroom.sending.making import AttributeInput, ContextWriter, Inject, check_attributes, make
from postroom.sending.posting import SendRetry, post
from postroom.sending.relaying import Relayed, relay
from postroom.sending.sender import Sender, Signing, Transform
from postroom.transports.protocol import Queue

__all__ = [
    "AttributeInput",
    "Inject",
    "Relayed",
    "SendRetry",
    "Sender",
    "Signing",
    "Transform",
    "outgoing",
    "relay",
    "send",
]


_WRITER = ContextWriter(None, None)  # remembers how each class of contexts is written


def outgoing(
    payload: Any,
    context: Any = None,
    *,
    attributes: Mapping[str, AttributeInput] | None = None,
    group: str | None = None,
    delay: int | None = None,
    deduplication_id: str | None = None,
) -> OutgoingMessage:
    """Make a message of a payload and its context, written by the context's own class; see ``Sender.message``.

    Raises:
        ConfigurationError: SQS would not take it, or no consumer would read it back. The text says what to write.
        ContextError: a field of the context has a value that no consumer would accept.
    """
    made = make(
        encode_payload,
        _WRITER,
        payload,
        context,
        attributes=attributes,
        group=group,
        delay=delay,
        deduplication_id=deduplication_id,
    )
    check_attributes(made, keep=0)
    return made


async def send(queue: Queue, payload: Any, context: Any = None, **options: Any) -> str:
    """Send one message to an open queue, and return its id. Options are those of ``outgoing``.

    Raises:
        SendFailed: SQS did not take it, or did not answer.
    """
    outcome = await post(queue, [outgoing(payload, context, **options)], SendRetry())
    outcome.raise_for_unsent(queue.info.name)
    return str(outcome.message_ids[0])
