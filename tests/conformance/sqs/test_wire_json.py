"""Wire, AWS JSON 1.0: status, headers, error shapes, and what a request may look like."""

import base64
import json
import re
from typing import Any

import pytest

from conformance.sqs.checks import MakeQueue, arn, bodies, md5, page, receive_one, unique
from conformance.sqs.wire import JSON_TYPE, Reply, Wire, path_of

REQUESTS = "sqs-making-api-requests-json"
RESPONSES = "sqs-json-api-responses"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def kind(reply: Reply) -> str:
    """Return the name of the error without its namespace."""
    found: str = reply.json["__type"]
    return found.rpartition("#")[2]


def message(reply: Reply) -> str:
    """Return the readable part of the error."""
    found: str = reply.json.get("message") or reply.json.get("Message") or ""
    return found


@page(RESPONSES)
def test_success(wire: Wire, queue: str) -> None:
    """A success has status 200, the JSON type, a request id and the members of the answer."""
    reply = wire.json("SendMessage", {"QueueUrl": queue, "MessageBody": "hello"})
    assert reply.status == 200
    assert reply.headers["content-type"] == JSON_TYPE
    assert UUID.fullmatch(reply.headers["x-amzn-requestid"])
    assert reply.json.keys() == {"MessageId", "MD5OfMessageBody"}
    assert "x-amzn-query-error" not in reply.headers


@page(RESPONSES)
def test_request_ids_differ(wire: Wire, queue: str) -> None:
    """Every request has an id of its own."""
    replies = [wire.json("GetQueueAttributes", {"QueueUrl": queue}) for _ in range(3)]
    assert len({reply.headers["x-amzn-requestid"] for reply in replies}) == 3


@page(RESPONSES)
def test_failure(wire: Wire, queue: str) -> None:
    """A failure has its status, its shape in `__type`, a message, and the older code in x-amzn-query-error."""
    reply = wire.json("SendMessage", {"QueueUrl": queue + "-never", "MessageBody": "x"})
    assert reply.status == 400
    assert reply.headers["content-type"] == JSON_TYPE
    assert reply.headers["x-amzn-query-error"] == "AWS.SimpleQueueService.NonExistentQueue;Sender"
    assert UUID.fullmatch(reply.headers["x-amzn-requestid"])
    assert reply.json["__type"] == "com.amazonaws.sqs#QueueDoesNotExist"
    assert message(reply)


@page(RESPONSES, recorded=True)
@pytest.mark.parametrize(
    ("action", "payload", "expected"),
    [
        (
            "ReceiveMessage",
            {"MaxNumberOfMessages": 11},
            ("InvalidParameterValueException", "InvalidParameterValue", 400),
        ),
        ("SendMessage", {}, ("MissingRequiredParameterException", "MissingParameter", 400)),
        ("SendMessage", {"MessageBody": "\x01"}, ("InvalidMessageContents", "InvalidMessageContents", 400)),
        ("DeleteMessage", {"ReceiptHandle": "garbage"}, ("ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid", 404)),
        ("GetQueueAttributes", {"AttributeNames": ["Colour"]}, ("InvalidAttributeName", "InvalidAttributeName", 400)),
        (
            "SetQueueAttributes",
            {"Attributes": {"DelaySeconds": "901"}},
            ("InvalidAttributeValue", "InvalidAttributeValue", 400),
        ),
        ("SendMessageBatch", {"Entries": []}, ("EmptyBatchRequest", "AWS.SimpleQueueService.EmptyBatchRequest", 400)),
    ],
    ids=["parameter", "missing", "contents", "handle", "attribute-name", "attribute-value", "empty-batch"],
)
def test_error_shapes(
    wire: Wire, queue: str, action: str, payload: dict[str, Any], expected: tuple[str, str, int]
) -> None:
    """Each error has its shape in the body, its older code in the header, and its status."""
    shape, query_error, status = expected
    reply = wire.json(action, {"QueueUrl": queue, **payload})
    assert (kind(reply), reply.status) == (shape, status)
    assert reply.headers["x-amzn-query-error"] == f"{query_error};Sender"
    assert message(reply)


@page(REQUESTS)
def test_actions_without_an_answer(wire: Wire, queue: str) -> None:
    """An action that returns nothing answers 200 with an empty body or an empty object."""
    sent = wire.json("SetQueueAttributes", {"QueueUrl": queue, "Attributes": {"DelaySeconds": "1"}})
    assert sent.status == 200
    assert sent.body in {b"", b"{}"}


@page(REQUESTS)
def test_connection_stays_open(wire: Wire, queue: str) -> None:
    """Requests, failures among them, share one connection."""
    for body in ("a", "", "b"):
        wire.json("SendMessage", {"QueueUrl": queue, "MessageBody": body})
    assert wire.json("ReceiveMessage", {"QueueUrl": queue, "WaitTimeSeconds": 1}).json["Messages"]
    assert wire.opened == 1


@page(REQUESTS)
def test_whole_cycle(wire: Wire, queue: str) -> None:
    """Sending, receiving and deleting have the documented members, binary values in base64."""
    blob = {"DataType": "Binary", "BinaryValue": base64.b64encode(b"\x00\xff").decode()}
    sent = {"QueueUrl": queue, "MessageBody": "Größe 🎉", "MessageAttributes": {"blob": blob}}
    assert wire.json("SendMessage", sent).json["MD5OfMessageBody"] == md5("Größe 🎉")
    asked = {"QueueUrl": queue, "WaitTimeSeconds": 5, "MessageAttributeNames": ["All"]}
    (got,) = wire.json("ReceiveMessage", asked).json["Messages"]
    assert (got["Body"], got["MessageAttributes"]["blob"]["BinaryValue"]) == ("Größe 🎉", blob["BinaryValue"])
    assert wire.json("DeleteMessage", {"QueueUrl": queue, "ReceiptHandle": got["ReceiptHandle"]}).status == 200


@page(REQUESTS)
def test_escaped_characters(wire: Wire, sqs: Any, queue: str) -> None:
    """A body written with JSON escapes is the body that they stand for."""
    payload = b'{"QueueUrl": "%s", "MessageBody": "\\u00e9\\ud83c\\udf89\\n\\"\\/"}' % queue.encode()
    assert wire.json("SendMessage", payload).status == 200
    assert receive_one(sqs, queue)["Body"] == 'é🎉\n"/'


@page(REQUESTS)
def test_null_is_absent(wire: Wire, queue: str) -> None:
    """A member that is null counts as absent."""
    payload = {"QueueUrl": queue, "MessageBody": "x", "DelaySeconds": None, "MessageAttributes": None}
    assert wire.json("SendMessage", payload).status == 200


@page("CommonErrors")
def test_unknown_action(wire: Wire) -> None:
    """An action that does not exist is refused, in JSON."""
    reply = wire.json("Juggle", {})
    assert 400 <= reply.status < 500
    assert kind(reply)


@page("CommonErrors")
@pytest.mark.parametrize("payload", [b"{not json", b"[]", b'"text"', b"\xff\xfe"], ids=["cut", "list", "text", "bytes"])
def test_malformed_body(wire: Wire, payload: bytes) -> None:
    """A body that is no JSON object is refused, and the connection goes on."""
    assert 400 <= wire.json("SendMessage", payload).status < 500
    assert wire.json("ListQueues", {"MaxResults": 1}).status == 200


@page("CommonErrors")
@pytest.mark.parametrize(
    ("action", "payload"),
    [
        ("ReceiveMessage", {"MaxNumberOfMessages": "many"}),
        ("SendMessage", {"MessageBody": ["x"]}),
        ("SendMessage", {"MessageBody": "x", "MessageAttributes": []}),
        ("SendMessageBatch", {"Entries": {"Id": "a"}}),
        ("SendMessageBatch", {"Entries": ["a"]}),
        ("SetQueueAttributes", {"Attributes": {"DelaySeconds": {}}}),
    ],
)
def test_wrong_types(wire: Wire, queue: str, action: str, payload: dict[str, Any]) -> None:
    """A member of another type is the sender's fault."""
    assert 400 <= wire.json(action, {"QueueUrl": queue, **payload}).status < 500


@page("CommonErrors")
def test_missing_queue_url(wire: Wire) -> None:
    """An action on a queue needs to know which: a parameter is missing, or the address, or the queue."""
    reply = wire.json("ReceiveMessage", {})
    assert 400 <= reply.status < 500
    code, _, fault = reply.headers["x-amzn-query-error"].partition(";")
    assert code in {"MissingParameter", "InvalidAddress", "AWS.SimpleQueueService.NonExistentQueue"}
    assert fault == "Sender"


@page(REQUESTS, recorded=True)
def test_request_to_the_path_of_a_queue(wire: Wire, queue: str) -> None:
    """A request may go to the queue's own path, as some SDKs send it."""
    reply = wire.json("SendMessage", {"QueueUrl": queue, "MessageBody": "x"}, path=path_of(queue))
    assert reply.status == 200
    assert reply.headers["content-type"] == JSON_TYPE


@page("sqs-queue-message-identifiers")
@pytest.mark.parametrize("host", ["sqs.{}.amazonaws.com", "{}.queue.amazonaws.com", "queue.amazonaws.com"])
def test_both_kinds_of_queue_url(wire: Wire, target: Any, queue: str, host: str) -> None:
    """A queue is found by the path of its URL, under the regional and under the legacy host names."""
    url = f"https://{host.format(target.region)}{path_of(queue)}"
    assert wire.json("SendMessage", {"QueueUrl": url, "MessageBody": "x"}).status == 200


@page("sqs-basic-examples-of-sqs-policies")
def test_unsigned_request(wire: Wire, sqs: Any, make_queue: MakeQueue) -> None:
    """A request without a signature is served where the queue's policy allows everybody."""
    url = make_queue()
    statement = {"Effect": "Allow", "Principal": "*", "Action": "sqs:*", "Resource": arn(sqs, url)}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})
    assert wire.json("SendMessage", {"QueueUrl": url, "MessageBody": "x"}, signed=False).status == 200
    reply = wire.json("ReceiveMessage", {"QueueUrl": url, "WaitTimeSeconds": 5}, signed=False)
    assert bodies(reply.json["Messages"]) == ["x"]


@page("API_ReceiveMessage", recorded=True)
def test_empty_receive(wire: Wire, queue: str) -> None:
    """A receive that finds nothing answers with an empty object."""
    assert wire.json("ReceiveMessage", {"QueueUrl": queue}).json == {}


@page("API_GetQueueUrl")
def test_missing_name(wire: Wire) -> None:
    """The error for an unknown name has the same shape and code as that for an unknown URL."""
    reply = wire.json("GetQueueUrl", {"QueueName": unique()})
    assert (kind(reply), reply.status) == ("QueueDoesNotExist", 400)
    assert reply.headers["x-amzn-query-error"] == "AWS.SimpleQueueService.NonExistentQueue;Sender"
