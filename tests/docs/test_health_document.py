"""The code of docs/health.md runs, and its probes ask for pages that there are."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import yaml

from postroom import Phase
from postroom.cli.health import health as command
from postroom.consumer.health import BLOCKED, SLACK
from postroom.integrations.health import PAGES
from postroom.options import Polling

TEXT = (Path(__file__).parents[2] / "docs" / "health.md").read_text(encoding="utf-8")


async def test_its_blocks_run_one_after_the_other() -> None:
    """And the application at the end answers for a consumer that was not started."""
    names: dict[str, Any] = {}
    exec(compile("".join(re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)), "health.md", "exec"), names)  # noqa: S102
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=names["app"]), base_url="http://shop") as asking:
        assert (await asking.get("/postroom/livez")).status_code == 200
        assert (await asking.get("/postroom/readyz")).status_code == 503


def test_probes_and_checks_ask_for_pages_and_commands_that_there_are() -> None:
    """YAML and JSON that can be copied."""
    probes = yaml.safe_load("".join(re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)))
    assert {probe["httpGet"]["path"].strip("/") for probe in probes.values()} == set(PAGES)
    [check] = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL)]
    assert check["healthCheck"]["command"] == ["CMD", "postroom", command.name]


def test_its_numbers_are_those_of_the_code() -> None:
    """The limits, and every phase."""
    assert f"({2 * Polling().wait + SLACK:.0f} s by default)" in TEXT
    assert f"blocked for {BLOCKED:.0f} s" in TEXT
    assert all(f"`{phase}`" in TEXT for phase in Phase)
