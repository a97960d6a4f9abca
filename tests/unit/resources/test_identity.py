"""Which contexts are the same tenant, and how they are shown."""

import datetime as dt
import enum
import uuid
import weakref
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest

from postroom.resources import display_key
from postroom.resources.identity import Identifier, Identity


@dataclass(frozen=True)
class Tenant:
    """A context of two fields."""

    name: Any
    region: Any = "eu"


@dataclass(frozen=True)
class Other:
    """Another context with the same fields."""

    name: Any
    region: Any = "eu"


class Named(NamedTuple):
    """A tuple that Python calls equal to a plain one."""

    name: str
    region: str


class Stage(enum.StrEnum):
    """A text that is not only a text."""

    PROD = "prod"


class Struct(msgspec.Struct, frozen=True):
    """A context made with msgspec."""

    name: Any


class Model(pydantic.BaseModel, frozen=True):
    """A context made with pydantic."""

    name: Any


def same(one: Any, other: Any) -> bool:
    """Return whether the pool takes two keys for one."""
    identify = Identifier()
    first: Identity = identify(one)
    second: Identity = identify(other)
    again: Identity = identify(one)
    assert first == again
    assert hash(first) == hash(again)
    return {first: True}.get(second, False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Tenant("a", "b"), Tenant("a", "b")),
        (Tenant(("a", 1)), Tenant(("a", 1))),
        (Tenant(frozenset({1, "x"})), Tenant(frozenset({"x", 1}))),
        (Struct("a"), Struct("a")),
        (Model(name="a"), Model(name="a")),
        (Named("a", "b"), Named("a", "b")),
        ("a", "a"),
        (None, None),
        ((), ()),
        (uuid.UUID(int=1), uuid.UUID(int=1)),
    ],
)
def test_equal_contexts_are_one_tenant(one: Any, other: Any) -> None:
    """Two contexts made separately with the same fields share a resource."""
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Tenant("a:b", "c"), Tenant("a", "b:c")),
        (Tenant("a", "b"), Other("a", "b")),
        (Tenant("a", "b"), ("a", "b")),
        (Named("a", "b"), ("a", "b")),
        (Tenant(1), Tenant(True)),
        (Tenant(1), Tenant(1.0)),
        (Tenant(1), Tenant("1")),
        (Tenant(0), Tenant(False)),
        (Tenant(Decimal(1)), Tenant(1)),
        (Tenant(None), Tenant("None")),
        (Tenant("prod"), Tenant(Stage.PROD)),
        (Tenant((1, 2)), Tenant((True, 2))),
        (Tenant(frozenset({1})), Tenant(frozenset({True}))),
        (Tenant(Tenant(1)), Tenant(Tenant(True))),
        (Struct(1), Struct(True)),
        (Model(name=1), Model(name=True)),
        (1, True),
        ((), frozenset()),
        (Tenant("é"), Tenant("e\u0301")),
        (Tenant("a"), Tenant("a ")),
        (Tenant("a"), Tenant("a\x00")),
        (Tenant(b"a"), Tenant("a")),
    ],
)
def test_what_a_provider_could_tell_apart_is_two_tenants(one: Any, other: Any) -> None:
    """Delimiters, types, unicode forms: none of them joins two contexts."""
    assert not same(one, other)
    assert not same(other, one)


def test_a_context_with_its_own_equality_keeps_it() -> None:
    """A class that defines equality by itself is asked, not taken apart."""

    @dataclass(frozen=True, eq=False)
    class Insensitive:
        name: str

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Insensitive) and other.name.lower() == self.name.lower()

        def __hash__(self) -> int:
            return hash(self.name.lower())

    assert same(Insensitive("A"), Insensitive("a"))
    assert not same(Insensitive("A"), Insensitive("b"))


def test_fields_that_do_not_compare_do_not_count() -> None:
    """``field(compare=False)`` and an unhashable field with ``hash=False`` are respected."""

    @dataclass(frozen=True)
    class Traced:
        name: str
        trace: str = field(default="", compare=False)

    @dataclass(frozen=True)
    class Extended:
        name: str
        extra: dict[str, int] = field(default_factory=dict, hash=False)

    assert same(Traced("a", "1"), Traced("a", "2"))
    assert same(Extended("a", {"x": 1}), Extended("a", {"x": 1}))
    assert not same(Extended("a", {"x": 1}), Extended("a", {"x": 2}))


def test_a_context_that_is_changed_afterwards_cannot_become_another_tenant() -> None:
    """The identity of a record is taken from its fields when it is made."""

    @dataclass(unsafe_hash=True)
    class Careless:
        name: str

    identify = Identifier()
    context = Careless("a")
    identity = identify(context)
    context.name = "b"
    assert identity == identify(Careless("a"))
    assert identity != identify(Careless("b"))


def test_a_frozen_context_that_is_filled_again_is_another_tenant() -> None:
    """``object.__setattr__`` changes a frozen one, too: what it was says nothing of the tenant that it is now."""
    identify = Identifier()
    context = Tenant("a")
    assert identify(context) == identify(Tenant("a"))
    object.__setattr__(context, "name", "b")
    assert identify(context) == identify(Tenant("b"))
    assert identify(context) != identify(Tenant("a"))


def test_no_context_is_kept() -> None:
    """A resolver may put all that came with a message into a field that is not compared."""

    @dataclass(frozen=True)
    class Traced:
        name: str
        claims: str = field(compare=False)

    identify = Identifier()
    context = Traced("a", "x" * 1_000)
    identify(context)
    alive = weakref.ref(context)
    del context
    assert alive() is None


def test_what_is_known_of_types_is_bounded() -> None:
    """Contexts of ever new types do not fill the memory, and are told apart all the same."""
    identify = Identifier()
    kinds = [type(f"T{number}", (), {}) for number in range(3_000)]
    keys = [kind() for kind in kinds]
    first = [identify(key) for key in keys]
    assert [identify(key) for key in keys] == first
    assert len(set(first)) == 3_000
    assert len(identify._types) <= 1_024
    late = Tenant("a", "b")
    assert identify(late) == identify(Tenant("a", "b"))
    assert identify(late) != identify(Other("a", "b"))
    assert identify(Tenant(1)) != identify(Tenant(True))


def test_what_is_known_of_field_types_is_bounded() -> None:
    """Tuples of ever new shapes do not fill the memory either."""
    identify = Identifier()
    keys = [tuple(int(digit) if digit == "1" else digit for digit in f"{number:012b}") for number in range(3_000)]
    first = [identify(key) for key in keys]
    assert [identify(key) for key in keys] == first
    assert len(set(first)) == 3_000
    tags = identify._types[tuple][1]
    assert tags is not None
    assert len(tags) <= 1_024


@pytest.mark.parametrize(
    ("context", "shown"),
    [
        (Tenant("tenant-a", "us-east-1"), "tenant-a:us-east-1"),
        (("tenant-a", "us-east-1"), "tenant-a:us-east-1"),
        (Named("a", "b"), "a:b"),
        ("tenant-a", "tenant-a"),
        (Tenant(1, None), "1:None"),
        (Tenant(Stage.PROD, ("x", "y")), "prod:x:y"),
        (Tenant(frozenset({"b", "a"})), "a:b:eu"),
        (Struct("a"), "a"),
        (Model(name="a"), "a"),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (Tenant("line\nbreak", "\x1b[31m"), r"line\nbreak:\x1b[31m"),
        (Tenant("\u202eevil", "\u200b"), r"\u202eevil:\u200b"),
        (Tenant("naïve", "東京"), "naïve:東京"),
        (object(), "<object>"),
        ("", ""),
    ],
)
def test_a_key_is_shown_on_one_clean_line(context: object, shown: str) -> None:
    """Fields are joined by a colon; what could forge a log line is escaped."""
    assert display_key(context) == shown


def test_hidden_fields_stay_hidden() -> None:
    """A field declared with ``repr=False`` never reaches a log."""

    @dataclass(frozen=True)
    class Secretive:
        name: str
        password: str = field(repr=False)

    class SecretModel(pydantic.BaseModel, frozen=True):
        name: str
        password: str = pydantic.Field(repr=False)

    assert display_key(Secretive("a", "hunter2")) == "a"
    assert display_key(SecretModel(name="a", password="hunter2")) == "a"


def test_what_is_called_a_secret_stays_hidden() -> None:
    """A context may be a row of a registry. What tells tenants apart stays."""

    class Row(NamedTuple):
        name: str
        password: str
        dsn: str

    class Struct(msgspec.Struct, frozen=True):
        token_id: str
        api_key: str
        db_password: str

    class Model(pydantic.BaseModel, frozen=True):
        name: str
        client_secret: str
        aws_secret_access_key: str
        storage_account_key: str
        dbPassword: str  # noqa: N815 - as JSON spells it

    assert display_key(Row("a", "hunter2", "postgresql://app:hunter2@db/a")) == "a:postgresql://app:***@db/a"
    assert display_key(Struct("a", "hunter2", "hunter2")) == "a"
    model = {"client_secret": "x", "aws_secret_access_key": "x", "storage_account_key": "x", "dbPassword": "x"}
    assert display_key(Model(name="a", **model)) == "a"


def test_what_has_fields_and_is_no_named_tuple_is_shown_by_its_type_only() -> None:
    """Such as a row of SQLAlchemy's: its class has a property of that name."""

    class Row:
        @property
        def _fields(self) -> tuple[str, ...]:
            return ("id", "dsn")

    assert display_key(Row()) == "<Row>"


def test_a_secret_type_is_shown_by_its_name_only() -> None:
    """Objects of unknown types are not asked what they contain."""
    assert display_key(Tenant(pydantic.SecretStr("hunter2"))) == "<SecretStr>:eu"


def test_a_long_key_is_cut() -> None:
    """A context of a megabyte takes one line of the log, not a page."""
    shown = display_key(Tenant("x" * 1_000_000))
    assert len(shown) == 200
    assert shown.endswith("…")
