"""The code of docs/many-queues.md runs, and its numbers are those of the code."""

import re
from pathlib import Path
from typing import Any

from postroom import Consumer, Queues
from postroom.options import Polling

TEXT = (Path(__file__).parents[2] / "docs" / "many-queues.md").read_text(encoding="utf-8")
PRICE = 0.40 / 1e6
MONTH = 30 * 86_400


async def test_its_blocks_run_one_after_the_other() -> None:
    """And make consumers of the queues that they name."""
    names: dict[str, Any] = {}
    exec(compile("".join(re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)), "many-queues.md", "exec"), names)  # noqa: S102
    sales: Consumer[Any, Any] = names["sales"]
    assert await sales.list_queues() == ("orders", "invoices")
    assert await names["per_tenant"].list_queues() == ("orders-acme", "orders-beta")
    assert names["per_tenant"].queue == "orders"


def test_its_numbers_are_those_of_the_code() -> None:
    """Watched queues, rest, and what idle queues cost."""
    defaults = Queues(["a"])
    assert f"`Queues(watched={defaults.watched})`" in TEXT
    assert f"at most `rest={defaults.rest:g}` s" in TEXT
    assert f"({defaults.watched * defaults.rest:g} by default)" in TEXT
    assert f"${MONTH / Polling().wait * PRICE:.2f}" in TEXT
    assert f"${MONTH / defaults.rest * PRICE:.3f}" in TEXT
