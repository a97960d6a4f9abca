"""Receiving: how many, with which attributes, under which handle."""

import time
from typing import Any

import pytest

from conformance.sqs.checks import MakeQueue, bodies, collect, page, receive, receive_one, refused, send_all
from conformance.sqs.wire import Wire, path_of

TRACE = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
OF_EVERY_MESSAGE = {"SenderId", "SentTimestamp", "ApproximateReceiveCount", "ApproximateFirstReceiveTimestamp"}


@page("API_ReceiveMessage", recorded=True)
def test_empty_queue(either_sqs: Any, queue: str) -> None:
    """An empty queue answers without a list of messages."""
    assert "Messages" not in either_sqs.receive_message(QueueUrl=queue)


@page("API_ReceiveMessage")
def test_one_message_by_default(either_sqs: Any, queue: str) -> None:
    """MaxNumberOfMessages is 1 unless the request says otherwise."""
    send_all(either_sqs, queue, ["a", "b", "c"])
    assert len(either_sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=5)["Messages"]) == 1


@page("API_ReceiveMessage")
def test_never_more_than_asked(sqs: Any, queue: str) -> None:
    """A receive never returns more than MaxNumberOfMessages."""
    send_all(sqs, queue, [str(n) for n in range(12)])
    assert 1 <= len(receive(sqs, queue, 4)) <= 4
    assert 1 <= len(receive(sqs, queue, 10)) <= 10


@page("API_ReceiveMessage", recorded=True)
@pytest.mark.parametrize("count", [0, 11, -1])
def test_number_is_bounded(either_sqs: Any, queue: str, count: int) -> None:
    """MaxNumberOfMessages is 1 to 10."""
    refusal = refused(either_sqs.receive_message, QueueUrl=queue, MaxNumberOfMessages=count)
    assert (refusal.code, refusal.status) == ("InvalidParameterValue", 400)


@page("API_ReceiveMessage", recorded=True)
@pytest.mark.parametrize("seconds", [-1, 21])
def test_wait_is_bounded(either_sqs: Any, queue: str, seconds: int) -> None:
    """WaitTimeSeconds is 0 to 20."""
    refusal = refused(either_sqs.receive_message, QueueUrl=queue, WaitTimeSeconds=seconds)
    assert (refusal.code, refusal.status) == ("InvalidParameterValue", 400)


@page("API_ReceiveMessage")
@pytest.mark.parametrize("seconds", [-1, 43_201])
def test_visibility_is_bounded(either_sqs: Any, queue: str, seconds: int) -> None:
    """VisibilityTimeout is 0 to 43,200."""
    refusal = refused(either_sqs.receive_message, QueueUrl=queue, VisibilityTimeout=seconds)
    assert (refusal.code, refusal.status) == ("InvalidParameterValue", 400)


@page("API_ReceiveMessage")
def test_missing_queue(either_sqs: Any, queue: str) -> None:
    """Receiving from a missing queue raises QueueDoesNotExist."""
    refusal = refused(either_sqs.receive_message, QueueUrl=queue + "-never")
    assert isinstance(refusal.error, either_sqs.exceptions.QueueDoesNotExist)


@page("API_ReceiveMessage")
def test_id_is_that_of_the_send(either_sqs: Any, queue: str) -> None:
    """The message id is the one that SendMessage returned."""
    sent = either_sqs.send_message(QueueUrl=queue, MessageBody="x")
    assert receive_one(either_sqs, queue)["MessageId"] == sent["MessageId"]


@page("API_Message")
def test_handle_is_new_every_time(sqs: Any, queue: str) -> None:
    """Every receive gives a new receipt handle, of at most 1,024 characters."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    handles = {receive_one(sqs, queue, VisibilityTimeout=0)["ReceiptHandle"] for _ in range(3)}
    assert len(handles) == 3
    assert max(map(len, handles)) <= 1024


@page("API_ReceiveMessage")
def test_no_attributes_unless_asked(either_sqs: Any, queue: str) -> None:
    """A message comes without attributes of either kind unless they are asked for."""
    attributes = {"kind": {"DataType": "String", "StringValue": "x"}}
    either_sqs.send_message(QueueUrl=queue, MessageBody="x", MessageAttributes=attributes)
    message = receive_one(either_sqs, queue)
    assert message.keys() == {"MessageId", "ReceiptHandle", "MD5OfBody", "Body"}


def check_all_system_attributes(sqs: Any, url: str, parameter: str) -> None:
    """Send a message and look at what `All` returns of it."""
    before = time.time() * 1000
    sqs.send_message(QueueUrl=url, MessageBody="x")
    asked: dict[str, Any] = {parameter: ["All"]}
    found = receive_one(sqs, url, **asked)["Attributes"]
    assert found.keys() == OF_EVERY_MESSAGE
    assert found["ApproximateReceiveCount"] == "1"
    assert found["SenderId"]
    sent, first = int(found["SentTimestamp"]), int(found["ApproximateFirstReceiveTimestamp"])
    assert abs(sent - before) < 60_000
    assert sent <= first


@page("API_ReceiveMessage")
def test_all_system_attributes(sqs: Any, queue: str) -> None:
    """MessageSystemAttributeNames=All returns the four that every message has."""
    check_all_system_attributes(sqs, queue, "MessageSystemAttributeNames")


@page("API_ReceiveMessage")
def test_all_system_attributes_by_the_old_name(either_sqs: Any, queue: str) -> None:
    """The discontinued parameter AttributeNames does the same, in both protocols."""
    check_all_system_attributes(either_sqs, queue, "AttributeNames")


@page("API_ReceiveMessage")
@pytest.mark.parametrize("parameter", ["MessageSystemAttributeNames", "AttributeNames"])
def test_some_system_attributes(sqs: Any, queue: str, parameter: str) -> None:
    """Only those named are returned, and a name that the message has not is left out."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    asked: dict[str, Any] = {parameter: ["SentTimestamp", "SequenceNumber", "AWSTraceHeader"]}
    assert receive_one(sqs, queue, **asked)["Attributes"].keys() == {"SentTimestamp"}


@page("API_ReceiveMessage")
def test_receive_count(either_sqs: Any, make_queue: MakeQueue) -> None:
    """Each receive counts; the times of sending and of the first receive stay."""
    url = make_queue(VisibilityTimeout=0)
    either_sqs.send_message(QueueUrl=url, MessageBody="x")
    seen = [receive_one(either_sqs, url, AttributeNames=["All"])["Attributes"] for _ in range(3)]
    assert [found["ApproximateReceiveCount"] for found in seen] == ["1", "2", "3"]
    assert len({found["SentTimestamp"] for found in seen}) == 1
    assert len({found["ApproximateFirstReceiveTimestamp"] for found in seen}) == 1


@page("sqs-message-metadata")
def test_trace_header(either_sqs: Any, queue: str) -> None:
    """AWSTraceHeader comes back as it was sent, when it is asked for."""
    header = {"AWSTraceHeader": {"DataType": "String", "StringValue": TRACE}}
    either_sqs.send_message(QueueUrl=queue, MessageBody="x", MessageSystemAttributes=header)
    found = receive_one(either_sqs, queue, AttributeNames=["AWSTraceHeader"])
    assert found["Attributes"] == {"AWSTraceHeader": TRACE}


@page("xray/latest/devguide/xray-services-sqs", recorded=True)
def test_trace_header_of_the_request(wire: Wire, sqs: Any, queue: str) -> None:
    """The HTTP header X-Amzn-Trace-Id of the request becomes AWSTraceHeader."""
    headers = {"X-Amzn-Trace-Id": TRACE}
    assert wire.json("SendMessage", {"QueueUrl": queue, "MessageBody": "x"}, headers=headers).status == 200
    found = receive_one(sqs, queue, MessageSystemAttributeNames=["All"])["Attributes"]
    assert found.get("AWSTraceHeader") == TRACE


@page("API_ReceiveMessage")
def test_each_message_once(sqs: Any, queue: str) -> None:
    """Messages in flight are not given to anybody else."""
    send_all(sqs, queue, [str(n) for n in range(30)])
    came = collect(sqs, queue, 30, MessageSystemAttributeNames=["ApproximateReceiveCount"])
    assert sorted(bodies(came), key=int) == [str(n) for n in range(30)]
    assert {message["Attributes"]["ApproximateReceiveCount"] for message in came} == {"1"}


@page("API_ReceiveMessage")
def test_queues_are_apart(sqs: Any, make_queue: MakeQueue) -> None:
    """A message is in the queue that it was sent to, and in no other."""
    one, other = make_queue(), make_queue()
    sqs.send_message(QueueUrl=one, MessageBody="x")
    assert path_of(one) != path_of(other)
    assert receive(sqs, other, wait=0) == []
    assert bodies(receive(sqs, one)) == ["x"]
