"""What an exception says about a resource: try again, do not, or do not trust this resource any more."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any, Final, cast

from postroom.errors import ConfigurationError

PERMANENT_STATES: Final = frozenset({"3D000", "28P01", "28000"})
"""SQLSTATEs of an open that fail again: no such database, wrong password, refused authorisation."""

SUSPECT_STATES: Final = frozenset({"25006", "57P01", "57P02", "57P03"})
"""SQLSTATEs after which the server is not the one it was: read-only after a failover, shut down, crashed, starting."""

SUSPECT_CLASS: Final = "08"
"""The SQLSTATE class of connection exceptions."""

_DEEPEST: Final = 8


class Failure(StrEnum):
    """What a failed open means."""

    TRANSIENT = "transient"
    """Trying again later may help: short, growing pauses."""
    PERMANENT = "permanent"
    """Trying again soon cannot help: an unknown tenant, wrong credentials. A long pause."""


def classify_open(error: BaseException) -> Failure:
    """Return what a provider's exception means, unless the pool was given its own ``classify=``.

    ``LookupError``, ``PermissionError``, ``ConfigurationError`` and the SQLSTATEs 3D000, 28P01 and 28000 are
    permanent, everything else transient. An exception group is permanent when everything in it is.
    """
    return Failure.PERMANENT if _is_permanent(error) else Failure.TRANSIENT


def is_suspect(error: BaseException) -> bool:
    """Return whether a resource whose use raised ``error`` should be replaced.

    True for SQLSTATE 25006 (read-only after a failover), 57P01 to 57P03 (shut down, crashed, starting up), class 08
    (connection exceptions) and for ``ConnectionError``; also when one of them was wrapped by another exception.
    """
    return any(_breaks_trust(cause) for cause in _unwrap(error, _DEEPEST))


def is_timeout(error: BaseException) -> bool:
    """Return whether the use of a resource took too long: that may be the resource's fault, or not."""
    return any(isinstance(cause, TimeoutError) for cause in _unwrap(error, _DEEPEST))


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE that a database driver attached (``sqlstate`` or ``pgcode``), if any."""
    for name in ("sqlstate", "pgcode"):
        state = getattr(error, name, None)
        if isinstance(state, str):
            return state
    return None


def _is_permanent(error: BaseException) -> bool:
    if members := _members(error):
        return all(map(_is_permanent, members))
    if isinstance(error, LookupError | PermissionError | ConfigurationError):
        return True
    return any(sqlstate_of(cause) in PERMANENT_STATES for cause in _unwrap(error, _DEEPEST))


def _breaks_trust(error: BaseException) -> bool:
    state = sqlstate_of(error)
    if state is not None:
        return state in SUSPECT_STATES or state.startswith(SUSPECT_CLASS)
    return isinstance(error, ConnectionError)


def _members(error: BaseException) -> Sequence[BaseException]:
    return cast("BaseExceptionGroup[BaseException]", error).exceptions if isinstance(error, BaseExceptionGroup) else ()


def _unwrap(error: BaseException, depth: int) -> Iterator[BaseException]:
    """Yield the error, what it was raised from, what SQLAlchemy keeps in ``orig``, and the members of a group."""
    yield error
    if depth <= 0:
        return
    inner: list[Any] = [error.__cause__, getattr(error, "orig", None)]
    inner += _members(error)
    for cause in inner:
        if isinstance(cause, BaseException):
            yield from _unwrap(cause, depth - 1)
