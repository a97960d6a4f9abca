"""What a consumer's own arguments say: its handler, its types, its times. Nothing here asks anything of the network."""

from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from msgspec import UNSET

from postroom.consumer import Consumer
from postroom.consumer.callables import is_async, name_of
from postroom.consumer.routing import router_of
from postroom.inspection.annotations import differ, expected_by, functions_of, opened_by, resolved_context, shown
from postroom.inspection.findings import Deployment, Finding, error, ok, unknown, warning
from postroom.options import MAX_VISIBILITY, Visibility
from postroom.payloads import Decoder, payload_type_of
from postroom.resources import ResourcePool

_MARGIN: Final = 2.0
"""Seconds that a process needs beyond its consumer's stop: Python's own end, and the other tasks of the loop."""
_SHORTEST: Final = 10.0
"""Seconds of visibility below which a blocked event loop costs messages: the heartbeat has a few seconds to get in."""


def look_at_code(consumer: Consumer[Any, Any], deployment: Deployment) -> Iterator[Finding]:
    """Yield what can be known without a network."""
    if consumer.handles is None:
        yield error("handler", "no handler is registered", "register one with @consumer.handler")
    else:
        for function in functions_of(consumer):
            yield from _handler(consumer, function)
            yield from _types(consumer, function)
    yield from _visibility(consumer)
    yield from _stop(consumer, deployment)


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
    payload = _payload_of(consumer, handler)
    if isinstance(payload, Decoder):
        yield ok("payload", f"decoded by {type(payload).__name__}")
    elif payload in (object, Any, dict):
        text = "the payload is decoded JSON that no type validates"
        yield warning("payload", text, "annotate the handler's first parameter with a dataclass, Struct or model")
    else:
        yield ok("payload", f"validated as {shown(payload)}")
    expected, resources = expected_by(handler)
    given = resolved_context(consumer)
    if expected is not None and given is not None:
        if differ(expected, given):
            advice = f"annotate ctx: MessageContext[{shown(given)}, ...], or resolve {shown(expected)}"
            yield error("context", f"the handler expects {shown(expected)}, context= makes {shown(given)}", advice)
        else:
            yield ok("context", f"{shown(given)}, as the handler expects")
    yield from _resources(consumer, resources)


def _payload_of(consumer: Consumer[Any, Any], handler: Callable[..., Any]) -> Any:
    """Return what ``payload=`` says of a handler, and otherwise its annotation."""
    if (router := router_of(consumer.handles)) is not None:
        return next(route.payload_type for route in router.routes if route.function is handler)
    payload = consumer.settings.payload
    return payload_type_of(handler) if payload is UNSET else payload


def _resources(consumer: Consumer[Any, Any], expected: Any) -> Iterator[Finding]:
    """Say whether the resources are what the handler expects, where both tell."""
    provider: Any = consumer.settings.resources
    pool = cast("ResourcePool[Any, Any]", provider) if isinstance(provider, ResourcePool) else None
    given = opened_by(provider if pool is None else pool.provider)
    if provider is None and differ(expected, type(None)):
        text = f"the handler expects {shown(expected)}, and there is no resources=: ctx.resources is None"
        yield error("resources", text, "pass resources=, or annotate ctx: MessageContext[..., None]")
    elif differ(expected, given):
        text = f"the handler expects {shown(expected)}, resources= opens {shown(given)}"
        yield error("resources", text, f"annotate ctx: MessageContext[..., {shown(given)}], or open {shown(expected)}")


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
