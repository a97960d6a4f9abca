"""Both wire protocols, through the client that everybody uses and by the byte."""

import urllib.parse
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as ET

import boto3
import pytest
import urllib3
from botocore.config import Config
from botocore.parsers import QueryParser

from postroom.local import BrokerError
from postroom.local.actions import ACTIONS
from postroom.local.threaded import ThreadedServer
from postroom.local.wire_query import NAMESPACE, action_of, fields, read

Post = Callable[..., tuple[int, ET.Element]]


def connect(server: ThreadedServer, **options: Any) -> Any:
    """Make a boto3 client that does not try again."""
    settings = {**server.client_options, "config": Config(retries={"total_max_attempts": 1}), **options}
    return boto3.client("sqs", **settings)


@pytest.fixture
def sqs(sqs_server: ThreadedServer) -> Any:
    """Make a boto3 client."""
    client = connect(sqs_server)
    yield client
    client.close()


@pytest.fixture
def post(sqs_server: ThreadedServer) -> Post:
    """Return a function that sends a form and returns the status and the XML."""

    def post(path: str = "/", **form: str) -> tuple[int, ET.Element]:
        data = urllib.parse.urlencode({name.replace("__", "."): value for name, value in form.items()}).encode()
        answer = urllib3.request("POST", sqs_server.endpoint_url + path, body=data)
        return answer.status, ET.fromstring(answer.data)  # noqa: S314 - it comes from our own server

    return post


def find(element: ET.Element, *path: str) -> list[str]:
    """Return the texts of the elements at a path."""
    steps = "/".join(f"{{{NAMESPACE}}}{step}" for step in path)
    return [each.text or "" for each in element.findall(f".//{steps}")]


def test_every_action_of_the_model(sqs: Any) -> None:
    """The server has every action that boto3's model of SQS has, and no other."""
    assert set(ACTIONS) == set(sqs.meta.service_model.operation_names)


def test_a_whole_life(sqs: Any, sqs_server: ThreadedServer) -> None:
    """Queue, messages, attributes, batches, tags and permissions work through boto3."""
    url = sqs.create_queue(QueueName="q", Attributes={"VisibilityTimeout": "9"}, tags={"a": "b"})["QueueUrl"]
    assert url == sqs.get_queue_url(QueueName="q")["QueueUrl"] == sqs_server.queue_url("q")
    attributes = {"blob": {"DataType": "Binary", "BinaryValue": b"\0\1"}}
    sqs.send_message(QueueUrl=url, MessageBody="é\r\n<&", MessageAttributes=attributes)
    batch = sqs.send_message_batch(
        QueueUrl=url, Entries=[{"Id": "1", "MessageBody": "x"}, {"Id": "2", "MessageBody": "\0"}]
    )
    assert [entry["Id"] for entry in batch["Successful"]] == ["1"]
    assert [(entry["Id"], entry["SenderFault"], entry["Code"]) for entry in batch["Failed"]] == [
        ("2", True, "InvalidMessageContents")
    ]
    found = sqs.receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], AttributeNames=["All"]
    )["Messages"]
    assert [message["Body"] for message in found] == ["é\r\n<&", "x"]
    assert found[0]["MessageAttributes"] == attributes
    assert found[0]["Attributes"]["SenderId"] == "local"
    assert sqs_server.counts("q") == (0, 2, 0)
    entries = [{"Id": str(n), "ReceiptHandle": each["ReceiptHandle"]} for n, each in enumerate(found)]
    changed = sqs.change_message_visibility_batch(
        QueueUrl=url, Entries=[{**entry, "VisibilityTimeout": 0} for entry in entries]
    )
    assert "Failed" not in changed
    assert len(sqs.delete_message_batch(QueueUrl=url, Entries=entries)["Successful"]) == 2
    assert "Messages" not in sqs.receive_message(QueueUrl=url)
    sqs.add_permission(QueueUrl=url, Label="l", AWSAccountIds=["111122223333"], Actions=["SendMessage"])
    sqs.untag_queue(QueueUrl=url, TagKeys=["a"])
    assert "Tags" not in sqs.list_queue_tags(QueueUrl=url)
    assert "Policy" in sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    sqs.delete_queue(QueueUrl=url)
    assert "QueueUrls" not in sqs.list_queues()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("QueueDoesNotExist", lambda sqs, url: sqs.purge_queue(QueueUrl=url + "-not")),
        ("QueueNameExists", lambda sqs, _: sqs.create_queue(QueueName="q", Attributes={"DelaySeconds": "1"})),
        ("ReceiptHandleIsInvalid", lambda sqs, url: sqs.delete_message(QueueUrl=url, ReceiptHandle="x")),
        ("InvalidMessageContents", lambda sqs, url: sqs.send_message(QueueUrl=url, MessageBody="\0")),
        ("EmptyBatchRequest", lambda sqs, url: sqs.delete_message_batch(QueueUrl=url, Entries=[])),
        ("InvalidAttributeName", lambda sqs, url: sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["X"])),
        ("InvalidAttributeValue", lambda sqs, _: sqs.create_queue(QueueName="p", Attributes={"DelaySeconds": "x"})),
        ("ResourceNotFoundException", lambda sqs, _: sqs.list_message_move_tasks(SourceArn="x")),
        ("InvalidAddress", lambda sqs, _: sqs.purge_queue(QueueUrl="http://127.0.0.1/nowhere")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_typed_errors(sqs: Any, name: str, call: Callable[[Any, str], object]) -> None:
    """A refusal arrives as the exception class of its kind."""
    url = sqs.create_queue(QueueName="q")["QueueUrl"]
    with pytest.raises(getattr(sqs.exceptions, name)) as caught:
        call(sqs, url)
    assert caught.value.response["Error"]["Type"] == "Sender"


def test_regions_and_accounts_by_signature(sqs_server: ThreadedServer) -> None:
    """The region of the signature, and a twelve-digit access key as the account, choose the owner of the queues."""
    here = connect(sqs_server)
    there = connect(sqs_server, region_name="eu-west-1")
    theirs = connect(sqs_server, aws_access_key_id="111122223333")
    urls = [client.create_queue(QueueName="q")["QueueUrl"] for client in (here, there, theirs)]
    here.send_message(QueueUrl=urls[0], MessageBody="x")
    assert "Messages" not in there.receive_message(QueueUrl=urls[1])
    assert "Messages" not in theirs.receive_message(QueueUrl=urls[2])
    assert urls[2].endswith("/111122223333/q")
    assert len(here.receive_message(QueueUrl=urls[0])["Messages"]) == 1
    for client in (here, there, theirs):
        client.close()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{not json", "MalformedInput"),
        (b"[]", "MalformedInput"),
        (b"\xff", "MalformedInput"),
        (b'{"QueueUrl":' * 5_000, "MalformedInput"),
        (b'{"QueueUrl": "URL", "MessageBody": "x", "y": ' + b"[" * 5_000, "MalformedInput"),
        (b'{"QueueUrl": 5, "MessageBody": "x"}', "MalformedInput"),
        (b'{"QueueUrl": "URL", "MessageBody": "\\ud800"}', "InvalidMessageContents"),
        (b'{"QueueUrl": "/\\ud800", "MessageBody": "x"}', "InvalidAddress"),
        (b'{"QueueUrl": "URL", "MessageBody": "x", "MessageGroupId": "\\ud800"}', "InvalidParameterValue"),
        (b'{"QueueUrl": "URL", "MessageBody": null}', "MissingParameter"),
        (b"", "MissingParameter"),
    ],
)
def test_bad_json(sqs_server: ThreadedServer, body: bytes, code: str) -> None:
    """A body that is no request of the action is refused, in SQS's shape."""
    sqs_server.create_queue("q")
    answer = urllib3.request(
        "POST",
        sqs_server.endpoint_url,
        body=body.replace(b"URL", sqs_server.queue_url("q").encode()),
        headers={"X-Amz-Target": "AmazonSQS.SendMessage", "Content-Type": "application/x-amz-json-1.0"},
    )
    assert answer.headers["x-amzn-query-error"] == f"{code};Sender"
    assert set(answer.json()) == {"__type", "message"}


def test_text_that_cannot_be_written_is_not_kept(sqs_server: ThreadedServer) -> None:
    """Half of a surrogate pair in an attribute of a queue is refused: no answer could ever show it."""
    body = b'{"QueueName": "q", "Attributes": {"KmsMasterKeyId": "\\ud800"}}'
    headers = {"X-Amz-Target": "AmazonSQS.CreateQueue"}
    answer = urllib3.request("POST", sqs_server.endpoint_url, body=body, headers=headers)
    assert answer.headers["x-amzn-query-error"] == "MalformedInput;Sender"


def test_query_protocol(post: Post) -> None:
    """Forms go in, XML comes out: maps, lists, batches and errors have the shapes that older clients read."""
    form = {
        "Attribute__1__Name": "DelaySeconds",
        "Attribute__1__Value": "0",
        "Tag__1__Key": "k",
        "Tag__1__Value": "v+/=",
    }
    _, created = post(Action="CreateQueue", QueueName="q", **form)
    [url] = find(created, "QueueUrl")
    path = urllib.parse.urlsplit(url).path
    attribute = {"MessageAttribute__1__Name": "n", "MessageAttribute__1__Value__DataType": "Number",
                 "MessageAttribute__1__Value__StringValue": "1"}  # fmt: skip
    post(path, Action="SendMessage", MessageBody="a\r\n<b>", **attribute)
    _, received = post(
        Action="ReceiveMessage",
        QueueUrl=url,
        AttributeName__1="All",
        MessageAttributeName__1="All",
        WaitTimeSeconds="1",
    )
    assert find(received, "Message", "Body") == ["a\r\n<b>"]
    assert "SentTimestamp" in find(received, "Message", "Attribute", "Name")
    assert find(received, "Message", "MessageAttribute", "Value", "StringValue") == ["1"]
    _, tags = post(path, Action="ListQueueTags")
    assert (find(tags, "Tag", "Key"), find(tags, "Tag", "Value")) == (["k"], ["v+/="])
    entry = "SendMessageBatchRequestEntry"
    entries = {f"{entry}__2__Id": "b", f"{entry}__2__MessageBody": "2",
               f"{entry}__10__Id": "c", f"{entry}__10__MessageBody": "\0"}  # fmt: skip
    _, batch = post(path, Action="SendMessageBatch", **entries)
    assert find(batch, "SendMessageBatchResultEntry", "Id") == ["b"]
    assert find(batch, "BatchResultErrorEntry", "SenderFault") == ["true"]
    status, refusal = post("/000000000000/none", Action="PurgeQueue")
    assert status == 400
    assert find(refusal, "Error", "Code") == ["AWS.SimpleQueueService.NonExistentQueue"]


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"Action": "Juggle"}, "InvalidAction"),
        ({"Action": "ReceiveMessage", "MaxNumberOfMessages": "x"}, "MalformedInput"),
        ({"Action": "GetQueueAttributes", "AttributeName__x": "All"}, "MalformedInput"),
        ({"Action": "SetQueueAttributes", "Attribute__1__Value": "x"}, "InvalidParameterValue"),
        (
            {"Action": "SetQueueAttributes", "Attribute__1__Name": "", "Attribute__1__Value": "x"},
            "InvalidParameterValue",
        ),
        (
            {"Action": "SendMessage", "MessageBody": "x", "MessageAttribute__1__Value__DataType": "String"},
            "InvalidParameterValue",
        ),
        ({"Action": "CreateQueue", "QueueName": "q2"}, "InvalidAction"),
        ({"Action": "ListQueues"}, "InvalidAction"),
        ({"Action": "SendMessage", "MessageBody": "x", "MessageBody__1": "y"}, "MalformedInput"),
    ],
)
def test_bad_forms(post: Post, form: dict[str, str], code: str) -> None:
    """A form that is no request of its action is refused, in XML."""
    post(Action="CreateQueue", QueueName="q")
    status, refusal = post("/000000000000/q", **form)
    assert (status, find(refusal, "Error", "Code")) == (400, [code])


def test_get_with_a_query_string(sqs_server: ThreadedServer) -> None:
    """A GET with a query string, signed there or not, is a request too."""
    query = "?Action=CreateQueue&QueueName=q&X-Amz-Credential=k%2F20260101%2Feu-west-1%2Fsqs%2Faws4_request"
    assert b"/000000000000/q</QueueUrl>" in urllib3.request("GET", f"{sqs_server.endpoint_url}/{query}").data
    assert [queue.scope.region for queue in sqs_server.call(lambda broker: list(broker.engine.registry))] == [
        "eu-west-1"
    ]


def test_not_a_form() -> None:
    """Bytes that are not text are refused."""
    with pytest.raises(BrokerError, match="not a form"):
        fields("", b"\xff=%ff")


def test_errors_parse_in_older_clients(sqs_server: ThreadedServer) -> None:
    """The error document has the shape that botocore's parser of the query protocol takes apart."""
    answer = urllib3.request("POST", sqs_server.endpoint_url, body=b"Action=GetQueueUrl&QueueName=none")
    document = {"body": answer.data, "status_code": answer.status, "headers": dict(answer.headers)}
    parsed = QueryParser().parse(document, None)
    assert parsed["Error"]["Code"] == "AWS.SimpleQueueService.NonExistentQueue"
    assert parsed["ResponseMetadata"]["RequestId"]


def test_empty_lists_of_older_clients(post: Post) -> None:
    """A list without items, which botocore sent as an empty field, is an empty list."""
    post(Action="CreateQueue", QueueName="q", Attributes="", Tags="")
    _, refusal = post("/000000000000/q", Action="SendMessageBatch", Entries="")
    assert find(refusal, "Error", "Code") == ["AWS.SimpleQueueService.EmptyBatchRequest"]
    assert post("/000000000000/q", Action="GetQueueAttributes", AttributeName="")[0] == 200


def test_single_item_without_a_number() -> None:
    """A list of one may come without its number, and a batch keeps the order of its numbers."""
    form = {"Action": "GetQueueAttributes", "AttributeName": "All"}
    assert read(action_of(form), form, None).attribute_names == ["All"]
    form = {"Action": "UntagQueue", **{f"TagKey.{n}": str(n) for n in (10, 9, 1)}}
    assert read(action_of(form), form, None).tag_keys == ["1", "9", "10"]
