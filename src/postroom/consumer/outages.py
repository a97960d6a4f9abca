"""Messages whose tenant's resources are down: kept out of everybody's way, and called back when they are up again."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from random import Random
from typing import Any, Final

from postroom.consumer.inflight import InFlight
from postroom.consumer.job import Job
from postroom.consumer.parking import MOST_PARKED, Parked, Parking
from postroom.errors import PoolExhaustedError, PostroomError, ResourceOpenError
from postroom.resources import ResourcePool
from postroom.scheduling import State
from postroom.settlement import Settler
from postroom.types import Settlement

REMEMBER: Final = 10_000
"""Outages remembered at the most; the oldest are forgotten first."""
_DELAY: Final = 15.0
_PART: Final = 0.25
_LONGEST: Final = 600.0
"""A message is put off for 15 s or, if that is more, a quarter of the time for which the outage has lasted, but not
longer than 600 s; give or take a half. The end of the outage calls it back."""
_SOON: Final = 30.0
"""Seconds after which a message that was tried is tried again, at the latest."""
_PATIENCE: Final = (5.0, 15.0)
"""Seconds after which a message that waits here looks by itself, although another one is to find out."""

Place = tuple[bool, Hashable]
"""What is down: (True, host) or (False, tenant)."""


class _Outage:
    """What waits for one host or tenant."""

    __slots__ = ("began", "host", "prober", "put_off", "waiters")

    def __init__(self, host: Hashable | None, began: float) -> None:
        self.host = host
        self.began = began
        self.waiters: dict[asyncio.Future[None], Hashable] = {}
        """Each with its tenant."""
        self.prober: Job | None = None
        """The message that finds out whether the outage is over."""
        self.put_off: deque[Parked] = deque()

    def may_be_probed_by(self, job: Job) -> bool:
        """Whether nobody else is about to find out."""
        return self.prober is None or self.prober is job or self.prober.state is State.DONE


class Outages:
    """Knows which tenants and hosts are down, and what waits for them.

    One message per outage tries, at the pool's pace. All others are put off by their visibility, without a slot, as
    long as that does not bring them nearer to the dead-letter queue than their real attempts need; those that it
    would are held. The first success ends the outage: what is held goes on, and what was put off is called back
    through ``parking``, both as fast as there is room for it.
    """

    def __init__(
        self,
        pool: ResourcePool[Any, Any] | None,
        settler: Settler,
        parking: Parking,
        *,
        clock: Callable[[], float],
        in_flight: InFlight,
        is_paused: Callable[[Hashable], bool],
        is_flooded: Callable[[], bool],
        behind: Callable[[Hashable], int],
        on_over: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._settler = settler
        self._parking = parking
        self._clock = clock
        self._in_flight = in_flight
        self._is_paused = is_paused
        self._is_flooded = is_flooded
        self._behind = behind
        self._on_over = on_over
        self._known: OrderedDict[Place, _Outage] = OrderedDict()
        self._held: Counter[Hashable] = Counter()
        self._released: deque[tuple[asyncio.Future[None], Hashable]] = deque()
        self._rng = Random()  # noqa: S311 - jitter, not secrecy
        self._put_off = 0

    @property
    def releasing(self) -> bool:
        """Whether some wait here only for room."""
        return bool(self._released)

    def held(self, tenant: Hashable) -> int:
        """Return how many messages of a tenant wait here for the end of an outage."""
        return self._held[tenant] if self._held else 0

    def defer(self, job: Job, error: PoolExhaustedError | ResourceOpenError, *, delay: float) -> None:
        """Put a message off whose lease was refused: its tenant's resources, or the host that they are on, are down.

        ``delay`` is what its own backoff would be. It is tried again sooner than after many failures of its own,
        because it may be the only one that finds out.
        """
        outage = self._outage(job, error)
        if outage.prober is job:
            outage.prober = None
        pause = error.retry_after if isinstance(error, ResourceOpenError) else 0.0
        self._put_off_until(outage, job, max(pause, min(delay, _SOON)))

    def end(self, job: Job) -> None:
        """Note that a tenant's resources are there: so is their host."""
        if not self._known or self._pool is None:
            return
        ended = [(False, job.tenant)]
        if (host := self._host(job)) is not None and (True, host) in self._known:
            # Those of its tenants that failed before the host was found out were not to blame either.
            ended += [place for place, outage in self._known.items() if outage.host == host]
        for place in ended:
            if (outage := self._known.pop(place, None)) is not None:
                self._finish(outage)

    def put_off(self, job: Job) -> bool:
        """Put a new message off if its tenant's resources are known to be down. Returns whether it was done.

        Also if too much waits for resources already, whosever they are, and its own are not open.
        """
        pool = self._pool
        if pool is None or job.context_error is not None:
            return False
        if self._is_flooded() and not pool.is_open(job.context) and self._parking.puts_off(job.delivery):
            self._parking.park(job.delivery)
            return True
        if not self._known or (outage := self._in_the_way_of(job, pool)) is None:
            return False
        pause = pool.retry_after(job.context)
        if pause <= 0 and outage.may_be_probed_by(job):
            return False
        if not self._parking.puts_off(job.delivery) or self._put_off >= MOST_PARKED:
            return False
        age = self._clock() - outage.began
        middle = max(_DELAY, min(_LONGEST, age * _PART))
        self._put_off_until(outage, job, max(pause, middle * self._rng.uniform(0.5, 1.5)))
        self._parking.total += 1
        return True

    def let_in(self, job: Job) -> None:
        """Note that a message goes on to the scheduler: if nobody finds out whether its outage is over, it does."""
        pool = self._pool
        if not self._known or pool is None or job.context_error is not None:
            return
        outage = self._in_the_way_of(job, pool)
        if outage is not None and pool.retry_after(job.context) <= 0 and outage.may_be_probed_by(job):
            outage.prober = job

    async def wait(self, job: Job, error: PoolExhaustedError | ResourceOpenError) -> None:
        """Wait until a message that cannot be put off may try again."""
        outage = self._outage(job, error)
        seconds = error.retry_after if isinstance(error, ResourceOpenError) else 0.0
        if outage.may_be_probed_by(job):
            outage.prober = job
            seconds = max(seconds, 0.001)
        else:
            seconds = max(seconds, self._rng.uniform(*_PATIENCE))
        self._held[job.tenant] += 1
        try:
            await self._over(outage, job.tenant, seconds)
            while self._is_paused(job.tenant):  # noqa: ASYNC110 - whoever ends a pause may be in another thread
                await asyncio.sleep(self._rng.uniform(*_PATIENCE))
        finally:
            self._held[job.tenant] -= 1
            if not self._held[job.tenant]:
                del self._held[job.tenant]

    def close(self) -> None:
        """Hand everything that was put off over to ``parking``, which calls it back: the consumer stops."""
        while self._known:
            self._finish(self._known.popitem()[1])

    def go_on(self, room: int) -> bool:
        """Let those go on whose outage is over, as long as there is room for what waits behind them.

        Returns whether there are more.
        """
        released = self._released
        while released and room > 0:
            waiter, tenant = released.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1 + self._behind(tenant)
        return bool(released)

    async def _over(self, outage: _Outage, tenant: Hashable, seconds: float) -> None:
        """Wait until an outage is over and there is room, or some seconds."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        outage.waiters[waiter] = tenant
        timer = loop.call_later(seconds, _set, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            outage.waiters.pop(waiter, None)

    def _put_off_until(self, outage: _Outage, job: Job, delay: float) -> None:
        now = self._clock()
        self._settler.give_back(job.delivery, Settlement.DEFERRED, delay=delay)
        self._forget_old(outage, now)
        outage.put_off.append((now, now + delay, job.delivery))
        self._put_off += 1
        self._in_flight.put_off()

    def _host(self, job: Job) -> Hashable | None:
        try:
            return None if self._pool is None else self._pool.host_of(job.context)
        except PostroomError:  # weight= or host= failed: it is told when its turn comes
            return None

    def _in_the_way_of(self, job: Job, pool: ResourcePool[Any, Any]) -> _Outage | None:
        """Return the outage of a message's host or tenant, unless its own resources are open all the same."""
        outage = self._known.get((True, self._host(job))) or self._known.get((False, job.tenant))
        return None if outage is None or pool.is_open(job.context) else outage

    def _outage(self, job: Job, error: PoolExhaustedError | ResourceOpenError) -> _Outage:
        host = self._host(job)
        of_host = (True, host) in self._known or (isinstance(error, ResourceOpenError) and error.host is not None)
        place = (True, host) if of_host else (False, job.tenant)
        outage = self._known.get(place)
        if outage is None:
            if len(self._known) >= REMEMBER:
                self._finish(self._known.popitem(last=False)[1])
            outage = self._known[place] = _Outage(host, self._clock())
        return outage

    def _finish(self, outage: _Outage) -> None:
        self._released.extend(outage.waiters.items())
        self._forget_old(outage, self._clock())
        self._put_off -= len(outage.put_off)
        self._parking.adopt(outage.put_off)
        self._on_over()

    def _forget_old(self, outage: _Outage, now: float) -> None:
        while outage.put_off and outage.put_off[0][1] <= now:
            outage.put_off.popleft()
            self._put_off -= 1


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
