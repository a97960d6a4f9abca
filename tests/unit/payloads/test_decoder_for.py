"""What each payload type gets from a body, and what a body that does not fit is told."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pytest
from typing_extensions import TypeAliasType

from postroom.errors import ConfigurationError, DecodeError, ValidationError
from postroom.message import Message
from postroom.payloads import Decoder, decoder_for
from support.bodies import SECRET, decode, message, refuse

T = TypeVar("T")


class Kind(Enum):
    """How an order is shipped."""

    FAST = "fast"
    SLOW = "slow"


@dataclasses.dataclass
class Line:
    """One line of an order."""

    sku: str
    price: Decimal
    count: int = 1


@dataclasses.dataclass
class Order:
    """A payload with every kind of field."""

    order_id: str
    amount: Decimal
    lines: list[Line] = dataclasses.field(default_factory=list)
    kind: Kind = Kind.FAST
    currency: Literal["EUR", "USD"] = "EUR"
    placed: datetime | None = None
    trace: UUID | None = None
    notes: dict[str, Line] = dataclasses.field(default_factory=dict)
    pair: tuple[int, str] | None = None

    def __post_init__(self) -> None:
        """Check what a type cannot say."""
        if self.order_id == SECRET:
            raise ValueError(f"{SECRET} is not an order")
        if self.order_id == "bug":
            raise KeyError("bug")
        if self.order_id == "endless":
            self.__post_init__()


class Created(msgspec.Struct, tag="created"):
    """One member of a tagged union."""

    order_id: str


class Cancelled(msgspec.Struct, tag="cancelled", forbid_unknown_fields=True):
    """The other member."""

    order_id: str
    reason: str = ""


class OrderDict(TypedDict):
    """A payload as a TypedDict."""

    order_id: str
    amount: NotRequired[Decimal]


class OrderTuple(NamedTuple):
    """A payload as a NamedTuple; JSON has an array for it."""

    order_id: str
    amount: Decimal


@dataclasses.dataclass
class Page(Generic[T]):
    """A generic payload."""

    items: list[T]


@dataclasses.dataclass
class Tree:
    """A payload that contains itself."""

    name: str
    children: list["Tree"] = dataclasses.field(default_factory=list)


class Plain:
    """A class that has no JSON form."""


ORDER = """{"order_id": "o-1", "amount": 99.99, "lines": [{"sku": "a", "price": "1.10", "count": 2}], "kind": "slow",
"currency": "USD", "placed": "2026-11-23T10:00:00Z", "trace": "6f1f7a5e-4f0e-4a67-9d7c-0c6f6e0d3a11",
"notes": {"gift": {"sku": "b", "price": 2}}, "pair": [1, "x"], "unknown": true}"""


def test_a_dataclass_is_decoded_with_everything_in_it() -> None:
    """Nested dataclasses, Decimal, datetime, UUID, Enum, Literal, tuples and defaults all arrive as themselves."""
    assert decode(Order, ORDER) == Order(
        order_id="o-1",
        amount=Decimal("99.99"),
        lines=[Line("a", Decimal("1.10"), 2)],
        kind=Kind.SLOW,
        currency="USD",
        placed=datetime(2026, 11, 23, 10, tzinfo=UTC),
        trace=UUID("6f1f7a5e-4f0e-4a67-9d7c-0c6f6e0d3a11"),
        notes={"gift": Line("b", Decimal(2))},
        pair=(1, "x"),
    )


@pytest.mark.parametrize(
    "number", ["99.99", "0.1234567890123456789012345678", "123456789012345678901234567890.5", "1E+5"]
)
@pytest.mark.parametrize("quoted", [True, False])
def test_a_number_becomes_a_decimal_exactly(number: str, quoted: bool) -> None:
    """A JSON number goes into Decimal digit by digit, and so does its text: no float is in between."""
    body = f'{{"sku": "a", "price": "{number}"}}' if quoted else f'{{"sku": "a", "price": {number}}}'
    price = decode(Line, body).price
    assert str(price) == str(Decimal(number))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"type": "created", "order_id": "1"}', Created("1")),
        ('{"order_id": "1", "reason": "late", "type": "cancelled"}', Cancelled("1", "late")),
    ],
)
def test_a_tagged_union_of_structs_is_told_apart_by_its_tag(body: str, expected: object) -> None:
    """Each member of the union is found by its tag, wherever that stands in the object."""
    assert decode(Created | Cancelled, body) == expected


@pytest.mark.parametrize(
    ("payload_type", "body", "expected"),
    [
        (str, "any text, {not json", "any text, {not json"),
        (bytes, "grüße", "grüße".encode()),
        (Any, '{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        (object, "[true]", [True]),
        (dict, '{"a": 1}', {"a": 1}),
        (dict[str, Any], '{"a": {"b": []}}', {"a": {"b": []}}),
        (dict[str, object], '{"a": "x"}', {"a": "x"}),
        (list, "[1, []]", [1, []]),
        (list[Line], '[{"sku": "a", "price": 1}]', [Line("a", Decimal(1))]),
        (int, "12345678901234567890123", 12345678901234567890123),
        (OrderDict, '{"order_id": "1"}', {"order_id": "1"}),
        (OrderTuple, '["1", 2.50]', OrderTuple("1", Decimal("2.50"))),
        (Page[Line], '{"items": [{"sku": "a", "price": 1}]}', Page([Line("a", Decimal(1))])),
        (Tree, '{"name": "a", "children": [{"name": "b"}]}', Tree("a", [Tree("b")])),
        (Line | None, "null", None),
        (Annotated[str, "a note of ours"], "not json", "not json"),
        (Annotated[int, msgspec.Meta(gt=0)], "5", 5),
        (TypeAliasType("Text", str), "not json", "not json"),
        (TypeAliasType("Raw", Annotated[TypeAliasType("Bytes", bytes), "a note of ours"]), "not json", b"not json"),
        (TypeAliasType("Lines", list[Line]), '[{"sku": "a", "price": 1}]', [Line("a", Decimal(1))]),
    ],
)
def test_each_payload_type_gets_what_it_asks_for(payload_type: Any, body: str, expected: object) -> None:
    """Text as it is, plain JSON decoded, everything else validated."""
    assert decode(payload_type, body) == expected


def test_the_message_itself_is_a_payload_type() -> None:
    """A handler that asks for ``Message`` gets the very message, its body untouched."""
    received = message("{not json")
    assert decoder_for(Message)(received) is received


def test_a_body_of_one_mebibyte_is_decoded() -> None:
    """The largest message that SQS carries is decoded whole."""
    text = "x" * (1024 * 1024 - 14)
    assert decode(dict[str, str], f'{{"text": "{text}"}}') == {"text": text}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("{not json", "the body is not JSON: object keys must be strings (byte 1)"),
        ('{"ä": 1', "the body is not JSON: it ends too early (byte 8)"),
        ('"\\ud800"', "the body is not JSON: it ends too early (byte 8)"),
        ("NaN", "the body is not JSON: invalid character (byte 0)"),
        ("", "the body is empty, expected JSON"),
        (" \n", "the body is empty, expected JSON"),
        ("[" * 100_000, "the body cannot be decoded: its JSON is nested too deeply"),
        ('"a\ud800b"', "the body is not valid Unicode: it has a lone surrogate (character 2)"),
    ],
    ids=lambda value: ascii(value[:20]),
)
def test_a_body_that_is_not_json_is_told_where_it_breaks(body: str, text: str) -> None:
    """The DecodeError names the position in the body, and not the body."""
    error = refuse(Any, body)
    assert isinstance(error, DecodeError)
    assert (str(error), error.path) == (text, "$")


@pytest.mark.parametrize(
    ("body", "path", "kind"),
    [
        ("[]", "$", "expected object, got array"),
        (f'"{SECRET}"', "$", "expected object, got str"),
        ("4711", "$", "expected object, got int"),
        ("null", "$", "expected object, got null"),
        ('{"amount": 1}', "$", "missing required field 'order_id'"),
        (f'{{"order_id": "1", "amount": "{SECRET}"}}', "$.amount", "Invalid decimal string"),
        ('{"order_id": 5, "amount": 1}', "$.order_id", "expected str, got int"),
        ('{"order_id": "1", "amount": 1, "lines": [{"sku": "a", "price": 1}, 5]}',
            "$.lines[1]", "expected object, got int"),
        ('{"order_id": "1", "amount": 1, "lines": [{"sku": "a"}]}', "$.lines[0]", "missing required field 'price'"),
        (f'{{"order_id": "1", "amount": 1, "kind": "{SECRET}"}}', "$.kind", "not one of the allowed values"),
        (f'{{"order_id": "1", "amount": 1, "currency": "{SECRET}"}}', "$.currency", "not one of the allowed values"),
        (f'{{"order_id": "1", "amount": 1, "placed": "{SECRET}"}}', "$.placed", "Invalid RFC3339 encoded datetime"),
        (f'{{"order_id": "1", "amount": 1, "trace": "{SECRET}"}}', "$.trace", "Invalid UUID"),
        (f'{{"order_id": "1", "amount": 1, "notes": {{"{SECRET}": {{"sku": 5}}}}}}',
            "$.notes[...].sku", "expected str, got int"),
        ('{"order_id": "1", "amount": 1, "pair": [1]}', "$.pair", "expected array of length 2"),
        (f'{{"order_id": "{SECRET}", "amount": 1}}', "$", "refused by the type's own check (ValueError)"),
    ],
    ids=lambda value: value[:40],
)  # fmt: skip
def test_a_body_of_another_shape_is_told_where_and_how(body: str, path: str, kind: str) -> None:
    """The ValidationError has the JSON path and the kind of problem, and never a value or a key of the input."""
    error = refuse(Order, body)
    assert isinstance(error, ValidationError)
    assert (str(error), error.path) == (f"the body is not a valid Order: {path}: {kind}", path)


@pytest.mark.parametrize(
    ("payload_type", "body", "text"),
    [
        (Created | Cancelled, f'{{"type": "{SECRET}"}}', "$.type: not one of the allowed tags"),
        (Cancelled, f'{{"type": "cancelled", "{SECRET}": 1}}', "$: unknown field"),
        (Cancelled, f'{{"type": "cancelled", "x - at `$.{SECRET}": 1}}', "$[...]: unknown field"),
        (Kind, f'"x - at `$.{SECRET}`"', "$: not one of the allowed values"),
        (dict[int, int], f'{{"{SECRET}": 1}}', "$: expected int, got str (in a key)"),
        (Annotated[str, msgspec.Meta(pattern="^a+$")], f'"{SECRET}"', "$: expected str matching regex '^a+$'"),
        (float, "1e999", "$: Number out of range"),
    ],
)
def test_input_that_imitates_an_error_is_not_believed(payload_type: Any, body: str, text: str) -> None:
    """Neither unknown keys, tags and enum values nor texts made to look like a path come through."""
    assert str(refuse(payload_type, body)).endswith(text)


@pytest.mark.parametrize(("order_id", "kind"), [("bug", KeyError), ("endless", RecursionError)])
def test_a_bug_in_the_payload_types_own_code_keeps_its_cause(order_id: str, kind: type[Exception]) -> None:
    """A KeyError out of ``__post_init__`` is a payload error, too, but that bug has to be found."""
    error = refuse(Order, f'{{"order_id": "{order_id}", "amount": 1}}')
    assert isinstance(error.__cause__, kind)
    assert f"the type's own code raised {kind.__name__}" in str(error)


def test_validation_is_strict() -> None:
    """A number in a string is not a number, apart from Decimal: it is its form in JSON."""
    assert refuse(int, '"5"').path == "$"


@pytest.mark.parametrize(
    ("payload_type", "hint"),
    [
        (Plain, "Plain has no JSON form"),
        (dict[str, list[Plain]], "Plain has no JSON form"),
        (Callable[[int], int], "has no JSON form"),
        (Order | Created, "not contain more than one dict-like"),
        ("Order", "not supported"),
        (5, "not supported"),
        (dataclasses.make_dataclass("Dangling", [("x", "Nowhere")]), "Nowhere"),
    ],
)
def test_a_type_that_cannot_be_decoded_is_refused_at_registration(payload_type: Any, hint: str) -> None:
    """The ConfigurationError says which type it is and what to use instead, before any message arrives."""
    with pytest.raises(ConfigurationError, match=hint) as caught:
        decoder_for(payload_type)
    assert "Use a dataclass" in str(caught.value)


class Csv(Decoder):
    """A decoder for a format of the user's own."""

    def __call__(self, message: Message, /) -> list[str]:
        """Split the body."""
        if not message.body:
            raise DecodeError("no fields", message_id=message.id)
        return message.body.split(",", maxsplit=int(message.body[0]))


def test_a_decoder_of_the_users_own_takes_the_place_of_a_type() -> None:
    """An instance of Decoder is used as it is."""
    assert decoder_for(Csv())(message("1,a,b")) == ["1", "a,b"]


def test_a_users_decoder_raises_payload_errors_only() -> None:
    """Its own PayloadError goes through; anything else becomes one, with the exception as its cause."""
    with pytest.raises(DecodeError, match="no fields"):
        decode(Csv(), "")
    with pytest.raises(DecodeError, match=r"could not be decoded \(ValueError\)") as caught:
        decode(Csv(), "x")
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.message_id == "m-1"


def test_unwrap_comes_before_decoding() -> None:
    """The decoder sees what was inside the envelope, and a broken unwrap is a payload error."""

    def strip(outer: Message) -> Message:
        return msgspec.structs.replace(outer, body=outer.body.partition(":")[2])

    def fail(outer: Message) -> Message:
        raise LookupError(outer.id)

    assert decoder_for(list[int], unwrap=strip)(message("v1:[1]")) == [1]
    with pytest.raises(DecodeError):
        decoder_for(list[int], unwrap=fail)(message("[1]"))


@dataclasses.dataclass
class WireLine:
    """A nested dataclass with JSON in camel case."""

    unit_price: Decimal
    how_many: int = 1


NewLine = NewType("NewLine", WireLine)


@dataclasses.dataclass
class WireOrder:
    """A dataclass that is in camel case in JSON, with dataclasses in every kind of container."""

    order_id: str
    order_lines: list[WireLine] = dataclasses.field(default_factory=list)
    best_line: WireLine | None = None
    by_name: dict[str, WireLine] = dataclasses.field(default_factory=dict)
    first_two: tuple[WireLine, int] | None = None
    all_lines: tuple[WireLine, ...] = ()
    line_or_text: Sequence[WireLine] | str = "none"
    noted_line: Annotated[WireLine, "a note"] | None = None
    new_line: NewLine | None = None
    shout_id: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Check and derive, as any dataclass may."""
        if self.order_id == SECRET:
            raise ValueError(SECRET)
        self.shout_id = self.order_id.upper()


class TestRename:
    """``rename="camel"``: the JSON says ``orderId``, the dataclass ``order_id``."""

    def decode(self, body: str) -> Any:
        """Decode a WireOrder from camel case."""
        return decoder_for(WireOrder, rename="camel")(message(body))

    @pytest.mark.parametrize("name", [TypeAliasType("Maybe", WireLine | None), NewLine])
    def test_a_name_of_a_type_is_that_type(self, name: Any) -> None:
        """Of a ``type`` statement, with which Python 3.12 names unions, or of a NewType."""
        decoder = decoder_for(name, rename="camel")
        assert decoder(message('{"unitPrice": 1.10}')) == WireLine(Decimal("1.10"))

    def test_a_name_of_a_type_that_contains_itself_is_refused(self) -> None:
        """As a ``type`` of any JSON does. Stood in for: Python 3.11 has none that contains itself."""

        class TypeAliasType:
            @functools.cached_property
            def __value__(self) -> Any:
                return list[self]  # type: ignore[valid-type]

        payload = dataclasses.make_dataclass("Payload", [("any_json", TypeAliasType())])
        with pytest.raises(ConfigurationError, match="it contains itself"):
            decoder_for(payload, rename="camel")

    def test_names_are_renamed_wherever_a_dataclass_stands(self) -> None:
        """In lists, dicts, tuples, unions and Annotated; numbers stay exact, defaults and checks apply."""
        line, made = '{"unitPrice": 1.10, "howMany": 3}', WireLine(Decimal("1.10"), 3)
        body = f"""{{"orderId": "o", "orderLines": [{line}], "bestLine": {line}, "byName": {{"some_name": {line}}},
            "firstTwo": [{line}, 7], "allLines": [{line}, {{"unitPrice": 2}}], "lineOrText": [{line}],
            "notedLine": {line}, "newLine": {line}}}"""
        order = self.decode(body)
        assert order == WireOrder(
            order_id="o",
            order_lines=[made],
            best_line=made,
            by_name={"some_name": made},
            first_two=(made, 7),
            all_lines=(made, WireLine(Decimal(2))),
            line_or_text=[made],
            noted_line=made,
            new_line=NewLine(made),
        )
        assert str(order.best_line.unit_price) == "1.10"
        assert order.shout_id == "O"

    def test_defaults_are_the_dataclass_own(self) -> None:
        """An absent field gets its default or a fresh one from its factory; null is not absent."""
        first, second = self.decode('{"orderId": "o", "lineOrText": "t"}'), self.decode('{"orderId": "o"}')
        assert (first.line_or_text, second.line_or_text) == ("t", "none")
        assert first.order_lines == []
        assert first.order_lines is not second.order_lines
        with pytest.raises(ValidationError, match=r"\$\.orderLines: expected array, got null"):
            self.decode('{"orderId": "o", "orderLines": null}')

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ('{"order_id": "o"}', r"\$: missing required field 'orderId'"),
            (
                '{"orderId": "o", "orderLines": [{"unitPrice": []}]}',
                r"\$\.orderLines\[0\]\.unitPrice: expected decimal",
            ),
            (f'{{"orderId": "{SECRET}"}}', r"\$: refused by the type's own check \(ValueError\)"),
        ],
    )
    def test_errors_speak_of_the_names_in_the_json(self, body: str, text: str) -> None:
        """The sender reads the path with the names that he wrote, and one spelling is accepted, not two."""
        with pytest.raises(ValidationError, match=text) as caught:
            self.decode(body)
        assert SECRET not in str(caught.value)
        assert caught.value.__context__ is None

    @pytest.mark.parametrize("payload_type", [Created, dict[str, Any], str, Message, Page[WireLine], Tree])
    def test_what_cannot_be_renamed_is_refused_at_registration(self, payload_type: Any) -> None:
        """Types without dataclasses, generic and recursive ones are told what to do instead."""
        with pytest.raises(ConfigurationError, match="rename"):
            decoder_for(payload_type, rename="camel")

    def test_an_unknown_renaming_is_refused(self) -> None:
        """Only camel case is offered."""
        with pytest.raises(ConfigurationError, match='takes "camel" or None'):
            decoder_for(WireOrder, rename="kebab")  # type: ignore[arg-type] # that is what is tested

    def test_a_struct_renames_itself(self) -> None:
        """The library's own ``rename=`` needs nothing from us."""
        struct = msgspec.defstruct("Renamed", [("order_id", str)], rename="camel")
        assert decode(struct, '{"orderId": "o"}') == struct("o")


@pytest.mark.parametrize("kind", [object, dict[str, int], Any])
def test_a_byte_order_mark_is_skipped(kind: Any) -> None:
    """.NET writes one first; it carries no meaning."""
    assert decoder_for(kind)(message('\ufeff{"n": 7}')) == {"n": 7}
    assert decoder_for(str)(message("\ufeffx")) == "\ufeffx", "text is the body as it is"
    with pytest.raises(DecodeError, match="the body is empty"):
        decoder_for(kind)(message("\ufeff"))
