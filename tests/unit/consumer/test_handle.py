"""One awaitable call out of handler, middleware, time limit and thread."""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from postroom import Drop, HandlerTimeout, Message, MessageContext, Reject, Retry
from postroom.consumer.context import current_message, enter_message
from postroom.consumer.handlers import build_handle, refuse_unworked
from postroom.consumer.threads import Outcome, Threads
from postroom.options import Call
from postroom.testing.loop import run_virtual
from support.kept import is_kept
from support.settles import Recorded, context_of
from support.virtual import in_virtual_time


async def call(handler: Callable[..., Any], *, ctx: MessageContext[Any, Any] | None = None, **options: Any) -> None:
    """Build the call and make it."""
    options = {"middleware": (), "timeout": None, "threads": None, **options}
    result = await build_handle(handler, **options)("payload", ctx or context_of(Recorded()))
    if result is not None:
        refuse_unworked(result)


async def in_thread(handler: Callable[..., Any], **options: Any) -> None:
    """Call a plain handler."""
    threads = Threads(2)
    try:
        await call(handler, threads=threads, **options)
    finally:
        threads.close()


def generator(payload: Any, ctx: Any) -> Iterator[None]:
    """Have a stray yield."""
    yield


async def async_generator(payload: Any, ctx: Any) -> Any:
    """Have a stray yield."""
    yield


async def handle(payload: Any, ctx: Any) -> None:
    """Handle."""


async def test_a_handler_that_returns_the_future_of_another_thread_has_failed() -> None:
    """As of an executor's ``submit``: its work may go on, or have failed, when the message would be deleted."""
    future: Future[None] = Future()
    future.set_exception(ValueError("the work failed"))

    def plain(_payload: Any, _ctx: Any) -> Any:
        return future

    async def handler(_payload: Any, _ctx: Any) -> Any:
        return future

    with pytest.raises(TypeError, match=r"returned a concurrent\.futures\.Future: wait for it, by .*wrap_future"):
        await call(handler)
    with pytest.raises(TypeError, match=r"or by `future\.result\(\)`"):
        await in_thread(plain)


@pytest.mark.parametrize("unworked", [generator, async_generator, handle])
async def test_an_async_handler_that_returns_its_work_has_failed(unworked: Callable[..., Any]) -> None:
    """A generator, or a coroutine without its await: counted as a success, the message would be deleted unworked."""

    async def handler(payload: Any, ctx: Any) -> Any:
        return unworked(payload, ctx)

    with pytest.raises(TypeError, match="has not run"):
        await call(handler)


async def test_an_async_handler_that_returns_a_task_has_failed() -> None:
    """Its work is not done: a failed task of it would be lost."""
    tasks: list[asyncio.Task[None]] = []

    async def handler(payload: Any, ctx: Any) -> Any:
        tasks.append(asyncio.create_task(handle(payload, ctx)))
        return tasks[0]

    with pytest.raises(TypeError, match="returned a Task"):
        await call(handler)
    await tasks[0]


@pytest.mark.parametrize("unworked", [generator, async_generator])
async def test_a_plain_handler_that_returns_a_generator_has_failed(unworked: Callable[..., Any]) -> None:
    """It has not run."""
    with pytest.raises(TypeError, match="has not run"):
        await in_thread(partial(unworked))


async def test_what_a_plain_handler_returns_is_awaited_in_the_loop() -> None:
    """A lambda around an async function does its work."""
    loops: list[object] = []

    async def work() -> None:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())

    await in_thread(lambda payload, ctx: work())
    assert loops == [asyncio.get_running_loop()]


async def test_a_generator_out_of_what_a_plain_handler_returned_is_a_failure_too() -> None:
    """However deep it is."""

    async def work() -> Any:
        return generator(1, 2)

    with pytest.raises(TypeError, match="has not run"):
        await in_thread(lambda payload, ctx: work())


@pytest.mark.parametrize("result", [Retry("later", delay=5), Reject("never"), ValueError("bad"), Drop, KeyError])
async def test_what_returns_an_error_has_failed(result: Any) -> None:
    """It was meant to be raised: counted as a success, the message would be deleted."""

    async def handler(payload: Any, ctx: Any) -> Any:
        return result

    async def layer(payload: Any, ctx: Any, call_next: Any) -> Any:
        return result

    name = getattr(result, "__name__", type(result).__name__)
    with pytest.raises(TypeError, match=rf"the handler returned {name}, .* write `raise {name}\("):
        await call(handler)
    with pytest.raises(TypeError, match=f"the handler returned {name}"):
        await in_thread(lambda payload, ctx: result)
    with pytest.raises(TypeError, match=f"middleware .*layer returned {name}"):
        await call(handle, middleware=[layer])


async def test_a_handler_that_says_which_have_failed_as_for_lambda_has_failed() -> None:
    """None of them may be deleted. A list without any says that all were handled."""

    async def handler(payload: Any, ctx: Any) -> Any:
        return {"batchItemFailures": [{"itemIdentifier": name} for name in payload]}

    with pytest.raises(TypeError, match=r"returned batchItemFailures.*batch\.fail\(index, error\)"):
        refuse_unworked(await handler(["1"], None))
    refuse_unworked(await handler([], None))


async def test_any_other_result_is_of_no_interest() -> None:
    """Typed code returns None; what else is returned is not looked at."""

    async def handler(payload: Any, ctx: Any) -> int:
        return 7

    await call(handler)
    await in_thread(lambda payload, ctx: 7)


async def test_middleware_that_is_no_coroutine_function_fails_with_the_remedy() -> None:
    """It would have called nothing, and its message would count as handled."""

    def layer(payload: Any, ctx: Any, call_next: Any) -> None:
        return None

    with pytest.raises(TypeError, match="async def"):
        await call(handle, middleware=[layer])


async def forgets(payload: Any, ctx: Any, call_next: Any) -> None:
    """Call the next one without ``await``."""
    call_next(payload, ctx)


async def hands_on(payload: Any, ctx: Any, call_next: Any) -> Any:
    """Return what has to be awaited, as an ``async def``."""
    return call_next(payload, ctx)


@pytest.mark.parametrize("layer", [forgets, hands_on])
async def test_middleware_that_forgets_to_await_the_next_one_has_failed(layer: Any) -> None:
    """The handler has not run: counted as a success, the message would be deleted unworked."""
    ran: list[str] = []

    async def handler(payload: Any, ctx: Any) -> None:
        ran.append(payload)

    with pytest.raises(TypeError, match=rf"{layer.__qualname__} called call_next and did not await it"):
        await call(handler, middleware=[layer])
    assert not ran


async def test_middleware_that_leaves_the_next_one_to_a_task_has_failed() -> None:
    """The handler would run on with resources that are given back."""
    tasks: list[asyncio.Task[None]] = []
    began = asyncio.Event()

    async def handler(payload: Any, ctx: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    async def layer(payload: Any, ctx: Any, call_next: Any) -> None:
        tasks.append(asyncio.create_task(call_next(payload, ctx)))
        await began.wait()

    with pytest.raises(TypeError, match="did not await it"):
        await call(handler, middleware=[layer])
    tasks[0].cancel()
    await asyncio.wait(tasks)


async def test_middleware_may_call_nothing_and_call_again() -> None:
    """It may decide that there is nothing to do, or try again what failed."""
    ran: list[str] = []

    async def handler(payload: Any, ctx: Any) -> None:
        ran.append(payload)
        if len(ran) == 1:
            raise ValueError

    async def again(payload: Any, ctx: Any, call_next: Any) -> None:
        for _ in range(2):
            with contextlib.suppress(ValueError):
                await call_next(payload, ctx)
                break

    async def nothing(payload: Any, ctx: Any, call_next: Any) -> None: ...

    await call(handler, middleware=[again])
    await call(handler, middleware=[nothing])
    assert ran == ["payload", "payload"]


async def test_middleware_may_return_what_the_next_one_makes() -> None:
    """A plain function that hands the awaitable on is as good as an async one; the first is outermost."""
    order: list[str] = []

    async def outer(payload: Any, ctx: Any, call_next: Any) -> None:
        order.append("outer")
        await call_next(payload + "!", ctx)

    async def handler(payload: Any, ctx: Any) -> None:
        order.append(payload)

    await call(handler, middleware=[outer, lambda payload, ctx, call_next: call_next(payload + "?", ctx)])
    assert order == ["outer", "payload!?"]


def limits(call: Call) -> float | None:
    """Choose by tenant."""
    match call.tenant:
        case "fast":
            return 1.0
        case "slow":
            return None
        case "third try":
            return 10.0 * call.attempt
        case "nonsense":
            return -3
        case "text":
            return "soon"  # type: ignore[return-value]
        case "true":
            return True
        case _:
            raise KeyError(call.tenant)


@pytest.mark.parametrize(
    ("tenant", "seconds"),
    [("fast", 1.0), ("third try", 30.0), ("slow", 50.0), ("nonsense", 50.0), ("text", 50.0), ("true", 50.0), ("x", 50)],
)
@in_virtual_time
async def test_the_time_limit_may_be_chosen_for_each_message(
    tenant: str, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    """By tenant and attempt. What a function says wrongly is logged, and concerns its message only."""
    caplog.set_level(logging.ERROR, "postroom")

    async def handler(payload: Any, ctx: Any) -> None:
        await asyncio.sleep(50)

    with contextlib.suppress(HandlerTimeout):
        await call(handler, timeout=limits, ctx=context_of(Recorded(), tenant=tenant, attempt=3))
    assert asyncio.get_running_loop().time() == seconds
    assert bool(caplog.records) is (tenant in {"nonsense", "text", "true", "x"})


class Inline:
    """As a thread that takes its time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Outcome:
        """Call it."""
        await asyncio.sleep(self._seconds)
        return Outcome(function(*arguments))


@pytest.mark.parametrize("place", ["handler", "middleware before", "middleware after"])
@in_virtual_time
async def test_the_time_limit_of_a_plain_handler_holds_for_what_is_async_around_it(place: str) -> None:
    """What a decorator of an async handler returned is awaited. A thread is let alone, and its time does not count."""

    async def hang() -> None:
        await asyncio.sleep(50)

    async def layer(payload: Any, ctx: Any, call_next: Any) -> None:
        if place == "middleware before":
            await hang()
        await call_next(payload, ctx)
        if place == "middleware after":
            await hang()

    threads: Any = Inline(20.0)
    handler = (lambda payload, ctx: hang()) if place == "handler" else (lambda payload, ctx: None)
    with pytest.raises(HandlerTimeout, match="handler_timeout=1"):
        await call(handler, timeout=1.0, threads=threads, middleware=[layer])
    assert asyncio.get_running_loop().time() == (1.0 if place == "middleware before" else 21.0)


@in_virtual_time
async def test_a_thread_that_takes_longer_than_the_time_limit_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    """It cannot be cancelled, and its work is done: what it does is all that can be told."""
    threads: Any = Inline(20.0)
    await call(lambda payload, ctx: None, timeout=1.0, threads=threads)
    [line] = caplog.messages
    assert "has run for 1 s; a thread cannot be cancelled" in line


def test_a_timeout_names_the_limit_that_held() -> None:
    """Also where a function chose it."""

    async def handler(payload: Any, ctx: Any) -> None:
        await asyncio.sleep(50)

    async def main() -> None:
        await call(handler, timeout=limits, ctx=context_of(Recorded(), tenant="fast"))

    with pytest.raises(HandlerTimeout, match="handler_timeout=1"):
        run_virtual(main())


async def test_a_handlers_own_timeout_is_not_ours() -> None:
    """A query that took too long is a failure of the handler."""

    async def handler(payload: Any, ctx: Any) -> None:
        raise TimeoutError("a query")

    with pytest.raises(TimeoutError, match="a query") as caught:
        await call(handler, timeout=5.0)
    assert not isinstance(caught.value, HandlerTimeout)


async def test_the_message_is_current_in_the_handler_its_thread_and_its_tasks_only() -> None:
    """Log filters see the message of the code that logs, and nothing elsewhere."""
    seen: list[Message | None] = []

    def look() -> None:
        ctx = current_message()
        seen.append(None if ctx is None else ctx.message)

    async def look_async() -> None:
        look()

    async def message_task(ctx: MessageContext[Any, Any]) -> None:
        enter_message(ctx)
        await in_thread(lambda payload, ctx: look(), ctx=ctx)
        await asyncio.to_thread(look)
        await asyncio.create_task(look_async(), name="sub")

    ctx = context_of(Recorded())
    await asyncio.create_task(message_task(ctx), name="message")
    assert seen == [ctx.message] * 3
    assert current_message() is None
    assert inspect.iscoroutinefunction(message_task)


async def test_an_overdue_thread_is_logged_with_tenant_and_message(caplog: pytest.LogCaptureFixture) -> None:
    """It cannot be cancelled; the log says which one it is."""
    import threading

    release = threading.Event()
    logged = asyncio.Event()

    class Seen(logging.Handler):
        """Releases the handler once it was logged."""

        def emit(self, record: logging.LogRecord) -> None:
            release.set()
            logged.set()

    logger = logging.getLogger("postroom.consumer")
    logger.addHandler(seen := Seen())
    try:
        ctx = context_of(Recorded(), tenant="acme")
        await in_thread(lambda payload, ctx: release.wait(20), timeout=0.01, ctx=ctx)
    finally:
        logger.removeHandler(seen)
    assert logged.is_set()
    assert [ctx.message.id in text and "acme" in text for text in caplog.messages] == [True]


async def test_a_thread_that_has_ended_in_time_keeps_no_message() -> None:
    """Its time limit may be an hour."""

    class Inline:
        """As a thread, which lets go of what it ran a moment after its end."""

        async def run(self, function: Callable[..., Any], *arguments: Any) -> Outcome:
            """Call it."""
            return Outcome(function(*arguments))

    async def work() -> None:
        await call(lambda _payload, _ctx: None, threads=Inline(), timeout=3600.0)

    assert not await is_kept(work)
