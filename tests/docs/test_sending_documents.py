"""The code of docs/sending.md, outbox.md, handlers.md and dead-letters.md runs as it stands."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postroom import Consumer, Router
from postroom.local.threaded import ThreadedServer
from postroom.outbox import OutboxRelay

DOCS = Path(__file__).parents[2] / "docs"
Names = dict[str, Any]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, sqs_server: ThreadedServer) -> Callable[[str], Names]:
    """Run the code of a page, with the local server as SQS."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", sqs_server.endpoint_url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")

    def run(page: str) -> Names:
        found: Names = {"__name__": page}
        for block in re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL):
            exec(compile(block, f"{page}.md", "exec"), found)  # noqa: S102 - our own document
        return found

    return run


async def test_orders_are_sent_and_relayed(
    names: Callable[[str], Names], sqs_server: ThreadedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the sender of the first example, a signing one, and the relay."""
    for queue in ("orders", "orders-old"):
        sqs_server.create_queue(queue)
    page = names("sending")
    assert len(await page["place"](page["Order"]("1"), page["Order"]("2"))) == 2
    async with page["trusted"] as trusted:
        await trusted.send(page["Order"]("3"), context=page["Tenant"]("acme"))
    await page["move"]()
    assert "0 moved, 0 left" in capsys.readouterr().out
    assert sum(sqs_server.counts("orders")) == 3


def test_the_outbox_page_declares_a_consumer_and_a_relay(
    names: Callable[[str], Names], capsys: pytest.CaptureFixture[str]
) -> None:
    """And prints the migration."""
    page = names("outbox")
    assert isinstance(page["orders"], Consumer)
    assert isinstance(page["relay"], OutboxRelay)
    assert "CREATE TABLE IF NOT EXISTS postroom_outbox" in capsys.readouterr().out


async def test_the_handlers_page_declares_a_router_and_a_batch(
    names: Callable[[str], Names], sqs_server: ThreadedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both start, and the batch handler takes a list."""
    for queue in ("orders", "readings"):
        sqs_server.create_queue(queue)
    page = names("handlers")
    assert isinstance(page["router"], Router)
    async with page["orders"], page["readings"]:
        assert page["router"].kinds == ["order.cancelled", "order.created", "order.expired"]


async def test_dead_letters_go_home_by_the_pages_code(
    names: Callable[[str], Names], sqs_server: ThreadedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """None is there."""
    sqs_server.create_queue("orders-dead")
    page = names("dead-letters")
    await page["main"]()
    assert "0 of 0 letters were sent home" in capsys.readouterr().out
