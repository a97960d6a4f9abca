"""The shapes of requests and responses, as the SQS API names them.

One struct per shape serves both wire protocols: msgspec reads and writes them as JSON, the query protocol reads them
from form fields and writes them as XML. Field names are SQS's own in PascalCase.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_Operations.html
"""

from typing import TypeAlias

import msgspec


class Shape(msgspec.Struct, rename="pascal", omit_defaults=True):
    """The base of all shapes: fields that are absent or empty are not written."""


class AttributeValue(msgspec.Struct, rename="pascal", omit_defaults=True, frozen=True):
    """A message attribute, or a message system attribute, with its type."""

    string_value: str | None = None
    binary_value: bytes | None = None
    string_list_values: list[str] | None = None
    binary_list_values: list[bytes] | None = None
    data_type: str = ""


AttributeValues: TypeAlias = dict[str, AttributeValue]


# -- requests about queues ---------------------------------------------------------------------------------------


class CreateQueue(Shape):
    """API_CreateQueue. Two spellings of ``tags`` exist: the model says lower case, the query protocol ``Tag``."""

    queue_name: str | None = None
    attributes: dict[str, str] = {}
    tags: dict[str, str] = msgspec.field(name="tags", default_factory=dict[str, str])


class QueueRequest(Shape):
    """A request with the queue as its only parameter: DeleteQueue, PurgeQueue, ListQueueTags."""

    queue_url: str | None = None


class GetQueueUrl(Shape):
    """API_GetQueueUrl."""

    queue_name: str | None = None
    queue_owner_account_id: str | None = msgspec.field(name="QueueOwnerAWSAccountId", default=None)


class ListQueues(Shape):
    """API_ListQueues."""

    queue_name_prefix: str | None = None
    max_results: int | None = None
    next_token: str | None = None


class ListSources(QueueRequest):
    """API_ListDeadLetterSourceQueues."""

    max_results: int | None = None
    next_token: str | None = None


class GetAttributes(QueueRequest):
    """API_GetQueueAttributes."""

    attribute_names: list[str] = []


class SetAttributes(QueueRequest):
    """API_SetQueueAttributes."""

    attributes: dict[str, str] = {}


class TagQueue(QueueRequest):
    """API_TagQueue."""

    tags: dict[str, str] = {}


class UntagQueue(QueueRequest):
    """API_UntagQueue."""

    tag_keys: list[str] = []


class AddPermission(QueueRequest):
    """API_AddPermission."""

    label: str | None = None
    account_ids: list[str] = msgspec.field(name="AWSAccountIds", default_factory=list[str])
    actions: list[str] = []


class RemovePermission(QueueRequest):
    """API_RemovePermission."""

    label: str | None = None


class StartMove(Shape):
    """API_StartMessageMoveTask."""

    source_arn: str | None = None
    destination_arn: str | None = None
    max_number_of_messages_per_second: int | None = None


class ListMoves(Shape):
    """API_ListMessageMoveTasks."""

    source_arn: str | None = None
    max_results: int | None = None


class CancelMove(Shape):
    """API_CancelMessageMoveTask."""

    task_handle: str | None = None


# -- requests about messages -------------------------------------------------------------------------------------


class Send(Shape):
    """What SendMessage and each entry of SendMessageBatch say of one message."""

    message_body: str | None = None
    delay_seconds: int | None = None
    message_attributes: AttributeValues = {}
    message_system_attributes: AttributeValues = {}
    message_deduplication_id: str | None = None
    message_group_id: str | None = None


class SendMessage(Send):
    """API_SendMessage."""

    queue_url: str | None = None


class SendEntry(Send):
    """API_SendMessageBatchRequestEntry."""

    id: str | None = None


class SendBatch(QueueRequest):
    """API_SendMessageBatch."""

    entries: list[SendEntry] = []


class Receive(QueueRequest):
    """API_ReceiveMessage."""

    attribute_names: list[str] = []
    message_system_attribute_names: list[str] = []
    message_attribute_names: list[str] = []
    max_number_of_messages: int | None = None
    visibility_timeout: int | None = None
    wait_time_seconds: int | None = None
    receive_request_attempt_id: str | None = None


class Delete(QueueRequest):
    """API_DeleteMessage."""

    receipt_handle: str | None = None


class DeleteEntry(Shape):
    """API_DeleteMessageBatchRequestEntry."""

    id: str | None = None
    receipt_handle: str | None = None


class DeleteBatch(QueueRequest):
    """API_DeleteMessageBatch."""

    entries: list[DeleteEntry] = []


class ChangeVisibility(QueueRequest):
    """API_ChangeMessageVisibility."""

    receipt_handle: str | None = None
    visibility_timeout: int | None = None


class ChangeVisibilityEntry(DeleteEntry):
    """API_ChangeMessageVisibilityBatchRequestEntry."""

    visibility_timeout: int | None = None


class ChangeVisibilityBatch(QueueRequest):
    """API_ChangeMessageVisibilityBatch."""

    entries: list[ChangeVisibilityEntry] = []


# -- responses ---------------------------------------------------------------------------------------------------


class QueueUrl(Shape):
    """The result of CreateQueue and GetQueueUrl."""

    queue_url: str


class QueueUrls(Shape):
    """The result of ListQueues."""

    queue_urls: list[str] = []
    next_token: str | None = None


class SourceQueueUrls(Shape):
    """The result of ListDeadLetterSourceQueues; its list has a name of its own, and is there even if empty."""

    queue_urls: list[str] = msgspec.field(name="queueUrls")
    next_token: str | None = None


class QueueAttributes(Shape):
    """The result of GetQueueAttributes."""

    attributes: dict[str, str] = {}


class QueueTags(Shape):
    """The result of ListQueueTags."""

    tags: dict[str, str] = {}


class Sent(Shape):
    """The result of SendMessage."""

    message_id: str
    md5_of_body: str = msgspec.field(name="MD5OfMessageBody")
    md5_of_attributes: str | None = msgspec.field(name="MD5OfMessageAttributes", default=None)
    md5_of_system_attributes: str | None = msgspec.field(name="MD5OfMessageSystemAttributes", default=None)
    sequence_number: str | None = None


class SentEntry(Sent, kw_only=True):
    """API_SendMessageBatchResultEntry."""

    id: str


class EntryDone(Shape):
    """One entry of a delete or visibility batch that took effect."""

    id: str


class EntryError(Shape):
    """API_BatchResultErrorEntry."""

    id: str
    sender_fault: bool
    code: str
    message: str = ""


class BatchResult(Shape):
    """The result of a delete or visibility batch. An empty list is not written, as SQS does."""

    done: list[EntryDone] = msgspec.field(name="Successful", default_factory=list[EntryDone])
    failed: list[EntryError] = []


class SentBatch(Shape):
    """The result of SendMessageBatch."""

    sent: list[SentEntry] = msgspec.field(name="Successful", default_factory=list[SentEntry])
    failed: list[EntryError] = []


class Received(Shape):
    """API_Message: one receive of a message."""

    message_id: str
    receipt_handle: str
    md5_of_body: str = msgspec.field(name="MD5OfBody")
    body: str
    attributes: dict[str, str] = {}
    md5_of_message_attributes: str | None = msgspec.field(name="MD5OfMessageAttributes", default=None)
    message_attributes: AttributeValues = {}


class ReceivedMessages(Shape):
    """The result of ReceiveMessage."""

    messages: list[Received] = []


class MoveHandle(Shape):
    """The result of StartMessageMoveTask."""

    task_handle: str


class MoveTask(Shape):
    """API_ListMessageMoveTasksResultEntry."""

    status: str
    source_arn: str
    started_timestamp: int
    approximate_number_of_messages_moved: int
    task_handle: str | None = None
    destination_arn: str | None = None
    max_number_of_messages_per_second: int | None = None
    approximate_number_of_messages_to_move: int | None = None
    failure_reason: str | None = None


class MoveTasks(Shape):
    """The result of ListMessageMoveTasks."""

    results: list[MoveTask]


class MovedCount(Shape):
    """The result of CancelMessageMoveTask."""

    approximate_number_of_messages_moved: int
