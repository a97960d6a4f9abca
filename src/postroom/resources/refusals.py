"""Why a lease is refused, and the error that says so. Every waiter gets an instance of its own."""

from collections.abc import Hashable
from typing import Any

import msgspec

from postroom.errors import (
    ClosedError,
    PoolExhaustedError,
    PostroomError,
    ResourceOpenError,
    ResourceUnhealthyError,
)
from postroom.resources.identity import display_key


class Unhealthy(Exception):
    """The health check of a new resource failed. Stays inside the pool: waiters get ``ResourceUnhealthyError``."""


class OpenFailed(msgspec.Struct, frozen=True):
    """The provider failed while this call waited for it."""

    key: Hashable
    cause: BaseException
    permanent: bool
    retry_after: float

    def error(self, context: Any) -> PostroomError:
        """Make the error for one waiter. The provider's own words stay in ``__cause__``."""
        kind = ResourceUnhealthyError if isinstance(self.cause, Unhealthy) else ResourceOpenError
        cause = self.cause.__cause__ if isinstance(self.cause, Unhealthy) else self.cause
        what = "are unhealthy" if isinstance(self.cause, Unhealthy) else "could not be opened"
        why = f": {type(cause).__name__}" if cause is not None else ""
        lasting = " (permanent)" if self.permanent else ""
        error = kind(
            f"the resources of {display_key(self.key)!r} {what}{why}{lasting}; next try in {self.retry_after:.3g} s",
            context=context,
            permanent=self.permanent,
            retry_after=self.retry_after,
        )
        error.__cause__ = cause
        return error


class StillCooling(msgspec.Struct, frozen=True):
    """The key failed so recently that it is left alone."""

    key: Hashable
    failures: int
    error_type: str
    permanent: bool
    retry_after: float

    def error(self, context: Any) -> PostroomError:
        """Make the error for one waiter."""
        return ResourceOpenError(
            f"the resources of {display_key(self.key)!r} are left alone after {self.failures} failure(s), "
            f"last {self.error_type}; next try in {self.retry_after:.3g} s",
            context=context,
            permanent=self.permanent,
            retry_after=self.retry_after,
        )


class HostDown(msgspec.Struct, frozen=True):
    """So many keys of the host failed that the host is left alone."""

    key: Hashable
    host: Hashable
    retry_after: float

    def error(self, context: Any) -> PostroomError:
        """Make the error for one waiter."""
        return ResourceOpenError(
            f"the host of {display_key(self.key)!r} is left alone after failures of several contexts on it; "
            f"next try in {self.retry_after:.3g} s",
            context=context,
            retry_after=self.retry_after,
            host=self.host,
        )


class TooLate(msgspec.Struct, frozen=True):
    """The deadline of the lease passed while it waited for an open, a check or its host."""

    key: Hashable
    waited_for: str

    def error(self, context: Any) -> PostroomError:
        """Make the error for one waiter."""
        return ResourceOpenError(
            f"the resources of {display_key(self.key)!r} were not ready by the lease's deadline: {self.waited_for}",
            context=context,
        )


class Exhausted(msgspec.Struct, frozen=True):
    """The deadline of the lease passed while it waited for budget or an opening."""

    key: Hashable
    waited_for: str

    def error(self, context: Any) -> PostroomError:
        """Make the error for one waiter."""
        return PoolExhaustedError(
            f"no room for the resources of {display_key(self.key)!r} by the deadline of the lease: {self.waited_for}",
            context=context,
        )


class PoolClosed(msgspec.Struct, frozen=True):
    """The pool was closed while this call waited."""

    name: str

    def error(self, context: Any) -> PostroomError:
        """Make the error for one waiter."""
        del context
        return ClosedError(f"{self.name} was closed while the lease waited")


Refusal = OpenFailed | StillCooling | HostDown | TooLate | Exhausted | PoolClosed
