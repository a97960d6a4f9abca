"""What a user hands over is checked when it is handed over, not by each message on its way to the dead letters."""

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self
from unittest.mock import AsyncMock, Mock

import pytest

from postroom import AckMode, Concurrency, ConfigurationError, Consumer, Faults, RetryPolicy, Visibility
from postroom.consumer.callables import is_async
from postroom.options import Call


def passing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate as most do: pass everything on."""

    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return wrapper


def passing_async(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate an async handler."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **options: Any) -> Any:
        return await function(*args, **options)

    return wrapper


def injecting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate as dependency injection does: one more argument is added."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **options: Any) -> Any:
        return await function(*args, "a database", **options)

    return wrapper


async def fine(payload: Any, ctx: Any) -> None:
    """Handle."""


def fine_in_a_thread(payload: Any, ctx: Any) -> None:
    """Handle."""


async def with_defaults(payload: Any, ctx: Any, retries: int = 3, *, name: str = "") -> None:
    """Handle."""


async def with_places(*everything: Any) -> None:
    """Handle."""


async def with_three(payload: Any, ctx: Any, database: Any) -> None:
    """Handle."""


async def one(payload: Any) -> None:
    """Handle without a context."""


async def nothing_positional(payload: Any, *, ctx: Any) -> None:
    """Handle with a context by name only."""


async def none_at_all() -> None:
    """Handle nothing."""


async def needs_a_name(payload: Any, ctx: Any, *, database: Any) -> None:
    """Handle with something that is not given."""


def generator(payload: Any, ctx: Any) -> Iterator[None]:
    """Have a stray yield."""
    yield


async def async_generator(payload: Any, ctx: Any) -> AsyncIterator[None]:
    """Have a stray yield."""
    yield


class Service:
    """Handlers of every kind of method."""

    async def handle(self, payload: Any, ctx: Any) -> None:
        """Handle."""

    async def short(self, payload: Any) -> None:
        """Look like a handler while it is not bound."""

    async def generate(self, payload: Any, ctx: Any) -> AsyncIterator[None]:
        """Have a stray yield."""
        yield

    @classmethod
    async def of_class(cls, payload: Any, ctx: Any) -> None:
        """Handle."""

    @staticmethod
    async def static(payload: Any, ctx: Any) -> None:
        """Handle."""

    decorated = passing_async(handle)

    @functools.singledispatchmethod
    def dispatched(self, payload: Any, ctx: Any) -> None:
        """Handle by the payload's type."""


class Called:
    """An object that is called."""

    async def __call__(self, payload: Any, ctx: Any) -> None:
        """Handle."""


class Generates:
    """An object with a call that is a generator."""

    def __call__(self, payload: Any, ctx: Any) -> Iterator[None]:
        """Have a stray yield."""
        yield


ACCEPTED = {
    "async function": fine,
    "plain function": fine_in_a_thread,
    "defaults": with_defaults,
    "places": with_places,
    "lambda": lambda payload, ctx: None,
    "partial": functools.partial(with_three, database=None),
    "partial of an object": functools.partial(Called()),
    "bound method": Service().handle,
    "decorated bound method": Service().decorated,
    "classmethod": Service.of_class,
    "staticmethod": Service.static,
    "staticmethod object": vars(Service)["static"],
    "object": Called(),
    "decorated": passing(fine),
    "decorated async": passing_async(fine),
    "injected": injecting(with_three),
    "mock": Mock(),
    "async mock": AsyncMock(),
    "built in": max,
}

REFUSED = {
    "one parameter": (one, r"cannot be called as \(payload, ctx\)"),
    "three parameters": (with_three, "'database'"),
    "no parameters": (none_at_all, "cannot be called"),
    "context by name": (nothing_positional, "cannot be called"),
    "needs a name": (needs_a_name, "'database'"),
    "lambda": (lambda payload: None, "cannot be called"),
    "partial": (functools.partial(fine, None), "cannot be called"),
    "method that is not bound": (Service.handle, r"consumer\.handler\(service\.handle\)"),
    "method that is not bound, of two": (Service.short, "not bound"),
    "decorated method that is not bound": (Service.decorated, "not bound"),
    "bound method that dispatches": (Service().dispatched, "singledispatchmethod: register a method"),
    "classmethod object": (vars(Service)["of_class"], "register it after the class"),
    "decorated one parameter": (passing(one), "cannot be called"),
    "generator": (generator, "generator function"),
    "async generator": (async_generator, "generator function"),
    "partial of a generator": (functools.partial(generator), "generator function"),
    "bound generator": (Service().generate, "generator function"),
    "object with a generator": (Generates(), "generator function"),
    "partial of such an object": (functools.partial(Generates()), "generator function"),
    "decorated generator": (passing(async_generator), "generator function"),
    "context manager": (contextmanager(generator), "generator function"),
    "async context manager": (asynccontextmanager(async_generator), "generator function"),
    "class": (Called, "register an instance"),
    "no function": ("handle", "takes a function"),
    "coroutine": (None, "takes a function"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_can_be_called_with_payload_and_context_is_a_handler(name: str) -> None:
    """By position: however it is made, and whatever it is called with besides."""
    handler: Any = ACCEPTED[name]
    assert Consumer("orders", payload=dict).handler(handler) is handler


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("said", [True, False], ids=["payload said", "payload by annotation"])
def test_what_cannot_work_as_a_handler_is_refused(name: str, said: bool) -> None:
    """With a text that says what is wrong; and the consumer takes another one afterwards."""
    handler: Any
    handler, text = REFUSED[name]
    orders = Consumer("orders", payload=dict) if said else Consumer("orders")
    with pytest.raises(ConfigurationError, match=text):
        orders.handler(handler)
    orders.handler(fine)


@pytest.mark.parametrize(
    ("function", "asynchronous"),
    [
        (fine, True),
        (fine_in_a_thread, False),
        (functools.partial(fine), True),
        (functools.partial(Called()), True),
        (Called(), True),
        (Service().handle, True),
        (vars(Service)["static"], True),
        (passing(fine), False),
        (passing_async(fine), True),
    ],
)
def test_async_is_told_from_plain_through_partials_and_objects(function: Any, asynchronous: bool) -> None:
    """What is not async runs in a thread, where a needless hop costs more than it seems."""
    assert is_async(function) is asynchronous


def tenant_of(message: Any) -> str:
    """Resolve."""
    return ""


async def layer(payload: Any, ctx: Any, call_next: Any) -> None:
    """Wrap."""
    await call_next(payload, ctx)


async def tell(event: Any) -> None:
    """Observe in the wrong way."""


@contextmanager
def plain_manager(tenant: Any) -> Iterator[object]:
    """Open in the wrong way."""
    yield object()


class NotAManager:
    """A connection that cannot be opened."""

    def __init__(self, tenant: Any) -> None: ...


class Manager(NotAManager):
    """A connection that can."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        return None


async def provide(tenant: Any) -> object:
    """Open."""
    return object()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"context": lambda: ""}, "context"),
        ({"context": lambda message, database: ""}, "context"),
        ({"context": async_generator}, "generator"),
        ({"context": 7}, "context"),
        ({"on_error": lambda: None}, "on_error"),
        ({"on_error": passing(generator)}, "generator"),
        ({"on_error": 7}, "on_error"),
        ({"middleware": [fine]}, r"\(payload, ctx, call_next\)"),
        ({"middleware": [layer, asynccontextmanager(async_generator)]}, "generator"),
        ({"observers": [lambda: None]}, "observers"),
        ({"observers": [tell]}, "not awaited"),
        ({"observers": ["print"]}, "observers"),
        ({"context": tenant_of, "resources": generator}, "asynccontextmanager"),
        ({"context": tenant_of, "resources": async_generator}, "asynccontextmanager"),
        ({"context": tenant_of, "resources": plain_manager}, "asynccontextmanager"),
        ({"context": tenant_of, "resources": functools.partial(async_generator, 1)}, "asynccontextmanager"),
        ({"context": tenant_of, "resources": Generates()}, "asynccontextmanager"),
        ({"context": tenant_of, "resources": NotAManager}, "cannot be opened"),
        ({"context": tenant_of, "resources": none_at_all}, r"\(context\)"),
        ({"context": tenant_of, "resources": "postgresql://a:secret@b/c"}, "provider"),
        ({"context": tenant_of, "resources": provide, "cleanup": none_at_all}, "cleanup"),
        ({"context": tenant_of, "resources": provide, "cleanup": 7}, "cleanup"),
        ({"ack": "sometimes"}, "on_success, always, manual"),
        ({"retry": RetryPolicy}, "retry"),
        ({"retry": 7}, "retry"),
        ({"faults": tell}, "not awaited"),
        ({"visibility": none_at_all}, "visibility"),
        ({"visibility": lambda tenant, message: Visibility()}, "visibility"),
    ],
)
def test_functions_that_cannot_work_are_refused_when_the_consumer_is_made(options: dict[str, Any], text: str) -> None:
    """With the name of the option in the text."""
    with pytest.raises(ConfigurationError, match=text):
        Consumer("orders", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"context": tenant_of, "resources": Manager},
        {"context": tenant_of, "resources": asynccontextmanager(async_generator), "payload": dict},
        {"context": tenant_of, "resources": provide, "cleanup": provide},
        {"context": tenant_of, "resources": lambda tenant: Manager([tenant])},
        {"middleware": [layer, lambda payload, ctx, call_next: call_next(payload, ctx)]},
        {"observers": [print, [].append], "on_error": tell},
        {"ack": "manual"},
        {"retry": lambda call: RetryPolicy(), "faults": lambda call: Faults(), "visibility": lambda call: Visibility()},
    ],
)
def test_functions_that_can_work_are_taken(options: dict[str, Any]) -> None:
    """What is not decidable before it is called is not refused."""
    if "payload" in options:  # async_generator takes two
        options = {**options, "resources": functools.partial(options["resources"], 1)}
    Consumer("orders", **options)


def test_a_policy_is_a_value_or_a_function_of_the_call() -> None:
    """A premium tenant is retried sooner."""

    def retry(call: Call) -> RetryPolicy:
        return RetryPolicy(base=0.1 if call.tenant == "premium" else 10)

    assert Consumer("orders", retry=retry).queue == "orders"


def test_concurrency_is_checked_when_it_is_adjusted() -> None:
    """What is no Concurrency is refused; what is one counts at the next start."""
    orders = Consumer("orders", concurrency=Concurrency(total=4))
    with pytest.raises(ConfigurationError, match="concurrency"):
        orders.adjust(8)  # type: ignore[arg-type]
    orders.adjust(Concurrency(total=8))


def test_a_secret_in_a_wrong_argument_is_not_quoted() -> None:
    """A DSN where a provider should be: the text names its type only."""
    with pytest.raises(ConfigurationError) as caught:
        Consumer("orders", context=tenant_of, resources="postgresql://a:secret@b/c")  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_a_mode_is_taken_by_its_name() -> None:
    """An AckMode is a string, too."""
    Consumer("orders", ack=AckMode.MANUAL)
