"""``with ctx.transaction()`` in plain ``def`` handlers, and what the two kinds of handlers say of each other's."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest

from postroom import (
    AckMode,
    AlreadyHandled,
    ConfigurationError,
    Consumer,
    Failure,
    MessageContext,
    PostroomError,
    RetryPolicy,
)
from postroom.transactions import MessageKey
from support.world import Order, Tenant, World, in_world


class Sync:
    """A ledger for plain handlers."""

    def __init__(self) -> None:
        self.keys: list[MessageKey] = []
        self.effects: list[str] = []

    @contextmanager
    def sync_transaction_for(self, key: MessageKey, /) -> Iterator[list[str]]:
        """Keep what is written in the block, unless it raises."""
        if key in self.keys:
            raise AlreadyHandled
        effects: list[str] = []
        yield effects
        self.keys.append(key)
        self.effects += effects


class Async:
    """A ledger for the others."""

    @asynccontextmanager
    async def transaction_for(self, key: MessageKey, /) -> AsyncIterator[list[str]]:
        """Write nothing."""
        yield []


Handler = Callable[[Order, Any], Any]


def run(resource: Any, handler: Handler, *, ack: AckMode = AckMode.ON_SUCCESS, times: int = 1) -> list[BaseException]:
    """Let a handler work on one message, and return what it raised."""

    @asynccontextmanager
    async def provide(_: Tenant) -> AsyncIterator[Any]:
        yield resource

    async def scenario(world: World) -> list[BaseException]:
        world.create()
        failures: list[Failure] = []
        orders: Consumer[Tenant, Any] = Consumer(
            "orders",
            context=Tenant,
            resources=provide,
            client=world.client,
            ack=ack,
            retry=RetryPolicy(base=1.0),
            on_error=failures.append,
        )
        orders.handler(handler)
        for _ in range(times):
            world.send_orders("1")
        async with orders:
            await asyncio.sleep(120)
        assert world.counts() == (0, 0)
        return [failure.error for failure in failures]

    return in_world(scenario)


def test_effects_happen_once_although_the_handler_fails_after_its_commit() -> None:
    """The next receive finds the row, and is acknowledged without running again."""
    ledger = Sync()
    calls: list[int] = []

    def handle(order: Order, ctx: MessageContext[Tenant, Sync]) -> None:
        calls.append(ctx.attempt)
        with ctx.transaction() as effects:
            effects.append(order.order_id)
        raise ConnectionResetError

    errors = run(ledger, handle)
    assert [type(error) for error in errors] == [ConnectionResetError]
    assert (calls, ledger.effects) == ([1, 2], ["1"])


def test_a_block_that_raises_is_tried_again() -> None:
    """Its own error comes through."""
    ledger = Sync()

    def handle(order: Order, ctx: MessageContext[Tenant, Sync]) -> None:
        with ctx.transaction() as effects:
            effects.append(order.order_id)
            if ctx.attempt == 1:
                raise KeyError("mine")

    (error,) = run(ledger, handle)
    assert isinstance(error, KeyError)
    assert ledger.effects == ["1"]


def test_a_business_key_recognises_what_was_sent_twice() -> None:
    """As in the other kind of handlers."""
    ledger = Sync()

    def handle(order: Order, ctx: MessageContext[Tenant, Sync]) -> None:
        with ctx.transaction(key=order.order_id) as effects:
            effects.append(order.order_id)

    assert run(ledger, handle, times=2) == []
    assert ledger.effects == ["1"]


def test_the_open_block_is_known_until_it_ends() -> None:
    """``ctx.ack()`` is refused meanwhile; a block that failed leaves nothing of that behind."""
    open_transactions: list[int] = []

    def handle(order: Order, ctx: MessageContext[Tenant, Sync]) -> None:
        settles: Any = ctx._settles
        with suppress(KeyError), ctx.transaction():
            open_transactions.append(settles.transactions)
            raise KeyError
        open_transactions.append(settles.transactions)
        with ctx.transaction() as effects:
            effects.append(order.order_id)
            open_transactions.append(settles.transactions)
        open_transactions.append(settles.transactions)

    ledger = Sync()
    assert run(ledger, handle) == []
    assert open_transactions == [1, 0, 1, 0]
    assert ledger.effects == ["1"]


async def _async_with(_: Order, ctx: Any) -> None:
    async with ctx.transaction():
        raise AssertionError


def _plain_with(_: Order, ctx: Any) -> None:
    with ctx.transaction():
        raise AssertionError


async def _plain_with_in_the_event_loop(_: Order, ctx: Any) -> None:
    with ctx.transaction():
        raise AssertionError


@pytest.mark.parametrize(
    ("resource", "handler", "says"),
    [
        (Async, _plain_with, "transaction of Async is for async def handlers: .* sqlalchemy_sync_inbox"),
        (Sync, _async_with, "transaction of Sync is for plain def handlers: with ctx.transaction"),
        (Sync, _plain_with_in_the_event_loop, "blocks its thread, and this is the event loop's"),
        (object, _plain_with, "needs resources with an inbox"),
    ],
)
def test_the_wrong_statement_is_refused(resource: Callable[[], Any], handler: Handler, says: str) -> None:
    """In words that say what to write instead, and before anything is begun."""
    (error,) = run(resource(), handler, ack=AckMode.ALWAYS)
    assert isinstance(error, ConfigurationError)
    with pytest.raises(PostroomError, match=says):
        raise error


def test_a_plain_function_in_a_thread_of_an_async_handler_may_use_it() -> None:
    """What blocks is not the event loop's thread."""
    ledger = Sync()

    def write(order: Order, ctx: MessageContext[Tenant, Sync]) -> None:
        with ctx.transaction() as effects:
            effects.append(order.order_id)

    async def handle(order: Order, ctx: MessageContext[Tenant, Sync]) -> None:
        await asyncio.to_thread(write, order, ctx)

    assert run(ledger, handle) == []
    assert ledger.effects == ["1"]
