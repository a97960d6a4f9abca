"""The queues that a consumer has at present: opened when they are listed, closed when they are listed no longer."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from postroom.consumer.inlet import Inlet
from postroom.consumer.namesakes import are_same, told_apart
from postroom.consumer.queues import Queues
from postroom.consumer.rota import Rota, Station
from postroom.consumer.rotation import Rotation
from postroom.consumer.statistics import QueueStatistics
from postroom.errors import ConfigurationError, ServiceUnavailable, in_words
from postroom.log_fields import Log, Step, about
from postroom.outages import Kind, cause_of
from postroom.redaction import log_error
from postroom.tasks import Tasks, goes_on, has_to_leave
from postroom.transports.protocol import Client, Queue

_log = Log("postroom.consumer", Step.START)

_LISTS: Final = Kind("Queues could not be listed", "list", _log, Step.START, "queue", prefixed=False)

_AT_ONCE: Final = 16
"""Queues that are opened at once: each costs two requests."""
_SLOW: Final = 5.0
"""Seconds after which a queue that opens keeps no other from it, nor the start of those that are open."""
_PATIENCE: Final = 30.0
"""Seconds that the function which lists the queues may take."""
_LEAVING: Final = 1.0
"""Seconds between two looks at a queue that was removed, until nothing of it is here."""

MakeInlet = Callable[[Queue], Inlet]


class Roster:
    """Opens the listed queues, and keeps up with the list.

    One that cannot be opened ends the start where the list is fixed: its name is probably wrong. Where a function
    lists them, the others are consumed all the same, and it is tried again whenever the function is asked.
    """

    def __init__(self, queues: Queues, client: Client) -> None:
        self._queues = queues
        self._client = client
        self._weights: dict[str, float] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._opening: dict[str, asyncio.Task[Queue | Exception]] = {}
        self._opened: dict[str, Queue] = {}
        self._stations: dict[str, Station[Inlet]] = {}
        self._leaving: dict[str, Station[Inlet]] = {}
        self._made = 0
        self._make: MakeInlet
        self._rota: Rota[Inlet]
        self._rotation: Rotation
        self._tasks: Tasks
        self.refused: dict[str, str] = {}
        """Queues that are listed and are not open, each with the type of the error."""
        self.past: QueueStatistics = QueueStatistics(settled={})
        """What was counted for queues that are closed."""

    @property
    def inlets(self) -> list[Inlet]:
        """The queues that something may be here of, those that leave included."""
        return [station.inlet for station in (*self._stations.values(), *self._leaving.values())]

    async def open(self) -> None:
        """Open the queues for the first time.

        Raises:
            ConfigurationError: two names are those of one queue, or the function returned something else than names.
            PostroomError: a queue of a fixed list cannot be opened. What the function raises comes through.
        """
        self._weights = dict(await self._queues.ask())
        self._begin_to_open()
        if self._opening:
            await asyncio.wait(self._opening.values(), timeout=_SLOW if self._queues.changes else None)
        errors = self._take_what_opened()
        if errors and not self._queues.changes:
            raise errors[0]
        for name in self._opening:
            self.refused[name] = TimeoutError.__name__
            text = "Queue %s takes more than %g s to open: it is consumed once it is open; the others are from now on"
            _log.warning(text, name, _SLOW, extra=about(queue=name))

    async def close(self) -> None:
        """Open no further queue."""
        for task in (opening := set(self._opening.values())):
            task.cancel()
        if opening:
            await asyncio.wait(opening)

    def begin(self, make: MakeInlet, rota: Rota[Inlet], rotation: Rotation, tasks: Tasks) -> None:
        """Take in what was opened."""
        self._make, self._rota, self._rotation, self._tasks = make, rota, rotation, tasks
        self._take_in(first=True)

    async def run(self) -> None:
        """Keep up with the list, until cancelled."""
        time = self._tasks.time
        due = time() + self._queues.every
        while goes_on():
            left = max(0.0, due - time())
            left = min(left, _LEAVING) if self._leaving else left
            if self._opening:
                await asyncio.wait(self._opening.values(), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(left)
            await self._close_those_that_left()
            if time() >= due:
                if self._queues.changes:
                    await self._ask_again()
                due = time() + self._queues.every
            self._take_what_opened()
            self._take_in()

    # -- inside -------------------------------------------------------------------------------------------------

    async def _ask_again(self) -> None:
        """Ask which queues there are. While that fails, those that are known stay."""
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(_PATIENCE):
                weights = await self._queues.ask()
        except BaseException as error:  # whatever the function raises
            if has_to_leave(error, task):
                raise
            telling = self._tasks.outages.failed(
                _LISTS, self._queues.title, cause_of(error), in_words(error), self._tasks.time()
            )
            if telling.is_told:
                text, title = "The queues of %s could not be listed; those that are known stay: %s", self._queues.title
                if isinstance(error, ConfigurationError):  # it answered, and its text says what is wrong
                    _log.error(text, title, error, extra=about(queue=title))
                else:
                    log_error(_log, logging.ERROR, text, title, in_words(error), error=error, extra=about(queue=title))
            return
        title = self._queues.title
        if self._tasks.outages.worked(_LISTS, title, self._tasks.time()):
            _log.warning("The queues of %s can be listed again", title, extra=about(queue=title))
        for name in [name for name in self._weights if name not in weights]:
            self._remove(name)
        self._weights = dict(weights)
        for name, station in self._stations.items():
            station.weight = weights.get(name, station.weight)
        for name in [name for name in self._opening if name not in weights]:
            self._opening.pop(name).cancel()
        self.refused = {name: error for name, error in self.refused.items() if name in weights}
        self._begin_to_open()

    def _begin_to_open(self) -> None:
        """Open what is listed and not open, side by side."""
        known = {*self._opened, *self._opening}
        for name in [name for name in self._weights if name not in known]:
            self._opening[name] = asyncio.create_task(self._open(name), name=f"postroom-open-{name}")

    async def _open(self, name: str) -> Queue | Exception:
        """Return a queue, or what was raised for it."""
        task, slow = asyncio.current_task(), False

        def leave_room() -> None:
            nonlocal slow
            slow = True
            self._room.release()

        await self._room.acquire()
        timer = asyncio.get_running_loop().call_later(_SLOW, leave_room)
        try:
            return await self._client.queue(name)
        except BaseException as error:  # whatever a transport raises
            if has_to_leave(error, task):
                raise
            return error if isinstance(error, Exception) else _unavailable(error)
        finally:
            timer.cancel()
            if not slow:
                self._room.release()

    def _take_what_opened(self) -> list[Exception]:
        """Note which queues are open by now. Returns what was raised for those that could not be opened."""
        errors: list[Exception] = []
        for name, task in [(name, task) for name, task in self._opening.items() if task.done()]:
            del self._opening[name]
            # Only code that cancels every task of the loop does so to one of these.
            found = _unavailable(asyncio.CancelledError()) if task.cancelled() else task.result()
            if not isinstance(found, Exception):
                others = (each for each, queue in self._opened.items() if are_same(queue.info, found.info))
                if (other := next(others, None)) is None:
                    self._opened[name] = found
                    self.refused.pop(name, None)
                    continue
                found = ConfigurationError(f"queues= names one queue twice: {other!r} and {name!r}")
            errors.append(found)
            if self.refused.get(name) != type(found).__name__ and self._queues.changes:
                text = "Queue %s could not be opened, it is tried again in %g s; the others are consumed: %s"
                _log.error(text, name, self._queues.every, found, extra=about(queue=name))
            self.refused[name] = type(found).__name__
        return errors

    def _take_in(self, *, first: bool = False) -> None:
        now = self._tasks.time()
        for name in [name for name in self._weights if name not in self._stations]:
            if (station := self._leaving.pop(name, None)) is None:
                if name not in self._opened:
                    continue
                self._made += 1
                inlet = self._make(told_apart(self._opened[name], self._opened.values()))
                inlet.begin(self._made)
                station = Station(inlet, fifo=inlet.source.fifo)
            station.weight = self._weights[name]
            self._stations[name] = station
            self._rota.add(station, now)
            if not first:  # the end of what was said of one that could not be opened, too
                _log.info("Queue %s is consumed from now on", name, extra=about(queue=station.inlet.name))
        self._rotation.changed()

    def _remove(self, name: str) -> None:
        station = self._stations.pop(name, None)
        if station is None:
            return
        self._leaving[name] = station
        self._rota.remove(station)
        queue, text = station.inlet.name, "Queue %s is listed no longer: what is here of it is handled, then it closes"
        _log.info(text, queue, extra=about(queue=queue))

    async def _close_those_that_left(self) -> None:
        for name, station in list(self._leaving.items()):
            inlet = station.inlet
            if inlet.is_empty:
                self.past = self.past.plus(inlet.statistics(self._tasks.time()))
                del self._leaving[name], self._opened[name]
                await inlet.close()
                _log.info("Queue %s is closed", inlet.name, extra=about(queue=inlet.name))


def _unavailable(error: BaseException) -> ServiceUnavailable:
    return ServiceUnavailable(f"the transport raised {type(error).__name__}")
