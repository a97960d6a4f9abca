"""What an exception says about a resource."""

from typing import Any

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

from postroom.errors import ConfigurationError
from postroom.resources import Failure, classify_open, is_suspect, sqlstate_of


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


@pytest.mark.parametrize(
    "error",
    [
        LookupError("no such tenant"),
        KeyError("tenant"),
        PermissionError("refused"),
        DriverError("3D000"),
        DriverError("28P01"),
        DriverError("28000", "pgcode"),
        raised_from(DriverError("3D000")),
        asyncpg.InvalidCatalogNameError("no database"),
        ExceptionGroup("both", [LookupError(), PermissionError()]),
        ConfigurationError("wrong provider"),
    ],
)
def test_trying_again_cannot_help_here(error: BaseException) -> None:
    """Unknown tenants and refused credentials are permanent, wrapped or not."""
    assert classify_open(error) is Failure.PERMANENT


@pytest.mark.parametrize(
    "error",
    [
        OSError("unreachable"),
        TimeoutError(),
        RuntimeError("no idea"),
        DriverError("53300"),
        DriverError(None),
        DriverError(42),
        ExceptionGroup("one of each", [LookupError(), OSError()]),
    ],
)
def test_anything_else_may_pass(error: BaseException) -> None:
    """What is not known to last is transient."""
    assert classify_open(error) is Failure.TRANSIENT


@pytest.mark.parametrize(
    "error",
    [
        DriverError("25006"),
        DriverError("57P01"),
        DriverError("57P02"),
        DriverError("57P03"),
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
    ],
    ids=lambda error: type(error).__name__,
)
def test_broken_connections_make_a_resource_suspect(error: BaseException) -> None:
    """Connection errors, shutdowns and failovers are seen, through wrappers too."""
    assert is_suspect(error)


@pytest.mark.parametrize(
    "error",
    [ValueError("the handler's own"), DriverError("23505"), DriverError("57014"), OSError("disk full"), KeyError("x")],
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
