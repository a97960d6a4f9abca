"""A pool of Django's own (``OPTIONS: {"pool": ...}``) that gives each user a connection as new."""

from collections.abc import Callable
from functools import partial
from typing import Any

from postroom.errors import ConfigurationError


def reset_between_users(connection: Any, seconds: float) -> None:
    """Let the pool of a connection's entry make its connections forget their last user, before it is made.

    Args:
        connection: Django's, of PostgreSQL, not yet open.
        seconds: how long that may take; then the connection is ended.

    Raises:
        ConfigurationError: it is another database's pool.
    """
    options = connection.settings_dict["OPTIONS"]
    if not (wanted := options.get("pool")):
        return
    if connection.vendor != "postgresql":
        text = f"{connection.vendor}'s would keep the state of a session from one user to the next"
        raise ConfigurationError(f'a tenant\'s entry must not have OPTIONS={{"pool": ...}}: {text}')
    import psycopg  # noqa: PLC0415 - Django requires it for a pool

    own: dict[str, Any] = {} if wanted is True else dict(wanted)
    kind = own.get("connection_class", psycopg.Connection)
    # What Django sets once for each connection of a pool. Its own method for that would take a connection of the pool.
    again = {"TimeZone": connection.timezone_name, "role": options.get("assume_role")}
    reset = partial(_reset, {name: value for name, value in again.items() if value}, own.get("reset"), seconds)
    options["pool"] = {**own, "connection_class": _remembering(kind), "reset": reset}


def _remembering(kind: Any) -> type[Any]:
    """Return a class of connections that remember how they were made."""
    from postroom.datasources.psycopg import remember  # noqa: PLC0415

    class Remembering(kind):
        @classmethod
        def connect(cls, *arguments: Any, **keywords: Any) -> Any:
            connection: Any = kind.connect.__func__(cls, *arguments, **keywords)
            remember(connection)
            return connection

    return Remembering


def _reset(again: dict[str, str], own: Callable[[Any], None] | None, seconds: float, connection: Any) -> None:
    from postroom.datasources._sync_connections import reset_sync_session  # noqa: PLC0415

    reset_sync_session(connection, seconds)
    for name, value in again.items():
        connection.execute("SELECT set_config(%s, %s, false)", [name, value])
    if own is not None:
        own(connection)
