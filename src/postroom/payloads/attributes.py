"""A context straight from the message attributes: ``context=Tenant``.

Message attributes are input from everyone who may call SendMessage. So every value is checked before it becomes part of
a context: an id has to look like one, a number is a whole number in its one canonical spelling, an enumeration has
the value. Nothing is guessed, and no value is quoted in an error.
"""

import dataclasses
import enum
import inspect
import re
import types
import typing
import uuid
from collections.abc import Callable, Collection, Mapping
from operator import itemgetter
from typing import Any, Final, Generic, NamedTuple

import msgspec
from typing_extensions import TypeVar

from postroom.checking import check_plain, listed
from postroom.display import display_key
from postroom.errors import ConfigurationError, ContextError, MissingAttribute
from postroom.message import Message, MessageAttribute, names_of
from postroom.payloads.decoder import Unwrap, unwrapped
from postroom.payloads.generics import arguments_of, filled_in
from postroom.payloads.problems import type_name, unaliased

T_co = TypeVar("T_co", covariant=True)

SAFE_ID: Final = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}"
"""What a text attribute must look like unless ``attribute(pattern=...)`` says otherwise: ASCII, at most 128
characters, no slash, quote, space or control character, no leading dot. Safe in a log line, a metric label or the
name of a file; still no proof that such a tenant exists: the provider decides that."""

_MOST_KNOWN: Final = 16_384
"""Contexts that a resolver keeps; the oldest go first."""
_MOST_WAYS: Final = 64
"""Combinations of attributes of which it is remembered which are looked at."""
_Way = tuple[tuple[str, ...], Callable[[Mapping[str, MessageAttribute]], object] | None]
"""The fields that a message has, and what looks up their attributes; None if each takes another look."""
_NOTE: Final = "attribute"
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
_NAME: Final = re.compile(r"(?!(?i:aws|amazon)\.)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


@dataclasses.dataclass(frozen=True, slots=True)
class _Note:
    """What ``attribute()`` says of a field."""

    name: str | None = None
    pattern: str | None = None
    choices: tuple[str, ...] | None = None


def attribute(
    name: str | None = None,
    *,
    pattern: str | None = None,
    choices: Collection[str] | None = None,
    default: Any = dataclasses.MISSING,
) -> Any:
    r"""Say which message attribute a field of a context comes from, and what it may contain.

    Write it in the annotation, which type checkers read exactly and Structs and NamedTuples understand as well:

        @dataclass(frozen=True)
        class Tenant:
            tenant_id: Annotated[str, attribute("tenantId", pattern=r"t-\\d+")]
            region: Annotated[str, attribute(choices=["eu-west-1", "us-east-1"])] = "eu-west-1"

    In a dataclass ``tenant_id: str = attribute("tenantId")`` works, too.

    Args:
        name: the name of the attribute; by default the field's name, exact or in camel case.
        pattern: a regular expression that the whole value must match, instead of ``SAFE_ID``. Unprintable
            characters are refused in any case. Text fields only.
        choices: the values that exist, instead of a pattern. Text fields only.
        default: the field's default, when this stands at the default's place in a dataclass.

    Raises:
        ConfigurationError: the name is none that SQS allows, the pattern does not compile, or both a pattern and
            choices are given.
    """
    if name is not None and not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f'attribute(name) takes text, such as attribute("tenantId"); got {name!r}')
    if choices is not None:
        choices = listed("attribute(choices=...)", f"choices=[{choices!r}]", choices)
    if pattern is not None and not isinstance(pattern, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"attribute(pattern=...) takes a regular expression as text; got {pattern!r}")
    if name is not None and (len(name) > 256 or _NAME.fullmatch(name) is None):
        raise ConfigurationError(
            f"attribute({name!r}): SQS allows 1 to 256 letters, digits, '_', '-' and '.' in the name of a message "
            "attribute, not beginning with 'AWS.' or 'Amazon.', see sqs-message-metadata.html"
        )
    if pattern is not None and choices is not None:
        raise ConfigurationError("attribute(): say either pattern= or choices=")
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ConfigurationError(f"attribute(pattern={pattern!r}) is no regular expression: {error}") from error
    note = _Note(name, pattern, None if choices is None else tuple(choices))
    return dataclasses.field(default=default, metadata={_NOTE: note})


class _Check(NamedTuple):
    """What the text of an attribute must be."""

    fits: Callable[[str], object]
    """Returns None for a text that is not allowed."""
    expected: str
    """Completes "the attribute is ..." for such a text. Never quotes it."""
    convert: Callable[[str], Any] | None = None
    """Makes the value of a text that fits; None for the text itself."""


class _Field(NamedTuple):
    """One field of a context: where it comes from, and what it may be."""

    name: str
    attribute: str
    alternative: str | None
    required: bool
    check: _Check

    @property
    def attributes(self) -> list[str]:
        return [name for name in (self.attribute, self.alternative) if name is not None]

    def problem(self, attributes: Mapping[str, MessageAttribute]) -> str | None:
        """Say what is wrong; the counterpart of ``AttributeResolver._read``, for a message that it refused."""
        found = [attributes[name] for name in self.attributes if name in attributes]
        if not found:
            return _IS_MISSING if self.required else None
        if len({attribute.string_value for attribute in found}) > 1:
            # Two spellings that differ are refused: choosing one would let a sender pick the check
            # that it passes.
            return "given twice, with different values"
        text = found[0].string_value
        if not text:
            return _IS_EMPTY if found[0].binary_value is None else _IS_BINARY
        return self.check.expected if self.check.fits(text) is None else None


_IS_MISSING: Final = "missing"
_IS_EMPTY: Final = "empty"
_IS_BINARY: Final = "Binary, expected String or Number"
_ABSENT: Final = frozenset({_IS_MISSING, _IS_EMPTY, _IS_BINARY})


class AttributeResolver(Generic[T_co]):
    """Makes a context of a message's attributes. Built by ``context_from_attributes``.

    The contexts made last are kept: equal attributes give the same instance, without another look at each of them.
    Not so for a class that does something when it is made: that is done for every message.
    """

    __slots__ = ("_cls", "_fields", "_known", "_ways", "names", "unwraps")

    def __init__(self, cls: type[T_co], fields: tuple[_Field, ...], unwrap: Unwrap | None) -> None:
        self._cls = cls
        self._fields = fields
        self.unwraps: Unwrap | None = unwrap
        """What takes messages out of an envelope first; None: they are read as they are."""
        # One instance for equal attributes: hashing and comparing it again is cheap, for every
        # lookup by tenant.
        self._known: dict[tuple[tuple[str, ...], object], T_co] | None = {} if _is_plain(cls) else None
        self._ways: dict[tuple[str, ...], _Way] = {}
        self.names: tuple[str, ...] = tuple(name for field in fields for name in field.attributes)
        """The names of the attributes that are looked at."""

    @property
    def context_type(self) -> type[T_co]:
        """The class that it fills."""
        return self._cls

    def named(self, name: str) -> T_co | None:
        """Return the context that logs show by this name, if the name tells it: its fields, joined by ``:``."""
        texts = name.split(":")
        required = sum(field.required for field in self._fields)
        if not required <= len(texts) <= len(self._fields):
            return None
        values = zip(self._fields, texts, strict=False)
        attributes = {field.attribute: MessageAttribute(string_value=text) for field, text in values}
        values_read = self._read(attributes)
        try:
            made = None if values_read is None else self._cls(**values_read)
        except Exception:  # whatever a class of the user's raises
            return None
        # Checked by the way back: a field with a ":" in it could be read in two ways.
        return made if made is not None and display_key(made) == name else None

    def __call__(self, message: Message, /) -> T_co:
        """Return the context of a message.

        Raises:
            MissingAttribute: one or more attributes are missing, empty or Binary; the text names all of them.
            ContextError: an attribute has a value that its field does not allow.
        """
        if self.unwraps is not None:
            message = unwrapped(self.unwraps, message, self.unwraps(message))
        attributes, known, key = message.message_attributes, self._known, None
        if known is not None:
            given = tuple(attributes)
            fields, look_up = self._ways.get(given) or self._learn(given)
            if look_up is not None:
                # With the fields: of two that may be missing each can have the other's text.
                key = fields, look_up(attributes)
                try:
                    context = known.get(key)
                except TypeError:  # the bytes of a Binary one may be of a type that has no hash
                    key = context = None
                if context is not None:
                    return context
        values = self._read(attributes)
        if values is None:
            raise self._problem(message)
        context = self._made(values, message)
        if known is not None and key is not None:
            # Bounded, because the values come from senders: each could be a new one.
            if len(known) >= _MOST_KNOWN:
                del known[next(iter(known))]
            known[key] = context
        return context

    def _learn(self, given: tuple[str, ...]) -> _Way:
        """Return which fields a message with these attributes has, and what looks them up."""
        found = [(field.name, [name for name in field.attributes if name in given]) for field in self._fields]
        names = [name for _, spellings in found for name in spellings]
        # Where both spellings are there, whether they agree is for the slow path to say.
        look_up = itemgetter(*names) if names and all(len(spellings) < 2 for _, spellings in found) else None
        # Bounded, because the names come from senders.
        if len(self._ways) >= _MOST_WAYS:
            self._ways.clear()
        way = self._ways[given] = tuple(field for field, spellings in found if spellings), look_up
        return way

    def _read(self, attributes: Mapping[str, MessageAttribute]) -> dict[str, Any] | None:
        """Return the values of the fields, or None if anything is wrong."""
        values: dict[str, Any] = {}
        for name, attribute, alternative, required, (fits, _, convert) in self._fields:
            found = attributes.get(attribute)
            if alternative is not None and (other := attributes.get(alternative)) is not None:
                if found is not None and found.string_value != other.string_value:
                    return None
                found = other
            if found is None:
                if required:
                    return None
                continue
            text = found.string_value
            if not text or fits(text) is None:
                return None
            values[name] = text if convert is None else convert(text)
        return values

    def write(self, context: Any) -> dict[str, str]:
        """Return the attributes that are read back as this context; those of fields that are None are left out.

        Raises:
            ConfigurationError: it is no instance of the class, or would not be read back as it is.
            ContextError: a field has a value that no consumer would accept.
        """
        if not isinstance(context, self._cls):
            text = f"a context of type {self._cls.__name__} is to be sent; got {type(context).__name__}"
            raise ConfigurationError(text)
        values = ((field.attribute, getattr(context, field.name)) for field in self._fields)
        texts = {name: str(_spelt(value)) for name, each in values if (value := _plain_value(each)) is not None}
        made = {name: MessageAttribute(string_value=text) for name, text in texts.items()}
        # Read back before it is sent: otherwise the consumer finds out, and the message is a dead
        # letter.
        if self._fields_of(Message(id="", body="", message_attributes=made)) != context:
            text = (
                f"this {self._cls.__name__} would be read back as another one from the attributes {sorted(texts)}: "
                "pass a function Sender(context=...) that returns the attributes"
            )
            raise ConfigurationError(text)
        return texts

    def _fields_of(self, message: Message) -> T_co:
        values = self._read(message.message_attributes)
        if values is None:
            raise self._problem(message)
        return self._made(values, message)

    @property
    def is_plain(self) -> bool:
        """Whether no code of the user's runs when a context is made."""
        return self._known is not None and self.unwraps is None

    def _made(self, values: dict[str, Any], message: Message) -> T_co:
        try:
            context = self._cls(**values)
            # A frozen class may hold a list in spite of its annotations.
            hash(context)  # it is the key of its tenant
        except Exception as error:
            text = f"{self._cls.__name__} refused the message attributes ({type(error).__name__})"
            raise ContextError(text, message_id=message.id) from error
        return context

    def _problem(self, message: Message) -> ContextError:
        """Collect everything that is wrong, so that a sender needs one look and not one try for each."""
        found: dict[str, list[_Field]] = {}
        for field in self._fields:
            problem = field.problem(message.message_attributes)
            if problem is not None:
                found.setdefault(problem, []).append(field)
        text = "; ".join(_sentence(fields, problem) for problem, fields in found.items())
        absent = [field for problem, fields in found.items() if problem in _ABSENT for field in fields]
        if not absent:
            return ContextError(text, message_id=message.id)
        text = f"{text} (attributes of this message: {names_of(message.message_attributes)})"
        return MissingAttribute(text, name=absent[0].attributes[-1], message_id=message.id)


def _sentence(fields: list[_Field], problem: str) -> str:
    names = [" or ".join(map(repr, field.attributes)) for field in fields]
    if len(names) == 1:
        return f"message attribute {names[0]} is {problem}"
    return f"message attributes {', '.join(names[:-1])} and {names[-1]} are {problem}"


def _is_plain(cls: Any) -> bool:
    """Whether an instance depends on nothing but the arguments: no code of the user's runs when it is made."""
    # It may look something up, or refuse: it has to run for every message.
    if hasattr(cls, "__post_init__"):
        return False
    if dataclasses.is_dataclass(cls):
        code = getattr(vars(cls).get("__init__"), "__code__", None)
        generated = code is not None and code.co_filename == "<string>" and cls.__new__ is object.__new__
        return generated and all(field.default_factory is dataclasses.MISSING for field in dataclasses.fields(cls))
    if issubclass(cls, msgspec.Struct):
        return all(field.default_factory is msgspec.NODEFAULT for field in msgspec.structs.fields(cls))
    return bool(cls.__bases__ == (tuple,))  # a NamedTuple, and not a subclass of one


def attribute_names(resolver: object) -> tuple[str, ...] | None:
    """Return the names of the attributes that a resolver looks at; None if it cannot be asked."""
    return resolver.names if isinstance(resolver, AttributeResolver) else None


def context_from_attributes(cls: type[T_co], *, unwrap: Unwrap | None = None) -> AttributeResolver[T_co]:
    """Build a resolver that fills a context class from the message attributes by name.

    Fields may be ``str``, ``int``, ``bool`` (``true`` or ``false``), ``uuid.UUID``, an Enum, a Literal, and
    ``| None`` of these. A field with a default is optional; the attribute may then be absent, but not wrong.
    ``attribute()`` names the attribute and says what is allowed; without it ``tenant_id`` is read from
    ``tenant_id`` or ``tenantId``, and a text must match ``SAFE_ID``.

    Args:
        cls: a frozen dataclass, a frozen msgspec Struct, or a NamedTuple. The instance is the key of its tenant's
            lane and resources, so it must be hashable and must not change.
        unwrap: takes the message out of an envelope first, such as ``unwrap_sns``.

    Raises:
        ConfigurationError: the class can change, cannot be hashed, or has a field that no attribute can fill.
    """
    if unwrap is not None:
        check_plain("context_from_attributes(unwrap=...)", "(Message) -> Message", unwrap)
    hints = _checked_hints(cls)
    fields = tuple(_field(cls, name, hints[name], note, required=required) for name, note, required in _declared(cls))
    if not fields:
        raise ConfigurationError(f"context={cls.__name__} has no fields: then every message is of one tenant")
    return AttributeResolver(cls, fields, unwrap)


def _checked_hints(cls: Any) -> dict[str, Any]:
    if isinstance(typing.get_origin(cls), type):
        raise ConfigurationError(
            f"context={type_name(cls)} is a class with types in brackets: derive a class from it, as "
            f"`class Context({type_name(cls)}): ...`, and pass that"
        )
    if not inspect.isclass(cls):
        raise ConfigurationError(f"context={cls!r} is no class: context_from_attributes takes a frozen dataclass")
    name = cls.__name__
    how: Any = getattr(cls, "__dataclass_params__", None) or getattr(cls, "__struct_config__", None)
    if how is None and not _is_named_tuple(cls):
        raise ConfigurationError(
            f"context={name} cannot be filled from message attributes: make it a frozen dataclass, a frozen msgspec "
            "Struct or a NamedTuple, or pass a function (Message) -> context"
        )
    if (how is not None and not (how.frozen and how.eq)) or getattr(cls, "__hash__", None) is None:
        raise ConfigurationError(
            f"context={name} is a key, so it must not change and must compare by value: "
            "make it @dataclass(frozen=True), a msgspec Struct with frozen=True, or a NamedTuple"
        )
    try:
        hints = _filled_hints(cls)
    except Exception as error:
        raise ConfigurationError(f"the annotations of context={name} cannot be read ({error})") from error
    for field, hint in hints.items():
        # One with a default is left out: the class gets that.
        if (hint is dataclasses.InitVar or isinstance(hint, dataclasses.InitVar)) and not hasattr(cls, field):
            raise ConfigurationError(
                f"field {field!r} of context={name} is an InitVar, which the context does not keep: make it a field, "
                "or give it a default"
            )
    return hints


def _filled_hints(cls: Any) -> dict[str, Any]:
    """Return the annotations of a class, those of generic bases with the types that it was derived with."""
    hints = typing.get_type_hints(cls, include_extras=True)
    homes = {field: base for base in reversed(cls.__mro__) for field in inspect.get_annotations(base)}
    return {field: filled_in(hint, arguments_of(cls, homes[field], {})) for field, hint in hints.items()}


def _is_named_tuple(cls: Any) -> bool:
    return issubclass(cls, tuple) and hasattr(typing.cast("type", cls), "_fields")


def _declared(cls: Any) -> list[tuple[str, Any, bool]]:
    """The fields of a context class: name, what its metadata say, whether it is required."""
    if dataclasses.is_dataclass(cls):
        fields = [field for field in dataclasses.fields(cls) if field.init]
        return [(field.name, field.metadata.get(_NOTE), _required(field)) for field in fields]
    if issubclass(cls, msgspec.Struct):
        return [(field.name, None, field.required) for field in msgspec.structs.fields(cls)]
    return [(name, None, name not in cls._field_defaults) for name in cls._fields]


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _field(cls: type, name: str, hint: Any, noted: Any, *, required: bool) -> _Field:
    where = f"field {name!r} of context={cls.__name__}"
    note = _Note(noted) if isinstance(noted, str) else noted
    kind, extras = _taken_apart(hint)
    for extra in extras:
        if _is_note(extra):
            note = extra.metadata[_NOTE]
            if extra.default is not dataclasses.MISSING:
                raise ConfigurationError(f"{where}: write the default behind the annotation, not in attribute()")
    note = note if isinstance(note, _Note) else _Note()
    camel = camel_case(name) if note.name is None else name
    return _Field(name, note.name or name, camel if camel != name else None, required, _check(kind, note, where))


def _is_note(extra: Any) -> bool:
    return isinstance(extra, dataclasses.Field) and _NOTE in extra.metadata


def camel_case(name: str) -> str:
    """Return a field's name as JSON often spells it: ``order_id`` is ``orderId``."""
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def _check(kind: Any, note: _Note, where: str) -> _Check:
    if kind is str:
        return _text_check(note, where)
    if note.pattern is not None or note.choices is not None:
        raise ConfigurationError(f"{where}: pattern= and choices= are for text; a Literal or an Enum says it by itself")
    if kind in _CHECKS:
        return _CHECKS[kind]
    if typing.get_origin(kind) is typing.Literal:
        # By its spelling: attributes are texts, and `Literal[1]` is sent as "1".
        values = [value for value in typing.get_args(kind) if value is not None]
        return _choice_check({_spelt(_plain_value(value)): value for value in values}, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _choice_check({_spelt(member.value): member for member in kind}, where)
    raise ConfigurationError(
        f"{where} cannot come from a message attribute: use str, int, bool, uuid.UUID, an Enum or a Literal"
    )


def _taken_apart(hint: Any) -> tuple[Any, list[Any]]:
    """Return a hint without names of types, NewType and ``| None``, and its notes, the outermost last.

    ``| None`` says nothing: an attribute that is there has a value.
    """
    notes: list[Any] = []
    while True:
        hint = unaliased(hint)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        members = [member for member in arguments if member is not types.NoneType]
        if origin is typing.Annotated:
            hint, *extras = arguments
            notes = extras + notes
        elif origin in {typing.Union, types.UnionType} and len(members) == 1:
            hint = members[0]
        elif hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        else:
            return hint, notes


def _text_check(note: _Note, where: str) -> _Check:
    if note.choices is not None:
        return _choice_check({choice: choice for choice in note.choices}, where)
    if note.pattern is None:
        return _Check(re.compile(SAFE_ID).fullmatch, f"not a safe id (it must match {SAFE_ID})")
    matches = re.compile(note.pattern).fullmatch

    def fits(text: str) -> object:
        # Whatever the pattern says: `.*` would let line breaks into logs and file names.
        return matches(text) if text.isprintable() else None

    return _Check(fits, f"not allowed (it must match {note.pattern} and be printable)")


def _choice_check(choices: Mapping[Any, Any], where: str) -> _Check:
    if not choices or len(set(choices.values())) < len(choices) or not all(isinstance(text, str) for text in choices):
        raise ConfigurationError(f"{where}: its choices must be texts or whole numbers that differ from each other")
    return _Check(choices.get, f"not one of {', '.join(map(repr, choices))}", choices.__getitem__)


def _plain_value(value: object) -> object:
    return value.value if isinstance(value, enum.Enum) else value


def _spelt(value: object) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else value


_CHECKS: Final[Mapping[Any, _Check]] = {
    # One spelling for each number: "007" and "7" would be two senders' names for one tenant. 18
    # digits fit into 64 bits.
    int: _Check(re.compile(r"0|-?[1-9][0-9]{0,17}").fullmatch, "not a whole number", int),
    bool: _Check({"true": 1, "false": 0}.get, "neither 'true' nor 'false'", "true".__eq__),
    uuid.UUID: _Check(
        re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch, "not a UUID", uuid.UUID
    ),
}
