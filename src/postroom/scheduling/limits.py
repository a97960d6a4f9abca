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
