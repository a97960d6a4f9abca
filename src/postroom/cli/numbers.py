"""Numbers of the command line: what is none, or is out of range, is refused with what may be written."""

import math
from collections.abc import Callable
from typing import Any

import click


class WholeNumber(click.IntRange):
    """A whole number within limits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        return _converted(super().convert, self, "a whole number", (value, param, ctx))


class Number(click.FloatRange):
    """A number within limits. NaN and infinity are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        return _converted(super().convert, self, "a number", (value, param, ctx))


def _converted(
    convert: Callable[..., Any], kind: click.IntRange | click.FloatRange, name: str, asked: tuple[Any, Any, Any]
) -> Any:
    try:
        number = convert(*asked)
    except click.BadParameter:
        number = math.nan
    if math.isfinite(number):
        return number
    value, param, ctx = asked
    return kind.fail(f"it takes {name}{_limits(kind)}; got {value!r}", param, ctx)


def _limits(kind: click.IntRange | click.FloatRange) -> str:
    """Return the limits as the end of a sentence: `` from 0 to 65535``, `` above 0``."""
    if kind.min is None:
        return ""
    if kind.min_open:
        return f" above {kind.min:g}" + ("" if kind.max is None else f" and up to {kind.max:g}")
    return f" of at least {kind.min:g}" if kind.max is None else f" from {kind.min:g} to {kind.max:g}"
