"""Ctrl-C, and once more, in a program that calls ``asyncio.run`` itself: the second one hurries the stop."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import pytest

from postroom import Consumer, MessageContext, Polling, Shutdown
from postroom.events import ConsumerStopping, Event
from postroom.local import LocalBroker
from postroom.message import OutgoingMessage
from postroom.transports.memory import MemoryClient

SHUTDOWN = Shutdown(poll=0.1, drain=60, cancel=5, flush=5, close=5)
POLLING = Polling(wait=1)


def ctrl_c() -> None:
    """Do what a terminal does."""
    signal.raise_signal(signal.SIGINT)


class Scene:
    """Queues with one message each, in flight in a handler that does not end by itself."""

    def __init__(self, broker: LocalBroker, client: MemoryClient) -> None:
        self.broker = broker
        self.client = client
        self.cleaned: list[str] = []
        self.stopping: list[str] = []
        self.at_stop: Callable[[str], object] = partial(str)
        """Called when the consumer of a queue stops."""

    async def consumer(self, queue: str = "orders") -> tuple[Consumer[None, None], asyncio.Event]:
        """Make a consumer, and what is set when its handler runs."""
        self.broker.create_queue(queue, {"VisibilityTimeout": "300"})
        await (await self.client.queue(queue)).send([OutgoingMessage(body="{}")])
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            if isinstance(event, ConsumerStopping):
                self.stopping.append(queue)
                loop.call_soon(self.at_stop, queue)

        consumer: Consumer[None, None] = Consumer(
            queue, client=self.client, shutdown=SHUTDOWN, polling=POLLING, observers=[tell]
        )

        @consumer.handler
        async def hang(_body: dict[str, Any], _ctx: MessageContext[None, None]) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cleaned.append(queue)

        return consumer, started

    def visible(self, queue: str = "orders") -> tuple[int, int]:
        """Return how many messages are visible, and how many are not."""
        said = self.broker.attributes(queue)
        return tuple(int(said[f"ApproximateNumberOfMessages{kind}"]) for kind in ("", "NotVisible"))  # type: ignore[return-value]


@asynccontextmanager
async def scene() -> AsyncGenerator[Scene]:
    """Open a broker."""
    async with LocalBroker() as broker, MemoryClient(broker) as client:
        yield Scene(broker, client)


@contextmanager
def interrupted() -> Generator[None]:
    """Expect ``asyncio.run`` to end as it does after Ctrl-C, and to leave the signal as it was."""
    before = signal.getsignal(signal.SIGINT)
    assert before is signal.default_int_handler  # otherwise `asyncio.run` listens to no Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        yield
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_ctrl_c_cancels_handlers_and_their_messages_go_back(caplog: pytest.LogCaptureFixture) -> None:
    """At once, and not after their visibility timeout; the log says what it does, and what a third one would."""
    counts: list[tuple[int, int]] = []

    async def main() -> None:
        async with scene() as made:
            consumer, started = await made.consumer()
            made.at_stop = lambda _: ctrl_c()
            try:
                async with consumer:
                    await started.wait()
                    ctrl_c()
                    await asyncio.Event().wait()
            finally:
                counts.append(made.visible())
                assert made.cleaned == ["orders"]

    with interrupted():
        asyncio.run(main())
    assert counts == [(1, 0)]
    assert "Ctrl-C again: cancelling what runs of orders; send it once more to end at once" in caplog.text


def test_all_consumers_of_a_program_hurry() -> None:
    """Also those that stop one after the other: one more Ctrl-C is not needed for each."""
    counts: list[tuple[int, int]] = []

    async def main() -> None:
        async with scene() as made:
            made.at_stop = lambda _: ctrl_c() if len(made.stopping) == 1 else None
            orders, first = await made.consumer("orders")
            mails, second = await made.consumer("mails")
            try:
                async with orders, mails:
                    await first.wait()
                    await second.wait()
                    ctrl_c()
                    await asyncio.Event().wait()
            finally:
                counts.extend(made.visible(queue) for queue in ("orders", "mails"))
                assert made.stopping == ["mails", "orders"]

    with interrupted():
        asyncio.run(main())
    assert counts == [(1, 0), (1, 0)]


def test_a_second_run_of_the_same_runner_starts_from_nothing() -> None:
    """What was pressed in the first one does not hurry it, and its own second Ctrl-C does."""
    hurried: list[bool] = []

    async def main() -> None:
        async with scene() as made:
            consumer, started = await made.consumer()

            def at_stop(_: str) -> None:
                hurried.append(bool(made.cleaned))
                ctrl_c()

            made.at_stop = at_stop
            async with consumer:
                await started.wait()
                ctrl_c()
                await asyncio.Event().wait()

    with asyncio.Runner() as runner:
        for _ in range(2):
            with interrupted():
                runner.run(main())
    assert hurried == [False, False]


def test_the_third_ctrl_c_ends_the_loop() -> None:
    """A handler that ignores its cancellation does not keep the program."""
    ended: list[float] = []

    async def main() -> None:
        async with scene() as made:
            consumer, started = await made.consumer()
            loop = asyncio.get_running_loop()

            def twice(_: str) -> None:
                ctrl_c()
                ended.append(loop.time())
                ctrl_c()
                pytest.fail("the third one did not come through")

            made.at_stop = twice
            async with consumer:
                await started.wait()
                ctrl_c()
                await asyncio.Event().wait()

    with interrupted():
        asyncio.run(main())
    assert len(ended) == 1


def test_a_handler_of_the_application_is_left_alone() -> None:
    """A web server's, or its own: it decides what Ctrl-C means, also during a stop."""
    came: list[int] = []

    async def main() -> None:
        async with scene() as made:
            consumer, started = await made.consumer()

            def at_stop(_: str) -> None:
                ctrl_c()
                consumer.stop(now=True)

            made.at_stop = at_stop
            async with consumer:
                await started.wait()

    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [signal.SIGINT]


def test_in_another_thread_a_stop_touches_no_signal() -> None:
    """Only the main thread may."""

    async def main() -> None:
        async with scene() as made:
            consumer, started = await made.consumer()
            made.at_stop = lambda _: consumer.stop(now=True)
            async with consumer:
                await started.wait()

    async def beside() -> None:
        await asyncio.to_thread(asyncio.run, main())

    asyncio.run(beside())
