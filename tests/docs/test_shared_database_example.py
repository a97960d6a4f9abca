"""The example with a shared database runs as it stands."""

from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.postgres


async def test_each_tenant_sees_its_own_orders_each_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three orders for each of two tenants, although one of them is sent twice."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from examples.shared_database import main

    await main.main()
    lines = capsys.readouterr().out.splitlines()
    assert Counter(line.split(",")[0] for line in lines) == {
        f"{tenant}: recorded order-{number}": 1 for tenant in ("acme", "globex") for number in (1, 2, 3)
    }
    # Transactions that run at the same time do not see each other's orders, and never those of the other tenant.
    assert {int(line.rsplit(" ", 1)[1]) for line in lines} <= {1, 2, 3}
