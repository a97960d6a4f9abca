"""A DSN that a driver cannot read is refused with the likely cause, and without a word of the password."""

import re
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

import pytest

from postroom import ResourceOpenError
from postroom.datasources import Provider, Registry, asyncpg_pool, psycopg_connections, sqlalchemy_engine
from postroom.datasources._canary import is_torn, split
from postroom.datasources._places import places

PROVIDERS: dict[str, Callable[..., Provider[Any, Any]]] = {
    "asyncpg": asyncpg_pool,
    "PostgreSQL": psycopg_connections,
    "SQLAlchemy": sqlalchemy_engine,
}


@pytest.mark.parametrize(
    ("driver", "password"),
    [
        ("asyncpg", "s3/cr3t"),
        ("asyncpg", "s3#cr3t"),
        ("asyncpg", "s3?cr3t"),
        ("asyncpg", "s3@cr3t"),
        ("asyncpg", "s3[cr3t"),
        ("PostgreSQL", "s3/cr3t"),
        ("PostgreSQL", "s3@cr3t"),
        ("PostgreSQL", "s3%cr3t"),
        ("SQLAlchemy", "s3@cr3t"),
    ],
)
async def test_a_password_that_is_not_percent_encoded_is_named_as_the_cause(
    driver: str, password: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In the error; neither it, nor its traceback, nor the log lines of the pool quote a part of it."""
    dsn = f"postgresql://app:{password}@127.0.0.1:1/a"
    pool = PROVIDERS[driver](Registry({"a": dsn}), canary=False).pool()
    caplog.set_level("DEBUG")
    with pytest.raises(ResourceOpenError) as refused:
        async with pool, pool.lease("a"):
            pass
    shown = "".join(traceback.format_exception(refused.value)) + caplog.text
    assert f"is not one that {driver} understands; is its password percent-encoded" in shown
    errors: list[BaseException | None] = [refused.value]
    for error in errors:
        if error is not None:
            errors += [error.__cause__, error.__context__]
    assert not {"s3", "cr3t"} & set(re.findall(r"\w+", shown + "".join(map(repr, errors))))


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://app:p%40ss%2Fword@db-1:5432/acme",
        "postgresql://app@db-1,db-2:5433/acme?user=app@server",
        "postgresql:///acme?host=/var/run/postgresql",
        "postgresql://db:5432/acme?user=app@server&password=a@b",
        "host=db password=a/b@c dbname=acme",
    ],
)
def test_a_dsn_that_drivers_read_alike_is_not_torn(dsn: str) -> None:
    """Parameters may hold what a user and password may not, and key=value strings are no URLs."""
    assert not is_torn(dsn)


@pytest.mark.parametrize("password", ["hunter2#x", "hunter2?x", "hunter2", "x/hunter2", "hunter2/x", "x@hunter2"])
async def test_the_place_of_a_tenant_shows_no_part_of_its_password(password: str) -> None:
    """Libpq takes a "#" or a "?" of a password as it is, and SQLAlchemy a "/"; a move logs the place."""
    place = await places(lambda _: f"postgresql://app:{password}@db-1:5432/acme")("acme")
    assert place.partition("/")[0] == "db-1:5432"
    assert "hunter2" not in place


async def test_a_place_that_cannot_be_told_from_a_password_is_not_named() -> None:
    """It has everything that ends a host, in the wrong order."""
    assert await places(lambda _: "postgresql://app:a@b?hunter2@db-1:5432/acme")("acme") == "the database"


async def test_the_place_in_pairs_is_not_looked_for_in_a_password() -> None:
    """Quotes keep a value together, whatever it looks like."""
    dsn = r"host = 'db-1' port=5432 password='x\' host=hunter2 port=1' dbname=acme"
    assert await places(lambda _: dsn)("acme") == "db-1:5432/acme"


def test_hosts_in_brackets_that_python_refuses_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its newer releases want an IPv6 address to be the first of the hosts."""

    def strict(url: str) -> SplitResult:
        if ",[" in url:
            raise ValueError("Invalid IPv6 URL")
        return urlsplit(url)

    monkeypatch.setattr("postroom.datasources._canary.urlsplit", strict)
    for dsn in ("postgresql://app:x@a:5,[::1]:6/acme?x=1#y", "postgresql://a,[::1]", "postgresql://a,[::1]?port=5"):
        assert split(dsn) == urlsplit(dsn.replace(",[::1]", ""))._replace(netloc=re.split("[/?]", dsn[13:])[0])
