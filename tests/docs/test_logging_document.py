"""Each block of docs/logging.md is run, and what it sets up logs what the document says."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from postroom import Consumer, MessageContext
from postroom.log_fields import FIELDS, Step
from support.world import World, in_world

TEXT = (Path(__file__).parents[2] / "docs" / "logging.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
JSON, STRUCTLOG, CONFIG = BLOCKS


@pytest.fixture(autouse=True)
def _structlog_as_it_was() -> Iterator[None]:
    """Undo what a block does to structlog; the loggers are looked after elsewhere."""
    yield
    structlog.reset_defaults()


def handle_one(log: Any) -> None:
    """Handle one message: the handler logs a line and fails."""

    async def scenario(world: World) -> None:
        world.create()
        orders: Consumer[Any, Any] = Consumer(
            "orders", context=lambda message: message.attributes["tenantId"], client=world.client
        )

        @orders.handler
        async def handle(body: dict[str, str], ctx: MessageContext[Any, Any]) -> None:
            log("Order 7 is paid")
            orders.stop()
            raise ValueError

        world.send({}, tenant="acme")
        await orders.run()

    in_world(scenario)


def run(block: str) -> dict[str, Any]:
    """Run a block of the document as a program does, which starts without handlers, and return its names."""
    logging.getLogger().handlers.clear()
    names: dict[str, Any] = {"__name__": "docs"}
    exec(compile(block, "logging.md", "exec"), names)  # noqa: S102 - the document's own code is what is tested
    return names


def test_lines_of_the_application_and_of_postroom_are_json_with_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """The two lines that the document shows."""
    run(JSON)
    handle_one(logging.getLogger("shop").info)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shown = [json.loads(line) for line in re.findall(r"^\{.*\}$", TEXT, flags=re.MULTILINE)]
    own, failed = (next(line for line in lines if line["message"].startswith(start)) for start in ("Order", "Handler"))
    for line, said in zip((own, failed), shown, strict=True):
        assert list(line) == ["time", *said]
        for name in said.keys() - {"message", "message_id", "exception"}:
            assert line[name] == said[name]
        pattern = re.escape(said["message"]).replace("5f2c…", "[0-9a-f-]{36}")
        assert re.fullmatch(pattern, line["message"])


def test_structlog_shows_the_message_on_its_own_lines_and_on_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """With both kinds of loggers in one stream."""
    run(STRUCTLOG)
    handle_one(structlog.get_logger("shop").info)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {line["event"]: line for line in lines if line.get("message_id")}
    assert any(event.startswith("Handler failed") for event in found)
    own = found["Order 7 is paid"]
    assert (own["tenant"], own["queue"], own["attempt"], own["step"]) == ("acme", "orders", 1, "handler")


def test_a_format_may_name_the_fields_on_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Also of libraries that know nothing of them."""
    run(CONFIG)
    handle_one(logging.getLogger("shop").info)
    logging.getLogger("another").warning("hello")
    said = capsys.readouterr().err
    assert re.search(r"INFO shop \[acme [0-9a-f-]{36}\] Order 7 is paid", said)
    assert "WARNING another [None None] hello" in said


def test_the_document_names_every_field_and_step() -> None:
    """What can be queried is what is documented."""
    assert all(f"| `{field}` |" in TEXT for field in FIELDS)
    assert all(f"`{step}`" in TEXT for step in Step)
