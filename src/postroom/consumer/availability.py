"""Which tenants may run now, and from when on the others may: broken handlers and unreachable resources in one place.

Pure: given what happened and the time, it answers. What is unreachable is not remembered a second time: the pool knows
until when it leaves a key or a host alone, and is asked. What the pool cannot know is whether a tenant's *handlers*
fail: that is the breaker here.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence, Sized
from enum import StrEnum
from random import Random
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from postroom.consumer.job import Job
from postroom.display import without_next_try
from postroom.errors import PoolExhaustedError, PostroomError, ResourceOpenError, in_words
from postroom.log_fields import Log, Step, about
from postroom.options import Faults
from postroom.outages import Kind, Outages, Telling, cause_of
from postroom.resources import display_key
from postroom.scheduling import State

_log = Log("postroom.consumer", Step.RESOURCES)

REMEMBER: Final = 10_000
"""Tenants with failures, and outages, that are remembered; the oldest are forgotten first."""
_LEAST_PAUSE: Final = 0.05
"""Seconds before the next try of a lease that was refused without a pause of the pool's."""
_EXHAUSTED: Final = (0.5, 1.5)
"""Seconds, at random between these, before the next try of a lease for which the pool had no budget."""
_MET_PAUSE: Final = 1.0
_MET_LONGEST: Final = 30.0
"""Seconds before the next try after a handler met an outage of its resources, or the queue that its tenant is diverted
to took nothing; doubles up to the longest."""
_BROKEN: Final = Kind("Handlers fail in a row", "tenant", _log, Step.HANDLER, "tenant")
_UNAVAILABLE: Final = Kind("Tenant unavailable, messages wait", "tenant", _log, Step.RESOURCES, "tenant")
_DOWN: Final = Kind("Host unavailable, messages wait", "host", _log, Step.RESOURCES)
_NO_BUDGET: Final = Kind("No budget, messages wait", "tenant", _log, Step.RESOURCES, "tenant", singly=1)
"""A small budget has no room for any of its tenants, for a moment each, all day."""
_UNDIVERTED: Final = Kind("Messages cannot be sent away, and wait", "tenant", _log, Step.DEAD_LETTER, "tenant")
_AWAY: Final = 15.0
_AWAY_PART: Final = 0.25
_AWAY_LONGEST: Final = 600.0
"""A message is deferred for 15 s or, if that is more, a quarter of the time for which the obstacle has lasted, but not
longer than 600 s; give or take a half. The end of the obstacle calls it back."""


_FORGOTTEN: Final = 3600.0
"""Seconds after which a tenant is no longer said to be unavailable of which nothing has come since, nor a host that
nothing has needed: longer than messages are deferred, or back off by default."""


class ObstacleKind(StrEnum):
    """What keeps a tenant from running."""

    TENANT = "tenant"
    """Its resources cannot be opened, or its handlers fail."""
    HOST = "host"
    """The host of its resources is down."""
    DECISION = "decision"
    """It was paused or limited."""
    DIVERSION = "diversion"
    """The queue that it is diverted to takes nothing."""
    STEP = "step"
    """What comes before a handler fails for every message of its queue."""


class Obstacle(NamedTuple):
    """What keeps messages from running: something that is down, or a decision."""

    kind: ObstacleKind
    name: Hashable


class Outage(msgspec.Struct, frozen=True):
    """What is known of a tenant that cannot run."""

    since: float
    """The loop time at which it began."""
    cause: str
    """The last error, as it is shown in the log."""
    met: float = 0.0
    """The loop time at which it was met last."""


class Wait(msgspec.Struct, frozen=True):
    """A tenant may not run now."""

    obstacle: Obstacle
    until: float | None
    """The loop time at which to look again; None: when the probe has ended."""


_TRY: Final = 1.0
"""Seconds after which the tenants of a host look again whether one of them has reached it."""


class PoolView(Protocol):
    """What is asked of a pool."""

    @property
    def troubles(self) -> Sequence[Sized]:
        """What is left alone now, or has failed since its last success. Others, once the pool was opened again."""
        ...

    def retry_after(self, context: Any) -> float:
        """Return the seconds for which a context or its host is left alone."""
        ...

    def unknown_at(self, context: Any) -> float | None:
        """Return the loop time of the answer for which a context is left alone: that there is no such tenant."""
        ...

    def is_open(self, context: Any) -> bool:
        """Return whether a context's resources are open."""
        ...

    def host_of(self, context: Any) -> Hashable | None:
        """Return the host of a context's resources."""
        ...

    def unknown(self, key: Hashable) -> tuple[str, float] | None:
        """Return why there is no such tenant, and the loop time at which that was said; None where it may exist."""
        ...


class HostHints(Protocol):
    """What other replicas have found out about hosts."""

    @property
    def known(self) -> Mapping[str, float]:
        """Hosts that are said to be down: one object, which changes."""
        ...

    def is_down(self, host: Hashable) -> bool:
        """Whether a replica has said that a host is down."""
        ...

    def wait(self, host: Hashable, now: float) -> float | None:
        """Return until when a try of a host should wait for another replica's; None where it need not."""
        ...

    def found_down(self, host: Hashable, cause: str, pause: float, now: float) -> None:
        """Note that a host was found to be down here."""
        ...

    def found_up(self, host: Hashable) -> None:
        """Note that a host was reached."""
        ...


class _Breaker(msgspec.Struct):
    """The handler failures of one tenant."""

    failures: int = 0
    """In a row, with no success in between."""
    messages: set[str] = msgspec.field(default_factory=set[str])
    trips: int = 0
    since: float = 0.0
    until: float | None = None
    """Not None: the breaker is open until then, and half open after it."""
    probe: Job | None = None
    """Half open: the message that decides by its end."""
    cause: str = ""

    @property
    def probed(self) -> bool:
        """Whether a probe is under way."""
        return self.probe is not None and self.probe.probe and self.probe.state is not State.DONE


class _Met(msgspec.Struct):
    """A tenant with handlers that met an outage of its resources, although these can be opened; or one of a queue."""

    rounds: int
    """In a row, with no success in between."""
    until: float
    """The loop time before which nothing of the tenant is tried."""
    cause: str
    """What was met, as it is shown in the log."""


class Availability:
    """Says whether a message may run.

    Handlers of a tenant that fail in a row, of several messages, open its breaker: nothing of it is started for a
    pause that doubles, then one message is tried, and its end decides. While the pool leaves a tenant or its host
    alone, the tenant waits too, without a slot.
    """

    def __init__(
        self, pool: PoolView | None, rng: Random, hints: HostHints | None = None, outages: Outages | None = None
    ) -> None:
        self._pool = pool
        self._outages = Outages() if outages is None else outages
        self._hints = hints
        self._hinted_hosts: Mapping[str, float] = {} if hints is None else hints.known
        self._rng = rng
        self.failing: OrderedDict[Hashable, _Breaker] = OrderedDict()
        """Tenants of which handlers failed since the last success."""
        self._open: dict[Hashable, _Breaker] = {}
        self.met: OrderedDict[Obstacle, _Met] = OrderedDict()
        """What was met by messages that ran. An open of their tenant's resources says nothing about it."""
        self.known_outages: OrderedDict[Obstacle, Outage] = OrderedDict()
        """What cannot be used now. Empty, there is no end of an outage that a success could show."""
        self._asleep: dict[Hashable, dict[Hashable, None]] = {}  # host: the tenants that wait for it
        self._trying: dict[Hashable, Job] = {}  # host: the message that shows by its open whether it is back

    @property
    def troubled(self) -> bool:
        """Whether any tenant may have to wait: asked before every start, so it has to be cheap."""
        if self._open or self.met or self._hinted_hosts:
            return True
        # The pool is asked each time: its application may close it and open it again under a running consumer.
        return self._pool is not None and any(self._pool.troubles)

    def wait(self, job: Job, now: float) -> Wait | None:
        """Return why a message may not run at this moment; None if it may. Does not choose a probe."""
        breaker = self._open.get(job.tenant) if self._open else None
        # The probe itself passes, or it would wait for its own end.
        if breaker is not None and not job.probe:
            obstacle = Obstacle(ObstacleKind.TENANT, job.tenant)
            if breaker.until is not None and breaker.until > now:
                return Wait(obstacle, breaker.until)
            if breaker.probed:
                return Wait(obstacle, None)
        met = self.met.get(Obstacle(ObstacleKind.TENANT, job.tenant)) if self.met else None
        if met is not None and met.until > now:
            return Wait(Obstacle(ObstacleKind.TENANT, job.tenant), met.until)
        # A message that has its lease, or needs none, is not concerned by what cannot be opened.
        if self._pool is None or job.problem is not None or job.lease is not None:
            return None
        hinted = self._hinted(job, now) if self._hinted_hosts else None
        if hinted is not None or not (any(self._pool.troubles) or self._hinted_hosts):
            return hinted
        # A tenant that does not exist is no outage. Each message that came before this was said has had its attempt,
        # and not one of them in a minute; what comes later waits until the provider is asked again.
        said_at = self._pool.unknown_at(job.context)
        pause = self._pool.retry_after(job.context) if said_at is None or job.received_at > said_at else 0.0
        return Wait(self._obstacle_of(job), now + pause) if pause > 0 else self._tried_by_another(job, now)

    def _tried_by_another(self, job: Job, now: float) -> Wait | None:
        """Let a message wait while another one shows whether the host of its tenant is back."""
        if self._pool is None:
            return None
        host = self._pool.host_of(job.context) if self._trying else None
        trying = None if host is None else self._trying.get(host)
        if trying is None or trying is job or not trying.leads or self._pool.is_open(job.context):
            return None
        return Wait(Obstacle(ObstacleKind.HOST, host), now + _TRY)

    def _hinted(self, job: Job, now: float) -> Wait | None:
        """Let a message wait for the replica that tries its host. Tenants that are open here go on."""
        host = None if self._pool is None else self._pool.host_of(job.context)
        if host is None or self._hints is None or self.is_open(job):
            return None
        until = self._hints.wait(host, now)
        return None if until is None else Wait(Obstacle(ObstacleKind.HOST, host), min(until, now + _TRY))

    def _is_hinted(self, host: Hashable | None) -> bool:
        hints = self._hints
        return hints is not None and host is not None and hints.is_down(host)

    def tries(self, job: Job) -> None:
        """Note that a message's open is about to show whether the host of its tenant is back: others wait for it."""
        host = None if self._pool is None else self._pool.host_of(job.context)
        if host is not None and (Obstacle(ObstacleKind.HOST, host) in self.known_outages or self._is_hinted(host)):
            self._trying[host] = job

    def tried(self, job: Job) -> None:
        """Forget a message that no longer tries whether its host is back: its body would be kept."""
        host = None if self._pool is None or not self._trying else self._pool.host_of(job.context)
        if host is not None and self._trying.get(host) is job:
            del self._trying[host]

    def is_half_open(self, job: Job) -> bool:
        """Whether a message that may run would be its tenant's probe."""
        breaker = self._open.get(job.tenant) if self._open else None
        return breaker is not None and not breaker.probed

    def must_open(self, job: Job) -> bool:
        """Whether a message that may run has to open its tenant's resources while the pool is troubled."""
        if self._pool is None or not (any(self._pool.troubles) or self._hinted_hosts):
            return False
        return not self.is_open(job)

    def is_open(self, job: Job) -> bool:
        """Whether a message would find its tenant's resources open."""
        pool = self._pool
        return pool is None or job.problem is not None or job.lease is not None or pool.is_open(job.context)

    def probe(self, job: Job) -> None:
        """Let the end of this message decide whether its tenant's breaker closes."""
        job.probe = True
        self._open[job.tenant].probe = job

    def outage(self, tenant: Hashable, *, sent_away: bool = False) -> Outage | None:
        """Return why a tenant cannot run, if it cannot: its own outage, or that of the host that it waits for.

        What is ``sent_away`` to another queue waits for that queue alone.
        """
        if sent_away:
            return self.known_outages.get(Obstacle(ObstacleKind.DIVERSION, tenant))
        breaker = self._open.get(tenant)
        if breaker is not None:
            return Outage(breaker.since, breaker.cause)
        outage = self.known_outages.get(Obstacle(ObstacleKind.TENANT, tenant))
        for host in self._asleep if outage is None else ():
            down = self.known_outages.get(Obstacle(ObstacleKind.HOST, host))
            if down is not None and tenant in self._asleep[host]:
                return Outage(down.since, f"host {display_key(host)} is down: {down.cause}")
        return outage

    def last_met(self, tenant: Hashable) -> str | None:
        """Return the outage that handlers of a tenant met, and since which none has returned."""
        met = self.met.get(Obstacle(ObstacleKind.TENANT, tenant))
        return None if met is None else met.cause

    def unknown(self, tenant: Hashable) -> Outage | None:
        """Return what was said of a tenant that does not exist. Not remembered here: senders may invent thousands."""
        said = None if self._pool is None else self._pool.unknown(tenant)
        return None if said is None else Outage(said[1], said[0])

    def troubled_tenants(self) -> list[Hashable]:
        """Return the tenants that cannot run because of an outage of their own, whether or not they have messages."""
        return [*self._open, *(each.name for each in self.known_outages if each.kind is ObstacleKind.TENANT)]

    def delay(self, obstacle: Obstacle, now: float) -> float:
        """Return for how many seconds to defer a message because of an obstacle."""
        outage = self.known_outages.get(obstacle)
        breaker = self._open.get(obstacle.name) if obstacle.kind is ObstacleKind.TENANT else None
        began = now if outage is None else outage.since
        if breaker is not None:
            # The longer it has lasted already, the longer it is likely to last: the earlier start
            # counts.
            began = min(began, breaker.since)
        middle = max(_AWAY, min(_AWAY_LONGEST, (now - began) * _AWAY_PART))
        # Spread widely: messages that were deferred together must not come back together.
        return middle * self._rng.uniform(0.5, 1.5)

    @property
    def outages(self) -> int:
        """Tenants, hosts of tenants, and queues that tenants are diverted to, that cannot be used now."""
        return len(self.known_outages)

    @property
    def breakers(self) -> int:
        """Tenants with a breaker that is open or half open."""
        return len(self._open)

    # -- the pool -----------------------------------------------------------------------------------------------

    def refused(self, job: Job, error: BaseException, now: float) -> Wait:
        """Note that a message could not have its tenant's resources. Returns until when its tenant waits."""
        pause = getattr(error, "retry_after", 0.0)
        if isinstance(error, ResourceOpenError):
            pause = max(pause, _LEAST_PAUSE)
        elif job.met_outage and self._pool is not None:
            met = self._pause_after(Obstacle(ObstacleKind.TENANT, job.tenant), _shown(error), now)
            pause = max(self._pool.retry_after(job.context), met)
        else:
            pause = max(pause, self._rng.uniform(*_EXHAUSTED))
        obstacle = self._obstacle_of(job, error)
        self._note(obstacle, _shown(error), now)
        kind = _NO_BUDGET if isinstance(error, PoolExhaustedError) else _UNAVAILABLE
        kind = _DOWN if obstacle.kind is ObstacleKind.HOST else kind
        cause = error.__cause__ if isinstance(error, ResourceOpenError) and error.__cause__ is not None else error
        shown = without_next_try(in_words(error))
        telling = self._outages.failed(kind, obstacle.name, cause_of(cause), shown, now)
        if telling is not Telling.GOES_ON:  # thousands may wait for the same host
            what = f"{obstacle.kind.title()} {display_key(obstacle.name)}"
            text = "%s is unavailable; its messages wait (first: %s): %s"
            level = logging.WARNING if telling.is_told else logging.DEBUG
            _log.log(level, text, what, job.message.id, in_words(error), extra=about(job))
        if self._hints is not None and obstacle.kind is ObstacleKind.HOST:
            self._hints.found_down(obstacle.name, _shown(error), pause, now)
        return Wait(obstacle, now + pause)

    def undiverted(self, job: Job, queue: str | None, error: BaseException, now: float) -> Wait:
        """Note that the queue that a tenant's messages go to took nothing. Returns until when the tenant waits.

        ``queue`` is where it is diverted to; None for the dead-letter queue, in a quarantine.
        """
        obstacle = Obstacle(ObstacleKind.DIVERSION, job.tenant)
        what, where = "in quarantine", "the dead-letter queue"
        if queue is not None:
            what, where = f"diverted to {display_key(queue)}", f"queue {display_key(queue)}"
        self._note(obstacle, f"{where} takes nothing: {_shown(error)}", now)
        if self._outages.failed(_UNDIVERTED, job.tenant, cause_of(error), _shown(error), now).is_told:
            text = (
                "Tenant %s is %s, and %s takes nothing; its messages wait (first: %s): %s. Correct that, "
                "divert it to another queue, or resume it"
            )
            arguments = (display_key(job.tenant), what, where, job.message.id, _shown(error).rstrip("."))
            _log.error(text, *arguments, extra=about(job, step=Step.DEAD_LETTER))
        return Wait(obstacle, now + self._pause_after(obstacle, _shown(error), now))

    def diverted(self, tenant: Hashable, now: float) -> Obstacle | None:
        """Note that a message went where its tenant is diverted. Returns what is over, if it had not worked."""
        outage = self.known_outages.get(Obstacle(ObstacleKind.DIVERSION, tenant)) if self.known_outages else None
        if outage is not None and self._outages.worked(_UNDIVERTED, tenant, now):
            text = "Messages of tenant %s are sent away again, after %.1f s"
            arguments = (display_key(tenant), now - outage.since)
            _log.warning(text, *arguments, extra=about(tenant=tenant, step=Step.DEAD_LETTER))
        return self._diversion_over(tenant)

    def decided(self, tenant: Hashable) -> Obstacle | None:
        """Forget that a tenant's diversion does not work: it is another one. Returns what is over, if it did not."""
        self._outages.forget(_UNDIVERTED, tenant)
        return self._diversion_over(tenant)

    def _diversion_over(self, tenant: Hashable) -> Obstacle | None:
        obstacle = Obstacle(ObstacleKind.DIVERSION, tenant)
        self.met.pop(obstacle, None)
        return None if self.known_outages.pop(obstacle, None) is None else obstacle

    def is_undivertable(self, tenant: Hashable) -> bool:
        """Whether the queue that a tenant is diverted to took nothing when it was tried last."""
        return Obstacle(ObstacleKind.DIVERSION, tenant) in self.known_outages

    def _note(self, obstacle: Obstacle, cause: str, now: float) -> None:
        """Note that an outage lasts."""
        known = self.known_outages.get(obstacle)
        if known is None:
            _bound(self.known_outages)
        self.known_outages[obstacle] = Outage(now if known is None else known.since, cause, now)

    def _pause_after(self, obstacle: Obstacle, cause: str, now: float) -> float:
        """Return the pause, which grows, after a message that ran met an obstacle.

        It is the tenant's, and no open ends it: each message would open the resources for the next one to meet the
        same outage, as fast as they can be opened.
        """
        met = self.met.pop(obstacle, None) or _Met(0, 0.0, cause)
        if met.until <= now:  # others of the same round met it as well
            met = _Met(met.rounds + 1, now + self._growing(_MET_PAUSE, met.rounds, _MET_LONGEST), cause)
        _bound(self.met)
        self.met[obstacle] = met
        return met.until - now

    def _growing(self, base: float, times: int, cap: float) -> float:
        """Return a pause that doubles each time, up to a cap; at random between a half of it and the whole."""
        # The exponent is bounded because 2.0 ** 1024 raises OverflowError.
        ceiling = min(cap, base * 2.0 ** min(times, 60))
        return self._rng.uniform(ceiling / 2, ceiling)

    def tidy(self, now: float, has_messages: Callable[[Hashable], bool]) -> None:
        """Forget tenants of which nothing was tried for long after their pause, or nothing came; and such hosts."""
        for obstacle in [each for each, met in self.met.items() if met.until < now - 2 * _MET_LONGEST]:
            del self.met[obstacle]
        before, known = now - _FORGOTTEN, self.known_outages
        past = [each for each, outage in known.items() if outage.met < before]
        breakers = [tenant for tenant, breaker in self._open.items() if (breaker.until or now) < before]
        tenants = [*(each.name for each in past if each.kind is ObstacleKind.TENANT), *breakers]
        for tenant in [each for each in dict.fromkeys(tenants) if not has_messages(each)]:
            known.pop(Obstacle(ObstacleKind.TENANT, tenant), None)
            self.failing.pop(tenant, None)
            self._open.pop(tenant, None)
            level = self._forgotten(tenant, now, _UNAVAILABLE, _NO_BUDGET, _BROKEN)
            text = "No message of tenant %s has come for %.0f s: it is no longer said to be unavailable"
            _log.log(level, text, display_key(tenant), _FORGOTTEN, extra=about(tenant=tenant))
        for host in [each.name for each in past if each.kind is ObstacleKind.HOST]:
            # No tenant is on it any longer, or it would have been tried: they were moved, or have no messages.
            del known[Obstacle(ObstacleKind.HOST, host)]
            self._asleep.pop(host, None)
            level, extra = self._forgotten(host, now, _DOWN), about(step=Step.RESOURCES)
            text = "No message has needed host %s for %.0f s: it is no longer said to be unavailable"
            _log.log(level, text, display_key(host), _FORGOTTEN, extra=extra)
        # Tenants may have been moved to another host while one of their messages tried the old one.
        self._trying = {host: job for host, job in self._trying.items() if job.leads}
        for host in [each for each in self._asleep if Obstacle(ObstacleKind.HOST, each) not in known]:
            # More hosts were down than are remembered, or only another replica said so.
            if not self._is_hinted(host) and not any(map(has_messages, self._asleep[host])):
                del self._asleep[host]

    def _forgotten(self, subject: Hashable, now: float, *kinds: Kind) -> int:
        """Note that what failed is tried no longer, and let it be news when it is. Returns how loud its line is."""
        level = self._level_of_end(subject, now, *kinds)
        for kind in kinds:
            self._outages.forget(kind, subject)
        return level

    def _level_of_end(self, subject: Hashable, now: float, *kinds: Kind) -> int:
        """Note that something works again. Returns how loud its line is: as loud as what a line has told."""
        told = [self._outages.worked(kind, subject, now) for kind in kinds]
        return logging.WARNING if any(told) else logging.DEBUG

    def slept(self, job: Job, wait: Wait) -> None:
        """Note that a tenant waits, so that the end of its host's outage wakes it."""
        if wait.obstacle.kind is ObstacleKind.HOST:
            self._asleep.setdefault(wait.obstacle.name, {})[job.tenant] = None

    def recovered(
        self, tenant: Hashable, host: Hashable | None, now: float, invited: Collection[Hashable] = ()
    ) -> tuple[list[Obstacle], list[Hashable]]:
        """Note that a tenant's resources are open. Returns the obstacles that are over, and the tenants to wake.

        The pool leaves the ``invited`` alone no longer: they follow the tenant that found room on their server.
        """
        over: list[Obstacle] = []
        woken: dict[Hashable, None] = {}
        for obstacle in (Obstacle(ObstacleKind.TENANT, tenant), Obstacle(ObstacleKind.HOST, host)):
            outage = self.known_outages.pop(obstacle, None)
            if obstacle.kind is ObstacleKind.HOST:
                self._trying.pop(obstacle.name, None)
            if outage is None:
                continue
            over.append(obstacle)
            woken[tenant] = None
            of_host = obstacle.kind is ObstacleKind.HOST
            level = self._level_of_end(obstacle.name, now, *((_DOWN,) if of_host else (_UNAVAILABLE, _NO_BUDGET)))
            what = "Host" if of_host else "Tenant"
            text = "%s %s is available again after %.1f s"
            _log.log(level, text, what, display_key(obstacle.name), now - outage.since, extra=about(tenant=tenant))
        if host is not None and self._hints is not None:
            # At every success, also where no outage was known here: another replica may have hinted
            # at one.
            self._hints.found_up(host)
        if host is not None and host in self._asleep:
            woken.update(self._asleep.pop(host))
        woken.update((each, None) for each in invited if Obstacle(ObstacleKind.TENANT, each) in self.known_outages)
        return over, list(woken)

    def ends_outage(self, job: Job) -> bool:
        """Whether the return of a handler shows that its tenant's resources can be used again.

        Handlers may meet an outage of resources that stay open: then no open will tell of its end.
        """
        outage = self.known_outages.get(Obstacle(ObstacleKind.TENANT, job.tenant)) if self.known_outages else None
        # One that ran before the outage shows nothing.
        began_since = outage is not None and job.since > outage.since
        return began_since and self._pool is not None and not self._pool.retry_after(job.context)

    # -- the breaker --------------------------------------------------------------------------------------------

    def succeeded(self, job: Job, now: float) -> bool:
        """Note that a handler returned. Returns whether that closes its tenant's breaker."""
        if self.met:
            self.met.pop(Obstacle(ObstacleKind.TENANT, job.tenant), None)
        if not self.failing:
            return False
        # One success ends the row of failures, so that the breaker sees rows and not rates.
        known = self.failing.pop(job.tenant, None)
        if known is None or self._open.pop(job.tenant, None) is None:
            return False
        if known.probe is not None:  # it may still run, and the next breaker is not its to decide
            known.probe.probe = False
        text = "Tenant %s works again after %.1f s"
        level = self._level_of_end(job.tenant, now, _BROKEN)
        _log.log(level, text, display_key(job.tenant), now - known.since, extra=about(job, step=Step.HANDLER))
        return True

    def failed(self, job: Job, error: BaseException, options: Faults, now: float) -> float | None:
        """Note that a handler failed. Returns the time before which nothing of its tenant may start, if that is new."""
        known = self.failing.get(job.tenant)
        if known is None:
            self._forget_oldest()
            known = self.failing[job.tenant] = _Breaker()
        # The tenants that failed last are remembered longest.
        self.failing.move_to_end(job.tenant)
        known.failures += 1
        known.cause = _shown(error)
        # Bounded: it only has to tell whether enough different messages failed, not how many.
        if len(known.messages) < options.messages:
            known.messages.add(job.message.id)
        probe = known.probe is job and job.probe
        if options.breaker_after is None or (known.until is not None and not probe):
            return None  # what ran when the breaker opened was counted then: only the probe's end decides
        enough = known.failures >= options.breaker_after and len(known.messages) >= options.messages
        return self._trip(job, known, error, options, now) if probe or enough else None

    def retry_now(self, tenant: Hashable, now: float) -> None:
        """End the pause of a tenant's breaker: its next message is the probe."""
        self.met.pop(Obstacle(ObstacleKind.TENANT, tenant), None)
        self.met.pop(Obstacle(ObstacleKind.DIVERSION, tenant), None)
        breaker = self._open.get(tenant)
        if breaker is not None and breaker.until is not None:
            # A pause that is over already stays over.
            breaker.until = min(breaker.until, now)

    def probe_ended(self, job: Job) -> bool:
        """Note the end of a message. Returns whether it was a probe that told nothing: another one may be tried."""
        if not job.probe:
            return False
        job.probe = False
        breaker = self._open.get(job.tenant)
        if breaker is not None and breaker.probe is job:
            breaker.probe = None
        return True  # also of a breaker that was forgotten: its tenant's lane sleeps until the end of the probe

    def _trip(self, job: Job, known: _Breaker, error: BaseException, options: Faults, now: float) -> float:
        pause = self._growing(options.base, known.trips, options.cap)
        known.since = now if known.until is None else known.since
        known.trips += 1
        known.until = now + pause
        # Half open again only after the pause, with a probe that is chosen then.
        known.probe, job.probe = None, False
        self._open[job.tenant] = known
        telling = self._outages.failed(_BROKEN, job.tenant, cause_of(error), known.cause, now)
        _log.log(
            logging.WARNING if telling.is_told else logging.INFO if telling is Telling.GOES_ON else logging.DEBUG,
            "Tenant %s: %d failures in a row; paused for %.1f s (last: %s, message %s)",
            display_key(job.tenant),
            known.failures,
            pause,
            known.cause,
            job.message.id,
            extra=about(job, step=Step.HANDLER),
        )
        return known.until

    def _forget_oldest(self) -> None:
        if len(self.failing) >= REMEMBER:
            forgotten, _ = self.failing.popitem(last=False)
            if self._open.pop(forgotten, None) is not None:
                self._outages.forget(_BROKEN, forgotten)

    def _obstacle_of(self, job: Job, error: BaseException | None = None) -> Obstacle:
        host = None if self._pool is None else self._pool.host_of(job.context)
        of_host = Obstacle(ObstacleKind.HOST, host)
        told = of_host in self.known_outages or getattr(error, "host", None) is not None or self._is_hinted(host)
        if host is not None and told:
            return of_host
        return Obstacle(ObstacleKind.TENANT, job.tenant)


def _shown(error: BaseException) -> str:
    """Return an error for the log: postroom's own with their text, others by type only, as they may quote data."""
    return in_words(error) if isinstance(error, PostroomError) else type(error).__name__


def _bound(remembered: OrderedDict[Any, Any]) -> None:
    """Make room for one more: the oldest goes."""
    if len(remembered) >= REMEMBER:
        remembered.popitem(last=False)
