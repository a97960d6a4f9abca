"""How much one tenant may have: caps and weights, the same for all or chosen per tenant, and live."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, TypeVar, cast

from postroom.checking import shown
from postroom.display import display_key
from postroom.log_fields import Log, Step, about
from postroom.redaction import describe
from postroom.tasks import heed

_log = Log("postroom.scheduling", Step.POLICY)

_MOST: Final = 1e9
"""More is no number of handlers, and no weight."""

N = TypeVar("N", int, float)

PerTenant = Mapping[Any, N] | Callable[[Any], N | None]


class Chosen:
    """A number per tenant: a default, and who has another one.

    A mapping is asked again whenever it matters, so that changing it takes effect at once. A function may return None
    for the default.
    """

    __slots__ = ("_default", "_least", "_name", "_of", "_said")

    def __init__(self, name: str, default: float, of: PerTenant[int] | PerTenant[float] | None) -> None:
        self._name = name
        self._least = 1 if name == "overrides" else 1e-9
        self._said = False
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
            chosen: Any = self._of(tenant)
        except BaseException as error:
            heed(error)
            self._say(tenant, "failed: %s", describe(error))
            return self._default
        if chosen is None:
            return self._default
        if isinstance(chosen, int | float) and self._least <= chosen < _MOST and chosen is not True:
            return chosen
        self._say(tenant, "chose %s, which is no such number", shown(chosen))
        return self._default

    def _say(self, tenant: Hashable, what: str, detail: str) -> None:
        """Tell of it once: a tenant's number is asked for with each decision."""
        if not self._said:
            self._said = True
            text = f"Concurrency(%s=...) for tenant %s {what}; %g applies where that happens (said once)"
            extra = about(tenant=tenant)
            _log.error(text, self._name, display_key(tenant), detail, self._default, extra=extra)
