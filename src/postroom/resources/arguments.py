"""The arguments of a ``ResourcePool``, typed for those that pass them on, and checked."""

import random
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any, Final, Generic, TypedDict

from typing_extensions import TypeVar

from postroom.checking import check_function, check_kind, check_plain, listed
from postroom.errors import ConfigurationError
from postroom.events import Observer
from postroom.options import OpenBackoff, PoolLimits, PoolTimeouts
from postroom.resources.failures import OpenFailure

C = TypeVar("C", default=Any)


class PoolArguments(TypedDict, Generic[C], total=False):
    """The keywords of a pool, but for provider and cleanup."""

    key: Callable[[C], Hashable] | None
    classify: Callable[[BaseException], OpenFailure] | None
    outage: Callable[[BaseException], bool] | None
    host: Callable[[C], Hashable] | None
    limits: PoolLimits
    timeouts: PoolTimeouts
    backoff: OpenBackoff
    observers: Iterable[Observer]
    name: str
    jitter: random.Random | None
    weight: int | Callable[[C], int] | None
    check: Callable[[Any], Awaitable[object]] | None


_FUNCTIONS: Final = {
    "key": "(context) -> key",
    "host": "(context) -> host",
    "check": "(resource), async",
    "classify": "(error) -> OpenFailure",
    "outage": "(error) -> bool",
    "weight": "(context) -> connections",
}
_KINDS: Final[dict[str, tuple[type, str]]] = {
    "limits": (PoolLimits, "limits=PoolLimits(budget=100)"),
    "timeouts": (PoolTimeouts, "timeouts=PoolTimeouts(open=10)"),
    "backoff": (OpenBackoff, "backoff=OpenBackoff(base=1)"),
    "name": (str, 'name="databases"'),
    "jitter": (random.Random, "jitter=random.Random(7)"),
}
_ELSEWHERE: Final = {
    "budget": "write limits=PoolLimits(budget=...)",
    "size": "connections per tenant are max_size= of the provider",
    "max_size": "connections per tenant are max_size= of the provider",
    "pool_size": "connections per tenant are max_size= of the provider",
    "timeout": "write timeouts=PoolTimeouts(lease=...)",
}


def check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse what a pool cannot work with."""
    for name, call in _FUNCTIONS.items():
        if (value := arguments.get(name)) is not None:
            check = check_function if name == "check" else check_plain
            check(f"ResourcePool({name}=...)", call, value)
    for name, (kind, example) in _KINDS.items():
        value = arguments.get(name)
        if value is not None or name != "jitter":
            check_kind(f"ResourcePool({name}=...)", value, kind, example)
    for observer in listed("ResourcePool(observers=...)", "observers=[observer]", arguments["observers"]):
        check_function("ResourcePool(observers=...)", "(Event)", observer)


def check_names(what: str, names: Iterable[str]) -> None:
    """Refuse keywords that a pool does not have, and say where they belong."""
    known = PoolArguments.__optional_keys__
    for name in names:
        if name not in known:
            hint = _ELSEWHERE.get(name, f"it has {', '.join(sorted(known))}")
            raise ConfigurationError(f"{what} has no argument {name!r}: {hint}")
