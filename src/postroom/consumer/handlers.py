"""From what the user registered to one awaitable call."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from contextvars import Context
from types import UnionType
from typing import Any, cast

from postroom.checking import is_number
from postroom.consumer.callables import is_async, name_of
from postroom.consumer.choices import Choice
from postroom.consumer.context import Confirmation, MessageContext, settles_of, settling_later
from postroom.consumer.routing import Router, dispatch, router_of
from postroom.consumer.settings import CallNext, Handle, Middleware
from postroom.consumer.threads import Outcome, Threads
from postroom.display import display_key
from postroom.errors import HandlerTimeout
from postroom.log_fields import Log, Step, about
from postroom.options import Call, PerCall
from postroom.tasks import TimeLimit

__all__ = ["build_handle", "is_async", "needs_threads"]

_log = Log("postroom.consumer", Step.HANDLER)

HandlerTimeouts = PerCall[float | None]
"""``Concurrency.handler_timeout``: seconds, None for no limit, or a function that chooses for each message."""
Limit = Choice[float | None] | float | None
"""The same, as it is asked."""


def build_handle(
    handler: Callable[..., Any],
    *,
    middleware: Sequence[Middleware],
    timeout: HandlerTimeouts,
    threads: Threads | None,
) -> Handle:
    """Compose handler, time limit and middleware, outermost first, once for all messages.

    What is returned has to be passed to ``refuse_unworked``, unless it is None.

    ``threads`` are given for a plain ``def`` handler, and only for one; see ``is_async``.
    """
    limit = Choice("Concurrency(handler_timeout=...)", timeout, _is_limit) if callable(timeout) else timeout
    return _build(handler, middleware, limit, threads)


def _build(
    handler: Callable[..., Any], middleware: Sequence[Middleware], limit: Limit, threads: Threads | None
) -> Handle:
    if (router := router_of(handler)) is not None:
        return _routed(router, middleware, limit, threads)
    if threads is not None:
        handle = _threaded(handler, threads)
    elif limit is None and not middleware:
        return handler  # what it returns is looked at where it is awaited: no call around it for each message
    else:
        handle = _awaited(handler)
    for layer in reversed(middleware):
        handle = _wrapped(layer, handle)
    if limit is not None:
        handle = _limited(handle, limit)
    return handle


def needs_threads(handler: Any) -> bool:
    """Return whether a handler, or one of a router's, is a plain ``def``."""
    router = router_of(handler)
    functions: list[Any] = [handler] if router is None else [route.function for route in router.routes]
    return not all(map(is_async, functions))


def _routed(
    router: Router[Any, Any], middleware: Sequence[Middleware], limit: Limit, threads: Threads | None
) -> Handle:
    handles: dict[int, Handle] = {}
    for route in router.routes:
        own = None if is_async(route.function) else threads
        handles[id(route)] = _build(route.function, middleware, limit, own)
    return dispatch(handles)


def _awaited(handler: Callable[..., Any]) -> Handle:
    async def handle(payload: Any, ctx: MessageContext[Any, Any]) -> None:
        result = await handler(payload, ctx)
        if result is not None:
            refuse_unworked(result)

    return handle


def _wrapped(layer: Middleware, call_next: CallNext) -> Handle:
    async def handle(payload: Any, ctx: MessageContext[Any, Any]) -> None:
        calls: list[Any] = []

        def noted(payload: Any, ctx: MessageContext[Any, Any]) -> Awaitable[None]:
            calls.append(call := call_next(payload, ctx))
            return call

        work: Any = layer(payload, ctx, noted)
        if not inspect.isawaitable(work):
            text = f"returned {type(work).__name__}: write it as `async def`, and await call_next"
            raise TypeError(f"middleware {name_of(layer)} {text}")
        refuse_unraised(await work, f"middleware {name_of(layer)}")
        if not all(map(_is_over, calls)):
            text = "called call_next and did not await it, so the message is not handled: write `await call_next(...)`"
            raise TypeError(f"middleware {name_of(layer)} {text}")

    return handle


def _is_over(call: Any) -> bool:
    """Whether what ``call_next`` returned was awaited. What has not begun never will: its message is given back."""
    if not inspect.iscoroutine(call) or inspect.getcoroutinestate(call) == inspect.CORO_CLOSED:
        return True
    if inspect.getcoroutinestate(call) == inspect.CORO_CREATED:
        call.close()
    return False


def _limited(handler: Handle, limit: Limit) -> Handle:
    async def handle(payload: Any, ctx: MessageContext[Any, Any]) -> None:
        timeout = _limit_for(ctx, limit)
        timer = TimeLimit(timeout)
        settles_of(ctx).limit = timer
        try:
            async with timer:
                await handler(payload, ctx)
        except TimeoutError as error:
            if not timer.expired():  # a TimeoutError of the handler's own
                raise
            text = f"the handler ran longer than Concurrency(handler_timeout={timeout:g}) and was cancelled"
            raise HandlerTimeout(text, message_id=ctx.message.id) from error
        except Exception as error:
            if timer.expired():  # many a library makes an error of its own of a cancellation
                _warn_cut_off(ctx, timeout, f"with {type(error).__name__}")
            raise
        if timer.expired():
            _warn_cut_off(ctx, timeout, "without an error, which counts as success")

    return handle


def _threaded(handler: Callable[..., Any], threads: Threads) -> Handle:
    async def handle(payload: Any, ctx: MessageContext[Any, Any]) -> None:
        timer = settles_of(ctx).limit
        later: list[Confirmation] = []
        with nullcontext() if timer is None else _uncancelled(timer, ctx):
            outcome = await threads.run(settling_later, later, handler, payload, ctx)
        await _finish(outcome, later)

    return handle


@contextmanager
def _uncancelled(timer: TimeLimit, ctx: MessageContext[Any, Any]) -> Generator[None]:
    """Let the time limit say that it is over, and cancel nothing: a thread runs. It holds before and after it."""
    if (seconds := timer.pause()) is None:
        yield
        return
    # In an empty context: the loop may keep a timer that was cancelled, and with it the message.
    warn = asyncio.get_running_loop().call_later(seconds, _warn_overdue, ctx, timer.seconds, context=Context())
    try:
        yield
    finally:
        warn.cancel()
        timer.resume()


async def _finish(outcome: Outcome, later: Sequence[Confirmation]) -> None:
    """Do what the call in the thread left to do: raise its error, or await what it returned."""
    result = outcome.unwrap()
    for confirmation in later:
        await confirmation
    if inspect.isawaitable(result):  # of a plain function around an async one, such as a decorator's
        result = await result
    if result is not None:
        refuse_unworked(result)


def refuse_unworked(result: object) -> None:
    """Fail for a handler that returned its work instead of doing it. Counted as a success, it would be lost."""
    if inspect.isgenerator(result) or inspect.isasyncgen(result) or inspect.isawaitable(result):
        kind = type(result).__name__
        if isinstance(result, Generator | Coroutine):
            result.close()
        text = f"the handler returned a {kind}, which has not run: await it, or remove the `yield`"
        raise TypeError(text)
    if isinstance(result, Future):
        text = "the handler returned a concurrent.futures.Future: wait for it, by `await asyncio.wrap_future(future)`"
        raise TypeError(f"{text}, or by `future.result()` in a plain `def` handler")
    refuse_unraised(result, "the handler")
    if isinstance(result, Mapping) and cast("Mapping[Any, Any]", result).get("batchItemFailures"):
        text = "the handler returned batchItemFailures, which AWS Lambda understands: raise an error for its message"
        raise TypeError(f"{text}, or call `batch.fail(index, error)` in a batch handler")


def refuse_unraised(result: object, who: str, kinds: type[BaseException] | UnionType = BaseException) -> None:
    """Fail for a function of the user's that returned an error, such as ``Retry``: it decides nothing so."""
    kind = result if isinstance(result, type) else type(result)
    if issubclass(kind, kinds):
        raise TypeError(f"{who} returned {kind.__name__}, which decides nothing: write `raise {kind.__name__}(...)`")


def _limit_for(ctx: MessageContext[Any, Any], limit: Limit) -> float | None:
    """Return how long the handler of a message may run."""
    return limit(Call(ctx.tenant, ctx.message, ctx.attempt), None) if isinstance(limit, Choice) else limit


def _is_limit(value: object) -> bool:
    return value is None or (is_number(value) and value > 0)


def _warn_cut_off(ctx: MessageContext[Any, Any], timeout: float | None, how: str) -> None:
    text = "The handler of message %s of tenant %s was cancelled by Concurrency(handler_timeout=%g), and ended %s"
    _log.warning(text, ctx.message.id, display_key(ctx.tenant), timeout, how, extra=about(ctx))


def _warn_overdue(ctx: MessageContext[Any, Any], timeout: float | None) -> None:
    text = "The handler of message %s of tenant %s has run for %g s; a thread cannot be cancelled, so it keeps its slot"
    _log.warning(text, ctx.message.id, display_key(ctx.tenant), timeout, extra=about(ctx))
