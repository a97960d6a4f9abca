"""Connection attempts end in time, and with the resource that they were made for. In virtual time."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from postroom.datasources._attempts import Attempts
from postroom.errors import ClosedError
from postroom.redaction import describe
from postroom.testing.loop import run_virtual
from support.kept import is_kept
from support.virtual import in_virtual_time


class Wire:
    """A driver with connections that are strings."""

    def __init__(self, takes: float = 1.0) -> None:
        self.takes = takes
        self.discarded: list[str] = []

    async def connect(self) -> str:
        """Connect, after a while."""
        await asyncio.sleep(self.takes)
        return "connection"

    async def discard(self, connection: str) -> None:
        """End a connection."""
        self.discarded.append(connection)


async def _fine(_: str) -> None:
    await asyncio.sleep(0)


@in_virtual_time
async def test_a_connection_that_is_greeted_is_the_callers() -> None:
    """Nothing is discarded."""
    wire = Wire()
    assert await Attempts(5.0, wire.discard, "db/a").make(wire.connect, _fine) == "connection"
    assert wire.discarded == []


def test_what_a_driver_raises_says_where_the_connection_leads() -> None:
    """A name that is not known, or a refused login, does not tell the host: the tenants of a hundred look alike."""

    def raised(error: Exception, place: str = "db-1.internal:5432/acme") -> str:
        async def fails() -> str:
            raise error

        async def main() -> str:
            with pytest.raises(type(error)) as caught:
                await Attempts(5.0, Wire().discard, place).make(fails, _fine)
            return describe(caught.value)

        return run_virtual(main())

    unknown = socket.gaierror(-2, "Name or service not known")
    for _ in range(2):  # the same error again, as a driver may remember it
        assert (
            raised(unknown) == "gaierror: [Errno -2] Name or service not known; connecting to db-1.internal:5432/acme"
        )
    told = OSError('connection to server at "db-1.internal", port 5432 failed')
    assert "connecting to" not in raised(told)
    assert "connecting to" not in raised(told, "db-1.internal/acme")
    assert "connecting to" not in raised(ClosedError("the resources of this tenant were closed"))
    missing = "a file that the DSN names, such as sslrootcert=, is not there"
    assert raised(FileNotFoundError(2, "No such file or directory")).endswith(missing)
    assert missing not in raised(FileNotFoundError(2, "No such file or directory"), "/run/postgresql/acme")
    assert missing not in raised(FileNotFoundError(2, "No such file or directory", "/certs/rds.pem"))


@pytest.mark.parametrize("stage", ["connect", "greet"])
@in_virtual_time
async def test_an_attempt_is_bounded_greeting_included(stage: str) -> None:
    """A server that accepts and then says nothing counts as well."""
    wire = Wire(takes=60.0 if stage == "connect" else 1.0)

    async def silent(_: str) -> None:
        await asyncio.sleep(60.0)

    with pytest.raises(TimeoutError, match="no connection to db/a was made within 5 s"):
        await Attempts(5.0, wire.discard, "db/a").make(wire.connect, silent)
    assert asyncio.get_running_loop().time() == 5.0
    assert wire.discarded == ([] if stage == "connect" else ["connection"])


@in_virtual_time
async def test_what_the_greeting_refuses_is_discarded() -> None:
    """And its error is the caller's."""
    wire = Wire()

    async def refuse(_: str) -> None:
        raise LookupError("canary")

    with pytest.raises(LookupError, match="canary"):
        await Attempts(5.0, wire.discard, "db/a").make(wire.connect, refuse)
    assert wire.discarded == ["connection"]


@pytest.mark.parametrize("after", [0.5, 1.0, 1.5])
@in_virtual_time
async def test_close_ends_what_is_under_way(after: float) -> None:
    """Before, in the very turn, or after it succeeded: no caller gets a connection of a closed resource."""
    wire = Wire()
    attempts = Attempts(5.0, wire.discard, "db/a")
    making = asyncio.create_task(attempts.make(wire.connect, _fine), name="making")
    await asyncio.sleep(after)
    await attempts.close()
    closed = asyncio.get_running_loop().time()
    (outcome,) = await asyncio.gather(making, return_exceptions=True)
    with pytest.raises(ClosedError):
        await attempts.make(wire.connect, _fine)
    assert closed == after
    if after > 1.0:
        assert outcome == "connection"
    else:
        assert isinstance(outcome, ClosedError)
        assert wire.discarded == (["connection"] if after == 1.0 else [])


@pytest.mark.parametrize("seed", range(200))
def test_whatever_the_order_every_connection_has_one_owner(seed: int) -> None:
    """Many attempts, some cancelled, one close in the middle: a connection is either the caller's or discarded."""
    wire = Wire()
    made: list[str] = []

    def numbered(number: int) -> Callable[[], Awaitable[str]]:
        async def connect() -> str:
            await asyncio.sleep(number % 5 / 4)
            made.append(str(number))
            return str(number)

        return connect

    async def main() -> list[str | BaseException]:
        attempts = Attempts(0.9, wire.discard, "db/a")
        tasks = [asyncio.create_task(attempts.make(numbered(n), _fine), name=f"attempt {n}") for n in range(20)]
        await asyncio.sleep(seed % 4 / 4)
        tasks[seed % 20].cancel()
        await attempts.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = run_virtual(main(), seed=seed)
    owned = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert sorted(owned + wire.discarded) == sorted(made)
    allowed = (str, ClosedError, TimeoutError, asyncio.CancelledError)
    assert all(isinstance(outcome, allowed) for outcome in outcomes)
    assert sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes) <= 1


async def test_an_attempt_that_ended_keeps_no_message() -> None:
    """Of a provider without a pool, each message makes one."""
    wire = Wire(takes=0.0)

    async def work() -> None:
        await Attempts(3600.0, wire.discard, "db/a").make(wire.connect, _fine)

    assert not await is_kept(work)
