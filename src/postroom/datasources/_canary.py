"""The canary: the question that every new connection is asked, and the answer that the registry expects."""

import os
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from postroom.datasources.registry import DataSource, WrongDatabase
from postroom.errors import ConfigurationError

CANARY: Final = "SELECT current_database(), current_user"
_PAIR: Final = re.compile(
    r"\s*([^\s=]+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*|(?=\s|$))", re.DOTALL
)
_URL: Final = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)


class Names(NamedTuple):
    """A database and a user; None where no name is known."""

    database: str | None
    user: str | None


def expected(source: DataSource, options: Mapping[str, Any] | None = None) -> Names:
    """Return the names that the canary must find.

    The names of the ``DataSource`` come first, then the provider's ``options``, then the DSN, then
    ``PGUSER`` and ``PGDATABASE``, as the drivers read them. A connection without a database's name
    goes to that of its user.

    Args:
        source: what the registry said.
        options: the keywords that the driver gets beside the DSN.
    """
    given = options or {}
    stated = Names(None, None) if given.get("service") else _names_of(source.dsn)
    user = _text(given.get("user")) or stated.user or os.environ.get("PGUSER")
    database = _text(given.get("database") or given.get("dbname")) or stated.database
    return Names(source.database or database or os.environ.get("PGDATABASE") or user, source.user or user)


def require_names(source: DataSource, options: Mapping[str, Any] | None = None) -> Names:
    """Return what the canary compares.

    Raises:
        ConfigurationError: nothing says which database is the right one, so a check would prove
            nothing.
    """
    names = expected(source, options)
    if names.database is None:
        remedy = "add DataSource(database=..., user=...), or pass canary=False to the provider"
        raise ConfigurationError(f"the canary cannot check this connection: the DSN names no database; {remedy}")
    return names


def verify(names: Names, database: str | bytes, user: str | bytes) -> None:
    """Compare what the connection says with what the registry says. Raises ``WrongDatabase``."""
    # psycopg returns bytes from a database without an encoding (SQL_ASCII).
    said = (each.decode(errors="replace") if isinstance(each, bytes) else each for each in (database, user))
    for what, is_one, should_be in zip(Names._fields, said, names, strict=True):
        if should_be is not None and is_one != should_be:
            raise WrongDatabase(f"the connection leads to {what} {is_one!r}, and the registry says {should_be!r}")


def is_url(dsn: str) -> bool:
    """Whether a DSN is a URL; otherwise it is written in pairs, ``host=db-1 dbname=acme``."""
    return _URL.match(dsn) is not None


def unreadable(driver: str) -> ConfigurationError:
    """Return what is raised for a DSN that a driver cannot read. It quotes nothing: a password may stand in it.

    Raise it outside of the ``except``: the driver's own error, which does quote, must not be its context.
    """
    hint = "is its password percent-encoded, as by urllib.parse.quote(password, safe='')?"
    return ConfigurationError(f"the registry's DSN is not one that {driver} understands; {hint}")


def is_torn(dsn: str) -> bool:
    """Whether a URL's user and password do not end where drivers say: "/" or "@" stands in the password.

    A driver would take a part of the password for the host, and name it in its errors.
    """
    if not is_url(dsn):
        return False
    server, _, path = dsn.partition("://")[2].partition("/")
    # Before "#" and "?" too: libpq takes them for a part of the password.
    torn_by_slash = "@" not in server and ":" in server and "@" in path.partition("?")[0]
    return torn_by_slash or server.count("@") > 1


def split(dsn: str) -> SplitResult:
    """Take a URL apart. Raises ``ConfigurationError``, which quotes nothing, where it is none."""
    try:
        return urlsplit(dsn)
    except ValueError:  # its text may hold the password
        scheme, _, rest = dsn.partition("://")
    # Since their releases of 2025 Pythons refuse an IPv6 address that is not the first of several hosts.
    servers = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "," in servers and servers.count("[") == servers.count("]"):
        return urlsplit(f"{scheme}://{rest.removeprefix(servers)}")._replace(netloc=servers)
    raise unreadable("Python")


def _names_of(dsn: str) -> Names:
    if not is_url(dsn):
        return _names_of_pairs(dsn)
    url = split(dsn)
    query = {name: values[-1] for name, values in parse_qs(url.query).items()}
    if "service" in query:  # a file on this machine may name another database, and we do not read it
        return Names(None, None)
    database = query.get("dbname") or query.get("database") or unquote(url.path[1:])
    user = query.get("user") or unquote(url.username or "")
    return Names(database or None, user or None)


def _names_of_pairs(dsn: str) -> Names:
    found = pairs_of(dsn)
    if found.get("service"):
        return Names(None, None)
    return Names(found.get("dbname") or None, found.get("user") or None)


def pairs_of(dsn: str) -> dict[str, str]:
    """Read a connection string as libpq does: ``key = value``, quotes and backslashes included; the last one counts.

    Nothing comes from one that the driver refuses, in words of its own.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(dsn.rstrip()):
        pair = _PAIR.match(dsn, at)
        if pair is None:
            return {}
        at = pair.end()
        value = pair[2][1:-1] if pair[2].startswith("'") else pair[2]
        found[pair[1]] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    return found


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
