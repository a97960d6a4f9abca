"""What a receive may ask, and how it shows a message.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
"""

from postroom.local.contents import check_token, md5_of_attributes, selected
from postroom.local.errors import BrokerError, invalid_value, missing_parameter
from postroom.local.messages import Stored
from postroom.local.queue import LocalQueue
from postroom.local.shapes import Receive, Received

MAX_VISIBILITY = 43_200
"""Seconds: twelve hours."""
MAX_IN_FLIGHT = 120_000
_FIRST_SEQUENCE = 18_000_000_000_000_000_000
_SYSTEM_NAMES = (
    "SenderId",
    "SentTimestamp",
    "ApproximateReceiveCount",
    "ApproximateFirstReceiveTimestamp",
    "SequenceNumber",
    "MessageDeduplicationId",
    "MessageGroupId",
    "AWSTraceHeader",
    "DeadLetterQueueSourceArn",
)
_KNOWN_NAMES = frozenset({"All", "SqsManagedSseEnabled", *_SYSTEM_NAMES})


def check_receive(request: Receive, *, fifo: bool) -> None:
    """Check the parameters of a receive. Raises InvalidParameterValue or InvalidAttributeName."""
    _check_range("MaxNumberOfMessages", request.max_number_of_messages, 1, 10)
    wait = request.wait_time_seconds
    if wait is not None and not 0 <= wait <= 20:
        raise invalid_value("WaitTimeSeconds", wait, "Must be >= 0 and <= 20, if provided.")
    _check_range("VisibilityTimeout", request.visibility_timeout, 0, MAX_VISIBILITY)
    if request.receive_request_attempt_id is not None:
        if not fifo:
            raise not_for_this_type("ReceiveRequestAttemptId", request.receive_request_attempt_id)
        check_token("ReceiveRequestAttemptId", request.receive_request_attempt_id)
    for name in (*request.attribute_names, *request.message_system_attribute_names):
        if name not in _KNOWN_NAMES:
            raise BrokerError("InvalidAttributeName", f"Unknown Attribute {name}.")


def _check_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise invalid_value(name, value, f"Must be between {low} and {high}, if provided.")


def check_visibility(value: int | None) -> int:
    """Check a visibility timeout to set. Raises InvalidParameterValue."""
    if value is None:
        raise missing_parameter("VisibilityTimeout")
    if not 0 <= value <= MAX_VISIBILITY:
        raise invalid_value("VisibilityTimeout", value, f"Must be between 0 and {MAX_VISIBILITY}.")
    return value


def not_for_this_type(name: str, value: object) -> BrokerError:
    """Make the error for a parameter that belongs to the other type of queue."""
    return invalid_value(name, value, "The request includes a parameter that is not valid for this queue type.")


def sequence_number(seq: int) -> str:
    """Return a sequence number as SQS writes them: 20 digits that grow."""
    return str(_FIRST_SEQUENCE + seq)


def describe(queue: LocalQueue, message: Stored, request: Receive) -> Received:
    """Show a message that was just received, with the attributes that the receive asks for."""
    names = request.message_attribute_names
    attributes = selected(message.attributes, names) if names and message.attributes else {}
    if not attributes:
        digest = None
    elif len(attributes) == len(message.attributes):
        digest = message.attributes_md5
    else:
        digest = md5_of_attributes(attributes)
    return Received(
        message_id=message.id,
        receipt_handle=queue.handles.make(message),
        md5_of_body=message.md5,
        body=message.body,
        attributes=_system_attributes(queue, message, request),
        md5_of_message_attributes=digest,
        message_attributes=attributes,
    )


def _system_attributes(queue: LocalQueue, message: Stored, request: Receive) -> dict[str, str]:
    asked = (*request.attribute_names, *request.message_system_attribute_names)
    if not asked:
        return {}
    values = {
        "SenderId": message.sender,
        "SentTimestamp": str(int(message.sent_at * 1000)),
        "ApproximateReceiveCount": str(message.receives),
        "ApproximateFirstReceiveTimestamp": str(int(message.first_received_at * 1000)),
    }
    if queue.fifo:
        values["SequenceNumber"] = sequence_number(message.seq)
        values["MessageDeduplicationId"] = message.deduplication_id or ""
    if message.group is not None:
        values["MessageGroupId"] = message.group
    if message.trace is not None:
        values["AWSTraceHeader"] = message.trace
    if message.source_arn is not None:
        values["DeadLetterQueueSourceArn"] = message.source_arn
    if "All" in asked:
        return values
    return {name: value for name, value in values.items() if name in asked}
