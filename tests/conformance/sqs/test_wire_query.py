"""Wire, query protocol: forms and URLs in, XML out."""

import re
from typing import Any
from xml.sax.saxutils import escape

import pytest

from conformance.sqs.checks import arn, binary, md5, md5_of_attributes, page, receive_one, text, unique
from conformance.sqs.clients import XML_NAMESPACE
from conformance.sqs.wire import Reply, Wire, path_of

REQUESTS = "sqs-making-api-requests-xml"
RESPONSES = "sqs-xml-api-responses"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def error(reply: Reply) -> tuple[str | None, str | None]:
    """Return the type and the code of an error document."""
    assert reply.root == "ErrorResponse"
    return reply.text("Error/Type"), reply.text("Error/Code")


@page(RESPONSES)
def test_success(wire: Wire, queue: str) -> None:
    """A success is XML: the action's response, in it the result and the request id."""
    reply = wire.query("SendMessage", {"QueueUrl": queue, "MessageBody": "hello"})
    assert reply.status == 200
    assert "xml" in reply.headers["content-type"]
    assert reply.root == "SendMessageResponse"
    assert reply.text("SendMessageResult/MessageId")
    assert reply.text("SendMessageResult/MD5OfMessageBody") == md5("hello")
    assert UUID.fullmatch(reply.text("ResponseMetadata/RequestId") or "")


@page(REQUESTS)
def test_namespace(wire: Wire, queue: str) -> None:
    """The XML has the namespace of version 2012-11-05."""
    assert wire.query("GetQueueAttributes", {"QueueUrl": queue}).namespace == XML_NAMESPACE


@page(RESPONSES)
def test_failure(wire: Wire, queue: str) -> None:
    """A failure is an ErrorResponse with type, code, message and request id."""
    reply = wire.query("SendMessage", {"QueueUrl": queue + "-never", "MessageBody": "x"})
    assert reply.status == 400
    assert error(reply) == ("Sender", "AWS.SimpleQueueService.NonExistentQueue")
    assert reply.text("Error/Message")
    assert UUID.fullmatch(reply.text("RequestId") or "")


@page(RESPONSES)
def test_forbidden_name(wire: Wire) -> None:
    """The page's own example: a name with forbidden characters is an InvalidParameterValue."""
    reply = wire.query("CreateQueue", {"QueueName": "quename!nonalpha"})
    assert (error(reply), reply.status) == (("Sender", "InvalidParameterValue"), 400)


@page(REQUESTS)
def test_get_request(wire: Wire, queue: str) -> None:
    """A GET with all parameters in its URL is a request like others."""
    sent = wire.query("SendMessage", {"MessageBody": "a b&c=d+é"}, path=path_of(queue), method="GET")
    assert sent.text("SendMessageResult/MD5OfMessageBody") == md5("a b&c=d+é")
    got = wire.query("ReceiveMessage", {"WaitTimeSeconds": "5"}, path=path_of(queue), method="GET")
    assert got.text("ReceiveMessageResult/Message/Body") == "a b&c=d+é"


@page(REQUESTS)
def test_post_to_the_queue(wire: Wire, queue: str) -> None:
    """A form posted to the queue's path needs no QueueUrl."""
    reply = wire.query("GetQueueAttributes", {"AttributeName.1": "QueueArn"}, path=path_of(queue))
    assert reply.text("GetQueueAttributesResult/Attribute/Name") == "QueueArn"
    assert (reply.text("GetQueueAttributesResult/Attribute/Value") or "").endswith(queue.rpartition("/")[2])


@page(REQUESTS)
def test_post_to_the_root(wire: Wire) -> None:
    """Actions on no queue in particular go to the root."""
    name = unique()
    created = wire.query(
        "CreateQueue", {"QueueName": name, "Attribute.1.Name": "DelaySeconds", "Attribute.1.Value": "3"}
    )
    url = created.text("CreateQueueResult/QueueUrl") or ""
    assert url.endswith("/" + name)
    assert wire.query("GetQueueUrl", {"QueueName": name}).text("GetQueueUrlResult/QueueUrl") == url
    assert wire.query("ListQueues", {"QueueNamePrefix": name}).texts("ListQueuesResult/QueueUrl") == [url]
    deleted = wire.query("DeleteQueue", {}, path=path_of(url))
    assert (deleted.status, deleted.root) == (200, "DeleteQueueResponse")


@page(REQUESTS, recorded=True)
def test_parameter_beats_path(wire: Wire, sqs: Any, queue: str, fifo: str) -> None:
    """Where path and QueueUrl name two queues, QueueUrl counts."""
    parameters = {"QueueUrl": fifo, "AttributeName.1": "QueueArn"}
    reply = wire.query("GetQueueAttributes", parameters, path=path_of(queue))
    assert reply.text("GetQueueAttributesResult/Attribute/Value") == arn(sqs, fifo)


@page("CommonErrors")
def test_unknown_action(wire: Wire, queue: str) -> None:
    """An action that does not exist is an InvalidAction."""
    reply = wire.query("Juggle", {}, path=path_of(queue))
    assert (error(reply), reply.status) == (("Sender", "InvalidAction"), 400)


@page("CommonErrors")
@pytest.mark.parametrize("action", ["SendMessage", "DeleteMessage", "ChangeMessageVisibility"])
def test_missing_parameter(wire: Wire, queue: str, action: str) -> None:
    """A required parameter that is missing is a MissingParameter."""
    reply = wire.query(action, {}, path=path_of(queue))
    assert (error(reply), reply.status) == (("Sender", "MissingParameter"), 400)


@page("CommonErrors")
def test_parameter_of_another_type(wire: Wire, queue: str) -> None:
    """A number that is none is the sender's fault."""
    reply = wire.query("ReceiveMessage", {"MaxNumberOfMessages": "many"}, path=path_of(queue))
    assert 400 <= reply.status < 500
    assert error(reply)[0] == "Sender"


@page("CommonErrors")
def test_no_action(wire: Wire) -> None:
    """A form without an action is refused."""
    assert 400 <= wire.query(None, {"QueueName": "x"}).status < 500


@page(RESPONSES, recorded=True)
def test_empty_receive(wire: Wire, queue: str) -> None:
    """A receive that finds nothing has an empty result."""
    reply = wire.query("ReceiveMessage", {"QueueUrl": queue})
    assert reply.status == 200
    assert reply.texts("ReceiveMessageResult/Message") == []
    assert reply.texts("ReceiveMessageResult") == [""]


@page("API_SendMessage")
def test_numbered_attributes(wire: Wire, sqs: Any, queue: str) -> None:
    """Message attributes are numbered groups of parameters, binary values in base64."""
    reply = wire.query(
        "SendMessage",
        {
            "QueueUrl": queue,
            "MessageBody": "x",
            "MessageAttribute.1.Name": "kind",
            "MessageAttribute.1.Value.DataType": "String",
            "MessageAttribute.1.Value.StringValue": "é & <b>",
            "MessageAttribute.2.Name": "blob",
            "MessageAttribute.2.Value.DataType": "Binary",
            "MessageAttribute.2.Value.BinaryValue": "AP8=",
        },
    )
    expected = {"kind": text("é & <b>"), "blob": binary(b"\x00\xff")}
    assert reply.text("SendMessageResult/MD5OfMessageAttributes") == md5_of_attributes(expected)
    assert receive_one(sqs, queue, MessageAttributeNames=["All"])["MessageAttributes"] == expected


@page("API_ReceiveMessage")
def test_received_attributes(wire: Wire, sqs: Any, queue: str) -> None:
    """A received message lists both kinds of attributes as flat pairs of name and value."""
    sqs.send_message(QueueUrl=queue, MessageBody="x", MessageAttributes={"kind": text("é & <b>")})
    parameters = {"QueueUrl": queue, "WaitTimeSeconds": "5", "AttributeName.1": "All", "MessageAttributeName.1": "All"}
    reply = wire.query("ReceiveMessage", parameters)
    found = "ReceiveMessageResult/Message"
    assert "SentTimestamp" in reply.texts(f"{found}/Attribute/Name")
    assert reply.text(f"{found}/MessageAttribute/Name") == "kind"
    assert reply.text(f"{found}/MessageAttribute/Value/StringValue") == "é & <b>"
    assert reply.text(f"{found}/MessageAttribute/Value/DataType") == "String"


@page("API_SendMessageBatch")
def test_numbered_entries(wire: Wire, queue: str) -> None:
    """Batch entries are numbered groups, and the result lists successes and failures as flat entries."""
    entry = "SendMessageBatchRequestEntry"
    reply = wire.query(
        "SendMessageBatch",
        {
            "QueueUrl": queue,
            f"{entry}.1.Id": "good",
            f"{entry}.1.MessageBody": "x",
            f"{entry}.2.Id": "late",
            f"{entry}.2.MessageBody": "x",
            f"{entry}.2.DelaySeconds": "901",
        },
    )
    assert reply.texts("SendMessageBatchResult/SendMessageBatchResultEntry/Id") == ["good"]
    failed = "SendMessageBatchResult/BatchResultErrorEntry"
    assert (reply.text(f"{failed}/Id"), reply.text(f"{failed}/SenderFault")) == ("late", "true")


@page(RESPONSES, recorded=True)
def test_special_characters(wire: Wire, sqs: Any, queue: str) -> None:
    """Characters that XML would change or take for markup are escaped, a carriage return among them."""
    body = "<a href=\"x\">&amp; 'q' ]]>\r\n\té🎉</a>"
    sqs.send_message(QueueUrl=queue, MessageBody=body)
    reply = wire.query("ReceiveMessage", {"QueueUrl": queue, "WaitTimeSeconds": "5"})
    assert escape("<a") in reply.body.decode()
    assert reply.text("ReceiveMessageResult/Message/Body") == body


@page("API_ListQueueTags")
def test_tags(wire: Wire, queue: str) -> None:
    """Tags are numbered pairs on the way in, and flat pairs of key and value on the way out."""
    wire.query(
        "TagQueue",
        {"QueueUrl": queue, "Tag.1.Key": "team", "Tag.1.Value": "post", "Tag.2.Key": "x", "Tag.2.Value": "y"},
    )
    wire.query("UntagQueue", {"QueueUrl": queue, "TagKey.1": "x"})
    reply = wire.query("ListQueueTags", {"QueueUrl": queue})
    assert reply.texts("ListQueueTagsResult/Tag/Key") == ["team"]
    assert reply.texts("ListQueueTagsResult/Tag/Value") == ["post"]


@page(REQUESTS)
def test_connection_stays_open(wire: Wire, queue: str) -> None:
    """Requests, failures among them, share one connection."""
    for action in ("ListQueues", "Juggle", "ListQueues"):
        wire.query(action, {})
    assert wire.query("GetQueueAttributes", {}, path=path_of(queue)).status == 200
    assert wire.opened == 1


@page("sqs-queue-message-identifiers")
@pytest.mark.parametrize("host", ["sqs.{}.amazonaws.com", "{}.queue.amazonaws.com", "queue.amazonaws.com"])
def test_both_kinds_of_queue_url(wire: Wire, target: Any, queue: str, host: str) -> None:
    """A queue is found by the path of its URL, under the regional and under the legacy host names."""
    url = f"https://{host.format(target.region)}{path_of(queue)}"
    assert wire.query("SendMessage", {"QueueUrl": url, "MessageBody": "x"}).status == 200
