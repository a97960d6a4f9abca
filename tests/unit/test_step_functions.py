"""What becomes of a task with a token is reported to Step Functions, over HTTP to a server that speaks its protocol."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from aiobotocore.session import AioSession
from pydantic import BaseModel, Field

from postroom import (
    AlreadyHandled,
    BatchContext,
    ConfigurationError,
    Consumer,
    Drop,
    MessageContext,
    NotOpenError,
    Reject,
    ServiceUnavailable,
    Settlement,
)
from postroom.integrations.step_functions import TaskTokens, set_task_output, token_of
from postroom.testing import Delivered, context, deliver

Ctx = MessageContext[Any, Any]
TOKEN = {"taskToken": "token-1"}


@dataclass
class Order:
    """A payload with a token."""

    order_id: str = "1"
    task_token: str | None = None


@cache
def session() -> AioSession:
    """Return one session: its second client is made in a tenth of the time."""
    return AioSession()


class Server:
    """A server that takes what Step Functions takes, notes it, and refuses as told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.refusals: dict[str, tuple[int, str]] = {}
        self.heard = asyncio.Condition()
        self.port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Listen for the time of the block."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                operation = headers["x-amz-target"].removeprefix("awsstepfunctions.")
                status, code = self.refusals.get(operation, (200, ""))
                async with self.heard:
                    self.calls.append((operation, body))
                    self.heard.notify_all()
                answer = json.dumps({"__type": code} if code else {}).encode()
                lines = [f"HTTP/1.1 {status} X", "Content-Type: application/x-amz-json-1.0"]
                writer.write("\r\n".join([*lines, f"Content-Length: {len(answer)}", "", ""]).encode() + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def named(self, operation: str) -> list[dict[str, Any]]:
        """Return the bodies of the calls of an operation."""
        return [body for name, body in self.calls if name == operation]


Work = Callable[[Order, Ctx], Awaitable[None]]


class Scene:
    """A server, and a consumer that reports to it."""

    def __init__(self, endpoint: str, server: Server) -> None:
        self.endpoint = endpoint
        self.server = server

    async def handle(
        self,
        work: Work | None = None,
        *,
        receives: int = 1,
        payload: Any = None,
        **options: Any,
    ) -> Delivered:
        """Deliver a message with a token to a handler."""
        tokens = TaskTokens(endpoint_url=self.endpoint, region="us-east-1", session=session(), **options)
        consumer: Consumer[Any, Any] = Consumer("orders", middleware=[tokens])

        @consumer.handler
        async def handle(order: Order, ctx: Ctx) -> None:
            if work is not None:
                await work(order, ctx)

        return await deliver(consumer, payload or Order(), attributes=TOKEN, receives=receives)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """A server that listens."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    server = Server()
    async with server.listening() as endpoint:
        yield Scene(endpoint, server)


async def test_a_batch_handler_sets_no_output(scene: Scene) -> None:
    """It would be that of the message which began the batch."""
    tokens = TaskTokens(endpoint_url=scene.endpoint, region="us-east-1", session=session())
    consumer: Consumer[Any, Any] = Consumer("orders", middleware=[tokens])
    told: list[str] = []

    @consumer.batch_handler(size=1)
    async def charge(orders: list[Order], batch: BatchContext[Any, Any]) -> None:
        with pytest.raises(ConfigurationError) as caught:
            set_task_output({"charged": len(orders)})
        told.append(str(caught.value))

    found = await deliver(consumer, Order(), attributes=TOKEN)
    assert found.settlement is Settlement.ACKED
    assert "of which message" in told[0]
    assert scene.server.named("sendtasksuccess") == [{"taskToken": "token-1", "output": "{}"}]


async def test_an_output_is_set_wherever_the_middleware_is_called(scene: Scene) -> None:
    """As by a unit test of a handler, which has no consumer."""

    async def charge(payload: Order, ctx: Any) -> None:
        set_task_output({"charged": payload.order_id})

    async with TaskTokens(
        lambda *_: "token-1", endpoint_url=scene.endpoint, region="us-east-1", session=session()
    ) as tokens:
        await tokens(Order(), context(), charge)
    assert json.loads(scene.server.named("sendtasksuccess")[0]["output"]) == {"charged": Order().order_id}


def raises(error: BaseException) -> Work:
    """Make a handler that raises."""

    async def work(order: Order, ctx: Ctx) -> None:
        raise error

    return work


async def test_success_is_reported_before_the_message_is_acknowledged(scene: Scene) -> None:
    """With the output that the handler named."""

    async def work(order: Order, ctx: Ctx) -> None:
        set_task_output({"order": order.order_id})

    assert (await scene.handle(work)).settlement is Settlement.ACKED
    assert scene.server.calls == [("sendtasksuccess", {"taskToken": "token-1", "output": '{"order":"1"}'})]


async def test_without_an_output_it_is_empty(scene: Scene) -> None:
    """An empty object, which a state machine can merge."""
    await scene.handle()
    assert scene.server.named("sendtasksuccess") == [{"taskToken": "token-1", "output": "{}"}]


class Charged(BaseModel):
    """An output with a name of its own in JSON."""

    amount: float = Field(serialization_alias="amountCharged")


@pytest.mark.parametrize(
    ("output", "written"),
    [
        (Charged(amount=1.5), '{"amountCharged":1.5}'),
        ([Charged(amount=1.5)], '[{"amountCharged":1.5}]'),
        ("text", '"text"'),
        (None, "{}"),
        (Order(), '{"order_id":"1","task_token":null}'),
    ],
)
async def test_whatever_can_be_sent_can_be_the_output(scene: Scene, output: object, written: str) -> None:
    """Pydantic models too."""

    async def work(order: Order, ctx: Ctx) -> None:
        set_task_output(output)

    assert (await scene.handle(work)).settlement is Settlement.ACKED
    assert scene.server.named("sendtasksuccess")[0]["output"] == written


@pytest.mark.parametrize("output", [object(), {"amount": float("nan")}])
async def test_what_has_no_json_form_is_refused_where_it_is_said(scene: Scene, output: object) -> None:
    """Before the handler goes on, and not when its work is done."""

    async def work(order: Order, ctx: Ctx) -> None:
        with pytest.raises(ConfigurationError, match="cannot be sent as JSON"):
            set_task_output(output)

    assert (await scene.handle(work)).settlement is Settlement.ACKED
    assert scene.server.named("sendtasksuccess") == [{"taskToken": "token-1", "output": "{}"}]


async def test_a_plain_handler_in_a_thread_names_its_output_too(scene: Scene) -> None:
    """The context of the message goes with it."""
    tokens = TaskTokens(endpoint_url=scene.endpoint, region="us-east-1", session=session())
    consumer: Consumer[Any, Any] = Consumer("orders", middleware=[tokens])

    @consumer.handler
    def handle(order: Order, ctx: Ctx) -> None:
        set_task_output([1])

    assert (await deliver(consumer, Order(), attributes=TOKEN)).error is None
    assert scene.server.named("sendtasksuccess")[0]["output"] == "[1]"


async def test_a_success_that_cannot_be_reported_is_a_failure(scene: Scene) -> None:
    """The message comes back, and the handler runs again."""
    scene.server.refusals["sendtasksuccess"] = (500, "InternalFailure")
    found = await scene.handle()
    assert isinstance(found.error, ServiceUnavailable)
    assert found.settlement is Settlement.RETRIED


@pytest.mark.parametrize("code", ["TaskTimedOut", "TaskDoesNotExist", "InvalidToken"])
async def test_a_task_that_waits_no_more_ends_its_message(scene: Scene, code: str) -> None:
    """Its work is done, and nothing waits for it."""
    scene.server.refusals["sendtasksuccess"] = (400, code)
    assert (await scene.handle()).settlement is Settlement.ACKED


async def test_a_duplicate_reports_success_as_well(scene: Scene) -> None:
    """The first one may have died between its commit and its report."""
    assert (await scene.handle(raises(AlreadyHandled()))).settlement is Settlement.ACKED
    assert len(scene.server.named("sendtasksuccess")) == 1


@pytest.mark.parametrize(
    ("receives", "reported"),
    [(1, False), (2, False), (3, True), (4, True)],
)
async def test_a_failure_is_reported_at_the_last_attempt(scene: Scene, receives: int, *, reported: bool) -> None:
    """Before it, the state machine goes on waiting. Secrets stay out of the cause."""
    error = ConnectionError("postgresql://app:s3cr3t-4711@db/tenant is away")
    found = await scene.handle(raises(error), receives=receives, attempts=3)
    assert found.settlement is Settlement.RETRIED
    calls = scene.server.named("sendtaskfailure")
    assert len(calls) == int(reported)
    for call in calls:
        assert (call["taskToken"], call["error"]) == ("token-1", "ConnectionError")
        assert "is away" in call["cause"]
        assert "s3cr3t" not in call["cause"]


@pytest.mark.parametrize(("error", "name"), [(Reject("no such article"), "Reject"), (Drop("old"), "Drop")])
async def test_what_is_given_up_is_reported_at_once(scene: Scene, error: Exception, name: str) -> None:
    """The message does not come again."""
    await scene.handle(raises(error))
    [call] = scene.server.named("sendtaskfailure")
    assert (call["error"], str(error) in call["cause"]) == (name, True)


async def test_a_failure_that_cannot_be_reported_changes_nothing(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler's error decides; the log says that the state times out."""
    scene.server.refusals["sendtaskfailure"] = (500, "InternalFailure")
    assert (await scene.handle(raises(Reject("no")))).settlement is Settlement.REJECTED
    assert "could not be reported" in caplog.text


async def test_heartbeats_are_sent_while_the_handler_runs(scene: Scene) -> None:
    """The first one before it begins."""

    async def work(order: Order, ctx: Ctx) -> None:
        async with scene.server.heard:
            await scene.server.heard.wait_for(lambda: len(scene.server.named("sendtaskheartbeat")) >= 3)

    assert (await scene.handle(work, heartbeat=0.02)).settlement is Settlement.ACKED
    assert scene.server.calls[0][0] == "sendtaskheartbeat"
    assert scene.server.calls[-1][0] == "sendtasksuccess"


async def test_a_task_that_is_over_is_not_begun(scene: Scene) -> None:
    """The message waited for too long."""
    scene.server.refusals["sendtaskheartbeat"] = (400, "TaskTimedOut")
    ran: list[str] = []

    async def work(order: Order, ctx: Ctx) -> None:
        ran.append("ran")

    found = await scene.handle(work, heartbeat=5)
    assert (found.settlement, ran) == (Settlement.ACKED, [])
    assert isinstance(found.error, Drop)
    assert [name for name, _ in scene.server.calls] == ["sendtaskheartbeat"]


async def test_a_task_that_ends_under_its_handler_cancels_it(scene: Scene) -> None:
    """At the next heartbeat; nothing more is reported."""
    ended: list[str] = []

    async def work(order: Order, ctx: Ctx) -> None:
        scene.server.refusals["sendtaskheartbeat"] = (400, "TaskDoesNotExist")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    found = await scene.handle(work, heartbeat=0.02, attempts=1)
    assert (found.settlement, ended) == (Settlement.ACKED, ["cancelled"])
    assert isinstance(found.error, Drop)
    assert "TaskDoesNotExist" in str(found.error)
    assert {name for name, _ in scene.server.calls} == {"sendtaskheartbeat"}


async def test_a_heartbeat_that_fails_is_sent_again(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """The handler goes on; a timeout of its own stays its own."""

    async def work(order: Order, ctx: Ctx) -> None:
        scene.server.refusals["sendtaskheartbeat"] = (500, "InternalFailure")
        async with scene.server.heard:
            await scene.server.heard.wait_for(lambda: len(scene.server.named("sendtaskheartbeat")) >= 3)
        raise TimeoutError("of the handler")

    found = await scene.handle(work, heartbeat=0.02)
    assert (found.settlement, str(found.error)) == (Settlement.RETRIED, "of the handler")
    assert caplog.text.count("No heartbeat for the task of message") == 1  # one a minute, with a count


async def test_a_message_without_a_token_is_handled_as_ever(scene: Scene) -> None:
    """Nothing is reported."""
    tokens = TaskTokens(lambda payload, ctx: None, endpoint_url=scene.endpoint, region="us-east-1", session=session())
    consumer: Consumer[Any, Any] = Consumer("orders", middleware=[tokens])

    @consumer.handler
    async def handle(order: Order, ctx: Ctx) -> None:
        with pytest.raises(ConfigurationError, match="of a message with a task token"):
            set_task_output({})

    assert (await deliver(consumer, Order())).settlement is Settlement.ACKED
    assert scene.server.calls == []


@pytest.mark.parametrize(
    "payload",
    [{"TaskToken": "t"}, {"taskToken": "t"}, Order(task_token="t"), SimpleNamespace(TaskToken="t")],
)
def test_the_token_is_found_in_the_payload(payload: Any) -> None:
    """Under the names that state machines use; an attribute comes first."""
    assert token_of(payload, context()) == "t"
    assert token_of(payload, context(attributes=TOKEN)) == "token-1"
    assert token_of({"taskToken": 5}, context()) is None
    assert token_of("text", context()) is None


async def test_an_output_that_is_too_large_says_so(scene: Scene) -> None:
    """It is not cut."""

    async def work(order: Order, ctx: Ctx) -> None:
        set_task_output("x" * 262_144)

    found = await scene.handle(work)
    assert isinstance(found.error, ConfigurationError)
    assert "262,146 bytes" in str(found.error)


async def test_it_must_be_open() -> None:
    """Outside of a consumer, by hand."""

    async def nothing(payload: Any, ctx: Any) -> None: ...

    with pytest.raises(NotOpenError, match=r"Consumer\(middleware=\[...\]\)"):
        await TaskTokens()({"taskToken": "t"}, context(), nothing)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"token": "taskToken"}, "takes a function (payload, ctx) -> str | None; got str"),
        ({"token": lambda payload: None}, "cannot be called as (payload, ctx)"),
        ({"heartbeat": 0}, "TaskTokens(heartbeat=...) takes seconds"),
        ({"attempts": 0}, "TaskTokens(attempts=...) takes a whole number"),
        ({"timeout": "5"}, "TaskTokens(timeout=...) takes seconds"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], text: str) -> None:
    """With what to write instead."""
    with pytest.raises(ConfigurationError) as caught:
        TaskTokens(**arguments)
    assert text in str(caught.value)
