"""What the scheduler keeps: tickets, the lane of each tenant, and message groups."""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Protocol

import msgspec
from typing_extensions import TypeVar


class Place(Enum):
    """Where a lane stands."""

    NOWHERE = "nowhere"
    """In no line, because it could not use a slot."""
    FRESH = "fresh"
    """In the line of newcomers: its tenant has had no slot yet."""
    IN_LINE = "in line"
    """In the line of the round ``Lane.round``."""


class State(Enum):
    """Where a ticket is in its life."""

    NEW = "new"
    """Not handed to the scheduler yet: its tenant is being resolved."""
    WAITING = "waiting"
    RUNNING = "running"
    SUSPENDED = "suspended"
    DONE = "done"


class Ticket(msgspec.Struct, eq=False):
    """One piece of work of one tenant, optionally of one message group. Subclass it to carry the work itself."""

    tenant: Hashable = None
    group: str | None = None
    state: State = State.NEW
    lane: "Lane[Any] | None" = None
    charge: float = 0.0
    """The seconds that its lane was charged for it when it got its slot."""
    paced: bool = False
    """Whether its slot took a permission from its tenant's pace, which is given back if nothing starts in it."""

    def is_again(self, earlier: "Ticket") -> bool:  # noqa: ARG002 - for what is derived from it
        """Whether this is the same work as an earlier ticket's, which has come again."""
        return False


T = TypeVar("T", bound=Ticket, default=Ticket)


class Lane(Generic[T]):
    """What one tenant has here: tickets that wait, how many run or are suspended, and what it has used."""

    __slots__ = (
        "asleep",
        "asleep_until",
        "blocked_since",
        "bound",
        "cap",
        "control",
        "estimate",
        "known",
        "over",
        "paused",
        "place",
        "round",
        "running",
        "served",
        "suspended",
        "tenant",
        "waiting",
        "weight",
        "withheld",
    )

    def __init__(self, tenant: Hashable, cap: int, weight: float, served: float, estimate: float) -> None:
        self.tenant: Hashable = tenant
        self.waiting: deque[T] = deque()
        self.running: int = 0
        self.suspended: int = 0
        self.blocked_since: float = 0.0
        self.cap: int = cap
        self.weight: float = weight
        self.served: float = served
        """Handler seconds charged so far, divided by the weight: the tenant's place in virtual time."""
        self.estimate: float = estimate
        """What the next handler call will probably take, in seconds."""
        self.place: Place = Place.NOWHERE
        self.round: int = 0
        """The round that it stands in line for, while it stands in one."""
        self.known: bool = False
        """Whether the scheduler finds it by its tenant: from its first ticket until it is empty."""
        self.over: bool = False
        """Whether it stands in line with those that are over their share."""
        self.asleep: bool = False
        """Whether it is granted nothing until it is woken, or until ``asleep_until``."""
        self.asleep_until: float | None = None
        self.paused: bool = False
        self.withheld: bool = False
        """Whether what bounds the slots of one tenant leaves it none for now."""
        self.control: Control | None = None
        self.bound: Bound | None = None

    @property
    def blocked(self) -> bool:
        """Whether it is granted nothing, however many slots are free: suspended, paused, asleep or withheld."""
        return self.suspended > 0 or self.paused or self.asleep or self.withheld

    @property
    def size(self) -> int:
        """Tickets of this tenant that are not done, those behind the head of a message group not counted."""
        return len(self.waiting) + self.running + self.suspended


class Pace:
    """A token bucket: at most ``rate`` starts per second in the long run, at most ``burst`` at once."""

    __slots__ = ("_at", "_burst", "_tokens", "rate")

    def __init__(self, rate: float, *, burst: float | None = None) -> None:
        self.rate: float = rate
        self._burst = max(1.0, rate if burst is None else burst)
        self._tokens = self._burst
        self._at: float | None = None

    def take(self, now: float, part: float = 1.0) -> float:
        """Take a token and return 0.0; or take none, and return the seconds until there is one.

        ``part`` is how much of the rate and of the burst applies since the last call.
        """
        rate, burst = self.rate * part, max(1.0, self._burst * part)
        since = now if self._at is None else self._at
        self._tokens = min(burst, self._tokens + (now - since) * rate)
        self._at = now
        # A hair less than one counts as one: a sum of floats that slept for exactly long enough may fall short.
        if self._tokens >= 1.0 - 1e-9:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / rate

    def give_back(self) -> None:
        """Give a token back: nothing started with it."""
        self._tokens = min(self._burst, self._tokens + 1.0)

    def follow(self, earlier: "Pace") -> None:
        """Take the place of another one of the same tenant, with no more tokens than that one has left."""
        # Of its own class: nothing else may know what is left.
        self._tokens, self._at = min(self._burst, earlier._tokens), earlier._at  # noqa: SLF001


class Bound:
    """What else bounds the slots of one tenant, for a while. Its lane keeps it, so that no message looks it up."""

    __slots__ = ("expires", "idle", "limit")

    def __init__(self) -> None:
        self.limit: int = 0
        """Slots that it leaves the tenant, until ``expires``."""
        self.expires: float = float("-inf")
        """From then on it has to be looked for again. What drops it sets this to the past."""
        self.idle: int = 0
        """Set to 0 whenever it is asked about what has work."""


class Bounds(Protocol):
    """Where bounds are found."""

    def time(self) -> float:
        """Return the time by which they expire."""
        ...

    def look(self, tenant: Hashable) -> tuple[int | None, Bound]:
        """Return how many slots a tenant may have now, None for no bound, and what says so until it expires."""
        ...


@dataclass(frozen=True, slots=True)
class Control:
    """What was decided about one tenant."""

    paused: bool = False
    pace: Pace | None = None
    cap: int | None = None
    exempt: Callable[[Any], bool] | None = None
    """Says which of its tickets start nothing that its pace is for; None: none of them."""


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """A snapshot of the scheduler's gauges."""

    running: int
    waiting: int
    suspended: int
    tenants: int


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """A snapshot of one tenant's lane."""

    running: int = 0
    waiting: int = 0
    suspended: int = 0
    estimate: float = 0.0
    """Handler seconds that one message of this tenant takes on average; 0.0 when it has nothing here."""


def lane_of(ticket: T) -> Lane[T]:
    """Return a ticket's lane. Raises ``ValueError`` where it has none."""
    if ticket.lane is None:
        text = "this ticket was never added, or waits behind the head of its message group"
        raise ValueError(text)
    return ticket.lane
