"""A client of another service of AWS is shared by those that use it at the same time."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from postroom.integrations.claim_check import ClaimCheck
from postroom.integrations.step_functions import TaskTokens

Made = AbstractAsyncContextManager[Any]


class Session:
    """Makes clients that take some time to open and to close, and counts them."""

    def __init__(self) -> None:
        self.made = self.open = 0
        self.down = False

    @asynccontextmanager
    async def create_client(self, *_arguments: Any, **_options: Any) -> AsyncGenerator[object]:
        """Open a client."""
        await asyncio.sleep(0.01)
        if self.down:
            raise OSError("down")
        self.made += 1
        self.open += 1
        yield object()
        await asyncio.sleep(0.01)
        self.open -= 1


def _claim_check(session: Any) -> Made:
    return ClaimCheck("amzn-s3-demo-bucket", session=session)


def _task_tokens(session: Any) -> Made:
    return TaskTokens(session=session)


@pytest.mark.parametrize("make", [_claim_check, _task_tokens])
def test_it_is_opened_once_for_all_users_in_one_loop_after_the_other(make: Callable[[Any], Made]) -> None:
    """One that waits for another to open it, too: nothing of a loop that is over is left."""
    session = Session()
    made = make(session)

    async def use() -> None:
        async with made:
            assert session.open == 1

    async def main() -> None:
        await asyncio.gather(use(), use(), use())
        assert session.open == 0

    for loops in (1, 2):
        asyncio.run(main())
        assert session.made == loops


@pytest.mark.parametrize("make", [_claim_check, _task_tokens])
def test_it_opens_in_another_loop_after_it_could_not_be_opened(make: Callable[[Any], Made]) -> None:
    """Nothing of a loop in which several waited for it in vain is left."""
    session = Session()
    made = make(session)

    async def use() -> None:
        async with made:
            pass

    async def main() -> list[BaseException | None]:
        return list(await asyncio.gather(use(), use(), return_exceptions=True))

    session.down = True
    assert [type(error) for error in asyncio.run(main())] == [OSError, OSError]
    session.down = False
    assert asyncio.run(main()) == [None, None]
