"""How much one tenant may have: caps and weights, the same for all or chosen per tenant, and live."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar, cast

from postroom.tasks import ends_the_program

N = TypeVar("N", int, float)

PerTenant = Mapping[Any, N] | Callable[[Any], N | None]


class Chosen:
    """A number per tenant: a default, and who has another one.

    A mapping is asked again whenever it matters, so that changing it takes effect at once. A function may return None
    for the default.
    """

    __slots__ = ("_default", "_of")

    def __init__(self, default: float, of: PerTenant[int] | PerTenant[float] | None) -> None:
        self._default = default
        self._of: Callable[[Any], float | None] | None
        self._of = cast("Mapping[Any, float]", of).get if isinstance(of, Mapping) else of

    @property
    def varies(self) -> bool:
        """Whether anybody may have another number than the default."""
        return self._of is not None

    def __call__(self, tenant: Hashable) -> float:
        """Return a tenant's number. A choice that fails, or makes no sense, is the default."""
        if self._of is None:
            return self._default
        try:
            chosen = self._of(tenant)
        except BaseException as error:
            if ends_the_program(error):
                raise
            return self._default
        return self._default if chosen is None or not chosen > 0 else chosen


class Within(Chosen):
    """Numbers per tenant that something else bounds, down to none at all, and may bound otherwise at any time.

    Args:
        numbers: what a tenant may have otherwise.
        bound: asked with every decision; None for no bound.
    """

    __slots__ = ("_bound", "_number", "numbers")

    def __init__(self, numbers: Chosen, bound: Callable[[Any], int | None]) -> None:
        super().__init__(0, None)
        self.numbers = numbers
        self._bound = bound
        self._number = None if numbers.varies else numbers(None)

    @property
    def varies(self) -> bool:
        """Whether any tenant may have another number than before."""
        return True

    def __call__(self, tenant: Hashable) -> float:
        """Return a tenant's number."""
        number = self.numbers(tenant) if self._number is None else self._number
        bound = self._bound(tenant)
        return number if bound is None or number < bound else bound
