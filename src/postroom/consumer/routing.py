"""Several kinds of messages on one queue, each with a handler of its own."""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Generic, Literal, Union, cast, get_args, get_origin, overload

import msgspec
from msgspec import UNSET, UnsetType
from typing_extensions import TypeVar

from postroom.consumer.callables import check_callable, check_handler, name_of
from postroom.consumer.context import MessageContext
from postroom.consumer.settings import Failure, OnError
from postroom.errors import ConfigurationError, Drop, PayloadError, Reject, Retry, ValidationError
from postroom.message import Message
from postroom.options import MAX_VISIBILITY
from postroom.payloads import Decoder, decoder_for, payload_type_of
from postroom.payloads.kinds import FieldReader, in_words
from postroom.payloads.problems import UNKNOWN_TAG, json_path, type_name
from postroom.types import C, P, R

Outcome = TypeVar("Outcome", bound="Awaitable[None] | None")
F = TypeVar("F", bound="Callable[..., Awaitable[None] | None]")

KindOf = Callable[[Message], str | None]
"""Says of which kind a message is; None where it does not say."""
Unknown = Literal["reject", "drop", "leave", "retry"]
_POLICIES: Final = ("reject", "drop", "leave", "retry")


class UnknownKind(PayloadError):
    """No handler is registered for the kind of a message, and ``Router(unknown="retry")`` lets it fail."""


def by_attribute(name: str) -> KindOf:
    """Return what reads the kind from a message attribute: ``Router(by_attribute("kind"))``.

    Raises:
        ConfigurationError: that is no name of an attribute.
    """
    _check_name(name, "by_attribute() takes the name of a message attribute")

    def kind_of(message: Message) -> str | None:
        found = message.message_attributes.get(name)
        return None if found is None else found.string_value

    return kind_of


def by_field(name: str) -> KindOf:
    """Return what reads the kind from a field of the JSON body: ``Router(by_field("type"))``.

    Only this field is looked at; the rest of the body is skipped. A body that is no JSON object has no kind.

    Raises:
        ConfigurationError: that is no name of a field.
    """
    _check_name(name, "by_field() takes the name of a field of the body")
    return FieldReader(name)


class Route(msgspec.Struct, frozen=True, eq=False):
    """One handler of a router."""

    function: Callable[..., Any]
    payload_type: Any
    decode: Decoder


class Routed(msgspec.Struct, frozen=True):
    """A payload, and the route that it takes."""

    route: Route
    payload: Any


class Router(Generic[C, R]):
    """Chooses a handler by the kind of each message. Register it as a consumer's handler.

        router: Router[Tenant, Database] = Router(by_attribute("kind"), unknown="reject")

        @router.handler("order.created")
        async def created(order: OrderCreated, ctx: MessageContext[Tenant, Database]) -> None: ...

        @router.handler("order.cancelled", "order.expired")
        async def gone(order: OrderGone, ctx: MessageContext[Tenant, Database]) -> None: ...

        orders.handler(router)

    Each handler's payload is decoded by the annotation of its own first parameter. Middleware and ``on_error`` see
    the payload, not the router.

    Args:
        kind: says of which kind a message is: ``by_attribute(...)``, ``by_field(...)``, or a function (Message) ->
            text. None: by the type of the payload, which must be tagged structs, or models with a discriminator.
        unknown: what becomes of a message of a kind that has no handler. ``"reject"``: it goes to the dead-letter
            queue, with the reason. ``"drop"``: it is deleted, and logged. ``"leave"``: it is visible again after
            ``delay`` seconds, for another consumer; no attempt is counted, but SQS counts the receive. ``"retry"``: it
            fails, with ``UnknownKind``: ``on_error`` is told, and the retry policy applies.
        delay: seconds for ``unknown="leave"``, up to 43,200.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(self, kind: KindOf | None = None, *, unknown: Unknown = "reject", delay: float = 60.0) -> None:
        if kind is not None:
            check_callable("Router(kind)", "(Message) -> kind", kind, 1)
        if unknown not in _POLICIES:
            text = f"Router(unknown=...) takes one of {', '.join(map(repr, _POLICIES))}; got {unknown!r}"
            raise ConfigurationError(text)
        if not _is_delay(delay):
            raise ConfigurationError(f"Router(delay=...) takes seconds from 0 to {MAX_VISIBILITY}; got {delay!r}")
        self._kind_of = kind
        self._unknown = unknown
        self._delay = delay
        self._routes: dict[Any, Route] = {}
        self._otherwise: Route | None = None
        self._union: Decoder | None = None
        self._by_field: Decoder | None = None
        self._started = False

    @overload
    def handler(
        self, function: Callable[[P, MessageContext[C, R]], Outcome], /
    ) -> Callable[[P, MessageContext[C, R]], Outcome]: ...

    @overload
    def handler(
        self, *kinds: str, payload: Any = UNSET
    ) -> Callable[[Callable[[P, MessageContext[C, R]], Outcome]], Callable[[P, MessageContext[C, R]], Outcome]]: ...

    def handler(self, *kinds: Any, payload: Any = UNSET) -> Any:
        """Register the handler of one or more kinds, and return it unchanged. Use it as a decorator.

        ``@router.handler("order.created")`` with a ``kind``; ``@router.handler`` without one, where the annotation
        says the type. Handlers are as a consumer's: ``async def``, ``def``, or an object with ``__call__``.

        Args:
            kinds: the kinds; the same one has one handler.
            payload: the payload type, instead of the annotation.

        Raises:
            ConfigurationError: a kind has a handler already, the payload type cannot be decoded, the function cannot
                be called as a handler, or a consumer of this router runs already.
        """
        if len(kinds) == 1 and callable(kinds[0]):
            return self._register((), UNSET, kinds[0])

        def register(function: Any) -> Any:
            return self._register(kinds, payload, function)

        return register

    def otherwise(
        self, function: Callable[[P, MessageContext[C, R]], Outcome], /
    ) -> Callable[[P, MessageContext[C, R]], Outcome]:
        """Register the handler of every kind that has none; then there are no unknown kinds. Use it as a decorator.

        Raises: as ``handler``.
        """
        self._refuse_if_started()
        if self._kind_of is None:
            raise ConfigurationError("@router.otherwise needs a kind: Router(by_attribute(...)) or by_field(...)")
        if self._otherwise is not None:
            raise ConfigurationError("this router has a handler for all other kinds already")
        self._otherwise = _route(function, UNSET)
        return function

    def include(self, other: "Router[C, R]") -> None:
        """Take over the handlers of another router, such as that of another module. How kinds are read stays ours.

        Raises:
            ConfigurationError: a kind has a handler here already, or one goes by types and the other does not.
        """
        self._refuse_if_started()
        if not isinstance(cast("object", other), Router):
            text = f"router.include() takes another Router; got {type(other).__name__}"
            raise ConfigurationError(text)
        kinds, fallback, by_type = other.contents()
        if by_type != (self._kind_of is None):
            raise ConfigurationError("a router by types and one by kinds cannot be put together")
        for kind, route in kinds.items():
            self._add(kind, route)
        if fallback is not None and self._otherwise is not None:
            raise ConfigurationError("both routers have a handler for all other kinds")
        self._otherwise = self._otherwise or fallback

    def contents(self) -> tuple[Mapping[Any, Route], Route | None, bool]:
        """Return the routes by kind, that of all other kinds, and whether the kinds are types."""
        return self._routes, self._otherwise, self._kind_of is None

    @property
    def routes(self) -> list[Route]:
        """All handlers."""
        found = {id(route): route for route in self._routes.values()}
        return [*found.values(), *([] if self._otherwise is None else [self._otherwise])]

    @property
    def kinds(self) -> list[str]:
        """The kinds that have a handler, or the names of their types."""
        return sorted(kind if isinstance(kind, str) else type_name(kind) for kind in self._routes)

    def start(self) -> None:
        """Refuse further handlers: a consumer begins.

        Raises:
            ConfigurationError: there is none, or the types cannot be told apart.
        """
        if not self.routes:
            raise ConfigurationError('this router has no handlers; register one with @router.handler("kind")')
        if self._kind_of is None:
            self._union = self._union or self._decoder_of_types()
        self._started = True

    def decode(self, message: Message) -> Routed:
        """Return the payload of a message, and the route that it takes.

        Raises:
            PayloadError: the body is not what the handler of its kind asks for (``UnknownKind``: there is none).
            Reject, Drop, Retry: there is none, and the policy says so.
        """
        if self._kind_of is None:
            return self._decode_by_type(message)
        kind = self._kind_of(message)
        route = self._routes.get(kind, self._otherwise)
        if route is None:
            raise self._problem(kind, message)
        return Routed(route, route.decode(message))

    def __call__(self, payload: Any, ctx: MessageContext[C, R]) -> Awaitable[None] | None:
        """Call the handler of a message as a unit test does; a consumer composes it with its middleware instead."""
        routed = payload if isinstance(payload, Routed) else self.decode(ctx.message)
        outcome: Awaitable[None] | None = routed.route.function(routed.payload, ctx)
        return outcome

    def _decode_by_type(self, message: Message) -> Routed:
        if self._union is None:
            self._union = self._decoder_of_types()
        try:
            payload = self._union(message)
        except ValidationError as error:
            if not self._is_unknown(error, message):
                raise
            problem = self._problem(None, message)
        else:
            return Routed(self._route_of(payload), payload)
        raise problem

    def _is_unknown(self, error: ValidationError, message: Message) -> bool:
        """Whether the payload itself has an unknown tag. Of a part of it that has one the kind is known."""
        if self._by_field is not None:
            try:
                self._by_field(message)
            except ValidationError as tagged:
                error = tagged
        return UNKNOWN_TAG in str(error) and error.path in self._places_of_tags()

    def _places_of_tags(self) -> set[str]:
        configs = (getattr(kind, "__struct_config__", None) for kind in self._routes)
        return {"$", "$[0]", *(json_path([config.tag_field]) for config in configs if config is not None)}

    def _route_of(self, payload: Any) -> Route:
        route = self._routes.get(type(payload))
        if route is None:
            route = next(each for kind, each in self._routes.items() if isinstance(payload, kind))
        return route

    def _decoder_of_types(self) -> Decoder:
        types = tuple(self._routes)
        try:
            union: Any = types[0] if len(types) == 1 else Union[types]  # noqa: UP007 - made of a tuple
            self._by_field = _decoder_by_field(union, _fields_that_tell(types))
            return decoder_for(union)
        except ConfigurationError as error:
            text = (
                "give the structs tags (class OrderCreated(msgspec.Struct, tag=True)), or say which kind has which "
                'handler: Router(by_attribute("kind")), Router(by_field("type"))'
            )
            raise ConfigurationError(
                f"Router() cannot tell {', '.join(self.kinds)} apart: {error} Or {text}"
            ) from error

    def _register(self, kinds: tuple[Any, ...], payload: Any, function: Any) -> Any:
        self._refuse_if_started()
        check_handler(function)
        route = _route(function, payload)
        if self._kind_of is None:
            if kinds:
                text = f"@router.handler({kinds[0]!r}) needs to know where a kind is: Router(by_attribute('kind'))"
                raise ConfigurationError(text)
            if not isinstance(route.payload_type, type):
                text = f"handler {name_of(function)} of a router by types takes one class"
                raise ConfigurationError(f"{text}; got {type_name(route.payload_type)}")
            kinds = (route.payload_type,)
        elif not kinds:
            raise ConfigurationError(f'say of which kind: @router.handler("{name_of(function)}"), or @router.otherwise')
        for kind in kinds:
            if self._kind_of is not None and (not isinstance(kind, str) or not kind):
                raise ConfigurationError(f"@router.handler(...) takes kinds as texts; got {kind!r}")
            self._add(kind, route)
        return function

    def _add(self, kind: Any, route: Route) -> None:
        if kind in self._routes:
            shown = repr(kind) if isinstance(kind, str) else type_name(kind)
            raise ConfigurationError(f"kind {shown} has a handler already: {name_of(self._routes[kind].function)}")
        self._routes[kind] = route
        self._union = None

    def _refuse_if_started(self) -> None:
        if self._started:
            raise ConfigurationError("a consumer of this router was started: register handlers before")

    def _problem(self, kind: str | None, message: Message) -> Exception:
        if kind is None:
            text = "the message does not say of which kind it is, or of none that has a handler"
        else:
            text = f"no handler for messages of kind {in_words(kind)}"
        match self._unknown:
            case "reject":
                return Reject(text)
            case "drop":
                return Drop(text)
            case "leave":
                return Retry(text, delay=self._delay)
            case _:
                return UnknownKind(f"{text} (handlers: {', '.join(self.kinds)})", message_id=message.id)


def _decoder_by_field(union: Any, fields: Sequence[str]) -> Decoder | None:
    """Return what knows an unknown kind of pydantic's models, which are tried one after the other otherwise.

    It only judges what none of them takes: it would refuse bodies without the field, which may have a default. With
    several such fields it is not known which of them names the kind.
    """
    if len(fields) != 1:
        return None
    from pydantic import Field  # noqa: PLC0415 - an extra

    try:
        return decoder_for(Annotated[union, Field(discriminator=fields[0])])
    except ConfigurationError:  # a validator comes before the field
        return None


def _fields_that_tell(types: Sequence[Any]) -> list[str]:
    """Return the fields by which models of pydantic's say which they are: a Literal with other values in each."""
    found: list[str] = []
    models = [getattr(kind, "model_fields", {}) for kind in types]
    for name in models[0] if len(models) > 1 else ():
        fields = [each.get(name) for each in models]
        hints = [getattr(each, "annotation", None) for each in fields]
        values = [value for hint in hints for value in get_args(hint)]
        aliases = [getattr(each, "validation_alias", None) for each in fields]
        alike = all(each is None or isinstance(each, str) for each in aliases) and len(set(aliases)) == 1
        if alike and all(get_origin(hint) is Literal for hint in hints) and len(set(values)) == len(values):
            found.append(str(name))
    return found


def router_of(handler: object) -> Router[Any, Any] | None:
    """Return a handler that is a router; None for any other."""
    return cast("Router[Any, Any]", handler) if isinstance(handler, Router) else None


def _check_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{what}; got {name!r}")


def _is_delay(delay: object) -> bool:
    return isinstance(delay, int | float) and not isinstance(delay, bool) and 0 <= delay <= MAX_VISIBILITY


def _route(function: Any, payload: Any) -> Route:
    kind = payload_type_of(function) if isinstance(payload, UnsetType) else payload
    return Route(function, kind, decoder_for(kind))


class RouterDecoder(Decoder):
    """Decodes a message into the payload of its kind's handler, with its route."""

    __slots__ = ("_decode",)

    def __init__(self, router: Router[Any, Any]) -> None:
        self._decode = router.decode

    def __call__(self, message: Message, /) -> Any:
        """Decode the payload of one message."""
        return self._decode(message)


def unrouted_failures(on_error: OnError) -> OnError:
    """Return an error handler that is told of payloads without their routes."""

    def told(failure: Failure) -> Awaitable[None] | None:
        payload = failure.payload
        if isinstance(payload, Routed):
            failure = dataclasses.replace(failure, payload=payload.payload)
        return on_error(failure)

    return told


def dispatch(handles: Mapping[int, Callable[[Any, Any], Awaitable[None]]]) -> Callable[[Any, Any], Awaitable[None]]:
    """Return what calls the composed handler of a payload's route."""

    def handle(routed: Any, ctx: Any) -> Awaitable[None]:
        chosen = cast("Routed", routed)
        return handles[id(chosen.route)](chosen.payload, ctx)

    return handle
