"""A context is filled from the message attributes by name, and nothing doubtful becomes part of it."""

import dataclasses
import enum
import traceback
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypeVar

import msgspec
import pytest
from typing_extensions import TypeAliasType

from postroom.errors import ConfigurationError, ContextError, MissingAttribute
from postroom.message import Message, MessageAttribute
from postroom.payloads import SAFE_ID, attribute, context_from_attributes

SECRET = "s3cr3t 4711"
TENANT = "message attribute 'tenant_id' or 'tenantId'"
TenantId = NewType("TenantId", str)
OwnerId = NewType("OwnerId", TenantId)
ParentId = TypeAliasType("ParentId", str)
Home = TypeAliasType("Home", Annotated[str, attribute("home", choices=["eu", "us"])])
MaybeHome = TypeAliasType("MaybeHome", Home | None)


class Region(enum.Enum):
    """Where a tenant lives."""

    EU = "eu-west-1"
    US = "us-east-1"


class Tier(enum.IntEnum):
    """What a tenant pays for."""

    FREE = 0
    PAID = 1


@dataclasses.dataclass(frozen=True)
class Tenant:
    """The context of most examples."""

    tenant_id: str
    region: str


class TenantStruct(msgspec.Struct, frozen=True):
    """The same as a Struct."""

    tenant_id: str
    region: str = "eu-west-1"


class TenantTuple(NamedTuple):
    """The same as a NamedTuple."""

    tenant_id: str
    region: str = "eu-west-1"


def message(**attributes: str | bytes | MessageAttribute) -> Message:
    """Make a message with attributes: text is a String, bytes are Binary."""
    made = {
        name: value if isinstance(value, MessageAttribute) else _attribute(value) for name, value in attributes.items()
    }
    return Message(id="m-1", body="", message_attributes=made)


def _attribute(value: str | bytes) -> MessageAttribute:
    if isinstance(value, bytes):
        return MessageAttribute(data_type="Binary", binary_value=value)
    return MessageAttribute(string_value=value)


def refuse(cls: type, **attributes: str | bytes | MessageAttribute) -> ContextError:
    """Return the error of a message, after checking that it does not quote a value."""
    with pytest.raises(ContextError) as caught:
        context_from_attributes(cls)(message(**attributes))
    error = caught.value
    assert error.message_id == "m-1"
    assert SECRET not in "".join(traceback.format_exception_only(error))
    return error


@pytest.mark.parametrize("cls", [Tenant, TenantStruct, TenantTuple])
@pytest.mark.parametrize("name", ["tenant_id", "tenantId"])
def test_fields_are_found_by_their_name_or_its_camel_case(cls: Callable[..., Any], name: str) -> None:
    """Dataclass, Struct and NamedTuple alike: ``tenant_id`` is read from ``tenant_id`` or ``tenantId``."""
    resolve: Any = context_from_attributes(cls)  # type: ignore[arg-type] # a class, by its callable face
    assert resolve(message(**{name: "tenant-a", "region": "us-east-1", "other": "x"})) == cls("tenant-a", "us-east-1")


R = TypeVar("R")
K = TypeVar("K")


@dataclasses.dataclass(frozen=True)
class Based(Generic[R]):
    """Leaves the type of a field to those that are derived from it."""

    tenant_id: str
    region: R | None = None


class BasedStruct(msgspec.Struct, Generic[R], frozen=True):
    """The same as a Struct."""

    tenant_id: str
    region: R | None = None


class BasedTuple(NamedTuple, Generic[R]):
    """The same as a NamedTuple."""

    tenant_id: str
    region: R | None = None


class OfRegion(Based[Region]):
    """Says it."""


class OfRegionStruct(BasedStruct[Region], frozen=True):
    """Says it."""


class OfRegionTuple(BasedTuple[Region]):
    """Says it."""


@dataclasses.dataclass(frozen=True)
class Keyed(Based[K], Generic[K, R]):
    """Says it with a variable of its own, and uses the name of the other again."""

    plan: Annotated[R, attribute("tier")] | None = None


class Deep(Keyed[Region, Tier]):
    """Says it two classes above."""


@dataclasses.dataclass(frozen=True)
class Changed(Based[Tier]):
    """Says another type itself."""

    region: Region | None = None  # type: ignore[assignment] # that is what is tested


@pytest.mark.parametrize("cls", [OfRegion, OfRegionStruct, OfRegionTuple, Changed, Deep])
def test_the_fields_of_a_generic_class_have_the_types_that_it_was_derived_with(cls: Any) -> None:
    """The class itself has variables in their places, which no attribute can fill."""
    resolve: Any = context_from_attributes(cls)
    assert resolve(message(tenantId="t-1", region="eu-west-1")) == cls("t-1", Region.EU)
    refuse(cls, tenantId="t-1", region="1")


def test_the_types_of_a_generic_class_are_those_of_the_class_that_names_the_variable() -> None:
    """Two classes may call theirs the same."""
    made = context_from_attributes(Deep)(message(tenantId="t-1", region="eu-west-1", tier="1"))
    assert made == Deep("t-1", Region.EU, Tier.PAID)


@dataclasses.dataclass(frozen=True, slots=True)
class Everything:
    """A context with every kind of field."""

    tenant: Annotated[str, attribute("tenantId")]
    shard: int
    active: bool
    trace: uuid.UUID
    region: Region
    tier: Tier
    plan: Literal["basic", "pro"]
    owner: TenantId
    parent: ParentId | None = None
    version: Literal[1, 2] = 1
    stage: Annotated[str, attribute(choices=["test", "live"])] = "live"
    label: str = attribute("display.name", pattern=r"[\w ]+", default="none")
    derived: str = dataclasses.field(init=False, default="d")


GOOD: dict[str, str | bytes | MessageAttribute] = {
    "tenantId": "t-1",
    "shard": MessageAttribute(data_type="Number", string_value="-12"),
    "active": "true",
    "trace": "6F1f7a5e-4f0e-4a67-9d7c-0c6f6e0d3a11",
    "region": "eu-west-1",
    "tier": "1",
    "plan": "pro",
    "owner": "o-1",
}


def test_every_kind_of_field_gets_its_own_type() -> None:
    """Text, numbers, truth, UUIDs, enumerations and literals; fields with defaults may be absent."""
    context = context_from_attributes(Everything)(message(**GOOD))
    assert context == Everything(
        tenant="t-1",
        shard=-12,
        active=True,
        trace=uuid.UUID("6f1f7a5e-4f0e-4a67-9d7c-0c6f6e0d3a11"),
        region=Region.EU,
        tier=Tier.PAID,
        plan="pro",
        owner=TenantId("o-1"),
    )
    assert (type(context.shard), type(context.active), type(context.version)) == (int, bool, int)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Home, "eu", "eu"),
        (Home | None, "eu", "eu"),
        (MaybeHome, "eu", "eu"),
        (Annotated[MaybeHome, attribute("home", pattern="..")], "xx", "xx"),
        (Annotated[TenantId, attribute("home")] | None, "t-1", "t-1"),
        (OwnerId, "o-1", "o-1"),
        (OwnerId | None, "o-1", "o-1"),
        (Literal["eu", None], "eu", "eu"),  # noqa: PYI061 - that is what is tested
        (Literal[Region.EU], "eu-west-1", Region.EU),
        (Literal[Tier.PAID] | None, "1", Tier.PAID),
    ],
)
def test_a_field_may_be_none_and_have_names_for_its_type(annotation: Any, value: str, expected: object) -> None:
    """What ``attribute()`` says of the type counts wherever it stands; a context is written as it is read."""
    cls = dataclasses.make_dataclass("Made", [("home", annotation)], frozen=True)
    resolve: Any = context_from_attributes(cls)
    context = resolve(message(home=value))
    assert context == cls(expected)
    assert resolve.write(context) == {"home": value}
    refuse(cls, home=SECRET)


def test_fields_with_defaults_take_the_attribute_when_it_is_there() -> None:
    """Optional means that it may be absent, not that it is ignored."""
    sent = {**GOOD, "parent": "p-1", "version": "2", "stage": "test", "display.name": "Grüße an alle"}
    context = context_from_attributes(Everything)(message(**sent))
    assert (context.parent, context.version, context.stage, context.label) == ("p-1", 2, "test", "Grüße an alle")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("shard", "1.0", "not a whole number"),
        ("shard", "007", "not a whole number"),
        ("shard", "-0", "not a whole number"),
        ("shard", " 1", "not a whole number"),
        ("shard", "1_000", "not a whole number"),
        ("shard", "\u0661", "not a whole number"),
        ("shard", "9" * 19, "not a whole number"),
        ("active", "True", "neither 'true' nor 'false'"),
        ("active", "1", "neither 'true' nor 'false'"),
        ("trace", "{6f1f7a5e-4f0e-4a67-9d7c-0c6f6e0d3a11}", "not a UUID"),
        ("trace", "6f1f7a5e4f0e4a679d7c0c6f6e0d3a11", "not a UUID"),
        ("trace", SECRET, "not a UUID"),
        ("region", "EU", "not one of 'eu-west-1', 'us-east-1'"),
        ("region", SECRET, "not one of 'eu-west-1', 'us-east-1'"),
        ("tier", "PAID", "not one of '0', '1'"),
        ("tier", "true", "not one of '0', '1'"),
        ("plan", "Pro", "not one of 'basic', 'pro'"),
        ("version", "1.0", "not one of '1', '2'"),
        ("stage", SECRET, "not one of 'test', 'live'"),
        ("display.name", "a\nb", r"not allowed (it must match [\w ]+ and be printable)"),
        ("display.name", "a!", r"not allowed (it must match [\w ]+ and be printable)"),
        ("owner", "o/1", "not a safe id (it must match [A-Za-z0-9][A-Za-z0-9._:-]{0,127})"),
    ],
)
def test_a_value_that_its_field_does_not_allow_is_refused(name: str, value: str, problem: str) -> None:
    """There is one spelling of each value; the error says what is allowed and never what came."""
    error = refuse(Everything, **{**GOOD, name: value})
    assert not isinstance(error, MissingAttribute)
    assert str(error) == f"message attribute {name!r} is {problem}"


@pytest.mark.parametrize(
    "value",
    [
        "../etc/passwd", "a/b", "a\\b", ".hidden", "-flag", "a b", " a", "a ", "a\n", "\ta", "a\x00", "a'b", 'a"b',
        "a;b", "%2e", "${x}", "a" * 129, "tenant-\u00e4", "tenant-\u0430", "tenant\u200b", "\u202etenant", "a\u2028b",
        "\ud800",
    ],
    ids=ascii,
)  # fmt: skip
def test_text_that_is_no_safe_id_is_refused(value: str) -> None:
    """Paths, quotes, spaces, control and look-alike characters and endless text are no tenant's name."""
    assert "not a safe id" in str(refuse(Tenant, tenantId=value, region="eu-west-1"))


@pytest.mark.parametrize("value", ["a", "A1", "tenant-a", "a:b", "acme.eu_1", "0", "a" * 128])
def test_ordinary_ids_are_safe(value: str) -> None:
    """Letters, digits, and the four signs that ids are put together with."""
    assert context_from_attributes(Tenant)(message(tenantId=value, region="r")).tenant_id == value


@pytest.mark.parametrize(
    ("attributes", "text", "present", "name"),
    [
        ({"tenantId": "a"}, "message attribute 'region' is missing", "'tenantId'", "region"),
        ({"region": "r", "tenantId": ""}, f"{TENANT} is empty", "'region', 'tenantId'", "tenantId"),
        (
            {"tenantId": "a", "region": b"r"},
            "message attribute 'region' is Binary, expected String or Number",
            "'region', 'tenantId'",
            "region",
        ),
        ({}, "message attributes 'tenant_id' or 'tenantId' and 'region' are missing", "none", "tenantId"),
        (
            {"tenantId": "a b"},
            f"{TENANT} is not a safe id (it must match {SAFE_ID}); message attribute 'region' is missing",
            "'tenantId'",
            "region",
        ),
    ],
)
def test_everything_that_is_missing_is_named_at_once(
    attributes: dict[str, Any], text: str, present: str, name: str
) -> None:
    """Missing, empty and Binary attributes are a MissingAttribute that tells all of it in one line."""
    error = refuse(Tenant, **attributes)
    assert isinstance(error, MissingAttribute)
    assert str(error) == f"{text} (attributes of this message: {present})"
    assert error.name == name


def test_an_empty_optional_attribute_is_not_absent() -> None:
    """Who sends an attribute means something by it; the default is for those who do not."""
    assert "is empty" in str(refuse(TenantStruct, tenantId="a", region=""))


def test_two_spellings_with_two_values_are_refused() -> None:
    """A sender must not be able to show one tenant to a filter and another one to the consumer."""
    error = refuse(Tenant, tenantId="a", tenant_id="b", region="r")
    assert str(error) == "message attribute 'tenant_id' or 'tenantId' is given twice, with different values"
    assert context_from_attributes(Tenant)(message(tenantId="a", tenant_id="a", region="r")).tenant_id == "a"


def test_an_attribute_that_is_named_is_read_from_there_only() -> None:
    """``attribute("tenantId")`` leaves no other spelling."""
    misspelt = {**GOOD, "tenant": "t-1"}
    del misspelt["tenantId"]
    assert "message attribute 'tenantId' is missing" in str(refuse(Everything, **misspelt))


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Names written into the field's metadata, as other libraries do."""

    tenant: str = dataclasses.field(metadata={"attribute": "tenantId"})
    region: str = attribute("home", pattern="[a-z]+")


def test_names_may_stand_in_the_metadata_of_a_dataclass_field() -> None:
    """``field(metadata={"attribute": ...})`` and ``= attribute(...)`` say the same as the annotation."""
    assert context_from_attributes(Metadata)(message(tenantId="a", home="here")) == Metadata("a", "here")
    assert "is not allowed" in str(refuse(Metadata, tenantId="a", home="X"))


@dataclasses.dataclass(frozen=True)
class Permissive:
    """A context with a pattern that admits everything."""

    tenant: Annotated[str, attribute(pattern="(?s).+")]


@pytest.mark.parametrize("value", ["a\nb", "a\x1b[31m", "a\x00", "\u202ea", "a\u2028b"], ids=ascii)
def test_no_pattern_lets_unprintable_text_through(value: str) -> None:
    """A line break or an escape sequence in a tenant's name would forge log lines, whatever the pattern says."""
    assert "be printable" in str(refuse(Permissive, tenant=value))


@dataclasses.dataclass(frozen=True)
class Checked:
    """A context with a check of its own."""

    tenant: str

    def __post_init__(self) -> None:
        """Admit one tenant."""
        if self.tenant != "acme":
            raise LookupError(self.tenant)


def test_what_the_class_itself_refuses_is_a_context_error() -> None:
    """The type of its exception is told, the exception is the cause."""
    error = refuse(Checked, tenant="other")
    assert str(error) == "Checked refused the message attributes (LookupError)"
    assert isinstance(error.__cause__, LookupError)


@pytest.mark.parametrize("cls", [Tenant, TenantStruct, TenantTuple])
def test_equal_attributes_give_the_same_context_and_others_another(cls: type[Any]) -> None:
    """A context that is known costs no second look, and is never taken for another one's."""
    resolve = context_from_attributes(cls)
    known = resolve(message(tenantId="a", region="r"))
    assert resolve(message(tenant_id="a", region="r", other="x")) is known
    assert resolve(message(tenantId="b", region="r")).tenant_id == "b"
    assert resolve(message(tenantId="r", region="a")) == cls("r", "a")


def test_a_text_of_one_field_is_never_taken_for_that_of_another_which_is_missing() -> None:
    """Neither by what is known, nor after more combinations of attributes than are remembered."""

    @dataclasses.dataclass(frozen=True)
    class Either:
        customer: str = "none"
        partner: str = "none"

    resolve = context_from_attributes(Either)
    for number in range(200):
        other = {f"other{number}": "x"}
        assert resolve(message(customer="a", **other)) == Either("a", "none")
        assert resolve(message(**other, partner="a")) == Either("none", "a")
        assert resolve(message(partner="b", **other, customer="a")) == Either("a", "b")
        assert resolve(message(**other)) == Either()


def test_what_is_wrong_is_refused_however_much_is_known() -> None:
    """A Binary attribute is not an absent one, and a second spelling is looked at every time."""
    resolve = context_from_attributes(TenantStruct)
    assert resolve(message(tenantId="a")).region == "eu-west-1"
    assert resolve(message(tenantId="b", region="eu-west-1")).tenant_id == "b"
    for attributes in ({"tenantId": "a", "region": b"x"}, {"tenantId": "a", "tenant_id": "b"}, {"tenantId": "a b"}):
        with pytest.raises(ContextError):
            resolve(message(**attributes))


def test_a_class_with_code_of_its_own_runs_it_for_every_message() -> None:
    """Whether a tenant still exists may be looked up there."""
    made: list[str] = []

    @dataclasses.dataclass(frozen=True)
    class Looked:
        tenant: str

        def __post_init__(self) -> None:
            made.append(self.tenant)

    @dataclasses.dataclass(frozen=True)
    class Numbered:
        tenant: str
        number: int = dataclasses.field(default_factory=lambda: len(made))

    class Sub(TenantTuple):
        pass

    looked = context_from_attributes(Looked)
    assert looked(message(tenant="a")) == looked(message(tenant="a"))
    assert made == ["a", "a"]
    for cls, names in ((Numbered, {"tenant": "a"}), (Sub, {"tenantId": "a"})):
        resolve = context_from_attributes(cls)
        assert resolve(message(**names)) is not resolve(message(**names))


def test_the_contexts_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender cannot fill the memory with tenants that do not exist."""
    monkeypatch.setattr("postroom.payloads.attributes._MOST_KNOWN", 2)
    resolve = context_from_attributes(TenantTuple)
    first = resolve(message(tenantId="1"))
    for number in ("2", "3"):
        resolve(message(tenantId=number))
    assert resolve(message(tenantId="1")) == first
    assert len(resolve._known or ()) == 2


def test_unwrap_comes_first() -> None:
    """The attributes of what was in the envelope are read, not the envelope's."""
    inner = message(tenantId="a", region="r")
    resolve = context_from_attributes(Tenant, unwrap=lambda outer: inner)
    assert resolve(message(tenantId="b", region="r")) == Tenant("a", "r")


@dataclasses.dataclass
class Changeable:
    """A context that may change."""

    tenant: str


@dataclasses.dataclass(frozen=True, eq=False)
class Unequal:
    """A context of which no two are the same: every message would be another tenant."""

    tenant: str


class ChangeableStruct(msgspec.Struct):
    """A Struct that may change."""

    tenant: str


@dataclasses.dataclass(frozen=True)
class Unhashable:
    """A frozen class that cannot be a key all the same."""

    tenant: str
    __hash__ = None  # type: ignore[assignment] # that is what is tested


def test_a_parameter_with_a_default_is_no_field() -> None:
    """It is not read, and the class makes of it what it likes."""

    @dataclasses.dataclass(frozen=True)
    class Checked:
        tenant: str
        strict: dataclasses.InitVar[bool] = True

    assert context_from_attributes(Checked)(message(tenant="t-1", strict="false")) == Checked("t-1")


@dataclasses.dataclass(frozen=True)
class Empty:
    """A context that is the same for all tenants."""


@pytest.mark.parametrize(
    ("cls", "hint"),
    [
        (Changeable, "must not change"),
        (Unequal, "must compare by value"),
        (ChangeableStruct, "must not change"),
        (Unhashable, "is a key"),
        (dict, "make it a frozen dataclass"),
        (Region, "make it a frozen dataclass"),
        (Empty, "has no fields"),
        ("Tenant", "is no class"),
        (Based[Region], r"context=Based\[Region\] is a class with types in brackets: derive a class"),
        (BasedTuple[Region], r"derive a class"),
    ],
)
def test_a_class_that_cannot_be_a_key_is_refused_at_construction(cls: Any, hint: str) -> None:
    """Before any message arrives, with what to write instead."""
    with pytest.raises(ConfigurationError, match=hint):
        context_from_attributes(cls)


@pytest.mark.parametrize(
    ("annotation", "hint"),
    [
        (float, "cannot come from a message attribute"),
        (list[str], "cannot come from a message attribute"),
        (str | int, "cannot come from a message attribute"),
        (Annotated[int, attribute(pattern="x")], "pattern= and choices= are for text"),
        (Annotated[Region, attribute(choices=["x"])], "pattern= and choices= are for text"),
        (Annotated[str, attribute(default="x")], "write the default behind the annotation"),
        (Annotated[str, attribute(choices=[])], "choices must be texts"),
        (Annotated[str, attribute(choices=["a", None])], "choices must be texts"),  # type: ignore[list-item]
        (Literal[1, True], "differ from each other"),
        (Literal["a", b"a"], "choices must be texts"),
        (dataclasses.InitVar[str], "is an InitVar"),
        (dataclasses.InitVar, "is an InitVar"),
        ("Nowhere", "cannot be read"),
    ],
)
def test_a_field_that_no_attribute_can_fill_is_refused_at_construction(annotation: Any, hint: str) -> None:
    """Type confusion ends here: what cannot be told apart exactly is no field of a key."""
    cls = dataclasses.make_dataclass("Odd", [("tenant", annotation)], frozen=True)
    with pytest.raises(ConfigurationError, match=hint):
        context_from_attributes(cls)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"name": "tenant id"}, "SQS allows"),
        ({"name": ""}, "SQS allows"),
        ({"name": "AWS.tenant"}, "SQS allows"),
        ({"name": "amazon.tenant"}, "SQS allows"),
        ({"name": "a..b"}, "SQS allows"),
        ({"name": "a" * 257}, "SQS allows"),
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": "a", "choices": ["a"]}, "either pattern= or choices="),
    ],
)
def test_attribute_refuses_what_sqs_or_re_would(arguments: Any, hint: str) -> None:
    """A wrong name or pattern is found where it is written, with SQS's limit."""
    with pytest.raises(ConfigurationError, match=hint):
        attribute(**arguments)
