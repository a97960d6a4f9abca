"""From a context to what the pool needs to know of it: its identity, its weight, its host."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

from postroom.checking import answered, shown
from postroom.display import display_key
from postroom.errors import ConfigurationError, ResourceError, ResourceOpenError
from postroom.log_fields import Log, Step, about
from postroom.program_end import ends_the_program, heed
from postroom.redaction import describe, hidden_values
from postroom.repeats import Repeats
from postroom.resources.entries import LeaseRequest
from postroom.resources.identity import Identifier, Identity
from postroom.tracebacks import place_of, raised_by_the_user

_log = Log("postroom.pool", Step.POLICY)

_PAUSE: Final = 2.0
"""Seconds until a function of the user's that failed for a context is asked about it again."""


class LeaseRequests:
    """Asks the user's functions about contexts, and says clearly what is wrong with an answer."""

    def __init__(
        self,
        *,
        key: Callable[[Any], Hashable] | None,
        weight: int | Callable[[Any], int],
        host: Callable[[Any], Hashable] | None,
        budget: int,
        per_host: int | Mapping[Any, int] | Callable[[Any], int | None] | None = None,
    ) -> None:
        self._key = key
        self._weight = weight
        self._host = host
        self._budget = budget
        self._per_host = per_host
        self.identify: Identifier = Identifier()
        self._repeats = Repeats()
        if per_host is not None and host is None:
            raise ConfigurationError("PoolLimits(per_host=...) needs ResourcePool(host=...), which names the hosts")
        if not callable(weight):
            self._check_weight(weight)
            if isinstance(per_host, int):
                _check_fits(weight, per_host)

    @property
    def fixed_weight(self) -> int | None:
        """What one tenant's resources weigh; None where that differs."""
        return None if callable(self._weight) else self._weight

    def identity(self, context: Any) -> Identity:
        """Return the identity of a context's key. Raises ``ResourceError`` where there is none."""
        return self._identity_of(context)[0]

    def request(self, context: Any) -> LeaseRequest:
        """Return everything that an open needs.

        Raises:
            ResourceOpenError: a function of the user's failed, or said what cannot work; what it raised is the cause.
            ResourceError: there is no key.
        """
        identity, key = self._identity_of(context)
        option = "weight="
        try:
            weight = self._weight(context) if callable(self._weight) else self._weight
            self._check_weight(weight)
            option = "host="
            host = self.host(context)
            option = "per_host="
            limit = self._limit_of(host)
            if limit is not None:
                _check_fits(weight, limit)
        except BaseException as error:
            heed(error)
            # An outage, as what a provider raises: a deployment with a mistake must not use up its messages' attempts.
            text = self._failed(option, key, context, error)
            raise ResourceOpenError(text, context=context, permanent=False, retry_after=_PAUSE) from error
        return LeaseRequest(identity, key, context, weight, host, limit)

    def place(self, context: Any) -> LeaseRequest | None:
        """Return what names a context's resources and their host; None where a function of the user's fails.

        Without a weight: for questions, which must not fail because of what only an open needs.
        """
        try:
            identity, key = self._identity_of(context)
        except ResourceError:
            return None
        return LeaseRequest(identity, key, context, 1, self.known_host(context))

    def known_host(self, context: Any) -> Hashable | None:
        """Return the host of a context; None also where ``host=`` fails."""
        try:
            return self.host(context)
        except BaseException as error:
            heed(error)
            # acquire() says what is wrong; a question about one context must not end its caller
            return None

    def host(self, context: Any) -> Hashable | None:
        """Return the host of a context; None without ``host=``. Raises what ``host=`` raises."""
        host = None if self._host is None else answered(self._host(context))
        try:
            hash(host)
        except TypeError:
            text = f"host= gave {shown(host)}, which cannot be hashed: let it return a text, such as a server's name"
            raise ConfigurationError(text) from None
        return host

    def _failed(self, option: str, key: Hashable, context: Any, error: BaseException) -> str:
        """Return what is wrong with an option. What a function of the user's raised has its traceback in the log."""
        name, theirs = display_key(key), raised_by_the_user(error) is not None
        if isinstance(error, ConfigurationError) and not theirs:
            return f"the resources of {name!r}: {error}"
        if theirs:
            text, extra = "%s failed for key %s; its resources cannot be opened", about(tenant=key)
            self._repeats.failed(option, _log, text, option, name, error=error, extra=extra)
        place = f" ({place_of(error).strip()})" if theirs else ""
        return f"{option} failed for {name!r}: {describe(error, hidden_values(context))}{place}"

    def _limit_of(self, host: Hashable | None) -> int | None:
        if self._per_host is None or host is None:
            return None
        limits = self._per_host
        limit: Any = limits
        if callable(limits):
            limit = limits(host)
        elif isinstance(limits, Mapping):
            limit = limits.get(host)
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise ConfigurationError(f"per_host= gave {limit!r}: it has to be a whole number of connections, or None")
        checked: int | None = limit
        return checked

    def no_key(self, context: Any, error: BaseException) -> ResourceError:
        """Make the error for a context without a usable key."""
        if self._key is None and isinstance(error, TypeError):
            text = f"a {type(context).__name__} cannot be hashed: make the context a frozen dataclass, or pass key="
        else:
            text = f"no key for context {display_key(context)}: {describe(error)}"
            text += "; key= has to return something hashable"
        return ResourceError(text, context=context)

    def _identity_of(self, context: Any) -> tuple[Identity, Hashable]:
        try:
            key: Hashable = context if self._key is None else self._key(context)
            identity = self.identify(key)
            hash(identity)
        except BaseException as error:
            if ends_the_program(error):
                raise
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


def _check_fits(weight: int, limit: int) -> None:
    if weight > limit:
        raise ConfigurationError(
            f"weight= gave {weight}, more than the whole budget of a host: raise PoolLimits(per_host={limit}) to at "
            f"least {weight}, or make each resource smaller"
        )
