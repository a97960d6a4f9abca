"""What happens in one schedule: everything that a seed decides before the first step."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any

import postroom
from postroom import AckMode, Concurrency, Polling, RetryPolicy, Shutdown, Visibility
from postroom.options import OpenBackoff, PoolLimits, PoolTimeouts
from postroom.testing.databases import Trouble
from postroom.testing.faults import ClientFaults


class Kind(StrEnum):
    """How a message's handling goes."""

    WELL = "well"
    FAILS = "fails"
    """The first attempts raise."""
    BREAKS = "breaks"
    """The first attempts raise a ConnectionError, as if their resource had broken."""
    POISON = "poison"
    """Every attempt raises."""
    RETRIES = "retries"
    """The first attempts raise ``Retry``."""
    ASKS_RETRY = "asks retry"
    """The first attempts await ``ctx.retry()`` and return."""
    REJECTS = "rejects"
    CANCELS = "cancels"
    """The first attempts raise a CancelledError of their own."""
    CANCELS_ITSELF = "cancels itself"
    """The first attempts cancel the task that they run in, as old libraries for time limits do."""
    STUBBORN = "stubborn"
    """Goes on for a while when it is cancelled."""
    ACKS = "acks"
    """Awaits ``ctx.ack()`` after its commit, then goes on."""
    MALFORMED = "malformed"
    """The body is not JSON."""
    NOBODY = "nobody"
    """No tenant attribute."""
    STRANGER = "stranger"
    """A tenant that does not exist."""
    PANICS = "panics"
    """The first attempts raise a BaseException of their own, alone or in a group."""
    LETS_OUT = "lets out"
    """The first attempts raise the ``OwnershipLost`` of another message, as of a context that was kept."""


LINE = 35.0
"""Seconds for which letters may stand in line after the time in which none was taken."""
ENDLESS = frozenset({Kind.POISON, Kind.REJECTS, Kind.MALFORMED, Kind.NOBODY, Kind.STRANGER})
"""These leave the queue only for a dead-letter queue."""


class Reaction(StrEnum):
    """What a handler does when it is cancelled, by the consumer or by its time limit."""

    OBEYS = "obeys"
    TRANSLATES = "translates"
    """It raises an error of its own, as many a driver does."""
    GOES_ON = "goes on"
    """It swallows the cancellation and does its work to the end."""
    FAILS_LATER = "fails later"
    """It swallows the cancellation, goes on, and fails."""
    RAISES_ANOTHER = "raises another"
    """It raises a CancelledError that it made itself."""


@dataclass(frozen=True, slots=True)
class OrderPlan:
    """One message: when it is sent, its tenant, and how its handling goes."""

    key: str
    tenant: str
    group: str | None
    at: float
    kind: Kind
    seconds: float
    attempts: int
    """How many attempts go wrong, where some do."""
    reaction: Reaction = Reaction.OBEYS


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens to the system."""

    at: float
    what: str
    index: int
    tenant: str
    seconds: float
    trouble: Trouble
    grace: float
    control: str
    """What an operator decides about the tenant, where that is what happens."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A time in which every handler call of one tenant fails."""

    tenant: str
    start: float
    end: float
    suspect: bool
    """Whether it fails with a ConnectionError, so that the resource is not trusted any longer."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A time in which every statement of a tenant's handlers is cut, as behind a proxy, although connecting works."""

    tenant: str
    start: float
    end: float


class OpenError(StrEnum):
    """How a broken deployment fails each open."""

    UNKNOWN_TENANT = "unknown tenant"
    MISSING_VARIABLE = "missing variable"
    """A bare KeyError."""
    NO_PERMISSION = "no permission"
    WRONG_PASSWORD = "wrong password"
    BUG = "bug"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A time in which every open of some tenants fails for good; the next deployment heals it."""

    tenants: tuple[str, ...]
    start: float
    end: float
    error: OpenError


@dataclass(frozen=True, slots=True)
class Raising:
    """A time in which one of the user's functions raises."""

    function: str
    tenant: str | None
    """For which tenant; None for all of them."""
    start: float
    end: float
    part: float
    """How many of its calls."""


@dataclass(frozen=True, slots=True)
class Redrive:
    """A change of the queue's redrive policy."""

    at: float
    max_receives: int | None


class Operation(StrEnum):
    """A kind of call of a consumer."""

    EXTEND = "extend"
    CHANGE = "change"
    """A visibility change that is no extension."""
    DELETE = "delete"
    SEND = "send"
    OPEN = "open"


class How(StrEnum):
    """What is in the way of a call."""

    HANGS = "hangs"
    """No answer until the time is over; it takes effect before that, or after it."""
    SLOW = "slow"
    DENIED = "denied"
    THROTTLED = "throttled"
    REFUSED = "refused"
    """Each entry is refused, although the next try may succeed."""
    BEYOND = "beyond"
    """Each entry is refused for good, and not for its receipt handle: a message that was held for twelve hours."""


@dataclass(frozen=True, slots=True)
class Obstruction:
    """A time in which calls of one kind do not get through."""

    call: Operation
    how: How
    start: float
    end: float
    queue: str = ""
    """The beginning of the names of the queues that it concerns."""
    part: float = 1.0
    """How many of the calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole schedule."""

    seed: int
    fifo: bool
    ack: AckMode
    max_receives: int | None
    tenants: tuple[str, ...]
    orders: tuple[OrderPlan, ...]
    events: tuple[Event, ...]
    broken: tuple[Broken, ...]
    processes: int
    faults: ClientFaults
    storm: ClientFaults
    options: dict[str, Any]
    limits: PoolLimits
    timeouts: PoolTimeouts
    backoff: OpenBackoff
    hosts: int
    """How many hosts the tenants' databases are on, as the pool is told; 0 if it is not."""
    shared_pool: bool
    """Whether the process enters a pool of its own, or the consumer makes one."""
    slow_resolver: float
    """Seconds of an async resolver; 0 for a sync one."""
    idempotent: bool
    """Whether a handler's write changes nothing where the row is there."""
    inbox: bool
    """Whether handlers work in ``ctx.transaction()``."""
    survivors_finish: bool
    """Whether the processes that are left when everything heals, and not a new one, have to empty the queue."""
    hardships: tuple[str, ...] = ()
    """What makes it harder than an ordinary schedule; see ``hardships.py``."""
    end: float = 30.0
    """When the trouble is over."""
    cuts: tuple[Cut, ...] = ()
    deployments: tuple[Deployment, ...] = ()
    raising: tuple[Raising, ...] = ()
    redrives: tuple[Redrive, ...] = ()
    retention: int | None = None
    """Seconds after which SQS forgets a message; None for its default of four days."""
    promised: int | None = None
    """``RetryPolicy(attempts=)``; None where nothing is said."""
    kept_paused: str | None = None
    """A tenant that stays paused in the processes that lived through everything."""
    body_bytes: int = 0
    """How much each body is longer than it needs to be."""
    blind: bool = False
    """Whether the role may not read the queue's attributes, so that nothing is known of its redrive policy."""
    logs: bool = False
    """Whether every log record is looked at."""
    chosen: bool = False
    """Whether the retry policy and what counts as broken are functions of the call."""
    queues: int = 1
    """How many queues each consumer consumes; see ``many_queues.py``."""
    listed: bool = False
    """Whether a function lists the queues, and one of them is missing from its list for a while."""
    obstructions: tuple[Obstruction, ...] = ()
    clock: float = 0.0
    """Seconds by which the clocks of the processes are wrong."""
    equal: bool = False
    """Whether equal tenants have a backlog and nothing goes wrong: then receives are counted in sum."""

    @property
    def crowded(self) -> bool:
        """Whether tenants that cannot run may have more messages, or larger ones, than may be held."""
        return self.kept_paused is not None or self.body_bytes > 0

    def letters_fail(self, since: float, until: float) -> bool:
        """Return whether something is in the way of dead letters in a time, or was shortly before it."""
        calls = {Operation.SEND, Operation.OPEN}
        return any(each.call in calls and each.start < until and each.end + LINE > since for each in self.obstructions)

    def queue_names(self) -> list[str]:
        """Return the names of the queues, the first one as it is called where there is only one."""
        suffix = ".fifo" if self.fifo else ""
        return [f"orders{suffix}", *(f"orders-{number}{suffix}" for number in range(1, self.queues))]

    def queue_of(self, order: OrderPlan) -> int:
        """Return the place of an order's queue: a message group is in one of them, a tenant may be in all."""
        return sum((order.group if self.fifo and order.group else order.key).encode()) % self.queues


def host_of(tenant: str, hosts: int) -> int | None:
    """Return the host of a tenant's database; None where hosts are not known."""
    return sum(tenant.encode()) % hosts if hosts else None


def disturbs(faults: ClientFaults) -> bool:
    """Return whether calls may fail, or their answers be late."""
    usual = (faults.slow, faults.throttled, faults.unavailable, faults.lost, faults.refused)
    return any((*usual, faults.foreign, faults.hung))


_USUAL = (
    Kind.WELL,
    Kind.WELL,
    Kind.WELL,
    Kind.FAILS,
    Kind.BREAKS,
    Kind.RETRIES,
    Kind.CANCELS,
    Kind.STUBBORN,
    Kind.ACKS,
)
_EVENTS = (
    *("trouble",) * 4,
    *("host trouble",) * 2,
    *("storm",) * 2,
    *("crash",) * 2,
    *("stop",) * 2,
    "stop now",
    "cancel",
    "invalidate",
    "fail over",
    "rotate",
    "partition",
    *("control",) * 3,
)
_CONTROLS = ("pause", "pause", "drain", "quarantine", "limit concurrency", "limit rate", "resume")


def make_ordinary_plan(seed: int) -> Plan:
    """Decide everything that can be decided beforehand, without hardships."""
    rng = Random(seed)
    fifo = rng.random() < 0.4
    max_receives = rng.choice((None, 3, 5, 8))
    tenants = tuple(f"t{number}" for number in range(rng.randint(1, 4)))
    visibility = rng.choice((2, 3, 5, 10, 30))
    timeouts = _timeouts(rng)
    return Plan(
        seed=seed,
        fifo=fifo,
        ack=rng.choice((AckMode.ON_SUCCESS, AckMode.ON_SUCCESS, AckMode.ALWAYS, AckMode.MANUAL)),
        max_receives=max_receives,
        tenants=tenants,
        orders=_orders(rng, tenants, fifo=fifo, endless=max_receives is not None),
        events=_events(rng, tenants),
        broken=_broken(rng, tenants),
        processes=rng.choice((1, 1, 2, 2, 3)),
        faults=_faults(rng) if rng.random() < 0.7 else ClientFaults(),
        storm=ClientFaults(latency=0.5, unavailable=0.6, lost=0.5, refused=0.3, throttled=0.2),
        options=_options(rng, visibility),
        limits=PoolLimits(
            budget=rng.randint(1, 4),
            max_concurrent_opens=rng.randint(1, 3),
            idle=rng.choice((0.5, 5.0, None)),
            max_age=rng.choice((None, 3.0)),
            check_after=rng.choice((0.0, 30.0)),
            sweep=1.0,
            patience=rng.choice((0.0, 0.2, 1.0)),
        ),
        timeouts=timeouts,
        backoff=OpenBackoff(base=0.2, cap=3.0, permanent=rng.choice((1.0, 5.0))),
        hosts=rng.choice((0, 0, 1, 2)),
        shared_pool=rng.random() < 0.8,
        slow_resolver=rng.choice((0.0, 0.0, 0.05, 0.5)),
        idempotent=rng.random() < 0.4,
        inbox=rng.random() < 0.4,
        survivors_finish=rng.random() < 0.5,
    )


def _orders(rng: Random, tenants: tuple[str, ...], *, fifo: bool, endless: bool) -> tuple[OrderPlan, ...]:
    orders: list[OrderPlan] = []
    kinds: list[Kind] = [*_USUAL, Kind.ASKS_RETRY]
    if endless:
        kinds += sorted(ENDLESS)
    slow = rng.random() < 0.3
    for number in range(rng.randint(4, 24)):
        tenant = rng.choice(tenants)
        kind = Kind.WELL if rng.random() < 0.5 else rng.choice(kinds)
        orders.append(
            OrderPlan(
                key=f"{tenant}-{number}",
                tenant=tenant,
                group=f"{tenant}-{rng.randint(0, 1)}" if fifo else rng.choice((None, tenant)),
                at=rng.choice((0.0, rng.uniform(0, 15))),
                kind=kind,
                seconds=rng.choice((0.0, 0.02, 0.3, 2.0, 8.0 if slow else 1.0)),
                attempts=rng.randint(1, 2),
            )
        )
    return tuple(sorted(orders, key=lambda order: order.at))


def _events(rng: Random, tenants: tuple[str, ...]) -> tuple[Event, ...]:
    events = [
        Event(
            at=rng.uniform(0, 25),
            what=rng.choice(_EVENTS),
            index=rng.randint(0, 2),
            tenant=rng.choice(tenants),
            seconds=rng.choice((0.3, 2.0, 10.0)),
            trouble=rng.choice(tuple(Trouble)[1:]),
            grace=rng.uniform(0, 3),
            control=rng.choice(_CONTROLS),
        )
        for _ in range(rng.randint(0, 8))
    ]
    return tuple(sorted(events, key=lambda event: event.at))


def _broken(rng: Random, tenants: tuple[str, ...]) -> tuple[Broken, ...]:
    if rng.random() < 0.6:
        return ()
    start = rng.choice((0.0, rng.uniform(0, 10)))
    return (Broken(rng.choice(tenants), start, start + rng.uniform(1, 15), rng.random() < 0.7),)


def _faults(rng: Random) -> ClientFaults:
    return ClientFaults(
        latency=rng.choice((0.005, 0.05, 0.4)),
        slow=rng.choice((0.0, 0.05)),
        slowest=rng.choice((1.0, 6.0)),
        throttled=rng.choice((0.0, 0.05)),
        unavailable=rng.choice((0.0, 0.05)),
        lost=rng.choice((0.0, 0.1)),
        refused=rng.choice((0.0, 0.1)),
        duplicated=rng.choice((0.0, 0.0, 0.1, 0.3)),
        reordered=rng.choice((0.0, 0.5)),
    )


def _options(rng: Random, visibility: int) -> dict[str, Any]:
    total = rng.randint(1, 6)
    return {
        "concurrency": Concurrency(
            total=total, per_tenant=rng.randint(1, total), handler_timeout=rng.choice((None, None, 1.5))
        ),
        "polling": Polling(
            wait=rng.choice((1, 20, 20)),
            batch=rng.choice((1, 3, 10)),
            pollers=rng.randint(1, 2),
            prefetch=rng.choice((0, 3, 10)),
            lane=rng.randint(1, 4),
            backoff=0.2,
            max_backoff=2.0,
        ),
        "visibility": Visibility(
            timeout=visibility,
            heartbeat=rng.random() < 0.85,
            max_extension=rng.choice((43_200, max(visibility, 12))),
        ),
        "retry": RetryPolicy(base=rng.choice((0.0, 0.5, 2.0)), cap=4.0, jitter=rng.random()),
        "faults": postroom.Faults(
            breaker_after=rng.choice((None, 1, 2, 3, 4)),
            messages=rng.choice((1, 1, 2, 3)),
            base=rng.choice((0.2, 1.0)),
            cap=4.0,
            poison_after=rng.choice((None, 1, 2, 3)),
            poison_others=rng.randint(1, 2),
        ),
        "shutdown": make_shutdown(
            poll=rng.choice((0.0, 2.0)),
            drain=rng.choice((0.0, 1.0, 20.0)),
            cancel=1.0,
            flush=rng.choice((2.0, 5.0)),
            close=2.0,
        ),
    }


def make_shutdown(**stages: float) -> Shutdown:
    """Return a shutdown with stages that take what they say, also where they have to fit into a total."""
    total = {"within": sum(stages.values()) + 1.0} if "within" in Shutdown.__dataclass_fields__ else {}
    return Shutdown(**stages, **total)


def _timeouts(rng: Random) -> PoolTimeouts:
    return PoolTimeouts(lease=rng.choice((0.5, 3.0, 10.0)), open=rng.choice((0.5, 3.0)), close=1.0, check=0.5)
