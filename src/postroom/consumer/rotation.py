"""Keeps receives outstanding at several queues, as a rota says."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final

from postroom.consumer.demand import Answer, Ask, Pause, SharedPolicy
from postroom.consumer.engine import Engine
from postroom.consumer.inlet import Inlet
from postroom.consumer.rota import Look, Rota, Station
from postroom.events import Observers, PollFinished
from postroom.message import Message
from postroom.options import Polling
from postroom.settlement import Moment

_SILENT: Final = 1.0
"""Seconds beyond its wait after which a receive counts as not answered."""
_MOST_SILENT: Final = 128
"""Receives that are not answered and do not count: each takes a connection."""


class Rotation:
    """Receives from several queues. Those with messages take turns for the room; at the others one look is out.

    Args:
        rota: says which queue is next.
        policy: says how much is asked for in all.
        engine: of the consumer.
        polling: how messages are asked for.
        looks: looks that may be outstanding.
        observers: told of every receive.
    """

    def __init__(
        self,
        rota: Rota[Inlet],
        policy: SharedPolicy,
        engine: Engine,
        *,
        polling: Polling,
        looks: int,
        observers: Observers,
    ) -> None:
        self._rota = rota
        self._policy = policy
        self._core = engine.core
        self._tasks = engine.tasks
        self._polling = polling
        self._looks = looks
        self._observers = observers
        self._stopping = False
        self._numbers = count()
        self._receiving: set[asyncio.Task[None]]
        self._silent: set[int] = set()
        """Those of them with a receive that was not answered in time: another one receives in the place of each."""
        self._turns = _Waiters(self._tasks.loop)
        self._idle = _Waiters(self._tasks.loop)

    def begin(self, receiving: set[asyncio.Task[None]]) -> None:
        """Start to receive. The tasks that do so are kept in a set: there are more while receives are not answered."""
        self._receiving = receiving
        for _ in range(self._polling.pollers):
            self._start(self._take_turn, "poller")
        for _ in range(self._looks):
            self._start(self._look_around, "look")

    def _start(self, step: Callable[[int], Awaitable[None]], name: str) -> None:
        number = next(self._numbers)
        self._receiving.add(self._tasks.spawn(self._receive_on(step, number), f"postroom-{name}-{number}"))

    async def _receive_on(self, step: Callable[[int], Awaitable[None]], number: int) -> None:
        """Take one step after the other, until a stop, or until another task does so in this one's place."""
        while not self._stopping and number not in self._silent:
            await step(number)
        if number in self._silent and (task := asyncio.current_task()) is not None:
            self._silent.remove(number)
            self._receiving.discard(task)  # it is not missed

    def wake(self) -> None:
        """Look again whether there is room, and which queue is next."""
        self._turns.wake()
        if self._idle.stuck:
            self._idle.wake()

    def changed(self) -> None:
        """Look again which queues there are."""
        self._idle.wake_one()

    def stop(self) -> None:
        """Start no further receive. Those that are outstanding go on: their messages must not be stranded."""
        self._stopping = True
        self._turns.wake()
        self._idle.wake()

    # -- turns --------------------------------------------------------------------------------------------------

    async def _take_turn(self, number: int) -> None:
        if not self._rota.expecting:
            await self._turns.wait(None)
            return
        step = self._policy.next(0, self._core, self._tasks.time())
        if isinstance(step, Pause):
            await self._turns.wait(step.seconds)
        elif (station := self._rota.turn(step.limit, scouting=step.scouting)) is None:
            await self._turns.wait(None)
        else:
            await self._ask(station, step, number)

    async def _ask(self, station: Station[Inlet], ask: Ask, number: int) -> None:
        time, inlet = self._tasks.time, station.inlet
        if self._fills_memory(inlet):
            self._rota.answered(station, 0, ask.limit, time(), scouting=ask.scouting)
            self._idle.wake_one()
            return
        asked = inlet.receiver.moment()
        self._policy.asked(ask)
        try:
            messages = await self._receive(station, ask, number)
        except Exception as error:  # whatever a transport raises: a failed receive, not the poller's end
            self._policy.failed(ask)
            refund = 0 if ask.scouting else ask.limit
            inlet.receiver.failed(error, self._rota.failed(station, time(), refund), asked.time)
            self._idle.wake_one()
            return
        except BaseException:
            self._policy.failed(ask)
            raise
        count = len(messages)
        runnable, again = self._admit(inlet, messages, asked)
        del messages  # their bodies must not stay in memory until the next receive ends
        now = time()
        self._policy.answered(Answer(ask, count, runnable, now - asked.time, again), now)
        self._rota.answered(station, count - again, ask.limit, now, scouting=ask.scouting)
        self._turns.wake()
        if not station.expected:
            self._idle.wake_one()

    async def _receive(self, station: Station[Inlet], ask: Ask, number: int) -> list[Message]:
        timer = self._tasks.call_later(_SILENT, self._turn_is_silent, station, ask, number)
        try:
            return await station.inlet.receiver.receive(ask.limit, 0.0, number)
        finally:
            timer.cancel()
            if number in self._silent:
                self._policy.asked(ask)  # its end gives the room back

    def _turn_is_silent(self, station: Station[Inlet], ask: Ask, number: int) -> None:
        """Leave the room and the place of a turn that is not answered to other queues, and ask its queue no more."""
        self._rota.is_silent(station)
        if self._is_silent(number):
            self._policy.failed(ask)
            self._start(self._take_turn, "poller")
            self.wake()

    def _look_is_silent(self, number: int) -> None:
        if self._is_silent(number):
            self._start(self._look_around, "look")

    def _is_silent(self, number: int) -> bool:
        """Note that a receive is not answered. Returns whether another task is to receive in the place of its own."""
        if self._stopping or len(self._silent) >= _MOST_SILENT:
            return False
        self._silent.add(number)
        return True

    # -- looks --------------------------------------------------------------------------------------------------

    async def _look_around(self, number: int) -> None:
        limit = self._policy.look(self._core)
        if not limit:
            await self._idle.wait(None, stuck=True)
            return
        look = self._rota.look(self._tasks.time())
        if isinstance(look, Pause):
            await self._idle.wait(look.seconds)
        else:
            self._idle.wake_one()  # one of those that wait must know when the next look is due
            await self._look(look, limit, number)

    async def _look(self, look: Look[Inlet], limit: int, number: int) -> None:
        time, inlet = self._tasks.time, look.station.inlet
        if self._fills_memory(inlet):
            self._rota.put_off(look, time())
            return
        asked = inlet.receiver.moment()
        timer = self._tasks.call_later(look.wait + _SILENT, self._look_is_silent, number)
        try:
            messages = await inlet.receiver.receive(limit, look.wait, number)
        except Exception as error:  # whatever a transport raises: a failed receive, not the end of all looks
            inlet.receiver.failed(error, self._rota.failed(look, time()), asked.time)
            return
        finally:
            timer.cancel()
        count = len(messages)
        _, again = self._admit(inlet, messages, asked)
        del messages
        now = time()
        self._policy.looked(limit, count, now)
        roomy = self._policy.is_roomy(self._core)
        self._rota.looked(look, count - again, limit, now, seconds=now - asked.time, roomy=roomy)
        if look.station.expected:
            self._turns.wake()

    def _fills_memory(self, inlet: Inlet) -> bool:
        """Whether a queue holds more than it leaves free for the others, as one does where no delete is answered."""
        core = self._core
        free = core.most_bytes - core.held_bytes
        # The cheap question first: the second takes time in proportion to what is held.
        return free < core.held_bytes and free < inlet.held_bytes

    def _admit(self, inlet: Inlet, messages: list[Message], asked: Moment) -> tuple[int, int]:
        """Take messages in. Returns how many lack nothing but a slot, and how many were held already."""
        admitted = inlet.intake.admit(messages, inlet.receiver.arrived(asked)) if messages else (0, 0)
        if self._observers:
            self._observers.tell(PollFinished(inlet.name, len(messages), self._tasks.time() - asked.time))
        return admitted


class _Waiters:
    """Tasks that wait for something to change, or for a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[asyncio.Future[None], None] = {}
        self.stuck = False
        """Whether one of them waits for room."""

    async def wait(self, seconds: float | None, *, stuck: bool = False) -> None:
        """Wait to be woken, or for some seconds."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting[waiter] = None
        self.stuck = self.stuck or stuck
        try:
            await asyncio.wait([waiter], timeout=seconds)
        finally:
            self._waiting.pop(waiter, None)

    def wake_one(self) -> None:
        """Let one of them look again."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
                return

    def wake(self) -> None:
        """Let all of them look again."""
        self.stuck = False
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)
