"""Connection attempts that end in time, and with the resource that they were made for.

The drivers' pools forget about attempts under way when they are closed: a connection would come to
life afterwards.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from postroom.datasources._lookups import Lookups
from postroom.errors import ClosedError
from postroom.resources.failures import of_server, of_user
from postroom.tasks import TimeLimit

T = TypeVar("T")


class Attempts(Generic[T]):
    """Makes the connections of one resource.

    Args:
        timeout: seconds that one attempt may take, the canary included.
        discard: ends a connection that will not be used.
        place: where they lead, as people are told.
        lookups: looks the name of their host up first; None where none is to be.
    """

    def __init__(
        self, timeout: float, discard: Callable[[T], Awaitable[None]], place: str, lookups: Lookups | None = None
    ) -> None:
        self._timeout = timeout
        self._place = place
        self._discard = discard
        self._lookups = lookups
        self._under_way: set[TimeLimit] = set()
        self._none = asyncio.Event()
        self._none.set()
        self._closed = False

    async def make(self, connect: Callable[[], Awaitable[T]], greet: Callable[[T], Awaitable[None]]) -> T:
        """Connect and let ``greet`` look at the connection; what it refuses is discarded.

        Raises:
            ClosedError: the resource was closed, before or meanwhile.
            TimeoutError: it took too long. This, and whatever else is raised, is ruled an outage: the
                message that needs the connection is not to blame.
        """
        if self._closed:
            raise _closed()
        deadline = TimeLimit(self._timeout)
        found = self._lookups is None
        self._none.clear()
        try:
            async with deadline:
                self._under_way.add(deadline)
                if self._lookups is not None:
                    await self._lookups.look_up(self._place)
                    found = True
                connection = await connect()
                try:
                    await greet(connection)
                    if self._closed:  # the attempt succeeded in the very turn in which close() ended it
                        raise _closed()
                except BaseException:
                    await self._discard(connection)
                    raise
                return connection
        except Exception as error:
            if isinstance(error, TimeoutError) and self._closed:
                raise _closed() from None
            if isinstance(error, TimeoutError) and deadline.expired():
                error = late(self._timeout, self._place)
                if not found:
                    error.add_note("the name server has not answered")
                raise error from None
            told = refused(error, self._place)
            raise told from told.__cause__
        finally:
            self._under_way.discard(deadline)
            if not self._under_way:
                self._none.set()

    async def close(self) -> None:
        """End every attempt under way and refuse others. Returns when none is left."""
        self._closed = True
        for deadline in self._under_way:
            deadline.end()
        await self._none.wait()


def late(timeout: float, place: str) -> TimeoutError:
    """Return the error for a connection that was not made in time."""
    return unanswered(f"no connection to {place} was made within {timeout:g} s (connect_timeout=)")


def refused(error: Exception, place: str) -> Exception:
    """Return an error for what was raised while a connection was made: an outage, unless the resource was closed."""
    if isinstance(error, ClosedError):
        return error
    if isinstance(error, TimeoutError) and not str(error):  # a password function's, for instance
        return unanswered(f"no connection to {place} was made: what it needs timed out", error)
    _name(place, error)
    return of_server(error)


def _name(place: str, error: Exception) -> None:
    """Say where a connection leads, unless the driver does: of a name that is not known, or a login, it does not."""
    server = place.rpartition("/")[0]
    host = server.rpartition(":")[0] or server
    notes = [] if host and host in str(error) else [f"connecting to {place}"]
    if isinstance(error, FileNotFoundError) and error.filename is None and not host.startswith("/"):
        notes.append("a file that the DSN names, such as sslrootcert=, is not there")
    for note in notes:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def unanswered(text: str, cause: BaseException | None = None) -> TimeoutError:
    """Return the error for a server that does not answer: an outage, and no failure of the message that waits."""
    error = TimeoutError(text)
    vars(error)["sqlstate"] = "08001"  # what PostgreSQL calls it when no connection can be made
    error.__cause__ = cause
    return of_server(error)


def spent() -> ClosedError:
    """Return the error for a pool that is closed while it is leased: a failure, and the next lease opens another."""
    return of_user(
        ClosedError(
            "the resources of this tenant are closed, by a stop or closed by a handler: it must not call close() on "
            "them, nor enter them with `async with`. The next lease opens them again"
        )
    )


def _closed() -> ClosedError:
    return ClosedError("the resources of this tenant were closed")
