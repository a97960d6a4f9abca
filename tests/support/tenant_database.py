"""A tenant's real database, and the server's own view of it."""

from dataclasses import dataclass

from support.quick_postgres import QuickServer

CLIENT = "backend_type = 'client backend'"
"""What tells a connection from the server's own workers: autovacuum is at work in a database now and then."""


@dataclass(frozen=True)
class TenantDatabase:
    """A database of its own for one test, and what the server counts there."""

    server: QuickServer
    name: str

    @property
    def dsn(self) -> str:
        """The URL, as the registry would know it."""
        return self.server.dsn(self.name)

    def look(self, sql: str) -> str:
        """Run SQL over a connection that is kept until the connections are counted."""
        return self.server.look(sql, database=self.name)

    def backends(self) -> int:
        """Return how many connections the server counts in this database."""
        self.server.look_away(self.name)
        sql = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{self.name}' AND {CLIENT}"
        return int(self.server.execute(sql))

    def sessions(self) -> int:
        """Return how many connections there ever were in this database, once none is open: each is counted by then."""
        self.wait_for_backends(0)
        return int(self.server.execute(f"SELECT sessions FROM pg_stat_database WHERE datname = '{self.name}'"))

    def wait_for_backends(self, expected: int) -> None:
        """Wait until the server counts as many connections; a backend notices a closed socket a moment later."""
        for _ in range(500):
            if self.backends() == expected:
                return
        assert self.backends() == expected
