"""Commands start with stdout or stderr closed, as daemons and some supervisors start them."""

import asyncio
import logging
import os
import signal
import sys
from typing import Any

import pytest

from postroom.cli import local
from postroom.cli.logs import log_to_stderr


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_closed_stderr_takes_no_lines_and_raises_nothing(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Python has None in its place then."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(sys, "stderr", None)
    log_to_stderr("info", form=form)
    logging.getLogger("postroom").warning("a line")
    assert len(root.handlers) == 1


def test_a_local_server_serves_with_stdout_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a signal says stop; its welcome goes nowhere."""

    class Server:
        broker = None

        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *_: object) -> None: ...

    def welcome(*_: object) -> str:
        os.kill(os.getpid(), signal.SIGTERM)  # its handler is there by now
        return "welcome"

    monkeypatch.setattr(local, "_welcome", welcome)
    monkeypatch.setattr(sys, "stdout", None)
    server: Any = Server()
    asyncio.run(local._serve(server, [], None))
