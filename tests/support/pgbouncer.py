"""A real PgBouncer in transaction mode, where one is installed."""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from postroom.testing.postgres import HOST

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def pgbouncer(server_port: int, user: str, password: str) -> Iterator[int]:
    """Run one in front of a server and return its port. All clients share one connection per database.

    Args:
        server_port: the server's.
        user: who may log in.
        password: the user's.
    """
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as directory:
        yield from _run(Path(directory), server_port, f'"{user}" "{password}"\n')


def _run(directory: Path, server_port: int, users: str) -> Iterator[int]:
    assert PGBOUNCER is not None
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    configuration = directory / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n* = host={HOST} port={server_port}\n"
        f"[pgbouncer]\nlisten_addr = {HOST}\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = plain\nauth_file = {directory / 'users'}\n"
        "pool_mode = transaction\ndefault_pool_size = 1\n",
        encoding="utf-8",
    )
    (directory / "users").write_text(users, encoding="utf-8")
    command = [PGBOUNCER, str(configuration)]
    if getpass.getuser() == "root":  # it refuses root
        directory.chmod(0o755)
        command[1:1] = ["-u", "nobody"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_it_listens(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


def _wait_until_it_listens(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
    raise AssertionError(f"PgBouncer does not listen, exit code {process.poll()}")
