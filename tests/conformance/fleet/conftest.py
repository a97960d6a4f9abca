"""Every implementation of the shared state, one after the other, with its own clock."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from postroom.fleet import Ask, Grant, MemoryState, Request, SharedState, ValkeyState
from postroom.testing.valkey import ValkeyServer
from support.valkey import valkey_server

LEASE = 0.6
"""Seconds of a lease in these tests: real servers count real time."""


@pytest.fixture(scope="session")
def valkey9() -> Iterator[ValkeyServer]:
    """Run one Valkey for all tests of the suite."""
    yield from valkey_server()


@pytest.fixture(scope="session")
def redis7() -> Iterator[ValkeyServer]:
    """Run one Redis, where it is installed."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed here")
    with ValkeyServer(program=Path(program)) as server:
        yield server


@dataclass
class Shared:
    """A shared state under test, and shorthands for what replicas say to it."""

    state: SharedState
    sleep: Callable[[float], Awaitable[object]]
    flush: Callable[[], object]
    name: str
    sequences: dict[str, int] = field(default_factory=dict)
    epochs: dict[str, str] = field(default_factory=dict)

    async def ask(
        self,
        replica: str,
        *,
        cap: int = 4,
        hold: int = 0,
        need: int = 0,
        want: int | None = None,
        tenant: str = "t:acme",
        sequence: int | None = None,
        leaving: bool = False,
        rate: float = 0.0,
        tokens: int = 0,
        tick: float = 0.1,
        lease: float = LEASE,
    ) -> Grant:
        """Exchange one ask of a replica."""
        sequence = self.sequences.get(replica, 0) + 1 if sequence is None else sequence
        self.sequences[replica] = max(sequence, self.sequences.get(replica, 0))
        ask = Ask(tenant, cap, hold, need, need if want is None else want, rate, tokens)
        request = Request(replica, sequence, self.epochs.get(replica, ""), lease, tick, (ask,), leaving)
        answer = await self.state.exchange(self.name, request)
        self.epochs[replica] = answer.epoch
        return answer.grants[0]


KINDS = ("memory", "valkey", "redis-server")
_numbers = iter(range(1_000_000))


@pytest.fixture(params=KINDS)
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Shared]:
    """Each implementation, under a name of its own."""
    name = f"orders-{next(_numbers)}"
    if request.param == "memory":
        now = [1_000.0]

        async def sleep(seconds: float) -> None:
            now[0] += seconds

        memory = MemoryState(lambda: now[0])
        yield Shared(memory, sleep, memory.store.flush, name)
        return
    server: ValkeyServer = request.getfixturevalue("redis7" if request.param == "redis-server" else "valkey9")
    state = ValkeyState(server.url)
    yield Shared(state, asyncio.sleep, lambda: server.command("FLUSHALL"), name)
    await state.aclose()
