"""Every adapter against its budget, and under outages of each kind: nothing lost, nothing wrongly dead-lettered.

POSTROOM_OUTAGES says for how many seconds each outage lasts; then 100 databases and every adapter take part, and the
tables are printed. In the suite there are fewer of both.
"""

import os
from collections.abc import Iterator
from dataclasses import astuple

import pytest

from integration.faults.outages import KINDS, Databases, Row, spend, suffer
from postroom.testing.postgres import PostgresServer
from support.ways import WAYS

SECONDS = float(os.environ.get("POSTROOM_OUTAGES", "0"))
LONG = SECONDS > 0
TENANTS = 100 if LONG else 12
TRIED = ["own provider", "asyncpg", "ORM session", "psycopg in threads"]
IN_THE_SUITE = ["53300", "killed backends"]
"""What the suite tries. test_real_faults has some of the others."""
pytestmark = [pytest.mark.long, pytest.mark.postgres, pytest.mark.timeout(900 if LONG else 120)]


@pytest.fixture(scope="module")
def databases() -> Iterator[Databases]:
    """A server of its own, for outages that change its users and settings."""
    with PostgresServer() as server:
        made = Databases(server, TENANTS)
        made.make()
        yield made


async def test_no_adapter_has_more_connections_than_its_budget(databases: Databases) -> None:
    """As the server counts them, with many more tenants than fit into the budget; and none is left at the end."""
    counts = await spend(databases, ways=WAYS, rounds=1, budget=12 if LONG else 4)
    print("\n| adapter | orders | missing | budget | most backends | at exit |\n|---|---|---|---|---|---|")
    for count in counts:
        print("| " + " | ".join(map(str, astuple(count))) + " |")
    assert [count.way for count in counts if count.missing or count.left or not 0 < count.most <= count.budget] == []


@pytest.mark.parametrize("kind", KINDS if LONG else IN_THE_SUITE)
async def test_an_outage_costs_time_and_nothing_else(databases: Databases, kind: str) -> None:
    """Whatever the kind: all orders are in their own tenants' databases, and no message is in the dead-letter queue."""
    ways = [way for way in WAYS if LONG or way.name in TRIED]
    budget = 12 if LONG else 4
    rows, lines = await suffer(databases, kind, ways=ways, seconds=SECONDS or 1.0, budget=budget, rate=5)
    for row in rows:
        print(_cells(row))
    print(f"\nThe log in words ({kind}):")
    for line, count in lines.most_common():
        print(f"{count:4} x {line}")
    assert [(row.way, row.lost, row.dead) for row in rows if row.lost or row.dead] == []
    assert all(row.first >= 0 for row in rows)


def _cells(row: Row) -> str:
    figures = (len(row.sent), row.lost, row.dead, row.failures, f"{row.first:.1f} s", f"{row.last:.1f} s")
    return f"| {row.kind} | {row.way} | " + " | ".join(map(str, figures)) + " |"
