"""What a consumer's own arguments say: its handler, its types, its times. Nothing here asks anything of the network."""

import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final

from postroom.consumer import BatchContext, Consumer, MessageContext
from postroom.consumer.batching import BatchHandler
from postroom.consumer.callables import is_async, name_of
from postroom.consumer.routing import router_of
from postroom.inspection.findings import Deployment, Finding, error, ok, unknown, warning
from postroom.options import MAX_VISIBILITY, Visibility
from postroom.payloads import payload_type_of
from postroom.payloads.attributes import AttributeResolver

_MARGIN: Final = 2.0
"""Seconds that a process needs beyond its consumer's stop: Python's own end, and the other tasks of the loop."""
_SHORTEST: Final = 10.0
"""Seconds of visibility below which a blocked event loop costs messages: the heartbeat has a few seconds to get in."""


def look_at_code(consumer: Consumer[Any, Any], deployment: Deployment) -> Iterator[Finding]:
    """Yield what can be known without a network."""
    if consumer.handles is None:
        yield error("handler", "no handler is registered", "register one with @consumer.handler")
    else:
        for function in _functions(consumer.handles):
            yield from _handler(consumer, function)
            yield from _types(consumer, function)
    yield from _visibility(consumer)
    yield from _stop(consumer, deployment)


def _functions(handler: Any) -> list[Any]:
    """Return what the user wrote: one function, those of a router, or that of batches."""
    router = router_of(handler)
    if router is not None:
        return [route.function for route in router.routes]
    return [handler.function if isinstance(handler, BatchHandler) else handler]


def _handler(consumer: Consumer[Any, Any], handler: Callable[..., Any]) -> Iterator[Finding]:
    concurrency, name = consumer.settings.concurrency, name_of(handler)
    if is_async(handler):
        yield ok(
            "handler", f"async def {name}, up to {concurrency.total} at once, {concurrency.per_tenant} of a tenant"
        )
    elif concurrency.threads < concurrency.total:
        yield warning(
            "handler",
            f"def {name} runs in threads: {concurrency.threads} of the {concurrency.total} slots are used",
            f"say Concurrency(threads={concurrency.total}), or lower total to {concurrency.threads}",
        )
    else:
        yield ok("handler", f"def {name} in {concurrency.threads} threads, {concurrency.per_tenant} of a tenant")


def _types(consumer: Consumer[Any, Any], handler: Callable[..., Any]) -> Iterator[Finding]:
    """Say what the payload is validated against, and whether the context is the one that the handler expects."""
    payload = payload_type_of(handler)
    if payload in (object, Any, dict):
        text = "the payload is decoded JSON that no type validates"
        yield warning("payload", text, "annotate the handler's first parameter with a dataclass, Struct or model")
    else:
        yield ok("payload", f"validated as {_shown(payload)}")
    expected, given = _expected_context(handler), _resolved_context(consumer)
    if expected is None or given is None:
        return
    if _differ(expected, given):
        advice = f"annotate ctx: MessageContext[{_shown(given)}, ...], or resolve {_shown(expected)}"
        yield error("context", f"the handler expects {_shown(expected)}, context= makes {_shown(given)}", advice)
    else:
        yield ok("context", f"{_shown(given)}, as the handler expects")


def _expected_context(handler: Callable[..., Any]) -> Any:
    """Return C of a handler's ``ctx: MessageContext[C, R]``; None where it does not say."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    try:
        hints = typing.get_type_hints(handler)
        parameters = list(inspect.signature(handler).parameters)
    except Exception:  # an annotation that exists for type checkers only
        return None
    hint = hints.get(parameters[1]) if len(parameters) > 1 else None
    arguments = typing.get_args(hint)
    return arguments[0] if typing.get_origin(hint) in {MessageContext, BatchContext} and arguments else None


def _resolved_context(consumer: Consumer[Any, Any]) -> Any:
    resolver: Any = consumer.settings.resolver
    if resolver is None:
        return type(None)
    if isinstance(resolver, AttributeResolver):
        return resolver.context_type  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    try:
        return typing.get_type_hints(resolver).get("return")
    except Exception:  # a callable without annotations that can be read
        return None


def _differ(expected: Any, given: Any) -> bool:
    """Whether two classes have nothing to do with each other. What is no plain class is not judged."""
    if not (isinstance(expected, type) and isinstance(given, type)) or object in (expected, given):
        return False
    return not issubclass(given, expected)


def _shown(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).removeprefix("typing.")


def _visibility(consumer: Consumer[Any, Any]) -> Iterator[Finding]:
    visibility, limit = consumer.settings.visibility, consumer.settings.concurrency.handler_timeout
    if not isinstance(visibility, Visibility) or callable(limit):
        text = "chosen for each message by a function"
        yield unknown("visibility", text, "test it with the longest handler: it is not looked at here")
        return
    own, most = f"{visibility.timeout:g} s", f"{visibility.max_extension:g} s"
    if limit is None and not visibility.heartbeat:
        yield error(
            "visibility",
            f"no heartbeat, and handlers have no limit: one that runs for more than {own} runs a second time meanwhile",
            f"leave out heartbeat=False, or say Concurrency(handler_timeout={max(1.0, visibility.timeout - 5):g})",
        )
    elif limit is None:
        yield warning(
            "visibility",
            f"handlers have no limit: one that hangs keeps its slot and its message for {most}",
            "say Concurrency(handler_timeout=...), a few times what the slowest good handler takes",
        )
    elif not visibility.heartbeat and limit >= visibility.timeout:
        yield error(
            "visibility",
            f"handlers may run for {limit:g} s, and without heartbeat a message is ours for {own}",
            f"leave out heartbeat=False, or say Visibility(timeout={min(limit + 30, MAX_VISIBILITY):g})",
        )
    elif limit > visibility.max_extension:
        yield error(
            "visibility",
            f"handlers may run for {limit:g} s, and a message is extended for {most}",
            f"lower handler_timeout below {visibility.max_extension:g}, and do longer work in steps",
        )
    else:
        beat = f"extended up to {most}" if visibility.heartbeat else "not extended"
        yield ok("visibility", f"{own}, {beat}; handlers may run for {limit:g} s")
    if visibility.timeout < _SHORTEST:
        text = f"{own} is short: an event loop that is blocked for a few seconds loses messages to a second run"
        yield warning("visibility", text, "say Visibility(timeout=60); a crash then costs a minute, and no more")


def _stop(consumer: Consumer[Any, Any], deployment: Deployment) -> Iterator[Finding]:
    shutdown, grace = consumer.settings.shutdown, deployment.grace
    total = shutdown.total
    terms = f"drain {shutdown.drain:g} + cancel {shutdown.cancel:g} + flush {shutdown.flush:g} + close"
    if total > grace:
        yield error(
            "stop",
            f"a stop takes up to {total:g} s ({terms}), and the platform kills after {grace:g} s",
            f"say Shutdown(within={max(1.0, grace - 5):g}), or give the process {total + 5:g} s of grace",
        )
    elif total + _MARGIN > grace:
        text = f"a stop takes up to {total:g} s of {grace:g} s: the process needs about {_MARGIN:g} s more to end"
        yield warning("stop", text, f"say Shutdown(within={max(1.0, grace - 5):g})")
    else:
        yield ok("stop", f"up to {total:g} s of the {grace:g} s of grace")
    limit = consumer.settings.concurrency.handler_timeout
    if not callable(limit) and limit is not None and limit > shutdown.drain:
        yield warning(
            "stop",
            f"handlers may run for {limit:g} s, and a stop waits {shutdown.drain:g} s: longer ones run a second time",
            f"give {limit + total - shutdown.drain + 5:g} s of grace and say Shutdown(drain={limit:g}); "
            "or see that such a handler can run twice",
        )
