"""Why a lease is refused, and the error that says so. Every waiter gets an instance of its own, with the cause."""

from collections.abc import Hashable
from typing import Any

import msgspec

from postroom.display import display_key
from postroom.errors import (
    ClosedError,
    ConfigurationError,
    PoolExhaustedError,
    PostroomError,
    ResourceOpenError,
    ResourceUnhealthyError,
)
from postroom.resources.causes import Cause, NotAProvider


def _open_error(
    kind: type[ResourceOpenError], text: str, cause: Cause | None, context: Any, **details: Any
) -> PostroomError:
    """Make the error for one waiter, with its cause and what the cause says."""
    if cause is None:
        return kind(text.format(""), context=context, **details)
    if isinstance(cause.error, NotAProvider) and cause.error.always:
        error: PostroomError = ConfigurationError(str(cause.error))
    else:
        error = kind(text.format(f" ({cause.text})"), context=context, **details)
    error.__cause__ = cause.error
    return error


class NotOpened(msgspec.Struct, frozen=True):
    """The provider failed while this call waited for it."""

    key: Hashable
    cause: Cause
    permanent: bool
    retry_after: float

    def error(self, context: Any) -> PostroomError:
        """Make the error for one waiter. The provider's exception is its ``__cause__``."""
        unhealthy = self.cause.unhealthy
        what = "there is no such tenant" if self.permanent else "are unhealthy" if unhealthy else "could not be opened"
        return _open_error(
            ResourceUnhealthyError if unhealthy else ResourceOpenError,
            _text(self.key, f"{what}{{}}; next try in {self.retry_after:.3g} s"),
            self.cause,
            context,
            permanent=self.permanent,
            retry_after=self.retry_after,
        )


class StillCooling(msgspec.Struct, frozen=True):
    """The key failed so recently that it is left alone."""

    key: Hashable
    failures: int
    cause: Cause | None
    permanent: bool
    retry_after: float

    def error(self, context: Any) -> PostroomError:
        """Make the error for one waiter."""
        why = "there is no such tenant" if self.permanent else f"left alone after {self.failures} failure(s)"
        return _open_error(
            ResourceOpenError,
            _text(self.key, f"{why}{{}}; next try in {self.retry_after:.3g} s"),
            self.cause,
            context,
            permanent=self.permanent,
            retry_after=self.retry_after,
        )


class HostDown(msgspec.Struct, frozen=True):
    """So many keys of the host failed that the host is left alone."""

    key: Hashable
    host: Hashable
    cause: Cause | None
    retry_after: float

    def error(self, context: Any) -> PostroomError:
        """Make the error for one waiter."""
        why = "their host is left alone after failures of several contexts on it"
        return _open_error(
            ResourceOpenError,
            _text(self.key, f"{why}{{}}; next try in {self.retry_after:.3g} s"),
            self.cause,
            context,
            retry_after=self.retry_after,
            host=self.host,
        )


class TooLate(msgspec.Struct, frozen=True):
    """The deadline of the lease passed while it waited for an open, a check or its host."""

    key: Hashable
    waited_for: str
    """The phase in which the deadline passed."""
    cause: Cause | None

    def error(self, context: Any) -> PostroomError:
        """Make the error for one waiter. Without an earlier failure the cause is a ``TimeoutError``."""
        text = f"not ready by the lease's deadline: {self.waited_for}"
        if self.cause is not None:
            return _open_error(ResourceOpenError, _text(self.key, f"{text}; last failure{{}}"), self.cause, context)
        error = ResourceOpenError(_text(self.key, text).format(), context=context)
        error.__cause__ = TimeoutError(self.waited_for)
        return error


class NoRoom(msgspec.Struct, frozen=True):
    """The deadline of the lease passed while it waited for budget or an opening."""

    key: Hashable
    waited_for: str
    cause: Cause | None = None

    def error(self, context: Any) -> PostroomError:
        """Make the error for one waiter. Its cause is the last failure of the key or its host, if there was one."""
        error = PoolExhaustedError(
            f"no room for the resources of {display_key(self.key)!r} by the deadline of the lease: {self.waited_for}",
            context=context,
        )
        error.__cause__ = None if self.cause is None else self.cause.error
        return error


class PoolClosed(msgspec.Struct, frozen=True):
    """The pool was closed while this call waited."""

    name: str

    def error(self, context: Any) -> PostroomError:
        """Make the error for one waiter."""
        del context
        return ClosedError(f"{self.name} was closed while the lease waited")


def _text(key: Hashable, what: str) -> str:
    """Return the text of an error as a template: what the cause says goes into it."""
    name = repr(display_key(key)).replace("{", "{{").replace("}", "}}")
    return f"the resources of {name}: {what}"


Refusal = NotOpened | StillCooling | HostDown | TooLate | NoRoom | PoolClosed
