"""Several hosts in one DSN: a silent one takes its share of the time, and the next one is asked. In virtual time."""

import asyncio
from typing import Any

import pytest

from postroom.datasources._asyncpg_hosts import connect_in_turn
from postroom.datasources.psycopg import share_of_each_host
from postroom.testing.loop import run_virtual
from support.virtual import in_virtual_time


class Servers:
    """What stands for asyncpg: some hosts are silent, some refuse."""

    def __init__(self, silent: tuple[str, ...] = (), refusing: tuple[str, ...] = ()) -> None:
        self.silent = silent
        self.refusing = refusing
        self.asked: list[tuple[Any, Any, float]] = []

    async def connect(self, *_: Any, host: Any = None, port: Any = None, timeout: float = 60.0, **__: Any) -> str:
        """Connect to one host, or to those of the DSN."""
        self.asked.append((host, port, timeout))
        async with asyncio.timeout(timeout):
            if host in self.silent:
                await asyncio.Event().wait()
        if host in self.refusing:
            raise ConnectionRefusedError
        return str(host)


@pytest.mark.parametrize(
    ("dsn", "keywords", "asked"),
    [
        ("postgresql://app:x@a,b:7/acme", {}, [("a", None, 2.5), ("b", 7, 60.0)]),
        ("postgresql://app:x@a:5,[::1]:6/acme", {}, [("a", 5, 2.5), ("::1", 6, 60.0)]),
        ("postgresql://a,b/acme?port=5,6", {}, [("a", 5, 2.5), ("b", 6, 60.0)]),
        ("postgresql://a,b/acme?port=5", {}, [("a", 5, 2.5), ("b", 5, 60.0)]),
        (None, {"host": ["a", "b"], "port": [5, 6]}, [("a", 5, 2.5), ("b", 6, 60.0)]),
        (None, {"host": ["a", "b"], "port": 5}, [("a", 5, 2.5), ("b", 5, 60.0)]),
    ],
)
@pytest.mark.parametrize("how", ["silent", "refusing"])
@in_virtual_time
async def test_the_second_host_is_asked_when_the_first_one_is_of_no_use(
    dsn: str | None, keywords: dict[str, Any], asked: list[Any], how: str
) -> None:
    """After its share of the time, or at once where it refuses."""
    servers = Servers(**{how: ("a",)})
    given = [] if dsn is None else [dsn]
    assert await connect_in_turn(servers.connect, 5.0, *given, **keywords) == asked[1][0]
    assert asyncio.get_running_loop().time() == (2.5 if how == "silent" else 0.0)
    assert servers.asked == asked


@pytest.mark.parametrize(
    ("dsn", "keywords"),
    [
        ("postgresql://app@a:5/acme", {}),
        ("postgresql:///acme?host=/run/a,/run/b", {}),
        ("postgresql://a,b/acme?target_session_attrs=prefer-standby", {}),
        ("postgresql://a,b/acme", {"target_session_attrs": "prefer-standby"}),
        ("postgresql://a,b/acme", {"host": "c"}),
    ],
)
def test_one_host_and_what_asyncpg_compares_is_left_to_asyncpg(dsn: str, keywords: dict[str, Any]) -> None:
    """With its own arguments."""
    servers = Servers()
    run_virtual(connect_in_turn(servers.connect, 5.0, dsn, **keywords))
    assert servers.asked == [(keywords.get("host"), None, 60.0)]


@in_virtual_time
async def test_what_the_last_host_says_is_raised() -> None:
    """All of them were asked."""
    servers = Servers(refusing=("a", "b"))
    with pytest.raises(ConnectionRefusedError):
        await connect_in_turn(servers.connect, 5.0, "postgresql://a,b/acme")
    assert len(servers.asked) == 2


@pytest.mark.parametrize(
    ("dsn", "keywords", "share"),
    [
        ("postgresql://a,b/acme", {}, {"connect_timeout": 3}),
        ("host=a,b,c dbname=acme", {}, {"connect_timeout": 2}),
        ("dbname=acme", {"host": "a,b"}, {"connect_timeout": 3}),
        ("postgresql:///acme?host=a&host=b", {}, {}),  # libpq takes the last one
        ("postgresql://a/acme", {}, {}),
        ("postgresql://a,b/acme?connect_timeout=9", {}, {}),
        ("postgresql://a,b/acme", {"connect_timeout": 9}, {}),
    ],
)
def test_psycopg_gives_each_host_its_share(dsn: str, keywords: dict[str, Any], share: dict[str, int]) -> None:
    """In whole seconds, and two at least: libpq knows no less."""
    assert share_of_each_host(dsn, keywords, 6.0) == share
