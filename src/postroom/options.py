"""Option groups: small frozen dataclasses, validated when they are made.

Durations are float seconds. A limit that comes from SQS is named with the page it comes from; all pages are below
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/ .
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from postroom.checking import check_choice, check_flag, check_plain, is_number
from postroom.errors import ConfigurationError
from postroom.log_fields import Log, Step
from postroom.message import Message

_log = Log("postroom", Step.POLICY)

T = TypeVar("T")

MAX_BATCH: Final = 10
"""Messages per receive and entries per batch (quotas-messages.html)."""
MAX_WAIT: Final = 20
"""Longest long poll, in seconds (sqs-short-and-long-polling.html)."""
MAX_VISIBILITY: Final = 43_200
"""Longest visibility timeout, 12 hours in seconds, counted from the first receive (sqs-visibility-timeout.html)."""


class Call(msgspec.Struct, frozen=True):
    """What a policy is asked about: one message that is about to be handled, or was."""

    tenant: Any
    """The message's tenant, as ``consumer.tenants[...]`` calls it; None when the consumer has no ``context=``."""
    message: Message
    attempt: int
    """Which attempt this is, the first one being 1; see ``MessageContext.attempt``."""


PerCall: TypeAlias = Callable[[Call], T] | T
"""A policy: one value for all messages, or a function that chooses the value for each."""


def _require(holds: bool, what: str) -> None:  # noqa: FBT001 - reads as a sentence where it is called
    if not holds:
        raise ConfigurationError(what)


def check_seconds(
    owner: str, name: str, value: object, *, least: float = 0.0, most: float = math.inf, limit: str = ""
) -> None:
    """Refuse what is not a number of seconds in the range, in words that name the argument."""
    hint = f" ({limit})" if limit else ""
    upper = "" if math.isinf(most) else f" and at most {most:g}"
    beyond = isinstance(value, int) and abs(value) > sys.float_info.max
    got = "more than a float can hold" if beyond else repr(value)
    text = f"{owner}({name}=...) takes seconds, at least {least:g}{upper}{hint}; got {got}"
    _require(is_number(value) and not beyond and least <= value <= most, text)


def check_count(
    owner: str, name: str, value: object, *, least: int = 1, most: float = math.inf, limit: str = ""
) -> None:
    """Refuse what is not a whole number in the range, in words that name the argument."""
    hint = f" ({limit})" if limit else ""
    upper = "up" if math.isinf(most) else f"to {most:g}"
    text = f"{owner}({name}=...) takes a whole number from {least} {upper}{hint}; got {value!r}"
    _require(isinstance(value, int) and not isinstance(value, bool) and least <= value <= most, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    """How much runs at once.

    Args:
        total: handlers running at once in this consumer.
        per_tenant: handlers running at once for one tenant: one context, or one key of the pool.
        overrides: tenants with another number than ``per_tenant``: a mapping by tenant, or a function of it that
            returns None for the default. A tenant is its context, or the pool's key for it. It is asked with every
            decision, so that a change takes effect at once.
        weights: tenants that get more or less handler time than others when slots are short; 1.0 unless said
            otherwise. A mapping or a function, as ``overrides``.
        reserved: slots that tenants over their share leave free for the others, all of them together; None for a
            twelfth of ``total``.
        threads: threads for plain ``def`` handlers; a free one is needed for each that runs.
        handler_timeout: seconds that one handler may hold its slot; then it is cancelled and has failed with
            ``HandlerTimeout``. None for no limit; or a function of the ``Call``. A thread cannot be cancelled: a
            plain ``def`` handler that runs longer keeps its slot and its message until it returns; the limit is that of
            what is async around it. The time in which a message waits for its batch does not count.
        resolver_timeout: seconds that an async ``context=`` function may take for one message; then the message has
            failed. Waiting for it takes no slot, and after a moment no other message's room. An async ``on_error=``
            function, which keeps the slot of its message, may take as long.
    """

    total: int = 64
    per_tenant: int = 8
    overrides: Mapping[Any, int] | Callable[[Any], int | None] | None = None
    weights: Mapping[Any, float] | Callable[[Any], float | None] | None = None
    reserved: int | None = None
    threads: int = 16
    handler_timeout: PerCall[float | None] = None
    resolver_timeout: float = 30.0

    def __post_init__(self) -> None:
        check_count("Concurrency", "total", self.total)
        check_count("Concurrency", "per_tenant", self.per_tenant)
        check_count("Concurrency", "threads", self.threads)
        if self.reserved is not None:
            check_count("Concurrency", "reserved", self.reserved, least=0, most=self.total - 1, limit="below total")
        for name in ("overrides", "weights"):
            value = getattr(self, name)
            check_choice(f"Concurrency({name}=...)", "(tenant) -> number or None", value)
        if callable(self.handler_timeout):
            check_plain("Concurrency(handler_timeout=...)", "(Call) -> seconds or None", self.handler_timeout)
        elif self.handler_timeout is not None:
            check_seconds("Concurrency", "handler_timeout", self.handler_timeout, least=0.001)
        check_seconds("Concurrency", "resolver_timeout", self.resolver_timeout, least=0.001)


@dataclass(frozen=True, slots=True, kw_only=True)
class Polling:
    """How messages are asked for.

    Args:
        wait: seconds that SQS holds an empty receive open, 0 to 20.
        batch: messages per receive, 1 to 10.
        pollers: receives outstanding at once while the queue is busy; one while it is idle. Where they cannot keep up
            with a tenant that sends thousands of messages a second, quiet tenants wait behind it.
        prefetch: messages held beyond those that run; an upper bound. How many there are follows from the measured
            handler time and round trip, so that no slot waits for the network; None for no bound of your own.
        gather: seconds that messages may gather in the queue before the next receive, where the last one brought less
            than a batch. It trades latency for cost: at 100 messages/s each message takes a receive of its own, about
            $115 a month, deletes included, at $0.40 per million requests; with ``gather=0.05`` it is $38, and a message
            waits 0.03 s on average. A time in which half a batch comes saves most for its delay.
        scout: whether to look for quiet tenants' messages while a noisy tenant has filled the buffer. What else comes
            of noisy tenants is parked: made invisible for a while, which costs the first receive of that message, and
            never one that its promised attempts need. True: only with proof of a noisy and a quiet tenant, and on
            queues of messages with a ``MessageGroupId``. "always": whenever there is no room. False: never.
        lane: messages of one tenant that wait here while it is paused or cannot run; the rest is deferred by
            visibility, as far as the promised attempts allow, and else held here as well.
        memory: bytes of message bodies held at once; receiving pauses above that.
        backoff: seconds before the second try after a failed receive; doubles up to ``max_backoff``.
        max_backoff: the longest such pause.
    """

    wait: float = 20.0
    batch: int = 10
    pollers: int = 8
    prefetch: int | None = None
    gather: float = 0.0
    scout: bool | Literal["always"] = True
    lane: int = 16
    memory: int = 256 * 1024 * 1024
    backoff: float = 0.5
    max_backoff: float = 30.0

    def __post_init__(self) -> None:
        limit = "SQS waits at most 20 s, see sqs-short-and-long-polling.html"
        check_seconds("Polling", "wait", self.wait, most=MAX_WAIT, limit=limit)
        limit = "SQS returns at most 10 messages per receive, see quotas-messages.html"
        check_count("Polling", "batch", self.batch, most=MAX_BATCH, limit=limit)
        check_count("Polling", "pollers", self.pollers)
        if self.prefetch is not None:
            check_count("Polling", "prefetch", self.prefetch, least=0)
        check_seconds("Polling", "gather", self.gather, most=MAX_WAIT)
        check_count("Polling", "lane", self.lane)
        check_count("Polling", "memory", self.memory, least=1024 * 1024, limit="a message has up to 1 MiB")
        what = f'Polling(scout=...) takes True, False or "always"; got {self.scout!r}'
        _require(isinstance(self.scout, bool) or self.scout == "always", what)
        check_seconds("Polling", "backoff", self.backoff, least=0.001)
        check_seconds("Polling", "max_backoff", self.max_backoff, least=self.backoff)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visibility:
    """How long a received message stays ours.

    Args:
        timeout: the visibility timeout that each receive and each heartbeat asks for, in seconds, 1 to 43,200.
        heartbeat: whether messages are extended from receive until they are settled.
        max_extension: seconds from receive after which a message is no longer extended; SQS ends it after
            12 hours (43,200 s) in any case.
    """

    timeout: float = 60.0
    heartbeat: bool = True
    max_extension: float = MAX_VISIBILITY

    def __post_init__(self) -> None:
        check_flag("Visibility(heartbeat=...)", self.heartbeat)
        limit = "SQS allows 0 s to 12 h, see sqs-visibility-timeout.html; a consumer needs at least 1 s"
        check_seconds("Visibility", "timeout", self.timeout, least=1, most=MAX_VISIBILITY, limit=limit)
        check_seconds(
            "Visibility",
            "max_extension",
            self.max_extension,
            least=self.timeout,
            most=MAX_VISIBILITY,
            limit="not less than timeout; SQS ends it after 12 h from the first receive",
        )


DelayFunction = Callable[[Message, BaseException], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed message is seen again: ``base * 2 ** (attempt - 1)``, capped, with jitter.

    An attempt is a run of your code (resolver, decoder, handler) that ended in failure. SQS counts receives instead,
    and the consumer may spend some of those itself: see ``attempts``.

    Args:
        attempts: failed attempts, seen by this process, after which the consumer sends the message to the dead-letter
            queue, with the reason. What the queue's ``maxReceiveCount`` allows beyond them, the consumer may spend on
            deferring the message while its tenant is unavailable, and on making room for others. It does nothing on a
            queue without a dead-letter queue. None: the queue's redrive policy decides, and a quarter of its receives
            (none of fewer than five) may be spent so.
        base: seconds before the second attempt.
        cap: the longest delay.
        jitter: the part of the delay that is random: 0 for none, 1 for anything between nothing and all of it.
        delay: decides instead: ``(message, error) -> seconds``. What it returns is clamped to 0..43,200; if it
            raises, the formula applies.
    """

    attempts: int | None = None
    base: float = 1.0
    cap: float = 900.0
    jitter: float = 0.5
    delay: DelayFunction | None = None

    def __post_init__(self) -> None:
        if self.attempts is not None:
            check_count("RetryPolicy", "attempts", self.attempts)
        check_seconds("RetryPolicy", "base", self.base)
        check_seconds("RetryPolicy", "cap", self.cap, least=self.base, most=MAX_VISIBILITY, limit="not less than base")
        _require(
            is_number(self.jitter) and 0 <= self.jitter <= 1,
            f"RetryPolicy(jitter=...) takes a part from 0 to 1; got {self.jitter!r}",
        )
        if self.delay is not None:
            check_plain("RetryPolicy(delay=...)", "(message, error) -> seconds", self.delay, arguments=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """When a tenant counts as broken, and when a message counts as poison. Only handler failures count.

    Without a ``context=`` there are no tenants, and none of it applies.

    Args:
        breaker_after: failures of one tenant in a row, with no success in between, after which nothing of it is
            started for a while; then one message is tried, the one that was tried most. None for no such breaker.
        messages: different messages that must be among them: one bad message is not a broken tenant.
        base: seconds of the first such pause, at most; doubles up to ``cap``, and half of it is random.
        cap: the longest pause.
        poison_after: failed handler runs of one message after which it goes to the dead-letter queue with the reason,
            if ``poison_others`` messages of its tenant have succeeded since its first. None, the default, for never:
            the queue's redrive policy decides.
        poison_others: messages of the same tenant that must have succeeded since the first failure of a message, before
            it counts as poison: otherwise the tenant may be broken, not the message.
    """

    breaker_after: int | None = 10
    messages: int = 5
    base: float = 1.0
    cap: float = 60.0
    poison_after: int | None = None
    poison_others: int = 20

    def __post_init__(self) -> None:
        for name in ("breaker_after", "poison_after"):
            if getattr(self, name) is not None:
                check_count("Faults", name, getattr(self, name))
        check_count("Faults", "messages", self.messages)
        check_count("Faults", "poison_others", self.poison_others)
        check_seconds("Faults", "base", self.base, least=0.001)
        check_seconds("Faults", "cap", self.cap, least=self.base)


_WITHIN: Final = 25.0
"""Seconds that a stop takes by default. ECS and Kubernetes kill a process 30 s after they asked it to stop."""
_IN_TURN: Final = {"drain": 13.0, "cancel": 4.0, "flush": 4.0, "close": 4.0}
"""The stages that follow each other, and their defaults. They add up to ``_WITHIN``."""
_POLL: Final = 2.0


@dataclass(frozen=True, slots=True, init=False)
class Shutdown:
    """How long a stop may take, in seconds: as a whole, and each of its stages.

    ECS and Kubernetes kill a process 30 s after they asked it to stop. By default a stop ends after 25 s at the
    latest, so that what was cancelled goes back to the queue before the kill. Where a process gets more time, such as
    with ``terminationGracePeriodSeconds: 120``, say ``Shutdown(within=110)``.

    Args:
        within: for the whole stop. What is not said of its stages is scaled so that ``drain``, ``cancel``, ``flush``
            and ``close`` add up to it. None: 25 s, or what the stages add up to where some are given.
        poll: for a long poll that is outstanding, to end; handlers drain meanwhile. Then it is given up: a message
            that SQS hands out in that instant comes back after its visibility timeout. A poll lasts only while the
            queue is empty. 2 s of 25.
        drain: for handlers that run, to finish. 13 s of 25.
        cancel: for cancelled handlers, to clean up, and for their threads to return. 4 s of 25.
        flush: for acknowledgements, returned messages and calls back of parked ones, to reach SQS. 4 s of 25.
        close: for each owned pool, to close its resources. 4 s of 25.

    Raises:
        ConfigurationError: the stages that are given do not fit into ``within``.
    """

    poll: float
    drain: float
    cancel: float
    flush: float
    close: float

    def __init__(
        self,
        *,
        within: float | None = None,
        poll: float | None = None,
        drain: float | None = None,
        cancel: float | None = None,
        flush: float | None = None,
        close: float | None = None,
    ) -> None:
        given = {"drain": drain, "cancel": cancel, "flush": flush, "close": close}
        said = {name: seconds for name, seconds in given.items() if seconds is not None}
        for name, seconds in (said if poll is None else {**said, "poll": poll}).items():
            check_seconds("Shutdown", name, seconds)
        if within is None:
            stages = {**_IN_TURN, **said, "poll": _POLL if poll is None else poll}
        else:
            stages = _fitted(within, said, poll)
        for name, seconds in stages.items():
            object.__setattr__(self, name, float(seconds))

    @property
    def total(self) -> float:
        """The longest that a stop takes: polls end while handlers drain, all else follows in turn."""
        return max(self.poll, self.drain + self.cancel) + self.flush + self.close


def _fitted(within: float, said: Mapping[str, float], poll: float | None) -> dict[str, float]:
    """Return the stages of a stop that has to fit into ``within``: those that are given, and the others scaled."""
    check_seconds("Shutdown", "within", within)
    _require(math.isfinite(within), f"Shutdown(within=...) takes a finite number of seconds; got {within!r}")
    left = within - sum(said.values())
    terms = " + ".join(f"{name}={seconds:g}" for name, seconds in said.items())
    text = f"Shutdown(within={within:g}) is less than its stages: {terms} = {sum(said.values()):g} s"
    _require(left >= 0, f"{text}. Give it more time, or leave out a stage: it is scaled to what is left")
    open_ = {name: seconds for name, seconds in _IN_TURN.items() if name not in said}
    share = left / sum(open_.values()) if open_ else 0.0
    stages = {**said, **{name: seconds * share for name, seconds in open_.items()}}
    beside = stages["drain"] + stages["cancel"]
    stages["poll"] = min(_POLL * within / _WITHIN, beside) if poll is None else poll
    longest = max(stages["poll"], beside) + stages["flush"] + stages["close"]
    terms = f"poll={stages['poll']:g} + flush={stages['flush']:g} + close={stages['close']:g} = {longest:g} s"
    _require(longest <= within * (1 + 1e-9), f"Shutdown(within={within:g}) is less than its stages: {terms}")
    return stages


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """What a pool may hold, and for how long.

    Args:
        budget: the sum of the weights of everything open, opening or closing: connections, not pools.
        per_host: the same for each host that the pool's ``host=`` names: one number for all, a mapping by host, or a
            function of the host; None, also from them, for no bound but ``budget``.
        max_concurrent_opens: providers entered at once.
        idle: seconds without a lease after which a resource is closed; None for never.
        max_age: seconds after which a resource is replaced, jittered by a tenth so that a fleet does not do it at
            once; None for never. A busy one is replaced before it is closed (which rotates credentials).
        check_after: seconds of idleness after which a lease runs ``check`` first.
        sweep: seconds between two rounds of the sweeper (idle, age, health).
        patience: seconds that a context waits for budget, with nothing idle to evict, before the resource that has been
            open longest is taken from a busy one: no new leases, closed behind its last. So busy tenants take turns.
        remember: failing keys, and hosts, that are remembered; the oldest are forgotten first.
    """

    budget: int = 100
    per_host: int | Mapping[Any, int] | Callable[[Any], int | None] | None = None
    max_concurrent_opens: int = 16
    idle: float | None = 600.0
    max_age: float | None = None
    check_after: float = 30.0
    sweep: float = 5.0
    patience: float = 1.0
    remember: int = 10_000

    def __post_init__(self) -> None:
        check_count("PoolLimits", "budget", self.budget)
        if callable(self.per_host):
            check_plain("PoolLimits(per_host=...)", "(host) -> number or None", self.per_host)
        elif self.per_host is not None and not isinstance(self.per_host, Mapping):
            limit = "or a mapping by host, or a function of it"
            check_count("PoolLimits", "per_host", self.per_host, most=self.budget, limit=limit)
        check_count("PoolLimits", "max_concurrent_opens", self.max_concurrent_opens)
        check_count("PoolLimits", "remember", self.remember)
        for name in ("idle", "max_age"):
            value = getattr(self, name)
            if value is not None:
                check_seconds("PoolLimits", name, value, least=0.001)
        check_seconds("PoolLimits", "check_after", self.check_after)
        check_seconds("PoolLimits", "sweep", self.sweep, least=0.001)
        check_seconds("PoolLimits", "patience", self.patience)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTimeouts:
    """How long a pool waits for others, in seconds.

    Args:
        lease: for one ``lease()``, opening and waiting for budget included, unless the call says otherwise.
        open: for a provider, to enter.
        close: for a provider, to leave; then its task is cancelled.
        check: for a health check.
    """

    lease: float = 30.0
    open: float = 10.0
    close: float = 10.0
    check: float = 5.0

    def __post_init__(self) -> None:
        for name in ("lease", "open", "close", "check"):
            check_seconds("PoolTimeouts", name, getattr(self, name), least=0.001)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBackoff:
    """How long a context is left alone after its resources failed to open.

    Args:
        base: seconds after the first failure of an outage; doubles with each further one, with full jitter. A longer
            pause lasts no longer than the outage has lasted until then.
        cap: the longest such pause.
        permanent: seconds after a provider has said that there is no such tenant (``UnknownTenant``).
    """

    base: float = 0.5
    cap: float = 30.0
    permanent: float = 60.0

    def __post_init__(self) -> None:
        check_seconds("OpenBackoff", "base", self.base, least=0.001)
        check_seconds("OpenBackoff", "cap", self.cap, least=self.base)
        check_seconds("OpenBackoff", "permanent", self.permanent)
