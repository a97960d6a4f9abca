"""A connection that ended under its user: by an outage, or because its own transaction took too long?

PostgreSQL ends the connection of a transaction that was idle, or open, for longer than it may be. The message would
meet that at each try.
"""

from collections.abc import Iterator
from typing import Final

from postroom.redaction import sqlstate_of

ENDS_TRANSACTIONS: Final = (
    "SELECT count(*) > 0 FROM pg_settings WHERE reset_val <> '0' "
    "AND name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"
)
_TOO_LONG: Final = frozenset({"25P03", "25P04"})
_DEEPEST: Final = 8


def took_too_long(error: object) -> bool:
    """Return whether an error says that the server ended a connection because of the transaction of its user."""
    return isinstance(error, BaseException) and any(sqlstate_of(each) in _TOO_LONG for each in chain(error))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it was raised from or after."""
    for _ in range(_DEEPEST):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
