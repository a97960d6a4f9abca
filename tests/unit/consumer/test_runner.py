"""Consumers as the main job of a process: a start that waits for SQS, signals, and exit codes."""

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Self

import pytest

from postroom import (
    AccessDenied,
    ConfigurationError,
    Consumer,
    ExitCode,
    MessageContext,
    Phase,
    QueueNotFound,
    ServiceUnavailable,
    Shutdown,
    StopReason,
    Throttled,
    run,
    serve,
)
from postroom.consumer import runner
from postroom.consumer.runner import run_to_exit
from postroom.events import ConsumerStopped, Event
from postroom.local import LocalBroker
from postroom.testing.loop import VirtualLoop
from postroom.transports.memory import MemoryClient
from support.world import World, in_world, with_world

Ctx = MessageContext[Any, Any]


class Unreachable:
    """A client that fails to open a queue until a time, or hangs in it."""

    def __init__(self, world: World, *errors: Exception, until: float = float("inf"), hangs: bool = False) -> None:
        self._inner = MemoryClient(world.broker)
        self._errors = list(errors)
        self._until = until
        self._hangs = hangs
        self.answers = asyncio.Event()
        self.tries = 0
        self.open = 0

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        self.open += 1
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.open -= 1
        await self._inner.__aexit__(None, None, None)

    async def queue(self, name: str) -> Any:
        """Open the queue."""
        self.tries += 1
        if self._hangs:
            await self.answers.wait()
        elif asyncio.get_running_loop().time() < self._until:
            raise self._errors[0] if len(self._errors) == 1 else self._errors.pop(0)
        return await self._inner.queue(name)


def consumer(client: Any, name: str = "orders", **options: Any) -> Consumer[Any, Any]:
    """Make a consumer with a handler that does as the message says."""
    orders: Consumer[Any, Any] = Consumer(name, client=client, **options)

    @orders.handler
    async def handle(order: dict[str, Any], ctx: Ctx) -> None:
        await asyncio.sleep(order.get("seconds", 0))
        if order.get("stop"):
            orders.stop()

    return orders


def later(seconds: float, function: Callable[..., object], *arguments: Any) -> None:
    """Call a function after some seconds."""
    asyncio.get_running_loop().call_later(seconds, function, *arguments)


REFUSED = ServiceUnavailable("connection refused", operation="GetQueueUrl", code="ConnectionError")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was warned of, but for the queue's missing dead-letter queue."""
    texts = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    return [text for text in texts if "no dead-letter queue" not in text]


@with_world
async def test_a_queue_that_cannot_be_reached_yet_is_waited_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, not one for each try; then messages are handled."""
    world.create()
    world.send({"stop": True})
    client = Unreachable(world, REFUSED, until=600)
    code = await serve(consumer(client))
    tries, took = client.tries, asyncio.get_running_loop().time()
    assert code is ExitCode.CLEAN
    assert 600 <= took < 640
    assert 100 < tries < 400  # a pause of 5 s at most, half of it random
    [warning] = warnings_of(caplog)
    assert "orders cannot be reached yet" in warning
    assert "until it answers" in warning
    assert "connection refused" in warning


@with_world
async def test_each_change_of_what_keeps_a_start_waiting_is_said(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """From a refused connection to throttling: one warning for each."""
    world.create()
    world.send({"stop": True})
    errors = [REFUSED, REFUSED, Throttled("slow down"), Throttled("slow down"), *[REFUSED] * 1000]
    assert await serve(consumer(Unreachable(world, *errors, until=60))) is ExitCode.CLEAN
    warnings = warnings_of(caplog)
    assert ["slow down" in text for text in warnings] == [False, True, False]


@pytest.mark.parametrize(("made_after", "code", "least", "most"), [(8, 0, 8, 11), (None, 2, 9.5, 12)])
@with_world
async def test_a_queue_may_be_missing_for_a_while_after_sqs_came_up(
    world: World, *, made_after: float | None, code: int, least: float, most: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker and a local SQS start together: the SQS answers before its queues are made."""
    client = Unreachable(world, REFUSED, until=60)

    def make() -> None:
        world.create()
        world.send({"stop": True})

    if made_after is not None:
        later(60 + made_after, make)
    ended, took = await serve(consumer(client)), asyncio.get_running_loop().time() - 60
    assert ended == code
    assert least <= took <= most + 5
    refused, missing = warnings_of(caplog)[:2]
    assert "connection refused" in refused
    assert "tries again for 10 s more" in missing


@with_world
async def test_a_missing_queue_is_not_waited_for_where_sqs_answered_at_once(world: World) -> None:
    """It is a wrong name, in all likelihood."""
    assert (await serve(consumer(world.client)), asyncio.get_running_loop().time()) == (ExitCode.CONFIGURATION, 0.0)


@pytest.mark.parametrize(("wait", "least", "most"), [(0, 0.0, 0.0), (30, 30.0, 36.0)])
@with_world
async def test_waiting_has_the_limit_that_was_said(world: World, wait: float, least: float, most: float) -> None:
    """Then the process ends with 1, and says what to check."""
    client = Unreachable(world, REFUSED)
    code = await serve(consumer(client), wait=wait)
    took, still_open = asyncio.get_running_loop().time(), client.open
    assert code is ExitCode.FATAL
    assert least <= took <= most
    assert still_open == 0


@pytest.mark.parametrize("error", [QueueNotFound("no such queue"), AccessDenied("no"), ConfigurationError("no")])
@with_world
async def test_what_waiting_cannot_mend_ends_the_process_at_once(
    world: World, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """With 2: the process is not as it was configured. The others are stopped."""
    world.create("others")
    others = consumer(MemoryClient(world.broker), "others")
    code = await serve(others, consumer(Unreachable(world, error)))
    took, running = asyncio.get_running_loop().time(), others.running
    assert (code, running) == (ExitCode.CONFIGURATION, False)
    assert took < 3
    assert "Cannot start" in caplog.text


@with_world
async def test_a_defect_in_the_start_ends_the_process_with_its_traceback(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It is neither a configuration nor an outage."""
    assert await serve(consumer(Unreachable(world, ZeroDivisionError("a bug")))) is ExitCode.FATAL
    assert "ZeroDivisionError: a bug" in caplog.text


@with_world
async def test_one_consumer_runs_while_another_still_waits_for_its_queue(world: World) -> None:
    """And when the one is stopped, the other's start is given up."""
    world.create()
    waiting = Unreachable(world, REFUSED)
    world.send({"stop": True, "seconds": 50})
    code = await serve(consumer(MemoryClient(world.broker)), consumer(waiting, "others"))
    took, still_open = asyncio.get_running_loop().time(), waiting.open
    assert (code, still_open) == (ExitCode.CLEAN, 0)
    assert 50 <= took < 55


@with_world
async def test_nothing_to_run_and_a_wait_that_is_none_are_said(world: World) -> None:
    """Before anything is opened."""
    for wait in (-1, float("nan"), True):
        with pytest.raises(ConfigurationError, match="wait"):
            await serve(consumer(world.client), wait=wait)
    assert await serve() is ExitCode.CONFIGURATION


@with_world
async def test_run_in_a_loop_that_runs_says_what_to_write(world: World) -> None:
    """A lifespan of a web application is such a place."""
    with pytest.raises(ConfigurationError, match=r"write `async with consumer:`, or `await serve\(consumer\)`"):
        run(consumer(world.client))


@pytest.mark.parametrize("times", [1, 2])
@with_world
async def test_a_caller_that_is_cancelled_stops_in_order(world: World, times: int) -> None:
    """The first cancellation drains, the second one cancels handlers; then it goes on."""
    world.create()
    world.send({"seconds": 8})
    serving = asyncio.create_task(serve(consumer(world.client)), name="serve")
    for _ in range(times):
        await asyncio.sleep(1)
        serving.cancel()
    await asyncio.wait([serving])
    assert serving.cancelled()
    took, counts = asyncio.get_running_loop().time(), world.counts()
    assert took < 5 if times == 2 else 8 <= took < 11
    assert counts == ((1, 0) if times == 2 else (0, 0))


@pytest.mark.parametrize(
    ("fatal", "code"),
    [
        (SystemExit(3), 3),
        (SystemExit("a text"), "a text"),
        (SystemExit(None), None),
        (SystemExit(0), 0),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_handler_that_exits_ends_the_process_with_its_code(fatal: BaseException, code: object) -> None:
    """In order: the other consumers drain first."""

    async def scenario(world: World) -> object:
        world.create()
        world.create("others")
        world.send({"seconds": 5}, queue="others")
        orders, others = consumer(world.client), consumer(MemoryClient(world.broker), "others")

        def die() -> None:
            run = orders._run
            assert run is not None
            run.fatal = fatal
            orders.stop(reason=StopReason.FATAL)

        later(1, die)
        try:
            await serve(orders, others)
        except SystemExit as exiting:
            assert (world.counts("others"), others.running) == ((0, 0), False)
            return exiting.code
        return "it did not exit"

    assert in_world(scenario) == code


def test_a_consumer_that_died_ends_the_process_with_one() -> None:
    """Whatever it is that it died of, an Exception or not."""

    class Panic(BaseException):
        """As PyO3 has."""

    async def scenario(world: World, fatal: BaseException) -> ExitCode:
        world.create()
        orders = consumer(world.client)

        def die() -> None:
            run = orders._run
            assert run is not None
            run.fatal = fatal
            orders.stop(reason=StopReason.FATAL)

        later(1, die)
        return await serve(orders)

    for fatal in (ZeroDivisionError(), Panic()):
        assert in_world(lambda world, fatal=fatal: scenario(world, fatal)) is ExitCode.FATAL  # type: ignore[misc]


@with_world
async def test_work_that_was_cancelled_is_told_by_the_exit_code(world: World) -> None:
    """Three: the messages are back in the queue."""
    world.create()
    orders = consumer(world.client, shutdown=Shutdown(drain=1, poll=0))
    world.send({"seconds": 100})
    later(1, orders.stop)
    assert await serve(orders) is ExitCode.CANCELLED_WORK


def test_a_handler_that_ignores_its_cancellation_does_not_keep_the_process(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up by the stop, and the event loop ends without it."""
    monkeypatch.setattr("postroom.consumer.runner._GIVE_UP", 0.05)
    broker = LocalBroker()
    shutdown = Shutdown(poll=0.05, drain=0.05, cancel=0.05, flush=0.05, close=0.05)
    jobs = Consumer("jobs", client=MemoryClient(broker), shutdown=shutdown)

    @jobs.handler
    async def handle(_body: str, _ctx: Ctx) -> None:
        jobs.stop()
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    @contextlib.asynccontextmanager
    async def with_a_message() -> AsyncGenerator[None]:
        async with broker:
            broker.create_queue("jobs")
            broker.send("jobs", "x")
            yield

    assert run_to_exit([jobs], wait=0, beside=with_a_message()) is ExitCode.CANCELLED_WORK
    assert "ignores its cancellation; the process ends without it" in caplog.text


def test_a_thread_without_which_the_process_ends_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """One of an executor of the application hangs. One that waits for work ends with the process."""
    broker, release, idle = LocalBroker(), threading.Event(), threading.Event()
    shutdown = Shutdown(poll=0.05, drain=0.05, cancel=0.05, flush=0.05, close=0.05)
    jobs = Consumer("jobs", client=MemoryClient(broker), shutdown=shutdown)
    executor = ThreadPoolExecutor(2, "of-the-application")

    @jobs.handler
    async def handle(_body: str, _ctx: Ctx) -> None:
        hangs = executor.submit(release.wait)
        executor.submit(idle.set)
        jobs.stop()
        await asyncio.wrap_future(hangs)

    @contextlib.asynccontextmanager
    async def with_a_message() -> AsyncGenerator[None]:
        async with broker:
            broker.create_queue("jobs")
            broker.send("jobs", "x")
            yield

    try:
        assert run_to_exit([jobs], wait=0, beside=with_a_message()) is ExitCode.CANCELLED_WORK
        assert idle.wait(10)
    finally:
        release.set()
        executor.shutdown()
    (line,) = [text for text in caplog.messages if "of-the-application" in text]
    assert line.startswith("Thread of-the-application_0 hangs at ")


def test_only_an_idle_thread_of_an_executor_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    """Not that of a process pool without work; but one of the application, whatever its function is called."""
    hangs, release = threading.Event(), threading.Lock()

    def _worker() -> None:
        hangs.set()
        release.acquire()

    release.acquire()
    thread = threading.Thread(target=_worker, name="of-the-application")
    thread.start()
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            assert pool.submit(len, "x").result() == 1
            assert hangs.wait(10)
            assert runner._hung_threads() == [thread]
    finally:
        release.release()
        thread.join()
    (line,) = [text for text in caplog.messages if text.startswith("Thread ")]
    assert line.startswith("Thread of-the-application hangs at ")


@with_world
async def test_a_long_stop_says_every_few_seconds_what_it_waits_for(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The step, the handlers, and the seconds that are left."""
    caplog.set_level(logging.INFO, "postroom")
    world.create()
    orders = consumer(world.client, shutdown=Shutdown(drain=30))
    world.send({"seconds": 13})
    later(1, orders.stop)
    assert await serve(orders) is ExitCode.CLEAN
    said = [text for text in caplog.messages if text.startswith(("Stopping", "Still stopping"))]
    still = "Still stopping orders after {} s: handlers finish, {} s left; 1 handler"
    assert said == ["Stopping orders: waiting up to 30 s for 1 handler", still.format(5, 25), still.format(10, 20)]


def test_a_stop_that_is_blocked_at_once_says_in_which_step_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that blocks the event loop: the reminder is due before handlers are waited for."""
    caplog.set_level(logging.INFO, "postroom")

    async def scenario(world: World) -> ExitCode:
        world.create()
        orders = consumer(world.client)
        world.send({"seconds": 2})
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        def stop() -> None:
            orders.stop()
            loop.call_later(0.0, loop.call_soon, loop.block, 8.0)  # when the stop has begun

        later(1, stop)
        return await serve(orders)

    in_world(scenario)
    still = next(text for text in caplog.messages if text.startswith("Still stopping"))
    assert still == "Still stopping orders after 8 s: messages that have not started go back, 0 s left; 1 handler"


@pytest.mark.parametrize("seed", range(30))
def test_a_stop_in_the_instant_in_which_a_start_is_done_leaves_nothing(seed: int) -> None:
    """Whatever comes first in that turn of the loop."""

    async def scenario(world: World) -> None:
        world.create()
        client = Unreachable(world, hangs=True)
        orders = consumer(client)
        before = asyncio.all_tasks()
        serving = asyncio.create_task(serve(orders), name="serve")
        await asyncio.sleep(1)
        loop = asyncio.get_running_loop()
        loop.call_soon(client.answers.set)
        for _ in range(seed % 6):
            await asyncio.sleep(0)
        loop.call_soon(serving.cancel)
        await asyncio.wait([serving])
        assert serving.cancelled()
        assert (client.open, orders.running) == (0, False)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before

    in_world(scenario, seed=seed)


@with_world
async def test_a_consumer_that_runs_already_is_left_to_its_owner(world: World) -> None:
    """It is a mistake, which is told by the exit code; the consumer goes on."""
    world.create()
    orders = consumer(world.client)
    async with orders:
        code = await serve(orders)
        running = orders.running
    assert (code, running, await serve(orders, orders)) == (ExitCode.CONFIGURATION, True, ExitCode.CONFIGURATION)


# In real time: signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_the_start_ends_the_process(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    """The endpoint accepts and never answers; nothing is left open, and it is a clean end."""
    caplog.set_level(logging.INFO, "postroom")
    async with LocalBroker(seed=1) as broker:
        client = Unreachable(World(broker), hangs=True)
        later(0.05, signal.raise_signal, number)
        async with asyncio.timeout(5):
            assert await serve(consumer(client)) is ExitCode.CLEAN
        assert client.open == 0
    assert "the start is given up" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("opens", [False, True], ids=["is given up", "opens all the same"])
def test_a_signal_while_what_is_beside_opens_ends_the_process(
    number: signal.Signals, opens: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As PID 1 of a container it would hear nothing before its consumers start. What is open is closed."""
    caplog.set_level(logging.INFO, "postroom")
    seen: list[str] = []

    @contextlib.asynccontextmanager
    async def beside() -> AsyncGenerator[None]:
        try:
            signal.raise_signal(number)
            with contextlib.suppress(asyncio.CancelledError) if opens else contextlib.nullcontext():
                await asyncio.Event().wait()
            seen.append("open")
            yield
        finally:
            await asyncio.sleep(0)
            seen.append("closed")

    # Twice: the first left no handler behind.
    for _ in range(2):
        assert run_to_exit([consumer(None)], wait=0, beside=beside()) is ExitCode.CLEAN
    assert seen == (["open", "closed"] if opens else ["closed"]) * 2
    assert f"{number.name}: the start is given up (what runs beside the consumers is opened)" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_what_blocks_the_loop_as_it_opens(number: signal.Signals) -> None:
    """The first one can only be heard where the loop runs. Afterwards all is as it was."""
    before = signal.getsignal(number)
    seen: list[str] = []

    @contextlib.asynccontextmanager
    async def beside() -> AsyncGenerator[None]:
        signal.raise_signal(number)
        seen.append("goes on")
        signal.raise_signal(number)
        seen.append("goes on again")
        yield

    with pytest.raises(SystemExit) as ended:
        run_to_exit([consumer(None)], wait=0, beside=beside())
    assert ended.value.code == 128 + number
    assert seen == ["goes on"]
    assert signal.getsignal(number) is before


async def test_a_signal_drains_and_a_second_one_cancels(caplog: pytest.LogCaptureFixture) -> None:
    """Both say how much there is; observers are told the reason."""
    caplog.set_level(logging.INFO, "postroom")
    events: list[Event] = []
    async with LocalBroker(seed=1) as broker:
        world = World(broker)
        world.create()
        started = asyncio.Event()
        orders: Consumer[Any, Any] = Consumer("orders", client=world.client, observers=[events.append])

        @orders.handler
        async def handle(order: dict[str, Any], ctx: Ctx) -> None:
            started.set()
            await asyncio.sleep(1000)

        async def send_signals() -> None:
            await started.wait()
            orders.tenants.pause(None)
            world.send({})
            while orders.statistics().held < 2:  # no slot is what the second one lacks
                await asyncio.sleep(0.01)
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0.01)
            signal.raise_signal(signal.SIGTERM)

        world.send({})
        async with asyncio.timeout(10):
            code, _ = await asyncio.gather(serve(orders), send_signals())
    assert code is ExitCode.CANCELLED_WORK
    assert [event.reason for event in events if isinstance(event, ConsumerStopped)] == [StopReason.SIGNAL]
    assert any("SIGTERM: draining (orders: 1 handler runs, 1 more message waits);" in text for text in caplog.messages)
    assert any("SIGTERM again" in text for text in caplog.messages)


async def test_the_first_signal_drains_also_while_another_cause_stops() -> None:
    """Such as a handler that stopped its consumer: the signal of the platform takes nothing from the others."""
    async with LocalBroker(seed=1) as broker:
        world = World(broker)
        world.create()
        world.create("invoices")
        started, may_end = asyncio.Event(), asyncio.Event()
        orders: Consumer[Any, Any] = Consumer("orders", client=world.client)
        invoices: Consumer[Any, Any] = Consumer("invoices", client=world.client)

        @orders.handler
        async def handle(order: dict[str, Any], ctx: Ctx) -> None:
            started.set()
            await may_end.wait()

        @invoices.handler
        async def ends(invoice: dict[str, Any], ctx: Ctx) -> None:
            await started.wait()
            invoices.stop()

        async def send_signals() -> None:
            while orders.health().phase is not Phase.STOPPING:
                await asyncio.sleep(0.01)
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0.01)
            may_end.set()

        world.send({})
        world.send({}, queue="invoices")
        async with asyncio.timeout(10):
            code, _ = await asyncio.gather(serve(orders, invoices), send_signals())
        assert code is ExitCode.CLEAN
        assert orders.statistics().cancelled == 0
