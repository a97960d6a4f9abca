"""A tenant as a row of text, as ``status`` and ``tenants list`` show it."""

from collections.abc import Mapping
from typing import Any, Final

from postroom.cli.tables import age, table

HEAD: Final = (
    "tenant", "state", "oldest", "run", "wait", "held", "parked", "rate/s", "p50", "p99", "share", "dead", "reason",
)  # fmt: skip


def tenants_table(said: Mapping[str, Any], now: float) -> str:
    """Return the tenants of one look as a table."""
    if not said["rows"]:
        return "No tenant has this in its name." if said["total"] else "No tenant has anything here now."
    return table(HEAD, (cells(row, now) for row in said["rows"]))


def cells(row: Mapping[str, Any], now: float) -> tuple[str, ...]:
    """Return the texts of one row. With a fleet, what runs is shown with the slots held here and the fleet's limit."""
    wait = row.get("w")
    running = str(row.get("run", 0))
    state = row.get("s", "active")
    if (fleet := row.get("fl")) is not None:
        running = f"{running}/{fleet[0]} of {fleet[1]}"
    elif row.get("cap"):
        running = f"{running}/{row['cap']}"
    return (
        row["n"],
        "limited" if state == "active" and (row.get("rl") or row.get("cl")) else state,
        "-" if wait is None else age(wait, now),
        running,
        *(str(row.get(name, 0)) for name in ("wait", "held", "away")),
        f"{row.get('rate', 0.0):.1f}",
        seconds(row.get("p50")),
        seconds(row.get("p99")),
        f"{row.get('share', 0.0) * 100:.0f} %",
        str(row.get("dead", 0)),
        row.get("why") or row.get("err") or "",
    )


def seconds(value: float | None) -> str:
    """Return a duration: ``40 ms``, ``2.3 s``."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s"
