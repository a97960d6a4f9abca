"""Whatever a body is, decoding returns a payload or raises a PayloadError that does not carry the body."""

import dataclasses
import json
import traceback
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from postroom.errors import PayloadError
from postroom.message import Message
from postroom.payloads import decoder_for, unwrap_eventbridge, unwrap_sns

MARK = "zqxjk"
"""Put into every string of a random document; no error may contain it."""


@dataclasses.dataclass
class Line:
    """A nested dataclass."""

    sku: str
    price: Decimal = Decimal(0)


@dataclasses.dataclass
class Order:
    """A dataclass with fields that random documents hit now and then."""

    a: int
    b: list[Line] = dataclasses.field(default_factory=list)
    c: dict[str, Decimal] = dataclasses.field(default_factory=dict)
    d: Literal["x", "y"] = "x"

    def __post_init__(self) -> None:
        """Fail like code does."""
        if self.a < 0:
            raise ArithmeticError("negative")


class Left(msgspec.Struct, tag_field="a", tag="left", forbid_unknown_fields=True):
    """One member of a tagged union."""

    b: int = 0


class Right(msgspec.Struct, tag_field="a", tag="right"):
    """The other."""

    b: list[int] = []


class Model(pydantic.BaseModel):
    """A model that forbids what it does not know."""

    model_config = pydantic.ConfigDict(extra="forbid")
    a: int | list[str]
    b: dict[str, Line] = {}
    c: Annotated[str, pydantic.Field(max_length=3)] = ""


class Typed(TypedDict, total=False):
    """A TypedDict."""

    a: int
    b: list[Decimal]


DECODERS = {
    "any": decoder_for(Any),
    "dataclass": decoder_for(Order),
    "renamed": decoder_for(Order, rename="camel"),
    "union": decoder_for(Left | Right),
    "typeddict": decoder_for(Typed),
    "model": decoder_for(Model),
    "models": decoder_for(dict[str, Model] | list[Model]),
    "bytes": decoder_for(bytes),
    "sns": decoder_for(Order, unwrap=unwrap_sns),
    "eventbridge": decoder_for(Order, unwrap=unwrap_eventbridge),
}

decode_line = decoder_for(Line)

keys = st.sampled_from(["a", "b", "c", "d", "sku", "price", "type", "Type", "Message", "detail"]) | st.text(
    max_size=5
).map(lambda text: text + MARK)
texts = st.sampled_from(["left", "right", "x", "Notification", "NaN"]) | st.text(max_size=10).map(lambda t: t + MARK)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=20
)
orders = st.fixed_dictionaries({"a": scalars}, optional={"b": documents, "c": documents, "d": documents})


def check(name: str, body: str) -> None:
    """Decode, and look at the error if there is one."""
    error = attempt(name, body)
    if error is None:
        return
    assert error.message_id == "m-1"
    assert MARK not in "".join(traceback.format_exception_only(error))
    assert error.path.startswith("$")
    assert error.__context__ is None
    if error.__cause__ is not None:  # only code of the payload type's own may be seen behind it
        assert isinstance(error.__cause__, ArithmeticError)


def attempt(name: str, body: str) -> PayloadError | None:
    """Return the error that a body gets; None for a payload."""
    try:
        DECODERS[name](Message(id="m-1", body=body))
    except PayloadError as error:
        return error
    return None


@pytest.mark.parametrize("name", DECODERS)
@given(document=documents | orders)
@settings(max_examples=25)
def test_any_document_is_a_payload_or_a_payload_error(name: str, document: Any) -> None:
    """Random JSON, biased towards the fields of the types, NaN and infinities included."""
    check(name, json.dumps(document))


@pytest.mark.parametrize("name", DECODERS)
@given(body=st.text(st.characters()))
@settings(max_examples=25)
@example(body="\ud800")
@example(body='"\\ud800"')
@example(body="[" * 20_000)
@example(body='{"a":' * 20_000)
@example(body="\x00")
@example(body="\ufeff{}")
@example(body="1" * 5_000)
@example(body="1e99999")
def test_any_text_is_a_payload_or_a_payload_error(name: str, body: str) -> None:
    """Random text, lone surrogates, bombs of brackets and digits."""
    check(name, body)


@pytest.mark.parametrize("name", DECODERS)
@given(document=orders, cut=st.integers(0, 200), noise=st.text(max_size=3))
@settings(max_examples=25)
def test_a_damaged_document_is_a_payload_or_a_payload_error(name: str, document: Any, cut: int, noise: str) -> None:
    """A document cut off or overwritten somewhere."""
    body = json.dumps(document, ensure_ascii=False)
    check(name, body[:cut] + noise)
    check(name, body[:cut] + noise + body[cut + 1 :])


@given(number=st.decimals(allow_nan=False, allow_infinity=False, places=None))
def test_every_decimal_survives_the_way_exactly(number: Decimal) -> None:
    """Quoted or not, no digit is lost."""
    for text in (str(number), f'"{number}"'):
        body = f'{{"sku": "a", "price": {text}}}'
        assert decode_line(Message(id="m-1", body=body)).price == number
