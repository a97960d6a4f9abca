"""docs/design.md names what there is: the modules of the consumer, the layers, and the steps of a stop."""

import re
import tomllib
from pathlib import Path

from postroom.consumer.lifecycle import Run

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "postroom"


def test_every_module_of_the_consumer_is_in_the_table() -> None:
    """And the table has no module that is gone."""
    [table] = re.findall(r"\| module of `consumer/` \|.*?\n\n", TEXT, flags=re.DOTALL)
    named = {name for row in table.strip().splitlines() for name in re.findall(r"`(\w+\.py)`", row.split("|")[1])}
    assert named == {path.name for path in (SOURCE / "consumer").glob("*.py")} - {"__init__.py"}


def test_the_layers_stand_in_the_order_that_is_checked() -> None:
    """What import-linter is told, bottom first, and every package of the project."""
    [layout] = re.findall(r"src/postroom/\n(.*?)```", TEXT, flags=re.DOTALL)
    shown = [word for line in layout.splitlines() for word in re.findall(r"(?:^  | )(\w+)(?:/|\.py)(?= |$)", line)]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = [re.findall(r"postroom\.(\w+)", layer) for layer in contracts[0]["layers"]]
    ranks = {name: rank for rank, layer in enumerate(reversed(layers)) for name in layer}
    ranked = [ranks[name] for name in shown if name in ranks]
    assert ranked == sorted(ranked)
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")} - {"integrations"}
    assert packages <= set(shown)


def test_the_stop_has_the_steps_that_its_docstring_has() -> None:
    """Eight, with the same beginnings."""
    [steps] = re.findall(r"## The eight steps of a stop\n(.*?)\n## ", TEXT, flags=re.DOTALL)
    said = re.findall(r"^(\d)\. (\w+ \w+)", steps, flags=re.MULTILINE)
    assert said == re.findall(r"^\s*(\d)\. (\w+ \w+)", Run.stop.__doc__ or "", flags=re.MULTILINE)
    assert len(said) == 8
