"""The message attributes of ``--attribute``, which is repeatable."""

from collections.abc import Iterable
from typing import TypeVar

import click

T = TypeVar("T")


def once(attributes: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Return attributes by their names. One that is given twice is refused: which of its values is meant?"""
    found: dict[str, T] = {}
    for name, value in attributes:
        if name in found:
            raise click.UsageError(f"--attribute {name}=... is given twice: a message has one value for each name")
        found[name] = value
    return found
