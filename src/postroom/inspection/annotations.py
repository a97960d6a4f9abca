"""What annotations say of contexts and resources: what a handler expects, and what it is going to get."""

import functools
import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from types import UnionType
from typing import Any, Final

from postroom.consumer import BatchContext, Consumer, MessageContext
from postroom.consumer.batching import BatchHandler
from postroom.consumer.routing import router_of
from postroom.payloads.attributes import AttributeResolver

_HELD: Final = (AbstractAsyncContextManager, AsyncIterator, AsyncGenerator, Awaitable)
"""What a provider may say that it returns, with its resources as the first argument."""


def functions_of(consumer: Consumer[Any, Any]) -> list[Any]:
    """Return what the user wrote: one function, those of a router, or that of batches."""
    handler: Any = consumer.handles
    router = router_of(handler)
    if router is not None:
        return [route.function for route in router.routes]
    if handler is None:
        return []
    return [handler.function if isinstance(handler, BatchHandler) else handler]


def expected_by(handler: Callable[..., Any]) -> tuple[Any, Any]:
    """Return C and R of a handler's ``ctx: MessageContext[C, R]``; None for what it does not say."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    try:
        hints = typing.get_type_hints(handler)
        parameters = list(inspect.signature(handler).parameters)
    except Exception:  # an annotation that exists for type checkers only
        return None, None
    hint = hints.get(parameters[1]) if len(parameters) > 1 else None
    if typing.get_origin(hint) not in {MessageContext, BatchContext}:
        return None, None
    context, resources, *_ = (*typing.get_args(hint), None, None)
    return context, resources


def resolved_context(consumer: Consumer[Any, Any]) -> Any:
    """Return what ``context=`` makes: a class, or what the function says it returns. None: it does not say."""
    resolver: Any = consumer.settings.resolver
    if resolver is None:
        return type(None)
    if isinstance(resolver, AttributeResolver):
        return resolver.context_type  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return _returned(resolver)


def opened_by(provider: Any) -> Any:
    """Return what a provider says that it opens. None: it does not say."""
    while isinstance(provider, functools.partial):
        provider = provider.func
    returned = _returned(provider)
    if typing.get_origin(returned) in _HELD or typing.get_origin(returned) is Coroutine:
        arguments = typing.get_args(returned)
        return arguments[-1 if typing.get_origin(returned) is Coroutine else 0]
    return returned if inspect.iscoroutinefunction(provider) else None


def differ(expected: Any, given: Any) -> bool:
    """Whether two classes have nothing to do with each other. What is no plain class, as a protocol, is not judged."""
    wanted, got = _class_of(expected), _class_of(given)
    if {wanted, got} & {None, object, Any} or getattr(expected, "_is_protocol", False):
        return False
    return not issubclass(got, wanted)


def shown(kind: Any) -> str:
    """Return the name of a type, as an annotation has it."""
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).removeprefix("typing.")


def _class_of(kind: Any) -> Any:
    """Return the class of an annotation, without what is in its brackets. None for anything else, as a union."""
    origin = typing.get_origin(kind)
    plain = kind if origin is None else origin
    return plain if isinstance(plain, type) and plain is not UnionType else None


def _returned(function: Any) -> Any:
    if not inspect.isroutine(function):
        kind: type[Any] = function.__class__
        function = getattr(kind, "__call__", None)  # noqa: B004 - what it says, not whether there is one
    try:
        return typing.get_type_hints(function).get("return")
    except Exception:  # a callable without annotations that can be read
        return None
