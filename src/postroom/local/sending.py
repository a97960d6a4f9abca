"""What a send may say, and the message it becomes.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
"""

import re
from collections.abc import Sequence

from postroom.local.contents import (
    MAX_MESSAGE_BYTES,
    check_attributes,
    check_text,
    check_token,
    content_id,
    md5_of_attributes,
    md5_of_body,
    message_size,
    trace_header,
)
from postroom.local.errors import BrokerError, invalid_parameter, invalid_value, missing_parameter
from postroom.local.ids import Ids
from postroom.local.messages import Stored
from postroom.local.queue import LocalQueue
from postroom.local.receiving import not_for_this_type
from postroom.local.shapes import AttributeValue, ChangeVisibilityEntry, DeleteEntry, EntryError, Send, SendEntry
from postroom.message import OutgoingMessage

MAX_DELAY = 900
_NO_DEDUPLICATION = (
    "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly"
)
MAX_BATCH = 10
_TOO_LONG = "Reason: Message must be shorter than {} bytes."
_BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")


def entry_of(message: OutgoingMessage, entry_id: str | None = None) -> SendEntry:
    """Return a message to send as an entry of a batch, which is a single send as well."""
    attributes = {
        name: AttributeValue(
            data_type=value.data_type, string_value=value.string_value, binary_value=value.binary_value
        )
        for name, value in message.message_attributes.items()
    }
    header = message.trace_header
    trace = {} if header is None else {"AWSTraceHeader": AttributeValue(data_type="String", string_value=header)}
    return SendEntry(
        id=entry_id,
        message_body=message.body,
        message_attributes=attributes,
        delay_seconds=message.delay,
        message_group_id=message.group_id,
        message_deduplication_id=message.deduplication_id,
        message_system_attributes=trace,
    )


def new_message(queue: LocalQueue, request: Send, *, sender: str, now: float, ids: Ids) -> Stored:
    """Check a send and return the message that it makes, under the next sequence. Raises BrokerError."""
    body = request.message_body
    if not body:
        raise missing_parameter("MessageBody")
    attributes = request.message_attributes
    if attributes:
        check_attributes(attributes)
    size = message_size(body, attributes)
    if size > queue.settings.max_bytes:
        raise invalid_parameter(f"One or more parameters are invalid. {_TOO_LONG.format(queue.settings.max_bytes)}")
    check_text(body)
    return Stored(
        seq=ids.seq + 1,
        id=ids.unique(),
        body=body,
        md5=md5_of_body(body),
        sender=sender,
        sent_at=now,
        kept_since=now,
        attributes=attributes,
        attributes_md5=md5_of_attributes(attributes),
        trace=trace_header(request.message_system_attributes) if request.message_system_attributes else None,
        group=_group(queue, request),
        deduplication_id=_deduplication_id(queue, request, body),
        visible_at=now + _delay(queue, request),
    )


def _group(queue: LocalQueue, request: Send) -> str | None:
    group = request.message_group_id
    if group is not None:
        check_token("MessageGroupId", group)
    elif queue.fifo:
        raise missing_parameter("MessageGroupId")
    return group


def _deduplication_id(queue: LocalQueue, request: Send, body: str) -> str | None:
    given = request.message_deduplication_id
    if given is not None:
        if not queue.fifo:
            raise not_for_this_type("MessageDeduplicationId", given)
        check_token("MessageDeduplicationId", given)
        return given
    if not queue.fifo:
        return None
    if not queue.settings.content_based:
        raise invalid_parameter(_NO_DEDUPLICATION)
    return content_id(body)


def _delay(queue: LocalQueue, request: Send) -> int:
    delay = request.delay_seconds
    if delay is None:
        return queue.settings.delay
    if not 0 <= delay <= MAX_DELAY:
        raise invalid_value("DelaySeconds", delay, f"DelaySeconds must be >= 0 and <= {MAX_DELAY}.")
    if queue.fifo:
        if delay:
            reason = "The request include parameter that is not valid for this queue type."  # as SQS writes it
            raise invalid_value("DelaySeconds", delay, reason)
        return queue.settings.delay
    return delay


def deduplication_key(queue: LocalQueue, message: Stored, now: float) -> tuple[str, str]:
    """Return under which key a message of a FIFO queue is remembered: queue-wide, or in its message group."""
    scope = message.group or "" if queue.deduplicates_by_group(now) else ""
    return scope, message.deduplication_id or ""


def check_batch(
    action: str, entries: Sequence[SendEntry] | Sequence[DeleteEntry] | Sequence[ChangeVisibilityEntry]
) -> None:
    """Check what makes a batch fail as a whole: its size and its entry ids."""
    if not entries:
        raise BrokerError("EmptyBatchRequest", f"There should be at least one {action}RequestEntry in the request.")
    if len(entries) > MAX_BATCH:
        text = f"Maximum number of entries per request are {MAX_BATCH}. You have sent {len(entries)}."
        raise BrokerError("TooManyEntriesInBatchRequest", text)
    seen: set[str] = set()
    for entry in entries:
        if entry.id is None:
            raise missing_parameter(f"{action}RequestEntry.Id")
        if not _BATCH_ID.fullmatch(entry.id):
            text = (
                "A batch entry id can only contain alphanumeric characters, hyphens and underscores. "
                "It can be at most 80 letters long."
            )
            raise BrokerError("InvalidBatchEntryId", text)
        if entry.id in seen:
            raise BrokerError("BatchEntryIdsNotDistinct", f"Id {entry.id} repeated.")
        seen.add(entry.id)


def check_batch_ids(queue: LocalQueue, entries: Sequence[SendEntry]) -> None:
    """Check what fails a whole batch on a FIFO queue: an entry without a group, or without any deduplication id."""
    for entry in entries:
        if entry.message_group_id is None:
            raise invalid_parameter("The request must contain the parameter MessageGroupId.")
        if entry.message_deduplication_id is None and not queue.settings.content_based:
            raise invalid_parameter(_NO_DEDUPLICATION)


def as_entry_error(entry_id: str, error: BrokerError) -> EntryError:
    """Return a refusal as an entry of a batch's result shows it. SQS words one of them differently there."""
    text = error.message.replace("One or more parameters are invalid.", "One or more parameters cannot be validated.")
    return EntryError(id=entry_id, sender_fault=error.sender_fault, code=error.code, message=text)


def check_batch_size(entries: Sequence[SendEntry]) -> None:
    """Check the sum of the messages of a send batch. Raises BatchRequestTooLong."""
    total = sum(message_size(entry.message_body or "", entry.message_attributes) for entry in entries)
    if total > MAX_MESSAGE_BYTES:
        text = f"Batch requests cannot be longer than {MAX_MESSAGE_BYTES} bytes. You have sent {total} bytes."
        raise BrokerError("BatchRequestTooLong", text)
