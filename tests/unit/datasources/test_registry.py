"""The registry decides who is a tenant and where its data is."""

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg.conninfo
import pytest

from postroom.datasources import DataSource, Registry, UnknownTenant, WrongDatabase
from postroom.datasources._canary import Names, expected, require_names, verify
from postroom.datasources.registry import Locate, ask, located
from postroom.errors import ConfigurationError
from postroom.resources.failures import OpenFailure, classify_open

DSN = "postgresql://app:top-secret@db.example/tenant-a"


@dataclass(frozen=True)
class Tenant:
    """A context."""

    id: str


def test_a_known_context_gets_its_data_source() -> None:
    """The mapping is the truth, and is read again at each call."""
    sources: dict[Tenant, str | DataSource] = {Tenant("a"): DSN}
    registry = Registry(sources)
    assert registry(Tenant("a")) == DSN
    sources[Tenant("b")] = DataSource(DSN, database="b")
    assert registry(Tenant("b")) == DataSource(DSN, database="b")


def test_an_unknown_context_is_an_unknown_tenant() -> None:
    """It is a lookup error, and a pool takes it as permanent."""
    with pytest.raises(UnknownTenant) as unknown:
        Registry[Tenant]({})(Tenant("mallory"))
    assert isinstance(unknown.value, LookupError)
    assert classify_open(unknown.value) is OpenFailure.UNKNOWN_TENANT


def test_a_context_that_no_key_can_equal_is_a_mistake_and_no_unknown_tenant() -> None:
    """With ids as keys each message would be a dead letter; so they wait as in an outage."""
    registry: Registry[Any] = Registry({"acme": DSN})
    with pytest.raises(
        ConfigurationError, match=r"can be 'acme', a .*\.Tenant: its keys are of type builtins.str; write"
    ):
        registry(Tenant("acme"))


class Region(StrEnum):
    """A text as well."""

    EU = "eu"


@pytest.mark.parametrize("context", [Region.EU, "us", None])
def test_a_context_that_may_equal_a_key_is_an_unknown_tenant(context: Any) -> None:
    """One key of its kind, or of a kind that it is derived from, is enough. None is of a message without a tenant."""
    registry: Registry[Any] = Registry({Tenant("acme"): DSN, "other": DSN})
    with pytest.raises(UnknownTenant):
        registry(context)


def test_a_long_invented_tenant_does_not_fill_the_log() -> None:
    """The sender chooses the id; the error shortens it and escapes what is not printable."""
    with pytest.raises(UnknownTenant) as unknown:
        Registry[str]({})("x\n" * 100_000)
    assert len(str(unknown.value)) < 300
    assert "\n" not in str(unknown.value)


@pytest.mark.parametrize("answer", [5, b"postgresql://app@db/a", ["postgresql://app@db/a"], object()])
async def test_an_answer_that_is_no_data_source_is_named(answer: object) -> None:
    """Not by an error of the driver, which says nothing of the registry."""
    with pytest.raises(ConfigurationError, match=r"answered .* for 'a': let it return a DSN, a DataSource, or None"):
        await located(lambda _: answer, Tenant("a"))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("password", [5, None, b"secret"])
async def test_a_password_that_is_no_text_is_named(password: object) -> None:
    """Its type only."""
    with pytest.raises(ConfigurationError, match=rf"returned {type(password).__name__}; let it return a text"):
        await ask(lambda: password)  # type: ignore[arg-type, return-value]


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


def _raises(error: Exception) -> Locate[Tenant]:
    def locate(_: Tenant) -> str:
        raise error

    return locate


def _raises_later(error: Exception) -> Locate[Tenant]:
    async def locate(_: Tenant) -> str:
        await asyncio.sleep(0)
        raise error

    return locate


async def test_none_and_a_lookup_error_mean_that_there_is_no_such_tenant() -> None:
    """A dict's own methods are registries, and the registry's words stay the cause."""
    empty: dict[Tenant, str] = {}
    for registry in (empty.get, empty.__getitem__, _raises(IndexError("row 7")), _raises_later(KeyError("row 7"))):
        with pytest.raises(UnknownTenant, match="no data source for 'a'") as unknown:
            await located(registry, Tenant("a"))
        assert isinstance(unknown.value.__cause__, LookupError | None)
    assert repr(unknown.value.__cause__) == "KeyError('row 7')"


@pytest.mark.parametrize(
    "key", ["acme-corp", "ACME_CORP_DSN", "tenants/acme.corp", 4711, ("acme-corp", 1), Tenant("b")]
)
async def test_a_key_that_may_be_the_tenant_says_that_there_is_none(key: object) -> None:
    """It names the tenant, or is the number that another table has for it."""
    with pytest.raises(UnknownTenant):
        await located(_raises(KeyError(key)), Tenant("acme-corp"))


@pytest.mark.parametrize("key", ["DSN", "Item", "dsn_template", "ACME_EU_DSN", "database"])
async def test_a_name_that_has_nothing_of_the_tenant_is_missing_for_all(key: str) -> None:
    """An environment variable that a deployment lacks must not make each tenant unknown: their messages wait."""
    for registry in (_raises(KeyError(key)), _raises_later(KeyError(key))):
        with pytest.raises(KeyError) as failed:
            await located(registry, Tenant("acme-corp"))
        assert not isinstance(failed.value, UnknownTenant)
    with pytest.raises(KeyError, match="database"):
        await located(_raises(KeyError("database")), Tenant("a"))


@pytest.mark.parametrize("error", [ConnectionError("registry is down"), TypeError(), TimeoutError(), RuntimeError()])
async def test_a_registry_that_fails_does_not_say_that_a_tenant_is_unknown(error: Exception) -> None:
    """An outage of the registry must not cost a tenant its messages."""
    for registry in (_raises(error), _raises_later(error)):
        with pytest.raises(type(error)) as failed:
            await located(registry, Tenant("a"))
        assert failed.value is error


async def test_an_unknown_tenant_of_the_registry_keeps_its_own_words() -> None:
    """It knows best what to say."""
    with pytest.raises(UnknownTenant, match="moved away"):
        await located(_raises(UnknownTenant("moved away")), Tenant("a"))


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
        (DataSource("postgresql+asyncpg://u:p@h1:1,h2:2/q?target_session_attrs=any"), "q", "u"),
        (DataSource("postgresql://db"), None, None),
        (DataSource("postgresql://app@db"), "app", "app"),
        (DataSource("postgresql://app@db/a?service=mine"), None, None),
        (DataSource("host=db dbname=a user=b"), "a", "b"),
        (DataSource("host=db user=b"), "b", "b"),
        (DataSource("host=db"), None, None),
        (DataSource(""), None, None),
        (DataSource("host=db", database="a"), "a", None),
        (DataSource("host = db  dbname =\ta\nuser= b "), "a", "b"),
        (DataSource("dbname=a dbname=c user=b password='user=evil dbname=evil'"), "c", "b"),
        (DataSource(r"dbname='t\'s \\ a' user=u\ v password='' port="), r"t's \ a", "u v"),
        (DataSource(r"user=b port=5 dbname='a'host=db"), "a", "b"),
        (DataSource("dbname='' user=b"), "b", "b"),
        (DataSource("service=mine dbname=a user=b"), None, None),
        (DataSource("service=mine", database="a", user="b"), "a", "b"),
        (DataSource("dbname='a user=b"), None, None),
        (DataSource("dbname"), None, None),
    ],
)
def test_the_canary_expects_what_the_registry_says(
    source: DataSource, database: str | None, user: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Explicit names first, then those of the DSN, read as libpq reads it; what is not known is not compared."""
    for name in ("PGUSER", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    assert expected(source) == (database, user)


@pytest.mark.parametrize(
    "dsn",
    ["host=db dbname=a user=b", r"dbname='t\'s \\ a' user=u\ v password='' port=5", "user=b port=1 dbname='a'host=db"],
)
def test_the_canary_reads_a_connection_string_as_libpq_does(dsn: str) -> None:
    """Quotes and backslashes included."""
    said = psycopg.conninfo.conninfo_to_dict(dsn)
    assert expected(DataSource(dsn)) == (said["dbname"], said["user"])


def test_the_canary_reads_the_environment_and_the_options_as_the_drivers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The options of a provider beat the DSN, which beats the environment."""
    monkeypatch.setenv("PGUSER", "env-user")
    monkeypatch.setenv("PGDATABASE", "env-database")
    assert expected(DataSource("host=db")) == ("env-database", "env-user")
    assert expected(DataSource("host=db dbname=a user=b")) == ("a", "b")
    assert expected(DataSource("host=db dbname=a user=b"), {"user": "c", "dbname": "d"}) == ("d", "c")
    assert expected(DataSource("host=db dbname=a user=b"), {"user": "c", "database": "d"}) == ("d", "c")
    assert expected(DataSource("host=db", database="a"), {"service": "mine"}) == ("a", "env-user")


def test_a_canary_that_knows_no_database_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that compares nothing would claim what it does not do. The error says what to write, and no DSN."""
    for name in ("PGUSER", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match=r"DataSource\(database=") as refused:
        require_names(DataSource("host=secret-host password=secret"))
    assert "secret" not in str(refused.value)
    assert require_names(DataSource("host=db", database="a")) == Names("a", None)


def test_the_canary_sings_for_another_database_or_user() -> None:
    """The error names both sides, is an outage, and hides the DSN."""
    names = expected(DataSource(DSN))
    verify(names, "tenant-a", "app")
    verify(names, b"tenant-a", b"app")
    for database, user in [("tenant-b", "app"), ("tenant-a", "postgres")]:
        with pytest.raises(WrongDatabase) as wrong:
            verify(names, database, user)
        assert "secret" not in str(wrong.value)
        assert isinstance(wrong.value, ConfigurationError)
        assert classify_open(wrong.value) is OpenFailure.OUTAGE
