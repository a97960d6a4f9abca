"""The Valkey that tests start."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from postroom.errors import NotOpenError
from postroom.testing.valkey import ValkeyServer, find_server


def test_a_program_may_be_named_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has a directory of its own, in which it is not looked for."""
    program = find_server()
    if program is None:
        pytest.skip("no Valkey")
    (tmp_path / "valkey-server").symlink_to(program)
    monkeypatch.chdir(tmp_path)
    with ValkeyServer(program=Path("valkey-server")) as server:
        assert server.command("PING") == "+PONG"


_KILLED = """
import os, signal
from postroom.errors import NotOpenError
from postroom.testing.valkey import ValkeyServer
server = ValkeyServer().start()
server.restart()
print(server.command("PING"), len(os.listdir(os.environ["TMPDIR"])), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_no_files(tmp_path: Path) -> None:
    """The server's directory goes with it: its configuration has a password in it."""
    if find_server() is None:
        pytest.skip("no Valkey")
    # Its supervisor has the same stderr: the call returns when that has ended, too.
    done = subprocess.run(
        [sys.executable, "-c", _KILLED],
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"+PONG 1\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that starts it cannot be cancelled, so its work is undone."""
    if find_server() is None:
        pytest.skip("no Valkey")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = ValkeyServer()
    entering = asyncio.create_task(server.__aenter__(), name="entering")
    await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    with pytest.raises(NotOpenError):
        _ = server.port
    assert os.listdir(tmp_path) == []
