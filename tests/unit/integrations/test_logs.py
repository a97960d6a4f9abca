"""Log lines in JSON, and which configuration counts."""

import asyncio
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from postroom import BatchContext, Consumer
from postroom.integrations.logs import JsonFormatter, MessageFields, message_fields
from postroom.log_fields import FIELDS
from support.world import Order, Tenant, World, with_world


def written(*arguments: object, text: object = "hello", **fields: Any) -> dict[str, Any]:
    """Return what is written of a record."""
    record = logging.makeLogRecord({"msg": text, "args": arguments, "levelname": "INFO", "name": "shop", **fields})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    decoded: dict[str, Any] = json.loads(line)
    return decoded


def test_a_line_has_what_the_record_has_and_nothing_else() -> None:
    """Fields that are None are left out, as is what every record has."""
    line = written(queue="orders", tenant=None, order=7, created=1_800_000_000.25)
    assert line == {
        "time": "2027-01-15T08:00:00.250Z", "level": "INFO", "logger": "shop", "message": "hello", "queue": "orders",
        "order": 7,
    }  # fmt: skip


def test_a_field_cannot_pass_for_the_message() -> None:
    """An extra with the name of a column of ours does not replace it."""
    assert written(level="FATAL")["level"] == "INFO"


class Shy:
    """Has no text."""

    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("value", "text"),
    [(Path("x"), "x"), (Shy(), "<Shy>"), ("\ud800", "\\ud800"), ({Path("x"): 1}, None), (float("nan"), None)],
)
def test_what_is_no_json_is_written_all_the_same(value: Any, text: str | None) -> None:
    """A log line is never lost for what it carries."""
    line = written(extra_value=value)
    assert line["message"] == "hello"
    assert text is None or line["extra_value"] == text


def test_arguments_that_do_not_fit_are_said_in_the_line() -> None:
    """The line is worth more than a complaint on stderr."""
    assert written("x", text="%d messages")["message"].startswith("%d messages (its arguments do not fit: TypeError")


def test_a_message_that_cannot_be_shown_is_named() -> None:
    """``log.info(order)`` with an object of which the text raises: the line is written all the same."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    assert written("x", text=Broken())["message"].startswith("<Broken> (its arguments do not fit: RuntimeError")


def test_an_exception_is_one_field() -> None:
    """With its traceback; what a handler rendered before is taken as it is."""
    try:
        raise ValueError("broken")
    except ValueError:
        line = written(exc_info=sys.exc_info())
    assert line["exception"].endswith("ValueError: broken")
    assert written(exc_text="rendered")["exception"] == "rendered"


@with_world
async def test_a_line_of_a_batch_handler_names_what_its_messages_share(world: World) -> None:
    """The queue and the tenant, in threads too; no message alone, also not the one that began the batch."""
    world.create()
    seen: list[dict[str, object]] = []
    orders: Consumer[Tenant, None] = Consumer("orders", context=Tenant, client=world.client)

    @orders.batch_handler(size=2)
    async def store(payloads: list[Order], batch: BatchContext[Tenant, None]) -> None:
        seen.extend([message_fields(), await asyncio.to_thread(message_fields)])

    world.send_orders("1", "2", tenant="acme")
    async with orders:
        await asyncio.sleep(5)
    assert seen == 2 * [{"queue": "orders", "tenant": "acme:eu-west-1", "step": "handler"}]


def test_outside_of_a_handler_there_are_no_fields() -> None:
    """A record has them all the same, as None, so that a format string may name them."""
    assert message_fields() == {}
    record = logging.makeLogRecord({"tenant": "its own"})
    assert MessageFields().filter(record)
    assert [getattr(record, name) for name in FIELDS] == [None, "its own", None, None, None]


APP = """
{logging}
from postroom import Consumer
orders = Consumer("orders")
"""


def _run(directory: Path, set_up: str, *options: str) -> str:
    """Run a worker that cannot start, because its consumer has no handler, and return what it logged."""
    (directory / "shop_logs.py").write_text(APP.format(logging=set_up))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "POSTROOM_"))}
    command = [sys.executable, "-m", "postroom", "run", "shop_logs:orders", *options]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    return done.stderr


def test_the_command_logs_json_when_it_is_told_to(tmp_path: Path) -> None:
    """Every line of it, from the first on."""
    said = _run(tmp_path, "", "--log-format", "json")
    [line] = [json.loads(line) for line in said.splitlines()]
    assert line["message"].startswith("Cannot start: the consumer of 'orders' has no handler")
    assert (line["level"], line["step"]) == ("CRITICAL", "start")


def test_logging_that_the_application_sets_up_is_its_own(tmp_path: Path) -> None:
    """Its format, its level, and no second line of ours, whatever the options say."""
    said = _run(tmp_path, "import logging; logging.basicConfig(format='MINE %(message)s')", "--log-format", "json")
    assert said.startswith("MINE Cannot start: ")
    assert len(said.splitlines()) == 1


def test_loggers_that_a_configuration_disabled_by_accident_are_told_of(tmp_path: Path) -> None:
    """logging.config disables what exists, unless it is told otherwise: the log would be silent without a word."""
    config = {"version": 1, "root": {"handlers": ["out"]}, "handlers": {"out": {"class": "logging.StreamHandler"}}}
    said = _run(tmp_path, f"import logging.config, postroom.consumer; logging.config.dictConfig({config!r})")
    assert "pass disable_existing_loggers=False" in said
