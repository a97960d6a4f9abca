"""The code in docs/resources.md runs as it stands, against an API that fails and comes back."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from postroom import Consumer, ResourcePool, UnknownTenant, is_outage
from postroom.local import LocalBroker
from postroom.transports.memory import MemoryClient
from support.virtual import in_virtual_time
from support.world import World

TEXT = (Path(__file__).parents[2] / "docs" / "resources.md").read_text(encoding="utf-8")
CLIENT, AIOHTTP, SNAPSHOT, BOTH = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def _run(*blocks: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "resources.md", "exec"), names)  # noqa: S102 - the document's own code is what is tested
    return names


class Api:
    """A customer's API: answers with a status, and keeps what was posted."""

    def __init__(self) -> None:
        self.status = 200
        self.posted: list[str] = []
        self.refused = asyncio.Event()
        self.url = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Api"]:
        """Listen for the time of the block."""
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        async with server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if self.status != 200:
            self.refused.set()
        elif head.startswith("POST"):
            self.posted += re.findall(r"(?i)idempotency-key: (\S+)", head)
        writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@pytest.fixture(autouse=True)
def region(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name a region, as the consumers' clients need one."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


async def test_an_api_that_is_down_costs_no_attempt() -> None:
    """While it answers 503 the customer's messages wait; afterwards each is posted once."""
    names = _run(CLIENT)
    customer = names["Customer"]("acme", "live")
    attempts: list[int] = []
    async with Api().listening() as api, LocalBroker() as broker:
        names["BASE_URLS"][customer] = api.url
        world = World(broker)
        world.create(dead_letters="dead", receives=5)
        orders: Consumer[Any, Any] = Consumer(
            "orders", context=names["Customer"], resources=names["apis"], client=MemoryClient(broker)
        )

        async def push(order: dict[str, Any], ctx: Any) -> None:
            await names["push"](names["Order"](**order), ctx)
            attempts.append(ctx.attempt)

        orders.handler(push)
        api.status = 503
        sent = [
            world.send({"order_id": str(number)}, tenant=None, customerId="acme", environment="live")
            for number in range(3)
        ]
        async with names["apis"], orders, asyncio.timeout(30):
            await api.refused.wait()
            api.status = 200
            while len(attempts) < 3 or any(world.counts()):
                await asyncio.sleep(0.02)
        assert world.counts("dead") == (0, 0)
    assert sorted(api.posted) == sorted(sent)
    assert attempts == [1, 1, 1]


async def test_what_the_example_takes_for_an_outage() -> None:
    """Httpx's own errors are unknown to the library, and a 4xx stays the message's own."""
    is_down = _run(CLIENT)["is_down"]
    request = httpx.Request("POST", "http://x")
    assert is_down(httpx.ConnectError("refused")) > is_outage(httpx.ConnectError("refused"))
    answers = {status: httpx.Response(status, request=request) for status in (404, 409, 422, 503)}
    found = {
        status: is_down(httpx.HTTPStatusError("x", request=request, response=answers[status])) for status in answers
    }
    assert found == {404: False, 409: False, 422: False, 503: True}


async def test_a_customer_without_an_api_is_unknown_and_aiohttp_opens_as_well() -> None:
    """The registry decides, whichever library makes the requests."""
    names = _run(CLIENT, AIOHTTP)
    customer = names["Customer"]("acme", "live")
    async with Api().listening() as api:
        names["BASE_URLS"][customer] = api.url
        async with names["session"](customer) as session:
            assert str(session._base_url).rstrip("/") == api.url
    for provider in (names["api"], names["session"]):
        with pytest.raises(UnknownTenant):
            async with provider(names["Customer"]("nobody", "live")):
                pass


@in_virtual_time
async def test_a_snapshot_lives_for_its_time() -> None:
    """Leases share it; after its time the next lease reads again, and so does one after invalidate()."""
    names = _run(CLIENT, SNAPSHOT)
    reads: list[int] = []

    async def read(_: Any) -> Any:
        reads.append(len(reads) + 1)
        return names["Settings"]("EUR", version=reads[-1])

    seen: list[int] = []
    pool = ResourcePool(read, cleanup=None, limits=names["settings"]._limits)
    customer = names["Customer"]("acme", "live")
    async with pool:
        for pause in (0, 100, 250, 10):
            await asyncio.sleep(pause)
            async with pool.lease(customer) as snapshot:
                seen.append(snapshot.version)
        await pool.invalidate(customer)
        async with pool.lease(customer) as snapshot:
            seen.append(snapshot.version)
    assert seen == [1, 1, 2, 2, 3]


async def test_a_workplace_holds_both() -> None:
    """It leases them for as long as it is open."""
    names = _run(CLIENT, SNAPSHOT, BOTH)
    customer = names["Customer"]("acme", "live")
    async with Api().listening() as api:
        names["BASE_URLS"][customer] = api.url
        workplaces = names["workplaces"]
        async with names["apis"], names["settings"], workplaces, workplaces.lease(customer) as workplace:
            assert (await workplace.client.get("/health")).status_code == 200
            assert workplace.settings.currency == "EUR"
