"""What an exception says: an outage, an unknown tenant, or a resource that is not to be trusted any longer."""

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Any, Final, TypeVar, cast

from postroom.errors import PoolExhaustedError, ResourceOpenError, UnknownTenant
from postroom.redaction import sqlstate_of

E = TypeVar("E", bound=BaseException)

__all__ = [
    "OpenFailure",
    "classify_open",
    "is_outage",
    "is_suspect",
    "is_timeout",
    "is_unknown_tenant",
    "sqlstate_of",
]

SUSPECT_STATES: Final = ("08", "28", "57P0", "25006")
"""SQLSTATEs, or how they begin, after which a connection is not what it was: it broke, its credentials are refused, the
server was shut down or is starting, or it became read-only in a failover."""

OUTAGE_STATES: Final = (*SUSPECT_STATES, "530", "531", "533")
"""In addition: the server has no connection (53300), no room on its disk (53100) or too little of something else. Not
53200 and 53400, which tell of one statement: it wants more memory, locks or temporary files than it may have."""

_OF_STATEMENTS: Final = ("08P01", "28")
"""States that mean the server only where it ended the connection: as the answer to a statement they are its fault, such
as too few parameters for it."""

_UNREACHABLE: Final = frozenset({"ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ETIMEDOUT"})
_MYSQL_READ_ONLY: Final = frozenset({1290, 1836})
_MYSQL_OUTAGES: Final = frozenset({1040, 1053, 1203, 1226, *_MYSQL_READ_ONLY, 2002, 2003, 2006, 2013})
"""Error numbers of MySQL's drivers: too many connections, shutdown, read-only, unreachable, connection lost. The
SQLSTATEs that newer drivers add do not tell these from a statement's own: HY000, 42000."""
_SQLITE_OUTAGES: Final = frozenset({5, 10, 13, 14})
"""SQLite's error codes: another program holds the lock (BUSY), the disk fails (IOERR), it is full, the file cannot be
opened (CANTOPEN)."""
_DEEPEST: Final = 8
_RULED: Final = "_postroom_outage"
"""The attribute of an error that says whether it is an outage, where the one who raised it knows."""
_SPENT: Final = "_postroom_spent"
"""The attribute of an error that says that a resource was closed by who used it."""


class OpenFailure(StrEnum):
    """What a failed open means."""

    OUTAGE = "outage"
    """The resources cannot be reached for now, whatever the reason: tried again after short, growing pauses."""
    UNKNOWN_TENANT = "unknown tenant"
    """There is no such tenant: trying again soon cannot help. A long pause."""


def classify_open(error: BaseException) -> OpenFailure:
    """Return what a provider's exception means, unless the pool was given its own ``classify=``.

    Only ``postroom.UnknownTenant`` says that there is no such tenant, also when another exception was raised
    ``from`` it, or when every member of an exception group says so. Everything else is an outage: a bare ``KeyError``
    may be a missing environment variable, a wrong password may be a rotation under way.
    """
    return OpenFailure.UNKNOWN_TENANT if is_unknown_tenant(error) else OpenFailure.OUTAGE


def is_unknown_tenant(error: BaseException) -> bool:
    """Return whether an exception says that there is no such tenant: it is ``UnknownTenant``, or was raised from it."""
    return _says(error, lambda each: isinstance(each, UnknownTenant))


def is_outage(error: BaseException) -> bool:
    """Return whether an exception says that a server cannot be reached or used for now: no fault of the message.

    True for what an adapter of ``postroom.datasources`` met while it made a connection, for SQLSTATE class 08
    (connection exceptions), 28 (credentials refused), 53 (such as 53300, too many connections; but 53200 and 53400 are
    a statement's own), 57P0x (shut down, crashed, starting up), 25006 (read-only after a failover), for
    ``ConnectionError``, what drivers say of a lost connection, unreachable networks and failed name resolution, for a
    file of SQLite that another program has locked, a disk that fails or is full, and for a nested pool's refusals; also
    when another exception was raised ``from`` one of them. A group is an outage when every member is.
    """
    return not is_unknown_tenant(error) and _says(error, _is_outage)


def of_server(error: E) -> E:
    """Rule that an error is an outage, whatever it is: it was raised while a connection was made.

    A missing database, or a password function that fails, says nothing about the message that needs the connection.
    """
    vars(error)[_RULED] = True
    return error


def of_message(error: E) -> E:
    """Rule that an error is no outage, whatever it looks like: the server was asked, and is well."""
    vars(error)[_RULED] = False
    return error


def of_user(error: E) -> E:
    """Rule that a resource was closed by who used it: no outage, and of no use to the next one."""
    vars(error)[_SPENT] = True
    return error


def is_spent(error: BaseException) -> bool:
    """Return whether it was ruled (``of_user``) that a resource was closed by who used it."""
    return any(_SPENT in vars(cause) for cause in _unwrap(error, _DEEPEST))


def is_of_server(error: BaseException) -> bool:
    """Return whether it was ruled (``of_server``) that an error, or what it was raised from, is an outage."""
    return _says(error, lambda each: _ruling(each) is True)


def is_suspect(error: BaseException) -> bool:
    """Return whether a resource should be replaced after its use raised ``error``.

    True for SQLSTATE class 08 (connection exceptions), 28 (credentials refused), 57P0x (shut down, crashed, starting
    up), 25006 (read-only after a failover) and for ``ConnectionError``; also when one of them was wrapped by another
    exception, or is a member of a group.
    """
    return any(_breaks_trust(cause) for cause in _unwrap(error, _DEEPEST))


def is_timeout(error: BaseException) -> bool:
    """Return whether the use of a resource took too long: that may be the resource's fault, or not."""
    return any(isinstance(cause, TimeoutError) for cause in _unwrap(error, _DEEPEST))


def _says(error: BaseException, what: Callable[[BaseException], bool], depth: int = _DEEPEST) -> bool:
    """Ask of an error, then of what it was raised from; of a group, that all of its members say so."""
    if what(error):
        return True
    if depth <= 0:
        return False
    if members := _members(error):
        return all(_says(each, what, depth - 1) for each in members)
    return any(_says(each, what, depth - 1) for each in _inner(error))


def _ruling(error: BaseException) -> bool | None:
    ruling: bool | None = vars(error).get(_RULED)
    return ruling


def _is_outage(error: BaseException) -> bool:
    if (ruling := _ruling(error)) is not None:
        return ruling
    state = _own_sqlstate(error)
    if state is not None:
        return _tells_of_server(error, state, OUTAGE_STATES) or _mysql_number(error) in _MYSQL_OUTAGES
    if isinstance(error, ResourceOpenError):
        return not error.permanent
    if isinstance(error, ConnectionError | PoolExhaustedError) or _is_unreachable(error):
        return True
    return _is_drivers_outage(error)


def _is_unreachable(error: BaseException) -> bool:
    if isinstance(error, socket.gaierror):
        return True
    return isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in _UNREACHABLE


def _is_drivers_outage(error: BaseException) -> bool:
    """Recognise what drivers raise without a SQLSTATE, by names: none of them is imported here."""
    if getattr(error, "connection_invalidated", False) is True:  # SQLAlchemy
        return True
    names = _names(error)
    # A connection that could not be made, or was lost.
    if names & {"psycopg.OperationalError", "psycopg2.OperationalError"}:
        return True
    if "sqlite3.OperationalError" in names and getattr(error, "sqlite_errorcode", -1) & 0xFF in _SQLITE_OUTAGES:
        return True
    if _lost_its_protocol(error) or ("asyncpg.InterfaceError" in names and _follows_an_outage(error)):
        return True
    return _mysql_number(error) in _MYSQL_OUTAGES


def _mysql_number(error: BaseException) -> object:
    """Return the number of an error of MySQL's drivers, else None."""
    ours = _names(error) & {"pymysql.OperationalError", "MySQLdb.OperationalError", "asyncmy.OperationalError"}
    return error.args[0] if ours and error.args else None


def _names(error: BaseException) -> set[str]:
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}


def _lost_its_protocol(error: BaseException) -> bool:
    """Whether asyncpg found its connection ended between two statements: it then says that it cannot go on."""
    return "asyncpg.InternalClientError" in _names(error) and str(error).startswith("cannot switch to state")


def _follows_an_outage(error: BaseException) -> bool:
    """Whether the end of a block found the connection closed by what the block has met.

    asyncpg says only that it is closed, which is also true when a handler closed it.
    """
    before = error.__context__
    return before is not None and _says(before, _is_outage)


def _breaks_trust(error: BaseException) -> bool:
    if _ruling(error) is False:
        return False
    if _mysql_number(error) in _MYSQL_READ_ONLY:
        return True
    state = _own_sqlstate(error)
    if state is not None:
        return _tells_of_server(error, state, SUSPECT_STATES)
    return isinstance(error, ConnectionError) or _lost_its_protocol(error)


def _tells_of_server(error: BaseException, state: str, states: tuple[str, ...]) -> bool:
    answered = state.startswith(_OF_STATEMENTS) and any(_severity(each) == "ERROR" for each in _unwrap(error, _DEEPEST))
    return state.startswith(states) and not answered


def _severity(error: BaseException) -> str | None:
    """Return how severe PostgreSQL calls an error, in English: ERROR is what one statement is answered."""
    of_asyncpg: Any = getattr(error, "severity_en", None)
    return of_asyncpg or getattr(getattr(error, "diag", None), "severity_nonlocalized", None)


def _own_sqlstate(error: BaseException) -> str | None:
    states = (getattr(error, "sqlstate", None), getattr(error, "pgcode", None))
    return next((state for state in states if isinstance(state, str)), None)


def _members(error: BaseException) -> Sequence[BaseException]:
    return cast("BaseExceptionGroup[BaseException]", error).exceptions if isinstance(error, BaseExceptionGroup) else ()


def _inner(error: BaseException) -> Iterator[BaseException]:
    """Yield what an error was raised from, and what SQLAlchemy keeps in ``orig``; nothing behind ``of_message``."""
    if _ruling(error) is False:
        return
    cause: Any = error.__cause__
    original: Any = getattr(error, "orig", None)
    for each in (cause, original if original is not cause else None):
        if isinstance(each, BaseException):
            yield each


def _unwrap(error: BaseException, depth: int) -> Iterator[BaseException]:
    """Yield the error, what is inside of it, and the members of a group."""
    yield error
    if depth > 0:
        for each in (*_inner(error), *_members(error)):
            yield from _unwrap(each, depth - 1)
