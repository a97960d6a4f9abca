"""The hot path gives what the ordinary client gives, whatever the other side does."""

import asyncio
import datetime as dt
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from aiobotocore.credentials import AioRefreshableCredentials
from aiobotocore.session import AioSession
from botocore.credentials import ReadOnlyCredentials

from postroom.errors import (
    AccessDenied,
    ClosedError,
    InvalidReceiptHandle,
    InvalidRequest,
    QueueNotFound,
    ServiceUnavailable,
    Throttled,
    TransportError,
)
from postroom.message import Message, MessageAttribute
from postroom.transports import AwsClient, ClientStatistics, EntryFailure, VisibilityChange
from postroom.transports.aws.breaker import Breaker
from postroom.transports.aws.hot_path import HotPath
from postroom.transports.aws.queue import AwsQueue
from unit.transports.fake_sqs import (
    FakeSqs,
    Request,
    Script,
    connection_of,
    error,
    expected_authorization,
    healthy,
    holds,
    only_hot,
    reply,
    resets,
    says,
    says_and_closes,
    wire_message,
)

Action = Callable[[AwsQueue], Awaitable[Any]]


async def receive(queue: AwsQueue) -> list[Message]:
    """Receive once."""
    return await queue.receive(limit=10, wait=20, visibility=30)


async def delete(queue: AwsQueue) -> list[EntryFailure]:
    """Delete two messages."""
    return await queue.delete(["handle-1", "handle-2"])


async def change(queue: AwsQueue) -> list[EntryFailure]:
    """Change two visibility timeouts."""
    return await queue.change_visibility([VisibilityChange("handle-1", 30), VisibilityChange("handle-2", 0)])


ACTIONS: dict[str, Action] = {
    "ReceiveMessage": receive,
    "DeleteMessageBatch": delete,
    "ChangeMessageVisibilityBatch": change,
}
actions = pytest.mark.parametrize("operation", ACTIONS)


def hot_path_of(client: AwsClient) -> HotPath:
    """Return the hot path of an open client."""
    hot_path = connection_of(client)._hot_path
    assert hot_path is not None
    return hot_path


async def outcome(sqs: FakeSqs, operation: str, *, hot: bool) -> Any:
    """Return what a call gives: its result, or the class, operation and code of its error."""
    return (await outcomes(sqs, operation, hot=hot))[operation]


async def outcomes(sqs: FakeSqs, *operations: str, hot: bool) -> dict[str, Any]:
    """Return what each of some calls of one client gives, none of which pauses the hot path for the next."""
    given: dict[str, Any] = {}
    async with sqs.client(hot_path=hot, max_attempts=1) as client:
        queue = await client.queue("orders")
        for operation in operations:
            if hot:
                hot_path_of(client)._breaker = Breaker()
            try:
                given[operation] = await ACTIONS[operation](queue)
            except TransportError as raised:
                given[operation] = type(raised), raised.operation, raised.code, raised.__cause__ is not None
    return given


FAULTS: dict[str, Script] = {
    "500": says(reply({}, status=500)),
    "503 without a body": says(reply(b"", status=503)),
    "503 in HTML": says(reply(b"<html>Service Unavailable</html>", status=503)),
    "throttled": says(error("RequestThrottled", status=400, query_code="RequestThrottled")),
    "throttled as 403": says(error("ThrottlingException", status=403)),
    "429": says(reply({}, status=429)),
    "over limit": says(error("OverLimit", status=403, query_code="OverLimit")),
    "no such queue": says(error("QueueDoesNotExist", query_code="AWS.SimpleQueueService.NonExistentQueue")),
    "no permission": says(error("AccessDeniedException", status=403, query_code="AccessDenied")),
    "clock skew": says(error("InvalidSignatureException", status=403, query_code="SignatureDoesNotMatch")),
    "expired token": says(error("ExpiredTokenException", status=403)),
    "bad handle": says(error("ReceiptHandleIsInvalid", status=404, query_code="ReceiptHandleIsInvalid")),
    "bad value": says(error("InvalidParameterValue", query_code="InvalidParameterValue")),
    "an unknown error": says(error("SomethingNew")),
    "a redirect": says(reply({"Messages": [], "Successful": [{"Id": "0"}, {"Id": "1"}]}, status=302)),
    "created": says(reply({"Messages": [], "Successful": [{"Id": "0"}, {"Id": "1"}]}, status=201)),
    "reset": resets,
    "hang-up": says_and_closes(b""),
    "half a head": says_and_closes(b"HTTP/1.1 200 OK\r\nContent-"),
    "half a body": says_and_closes(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
    "a broken chunk": says_and_closes(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "not HTTP": says_and_closes(b"SSH-2.0-OpenSSH_9\r\n"),
    "nothing": says(reply(b"")),
    "a page in HTML": says(reply(b"<html><body>Please log in</body></html>")),
    "a page in HTML as a refusal": says(reply(b"<html>Forbidden</html>", status=403)),
    "a proxy that wants a password": says(reply(b"", status=407)),
    "half of the JSON": says(reply(b'{"Messages": [')),
    "more than the JSON": says(reply(b'{"Messages": []} {}')),
    "a JSON null": says(reply(b"null")),
    "a JSON text": says(reply(b'"ok"')),
    "bytes that are no text": says(reply(b'{"Messages": "\xff"}')),
    "an array": says(reply([])),
    "messages that are no list": says(reply({"Messages": 5, "Successful": 5, "Failed": 5})),
    "entries that are no objects": says(reply({"Messages": [5], "Successful": [5], "Failed": [5]})),
    "a message without an id": says(reply({"Messages": [{"Body": "b"}], "Failed": [{"Code": "c"}]})),
    "ids that are no numbers": says(reply({"Messages": [], "Successful": [], "Failed": [{"Id": "x"}]})),
    "an index outside": says(reply({"Messages": [], "Successful": [{"Id": "7"}, {"Id": "8"}]})),
    "nothing but an object": says(reply({})),
    "nulls": says(reply({"Messages": None, "Successful": None, "Failed": None})),
    "a null inside": says(
        reply(
            {
                "Messages": [wire_message(1, MessageAttributes=None, Attributes=None, Body=None)],
                "Successful": [{"Id": "0"}, {"Id": "1"}],
                "Failed": None,
            }
        )
    ),
    "chunked": says(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'32\r\n{"Successful":[{"Id":"0"},{"Id":"1"}],"Messages":[\r\n2\r\n]}\r\n0\r\n\r\n'
    ),
    "unknown members": says(reply({"Messages": [wire_message(Novelty={"a": 1})], "Failed": [], "Novelty": []})),
    "one refused": says(
        reply(
            {
                "Messages": [],
                "Successful": [{"Id": "0"}],
                "Failed": [{"Id": "1", "Code": "ReceiptHandleIsInvalid", "SenderFault": True, "Message": "no"}],
            }
        )
    ),
    "one entry forgotten": says(reply({"Messages": [], "Successful": [{"Id": "1"}]})),
    "a refusal of an entry that was not sent": says(
        reply({"Messages": [], "Successful": [{"Id": "0"}, {"Id": "1"}], "Failed": [{"Id": "7", "Code": "c"}]})
    ),
    "a refusal without an id": says(
        reply({"Messages": [], "Successful": [{"Id": "0"}, {"Id": "1"}], "Failed": [{"Code": "c"}]})
    ),
    "one entry refused twice": says(
        reply({"Messages": [], "Successful": [], "Failed": [{"Id": "1", "Code": "a"}, {"Id": "1", "Code": "b"}]})
    ),
    "one entry refused and confirmed": says(
        reply({"Messages": [], "Successful": [{"Id": "0"}, {"Id": "1"}], "Failed": [{"Id": "1", "Code": "a"}]})
    ),
    "confirmations of entries that were not sent": says(
        reply({"Messages": [], "Successful": [{"Id": "0"}, {"Id": "1"}, {"Id": "2"}]})
    ),
    "numbers for texts": says(
        reply(
            {
                "Messages": [
                    wire_message(
                        Body=5,
                        Attributes={"ApproximateReceiveCount": 3, "MessageGroupId": 4, "SenderId": None},
                        MessageAttributes={"tenantId": {"DataType": "Number", "StringValue": 7}},
                    )
                ],
                "Successful": [{"Id": 0}, {"Id": 1}],
            }
        )
    ),
    "one entry twice": says(reply({"Messages": [], "Successful": [{"Id": "1"}, {"Id": "1"}]})),
    "a lone surrogate": says(
        reply({"Messages": [wire_message(Body="\ud800")], "Successful": [{"Id": "0"}, {"Id": "1"}]})
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_both_paths_come_to_the_same(sqs: FakeSqs, fault: str) -> None:
    """Whatever is answered to both, the result or the class, operation and code of the error are the same."""
    sqs.scripts.update(dict.fromkeys(ACTIONS, FAULTS[fault]))
    ordinary = await outcomes(sqs, *ACTIONS, hot=False)
    assert not any(request.hot for request in sqs.requests)
    by_hot_path = await outcomes(sqs, *ACTIONS, hot=True)
    assert by_hot_path == ordinary
    for operation, hot in by_hot_path.items():
        assert any(request.hot for request in sqs.made(operation)), operation
        assert isinstance(hot, list) or hot[-1] or hot[-2] == "postroom.NoAnswer", "an error keeps its cause"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("500", ServiceUnavailable),
        ("throttled", Throttled),
        ("over limit", Throttled),
        ("429", Throttled),
        ("no such queue", QueueNotFound),
        ("no permission", AccessDenied),
        ("clock skew", AccessDenied),
        ("expired token", AccessDenied),
        ("bad handle", InvalidReceiptHandle),
        ("bad value", InvalidRequest),
        ("reset", ServiceUnavailable),
        ("half a body", ServiceUnavailable),
        ("a broken chunk", ServiceUnavailable),
        ("entries that are no objects", ServiceUnavailable),
        ("nothing", ServiceUnavailable),
        ("a page in HTML", ServiceUnavailable),
        ("a page in HTML as a refusal", ServiceUnavailable),
        ("a proxy that wants a password", ServiceUnavailable),
        ("half of the JSON", ServiceUnavailable),
        ("more than the JSON", ServiceUnavailable),
        ("a JSON null", ServiceUnavailable),
        ("bytes that are no text", ServiceUnavailable),
    ],
)
async def test_errors_have_the_class_that_tells_what_to_do(
    sqs: FakeSqs, fault: str, kind: type[TransportError]
) -> None:
    """The class says whether trying again helps; the text names the operation and the queue."""
    sqs.scripts["DeleteMessageBatch"] = FAULTS[fault]
    async with sqs.client(max_attempts=1) as client:
        queue = await client.queue("orders")
        with pytest.raises(TransportError, match="DeleteMessageBatch on queue 'orders'") as caught:
            await delete(queue)
    assert type(caught.value) is kind
    assert caught.value.operation == "DeleteMessageBatch"
    assert caught.value.code


NO_ANSWERS = [
    "nothing",
    "a page in HTML",
    "half of the JSON",
    "more than the JSON",
    "a JSON null",
    "a JSON text",
    "bytes that are no text",
]


@pytest.mark.parametrize("fault", NO_ANSWERS)
@pytest.mark.parametrize("hot", [True, False])
async def test_what_is_no_answer_of_sqs_is_an_outage(sqs: FakeSqs, fault: str, *, hot: bool) -> None:
    """A success without a JSON object in it does not read as an empty queue, nor as a batch that took effect."""
    sqs.scripts.update(dict.fromkeys(ACTIONS, FAULTS[fault]))
    given = await outcomes(sqs, *ACTIONS, hot=hot)
    assert [told[:2] for told in given.values()] == [(ServiceUnavailable, operation) for operation in ACTIONS]


@pytest.mark.parametrize("hot", [True, False])
async def test_an_empty_object_is_an_empty_queue(sqs: FakeSqs, *, hot: bool) -> None:
    """SQS leaves out the list where there are no messages."""
    sqs.scripts["ReceiveMessage"] = says(reply({}))
    assert await outcome(sqs, "ReceiveMessage", hot=hot) == []


BATCH_ANSWERS: list[tuple[str, list[tuple[int, str]]]] = [
    ("nothing but an object", [(0, "postroom.Unconfirmed"), (1, "postroom.Unconfirmed")]),
    ("ids that are no numbers", [(0, "postroom.Unconfirmed"), (1, "postroom.Unconfirmed")]),
    ("an index outside", [(0, "postroom.Unconfirmed"), (1, "postroom.Unconfirmed")]),
    ("a refusal of an entry that was not sent", []),
    ("a refusal without an id", []),
    ("one entry refused twice", [(0, "postroom.Unconfirmed"), (1, "a")]),
    ("one entry refused and confirmed", [(1, "a")]),
    ("confirmations of entries that were not sent", []),
    ("one entry twice", [(0, "postroom.Unconfirmed")]),
    ("numbers for texts", []),
]


@pytest.mark.parametrize(("fault", "failures"), BATCH_ANSWERS)
@pytest.mark.parametrize("hot", [True, False])
async def test_only_entries_that_were_sent_fail_and_each_once(
    sqs: FakeSqs, fault: str, failures: list[tuple[int, str]], *, hot: bool
) -> None:
    """Unknown ids name nothing, and what is named as both refused and done is refused."""
    sqs.scripts["DeleteMessageBatch"] = FAULTS[fault]
    told = await outcome(sqs, "DeleteMessageBatch", hot=hot)
    assert [(failure.index, failure.code) for failure in told] == failures


@pytest.mark.parametrize("hot", [True, False])
async def test_numbers_for_texts_become_texts(sqs: FakeSqs, *, hot: bool) -> None:
    """What reads a message never meets a number in place of a text."""
    sqs.scripts["ReceiveMessage"] = FAULTS["numbers for texts"]
    (message,) = await outcome(sqs, "ReceiveMessage", hot=hot)
    assert (message.body, message.receive_count, message.group_id) == ("5", 3, "4")
    assert message.attributes["tenantId"] == "7"
    assert "SenderId" not in message.system_attributes


MISSES = [
    "500",
    "throttled",
    "clock skew",
    "reset",
    "hang-up",
    "half a head",
    "half a body",
    "a broken chunk",
    "not HTTP",
    "an array",
    "entries that are no objects",
]


@pytest.mark.parametrize("fault", MISSES)
async def test_what_befalls_only_the_hot_path_is_not_noticed(sqs: FakeSqs, fault: str) -> None:
    """A miss is made good by the ordinary client: one attempt here, and the result is as if nothing had been."""
    expected = await outcomes(sqs, *ACTIONS, hot=False)
    sqs.requests.clear()
    sqs.scripts.update(dict.fromkeys(ACTIONS, only_hot(FAULTS[fault])))
    assert await outcomes(sqs, *ACTIONS, hot=True) == expected
    for operation in ACTIONS:
        assert [request.hot for request in sqs.made(operation)] == [True, False], operation


@actions
async def test_a_healthy_call_is_one_request(sqs: FakeSqs, operation: str) -> None:
    """The hot path asks for the same as the ordinary client, once."""
    for hot in (False, True):
        await outcome(sqs, operation, hot=hot)
    ordinary, hot_one = sqs.made(operation)
    assert (ordinary.hot, hot_one.hot) == (False, True)
    assert hot_one.body == ordinary.body
    for header in ("host", "content-type", "x-amz-target", "user-agent"):
        assert hot_one.head[header] == ordinary.head[header]


async def test_messages_arrive_with_everything(sqs: FakeSqs) -> None:
    """Text of any language, binary attributes and system attributes come through both paths alike."""
    wire = wire_message(
        Body='snow ☃, emoji 🚀, quote ", tab \t, line\nbreak',
        MessageAttributes={
            "tenantId": {"DataType": "String", "StringValue": "größe"},
            "amount": {"DataType": "Number.float", "StringValue": "1.50"},
            "blob": {"DataType": "Binary.png", "BinaryValue": "AP8Q"},
            "empty": {"DataType": "Binary", "BinaryValue": ""},
        },
    )
    wire["Attributes"]["MessageGroupId"] = "g"
    sqs.scripts["ReceiveMessage"] = says(reply({"Messages": [wire]}))
    hot, ordinary = [await outcome(sqs, "ReceiveMessage", hot=way) for way in (True, False)]
    assert hot == ordinary
    (message,) = hot
    assert message.body == wire["Body"]
    assert message.queue == "orders"
    assert message.group_id == "g"
    assert message.attributes["tenantId"] == "größe"
    assert message.message_attributes["amount"] == MessageAttribute("Number.float", "1.50")
    assert message.message_attributes["blob"] == MessageAttribute("Binary.png", binary_value=b"\x00\xff\x10")
    assert message.message_attributes["empty"] == MessageAttribute("Binary", binary_value=b"")


async def test_a_fifo_receive_has_one_attempt_id_on_both_attempts(sqs: FakeSqs) -> None:
    """When the answer to the first attempt is lost, the second gets the same messages again."""
    sqs.scripts["ReceiveMessage"] = only_hot(resets)
    async with sqs.client() as client:
        queue = await client.queue("orders.fifo")
        await receive(queue)
        await queue.receive(limit=1, wait=0, visibility=30, attempt_id="mine")
    first, second, third, fourth = [request.body["ReceiveRequestAttemptId"] for request in sqs.made("ReceiveMessage")]
    assert first == second
    assert len(first) == 32
    assert third == fourth == "mine"


async def test_a_standard_receive_has_no_attempt_id(sqs: FakeSqs) -> None:
    """SQS takes attempt ids on FIFO queues only."""
    await outcome(sqs, "ReceiveMessage", hot=True)
    assert "ReceiveRequestAttemptId" not in sqs.made("ReceiveMessage")[0].body


class Rotating:
    """A credential source that gives other temporary credentials at every refresh."""

    def __init__(self) -> None:
        self.made = 0

    async def __call__(self) -> dict[str, str]:
        """Refresh."""
        self.made += 1
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
        number = str(self.made)
        return {
            "access_key": "AKID" + number,
            "secret_key": "secret" + number,
            "token": "token/" + number + "==",
            "expiry_time": soon.isoformat(),
        }


async def test_credentials_are_asked_for_at_every_call(sqs: FakeSqs) -> None:
    """Credentials that botocore refreshed sign the next request, with their own token."""
    source = Rotating()
    session = AioSession()
    # Always within a second of their expiry, so that botocore refreshes them at every call.
    session._credentials = AioRefreshableCredentials.create_from_metadata(await source(), source, "test")
    async with sqs.client(session=session) as client:
        queue = await client.queue("orders")
        for _ in range(3):
            await delete(queue)
    seen: list[str] = []
    for request in sqs.made("DeleteMessageBatch"):
        assert request.hot
        number = request.head["x-amz-security-token"].removeprefix("token/").removesuffix("==")
        credentials = ReadOnlyCredentials(f"AKID{number}", f"secret{number}", f"token/{number}==")
        assert request.head["authorization"] == expected_authorization(request, credentials)
        seen.append(number)
    assert len(set(seen)) == 3


async def test_a_refresh_that_fails_is_the_ordinary_clients_business(sqs: FakeSqs) -> None:
    """Expired credentials that cannot be refreshed deny access, with botocore's reason as the cause."""
    source = Rotating()
    session = AioSession()

    async def fail() -> dict[str, str]:
        if sqs.made("GetQueueAttributes"):
            raise OSError("the metadata service is away")
        return await source()

    session._credentials = AioRefreshableCredentials.create_from_metadata(await source(), fail, "test")
    async with sqs.client(session=session) as client:
        queue = await client.queue("orders")
        expired = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)
        session._credentials._expiry_time = expired
        with pytest.raises(TransportError) as caught:
            await delete(queue)
        assert caught.value.__cause__ is not None
        assert client.statistics().hot_misses == 1
    assert not sqs.made("DeleteMessageBatch")


async def test_connections_are_kept(sqs: FakeSqs) -> None:
    """Many calls, one after the other, go over one connection."""
    async with sqs.client() as client:
        queue = await client.queue("orders")
        for _ in range(5):
            await receive(queue)
            await delete(queue)
        assert client.statistics() == ClientStatistics(
            hot_path=True, objections=(), hot_calls=10, hot_misses=0, hot_connections=1
        )
    assert len({request.connection for request in sqs.requests if request.hot}) == 1


async def test_a_connection_that_the_server_closed_while_idle_costs_nothing(sqs: FakeSqs) -> None:
    """A stale connection is no reason to leave the hot path, however often it happens."""

    async def answers_once(request: Request, writer: asyncio.StreamWriter) -> None:
        if sum(one.connection == request.connection for one in sqs.requests) > 1:
            writer.transport.abort()
        else:
            writer.write(healthy(request))

    sqs.scripts["DeleteMessageBatch"] = only_hot(answers_once)
    async with sqs.client() as client:
        queue = await client.queue("orders")
        for _ in range(12):
            assert await delete(queue) == []
        assert client.statistics().hot_calls == 6
        assert client.statistics().hot_misses == 6

        assert await asyncio.gather(*(delete(queue) for _ in range(5))) == [[]] * 5
        for _ in range(6):  # five stale connections in a row, then a new one
            assert await delete(queue) == []
        assert client.statistics().hot_misses == 11
        assert client.statistics().hot_calls == 12


async def test_a_throttle_is_left_to_the_ordinary_client(sqs: FakeSqs, caplog: pytest.LogCaptureFixture) -> None:
    """After one throttle the hot path pauses, and says so once."""
    caplog.set_level(logging.INFO, "postroom.transports")
    sqs.scripts["DeleteMessageBatch"] = only_hot(FAULTS["throttled"])
    async with sqs.client() as client:
        queue = await client.queue("orders")
        for _ in range(5):
            assert await delete(queue) == []
    assert [request.hot for request in sqs.made("DeleteMessageBatch")] == [True, *[False] * 5]
    paused = [text for text in caplog.messages if "left alone" in text]
    assert paused == ["SQS hot path: left alone for 5 s after DeleteMessageBatch: HTTP 400 RequestThrottled"]


async def test_repeated_misses_pause_it_and_a_success_takes_it_again(
    sqs: FakeSqs, caplog: pytest.LogCaptureFixture
) -> None:
    """Three misses in a row pause the path; when the pause is over, one call probes it."""
    caplog.set_level(logging.INFO, "postroom.transports")
    sqs.scripts["DeleteMessageBatch"] = only_hot(resets)
    async with sqs.client() as client:
        queue = await client.queue("orders")
        for _ in range(5):
            assert await delete(queue) == []
        assert sum(request.hot for request in sqs.made("DeleteMessageBatch")) == 3
        sqs.scripts.clear()
        hot_path_of(client)._breaker._until = 0.0  # the pause is over
        for _ in range(2):
            assert await delete(queue) == []
    assert [request.hot for request in sqs.made("DeleteMessageBatch")][-2:] == [True, True]
    assert "SQS hot path: taken again" in caplog.messages


@pytest.mark.parametrize("hot", [True, False])
async def test_long_polls_never_starve_the_rest(sqs: FakeSqs, *, hot: bool) -> None:
    """With more pollers than room for receives, deletes and heartbeats still pass at once."""
    sqs.scripts["ReceiveMessage"] = holds
    async with sqs.client(connections=2, hot_path=hot) as client:
        queue = await client.queue("orders")
        polls = [asyncio.create_task(receive(queue), name=f"poll-{number}") for number in range(8)]
        await sqs.wait_for("ReceiveMessage", 2)
        for _ in range(3):
            assert (
                await asyncio.gather(*(delete(queue) for _ in range(8)), *(change(queue) for _ in range(8)))
                == [[]] * 16
            )
        assert len(sqs.made("ReceiveMessage")) == 2, "receives keep to their own allowance"
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)


@pytest.mark.parametrize("hot", [True, False])
async def test_calls_under_way_fail_when_the_client_closes(sqs: FakeSqs, *, hot: bool) -> None:
    """A caller that still waits for an answer is told at once that the client was closed, without all the retries."""
    sqs.scripts["ReceiveMessage"] = holds
    async with sqs.client(hot_path=hot, max_attempts=10) as client:
        queue = await client.queue("orders")
        poll = asyncio.create_task(receive(queue), name="poll")
        await sqs.wait_for("ReceiveMessage")
    async with asyncio.timeout(5):  # botocore's pauses between ten attempts add up to most of a minute
        with pytest.raises(ClosedError):
            await poll
    with pytest.raises(ClosedError, match="async with client"):
        await delete(queue)


async def test_a_cancelled_call_is_cancelled(sqs: FakeSqs) -> None:
    """Cancelling goes through at once, and the path is still good for the next call."""
    sqs.scripts["ReceiveMessage"] = holds
    async with sqs.client() as client:
        queue = await client.queue("orders")
        poll = asyncio.create_task(receive(queue), name="poll")
        await sqs.wait_for("ReceiveMessage")
        poll.cancel()
        with pytest.raises(asyncio.CancelledError):
            await poll
        sqs.scripts.clear()
        assert len(await receive(queue)) == 2
        assert client.statistics().hot_misses == 0
    assert len(sqs.made("ReceiveMessage")) == 2


async def drips(_request: Request, writer: asyncio.StreamWriter) -> None:
    """Send a long answer a byte at a time, for as long as the other side listens."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("hot", [True, False])
async def test_a_slow_loris_does_not_hold_a_call_for_ever(sqs: FakeSqs, *, hot: bool) -> None:
    """An answer that drips ends at a deadline on both paths, with the class of error of a timeout."""
    sqs.scripts["DeleteMessageBatch"] = drips
    async with sqs.client(hot_path=hot, max_attempts=1) as client:
        queue = await client.queue("orders")
        assert connection_of(client)._longest_call == 1 * (5 + 25 + 20)
        connection_of(client)._longest_call = 0.05
        if hot:
            assert hot_path_of(client)._pool._timeout == 25
            hot_path_of(client)._pool._timeout = 0.05
        with pytest.raises(ServiceUnavailable):
            await delete(queue)


async def test_no_credential_and_no_body_is_logged(sqs: FakeSqs, caplog: pytest.LogCaptureFixture) -> None:
    """What goes wrong is told by its kind, not by what it carried."""
    caplog.set_level(logging.DEBUG, "postroom.transports")
    bodies: Sequence[object] = ({"Messages": [{"Body": "a secret of the tenant"}]}, b'{"Body": "a secret of the tenant')
    for body in bodies:
        sqs.scripts["ReceiveMessage"] = only_hot(says(reply(body)))
        await outcome(sqs, "ReceiveMessage", hot=True)
    sqs.scripts["DeleteMessageBatch"] = only_hot(says(reply({"Failed": [{"Id": "a secret in a number's place"}]})))
    await outcome(sqs, "DeleteMessageBatch", hot=True)
    told = " ".join(caplog.messages)
    assert "by the ordinary client" in told
    assert "secret" not in told
    assert "AKID" not in told
