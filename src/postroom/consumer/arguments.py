"""The arguments of a consumer, each checked when it is made: what cannot work is told with what to write."""

import difflib
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, cast, get_origin

from msgspec import UNSET
from typing_extensions import TypeVar

from postroom.checking import check_queue, is_error_class, shown
from postroom.consumer.callables import check_callable, check_provider, check_sync
from postroom.consumer.queues import Queues, as_queues
from postroom.errors import ConfigurationError
from postroom.fleet import Fleet
from postroom.message import Message
from postroom.options import Concurrency, Faults, PerCall, Polling, RetryPolicy, Shutdown, Visibility
from postroom.payloads import context_from_attributes
from postroom.resources import ResourcePool
from postroom.types import AckMode, C, OnInvalid

T = TypeVar("T")
_EXAMPLES: Final[dict[type, str]] = {
    Concurrency: "Concurrency(total=10)",
    Polling: "Polling(wait=20)",
    Visibility: "Visibility(timeout=60)",
    RetryPolicy: "RetryPolicy(attempts=5)",
    Shutdown: "Shutdown(within=25)",
    Faults: "Faults(breaker_after=10)",
}


def resolver_of(
    context: Callable[[Message], C | Awaitable[C]] | type[C] | None,
) -> Callable[[Message], C | Awaitable[C]] | None:
    """Return ``context=`` as a function; a class is filled from the attributes."""
    if _is_class(context):
        return context_from_attributes(cast("type[C]", context))
    return context


def checked_queues(queue: object, queues: object, fleet: object) -> Queues | None:
    """Return several queues, or None for the one that is named."""
    if queues is None:
        if not isinstance(queue, str) or not queue.strip():
            text = f"Consumer(queue) takes the name, URL or ARN of a queue; got {queue!r}"
            if queue is UNSET:
                text = 'Consumer() needs a queue: write Consumer("orders"), or Consumer(queues=["orders", "invoices"])'
            elif isinstance(queue, Iterable) and not isinstance(queue, str):
                text = f"{text}; several go into Consumer(queues=...)"
            raise ConfigurationError(text)
        check_queue("Consumer(queue)", queue)
        return None
    if queue is not UNSET:
        text = f"Consumer({queue!r}, queues=...) names queues in two places: put all of them into queues="
        raise ConfigurationError(text)
    several = as_queues(queues)
    if isinstance(fleet, Fleet) and fleet.name is None:
        text = "a fleet over several queues needs a name of its own, which a change of the list leaves alone"
        raise ConfigurationError(f'{text}: write Fleet(..., name="sales")')
    return several


def checked_fleet(fleet: object, context: object) -> Fleet | None:
    """Return ``fleet=``."""
    if fleet is None:
        return None
    if not isinstance(fleet, Fleet):
        text = f'fleet= takes a Fleet, such as Fleet("valkey://cache:6379", per_tenant=20); got {fleet!r}'
        raise ConfigurationError(text)
    if context is None:
        raise ConfigurationError("fleet= limits tenants, and without context= there are none: pass context= too")
    return fleet


def check_resources(context: object, resources: object, cleanup: object) -> None:
    """Refuse what cannot work of ``context=``, ``resources=`` and ``cleanup=``."""
    if resources is not None and context is None:
        text = "Consumer(resources=...) needs context=...: resources are leased for a context"
        raise ConfigurationError(text)
    if context is not None and not _is_class(context):
        _check_context(context)
    if resources is not None and not isinstance(resources, ResourcePool):
        check_provider(resources)
    if cleanup not in (None, UNSET) and (resources is None or isinstance(resources, ResourcePool)):
        text = "Consumer(cleanup=...) goes with resources=<async function>; a ResourcePool has its own cleanup="
        raise ConfigurationError(text)
    if cleanup not in (None, UNSET):
        check_callable("Consumer(cleanup=...)", "(resources)", cleanup, 1)


def _is_class(context: object) -> bool:
    """Whether it is a class, with types in brackets too."""
    return isinstance(get_origin(context) or context, type)


def _check_context(context: object) -> None:
    if isinstance(context, str):
        text = f"to read one attribute, write context=lambda message: message.attributes[{context!r}]"
        raise ConfigurationError(f"Consumer(context=...) takes a function or a class; {text}")
    if not callable(context):
        name = type(context).__name__
        text = f"Consumer(context=...) takes a function (Message) -> context, or a class; got an instance of {name}"
        raise ConfigurationError(f"{text}: to fill {name} from the message attributes, pass the class, context={name}")
    check_callable("Consumer(context=...)", "(Message) -> context, or a class", context, 1)


def _like(ack: object) -> AckMode:
    """Return the mode that was probably meant."""
    near = difflib.get_close_matches(str(ack).lower(), list(AckMode), n=1)
    return AckMode(near[0]) if near else AckMode.ON_SUCCESS


def check_functions(on_error: object, middleware: Iterable[object], observers: Iterable[object]) -> None:
    """Refuse what cannot be called as it will be."""
    if on_error is not None:
        call = "(Failure), which may raise Retry, Reject or Drop"
        if is_error_class(on_error):
            text = f"Consumer(on_error=...) takes a function {call}; got {shown(on_error)} itself"
            raise ConfigurationError(text)
        check_callable("Consumer(on_error=...)", call, on_error, 1)
    for layer in middleware:
        check_callable("Consumer(middleware=...)", "(payload, ctx, call_next)", layer, 3)
    for observer in observers:
        check_sync("Consumer(observers=...)", "(Event)", observer)


def checked_mode(ack: object) -> AckMode:
    """Return ``ack=``; its text will do."""
    try:
        return AckMode(cast("str", ack))
    except ValueError:
        modes = ", ".join(str(mode) for mode in AckMode)
        text = (
            f"Consumer(ack=...) takes an AckMode: write ack=AckMode.{_like(ack).name}, or one of {modes}; got {ack!r}"
        )
        raise ConfigurationError(text) from None


def checked_invalid(invalid: object) -> OnInvalid:
    """Return ``invalid=``; its text will do."""
    try:
        return OnInvalid(cast("str", invalid))
    except ValueError:
        modes = ", ".join(str(mode) for mode in OnInvalid)
        text = f"Consumer(invalid=...) takes an OnInvalid: write invalid=OnInvalid.REJECT, or one of {modes}"
        raise ConfigurationError(f"{text}; got {invalid!r}") from None


def checked(name: str, value: T, kind: type[T]) -> T:
    """Return an argument that is a group of options."""
    if not isinstance(value, kind):
        text = f"Consumer({name}=...) takes {kind.__name__}(...): write {name}={_EXAMPLES[kind]}; got {value!r}"
        raise ConfigurationError(text)
    return value


def per_call(name: str, value: PerCall[T], kind: type[T]) -> PerCall[T]:
    """Return an argument that is a group of options, or a function that chooses one for each message."""
    if isinstance(value, kind):
        return value
    if not callable(value) or isinstance(value, type):
        text = f"Consumer({name}=...) takes {kind.__name__}(...), or a function (Call) that returns one"
        text = f"{text}: write {name}={_EXAMPLES[kind]}; got {value!r}"
        raise ConfigurationError(text)
    check_sync(f"Consumer({name}=...)", "(Call)", value)
    return value
