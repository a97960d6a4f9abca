"""The code in docs/fleet.md runs as it stands and prints what it says; and a FIFO queue limits without a store."""

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from postroom import Consumer, MessageContext
from postroom.local.shapes import Send
from support.world import World, with_world

TEXT = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def run_the_code() -> dict[str, Any]:
    """Run every block, one after the other, and return what it defined."""
    names: dict[str, Any] = {}
    for block in CODE:
        exec(compile(block, "fleet.md", "exec"), names)  # noqa: S102 - the document's own code is what is tested
    return names


def test_the_first_example_prints_what_the_document_says(capsys: pytest.CaptureFixture[str]) -> None:
    """A fleet is declared, and decided about, before anything is connected."""
    [said] = re.findall(r"```text\n(.*?)```", TEXT, flags=re.DOTALL)
    names = run_the_code()
    assert capsys.readouterr().out == said
    assert names["orders"].tenants["acme"].reason == "database move"


@with_world
async def test_groups_of_a_fifo_queue_limit_a_tenant_over_all_replicas(world: World) -> None:
    """Two groups per tenant: three replicas with eight slots each never run more than two of its messages."""
    names = run_the_code()
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    done: Counter[str] = Counter()
    world.broker.create_queue("orders.fifo", {"FifoQueue": "true", "ContentBasedDeduplication": "true"})
    for number in range(40):
        for tenant in ("acme", "other"):
            group = names["group_of"](tenant, f"{tenant}-{number}", 2)
            world.broker.send("orders.fifo", Send(message_body=f'"{tenant}-{number}"', message_group_id=group))
    replicas = [Consumer("orders.fifo", context=names["tenant_of"], client=world.client) for _ in range(3)]
    for orders in replicas:

        async def handle(_order: str, ctx: MessageContext[str]) -> None:
            running[ctx.context] += 1
            most[ctx.context] = max(most[ctx.context], running[ctx.context])
            await asyncio.sleep(0.2)
            running[ctx.context] -= 1
            done[ctx.context] += 1

        orders.handler(handle)
    async with replicas[0], replicas[1], replicas[2]:
        await asyncio.sleep(30)
    assert done == {"acme": 40, "other": 40}
    assert most["acme"] <= 2
    assert most["other"] <= 2


def test_the_promises_are_those_of_the_tests() -> None:
    """The document lists F1 to F12, each once."""
    assert re.findall(r"^\| \*\*(F\d+)\*\* \|", TEXT, flags=re.MULTILINE) == [f"F{number}" for number in range(1, 13)]
