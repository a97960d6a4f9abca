"""Tables, ages and durations as text."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_LONGEST: Final = 60


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows in columns under a head; numbers to the right. Values stay on their line."""
    body = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(head, *body, strict=True)]
    lines = [list(head), *body]
    numeric = [all(_is_number(row[place]) for row in body) for place in range(len(head))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def clipped(text: str, longest: int = _LONGEST) -> str:
    """Return a text on one line: without control characters, and cut where it is too long."""
    shown = "".join(character if character.isprintable() else " " for character in text[: 2 * longest])
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def age(moment: float | None, now: float) -> str:
    """Return how long ago a moment was: ``3 d``, ``25 min``."""
    if moment is None:
        return "-"
    seconds = max(0.0, now - moment)
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def duration(_ctx: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    """Read a duration such as ``90s``, ``15m``, ``2h`` or ``3d``; a bare number is in seconds."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a duration, such as 90s, 15m, 2h or 3d")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _cell(value: Any) -> str:
    return clipped(str(value))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit() or text == "-"
