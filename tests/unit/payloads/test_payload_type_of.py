"""The payload type comes from the first parameter of whatever is registered as a handler."""

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Generic, ParamSpec, TypeAlias, TypeVar

import pytest
from typing_extensions import TypeAliasType
from typing_extensions import TypeVar as DefaultTypeVar

from postroom import BatchContext, MessageContext
from postroom.errors import ConfigurationError
from postroom.payloads import payload_type_of

_SPEC = importlib.util.spec_from_file_location("later_annotations", Path(__file__).with_name("later_annotations.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
later: Any = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = later  # dataclasses look their module up
_SPEC.loader.exec_module(later)


P = ParamSpec("P")


class Order:
    """A payload."""


async def handle(order: Order, ctx: Any) -> None:
    """Handle an order."""


def plain(order: Order, ctx: Any) -> None:
    """Handle an order in a thread."""


async def settings_first(settings: int, order: Order, ctx: Any) -> None:
    """Take something that a partial gives."""


async def unannotated(order, ctx):  # type: ignore[no-untyped-def] # that is what is tested
    """Say nothing of the payload."""


async def anything(*args: Any) -> None:
    """Take whatever comes."""


async def noted(order: Annotated[Order, "a note"], ctx: Any) -> None:
    """Carry a note in the annotation."""


Orders = TypeAliasType("Orders", list[Order])


async def named(orders: Orders, ctx: Any) -> None:
    """Name a type by a ``type`` statement's name."""


async def quoted(order: "Order", ctx: "Missing") -> None:  # type: ignore[name-defined] # noqa: F821 - that is what is tested
    """Quote the annotation; the context's leads nowhere."""


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate as decorators do."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return await function(*args, **kwargs)

    return wrapper


def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate as dependency injection does: one more argument comes first."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return await function(Order(), *args, **kwargs)

    return wrapper


Context: TypeAlias = "MessageContext[Any]"


async def session_first(session: int, order: Order, ctx: MessageContext[Any]) -> None:
    """Take something that a decorator gives."""


async def session_quoted(session: int, order: Order, ctx: "messages.MessageContext[a.B]") -> None:  # type: ignore[name-defined] # noqa: F821
    """Have a context that exists for type checkers only."""


async def session_named(session: int, order: Order, ctx: "Context", retries: int = 3) -> None:
    """Have a context with a name of its own."""


async def session_last(order: Order, ctx: MessageContext[Any], session: int) -> None:
    """Take what a decorator gives behind the context."""


async def session_batch(session: int, order: Order, batch: BatchContext[Any]) -> None:
    """Take a batch."""


class Service:
    """Handlers as objects are."""

    async def record(self, order: Order, ctx: Any) -> None:
        """Handle as a bound method."""

    async def __call__(self, order: Order, ctx: Any) -> None:
        """Handle as an object."""

    @staticmethod
    async def static(order: Order, ctx: Any) -> None:
        """Handle as a static method."""

    async def with_session(self, session: int, order: Order, ctx: MessageContext[Any]) -> None:
        """Take something that a decorator gives."""

    @classmethod
    async def shared(cls, order: Order, ctx: Any) -> None:
        """Handle as a class method."""


@pytest.mark.parametrize(
    "handler",
    [
        handle,
        plain,
        quoted,
        traced(handle),
        traced(traced(handle)),
        functools.partial(settings_first, 3),
        functools.partial(handle),
        traced(functools.partial(settings_first, 3)),
        Service().record,
        Service().static,
        Service.shared,
        Service(),
        traced(Service()),
    ],
    ids=lambda handler: getattr(handler, "__qualname__", type(handler).__name__),
)
def test_the_first_annotation_is_found_through_everything_that_wraps_a_handler(handler: Callable[..., Any]) -> None:
    """Functions, methods, partials, objects with ``__call__`` and decorated ones are all looked through."""
    assert payload_type_of(handler) is Order


@pytest.mark.parametrize(
    "function", [session_first, session_quoted, session_named, session_last, session_batch, Service().with_session]
)
def test_what_a_decorator_gives_is_not_the_payload(function: Callable[..., Any]) -> None:
    """The payload stands before the context, wherever that is."""
    assert payload_type_of(with_session(function)) is Order


def test_a_context_without_an_annotation_does_not_tell_what_a_decorator_gives() -> None:
    """Else what it gives would be decoded from the body, and the message acknowledged."""
    with pytest.raises(ConfigurationError, match=r"settings_first takes more than .* MessageContext.* payload="):
        payload_type_of(with_session(settings_first))


@pytest.mark.parametrize("handler", [unannotated, lambda order, ctx: None])
def test_without_an_annotation_the_payload_is_decoded_json(handler: Callable[..., Any]) -> None:
    """A handler that says nothing gets whatever the JSON is."""
    assert payload_type_of(handler) is object


def test_a_variable_number_of_arguments_counts_as_a_payload() -> None:
    """``*args: Any`` takes a payload like any other."""
    assert payload_type_of(anything) is Any


def test_notes_in_the_annotation_are_kept() -> None:
    """Annotated stays Annotated: the decoder reads the notes."""
    assert payload_type_of(noted) == Annotated[Order, "a note"]


def test_a_name_of_a_type_is_that_type() -> None:
    """So a batch handler sees its list, and a router its class."""
    assert payload_type_of(named) == list[Order]


def test_annotations_that_are_text_are_evaluated_where_the_function_was_defined() -> None:
    """Only the payload's annotation has to exist at run time; the context's may be for type checkers only."""
    assert payload_type_of(later.known) is later.Order
    assert payload_type_of(traced(later.known)) is later.Order
    assert payload_type_of(later.nested) == list[later.Order | None]


def test_a_local_type_is_found_where_the_handler_uses_it() -> None:
    """A name of the enclosing function can be read from the handler's closure."""
    handler, local = later.made_here()
    assert payload_type_of(handler) is local


def test_a_type_for_checkers_only_is_refused_with_the_way_out() -> None:
    """The error names the type, the handler, and ``payload=``."""
    with pytest.raises(ConfigurationError, match=r"OnlyForCheckers of handler unknown.*payload=") as caught:
        payload_type_of(later.unknown)
    assert isinstance(caught.value.__cause__, NameError)


def without() -> None:
    """Take nothing."""


def only_keywords(*, order: Order) -> None:
    """Take nothing by position."""


@pytest.mark.parametrize("handler", [without, only_keywords])
def test_a_handler_that_takes_no_payload_is_refused(handler: Callable[..., Any]) -> None:
    """It could never be called with a payload and a context."""
    with pytest.raises(ConfigurationError, match=r"takes no payload: write it as `async def \w+\(payload, ctx\)`"):
        payload_type_of(handler)


def test_a_class_is_not_a_handler() -> None:
    """Registering ``Service`` instead of ``Service()`` would make an object per message and handle nothing."""
    with pytest.raises(ConfigurationError, match=r"is a class: register an instance of it, Service\(\.\.\.\)"):
        payload_type_of(Service)


def test_a_callable_without_a_signature_is_refused_with_the_way_out() -> None:
    """Some built-ins cannot be looked into."""
    with pytest.raises(ConfigurationError, match="payload="):
        payload_type_of(getattr)


def hiding(function: Callable[P, Any]) -> Callable[P, Any]:
    """Decorate without ``functools.wraps``."""

    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the function."""
        return await function(*args, **kwargs)

    return wrapper


def test_a_decorator_that_hides_the_parameters_is_named() -> None:
    """Its own parameters say nothing of the payload."""
    with pytest.raises(ConfigurationError, match=r"hides its parameters: use functools\.wraps.*payload="):
        payload_type_of(hiding(handle))


T = TypeVar("T")
K = TypeVar("K")
B = TypeVar("B", bound=Order)
D = DefaultTypeVar("D", default=Order)


class Base(Generic[T]):
    """A service's base of handlers, which leaves the payload to those that are derived from it."""

    async def __call__(self, payload: T, ctx: Any) -> None:
        """Handle one."""

    async def on(self, payload: "Annotated[T, 'a note'] | None", ctx: Any) -> None:
        """Handle one, or none."""

    @traced
    async def several(self, payloads: list[T], ctx: Any) -> None:
        """Handle some."""

    @classmethod
    async def shared(cls, payload: T, ctx: Any) -> None:
        """Handle one without an instance."""

    async def own(self, payload: K, ctx: Any) -> None:
        """Have a variable that is not the class's."""


class OfOrders(Base[Order]):
    """Says it."""


class Keyed(Base[dict[K, T]], Generic[T, K]):
    """Has variables of its own, one of them with the same name."""


class Deep(Keyed[Order, str]):
    """Says it two classes above."""


class Open(Base[T]):
    """Leaves it open still."""


@dataclasses.dataclass(frozen=True)
class Frozen(Base[T]):
    """Does not keep what ``Frozen[Order]()`` says."""


class Bound(Base[B]):
    """Says what it is at least."""


class Default(Base[D]):
    """Says what it is if nothing else does."""


class OfDefault(Default):
    """Leaves it at the default."""


@pytest.mark.parametrize(
    ("handler", "wanted"),
    [
        (OfOrders(), Order),
        (OfOrders().__call__, Order),
        (functools.partial(OfOrders().on), Annotated[Order, "a note"] | None),
        (OfOrders().several, list[Order]),
        (Deep(), dict[str, Order]),
        (Deep().several, list[dict[str, Order]]),
        (Open[Order](), Order),
        (Base[Order]().several, list[Order]),
        (traced(Base[Order]()), Order),
        (OfOrders.shared, Order),
        (Base().own, K),
        (Bound(), B),
        (Default().several, list[Order]),
        (OfDefault(), Order),
        (Default[str](), str),
    ],
)
def test_the_type_variable_of_a_generic_class_is_what_the_class_was_made_with(handler: Any, wanted: Any) -> None:
    """Else any JSON would fit, and a handler that asks for orders would get dictionaries."""
    assert payload_type_of(handler) == wanted


@pytest.mark.parametrize(
    "handler", [Base(), Open().several, Frozen[Order](), traced(Base()), functools.partial(Open()), Open[Order].shared]
)
def test_a_type_variable_that_stays_open_is_refused(handler: Any) -> None:
    """Type checkers may know the type by other ways; the handler would get dictionaries."""
    with pytest.raises(ConfigurationError, match=r"leaves T open.*Derive a class.*payload="):
        payload_type_of(handler)
