"""The list of queues of one consumer: names with weights, or a function that lists them."""

import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, cast

from postroom.checking import check_function, check_queue, is_number, shown
from postroom.display import queue_name
from postroom.errors import ConfigurationError
from postroom.options import check_count, check_seconds

Listing = Iterable[str] | Mapping[str, float]
"""Queues by name, URL or ARN; as a mapping, with the weight of each."""

_NAMED: Final = 3
"""Queues that the name of a consumer tells, if it is given no other."""
_EXAMPLE: Final = 'queues=["orders", "invoices"]'


@dataclass(frozen=True, slots=True)
class Queues:
    """The queues that one consumer consumes: ``Consumer(queues=Queues(...))``. A list, a mapping or a function will do.

    The queues share the slots, the pool and the tenants of their consumer, and each message is settled in its own.

    **Weights.** While there is no room for everything, a queue of weight 3 has three messages received for each one of
    a queue of weight 1, as long as both have messages. Each queue that has messages gets its turn, so none starves.
    What was received then gets its slot by tenant, as ``Concurrency`` says. While there is room, weights do nothing.

    **Idle queues.** A long poll waits at each of ``watched`` queues at once, and what comes there is received at once.
    Where there are more, nothing waits: idle queues are looked at in turn, each ever more rarely, down to once in
    ``rest`` seconds. A message for such a queue waits for up to ``rest`` seconds and one for the look itself, or, with
    more than ``watched * rest`` queues, for one second for every ``watched`` of them. At $0.40 per million requests an
    idle queue costs $0.05 a month with a long poll (one request in 20 s), and $0.017 where it is looked at (one in 60).
    At most ``watched`` receives are outstanding at idle queues, and ``Polling.pollers`` at those that have messages,
    not counting up to 128 that are not answered.

    Args:
        which: names, URLs or ARNs; a mapping of them to weights; or a function without arguments, sync or async, that
            returns one of these. It is asked at the start and every ``every`` seconds. A queue that is new is opened;
            one that is gone is asked for nothing more; what is here of it is handled, with what a receive that is out
            may still bring, and then it is closed. A function may return none at all.
        name: what the consumer is called, in logs, metrics and health; by default by its queues, or its function.
        every: seconds between two questions to the function.
        watched: receives that may wait at idle queues.
        rest: the longest time in seconds between two looks at an idle queue.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    which: Listing | Callable[[], Listing | Awaitable[Listing]]
    _: KW_ONLY
    name: str | None = None
    every: float = 30.0
    watched: int = 16
    rest: float = 60.0

    def __post_init__(self) -> None:
        which: Any = self.which
        if callable(which):
            check_function("Queues(which)", "() -> names", which, arguments=0)
        else:
            weights = weights_of(which)
            if not weights:
                raise ConfigurationError(f"Queues(which) names no queue: write {_EXAMPLE}")
            object.__setattr__(self, "which", weights)
        title: object = self.name
        if title is not None and not (isinstance(title, str) and title.strip()):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f'Queues(name=...) takes a text, such as "sales"; got {shown(title)}')
        check_seconds("Queues", "every", self.every, least=1)
        check_seconds("Queues", "rest", self.rest, least=1)
        check_count("Queues", "watched", self.watched)

    @property
    def changes(self) -> bool:
        """Whether a function lists them, so that they may change."""
        return callable(self.which)

    @property
    def title(self) -> str:
        """What the consumer is called."""
        if self.name is not None:
            return self.name
        if callable(self.which):
            return getattr(self.which, "__name__", type(self.which).__name__)
        names = [queue_name(name) for name in self.which]
        if len(set(names)) < len(names):  # in two regions or accounts
            names = list(self.which)
        if len(names) <= _NAMED:
            return ", ".join(names)
        return f"{', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} more queues"

    async def ask(self) -> Mapping[str, float]:
        """Return the queues and their weights, as they are now.

        Raises:
            ConfigurationError: the function returned something else. What it raises itself comes through.
        """
        if not callable(self.which):
            return cast("Mapping[str, float]", self.which)
        found: Any = self.which()
        return weights_of(await found if inspect.isawaitable(found) else found)


def as_queues(given: object) -> Queues:
    """Return what ``Consumer(queues=...)`` takes as a ``Queues``."""
    return given if isinstance(given, Queues) else Queues(cast("Any", given))


def weights_of(listed: Any) -> dict[str, float]:
    """Return queues with their weights, checked."""
    if isinstance(listed, str | bytes) or not isinstance(listed, Iterable):
        text = "queues= takes a list of names, a mapping of names to weights, or a function that returns one of them"
        raise ConfigurationError(f"{text}: write {_EXAMPLE}; got {shown(listed)}")
    pairs: list[tuple[Any, Any]]
    if isinstance(listed, Mapping):
        pairs = list(cast("Mapping[Any, Any]", listed).items())
    else:
        pairs = [(name, 1.0) for name in cast("Iterable[Any]", listed)]
    weights: dict[str, float] = {}
    for name, weight in pairs:
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(f"queues= names queues by name, URL or ARN; got {shown(name)} among them")
        check_queue("queues=[...]", name)
        if name in weights:
            raise ConfigurationError(f"queues= names {name!r} twice; say a weight instead: queues={{{name!r}: 2}}")
        if not is_number(weight) or not 0 < weight < math.inf:
            raise ConfigurationError(f"the weight of queue {name!r} is a number above 0, such as 2; got {weight!r}")
        weights[name] = float(weight)
    return weights
