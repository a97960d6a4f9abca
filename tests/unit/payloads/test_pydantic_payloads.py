"""Payload types that mention pydantic are decoded by pydantic, and its errors are told without the input."""

import dataclasses
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, TypeVar

import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from pydantic.alias_generators import to_camel
from typing_extensions import TypeAliasType, TypedDict

from postroom.errors import ConfigurationError, DecodeError, ValidationError
from postroom.payloads import decoder_for
from support.bodies import SECRET, decode, refuse


class Item(pydantic.BaseModel):
    """A nested model."""

    sku: str
    amount: Decimal


class Order(pydantic.BaseModel):
    """A model with a validator that quotes its input, as validators do."""

    model_config = pydantic.ConfigDict(alias_generator=to_camel, extra="forbid")

    order_id: str
    items: list[Item] = []
    prices: dict[str, int] = {}
    when: int | list[int] | None = None

    @pydantic.field_validator("order_id")
    @classmethod
    def known(cls, value: str) -> str:
        """Refuse some ids."""
        if value == SECRET:
            raise ValueError(f"{value} is no order")
        if value == "bug":
            raise LookupError(value)
        return cls.known(value) if value == "endless" else value


class Cat(pydantic.BaseModel):
    """One kind of pet."""

    kind: Literal["cat"]
    lives: int


class Dog(pydantic.BaseModel):
    """The other kind."""

    kind: Literal["dog"]
    tricks: list[str]


Pet = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
NamedPet = TypeAliasType("NamedPet", Pet)
Bought = NewType("Bought", Item)
BoundItem = TypeVar("BoundItem", bound=Item)
OnePet = TypeVar("OnePet", Cat, Dog)


@pydantic.dataclasses.dataclass
class Parcel:
    """A pydantic dataclass."""

    weight: Annotated[int, pydantic.Field(gt=0)]


@dataclasses.dataclass
class Shipment:
    """A plain dataclass with a model in it."""

    pet: Cat | None
    pieces: int = 1


@dataclasses.dataclass
class Receipt:
    """A plain dataclass with a model by another name in it."""

    bought: Bought


class Basket(TypedDict):
    """A TypedDict with a model in it."""

    item: Item


class Mixed(msgspec.Struct):
    """A Struct with a model in it, which neither library can decode."""

    item: Item


@pytest.mark.parametrize(
    ("payload_type", "body", "expected"),
    [
        (Order, '{"orderId": "o", "items": [{"sku": "a", "amount": 99.99}]}', Order.model_construct(
            order_id="o", items=[Item(sku="a", amount=Decimal("99.99"))])),
        (list[Item], '[{"sku": "a", "amount": "99.99"}]', [Item(sku="a", amount=Decimal("99.99"))]),
        (Pet, '{"kind": "dog", "tricks": ["sit"]}', Dog(kind="dog", tricks=["sit"])),
        (NamedPet, '{"kind": "cat", "lives": 9}', Cat(kind="cat", lives=9)),
        (list[NamedPet], '[{"kind": "cat", "lives": 9}]', [Cat(kind="cat", lives=9)]),
        (Parcel, '{"weight": 3}', Parcel(3)),
        (Shipment, '{"pet": {"kind": "cat", "lives": 9}}', Shipment(Cat(kind="cat", lives=9))),
        (Basket, '{"item": {"sku": "a", "amount": 1}}', {"item": Item(sku="a", amount=Decimal(1))}),
        (Bought, '{"sku": "a", "amount": 1}', Item(sku="a", amount=Decimal(1))),
        (list[Bought], '[{"sku": "a", "amount": 1}]', [Item(sku="a", amount=Decimal(1))]),
        (Receipt, '{"bought": {"sku": "a", "amount": 1}}', Receipt(Bought(Item(sku="a", amount=Decimal(1))))),
        (BoundItem, '{"sku": "a", "amount": 1}', Item(sku="a", amount=Decimal(1))),
        (OnePet, '{"kind": "cat", "lives": 9}', Cat(kind="cat", lives=9)),
        (Annotated[int, pydantic.Field(gt=0)], "5", 5),
        (dict[str, pydantic.PositiveInt], '{"a": 1}', {"a": 1}),
        (pydantic.SecretStr, f'"{SECRET}"', pydantic.SecretStr(SECRET)),
    ],
    ids=["model", "list", "union", "named", "named_inside", "dataclass", "mixed", "typeddict", "new_type",
         "new_type_in_list", "new_type_in_dataclass", "bound", "constraints", "annotated", "constrained",
         "secret"],
)  # fmt: skip
def test_whatever_mentions_pydantic_is_decoded_by_it(payload_type: Any, body: str, expected: object) -> None:
    """Models, their containers and unions, pydantic's own types and annotations."""
    assert decode(payload_type, body) == expected


@pytest.mark.parametrize(
    ("payload_type", "body", "text", "path"),
    [
        (Order, "[]", "$: input should be an object, got array", "$"),
        (Order, f'"{SECRET}"', "$: input should be an object, got str", "$"),
        (Order, "{}", "$.orderId: field required", "$.orderId"),
        (Order, '{"orderId": 5}', "$.orderId: input should be a valid string, got int", "$.orderId"),
        (Order, f'{{"orderId": "{SECRET}"}}', "$.orderId: refused (value_error)", "$.orderId"),
        (Order, f'{{"orderId": "o", "{SECRET}": 1}}', "$[...]: extra inputs are not permitted", "$[...]"),
        (Order, f'{{"orderId": "o", "prices": {{"{SECRET}": []}}}}',
            "$.prices[...]: input should be a valid integer, got array", "$.prices[...]"),
        (Order, f'{{"orderId": "o", "items": [{{"sku": "a", "amount": 1}}, {{"sku": "b", "amount": "{SECRET}"}}]}}',
            "$.items[1].amount: input should be a valid decimal", "$.items[1].amount"),
        (Order, '{"orderId": "o", "items": [null]}', "$.items[0]: input should be an object, got null", "$.items[0]"),
        (Pet, f'{{"kind": "{SECRET}"}}', "$: not one of the allowed tags", "$"),
        (Pet, '{"kind": "cat"}', "$.lives: field required", "$.lives"),
        (Parcel, '{"weight": -5}', "$.weight: input should be greater than 0", "$.weight"),
        (dict[str, pydantic.UUID4], f'{{"a": "{SECRET}"}}', "$[...]: refused (uuid_parsing)", "$[...]"),
    ],
)  # fmt: skip
def test_problems_are_told_in_words_of_the_type(payload_type: Any, body: str, text: str, path: str) -> None:
    """Each problem has its JSON path and kind; values, unknown keys and a validator's own words stay out."""
    error = refuse(payload_type, body)
    assert isinstance(error, ValidationError)
    assert str(error).endswith(": " + text)
    assert error.path == path


def test_the_labels_of_a_union_are_no_part_of_the_path() -> None:
    """Each member of a plain union tells its problem, at the path that the document has."""
    assert str(refuse(Order, f'{{"orderId": "o", "when": "{SECRET}"}}')) == (
        "the body is not a valid Order: "
        "$.when: input should be a valid integer, unable to parse string as an integer; "
        "$.when: input should be a valid array, got str"
    )


def test_only_the_first_problems_are_shown() -> None:
    """A body with a thousand problems makes a line of three, and a count."""
    text = str(refuse(list[Item], "[" + ",".join(["{}"] * 1000) + "]"))
    assert text.endswith(
        "$[0].sku: field required; $[0].amount: field required; $[1].sku: field required; and 1997 more"
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("{not json", "the body is not JSON: key must be a string at line 1 column 2"),
        ('{"orderId":', "the body is not JSON: EOF while parsing a value at line 1 column 11"),
        ("", "the body is empty, expected JSON"),
        ("  ", "the body is empty, expected JSON"),
        ("[" * 100_000, "the body cannot be decoded: its JSON is nested too deeply"),
        ('{"orderId": "\ud800"}', "the body is not valid Unicode: it has a lone surrogate (character 13)"),
    ],
    ids=lambda value: ascii(value[:20]),
)
def test_a_body_that_is_not_json_is_told_where_it_breaks(body: str, text: str) -> None:
    """The DecodeError names the position in the body, and not the body."""
    error = refuse(Order, body)
    assert isinstance(error, DecodeError)
    assert str(error) == text


@pytest.mark.parametrize(("order_id", "kind"), [("bug", LookupError), ("endless", RecursionError)])
def test_a_bug_in_a_validator_keeps_its_cause(order_id: str, kind: type[Exception]) -> None:
    """What a validator raises beside ValueError is a payload error, too, but that bug has to be found."""
    error = refuse(Order, f'{{"orderId": "{order_id}"}}')
    assert isinstance(error.__cause__, kind)
    assert f"the type's own code raised {kind.__name__}" in str(error)


def test_values_beyond_json_are_refused_without_a_path() -> None:
    """Pydantic reads NaN, which JSON does not know; the body is then not walked for paths."""
    assert "input should be a finite number" in str(refuse(Item, '{"sku": "a", "amount": NaN}'))


@pytest.mark.parametrize("payload_type", [Mixed, dict[str, "Nowhere"] | Item])  # type: ignore[name-defined] # noqa: F821 - that is what is tested
def test_a_type_without_a_schema_is_refused_at_registration(payload_type: Any) -> None:
    """The ConfigurationError comes before any message, and says what pydantic misses."""
    with pytest.raises(ConfigurationError, match="pydantic cannot decode"):
        decoder_for(payload_type)


def test_a_model_that_is_not_fully_defined_is_refused_at_registration() -> None:
    """A forward reference that leads nowhere is not left for the first message to find."""
    fields: Any = {"other": ("Nowhere", ...)}
    model = pydantic.create_model("Dangling", **fields)
    with pytest.raises(ConfigurationError, match="Nowhere"):
        decoder_for(model)


def test_rename_is_the_models_own_business() -> None:
    """Asking us to rename a model's fields is answered with the line to write in the model."""
    with pytest.raises(ConfigurationError, match="alias_generator=to_camel"):
        decoder_for(Order, rename="camel")
