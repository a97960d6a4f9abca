"""A client of an AWS service beside SQS, which consumers and senders share."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from postroom.aws_session import new_session
from postroom.checking import check_endpoint, check_endpoint_variables
from postroom.errors import NotOpenError
from postroom.options import check_seconds


class SharedClient:
    """Opened for the first of its users, and closed with the last one. Without a user it belongs to no event loop.

    Args:
        owner: the class that has it, as errors name it.
        remedy: what to write where it is not open.
        service: as botocore names it, and as the variable of its endpoint does.
        timeout: seconds that one call may take.
        region: the region; None for what the environment says.
        endpoint_url: the address, where it is not AWS; None for what the environment says.
        session: an ``AioSession`` of the user's.
        config: for ``AioConfig``.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(
        self,
        owner: str,
        remedy: str,
        service: tuple[str, str],
        *,
        timeout: float,
        region: str | None,
        endpoint_url: str | None,
        session: Any,
        config: Mapping[str, Any],
    ) -> None:
        check_seconds(owner, "timeout", timeout, least=0.001)
        if endpoint_url is not None:
            check_endpoint(f"{owner}(endpoint_url=...)", endpoint_url)
        self._not_open = f"this {owner} is not open: {remedy}"
        self._service, self._variable = service
        self._where = {"region_name": region, "endpoint_url": endpoint_url}
        self._session = session
        self._config = {"connect_timeout": timeout, **config}
        self._client: Any = None
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._users = 0

    def opened(self) -> Any:
        """Return the client. Raises ``NotOpenError``."""
        if self._client is None:
            raise NotOpenError(self._not_open)
        return self._client

    async def enter(self) -> None:
        """Open it, unless it is open."""
        self._users += 1  # before the wait: the opener may leave again before those who wait here run
        try:
            async with self._opening:
                if self._client is None:
                    self._client = await self._stack.enter_async_context(self._made())
        except BaseException:
            await self.leave()
            raise

    async def leave(self, finish: Callable[[], Awaitable[None]] | None = None) -> None:
        """Close it, if this is its last user: after ``finish``, which may still use it."""
        self._users -= 1
        try:
            if finish is not None and not self._users:
                await finish()
        finally:
            if not self._users:  # another may have entered meanwhile
                self._client = None
                self._opening = asyncio.Lock()  # the next event loop needs one of its own
                stack, self._stack = self._stack, AsyncExitStack()
                await stack.aclose()

    def _made(self) -> Any:
        from aiobotocore.config import AioConfig  # noqa: PLC0415 - loaded with the client, not before

        if self._where["endpoint_url"] is None:
            check_endpoint_variables(self._variable)
        session: Any = new_session() if self._session is None else self._session
        return session.create_client(self._service, config=AioConfig(**self._config), **self._where)
