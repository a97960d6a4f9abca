"""A lease: the right to use one context's resources until it is given back."""

import asyncio
import warnings
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from postroom.display import Discreet, display_key
from postroom.errors import ClosedError
from postroom.resources.entries import Entry
from postroom.resources.failures import is_spent, is_suspect, is_timeout

R_co = TypeVar("R_co", covariant=True)


class LeaseHome(Protocol):
    """Where a lease goes back to."""

    def unused(self, entry: Entry) -> None:
        """Note that the last lease of an entry was given back."""
        ...

    def give_back(self, entry: Entry) -> None:
        """Take back one lease of an entry."""
        ...

    def distrust(self, entry: Entry, error: BaseException) -> None:
        """Lease this entry no more."""
        ...

    def doubt(self, entry: Entry) -> None:
        """Check this entry before its next lease."""
        ...

    def outage(self, entry: Entry, error: BaseException) -> bool:
        """Note what a use of this entry raised, if it is an outage of its server. Returns whether it is."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop on which leases are given back."""
        ...


class _Leased(Discreet, msgspec.Struct, eq=False):
    # A Struct, because one is made for every message: no code of Python's runs for that.
    _home: LeaseHome
    _entry: Entry | None

    def release(self) -> None:
        """Give the lease back. A second call does nothing."""
        entry = self._entry
        if entry is not None:
            # Before the pool is told: whatever that does, a second release finds nothing to give
            # back.
            self._entry = None
            entry.leases -= 1
            if not entry.leases:
                self._home.unused(entry)

    def report(self, error: BaseException) -> bool:
        """Tell the pool what the use of the resources raised; release it as usual afterwards.

        Returns True when the error is an outage (``postroom.is_outage``, or what the pool's ``outage=`` says): what
        used the resources is not to blame. A connection exception, refused credentials, a server that was shut down
        or became read-only make the resources *suspect*: they are leased no more and close behind their last lease,
        and the next lease opens new ones, which are checked first. Another outage, such as too many connections,
        counts as a failure of the key and of its host, as if an open had met it; the resources stay open, and
        ``pool.retry_after`` says how long to leave them alone.

        Returns False for any other error, and after the release. After a ``TimeoutError`` the resources are checked
        before the next lease, if the pool has a ``check=``, and after several on one host so is everything that is
        open there. Resources that a handler closed are replaced by the next lease, too; what met that has failed.
        """
        entry = self._entry
        if entry is None:
            return False
        # First: such an error is an outage as well, but the resource itself is broken, and kept
        # open it would fail the next lease, too.
        if is_suspect(error):
            self._home.distrust(entry, error)
            return True
        if is_spent(error):
            # No outage: a handler that closes what it uses would be tried without end.
            self._home.distrust(entry, error)
            return False
        if self._home.outage(entry, error):
            return True
        if is_timeout(error):
            self._home.doubt(entry)
        return False


class Held(_Leased, Generic[R_co], eq=False):
    """The resources of one context, until ``release``: for code that cannot forget to call it, nor keeps this."""

    resource: R_co
    """What was leased. After the release it may be closed."""

    def lease(self) -> "Lease[R_co]":
        """Return the same for code that may forget the release."""
        return Lease(self._home, self._entry)


class Lease(_Leased, Generic[R_co], eq=False):
    """The resources of one context, until ``release``.

    Also a context manager, sync and async, that gives the resources and releases them at the end; an exception that
    passes through is reported. A lease that is forgotten warns and gives itself back when it is collected.
    """

    @property
    def resource(self) -> R_co:
        """The resources. Raises ``ClosedError`` once the lease was released."""
        entry = self._entry
        if entry is None:
            raise ClosedError("this lease was released: its resources may be closed by now")
        resource: R_co = entry.resource
        return resource

    def __enter__(self) -> R_co:
        return self.resource

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            # Before the release, after which the entry may be closed or serve another lease.
            self.report(error)
        self.release()

    async def __aenter__(self) -> R_co:
        return self.resource

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __repr__(self) -> str:
        return f"Lease({'released' if self._entry is None else display_key(self._entry.key)})"

    def __del__(self) -> None:
        entry = self._entry
        if entry is None:
            return
        loop = self._home.loop
        if loop is not None and not loop.is_closed():  # the collector may run in any thread
            loop.call_soon_threadsafe(self._home.give_back, entry)
        warnings.warn(f"a lease of {display_key(entry.key)!r} was never released", ResourceWarning, stacklevel=1)


class LeaseScope(Generic[R_co]):
    """What ``async with pool.lease(context)`` enters: it acquires, gives the resources, and releases."""

    __slots__ = ("_arguments", "_lease", "_pool")

    def __init__(self, pool: "Acquiring", context: Any, timeout: float | None) -> None:
        self._pool = pool
        self._arguments = (context, timeout)
        self._lease: Lease[R_co] | None = None

    async def __aenter__(self) -> R_co:
        if self._lease is not None:
            raise RuntimeError("this lease() is in use: call pool.lease() again for each `async with`")
        context, timeout = self._arguments
        # Without a coroutine first: nearly every lease finds its resource open.
        lease: Lease[R_co] = self._pool.try_lease(context) or await self._pool.acquire(context, timeout=timeout)
        self._lease = lease
        return lease.resource

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.__exit__(kind, error, traceback)


class Acquiring(Protocol):
    """What a scope needs of a pool."""

    def try_lease(self, context: Any) -> Lease[Any] | None:
        """Lease without waiting."""
        ...

    async def acquire(self, context: Any, *, timeout: float | None = None) -> Lease[Any]:
        """Wait for a lease."""
        ...
