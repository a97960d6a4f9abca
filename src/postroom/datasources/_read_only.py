"""A write that was refused (25006): by a server that takes none for now, or by the message's own transaction?

The error is the same after a failover and in a transaction that the handler began read-only itself.
Only the server can tell them apart.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, TypeGuard

from postroom.redaction import sqlstate_of
from postroom.resources.failures import of_message

TAKES_WRITES: Final = (
    "SELECT NOT (pg_is_in_recovery() OR reset_val::bool) FROM pg_settings WHERE name = 'default_transaction_read_only'"
)
"""By ``reset_val``: what a handler has set for its own session does not count."""
_ASKING: Final = 5.0
"""Seconds for the answer."""


def is_refused_write(error: object) -> TypeGuard[BaseException]:
    """Return whether an error says that nothing can be written."""
    return isinstance(error, BaseException) and sqlstate_of(error) == "25006"


async def judge(error: BaseException, ask: Callable[[str], Awaitable[Any]], sql: str = TAKES_WRITES) -> None:
    """Rule that a refused write is the message's own, if its server takes writes. Raises nothing.

    Args:
        error: what says that nothing can be written.
        ask: runs SQL on the same connection, after the message's transaction, and returns one value.
        sql: the question, where it is another one.
    """
    with suppress(Exception):  # without an answer it may be an outage
        async with asyncio.timeout(_ASKING):
            if await ask(sql):
                of_message(error)
