"""The Valkey that tests start."""

from pathlib import Path

import pytest

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
