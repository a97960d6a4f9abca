"""Between SQS's shapes and postroom's.

Requests are made once, for both paths. Answers come parsed from botocore (``read_...``) or as bytes from the hot path
(``decode_...``); both give the same.
"""

import base64
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from postroom.display import counted
from postroom.log_fields import Log, Step, about
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.redaction import quote
from postroom.transports.aws.addresses import Address
from postroom.transports.protocol import EntryFailure, QueueInfo, RedrivePolicy, SendResult, VisibilityChange

Parameters = dict[str, Any]
"""The parameters of one request, or the members of one answer."""

UNCONFIRMED: Final = "postroom.Unconfirmed"
"""The code of a batch entry that SQS's answer names neither as successful nor as failed."""


_log: Final = Log("postroom.transports", Step.RECEIVE)
_ODD: Final = (
    "Left out %s of a receive from %s that cannot be read (%s): %s; SQS shows them again after their visibility timeout"
)


def whole_seconds(seconds: float) -> int:
    """Round up to SQS's whole seconds: a message must not come back before the time that was asked for."""
    # Up: rounded down, a message would be visible again before its time.
    return math.ceil(seconds)


def receive_parameters(url: str, *, limit: int, wait: float, visibility: float, attempt_id: str | None) -> Parameters:
    """Return the request of one receive, with every attribute asked for."""
    parameters: Parameters = {
        "QueueUrl": url,
        "MaxNumberOfMessages": limit,
        "WaitTimeSeconds": whole_seconds(wait),
        "VisibilityTimeout": whole_seconds(visibility),
        # SQS leaves attributes out that are not asked for: the tenant, the trace and the group
        # would be missing.
        "MessageAttributeNames": ["All"],
        "MessageSystemAttributeNames": ["All"],
    }
    if attempt_id is not None:
        parameters["ReceiveRequestAttemptId"] = attempt_id
    return parameters


def delete_parameters(url: str, receipt_handles: Sequence[str]) -> Parameters:
    """Return the request of one batch delete; entries are named by their place."""
    entries = [{"Id": str(index), "ReceiptHandle": handle} for index, handle in enumerate(receipt_handles)]
    return {"QueueUrl": url, "Entries": entries}


def visibility_parameters(url: str, changes: Sequence[VisibilityChange]) -> Parameters:
    """Return the request of one visibility batch; entries are named by their place."""
    entries = [
        {"Id": str(index), "ReceiptHandle": change.receipt_handle, "VisibilityTimeout": change.timeout}
        for index, change in enumerate(changes)
    ]
    return {"QueueUrl": url, "Entries": entries}


def send_parameters(url: str, messages: Sequence[OutgoingMessage]) -> Parameters:
    """Return the request of one batch send; entries are named by their place."""
    return {"QueueUrl": url, "Entries": [_send_entry(index, message) for index, message in enumerate(messages)]}


def _send_entry(index: int, message: OutgoingMessage) -> Parameters:
    entry: Parameters = {"Id": str(index), "MessageBody": message.body}
    if message.message_attributes:
        entry["MessageAttributes"] = {name: _attribute(value) for name, value in message.message_attributes.items()}
    if message.delay is not None:
        entry["DelaySeconds"] = message.delay
    if message.group_id is not None:
        entry["MessageGroupId"] = message.group_id
    if message.deduplication_id is not None:
        entry["MessageDeduplicationId"] = message.deduplication_id
    if message.trace_header is not None:
        entry["MessageSystemAttributes"] = {
            "AWSTraceHeader": _attribute(MessageAttribute("String", message.trace_header))
        }
    return entry


def _attribute(attribute: MessageAttribute) -> Parameters:
    wire: Parameters = {"DataType": attribute.data_type}
    if attribute.string_value is not None:
        wire["StringValue"] = attribute.string_value
    if attribute.binary_value is not None:
        wire["BinaryValue"] = attribute.binary_value
    return wire


def attribute_parameters(url: str) -> Parameters:
    """Return the request for all attributes of a queue."""
    return {"QueueUrl": url, "AttributeNames": ["All"]}


def read_messages(answer: Parameters, queue: str) -> list[Message]:
    """Return the messages of a receive as botocore parsed it.

    One that cannot be read takes no other with it: it is left out and logged. Where there is none with an id, the error
    is raised: the endpoint does not answer like SQS.
    """
    messages: list[Message] = []
    odd: list[tuple[str | None, Exception]] = []
    for wire in answer.get("Messages") or ():
        try:
            messages.append(_message(wire, queue))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            known = cast("Parameters", wire).get("MessageId") if isinstance(wire, dict) else None
            odd.append((None if known is None else quote(str(known)), error))
    if odd:
        if not messages and all(known is None for known, _ in odd):
            raise odd[0][1]
        what, why = counted(len(odd), "message"), type(odd[0][1]).__name__
        _log.warning(_ODD, what, queue, why, ", ".join(each or "no id" for each, _ in odd), extra=about(queue=queue))
    return messages


def decode_messages(body: bytes, queue: str) -> list[Message]:
    """Return the messages of a receive from the bytes of the answer.

    Raises:
        ValueError, LookupError, msgspec.DecodeError: it is not the answer to a receive.
    """
    try:
        messages = _decode_receive(body).messages
    except msgspec.DecodeError:  # some local servers write null where SQS leaves out, or what is not Unicode
        return read_messages(_decode_loosely(body), queue)
    for message in messages:
        msgspec.structs.force_setattr(message, "queue", queue)  # it is not shared yet
    return messages


class _Receive(msgspec.Struct, gc=False):
    messages: list[Message] = msgspec.field(default_factory=list[Message], name="Messages")


_decode_receive: Final = msgspec.json.Decoder(_Receive).decode


def _message(wire: Parameters, queue: str) -> Message:
    attributes: Mapping[str, Parameters] = wire.get("MessageAttributes") or {}
    return Message(
        id=wire["MessageId"],
        body=_text(wire.get("Body")) or "",
        receipt_handle=wire.get("ReceiptHandle") or "",
        message_attributes={
            name: MessageAttribute(
                data_type=value.get("DataType") or "String",
                string_value=_text(value.get("StringValue")),
                binary_value=_binary(value.get("BinaryValue")),
            )
            for name, value in attributes.items()
        },
        system_attributes=_texts(wire.get("Attributes") or {}),
        queue=queue,
    )


def _texts(attributes: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in attributes.items() if value is not None}


def _text(value: object) -> str | None:
    # Some local servers write numbers where SQS writes their text.
    return None if value is None else str(value)


def _binary(value: str | bytes | None) -> bytes | None:
    # botocore decodes it; in the JSON it is Base64.
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


def _decode_loosely(body: bytes) -> Parameters:
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError:  # half of a surrogate pair
        answer = json.loads(body)
    if not isinstance(answer, dict):
        raise ValueError("the answer is not a JSON object")  # noqa: TRY004 - what it says is wrong, not a type of ours
    return cast("Parameters", answer)


def read_failures(answer: Parameters, count: int) -> list[EntryFailure]:
    """Return the entries of a batch of ``count`` that SQS did not confirm, in order, each once.

    An id that was not in the request names nothing; what is named as refused and as successful is refused.
    """
    places = {str(index): index for index in range(count)}
    failures: dict[int, EntryFailure] = {}
    for entry in answer.get("Failed") or ():
        if (index := places.get(_id_of(entry))) is not None:
            failures.setdefault(index, _failure(index, entry))
    confirmed = {_id_of(entry) for entry in answer.get("Successful") or ()}
    for name, index in places.items():
        # Not taken for a success: a delete that was not done lets the message come back
        # unannounced.
        if name not in confirmed and index not in failures:
            failures[index] = EntryFailure(index, UNCONFIRMED, "SQS's answer does not name this entry")
    return [failures[index] for index in sorted(failures)]


def _id_of(entry: Parameters) -> str:
    return str(entry.get("Id"))


def decode_failures(body: bytes, count: int) -> list[EntryFailure]:
    """Return the entries of a batch of ``count`` that SQS did not confirm, from the bytes of the answer.

    Raises:
        ValueError, LookupError, msgspec.DecodeError: it is not the answer to a batch.
    """
    try:
        answer = _decode_batch(body)
    except msgspec.ValidationError:
        answer = None
    # The usual answer, found without making a dictionary of it.
    if answer is not None and not answer.failed and {entry.id for entry in answer.successful} == _ids(count):
        return []
    return read_failures(_decode_loosely(body), count)


@functools.cache
def _ids(count: int) -> set[str]:
    return set(map(str, range(count)))


class _Confirmed(msgspec.Struct, gc=False):
    id: str = msgspec.field(name="Id")


class _Batch(msgspec.Struct, gc=False):
    successful: list[_Confirmed] = msgspec.field(default_factory=list[_Confirmed], name="Successful")
    failed: list[msgspec.Raw] = msgspec.field(default_factory=list[msgspec.Raw], name="Failed")


_decode_batch: Final = msgspec.json.Decoder(_Batch).decode


def _failure(index: int, entry: Parameters) -> EntryFailure:
    return EntryFailure(
        index=index,
        code=str(entry.get("Code") or ""),
        text=str(entry.get("Message") or ""),
        sender_fault=bool(entry.get("SenderFault")),
    )


def read_send_results(answer: Parameters, count: int) -> list[SendResult | EntryFailure]:
    """Return one result per message of a batch send, in order."""
    failures = {failure.index: failure for failure in read_failures(answer, count)}
    sent = {_id_of(entry): entry for entry in answer.get("Successful") or ()}
    return [failures[index] if index in failures else _sent(index, sent[str(index)]) for index in range(count)]


def _sent(index: int, entry: Parameters) -> SendResult:
    return SendResult(index, str(entry.get("MessageId") or ""), entry.get("SequenceNumber"))


def error_code_of(body: bytes) -> str:
    """Return the error code that an error answer names, without its namespace; empty if it names none."""
    try:
        said = msgspec.json.decode(body, type=_Error)
    except msgspec.DecodeError:
        return ""
    # The JSON protocol writes the shape's namespace before a "#"; the query protocol does not.
    return said.type.rsplit("#", 1)[-1]


class _Error(msgspec.Struct):
    type: str = msgspec.field(default="", name="__type")


_FRACTION: Final = re.compile(r"\A(\d+)\.0+\Z")


def read_attributes(answer: Parameters) -> dict[str, str]:
    """Return the attributes of a queue as SQS writes them: texts, without fractions, and none that is empty."""
    said: Mapping[str, object] = answer.get("Attributes") or {}
    texts = {name: str(value) for name, value in said.items() if value is not None}
    return {name: _FRACTION.sub(r"\1", text) for name, text in texts.items() if text}


def queue_info_of(address: Address, url: str, attributes: Mapping[str, str] | None) -> QueueInfo:
    """Return what is known of a queue: what it says of itself, or what its name says if it may not be asked.

    Args:
        address: what its name says.
        url: its URL.
        attributes: its attributes; None if they are not known.
    """
    said = attributes or {}
    return QueueInfo(
        name=address.name,
        url=url,
        arn=said.get("QueueArn") or address.arn,
        fifo=said.get("FifoQueue") == "true" or address.name.endswith(".fifo"),
        visibility_timeout=int(said.get("VisibilityTimeout", 30)),
        redrive=_redrive_of(said.get("RedrivePolicy")),
        attributes=said,
        attributes_known=attributes is not None,
    )


def _redrive_of(policy: str | None) -> RedrivePolicy | None:
    if policy:
        msgspec.json.decode(policy, type=dict[str, Any] | None)  # what is none is no answer of SQS
    return RedrivePolicy.parse(policy)
