"""The code in docs/transports.md runs as it stands, and what it quotes is what is said."""

import re
from pathlib import Path
from typing import Any

import pytest

from postroom.local import LocalServer
from support.aws import isolate_aws

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "transports.md").read_text(encoding="utf-8")
(RELAY,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


async def test_the_example_relays_messages(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """From one queue to another of a local server, by the hot path."""
    isolate_aws(monkeypatch)
    caplog.set_level("INFO", "postroom.transports")
    names: dict[str, Any] = {}
    exec(compile(RELAY, "transports.md", "exec"), names)  # noqa: S102 - the document's own code is what is tested
    async with LocalServer() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", server.endpoint_url)
        server.broker.create_queue("source")
        server.broker.create_queue("target")
        for number in range(3):
            server.broker.send("source", f"body {number}")
        assert await names["relay"]("source", "target") == 3
        assert await server.broker.receive("source", limit=10) == []
        assert len(await server.broker.receive("target", limit=10)) == 3
    assert any(line.startswith("SQS hot path: on, to 127.0.0.1:") for line in caplog.messages)
