"""The code in docs/datasources.md runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest

from postroom import Consumer
from postroom.datasources import SqliteDatabase

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "datasources.md").read_text(encoding="utf-8")
REGISTRY, FILES, WORK, SERVER = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def _run(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, "datasources.md", "exec"), names)  # noqa: S102 - the document's own code is what is tested
    return names


async def test_the_registry_example_makes_a_pool_and_a_consumer() -> None:
    """Nothing is opened before it is entered."""
    names = _run(REGISTRY)
    assert isinstance(names["orders"], Consumer)
    assert names["databases"].statistics().budget == 200


async def test_the_sqlite_examples_record_an_order(tmp_path: Path) -> None:
    """With the schema of the first and the unit of work of the second."""
    names = _run(FILES.replace("/var/lib/orders", str(tmp_path)).replace("schema=", "create=True, schema="))
    names |= _run(WORK)
    tenant = type("Tenant", (), {"tenant_id": "a:b", "region": "c"})
    async with names["files"](tenant) as database:
        assert isinstance(database, SqliteDatabase)
        assert await names["record"](database, "order-001", "99.99") == 1
        assert [tuple(row) for row in await database.fetch("SELECT * FROM orders")] == [("order-001", "99.99")]


@pytest.mark.postgres
def test_the_server_example_survives_a_kill() -> None:
    """And is gone afterwards."""
    names = _run(SERVER)
    assert "tenant-a" in names["dsn"]
    assert not names["server"].running
