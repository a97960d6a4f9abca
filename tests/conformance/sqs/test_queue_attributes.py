"""Queue attributes: defaults, bounds, what can be set when, policies and counts."""

import json
import time
from typing import Any

import pytest

from conformance.sqs.checks import MakeQueue, attribute, eventually, page, receive_one, refused, unique
from conformance.sqs.wire import path_of

BOUNDS = {
    "DelaySeconds": (0, 900),
    "MaximumMessageSize": (1024, 1_048_576),
    "MessageRetentionPeriod": (60, 1_209_600),
    "ReceiveMessageWaitTimeSeconds": (0, 20),
    "VisibilityTimeout": (0, 43_200),
    "KmsDataKeyReusePeriodSeconds": (60, 86_400),
}
NEEDS = {"KmsDataKeyReusePeriodSeconds": {"KmsMasterKeyId": "alias/aws/sqs"}}
COUNTS = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed")
FIFO_ONLY = {"FifoQueue", "ContentBasedDeduplication", "DeduplicationScope", "FifoThroughputLimit"}


def everything(sqs: Any, url: str) -> dict[str, str]:
    """Return all attributes of the queue."""
    found: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    return found


def a_policy(url: str) -> dict[str, Any]:
    """Return a policy for the queue, of one statement."""
    statement = {"Sid": "one", "Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": url}
    return {"Version": "2012-10-17", "Statement": [statement]}


@page("API_CreateQueue")
def test_defaults(either_sqs: Any, queue: str) -> None:
    """A new queue has the documented defaults, among them a maximum message size of 1 MiB."""
    assert {
        "DelaySeconds": "0",
        "MaximumMessageSize": "1048576",
        "MessageRetentionPeriod": "345600",
        "ReceiveMessageWaitTimeSeconds": "0",
        "VisibilityTimeout": "30",
    }.items() <= everything(either_sqs, queue).items()


@page("sqs-configure-sqs-sse-queue", recorded=True)
def test_encryption_by_default(sqs: Any, queue: str) -> None:
    """A new queue is encrypted with keys that SQS owns."""
    assert attribute(sqs, queue, "SqsManagedSseEnabled") == "true"


@page("API_GetQueueAttributes")
def test_arn(target: Any, sqs: Any, queue: str) -> None:
    """QueueArn names region, account and queue."""
    account, name = path_of(queue).strip("/").split("/")[-2:]
    found = attribute(sqs, queue, "QueueArn")
    assert found is not None
    assert found.startswith("arn:aws")
    assert found.endswith(f":sqs:{target.region}:{account}:{name}")


@page("API_GetQueueAttributes")
def test_timestamps(sqs: Any, queue: str) -> None:
    """CreatedTimestamp and LastModifiedTimestamp are epoch seconds."""
    found = everything(sqs, queue)
    for name in ("CreatedTimestamp", "LastModifiedTimestamp"):
        assert abs(int(found[name]) - time.time()) < 60


@page("API_GetQueueAttributes")
def test_only_what_was_asked(either_sqs: Any, queue: str) -> None:
    """Only the attributes asked for are returned."""
    names = ["DelaySeconds", "VisibilityTimeout"]
    found = either_sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
    assert found == {"DelaySeconds": "0", "VisibilityTimeout": "30"}


@page("API_GetQueueAttributes")
def test_nothing_asked(sqs: Any, queue: str) -> None:
    """Without names the answer is empty."""
    assert not sqs.get_queue_attributes(QueueUrl=queue).get("Attributes")


@page("API_GetQueueAttributes")
def test_unknown_name_asked(either_sqs: Any, queue: str) -> None:
    """An unknown attribute name raises InvalidAttributeName."""
    refusal = refused(either_sqs.get_queue_attributes, QueueUrl=queue, AttributeNames=["Colour"])
    assert isinstance(refusal.error, either_sqs.exceptions.InvalidAttributeName)


@page("API_GetQueueAttributes")
def test_standard_queue_has_no_fifo_attributes(sqs: Any, queue: str) -> None:
    """FIFO attributes apply to FIFO queues only."""
    assert not FIFO_ONLY & everything(sqs, queue).keys()


@page("API_GetQueueAttributes", recorded=True)
def test_fifo_defaults(sqs: Any, make_queue: MakeQueue) -> None:
    """A FIFO queue says so, and has its documented defaults."""
    assert {
        "FifoQueue": "true",
        "ContentBasedDeduplication": "false",
        "DeduplicationScope": "queue",
        "FifoThroughputLimit": "perQueue",
    }.items() <= everything(sqs, make_queue(fifo=True)).items()


@page("API_CreateQueue")
@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_at_creation(sqs: Any, make_queue: MakeQueue, name: str) -> None:
    """Each number is accepted at its bounds and refused beyond them, or where it is no number, at creation."""
    low, high = BOUNDS[name]
    for value in (low, high):
        assert attribute(sqs, make_queue(**{name: value}, **NEEDS.get(name, {})), name) == str(value)
    for wrong in (low - 1, high + 1, "many"):
        refusal = refused(sqs.create_queue, QueueName=unique(), Attributes={name: str(wrong)})
        assert isinstance(refusal.error, sqs.exceptions.InvalidAttributeValue), wrong


@page("API_SetQueueAttributes")
@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_later(sqs: Any, queue: str, name: str) -> None:
    """SetQueueAttributes has the same bounds, and changes nothing when it refuses."""
    low, high = BOUNDS[name]
    for value in (high, low):
        sqs.set_queue_attributes(QueueUrl=queue, Attributes={name: str(value), **NEEDS.get(name, {})})
    for wrong in (low - 1, high + 1, "many"):
        refusal = refused(sqs.set_queue_attributes, QueueUrl=queue, Attributes={name: str(wrong)})
        assert isinstance(refusal.error, sqs.exceptions.InvalidAttributeValue), wrong
    eventually(lambda: attribute(sqs, queue, name), str(low))


@page("API_CreateQueue")
def test_unknown_attribute_at_creation(either_sqs: Any) -> None:
    """An unknown attribute raises InvalidAttributeName at creation."""
    refusal = refused(either_sqs.create_queue, QueueName=unique(), Attributes={"Colour": "blue"})
    assert isinstance(refusal.error, either_sqs.exceptions.InvalidAttributeName)


@page("API_SetQueueAttributes")
def test_unknown_attribute_later(either_sqs: Any, queue: str) -> None:
    """An unknown attribute raises InvalidAttributeName later."""
    refusal = refused(either_sqs.set_queue_attributes, QueueUrl=queue, Attributes={"Colour": "blue"})
    assert isinstance(refusal.error, either_sqs.exceptions.InvalidAttributeName)


@page("API_SetQueueAttributes")
def test_set_changes(either_sqs: Any, queue: str) -> None:
    """SetQueueAttributes changes what it names and leaves the rest."""
    either_sqs.set_queue_attributes(QueueUrl=queue, Attributes={"VisibilityTimeout": "69", "DelaySeconds": "420"})
    eventually(lambda: attribute(either_sqs, queue, "VisibilityTimeout"), "69")
    found = everything(either_sqs, queue)
    assert (found["DelaySeconds"], found["MaximumMessageSize"]) == ("420", "1048576")
    assert float(found["LastModifiedTimestamp"]) >= float(found["CreatedTimestamp"])


@page("API_SetQueueAttributes")
def test_set_on_a_missing_queue(sqs: Any, queue: str) -> None:
    """SetQueueAttributes of a missing queue raises QueueDoesNotExist."""
    refusal = refused(sqs.set_queue_attributes, QueueUrl=queue + "-never", Attributes={"DelaySeconds": "1"})
    assert isinstance(refusal.error, sqs.exceptions.QueueDoesNotExist)


@page("API_CreateQueue", recorded=True)
def test_type_is_fixed(sqs: Any, queue: str, fifo: str) -> None:
    """A queue's type cannot be changed, in either direction."""
    to_fifo = refused(sqs.set_queue_attributes, QueueUrl=queue, Attributes={"FifoQueue": "true"})
    assert isinstance(to_fifo.error, sqs.exceptions.InvalidAttributeName)
    to_standard = refused(sqs.set_queue_attributes, QueueUrl=fifo, Attributes={"FifoQueue": "false"})
    assert isinstance(to_standard.error, sqs.exceptions.InvalidAttributeValue)


@page("API_CreateQueue", recorded=True)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ContentBasedDeduplication", "true"),
        ("DeduplicationScope", "messageGroup"),
        ("FifoThroughputLimit", "perMessageGroupId"),
    ],
)
def test_fifo_attribute_on_a_standard_queue(sqs: Any, name: str, value: str) -> None:
    """A FIFO attribute on a standard queue raises InvalidAttributeName."""
    refusal = refused(sqs.create_queue, QueueName=unique(), Attributes={name: value})
    assert isinstance(refusal.error, sqs.exceptions.InvalidAttributeName)


@page("API_CreateQueue")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ContentBasedDeduplication", "perhaps"),
        ("DeduplicationScope", "world"),
        ("FifoThroughputLimit", "perWorld"),
        ("FifoQueue", "perhaps"),
    ],
)
def test_fifo_attribute_values(sqs: Any, name: str, value: str) -> None:
    """Each FIFO attribute has a closed set of values."""
    attributes = {"FifoQueue": "true", name: value}
    refusal = refused(sqs.create_queue, QueueName=unique() + ".fifo", Attributes=attributes)
    assert isinstance(refusal.error, sqs.exceptions.InvalidAttributeValue)


@page("API_CreateQueue")
def test_throughput_limit_needs_the_scope(sqs: Any) -> None:
    """The limit perMessageGroupId is allowed only with the deduplication scope messageGroup."""
    attributes = {"FifoQueue": "true", "FifoThroughputLimit": "perMessageGroupId", "DeduplicationScope": "queue"}
    refused(sqs.create_queue, QueueName=unique() + ".fifo", Attributes=attributes)


@page("API_SetQueueAttributes")
def test_high_throughput_can_be_switched_on(sqs: Any, fifo: str) -> None:
    """High throughput can be switched on for an existing FIFO queue."""
    wanted = {"DeduplicationScope": "messageGroup", "FifoThroughputLimit": "perMessageGroupId"}
    sqs.set_queue_attributes(QueueUrl=fifo, Attributes=wanted)
    eventually(lambda: wanted.items() <= everything(sqs, fifo).items(), expected=True)


@page("API_SetQueueAttributes")
@pytest.mark.parametrize("name", ["QueueArn", "ApproximateNumberOfMessages", "CreatedTimestamp"])
def test_read_only_attributes(sqs: Any, queue: str, name: str) -> None:
    """What a queue tells about itself cannot be set."""
    refusal = refused(sqs.set_queue_attributes, QueueUrl=queue, Attributes={name: "1"})
    assert isinstance(refusal.error, sqs.exceptions.InvalidAttributeName)


@page("API_SetQueueAttributes")
def test_policy_is_kept(either_sqs: Any, queue: str) -> None:
    """A policy is returned as it was set."""
    policy = a_policy(attribute(either_sqs, queue, "QueueArn") or "")
    either_sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": json.dumps(policy)})
    assert json.loads(attribute(either_sqs, queue, "Policy") or "{}") == policy


@page("API_SetQueueAttributes", recorded=True)
def test_empty_policy_removes_it(sqs: Any, queue: str) -> None:
    """An empty policy removes the policy."""
    policy = a_policy(attribute(sqs, queue, "QueueArn") or "")
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": json.dumps(policy)})
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": ""})
    assert "Policy" not in everything(sqs, queue)


@page("troubleshooting-api-errors")
def test_malformed_policy(sqs: Any, queue: str) -> None:
    """A policy that is not JSON raises InvalidAttributeValue."""
    refusal = refused(sqs.set_queue_attributes, QueueUrl=queue, Attributes={"Policy": "{not json"})
    assert isinstance(refusal.error, sqs.exceptions.InvalidAttributeValue)


@page("API_SetQueueAttributes", recorded=True)
def test_one_kind_of_encryption(sqs: Any, queue: str) -> None:
    """A queue has one kind of encryption: a KMS key takes the place of SQS's own keys, and both at once are refused."""
    both = {"KmsMasterKeyId": "alias/MyAlias", "SqsManagedSseEnabled": "true"}
    refused(sqs.set_queue_attributes, QueueUrl=queue, Attributes=both)
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"KmsMasterKeyId": "alias/MyAlias"})
    found = everything(sqs, queue)
    assert (found["KmsMasterKeyId"], found["SqsManagedSseEnabled"]) == ("alias/MyAlias", "false")


@page("API_GetQueueAttributes")
def test_counts(either_sqs: Any, queue: str) -> None:
    """The three counts tell available, in-flight and delayed messages apart."""

    def counts() -> list[str]:
        found = either_sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=list(COUNTS))["Attributes"]
        return [found[name] for name in COUNTS]

    assert counts() == ["0", "0", "0"]
    for number in range(3):
        either_sqs.send_message(QueueUrl=queue, MessageBody=str(number))
    either_sqs.send_message(QueueUrl=queue, MessageBody="later", DelaySeconds=900)
    message = receive_one(either_sqs, queue)
    eventually(counts, ["2", "1", "1"])
    either_sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    eventually(counts, ["2", "0", "1"])


@page("API_GetQueueAttributes")
def test_counts_after_the_timeout(sqs: Any, make_queue: MakeQueue) -> None:
    """A message counts as available again once its visibility timeout has passed."""
    url = make_queue(VisibilityTimeout=1)
    sqs.send_message(QueueUrl=url, MessageBody="x")
    receive_one(sqs, url)
    eventually(lambda: attribute(sqs, url, COUNTS[1]), "0")
    assert attribute(sqs, url, COUNTS[0]) == "1"


def permission(label: str = "friends", **changes: Any) -> dict[str, Any]:
    """Return the parameters of an AddPermission."""
    return {"Label": label, "AWSAccountIds": ["111122223333"], "Actions": ["ReceiveMessage"], **changes}


@page("API_AddPermission")
def test_permission_becomes_policy(either_sqs: Any, queue: str) -> None:
    """AddPermission writes a statement with its label into the policy, and RemovePermission takes it out."""
    either_sqs.add_permission(QueueUrl=queue, **permission("friends"))
    either_sqs.add_permission(QueueUrl=queue, **permission("others"))
    statements = json.loads(attribute(either_sqs, queue, "Policy") or "{}")["Statement"]
    assert [statement["Sid"] for statement in statements] == ["friends", "others"]
    assert {statement["Effect"] for statement in statements} == {"Allow"}
    either_sqs.remove_permission(QueueUrl=queue, Label="friends")
    statements = json.loads(attribute(either_sqs, queue, "Policy") or "{}")["Statement"]
    assert [statement["Sid"] for statement in statements] == ["others"]


@page("API_AddPermission", recorded=True)
def test_permission_label_is_unique(sqs: Any, queue: str) -> None:
    """A label that is taken is refused, and so is removing one that is not there."""
    sqs.add_permission(QueueUrl=queue, **permission())
    assert refused(sqs.add_permission, QueueUrl=queue, **permission()).code == "InvalidParameterValue"
    assert refused(sqs.remove_permission, QueueUrl=queue, Label="nobody").code == "InvalidParameterValue"


@page("API_AddPermission")
@pytest.mark.parametrize("label", ["x" * 81, "with space", "with.dot"], ids=["81-characters", "space", "dot"])
def test_permission_label_rules(sqs: Any, queue: str, label: str) -> None:
    """A label has up to 80 letters, digits, hyphens and underscores."""
    refused(sqs.add_permission, QueueUrl=queue, **permission(label))


@page("API_AddPermission")
def test_permission_for_an_unknown_action(sqs: Any, queue: str) -> None:
    """Only the names of actions can be permitted."""
    refused(sqs.add_permission, QueueUrl=queue, **permission(Actions=["Juggle"]))


@page("API_AddPermission")
def test_permission_for_too_many_actions(sqs: Any, queue: str) -> None:
    """A statement has at most seven actions: OverLimit, with status 403."""
    actions = [
        "SendMessage",
        "ReceiveMessage",
        "DeleteMessage",
        "ChangeMessageVisibility",
        "GetQueueAttributes",
        "GetQueueUrl",
        "PurgeQueue",
        "ListDeadLetterSourceQueues",
    ]
    refusal = refused(sqs.add_permission, QueueUrl=queue, **permission(Actions=actions))
    assert isinstance(refusal.error, sqs.exceptions.OverLimit)
    assert refusal.status == 403
