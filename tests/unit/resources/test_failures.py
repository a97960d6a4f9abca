"""What an exception says about a resource."""

import errno
import socket
import sqlite3
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from postroom.errors import ConfigurationError, PoolExhaustedError, ResourceOpenError, UnknownTenant
from postroom.resources import OpenFailure, classify_open, is_outage, is_suspect, sqlstate_of
from postroom.resources.failures import of_message, of_server


class DriverError(Exception):
    """An error as database drivers raise it."""

    def __init__(self, sqlstate: Any, name: str = "sqlstate") -> None:
        super().__init__("text of the driver")
        setattr(self, name, sqlstate)


def raised_from(cause: BaseException) -> Exception:
    """Return an application's own error around another."""
    error = RuntimeError("wrapped")
    error.__cause__ = cause
    return error


def found_at_the_end(error: Exception, before: BaseException | None = None) -> Exception:
    """Return what the end of a block raised while ``before`` was leaving it."""
    error.__context__ = before
    return error


class _Diagnosis:
    """What psycopg knows of an answer."""

    def __init__(self, severity: str | None) -> None:
        self.severity_nonlocalized = severity


def answered(sqlstate: str, severity: str | None) -> DriverError:
    """Return an error as psycopg makes it of a server's answer."""
    error = DriverError(sqlstate)
    vars(error)["diag"] = _Diagnosis(severity)
    return error


def translated(error: DriverError) -> Exception:
    """Return an error as SQLAlchemy makes it of asyncpg's: with the SQLSTATE, and raised from it."""
    made = DriverError(vars(error)["sqlstate"])
    made.__cause__ = error
    return made


BROKEN = asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")
CLOSED = "cannot call Transaction.__aexit__(): the underlying connection is closed"


@pytest.mark.parametrize(
    "error",
    [
        UnknownTenant("no such tenant"),
        raised_from(UnknownTenant("no such tenant")),
        raised_from(raised_from(UnknownTenant("no such tenant"))),
        ExceptionGroup("both", [UnknownTenant(), raised_from(UnknownTenant())]),
        raised_from(ExceptionGroup("one", [UnknownTenant()])),
    ],
)
def test_only_an_unknown_tenant_is_permanent(error: BaseException) -> None:
    """Said by ``UnknownTenant``, wrapped or grouped: then trying again soon cannot help, and it is no outage."""
    assert classify_open(error) is OpenFailure.UNKNOWN_TENANT
    assert not is_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        LookupError("no such tenant"),
        KeyError("BILLING_DB_HOST"),
        PermissionError("refused"),
        DriverError("3D000"),
        DriverError("28P01"),
        DriverError("28000", "pgcode"),
        asyncpg.InvalidCatalogNameError("no database"),
        ConfigurationError("wrong option"),
        OSError("unreachable"),
        TimeoutError(),
        RuntimeError("no idea"),
        DriverError("53300"),
        DriverError(None),
        DriverError(42),
        ExceptionGroup("one of each", [UnknownTenant(), OSError()]),
        ExceptionGroup("lookups", [LookupError(), KeyError()]),
    ],
    ids=repr,
)
def test_whatever_else_a_provider_raises_is_an_outage(error: BaseException) -> None:
    """A missing variable, a wrong password, a missing database, a bug: a deployment may mend it."""
    assert classify_open(error) is OpenFailure.OUTAGE


def as_if_of(module: str, name: str, *args: object, **attributes: object) -> Exception:
    """Return an error as a driver that is not installed here would raise it."""
    kind = type(name, (Exception,), {"__module__": module, **attributes})
    error: Exception = kind(*args)
    return error


def sqlite_error(code: int) -> sqlite3.OperationalError:
    """Return an error of SQLite, as the standard library raises it; a code may be an extended one."""
    error = sqlite3.OperationalError("text of SQLite")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    "error",
    [
        DriverError("53300"),
        DriverError("53000"),
        DriverError("53100"),
        answered("08P01", "FATAL"),
        answered("28000", "FATAL"),
        DBAPIError("SELECT 1", None, raised_from(answered("08P01", None))),
        of_server(ValueError("of a password function")),
        of_server(DriverError("3D000")),
        raised_from(of_server(KeyError("of a registry"))),
        DriverError("57P03"),
        DriverError("57P05"),
        DriverError("08006"),
        DriverError("25006"),
        DriverError("28P01"),
        asyncpg.TooManyConnectionsError("sorry, too many clients already"),
        ConnectionRefusedError(),
        socket.gaierror(-2, "Name or service not known"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        DBAPIError("SELECT 1", None, DriverError("53300")),
        DBAPIError("SELECT 1", None, ValueError("closed"), connection_invalidated=True),
        raised_from(DriverError("53300")),
        ExceptionGroup("all", [ConnectionResetError(), DriverError("57P01")]),
        psycopg.OperationalError("connection failed"),
        BROKEN,
        DBAPIError("SELECT 1", None, raised_from(BROKEN)),
        found_at_the_end(asyncpg.InterfaceError(CLOSED), BROKEN),
        found_at_the_end(asyncpg.InterfaceError(CLOSED), asyncpg.ConnectionDoesNotExistError("was closed")),
        as_if_of("pymysql.err", "OperationalError", 1040, "Too many connections"),
        as_if_of("pymysql.err", "OperationalError", 1290, "--read-only", sqlstate="HY000"),
        as_if_of("asyncmy.errors", "OperationalError", 1203, "max_user_connections", sqlstate="42000"),
        as_if_of("psycopg2", "OperationalError", "server closed the connection unexpectedly", pgcode=None),
        *(sqlite_error(code) for code in (sqlite3.SQLITE_BUSY, 517, 522, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN)),
        DBAPIError("SELECT 1", None, sqlite_error(sqlite3.SQLITE_BUSY)),
        ResourceOpenError("left alone", context=None),
        PoolExhaustedError("no room", context=None),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_handler_that_met_an_outage_is_not_to_blame(error: BaseException) -> None:
    """Servers that are full, gone, starting, read-only or refuse the credentials; wrapped, grouped, or nested pools."""
    assert is_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the handler's own"),
        DriverError("23505"),
        DriverError("57014"),
        DriverError("42P01"),
        DriverError("53200"),
        DriverError("53400"),
        answered("08P01", "ERROR"),
        answered("28000", "ERROR"),
        DBAPIError("SELECT 1", None, translated(answered("08P01", "ERROR"))),
        DBAPIError("SELECT 1", None, of_message(translated(DriverError("25006")))),
        raised_from(of_message(DriverError("25006"))),
        of_message(psycopg.OperationalError("a pool's time-out")),
        OSError(errno.ENOSPC, "disk full"),
        FileNotFoundError("x"),
        TimeoutError(),
        UnknownTenant("no such tenant"),
        ResourceOpenError("unknown", context=None, permanent=True),
        ExceptionGroup("one of each", [ValueError(), ConnectionResetError()]),
        as_if_of("pymysql.err", "OperationalError", 1205, "Lock wait timeout"),
        as_if_of("pymysql.err", "OperationalError", 1205, "Lock wait timeout", sqlstate="HY000"),
        as_if_of("psycopg2", "OperationalError", "canceling statement due to user request", pgcode="57014"),
        as_if_of("mine", "OperationalError", 1040),
        sqlite_error(sqlite3.SQLITE_ERROR),
        sqlite_error(sqlite3.SQLITE_LOCKED),
        sqlite3.OperationalError("without a code"),
        psycopg.errors.UniqueViolation("duplicate"),
        asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
        found_at_the_end(asyncpg.InterfaceError(CLOSED)),
        found_at_the_end(asyncpg.InterfaceError(CLOSED), ValueError("the handler closed it")),
        found_at_the_end(ValueError("the handler's own"), ConnectionResetError()),
        as_if_of("mine", "InternalClientError", "cannot switch to state 15"),
    ],
    ids=repr,
)
def test_a_handlers_own_failure_is_no_outage(error: BaseException) -> None:
    """A bug, a conflict, a cancelled query; and a group in which one member is the handler's own."""
    assert not is_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        DriverError("25006"),
        DriverError("57P01"),
        DriverError("57P02"),
        DriverError("57P03"),
        DriverError("28P01"),
        DriverError("08006"),
        DriverError("08001", "pgcode"),
        ConnectionResetError("gone"),
        BrokenPipeError(),
        raised_from(ConnectionResetError("gone")),
        raised_from(raised_from(DriverError("57P01"))),
        ExceptionGroup("some", [ValueError(), ConnectionResetError()]),
        asyncpg.ReadOnlySQLTransactionError("read-only"),
        asyncpg.ConnectionDoesNotExistError("gone"),
        DBAPIError("SELECT 1", None, DriverError("57P01")),
        as_if_of("pymysql.err", "OperationalError", 1290, "--read-only", sqlstate="HY000"),
        as_if_of("asyncmy.errors", "OperationalError", 1836, "Running in read-only mode"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_broken_connections_make_a_resource_suspect(error: BaseException) -> None:
    """Connection errors, shutdowns and failovers are seen, through wrappers too."""
    assert is_suspect(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the handler's own"),
        DriverError("23505"),
        DriverError("57014"),
        OSError("disk full"),
        KeyError("x"),
        answered("08P01", "ERROR"),
        of_message(DriverError("25006")),
        raised_from(of_message(translated(DriverError("25006")))),
        of_server(ValueError("of a password function")),
    ],
    ids=repr,
)
def test_a_handlers_own_failure_is_not_the_resources(error: BaseException) -> None:
    """A unique violation or a bug says nothing about the connection."""
    assert not is_suspect(error)


def test_a_driver_error_that_is_no_connection_error_by_its_state_is_believed() -> None:
    """A SQLSTATE counts for more than the class of the exception."""

    class Odd(ConnectionError):
        sqlstate = "23505"

    assert not is_suspect(Odd())
    assert sqlstate_of(Odd()) == "23505"


def test_a_chain_of_causes_that_bites_its_tail_ends() -> None:
    """Cycles in ``__cause__`` are cut."""
    error = RuntimeError("a")
    error.__cause__ = error
    assert not is_suspect(error)
