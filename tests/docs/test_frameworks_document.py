"""The code in docs/frameworks.md runs: web applications serve and consume, containers open a scope per tenant."""

import asyncio
import contextlib
import re
import sys
import types
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from postroom import Consumer, ExitCode, MessageContext, ResourcePool
from postroom.local import LocalBroker
from postroom.local.shapes import AttributeValue, Send
from postroom.transports.memory import MemoryClient
from support.web import serving

TEXT = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text(encoding="utf-8")
BLOCKS: list[str] = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def names_of(word: str) -> dict[str, Any]:
    """Run the block of code that has a word, and return its names."""
    [code] = [block for block in BLOCKS if word in block]
    module = sys.modules["frameworks_document"] = types.ModuleType("frameworks_document")  # annotations are read there
    names = module.__dict__
    exec(compile(code, "frameworks.md", "exec"), names)  # noqa: S102 - the document's own code is what is tested
    return names


@pytest.fixture
async def broker() -> AsyncGenerator[LocalBroker]:
    """A queue with one order of acme's."""
    async with LocalBroker() as opened:
        opened.create_queue("orders")
        attributes = {"tenantId": AttributeValue(data_type="String", string_value="acme")}
        opened.send("orders", Send(message_body="7", message_attributes=attributes))
        yield opened


@pytest.fixture
def in_memory(broker: LocalBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let consumers that name no client use the queue in memory."""
    monkeypatch.setattr("postroom.consumer.starting.default_client", lambda: MemoryClient(broker))


async def printed(capsys: pytest.CaptureFixture[str], words: str) -> None:
    """Wait until something was printed."""
    seen = ""
    async with asyncio.timeout(30):
        while words not in seen:
            await asyncio.sleep(0)
            seen += capsys.readouterr().out


@pytest.mark.usefixtures("in_memory")
async def test_the_fastapi_application_serves_and_consumes(capsys: pytest.CaptureFixture[str]) -> None:
    """One pool for requests and handlers, health mounted."""
    async with serving(names_of("FastAPI(")["create_app"]()) as client:
        await printed(capsys, "order 7 in the database of acme")
        found = await client.get("/database", headers={"x-tenant": "beta"})
        assert found.json() == "the database of beta"
        assert (await client.get("/postroom/readyz")).status_code == 200


@pytest.mark.usefixtures("in_memory")
async def test_the_litestar_application_serves_and_consumes(capsys: pytest.CaptureFixture[str]) -> None:
    """The same with Litestar."""

    @asynccontextmanager
    async def database(tenant: str) -> AsyncGenerator[str]:
        yield f"the database of {tenant}"

    pool: ResourcePool[str, str] = ResourcePool(database, weight=1)
    async with serving(names_of("Litestar(")["make_app"](pool)) as client:
        await printed(capsys, "order 7 in the database of acme")
        assert (await client.get("/database", headers={"x-tenant": "beta"})).text == "the database of beta"


@pytest.mark.filterwarnings("ignore:Using `httpx` with")  # svcs imports Starlette's test client
@pytest.mark.parametrize(("word", "make"), [("dishka", "make_container"), ("svcs", "make_registry")])
async def test_a_containers_scope_is_opened_once_per_tenant(broker: LocalBroker, word: str, make: str) -> None:
    """What its factories made is what handlers get, and is closed with the tenant."""
    names = names_of(f"import {word}" if word == "svcs" else "from dishka")
    container = names[make]()
    orders: Consumer[str, Any] = names["make_orders"](container, client=MemoryClient(broker))
    seen: list[Any] = []
    done = asyncio.Event()
    inner = orders.handles
    assert inner is not None
    async with orders:
        while not orders.statistics().succeeded:
            await asyncio.sleep(0)
        assert orders.pool is not None
        async with orders.pool.lease("acme") as scope:
            found = await (scope.get(list[str]) if word == "dishka" else scope.aget(names["Database"]))
            seen.append(found)
        done.set()
    rows = seen[0] if word == "dishka" else seen[0].rows
    assert rows[:2] == ["opened for acme", "order 7"]
    if word == "dishka":
        assert rows[-1] == "closed"
        await container.close()


async def test_plain_asyncio_runs_a_consumer_beside_other_work(broker: LocalBroker) -> None:
    """It stops when the other work is done; consumers alone are served."""
    names = names_of("AsyncExitStack")
    handled = asyncio.Event()
    orders: Consumer[None, None] = Consumer("orders", client=MemoryClient(broker))

    @orders.handler
    async def handle(number: int, ctx: MessageContext) -> None:
        handled.set()

    async def until_handled() -> None:
        await handled.wait()

    await names["main"](orders, asyncio.create_task(until_handled(), name="other"))
    serving_them = asyncio.create_task(names["only_consumers"](orders), name="serve")
    while not orders.running:
        await asyncio.sleep(0)
    orders.stop()
    assert await serving_them == ExitCode.CLEAN
    with contextlib.suppress(asyncio.CancelledError):
        serving_them.cancel()


def test_every_block_of_code_is_run_here() -> None:
    """One test for each."""
    words = ("FastAPI(", "Litestar(", "AsyncExitStack", "from dishka", "import svcs")
    assert [sum(word in block for word in words) for block in BLOCKS] == [1] * len(words)
