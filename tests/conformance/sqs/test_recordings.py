"""Recorded answers: what AWS was recorded to answer where its pages leave a detail open.

Each check names the recording beside the page: a test of LocalStack's suite (``tests/aws/services/sqs``, marked as
validated against AWS), with AWS's own answers as snapshots; an issue of a repository in which an answer is quoted;
or a client of AWS that rests on the behaviour.
"""

import json
import string
import time
from typing import Any

import pytest

from conformance.sqs.checks import MakeQueue, Refusal, arn, attribute, page, receive, receive_one, refused, text, unique
from conformance.sqs.wire import Reply, Wire, path_of

NO_DEDUPLICATION = (
    "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly"
)
ONE_ENCRYPTION = (
    "You can use one type of server-side encryption (SSE) at one time. You can either enable KMS SSE or SQS SSE."
)


def told(refusal: Refusal) -> tuple[str, str]:
    """Return code and text of a refusal."""
    return refusal.code, refusal.message


def entries(*more: dict[str, Any]) -> list[dict[str, Any]]:
    """Return entries of a batch, each with an id and a body."""
    return [{"Id": str(number), "MessageBody": f"m{number}", **each} for number, each in enumerate(more)]


# -- behaviour ---------------------------------------------------------------------------------------------------


@page("API_SendMessageBatch", recording="test_send_batch_missing_message_group_id_for_fifo_queue")
def test_a_batch_without_one_group(either_sqs: Any, fifo: str) -> None:
    """On a FIFO queue, one entry without a group fails the whole batch, and nothing is sent."""
    batch = entries({"MessageGroupId": "g"}, {})
    refusal = refused(either_sqs.send_message_batch, QueueUrl=fifo, Entries=batch)
    assert told(refusal) == ("InvalidParameterValue", "The request must contain the parameter MessageGroupId.")
    assert receive(either_sqs, fifo) == []


@page("API_SendMessageBatch", recording="test_send_batch_missing_deduplication_id_for_fifo_queue")
def test_a_batch_without_one_deduplication_id(either_sqs: Any, make_queue: MakeQueue) -> None:
    """On a FIFO queue that does not deduplicate by content, one entry without an id fails the whole batch."""
    url = make_queue(fifo=True)
    batch = entries({"MessageGroupId": "g", "MessageDeduplicationId": "1"}, {"MessageGroupId": "g"})
    refusal = refused(either_sqs.send_message_batch, QueueUrl=url, Entries=batch)
    assert told(refusal) == ("InvalidParameterValue", NO_DEDUPLICATION)
    assert receive(either_sqs, url) == []


@page("API_ChangeMessageVisibility", recording="test_terminate_visibility_timeout_after_receive")
def test_visibility_by_an_earlier_handle(either_sqs: Any, queue: str) -> None:
    """On a standard queue, the handle of an earlier receive changes the visibility timeout."""
    either_sqs.send_message(QueueUrl=queue, MessageBody="x")
    first = receive_one(either_sqs, queue, VisibilityTimeout=0)
    receive_one(either_sqs, queue, VisibilityTimeout=300)
    either_sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=first["ReceiptHandle"], VisibilityTimeout=0)
    assert receive_one(either_sqs, queue)["MessageId"] == first["MessageId"]


@page("sqs-visibility-timeout", recording="test_inflight_message_requeue")
def test_order_after_a_visibility_timeout(sqs: Any, queue: str) -> None:
    """A message comes, once its visibility timeout has ended, before one that was sent while it was in flight."""
    sqs.send_message(QueueUrl=queue, MessageBody="first")
    receive_one(sqs, queue, VisibilityTimeout=1)
    sqs.send_message(QueueUrl=queue, MessageBody="second")
    time.sleep(1.1)
    assert receive_one(sqs, queue)["Body"] == "first"


@page("API_CreateQueue", recording="test_fifo_high_throughput_ordering")
@pytest.mark.parametrize("value", ["True", "False"])
def test_booleans(sqs: Any, make_queue: MakeQueue, value: str) -> None:
    """A boolean may be written as Python writes it."""
    url = make_queue(name=unique() + ".fifo", FifoQueue="True", ContentBasedDeduplication=value)
    assert attribute(sqs, url, "FifoQueue") == "true"
    assert attribute(sqs, url, "ContentBasedDeduplication") == value.lower()


@page("API_CreateQueue", recording="ansible-collections/community.aws, issue 2321")
@pytest.mark.parametrize("missing", ["maxReceiveCount", "deadLetterTargetArn"])
def test_a_redrive_policy_lacks_nothing(sqs: Any, make_queue: MakeQueue, missing: str) -> None:
    """A redrive policy without one of its two members is refused, and the refusal names it."""
    policy = {"deadLetterTargetArn": arn(sqs, make_queue()), "maxReceiveCount": 3}
    del policy[missing]
    refusal = refused(sqs.create_queue, QueueName=unique(), Attributes={"RedrivePolicy": json.dumps(policy)})
    assert refusal.code == "InvalidParameterValue"
    assert refusal.message.endswith(f"Reason: Redrive policy does not contain mandatory attribute: {missing}.")


@page("API_ReceiveMessage", recording="test_receive_message_message_attribute_names_filters")
@pytest.mark.parametrize("name", ["All", "*", ".*"])
def test_all_attributes(either_sqs: Any, queue: str, name: str) -> None:
    """Each of three names asks for all message attributes."""
    attributes = {"a": text("1"), "b.c": text("2")}
    either_sqs.send_message(QueueUrl=queue, MessageBody="x", MessageAttributes=attributes)
    assert receive_one(either_sqs, queue, MessageAttributeNames=[name])["MessageAttributes"] == attributes


@page("API_ReceiveMessage", recording="amazon-sqs-extended-client 1.0.1, which splits a handle at hyphens")
def test_the_alphabet_of_handles(sqs: Any, queue: str) -> None:
    """Receipt handles have the alphabet of standard base64, so that clients may put something before them."""
    sqs.send_message_batch(QueueUrl=queue, Entries=entries(*[{}] * 10))
    allowed = {*string.ascii_letters, *string.digits, "+", "/", "="}
    for _ in range(20):
        for message in receive(sqs, queue, VisibilityTimeout=0):
            assert set(message["ReceiptHandle"]) <= allowed


# -- codes -------------------------------------------------------------------------------------------------------


@page("API_CancelMessageMoveTask", recording="test_cancel_with_invalid_task_handle")
def test_a_text_that_is_no_task_handle(sqs: Any) -> None:
    """A text that is no task handle is an invalid value."""
    refusal = refused(sqs.cancel_message_move_task, TaskHandle="foobared")
    assert (refusal.status, *told(refusal)) == (
        400, "InvalidParameterValue", "Value for parameter TaskHandle is invalid."
    )  # fmt: skip


@page("API_StartMessageMoveTask", recording="test_move_task_delete_destination_queue_while_running")
def test_a_destination_that_goes(sqs: Any, make_queue: MakeQueue) -> None:
    """A task fails when its destination is deleted while it runs, and says that the queue does not exist."""
    dead, target = make_queue(), make_queue()
    make_queue(RedrivePolicy=json.dumps({"deadLetterTargetArn": arn(sqs, dead), "maxReceiveCount": 1}))
    sqs.send_message_batch(QueueUrl=dead, Entries=entries(*[{}] * 5))
    sqs.start_message_move_task(
        SourceArn=arn(sqs, dead), DestinationArn=arn(sqs, target), MaxNumberOfMessagesPerSecond=1
    )
    sqs.delete_queue(QueueUrl=target)
    time.sleep(1.1)
    [task] = sqs.list_message_move_tasks(SourceArn=arn(sqs, dead))["Results"]
    assert (task["Status"], task["FailureReason"]) == ("FAILED", "AWS.SimpleQueueService.NonExistentQueue")


@page("API_SetQueueAttributes", recording="test_sse_kms_and_sqs_are_mutually_exclusive")
def test_two_kinds_of_encryption(either_sqs: Any, queue: str) -> None:
    """A KMS key and SQS's own keys in one request are refused as a wrong name."""
    both = {"KmsMasterKeyId": "testKeyId", "SqsManagedSseEnabled": "true"}
    refusal = refused(either_sqs.set_queue_attributes, QueueUrl=queue, Attributes=both)
    assert told(refusal) == ("InvalidAttributeName", ONE_ENCRYPTION)


@page("API_SetQueueAttributes", recording="test_set_queue_attributes_default_values")
def test_a_key_is_reset(either_sqs: Any, queue: str) -> None:
    """An empty KMS key removes it: no attribute of KMS is listed then, and SQS's own keys do not come back."""
    attributes = {"KmsMasterKeyId": "testKeyId", "KmsDataKeyReusePeriodSeconds": "6000"}
    either_sqs.set_queue_attributes(QueueUrl=queue, Attributes=attributes)
    reset = {"KmsMasterKeyId": "", "KmsDataKeyReusePeriodSeconds": "300"}
    either_sqs.set_queue_attributes(QueueUrl=queue, Attributes=reset)
    found = either_sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
    assert [name for name in found if name.startswith("Kms")] == []
    assert found["SqsManagedSseEnabled"] == "false"


@page("API_SendMessage", recording="test_invalid_string_attributes_cause_invalid_parameter_value_error")
def test_a_control_character_in_an_attribute(either_sqs: Any, queue: str) -> None:
    """A control character in a string attribute is an invalid value."""
    attributes = {"attr1": text("Invalid-\x08,\x0b")}
    refusal = refused(either_sqs.send_message, QueueUrl=queue, MessageBody="x", MessageAttributes=attributes)
    assert refusal.code == "InvalidParameterValue"


@page("sqs-message-metadata", recording="test_send_message_with_invalid_string_attributes")
def test_letters_in_the_name_of_an_attribute(either_sqs: Any, queue: str) -> None:
    """The name of a message attribute may have letters of any alphabet."""
    attributes = {"attr.1øßä": text("Valida")}
    either_sqs.send_message(QueueUrl=queue, MessageBody="x", MessageAttributes=attributes)
    assert receive_one(either_sqs, queue, MessageAttributeNames=["All"])["MessageAttributes"] == attributes


@page("API_AddPermission", recording="test_sqs_permission_lifecycle")
def test_the_version_of_a_policy(sqs: Any, queue: str) -> None:
    """AddPermission writes a policy of the version 2008-10-17; an unknown label cannot be found."""
    sqs.add_permission(QueueUrl=queue, Label="a", AWSAccountIds=["668614515564"], Actions=["ReceiveMessage"])
    policy = json.loads(attribute(sqs, queue, "Policy") or "{}")
    assert (policy["Version"], policy["Id"]) == ("2008-10-17", f"{arn(sqs, queue)}/SQSDefaultPolicy")
    refusal = refused(sqs.remove_permission, QueueUrl=queue, Label="b")
    reason = "Value b for parameter Label is invalid. Reason: can't find label."
    assert told(refusal) == ("InvalidParameterValue", reason)


def sends(sqs: Any, url: str, *groups: str) -> list[str]:
    """Send one deduplication id in several groups; return the groups of the messages that came."""
    for group in groups:
        sqs.send_message(QueueUrl=url, MessageBody=group, MessageGroupId=group, MessageDeduplicationId="same")
    return sorted(message["Body"] for message in receive(sqs, url, wait=0))


@page("FIFO-queues-exactly-once-processing", recording="test_fifo_change_to_high_throughput_after_creation")
@pytest.mark.parametrize("scope", ["queue", "messageGroup"])
def test_a_changed_deduplication_scope(sqs: Any, make_queue: MakeQueue, scope: str) -> None:
    """A changed deduplication scope does not hold yet in the seconds after the change."""
    url = make_queue(fifo=True, DeduplicationScope=scope)
    other = {"queue": "messageGroup", "messageGroup": "queue"}[scope]
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"DeduplicationScope": other})
    assert attribute(sqs, url, "DeduplicationScope") == other
    assert sends(sqs, url, "a", "b") == (["a"] if scope == "queue" else ["a", "b"])


@page("API_GetQueueAttributes", recording="test_non_existent_queue")
def test_a_queue_url_without_a_path(either_sqs: Any, wire: Wire) -> None:
    """The URL of a host alone names no queue that exists."""
    refusal = refused(either_sqs.get_queue_attributes, QueueUrl="http://whatever")
    assert (refusal.status, refusal.code) == (400, "AWS.SimpleQueueService.NonExistentQueue")
    reply = wire.json("GetQueueAttributes", {"QueueUrl": "http://whatever"})
    assert reply.json["message"] == "The specified queue does not exist."


# -- texts -------------------------------------------------------------------------------------------------------


@page("API_ReceiveMessage", recording="test_send_receive_wait_time_seconds")
@pytest.mark.parametrize("seconds", [21, -1])
def test_text_for_a_wait(either_sqs: Any, queue: str, seconds: int) -> None:
    """A wait out of range is refused in SQS's words."""
    refusal = refused(either_sqs.receive_message, QueueUrl=queue, WaitTimeSeconds=seconds)
    reason = f"Value {seconds} for parameter WaitTimeSeconds is invalid. Reason: Must be >= 0 and <= 20, if provided."
    assert told(refusal) == ("InvalidParameterValue", reason)


@page("API_SendMessage", recording="test_fifo_queue_send_message_with_delay_seconds_fails")
def test_text_for_a_delay_on_a_fifo_queue(either_sqs: Any, fifo: str) -> None:
    """A delay of its own is refused on a FIFO queue in SQS's words."""
    message = {"MessageBody": "x", "MessageGroupId": "g", "DelaySeconds": 2}
    refusal = refused(either_sqs.send_message, QueueUrl=fifo, **message)
    reason = "The request include parameter that is not valid for this queue type."
    expected = f"Value 2 for parameter DelaySeconds is invalid. Reason: {reason}"
    assert told(refusal) == ("InvalidParameterValue", expected)


@page("API_CreateQueue", recording="test_create_standard_queue_with_fifo_attribute_raises_error")
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("FifoQueue", "false", "Unknown Attribute FifoQueue."),
        ("ContentBasedDeduplication", "false", "Unknown Attribute ContentBasedDeduplication."),
        ("DeduplicationScope", "queue",
         "You can specify the DeduplicationScope only when FifoQueue is set to true."),
        ("FifoThroughputLimit", "perQueue",
         "You can specify the FifoThroughputLimit only when FifoQueue is set to true."),
    ],
)  # fmt: skip
def test_text_for_fifo_attributes(either_sqs: Any, name: str, value: str, reason: str) -> None:
    """The attributes of a FIFO queue are refused on a standard one, two of them with the reason."""
    refusal = refused(either_sqs.create_queue, QueueName=unique(), Attributes={name: value})
    assert told(refusal) == ("InvalidAttributeName", reason)


@page("API_SetQueueAttributes", recording="test_set_unsupported_attribute_fifo")
def test_text_for_another_type(either_sqs: Any, fifo: str) -> None:
    """A FIFO queue stays one: the same value is taken, the other is refused in SQS's words."""
    either_sqs.set_queue_attributes(QueueUrl=fifo, Attributes={"FifoQueue": "true"})
    refusal = refused(either_sqs.set_queue_attributes, QueueUrl=fifo, Attributes={"FifoQueue": "false"})
    reason = "Invalid value for the parameter FifoQueue. Reason: Modifying queue type is not supported."
    assert told(refusal) == ("InvalidAttributeValue", reason)


@page("API_SendMessage", recording="test_send_message_with_empty_string_attribute")
def test_text_for_an_empty_attribute(either_sqs: Any, queue: str) -> None:
    """An empty message attribute is refused in SQS's words."""
    attributes = {"ErrorDetails": text("")}
    refusal = refused(either_sqs.send_message, QueueUrl=queue, MessageBody="x", MessageAttributes=attributes)
    reason = "Message (user) attribute 'ErrorDetails' must contain a non-empty value of type 'String'."
    assert told(refusal) == ("InvalidParameterValue", reason)


@page("API_SendMessageBatch", recording="test_send_batch_message_size, test_send_oversized_message")
def test_text_for_a_message_that_is_too_long(either_sqs: Any, make_queue: MakeQueue) -> None:
    """A message that is too long is refused in SQS's words, alone and in a batch."""
    url = make_queue(MaximumMessageSize=1024)
    body, reason = "x" * 1025, "Reason: Message must be shorter than 1024 bytes."
    refusal = refused(either_sqs.send_message, QueueUrl=url, MessageBody=body)
    assert told(refusal) == ("InvalidParameterValue", f"One or more parameters are invalid. {reason}")
    answer = either_sqs.send_message_batch(QueueUrl=url, Entries=[{"Id": "a", "MessageBody": body}])
    [failed] = answer["Failed"]
    assert failed["Code"] == "InvalidParameterValue"
    assert failed["Message"] == f"One or more parameters cannot be validated. {reason}"


# -- the query protocol ------------------------------------------------------------------------------------------


@page("CommonErrors", recording="test_get_create_queue_fails, test_get_list_queues_fails")
@pytest.mark.parametrize("action", ["CreateQueue", "ListQueues"])
def test_actions_of_the_service_on_a_queue(wire: Wire, queue: str, action: str) -> None:
    """The URL of a queue does not know the actions that are about no queue."""
    name = unique()
    reply = wire.query(action, {"QueueName": name}, path=path_of(queue), method="GET")
    assert (reply.status, reply.text("Error/Code")) == (400, "InvalidAction")
    assert reply.text("Error/Message") == f"The action {action} is not valid for this endpoint."


@page("CommonErrors", recording="test_get_without_query_returns_unknown_operation")
@pytest.mark.parametrize("accept", ["*/*", "application/json"])
def test_no_action(wire: Wire, queue: str, accept: str) -> None:
    """A GET without an action is no operation, in XML whatever is accepted."""
    reply = wire.send("GET", path_of(queue), headers={"Accept": accept})
    assert reply.status == 404
    assert b"<UnknownOperationException" in reply.body


@page("sqs-xml-api-responses", recording="test_get_send_and_receive_messages")
def test_an_empty_receive(wire: Wire, queue: str) -> None:
    """A receive without messages has an empty result."""
    reply = wire.query("ReceiveMessage", {}, path=path_of(queue), method="GET")
    assert b"<ReceiveMessageResult/>" in reply.body.replace(b" />", b"/>")


@page("API_ReceiveMessage", recording="test_message_system_attribute_names_with_attribute_names")
def test_two_lists_of_system_attributes(sqs: Any, query_sqs: Any, queue: str) -> None:
    """Of a receive that names system attributes in both ways, JSON takes both, the query protocol the older one."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    lists = {"AttributeNames": ["SenderId"], "MessageSystemAttributeNames": ["All"]}
    asked: dict[str, Any] = {**lists, "VisibilityTimeout": 0}
    assert len(receive_one(sqs, queue, **asked)["Attributes"]) > 1
    assert list(receive_one(query_sqs, queue, **asked)["Attributes"]) == ["SenderId"]


@page("sqs-xml-api-responses", recording="test_get_on_deleted_queue_fails")
def test_text_for_a_queue_that_does_not_exist(wire: Wire, queue: str) -> None:
    """The query protocol's text for a queue that does not exist speaks of a wsdl version."""
    reply = wire.query("PurgeQueue", {}, path=path_of(queue) + "-never")
    assert (reply.status, reply.text("Error/Code")) == (400, "AWS.SimpleQueueService.NonExistentQueue")
    assert (reply.text("Error/Message") or "").startswith("The specified queue does not exist for this wsdl version")


def in_json(wire: Wire, action: str, path: str) -> Reply:
    """Send a GET that accepts JSON."""
    target = f"{path}?Action={action}&Version=2012-11-05&AttributeName.1=All"
    return wire.send("GET", target, headers={"Accept": "application/json"})


@page("sqs-making-api-requests-xml", recording="test_get_list_queues_with_query_auth")
def test_json_in_the_query_protocol(sqs: Any, wire: Wire, queue: str) -> None:
    """A request of the query protocol that accepts JSON has its answer in JSON, a refusal too."""
    assert "ListQueuesResponse" in in_json(wire, "ListQueues", "/").json
    result = in_json(wire, "GetQueueAttributes", path_of(queue)).json["GetQueueAttributesResponse"]
    pairs = {each["Name"]: each["Value"] for each in result["GetQueueAttributesResult"]["Attributes"]}
    assert pairs["QueueArn"] == arn(sqs, queue)
    reply = in_json(wire, "ListQueues", path_of(queue))
    assert (reply.status, reply.json["Error"]["Code"]) == (400, "InvalidAction")


@page("API_SendMessage", recording="aws/aws-sdk-php, issue 694")
@pytest.mark.parametrize("more", [{}, {"MessageAttribute.1.Name": ""}, {"MessageAttribute.1.key": "Format"}])
def test_an_attribute_without_a_name(wire: Wire, queue: str, more: dict[str, str]) -> None:
    """A message attribute without a name is an invalid value, and the refusal says so."""
    value = {"MessageAttribute.1.Value.DataType": "String", "MessageAttribute.1.Value.StringValue": "json"}
    reply = wire.query("SendMessage", {"MessageBody": "x", **value, **more}, path=path_of(queue))
    assert (reply.status, reply.text("Error/Code")) == (400, "InvalidParameterValue")
    assert reply.text("Error/Message") == "The request must contain non-empty message attribute name."
