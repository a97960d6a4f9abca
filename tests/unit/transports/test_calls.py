"""Closing a client ends the calls that are out, at once and with an error that says so."""

import asyncio

import pytest

from postroom.errors import ClosedError
from postroom.testing.loop import run_virtual
from postroom.transports.calls import Calls
from support.virtual import in_virtual_time


@in_virtual_time
async def test_a_call_gives_its_result_or_its_error() -> None:
    """A timeout of the call's own stays what it is."""
    calls = Calls("AwsClient")

    async def double(number: int) -> int:
        await asyncio.sleep(1)
        return 2 * number

    async def late() -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(10)

    assert await calls.make("doubling", double, 4) == 8
    with pytest.raises(TimeoutError):
        await calls.make("waiting", late)


@in_virtual_time
async def test_closing_ends_calls_at_once_and_refuses_later_ones() -> None:
    """Both are told what they were, and that the client is closed."""
    calls = Calls("AwsClient")
    out = [asyncio.create_task(calls.make(f"call {n}", asyncio.sleep, 3600), name=f"call-{n}") for n in range(3)]
    await asyncio.sleep(1)
    calls.end()
    calls.end()
    for number, call in enumerate(out):
        with pytest.raises(ClosedError, match=rf"call {number}: its AwsClient was closed meanwhile"):
            await call
    assert asyncio.get_running_loop().time() == 1
    with pytest.raises(ClosedError, match="later: its AwsClient is closed; use it inside"):
        await calls.make("later", asyncio.sleep, 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_cancellation_and_a_closing_at_once_are_a_cancellation(seed: int) -> None:
    """Whichever comes first, the one who cancels is obeyed, and nothing is cancelled twice."""

    async def main() -> None:
        calls = Calls("AwsClient")
        after = asyncio.Event()

        async def use() -> None:
            try:
                await calls.make("call", asyncio.sleep, 3600)
            finally:
                await asyncio.sleep(1)  # a cancellation that is still pending would end this
                after.set()

        out = asyncio.create_task(use(), name="use")
        await asyncio.sleep(1)
        asyncio.get_running_loop().call_soon(calls.end)
        asyncio.get_running_loop().call_soon(out.cancel)
        await asyncio.wait([out])
        assert out.cancelled()
        assert after.is_set()

    run_virtual(main(), seed=seed)


@in_virtual_time
async def test_a_call_that_ends_well_all_the_same_gives_its_result() -> None:
    """One that does not heed the closing keeps its result, and its task is not left cancelled."""
    calls = Calls("AwsClient")

    async def stubborn() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(1)
        return "done"

    async def use() -> tuple[str, int]:
        result = await calls.make("call", stubborn)
        task = asyncio.current_task()
        assert task is not None
        return result, task.cancelling()

    out = asyncio.create_task(use(), name="use")
    await asyncio.sleep(1)
    calls.end()
    assert await out == ("done", 0)


@in_virtual_time
async def test_a_call_inside_of_a_call_ends_with_both() -> None:
    """Opening a queue is a call of the client, and makes one of a connection; closing ends both at once."""
    outer, inner = Calls("AwsClient"), Calls("AwsClient")

    async def open_queue() -> None:
        await inner.make("inner", asyncio.sleep, 3600)

    out = asyncio.create_task(outer.make("outer", open_queue), name="open")
    await asyncio.sleep(1)
    outer.end()
    inner.end()
    with pytest.raises(ClosedError, match="outer"):
        await out
