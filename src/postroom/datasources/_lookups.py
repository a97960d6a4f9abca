"""Names of hosts, looked up in threads of their own before a driver does so in those of the event loop.

The event loop has few threads for that, which all connections share, those to SQS too. A name server that does not
answer for some tenants would keep all of them, for longer than ``connect_timeout``: they cannot be interrupted.
"""

import asyncio
import ipaddress
import os
import socket
import threading
from collections.abc import Container
from contextlib import suppress

from postroom.datasources._threads import complete


class Lookups:
    """Looks each name up in one thread at a time, however many attempts wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    async def look_up(self, place: str) -> None:
        """Return when the name server has answered. What it answered the driver asks again, and tells.

        Args:
            place: where a connection is to lead: ``db-1:5432/acme``. Of several hosts none is looked up: a silent one
                must leave time for the others.
        """
        if (name := _name_in(place)) is None:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            first = name not in self._waiting
            self._waiting.setdefault(name, []).append(done)
        if first:
            try:
                threading.Thread(target=self._ask, args=(name,), name="postroom-lookup", daemon=True).start()
            except RuntimeError:  # the process has too many of them
                self._answer(name)
        await done

    def _ask(self, name: str) -> None:
        with suppress(OSError, UnicodeError):
            socket.getaddrinfo(name, None)
        self._answer(name)

    def _answer(self, name: str) -> None:
        with self._lock:
            waiting = self._waiting.pop(name)
        for done in waiting:
            complete(done, None, None)


LOOKUPS = Lookups()
"""Those of the process: tenants share hosts, whatever provides their resources."""


def lookups_of(parameters: Container[str]) -> Lookups | None:
    """Return those of the process, unless libpq is told an address beside the name: it looks nothing up then."""
    return None if "hostaddr" in parameters or os.environ.get("PGHOSTADDR") else LOOKUPS


def _name_in(place: str) -> str | None:
    server = place.rpartition("/")[0]
    head, _, port = server.rpartition(":")
    host = head if port.isdigit() and not _is_address(server) else server
    # A "/" is of a path: to a socket, or, of SQLAlchemy's, to a file.
    return None if not host or host.startswith("@") or set("/,") & set(host) or _is_address(host) else host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
