"""What a PostgreSQL connection forgets before its next user gets it.

``DISCARD ALL`` would forget the statements that the drivers have prepared as well, and each of them
would be prepared again at its next use. So everything else is named, in one round trip: a tenth of
a millisecond of the server's time.
"""

from typing import Any, Final

from postroom.datasources._lost import chain
from postroom.log_fields import Log, Step
from postroom.redaction import sqlstate_of

RESET: Final = (
    "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); "
    "DISCARD SEQUENCES; DISCARD TEMP; SELECT name FROM pg_prepared_statements WHERE from_sql"
)
"""Its last result lists the statements of SQL's own PREPARE, which are rare: ``DEALLOCATE`` is for them.

``RESET SESSION AUTHORIZATION`` comes first: only the user who logged in may reset everything else.
"""

DEALLOCATE: Final = (
    "DO $$ DECLARE found text; BEGIN FOR found IN SELECT name FROM pg_prepared_statements WHERE from_sql "
    "LOOP EXECUTE format('DEALLOCATE %I', found); END LOOP; END $$"
)

_NAMES: Final = "_postroom_names"
"""Where a connection keeps the names of the attributes that it had before its first use."""

_log = Log("postroom.datasources", Step.RESOURCES)


def remember_attributes(connection: object) -> None:
    """Remember the names of a new connection's attributes."""
    own: dict[str, object] = vars(connection)
    own[_NAMES] = frozenset(own)


def forget_attributes(connection: object) -> None:
    """Take away what a user has set at a connection as an attribute, but for names that begin with an underscore."""
    own: dict[str, Any] = vars(connection)
    for name in own.keys() - own.get(_NAMES, own):
        if not name.startswith("_"):  # drivers set some of their own at their first use
            del own[name]


def prepare_again(error: BaseException, connection: Any) -> None:
    """Let psycopg prepare its statements again where one was refused, as its table is another one since (0A000).

    By itself it does so after a rollback only: without one, as in autocommit, each later use of the connection fails.
    """
    if hasattr(connection, "_prepared") and any(sqlstate_of(each) == "0A000" for each in chain(error)):
        connection._prepared.clear()  # noqa: SLF001 - psycopg has no other way


class LostCodecs:
    """Tells once for a provider what it costs when handlers change the codecs of their connections."""

    def __init__(self) -> None:
        self._told = False

    def ended(self) -> None:
        """Note that a connection ends because of that."""
        if not self._told:
            self._told = True
            _log.warning(
                "A connection ends because its handler has changed a type codec, which asyncpg cannot undo: after each "
                "such use another one is made. Set codecs where connections are made: in init=, or in "
                "options={'setup': ...}; with SQLAlchemy in a listener of the engine's event \"connect\""
            )
