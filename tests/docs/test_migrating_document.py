"""The code of ``docs/migrating.md`` that replaces a loop."""

import re
import runpy
from pathlib import Path

from postroom import Consumer

PAGE = Path(__file__).parents[2] / "docs" / "migrating.md"


def test_what_replaces_a_loop_is_a_whole_program(tmp_path: Path) -> None:
    """It has all that it needs, and makes a consumer of the queue."""
    [code] = re.findall(r"```python\n(# after\nfrom .*?)```", PAGE.read_text(), re.DOTALL)
    program = tmp_path / "shop.py"
    program.write_text(code)
    orders = runpy.run_path(str(program), run_name="shop")["orders"]
    assert isinstance(orders, Consumer)
    assert orders.queue == "orders"
