"""Where a tenant's data is, as people are told: host, port and database, and never a user or a password."""

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from postroom.datasources._canary import expected, is_torn, is_url, pairs_of, split
from postroom.datasources.registry import DataSource, Locate, located
from postroom.errors import ConfigurationError
from postroom.types import C

_UNKNOWN: Final = "the database"


def places(locate: Locate[C]) -> Callable[[C], Awaitable[str]]:
    """Return a function that asks the registry where a tenant's data is, and names the place: ``db-1:5432/acme``.

    It raises as the registry does.
    """

    async def place(context: C) -> str:
        return place_of(await located(locate, context))

    return place


def place_of(source: DataSource, options: Mapping[str, Any] | None = None) -> str:
    """Return where a data source is.

    Args:
        source: what the registry said.
        options: the keywords that the driver gets beside the DSN.
    """
    given = options or {}
    if is_torn(source.dsn):  # SQLAlchemy takes a "/" in a password
        head, _, query = source.dsn.partition("?")
        if "@" in query:  # of the password, too
            return _UNKNOWN
        scheme, _, rest = head.partition("://")
        source = replace(source, dsn=f"{scheme}://{rest.rpartition('@')[2]}?{query}")
    try:
        server = _joined(given["host"], given.get("port")) if given.get("host") else _server(source.dsn)
        return f"{server}/{expected(source, options).database or '?'}"
    except ConfigurationError:  # the driver says what is wrong with it, or can read it
        return _UNKNOWN


def _server(dsn: str) -> str:
    if not is_url(dsn):
        pairs = pairs_of(dsn)
        return _joined(pairs.get("host") or pairs.get("hostaddr"), pairs.get("port"))
    url = split(dsn)
    query = {name: values[-1] for name, values in parse_qs(url.query).items()}
    host, server = unquote(url.netloc.rpartition("@")[2]), dsn.partition("://")[2].partition("/")[0]
    if "@" not in url.netloc and ":" in url.netloc and "@" in server:
        host = unquote(server.rpartition("@")[2])  # a "#" or a "?" in the password, which libpq takes
    return _joined(query.get("host"), query.get("port")) if not host or "host" in query else host


def _joined(host: object, port: object) -> str:
    there = host or os.environ.get("PGHOST") or "localhost", port or os.environ.get("PGPORT")
    return ":".join(str(part) for part in there if part)
