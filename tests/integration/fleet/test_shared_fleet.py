"""One ``Fleet`` object for two consumers, over a real server."""

import asyncio
from collections.abc import Iterator

import pytest

from postroom import Consumer, Fleet, MessageContext, Shutdown
from postroom.fleet import ValkeyState
from postroom.inspection.fleets import _store
from postroom.local import LocalBroker
from postroom.testing.valkey import ValkeyServer
from postroom.transports.memory import MemoryClient
from support.valkey import valkey_server


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """Run one Valkey for the tests of this file."""
    yield from valkey_server()


@pytest.mark.timeout(60)
async def test_a_consumer_that_stops_leaves_the_connection_to_the_others(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a stop nor a check closes what another consumer uses. The last one closes it, once."""
    fleet = Fleet(server.url, per_tenant=2, tick=0.02, lease=1.0, name="shop")
    state = fleet.state
    assert isinstance(state, ValkeyState)
    async with LocalBroker(seed=1) as broker, MemoryClient(broker) as client:
        made: list[Consumer[str]] = []
        for name in ("orders", "mails"):
            broker.create_queue(name)
            consumer = Consumer(
                name, context=lambda _: "a", client=client, fleet=fleet, shutdown=Shutdown(poll=0.1, drain=1)
            )

            @consumer.handler
            async def handle(body: str, ctx: MessageContext[str]) -> None:
                """Do nothing."""

            made.append(consumer)
        async with made[0]:
            await asyncio.sleep(0.1)
            opened = state._client
            assert opened is not None
            for _ in range(3):
                async with made[1]:
                    await asyncio.sleep(0.1)
                assert (await _store(fleet, "shop"))[0].level == "ok"
                assert state._client is opened
            seen = made[0].statistics().fleet
            assert seen is not None
            assert seen.failed_exchanges == 0
        assert state._client is None
