"""The PostgreSQL of a test process, asked over a connection: a psql for each statement takes most of a test's time."""

import threading
from typing import Any, Self

import psycopg
from psycopg.pq import ExecStatus

from postroom.testing.postgres import PostgresError, PostgresServer

_ROWS = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.EMPTY_QUERY)


class QuickServer(PostgresServer):
    """A server that is asked over connections: ``execute`` keeps one to the database ``postgres`` alone."""

    def __init__(self) -> None:
        super().__init__(settings={"scram_iterations": "1"})
        self._kept: dict[str, psycopg.Connection[Any]] = {}
        self._lock = threading.Lock()

    def start(self) -> Self:
        """Start the server, with a password that costs a client two milliseconds less for each connection."""
        super().start()
        self.execute(f"ALTER ROLE {self.user} PASSWORD '{self.password}'")
        return self

    def execute(self, sql: str, *, database: str = "postgres") -> str:
        """Run SQL as the superuser and return the rows of its last statement as ``PostgresServer.execute`` does."""
        if database != "postgres":
            with self._connect(database) as connection:
                return _run(connection, sql)
        return self.look(sql, database=database)

    def look(self, sql: str, *, database: str) -> str:
        """Run SQL as ``execute`` does, over a connection to the database that is kept until ``look_away``."""
        with self._lock:
            kept = self._kept.get(database)
            if kept is None or not _lives(kept):
                kept = self._kept[database] = self._connect(database)
            return _run(kept, sql)

    def look_away(self, database: str) -> None:
        """Close the connection that was kept, if any. Returns when the server has seen that it is gone."""
        with self._lock:
            kept = self._kept.pop(database, None)
            if kept is None or kept.closed:
                return
            process = kept.info.backend_pid
            kept.close()
        while self.running and self.execute(f"SELECT pid FROM pg_stat_get_activity({process})"):
            pass

    def stop(self) -> None:
        """Stop the server."""
        with self._lock:
            for kept in self._kept.values():
                kept.close()
        super().stop()

    def _connect(self, database: str) -> psycopg.Connection[Any]:
        try:
            return psycopg.connect(self.dsn(database), autocommit=True, connect_timeout=10)
        except psycopg.Error as error:
            raise PostgresError(f"PostgreSQL refused a connection: {error}") from None


def _lives(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the server still knows a connection: it may have been killed since."""
    try:
        connection.execute("SELECT")
    except psycopg.Error:
        return False
    return True


def _run(connection: psycopg.Connection[Any], sql: str) -> str:
    result = connection.pgconn.exec_(sql.encode())
    if result.status not in _ROWS:
        raise PostgresError(f"PostgreSQL refused a statement: {result.get_error_message()}")
    columns = range(result.nfields)
    rows = ([result.get_value(row, column) or b"" for column in columns] for row in range(result.ntuples))
    return "\n".join(b"|".join(row).decode() for row in rows)
