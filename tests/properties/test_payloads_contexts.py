"""Two messages have the same context only if they say the same of every field."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from postroom.errors import ContextError
from postroom.message import Message, MessageAttribute
from postroom.payloads import SAFE_ID, attribute, context_from_attributes

ANYTHING = r"(?s).+"


@dataclass(frozen=True)
class Tenant:
    """A context with texts that may be anything printable."""

    tenant: Annotated[str, attribute(pattern=ANYTHING)]
    region: Annotated[str, attribute(pattern=ANYTHING)]


class TenantStruct(msgspec.Struct, frozen=True):
    """The same as a Struct."""

    tenant: Annotated[str, attribute(pattern=ANYTHING)]
    region: Annotated[str, attribute(pattern=ANYTHING)]


class TenantTuple(NamedTuple):
    """The same as a NamedTuple."""

    tenant: Annotated[str, attribute(pattern=ANYTHING)]
    region: Annotated[str, attribute(pattern=ANYTHING)]


class Level(enum.IntEnum):
    """Numbers that are equal to other numbers."""

    ZERO = 0
    ONE = 1


@dataclass(frozen=True)
class Mixed:
    """A context with fields with values that Python holds to be equal across types."""

    number: int
    truth: bool
    level: Level
    version: Literal["1", "true", 2]


CLASSES: list[Any] = [Tenant, TenantStruct, TenantTuple]


def message(attributes: dict[str, str], data_type: str = "String") -> Message:
    """Make a message with attributes."""
    made = {name: MessageAttribute(data_type=data_type, string_value=value) for name, value in attributes.items()}
    return Message(id="m-1", body="", message_attributes=made)


def attempt(resolve: Callable[[Message], Any], received: Message) -> Any:
    """Return the context of a message, or the error that it gets."""
    try:
        return resolve(received)
    except ContextError as error:
        return error


delimiters = st.text(st.sampled_from(":|,;/\\.\"' -_=&\u00e9e\u0301Aa\u0410"), min_size=1, max_size=6)
values = delimiters | st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=8)


@pytest.mark.parametrize("cls", CLASSES)
@given(one=st.tuples(values, values), other=st.tuples(values, values))
@example(one=("a:b", "c"), other=("a", "b:c"))
@example(one=("a", "bc"), other=("ab", "c"))
@example(one=("\u00e9", "c"), other=("e\u0301", "c"))
@example(one=("A", "c"), other=("a", "c"))
def test_different_attributes_never_make_the_same_key(cls: Any, one: tuple[str, str], other: tuple[str, str]) -> None:
    """Delimiters, case and Unicode forms do not let one tenant pass for another."""
    resolve = context_from_attributes(cls)
    first = attempt(resolve, message({"tenant": one[0], "region": one[1]}))
    second = attempt(resolve, message({"tenant": other[0], "region": other[1]}))
    if not isinstance(first, ContextError) and not isinstance(second, ContextError):  # refused is different, too
        assert (second in {first: 1}) == (one == other)


spellings = st.sampled_from(["0", "1", "2", "true", "false"]) | st.sampled_from(
    ["-1", "True", "01", "1.0", " 1", "\u0661"]
)


@given(sent=st.fixed_dictionaries(dict.fromkeys(("number", "truth", "level", "version"), spellings)))
@example(sent={"number": "1", "truth": "true", "level": "1", "version": "1"})
@example(sent={"number": "0", "truth": "false", "level": "0", "version": "2"})
@example(sent={"number": "-1", "truth": "true", "level": "1", "version": "true"})
def test_a_typed_context_has_one_spelling(sent: dict[str, str]) -> None:
    """What is accepted is spelt back exactly as it was sent: no two texts share a value of a field."""
    context = attempt(context_from_attributes(Mixed), message(sent, "Number"))
    if isinstance(context, ContextError):
        return
    assert sent == {
        "number": str(context.number),
        "truth": str(context.truth).lower(),
        "level": str(context.level.value),
        "version": str(context.version),
    }
    assert (type(context.number), type(context.truth), type(context.level)) == (int, bool, Level)


@dataclass(frozen=True)
class Safe:
    """A context with the default pattern."""

    tenant_id: str


@given(value=st.from_regex(SAFE_ID, fullmatch=True) | st.text(st.characters(), min_size=1, max_size=130))
def test_a_safe_id_is_safe_everywhere(value: str) -> None:
    """Whatever gets through is short, printable ASCII that is no path and starts no option."""
    context = attempt(context_from_attributes(Safe), message({"tenantId": value}))
    if isinstance(context, ContextError):
        return
    assert context.tenant_id == value
    assert value.isascii()
    assert value.isprintable()
    assert len(value) <= 128
    assert value[0] not in ".-"
    assert not set(value) & set("/\\ '\"`$%<>|&;")


@given(
    attributes=st.dictionaries(
        st.text(max_size=6) | st.sampled_from(["tenant_id", "tenantId"]),
        st.builds(
            MessageAttribute,
            data_type=st.sampled_from(["String", "Number", "Binary", ""]),
            string_value=st.none() | st.text(st.characters(), max_size=5),
            binary_value=st.none() | st.binary(max_size=3),
        ),
    )
)
def test_any_attributes_make_a_context_or_a_context_error(attributes: dict[str, MessageAttribute]) -> None:
    """However the attributes are put together, nothing else gets out."""
    outcome = attempt(context_from_attributes(Safe), Message(id="m-1", body="", message_attributes=attributes))
    if isinstance(outcome, ContextError):
        assert outcome.message_id == "m-1"
        assert str(outcome).isprintable()
    else:
        assert outcome.tenant_id
