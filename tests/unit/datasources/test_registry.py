"""The registry decides who is a tenant and where its data is."""

import asyncio
from dataclasses import dataclass

import pytest

from postroom.datasources import DataSource, Registry, UnknownTenant, WrongDatabase
from postroom.datasources.registry import Locate, ask, expected, located, verify
from postroom.errors import ConfigurationError
from postroom.resources.failures import OpenFailure, classify_open

DSN = "postgresql://app:top-secret@db.example/tenant-a"


@dataclass(frozen=True)
class Tenant:
    """A context."""

    id: str


def test_a_known_context_gets_its_data_source() -> None:
    """The mapping is the truth, and is read anew at each call."""
    sources: dict[Tenant, str | DataSource] = {Tenant("a"): DSN}
    registry = Registry(sources)
    assert registry(Tenant("a")) == DSN
    sources[Tenant("b")] = DataSource(DSN, database="b")
    assert registry(Tenant("b")) == DataSource(DSN, database="b")


def test_an_unknown_context_is_a_lookup_error_and_permanent() -> None:
    """A pool leaves an unknown tenant alone for long."""
    with pytest.raises(UnknownTenant) as unknown:
        Registry[Tenant]({})(Tenant("mallory"))
    assert isinstance(unknown.value, LookupError)
    assert classify_open(unknown.value) is OpenFailure.UNKNOWN_TENANT


def test_a_long_invented_tenant_does_not_fill_the_log() -> None:
    """The sender chooses the id; the error shortens it and escapes what is not printable."""
    with pytest.raises(UnknownTenant) as unknown:
        Registry[str]({})("x\n" * 100_000)
    assert len(str(unknown.value)) < 120
    assert "\n" not in str(unknown.value)


@pytest.mark.parametrize("answer", ["string", "source", "async"])
async def test_a_registry_may_be_any_function(answer: str) -> None:
    """Sync or async, DSN or DataSource."""

    async def later(_: Tenant) -> str:
        await asyncio.sleep(0)
        return DSN

    functions: dict[str, Locate[Tenant]] = {
        "string": lambda _: DSN,
        "source": lambda _: DataSource(DSN),
        "async": later,
    }
    assert await located(functions[answer], Tenant("a")) == DataSource(DSN)


async def test_none_means_nobody() -> None:
    """So that the get of a dict is a registry too."""
    empty: dict[Tenant, str] = {}
    with pytest.raises(UnknownTenant):
        await located(empty.get, Tenant("a"))
    with pytest.raises(KeyError):
        await located(empty.__getitem__, Tenant("a"))


async def test_a_password_is_asked_for_sync_or_async() -> None:
    """A token service is asked over the network, a file is not."""

    async def token() -> str:
        await asyncio.sleep(0)
        return "later"

    assert await ask(lambda: "now") == "now"
    assert await ask(token) == "later"


def test_nothing_secret_is_in_a_repr() -> None:
    """Reprs end in logs."""
    shown = repr(DataSource(DSN, database="a", password=lambda: "other-secret")) + repr(Registry({Tenant("a"): DSN}))
    assert "secret" not in shown
    assert "example" not in shown


@pytest.mark.parametrize(
    ("source", "database", "user"),
    [
        (DataSource(DSN), "tenant-a", "app"),
        (DataSource(DSN, database="real", user="role"), "real", "role"),
        (DataSource("postgresql://db/t%20a?user=u%2Fv"), "t a", "u/v"),
        (DataSource("postgresql:///?dbname=q&user=w"), "q", "w"),
        (DataSource("postgresql://db"), None, None),
        (DataSource("host=db dbname=a user=b"), None, None),
        (DataSource("host=db", database="a"), "a", None),
    ],
)
def test_the_canary_expects_what_the_registry_says(source: DataSource, database: str | None, user: str | None) -> None:
    """Explicit names first, then those of the URL; what is not known is not compared."""
    assert expected(source) == (database, user)


def test_the_canary_sings_for_another_database_or_user() -> None:
    """The error names both sides, is an outage, and hides the DSN."""
    verify(DataSource(DSN), "tenant-a", "app")
    for database, user in [("tenant-b", "app"), ("tenant-a", "postgres")]:
        with pytest.raises(WrongDatabase) as wrong:
            verify(DataSource(DSN), database, user)
        assert "secret" not in str(wrong.value)
        assert isinstance(wrong.value, ConfigurationError)
        assert classify_open(wrong.value) is OpenFailure.OUTAGE
