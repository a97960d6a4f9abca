"""From what the user registered to one awaitable call."""

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from postroom.consumer.context import MessageContext
from postroom.consumer.settings import CallNext, Handle, Middleware
from postroom.errors import HandlerTimeout

_log = logging.getLogger("postroom.consumer")


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether calling it makes a coroutine: a coroutine function, or an object whose ``__call__`` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method itself is looked at, not whether there is one
    )


def build_handle(
    handler: Callable[..., Any],
    *,
    middleware: Sequence[Middleware],
    timeout: float | None,
    threads: ThreadPoolExecutor | None,
) -> Handle:
    """Compose handler, time limit and middleware, outermost first, once for all messages."""
    handle: Handle = handler if threads is None else _threaded(handler, threads, timeout)
    for layer in reversed(middleware):
        handle = _wrapped(layer, handle)
    if timeout is not None and threads is None:
        handle = _limited(handle, timeout)
    return handle


def _wrapped(layer: Middleware, call_next: CallNext) -> Handle:
    async def handle(payload: Any, ctx: MessageContext[Any, Any]) -> None:
        await layer(payload, ctx, call_next)

    return handle


def _limited(handler: Handle, timeout: float) -> Handle:
    async def handle(payload: Any, ctx: MessageContext[Any, Any]) -> None:
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                await handler(payload, ctx)
        except TimeoutError as error:
            if not limit.expired():  # a TimeoutError of the handler's own
                raise
            text = f"the handler ran longer than Concurrency(handler_timeout={timeout:g}) and was cancelled"
            raise HandlerTimeout(text, message_id=ctx.message.id) from error

    return handle


def _threaded(handler: Callable[..., Any], threads: ThreadPoolExecutor, timeout: float | None) -> Handle:
    async def handle(payload: Any, ctx: MessageContext[Any, Any]) -> None:
        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(threads, partial(contextvars.copy_context().run, handler, payload, ctx))
        warning = None
        if timeout is not None:
            warning = loop.call_later(timeout, _warn_overdue, ctx.message.id, timeout)
        try:
            result = await _outlast(call)
        finally:
            if warning is not None:
                warning.cancel()
        if inspect.isawaitable(result):
            await result

    return handle


def _warn_overdue(message_id: str, timeout: float) -> None:
    text = "The handler of message %s has run for %g s; a thread cannot be cancelled, so it keeps its slot"
    _log.warning(text, message_id, timeout)


async def _outlast(call: asyncio.Future[Any]) -> Any:
    """Wait for a thread. A first cancellation is kept until the thread returned: it still uses its resources."""
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError as cancelled:
        if not call.done():
            await asyncio.wait([call])  # a second cancellation ends the wait: the thread is abandoned
        if not call.cancelled() and call.exception() is not None:
            _log.warning("A cancelled handler failed in its thread: %s", type(call.exception()).__name__)
        raise cancelled from None
