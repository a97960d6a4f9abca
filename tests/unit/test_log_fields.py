"""Fields of log records: all records have them, and lines about a message name it."""

import ast
import asyncio
import io
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import postroom
from postroom import Consumer, Faults, MessageContext, RetryPolicy, Shutdown
from postroom.log_fields import FIELDS, Log, Step, about
from postroom.redaction import log_error
from postroom.types import UNRESOLVED
from support.world import Databases, Order, Tenant, World, in_world

ROOT = Path(postroom.__file__).parent
ELSEWHERE = ("local", "testing", "cli", "_examples")
"""Development tools, which log for the person at the terminal."""
METHODS = ("debug", "info", "warning", "error", "critical", "exception", "log")
NAMES_A_MESSAGE = ("message %s", "Message %s", "tenant %s", "Tenant %s", "key: %s", "of key %s")


def modules() -> Iterator[tuple[Path, ast.Module]]:
    """Yield every module that runs in production, and its code."""
    for path in sorted(ROOT.rglob("*.py")):
        if path.relative_to(ROOT).parts[0] not in ELSEWHERE:
            yield path, ast.parse(path.read_text())


def log_calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that write a line."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            if function.value.id in {"_log", "log"} and function.attr in METHODS:
                yield node
        elif isinstance(function, ast.Name) and function.id in {"log_error", "log_traceback"}:
            yield node


def test_every_logger_of_the_package_gives_its_records_fields() -> None:
    """A module that takes a logger of its own would log lines without them."""
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, code in modules()
        for node in ast.walk(code)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func) == "logging.getLogger"
        and node.args
        and "management" not in path.parts
    ]
    assert bare == ["log_fields.py:" + bare[0].rpartition(":")[2]]


def test_a_line_that_names_a_message_or_a_tenant_has_them_as_fields() -> None:
    """Text and fields must not tell different stories: walk over all log calls and look."""
    found, missing = 0, []
    for path, code in modules():
        for function in ast.walk(code):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            texts = " ".join(
                node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            )
            for call in log_calls(function):
                found += 1
                names = {keyword.arg for keyword in call.keywords}
                own = " ".join(ast.unparse(argument) for argument in call.args)
                text = own if any(isinstance(each, ast.Constant) for each in call.args) else texts
                if any(each in text for each in NAMES_A_MESSAGE) and "extra" not in names:
                    missing.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert found > 80
    assert missing == []


def test_the_story_of_a_bad_day_can_be_queried_by_field(caplog: pytest.LogCaptureFixture) -> None:
    """Failures at every step: each line has all fields, and whatever its text names."""

    async def scenario(world: World) -> None:
        world.create(dead_letters="dead", receives=3)
        databases = Databases()
        databases.failures["down"] = lambda: ConnectionRefusedError("no database")
        shutdown = Shutdown(drain=0, cancel=1)
        retry, faults = RetryPolicy(attempts=2, base=1), Faults(breaker_after=3, messages=3)
        orders: Consumer[Tenant, Any] = Consumer(
            "orders",
            context=Tenant,
            resources=databases,
            client=world.client,
            retry=retry,
            faults=faults,
            shutdown=shutdown,
        )

        @orders.handler
        async def handle(order: Order, ctx: MessageContext[Tenant, Any]) -> None:
            if order.order_id == "slow":
                await asyncio.sleep(3_600)
            raise ValueError(order.order_id)

        async with orders:
            for number in range(5):
                world.send_orders(f"bad-{number}", tenant="broken")
            world.send_orders("1", tenant="down")
            world.send("no JSON", tenant="a")
            world.send({}, tenant=None)
            await asyncio.sleep(60)
            world.send_orders("slow", tenant="a")
            await asyncio.sleep(30)

    caplog.set_level(logging.DEBUG, "postroom")
    in_world(scenario)
    records = [record for record in caplog.records if record.name.startswith("postroom")]
    assert len(records) > 30
    assert all(set(FIELDS) <= vars(record).keys() for record in records if record.name != "postroom.local")
    seen = {(record.step, record.tenant) for record in records if getattr(record, "message_id", None)}  # type: ignore[attr-defined]
    assert {
        ("handler", "broken:eu-west-1"),
        ("resources", "down:eu-west-1"),
        ("payload", "a:eu-west-1"),
        ("context", None),
    } <= seen
    for record in records:
        text = record.getMessage()
        fields = {name: getattr(record, name) for name in FIELDS}
        assert fields["step"] in set(Step), text
        assert fields["message_id"] is None or fields["queue"] == "orders", text
        if "message " in text and "of tenant" in text:
            assert fields["message_id"] in text, text
            assert fields["tenant"] is None or fields["tenant"] in text, text
            assert isinstance(fields["attempt"], int), text
        if "Consuming" in text or "Stopped consuming" in text:
            assert fields["queue"] == "orders"


class _CountsInItsOwnWay(logging.Logger):
    """As structlog's logger does it, which its ``LoggerFactory`` makes the class of every later logger."""

    def findCaller(self, stack_info: bool = False, stacklevel: int = 1) -> tuple[str, int, str, str | None]:  # noqa: N802
        return super().findCaller(stack_info, stacklevel + 3)


@pytest.mark.parametrize("kind", [logging.Logger, _CountsInItsOwnWay])
def test_a_record_points_at_the_line_that_logged_it(
    caplog: pytest.LogCaptureFixture, kind: type[logging.Logger]
) -> None:
    """Not at the helper that gave it its fields, by whichever method and with whatever class of loggers."""
    logger = kind("postroom.test")
    logger.addHandler(caplog.handler)
    log = Log(logger, Step.LOOP)
    caplog.set_level(logging.DEBUG)
    log.warning("1")
    log.log(logging.INFO, "2")
    try:
        raise ValueError("3")
    except ValueError as error:
        log.exception("3")
        log_error(log, logging.ERROR, "4", error=error)
    log.error("5", exc_info=ValueError("5"))
    assert {record.funcName for record in caplog.records} == {"test_a_record_points_at_the_line_that_logged_it"}
    assert {record.filename for record in caplog.records} == {"test_log_fields.py"}
    assert [record.exc_info is not None for record in caplog.records] == [False, False, True, True, True]


def test_a_level_that_is_off_makes_no_record() -> None:
    """Neither the record nor the text of its arguments."""

    class Costly:
        def __str__(self) -> str:
            raise AssertionError("it was written")

    log = Log("postroom.test", Step.LOOP)
    log.setLevel(logging.ERROR)
    log.warning("%s", Costly())
    log.setLevel(logging.NOTSET)


def test_fields_that_the_application_sets_itself_stay_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """Its record factory may have a tenant, too: neither is overwritten, and no line is lost."""
    usual = logging.getLogRecordFactory()

    def factory(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = usual(*arguments, **options)
        record.tenant = "the application's"
        return record

    logging.setLogRecordFactory(factory)
    try:
        Log("postroom.test", Step.LOOP).warning("hello", extra=about(tenant="ours", queue="orders"))
    finally:
        logging.setLogRecordFactory(usual)
    [record] = caplog.records
    assert (vars(record)["tenant"], vars(record)["queue"]) == ("the application's", "orders")


class Unready(logging.Filter):
    """A filter that expects what is not there, as one that reads ``current_message()`` without a look."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Fail."""
        raise AttributeError(record.name)


class Vexed(BaseException):
    """No ``Exception``, as what a library for time limits raises."""


class Leaver(logging.Filter):
    """A filter that raises an error at the line about a failure."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def filter(self, record: logging.LogRecord) -> bool:
        """Fail at that line, and let the others through."""
        if record.getMessage().startswith("Handler failed"):
            raise self.error
        return True


@pytest.mark.parametrize("error", [Vexed(), asyncio.CancelledError(), SystemExit(3)], ids=repr)
def test_whatever_a_filter_raises_ends_no_task(error: BaseException) -> None:
    """What asks for the end of the program ends the consumer in order; it tore the loop down under all messages."""
    handled: list[str] = []
    running = asyncio.Event()

    async def scenario(world: World) -> tuple[int, int]:
        world.create()
        orders = Consumer("orders", context=Tenant, client=world.client)

        @orders.handler
        async def handle(order: Order, _ctx: MessageContext[Tenant, None]) -> None:
            if order.order_id == "bad" and not handled:
                handled.append("bad")
                raise ValueError
            running.set()
            await asyncio.sleep(5)
            handled.append(order.order_id)

        world.send_orders("good", "bad")
        with pytest.raises(SystemExit) if isinstance(error, SystemExit) else nullcontext():
            async with orders:
                await asyncio.sleep(20)
        assert running.is_set()
        return world.counts()

    leaver = Leaver(error)
    logger = logging.getLogger("postroom.consumer")
    logger.addFilter(leaver)
    try:
        counts = in_world(scenario)
    finally:
        logger.removeFilter(leaver)
    assert (handled, counts) == (["bad", "good", "bad"], (0, 0))


def test_a_filter_that_raises_costs_a_line_and_no_message(capsys: pytest.CaptureFixture[str]) -> None:
    """It is told on standard error, without the error at hand, which may quote a password."""
    handled: list[str] = []

    async def scenario(world: World) -> tuple[int, int]:
        world.create()
        orders = Consumer("orders", context=Tenant, client=world.client)

        @orders.handler
        async def handle(order: Order, _ctx: MessageContext[Tenant, None]) -> None:
            handled.append(order.order_id)
            if len(handled) == 1:
                raise ValueError("password=hunter2-S3CR3T")

        async with orders:
            world.send_orders("1")
            await asyncio.sleep(10)
        return world.counts()

    unready = logging.StreamHandler(io.StringIO())
    unready.addFilter(Unready())
    logging.getLogger("postroom").addHandler(unready)
    try:
        counts = in_world(scenario)
    finally:
        logging.getLogger("postroom").removeHandler(unready)
    assert (handled, counts) == (["1", "1"], (0, 0))
    said = capsys.readouterr().err
    assert "AttributeError: postroom.consumer" in said
    assert "S3CR3T" not in said


def test_a_tenant_is_one_line_and_no_tenant_is_none() -> None:
    """Whatever an invented tenant's name holds, a log store reads one field of it."""
    assert about(tenant=Tenant("a\nb"))["tenant"] == "a\\nb:eu-west-1"
    assert about(tenant=UNRESOLVED)["tenant"] is None
    assert about()["tenant"] is None
