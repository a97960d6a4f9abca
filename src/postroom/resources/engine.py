"""The acting half of a pool: it carries out what ``core`` decides, with tasks, timers, logs and observers."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from postroom.display import display_key
from postroom.events import ResourceClosed, ResourceOpened, ResourceOpenFailed
from postroom.options import PoolTimeouts
from postroom.redaction import log_error
from postroom.resources import actions
from postroom.resources.causes import Cause
from postroom.resources.core import Core
from postroom.resources.entries import Entry, EntryState, Waiter
from postroom.resources.lease import Lease
from postroom.resources.owner import Alarm, examine, own
from postroom.resources.providers import connections_of
from postroom.resources.provision import Provision
from postroom.resources.reporter import Reporter, log
from postroom.resources.subscribers import Subscribers
from postroom.tasks import clock_of, home_context


class Engine:
    """Runs on one loop, from the pool's opening to its close. Owner tasks and leases report here."""

    def __init__(
        self,
        core: Core,
        provision: Provision,
        *,
        timeouts: PoolTimeouts,
        observers: Subscribers,
        name: str,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.empty: asyncio.Event = asyncio.Event()
        """Set once the pool is shut and no task of it is left."""
        self.time: Callable[[], float] = clock_of(self.loop)
        """Tells the loop's time."""
        self._core = core
        self._provision = provision
        self._report = Reporter(name, self)
        self._sized = provision.knows_weight
        self._timeouts = timeouts
        self._observers = observers
        self._name = name
        # What providers, observers and timers see of context variables is what was set here, never what the handler of
        # some message set.
        self._home = home_context()
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._checks: dict[Entry, asyncio.Task[BaseException | None]] = {}
        self._acting = False

    # -- carrying out -------------------------------------------------------------------------------------------

    def act(self) -> None:
        """Do what the core decided. Calls from within leave it to the outermost."""
        if self._acting:
            return
        # Not re-entrant: an action may resume code that reports to the pool again. What that
        # decides is done after the present batch, so that actions keep their order.
        self._acting = True
        try:
            while self._core.actions:
                batch, self._core.actions = self._core.actions, []
                for action in batch:
                    self._do(action)
        finally:
            self._acting = False

    def spawn(self, coroutine: Coroutine[Any, Any, Any], what: str) -> asyncio.Task[Any]:
        """Start a task of the pool's own. The close waits for it."""
        task = self.loop.create_task(coroutine, name=f"{self._name}: {what}", context=self._home.copy())
        self._tasks[task] = None
        task.add_done_callback(self._task_done, context=self._home.copy())
        return task

    def call_later(self, seconds: float, function: Callable[..., object], *arguments: Any) -> asyncio.TimerHandle:
        """Call a function after some seconds."""
        return self.call_at(self.loop.time() + seconds, function, *arguments)

    def call_at(self, when: float, function: Callable[..., object], *arguments: Any) -> asyncio.TimerHandle:
        """Call a function at a time of the loop's clock, in the context in which the pool was opened."""
        return self.loop.call_at(when, function, *arguments, context=self._home.copy())

    def start_close(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start the task that waits until nothing is left. It is not one of those that it waits for."""
        return self.loop.create_task(work, name=f"{self._name}: closing", context=self._home.copy())

    def note_if_empty(self) -> None:
        """Let the close go on if nothing is left."""
        if self._core.shut_down and not self._tasks and not self._core.table.entries:
            self.empty.set()

    def close_log(self) -> None:
        """Tell now of outages that no line has told of."""
        self._report.outages.close()

    def press(self) -> None:
        """Cancel once more what leaves its provider, or checks one."""
        for task in (*(entry.task for entry in self._core.table.returning), *self._checks.values()):
            task.cancel("postroom: the pool closes")

    def give_up(self) -> None:
        """Let the close go on although something is left: it ignores its cancellation."""
        names = ", ".join(task.get_name() for task in self._tasks)
        log.error("%s: abandoned what ignores its cancellation: %s", self._name, names)
        self.empty.set()

    def _do(self, action: actions.Action) -> None:
        match action:
            case actions.Open(entry):
                self._open(entry)
            case actions.CallOff(entry):
                entry.task.cancel("postroom: called off")
            case actions.Close(entry):
                # An owner that was cancelled from outside has cancelled the future that it awaited.
                if not entry.stop.done():
                    entry.stop.set_result(None)
            case actions.Check(entry):
                self._start_check(entry)
            case actions.StopCheck(entry):
                if entry in self._checks:
                    self._checks[entry].cancel("postroom: called off")
            case actions.Grant(entry, waiter):
                self._grant(entry, waiter)
            case actions.TurnAway(waiter, refusal):
                if not waiter.future.done():
                    waiter.future.set_result(refusal.error(waiter.context))
            case actions.WakeAt(when):
                self.call_at(when, self._wake)
            case actions.Tell(told):
                self._report.tell(told)

    def _open(self, entry: Entry) -> None:
        # Before the task, which awaits it.
        entry.stop = self.loop.create_future()
        owner = own(entry, self._provision.opener, self._provision.check, self, self._timeouts)
        entry.task = self.spawn(owner, f"owner of {display_key(entry.key)}")
        # Callbacks run in the order in which they were added. When `_task_done` asks whether the
        # pool is empty, this entry is still in the table; `_owner_done` asks again without it.
        entry.task.add_done_callback(partial(self._owner_done, entry), context=self._home.copy())

    def _start_check(self, entry: Entry) -> None:
        task = self._checks[entry] = self.spawn(self._examine(entry), f"check of {display_key(entry.key)}")
        task.add_done_callback(partial(self._check_done, entry), context=self._home.copy())

    def _grant(self, entry: Entry, waiter: Waiter) -> None:
        if waiter.future.done():  # cancelled a moment ago: it does not take the lease
            self.give_back(entry)
        else:
            waiter.future.set_result(Lease[Any](self, entry))

    def _wake(self) -> None:
        self._core.wake(self.loop.time())
        self.act()

    # -- what leases report -------------------------------------------------------------------------------------

    def give_back(self, entry: Entry) -> None:
        """Take back one lease of an entry."""
        entry.leases -= 1
        if not entry.leases:
            self.unused(entry)

    def unused(self, entry: Entry) -> None:
        """Note that the last lease of an entry was given back."""
        core = self._core
        core.unused(entry, self.time())
        if core.actions:
            self.act()

    def distrust(self, entry: Entry, error: BaseException) -> None:
        """Lease an entry no more: its use showed that it is broken."""
        self._report.suspect(entry.key, entry.context, error)
        self._core.suspect(entry, self.loop.time())
        self.act()

    def doubt(self, entry: Entry) -> None:
        """Check an entry before its next lease: its use timed out."""
        self._core.doubt(entry, self.loop.time())

    def outage(self, entry: Entry, error: BaseException) -> bool:
        """Note what a use of an entry raised, if it is an outage of its server. Returns whether it is."""
        if not self._provision.is_outage(error):
            return False
        self._core.outage(entry, error, self.loop.time())
        self.act()
        return True

    # -- what owner tasks report --------------------------------------------------------------------------------

    def opened(self, entry: Entry, resource: Any) -> bool:
        """Note that a provider was entered. Returns False when it is not wanted after all."""
        now = self.loop.time()
        wanted = self._core.opened(entry, resource, now)
        self.act()
        if not entry.verify:
            self._report.created(entry.key)
        if not self._sized:
            self._look_at_size(entry)
        return wanted

    def usable(self, entry: Entry) -> None:
        """Let a resource be handed out."""
        now, opens = self.loop.time(), entry.state is EntryState.OPENING
        invited = self._core.usable(entry, now)
        if entry.verify:
            entry.verify = False
            self._report.created(entry.key)
        self.act()
        if opens:
            self._report.opened(entry.key, entry.host)
        # Not before: consumers take it for the end of an outage, and what has yet to be checked may be no better.
        if opens and self._observers:
            self._observers.tell(ResourceOpened(entry.key, now - entry.started_at, entry.host, invited))

    def open_failed(self, entry: Entry, error: BaseException) -> None:
        """Note that a provider failed, hangs, or opened something unhealthy. Told twice, only the first counts."""
        if entry.state is not EntryState.OPENING:
            return
        permanent = self._provision.is_permanent(entry.key, error)
        pause = self._core.open_failed(entry, error, permanent=permanent, now=self.loop.time())
        self.act()
        if self._observers:
            self._observers.tell(
                ResourceOpenFailed(entry.key, Cause(error, entry.context).error, permanent, pause, entry.host)
            )

    def _look_at_size(self, entry: Entry) -> None:
        connections = connections_of(entry.resource)
        if connections > 1:
            self._sized = True  # told once
            self._report.holds_more(entry.key, connections, self._core.budget.limit)

    def died(self, entry: Entry) -> None:
        """Note that other code cancelled an owner task."""
        self._core.died(entry, self.loop.time())
        self.act()

    def ignores(self, entry: Entry, alarm: Alarm) -> None:
        """Say that something takes longer than it may, and runs on although it was cancelled."""
        self._report.ignores(entry.key, entry.weight, alarm.option, alarm.seconds, alarm.rang_at)

    def _owner_done(self, entry: Entry, _task: asyncio.Task[None]) -> None:
        # Not at the end of the task's own code: a task that is cancelled before its first step runs none of it.
        self.open_failed(entry, asyncio.CancelledError())
        now, error = self.loop.time(), entry.close_error
        if entry.opened:
            self._core.died(entry, now)  # unless it was closing, as it should
        self._core.ended(entry, now, clean=error is None)
        self.act()
        if entry.opened:
            self._tell_closed(entry, error)
        self.note_if_empty()

    def _tell_closed(self, entry: Entry, error: BaseException | None) -> None:
        reason = str(entry.reason)
        # What failed its first check was not told of as created: the outage is, and each try of it would be two lines.
        if error is not None or not entry.verify:
            self._report.closed(entry.key, entry.context, reason, error)
        if self._observers:
            self._observers.tell(ResourceClosed(entry.key, reason, error))

    # -- health checks ------------------------------------------------------------------------------------------

    async def _examine(self, entry: Entry) -> BaseException | None:
        check = self._provision.check
        assert check is not None  # noqa: S101 - the core asks for checks only where there is one
        return await examine(check, entry.resource, Alarm(partial(self.ignores, entry)), self._timeouts.check)

    def _check_done(self, entry: Entry, task: asyncio.Task[BaseException | None]) -> None:
        del self._checks[entry]
        problem = asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()
        if problem is not None and entry.state is EntryState.CHECKING:
            self._report.unhealthy(entry.key, entry.context, problem)
        self._core.checked(entry, self.loop.time(), healthy=problem is None)
        self.act()

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        if not task.cancelled() and task.exception() is not None:
            # Reading the exception also keeps asyncio from logging it by itself when the task is
            # collected, with secrets in its text.
            error = task.exception() or asyncio.CancelledError()
            log_error(log, logging.ERROR, "%s: task %s died", self._name, task.get_name(), error=error)
        self.note_if_empty()
