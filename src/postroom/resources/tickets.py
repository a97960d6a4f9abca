"""From a context to what the pool needs to know of it: its identity, its weight, its host."""

from collections.abc import Callable, Hashable
from typing import Any

from postroom.errors import ConfigurationError, ResourceError
from postroom.resources.entries import Ticket
from postroom.resources.identity import Identifier, Identity, display_key


class Tickets:
    """Asks the user's functions about contexts, and says clearly what is wrong with an answer."""

    def __init__(
        self,
        *,
        key: Callable[[Any], Hashable] | None,
        weight: int | Callable[[Any], int],
        host: Callable[[Any], Hashable] | None,
        budget: int,
    ) -> None:
        self._key = key
        self._weight = weight
        self._host = host
        self._budget = budget
        self.identify = Identifier()
        if isinstance(weight, int):
            self._check_weight(weight)

    def identity(self, context: Any) -> Identity:
        """Return the identity of a context's key. Raises ``ResourceError`` where there is none."""
        return self._identity_of(context)[0]

    def ticket(self, context: Any) -> Ticket:
        """Return everything that an open needs. Raises ``ResourceError`` or ``ConfigurationError``."""
        identity, key = self._identity_of(context)
        try:
            weight = self._weight if isinstance(self._weight, int) else self._weight(context)
            host = None if self._host is None else self._host(context)
            hash(host)
        except Exception as error:
            text = f"weight= or host= failed with {type(error).__name__} for {display_key(key)!r}"
            raise ResourceError(text, context=context) from error
        self._check_weight(weight)
        return Ticket(identity, key, context, weight, host)

    def no_key(self, context: Any, error: Exception) -> ResourceError:
        """Make the error for a context without a usable key."""
        if self._key is None and isinstance(error, TypeError):
            text = f"a {type(context).__name__} cannot be hashed: make the context a frozen dataclass, or pass key="
        else:
            text = f"no key for this context: {type(error).__name__}; key= has to return something hashable"
        return ResourceError(text, context=context)

    def _identity_of(self, context: Any) -> tuple[Identity, Hashable]:
        try:
            key: Hashable = context if self._key is None else self._key(context)
            identity = self.identify(key)
            hash(identity)
        except Exception as error:
            raise self.no_key(context, error) from error
        return identity, key

    def _check_weight(self, weight: object) -> None:
        if not isinstance(weight, int) or isinstance(weight, bool) or weight < 1:
            raise ConfigurationError(f"weight= gave {weight!r}: it has to be a whole number of connections, 1 or more")
        if weight > self._budget:
            raise ConfigurationError(
                f"weight= gave {weight}, more than the whole budget: raise PoolLimits(budget={self._budget}) to at "
                f"least {weight}, or make each resource smaller"
            )
