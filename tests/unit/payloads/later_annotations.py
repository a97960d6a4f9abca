"""Handlers in a module with annotations that are text, as ``from __future__ import annotations`` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers


@dataclass
class Order:
    """A payload."""

    order_id: str


async def known(order: Order, ctx: OnlyForCheckers) -> None:
    """Its context exists for type checkers only, which concerns no caller."""


async def unknown(order: OnlyForCheckers, ctx: Any) -> None:
    """Its payload exists for type checkers only."""


async def nested(orders: list[Order | None], ctx: Any) -> None:
    """Its payload is text with types in it."""


def made_here() -> Any:
    """Return a handler with a local payload type, which it uses."""

    @dataclass
    class Local:
        order_id: str

    async def handler(order: Local, ctx: Any) -> None:
        """Use the local type."""
        assert isinstance(order, Local)

    return handler, Local
