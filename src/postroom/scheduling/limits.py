"""How much one tenant may have: caps and weights, the same for all or chosen per tenant, and live."""

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, Generic, TypeVar, cast

from postroom.checking import shown
from postroom.display import display_key
from postroom.log_fields import Log, Step, about
from postroom.program_end import heed
from postroom.redaction import describe

_log = Log("postroom.scheduling", Step.POLICY)

_MOST: Final = 1e9
"""More is no number of handlers, and no weight."""

N = TypeVar("N", int, float)
D = TypeVar("D", bound=float | None)

PerTenant = Mapping[Any, N] | Callable[[Any], N | None]


class Chosen(Generic[D]):
    """A number per tenant: a default, and who has another one.

    A mapping is asked again whenever it matters, so that changing it takes effect at once. A function may return None
    for the default.
    """

    __slots__ = ("_default", "_least", "_most", "_of", "_said", "_what", "_whole")

    def __init__(
        self,
        what: str,
        default: D,
        of: PerTenant[int] | PerTenant[float] | None,
        *,
        least: float = 1.0,
        whole: bool = False,
    ) -> None:
        self._what = what
        self._whole = whole
        self._most = math.inf if whole else _MOST
        self._least = least
        self._said = False
        self._default: D = default
        self._of: Callable[[Any], float | None] | None
        self._of = cast("Mapping[Any, float]", of).get if isinstance(of, Mapping) else of

    @property
    def varies(self) -> bool:
        """Whether anybody may have another number than the default."""
        return self._of is not None

    def __call__(self, tenant: Hashable) -> D | float:
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
        is_number = isinstance(chosen, int) or (isinstance(chosen, float) and not self._whole)
        if is_number and self._least <= chosen < self._most and chosen is not True:
            return cast("float", chosen)
        self._say(tenant, "chose %s, which is no such number", shown(chosen))
        return self._default

    def _say(self, tenant: Hashable, what: str, detail: str) -> None:
        """Tell of it once: a tenant's number is asked for with each decision."""
        if not self._said:
            self._said = True
            instead = "no limit" if self._default is None else f"{min(self._default, _MOST):g}"
            text = f"%s for tenant %s {what}; %s applies where that happens (said once)"
            extra = about(tenant=tenant)
            _log.error(text, self._what, display_key(tenant), detail, instead, extra=extra)
