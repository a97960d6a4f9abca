"""Moves a tenant to another database, or ends it, while messages flow: over every process that consumes for it.

A move pauses and drains the tenant everywhere, closes what is open for it, has its registry point elsewhere (``switch``
is yours), looks whether every registry says so, tries the new database, and resumes. Until the new database has
handled a message, or has been opened where none waits, each step can be undone: what fails, takes too long or is
cancelled leads back to the old database. From then on it only goes forward, or work would be left behind.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

import msgspec

from postroom.console.actions import BEING_MOVED, Done, Order, carry_out
from postroom.console.desk import Desk
from postroom.console.remote import RemoteConsole
from postroom.consumer import Consumer
from postroom.consumer.callables import check_callable, is_async
from postroom.consumer.handover import ProbeOutcome
from postroom.display import display_key, present_user
from postroom.errors import ConfigurationError, PostroomError
from postroom.log_fields import Log, Step, about
from postroom.redaction import describe, redact

T = TypeVar("T")
Where = Consumer[Any, Any] | RemoteConsole
Switch = Callable[[], object]
"""A function without arguments: awaited where it is ``async def``, else called in a thread."""
Progress = Callable[["MoveStep", str], None]

_log = Log("postroom.console", Step.POLICY)
_SLACK: Final = 10.0
"""Seconds that an answer of a console may take beyond the time of the work."""


class MoveStep(StrEnum):
    """The steps of a move, in order; then the way back."""

    PAUSE = "pause"
    """Nothing of the tenant starts from here on."""
    DRAIN = "drain"
    """Its running handlers end."""
    CLOSE = "close"
    """Its resources close in every process."""
    SWITCH = "switch"
    """Your function moves the data, and points the registry to it."""
    VERIFY = "verify"
    """Every registry is asked where the data is."""
    PROBE = "probe"
    """The new database is opened everywhere, and one message is handled."""
    RESUME = "resume"
    """Its messages flow again."""
    BACK = "back"
    """The switch is undone, and the tenant runs on its old database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a move did."""

    tenant: str
    """The tenant's name, as the log shows it."""
    before: str
    """Where the tenant's data was, as its registries said; empty where no provider can tell."""
    after: str
    """Where it is now."""
    probe: str
    """``handled``: one message was handled by the new database before the tenant was resumed; ``opened``: none
    waited, so the new database was only opened."""
    seconds: float
    """For how long the tenant was paused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offboarded:
    """What an offboarding did."""

    queues: tuple[str, ...]
    """The queues. Messages of the tenant that come there become dead letters."""
    remark: str
    """What is odd, such as that no process has seen the tenant, with the names that are near; mostly empty."""


class MoveFailed(PostroomError):
    """A tenant was not moved, or not resumed. The text says why, and where it is now."""

    def __init__(self, text: str, *, step: MoveStep, left_paused: Sequence[str]) -> None:
        super().__init__(text)
        self.step = step
        """The step that failed."""
        self.left_paused: tuple[str, ...] = tuple(left_paused)
        """Where the tenant is still paused; empty where it runs again, on the old database."""


async def move_tenant(
    tenant: Hashable,
    *where: Where,
    switch: Switch,
    back: Switch | None,
    reason: str,
    operator: str | None = None,
    to: str | None = None,
    go_on: bool = False,
    drain: float = 60.0,
    probe: float = 30.0,
    timeout: float = 600.0,
    progress: Progress | None = None,
) -> Moved:
    """Move a tenant to another database while messages flow.

        await move_tenant("acme", orders, invoices, switch=copy_and_repoint, back=repoint_to_old, reason="disk is full")

    Args:
        tenant: its key, or its name as the console and the log show it.
        where: every consumer that works for it: the ones of this process, and the consoles of others. With
            ``Consumer(fleet=...)`` one replica stands for all of its fleet.
        switch: what makes the registry of every process point to the new database. Nothing of the tenant runs
            meanwhile and nothing of it is open, so the last of the data may be copied here. ``async def``, or a plain
            function, which is called in a thread.
        back: what makes the registry point to the old database again, also after a ``switch`` that has failed
            half-way. None: there is no such thing; what fails after the switch has begun leaves the tenant paused.
        reason: why; it is logged, and shown where the tenant is.
        operator: who; by default the user of this process.
        to: where the registries have to say that the data is afterwards, such as ``db-2:5432/acme``. Without it, any
            other place than before.
        go_on: go on with a move that was killed, which needs ``to``: it does not switch again where the registries say
            so already. Without it, a tenant that is being moved is refused.
        drain: seconds for its running handlers to end, in each of drain and close.
        probe: seconds for the new database to open, and again for one message to be handled.
        timeout: seconds from the pause to the end of the probe; then it goes back.
        progress: told of each step.

    Raises:
        MoveFailed: a step failed or took too long. The text, ``step`` and ``left_paused`` say where the tenant is.
        ConfigurationError: an argument cannot work. Nothing was changed.
        asyncio.CancelledError: it was cancelled, and has gone back; or forward, if the probe was over.
    """
    for name, each in (("switch", switch), ("back", back)):
        if each is not None:
            check_callable(f"move_tenant({name}=...)", "()", each, 0)
    for name, seconds, most in (("drain", drain, 600), ("probe", probe, 600), ("timeout", timeout, 86_400)):
        if isinstance(seconds, bool) or not 0 < seconds <= most:
            raise ConfigurationError(f"move_tenant({name}=...) takes seconds above 0, at most {most}; got {seconds!r}")
    if go_on and to is None:
        raise ConfigurationError("move_tenant(go_on=True) needs to=: where the data has to be afterwards")
    crowd = _Crowd("move_tenant", tenant, where, reason, operator, prefix=BEING_MOVED)
    limits = _Limits(drain, probe, timeout)
    return await _Move(crowd, switch, back, to=to, go_on=go_on, limits=limits, progress=progress).run()


async def offboard_tenant(
    tenant: Hashable, *where: Where, reason: str, operator: str | None = None, drain: float = 60.0
) -> Offboarded:
    """End a tenant everywhere: drain and close it, and have its messages go to the dead-letter queue with the reason.

    ``resume`` takes it back. When it is cancelled, the tenant is resumed.

    Args:
        tenant: its key, or its name as the console and the log show it.
        where: as for ``move_tenant``.
        reason: why; each dead letter has it in ``postroom.reason``.
        operator: who; by default the user of this process.
        drain: seconds for its running handlers to end, and again for what is open to close.

    Raises:
        ConfigurationError: a queue has no dead-letter queue, or an argument cannot work.
        TimeoutError, PostroomError: it was not done everywhere; the text says where. Run it again.
    """
    if isinstance(drain, bool) or not 0 < drain <= 300:
        raise ConfigurationError(f"offboard_tenant(drain=...) takes seconds above 0, at most 300; got {drain!r}")
    crowd = _Crowd("offboard_tenant", tenant, where, reason, operator)
    try:
        done = await crowd.all("offboard", patience=2 * drain, timeout=drain)
    except asyncio.CancelledError:
        await _to_the_end(crowd.all("resume"))
        raise
    remarks = {each.details for each in done}
    return Offboarded(
        queues=tuple(dict.fromkeys(queue for each in done for queue in each.queues)),
        remark="" if "" in remarks else "; ".join(sorted(remarks)),
    )


class _Site:
    """One process: its own console, or the consumers of this one."""

    def __init__(self, console: RemoteConsole | Desk, operator: str) -> None:
        self._console = console
        self._operator = operator
        self.name = "this process" if isinstance(console, Desk) else console.url

    async def act(self, order: Order, patience: float) -> Done:
        """Carry out an action."""
        if isinstance(self._console, Desk):
            return await carry_out(self._console, order, operator=self._operator)
        said = await self._console.order(msgspec.to_builtins(order), patience=patience + _SLACK)
        return msgspec.convert(said, Done)


class _Crowd:
    """Everything that consumes for one tenant."""

    def __init__(
        self,
        function: str,
        tenant: Hashable,
        where: Sequence[Where],
        reason: str,
        operator: str | None,
        *,
        prefix: str = "",
    ) -> None:
        given: Any = reason
        if not isinstance(given, str) or not given.strip():
            raise ConfigurationError(f"{function}(reason=...) takes a text: it is kept in the log; got {given!r}")
        if not where:
            text = "takes every consumer that works for the tenant, one argument each, or RemoteConsole(url)"
            raise ConfigurationError(f"{function}(tenant, ...) {text}; got none")
        for each in where:
            one: Any = each
            if not isinstance(one, Consumer | RemoteConsole):
                raise ConfigurationError(f"{function}(tenant, ...) takes consumers and RemoteConsoles; got {one!r}")
        self.operator = operator or present_user()
        self.reason = f"{prefix}{reason}"
        self.tenant = tenant if isinstance(tenant, str) else display_key(tenant)
        consumers = [each for each in where if isinstance(each, Consumer)]
        self.sites = [_Site(each, self.operator) for each in where if isinstance(each, RemoteConsole)]
        if consumers:
            desk = Desk(consumers)
            desk.know(tenant)
            self.sites.insert(0, _Site(desk, self.operator))

    async def all(
        self, action: str, sites: Sequence[_Site] | None = None, patience: float = 0.0, **more: Any
    ) -> list[Done]:
        """Carry out an action everywhere at once. The first error calls the others off."""
        asked = self.sites if sites is None else sites
        return await _each(self.one(site, action, patience=patience, **more) for site in asked)

    async def one(self, site: _Site, action: str, *, patience: float = 0.0, **more: Any) -> Done:
        """Carry out an action in one process."""
        try:
            return await site.act(Order(action, self.tenant, self.reason, **more), patience)
        except (ConfigurationError, TimeoutError, PostroomError) as error:
            if site.name not in str(error) and len(self.sites) > 1:
                error.add_note(f"in {site.name}")
            raise


@dataclass(frozen=True, slots=True)
class _Limits:
    drain: float
    probe: float
    timeout: float


class _Move:
    """One move."""

    def __init__(
        self,
        crowd: _Crowd,
        switch: Switch,
        back: Switch | None,
        *,
        to: str | None,
        go_on: bool,
        limits: _Limits,
        progress: Progress | None,
    ) -> None:
        self._crowd = crowd
        self._switch = switch
        self._way_back = back
        self._to = to
        self._go_on = go_on
        self._limits = limits
        self._progress = progress
        self._step = MoveStep.PAUSE
        self._paused: list[_Site] = []
        self._queues: list[tuple[_Site, str]] = []
        self._began = 0.0
        self._before = self._after = ""
        self._probe = ""
        self._switched = self._committed = False
        self._uncertain = False
        """Whether a message may have been handled by the new database, or not."""

    async def run(self) -> Moved:
        """Go through the steps; go back if one fails."""
        tenant, crowd = self._crowd.tenant, self._crowd
        _log.warning(
            "Tenant %s is moved by %s: %s",
            tenant,
            crowd.operator,
            redact(crowd.reason.removeprefix(BEING_MOVED)),
            extra=about(tenant=crowd.tenant),
        )
        self._began = time.monotonic()
        try:
            async with asyncio.timeout(self._limits.timeout):
                await self._forward()
        except BaseException as error:
            if not self._committed:
                await _to_the_end(self._go_back(error))
                raise
            if not isinstance(error, asyncio.CancelledError | TimeoutError):
                raise
            await _to_the_end(self._resume())
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            await _to_the_end(self._resume())
        return Moved(
            tenant=tenant,
            before=self._before,
            after=self._after,
            probe=self._probe,
            seconds=round(time.monotonic() - self._began, 3),
        )

    # -- forward ----------------------------------------------------------------------------------------------------

    async def _forward(self) -> None:
        crowd, drain = self._crowd, self._limits.drain
        self._enter(MoveStep.PAUSE, f"{len(crowd.sites)} process{'es' if len(crowd.sites) > 1 else ''}")
        await _each(self._pause(site) for site in crowd.sites)
        self._enter(MoveStep.DRAIN, f"at most {drain:g} s")
        # Before the close: what is leased cannot be closed.
        await crowd.all("drain", patience=drain, timeout=drain)
        self._enter(MoveStep.CLOSE)
        # Read while everything still points to the old database: the way back is checked against
        # it.
        self._before = ", ".join(await self._places())
        await crowd.all("close", patience=drain, timeout=drain)
        if self._to is not None and self._before == self._to:  # by an earlier move, which did not end
            self._enter(MoveStep.SWITCH, f"not needed: its registry says {self._to} already")
        else:
            self._enter(MoveStep.SWITCH, f"from {self._before}" if self._before else "")
            # Before the call: a switch that fails half-way may have switched.
            self._switched = True
            await _call(self._switch)
            # What else leases from the pool, such as a relay or a web route, may have opened the old one again.
            await crowd.all("close", patience=drain, timeout=drain)
        self._enter(MoveStep.VERIFY)
        await self._verify()
        self._enter(MoveStep.PROBE, self._after)
        await self._try()
        self._committed = True

    async def _pause(self, site: _Site) -> None:
        # Before the request: one that is answered late has paused the tenant all the same.
        self._paused.append(site)
        try:
            done = await self._crowd.one(site, "pause", unless_decided=True, to=self._to if self._go_on else None)
        except ConfigurationError:  # refused: what an operator decided stays
            self._paused.remove(site)
            raise
        self._queues += [(site, queue) for queue in done.queues]

    async def _places(self, expect: str | None = "paused") -> list[str]:
        """Return where the registries say that the data is. A process that forgot the pause is found out."""
        drain = self._limits.drain
        done = await self._crowd.all("places", patience=drain, timeout=drain, expect=expect)
        found = (place for each in done for _, text in each.results for place in text.split(", "))
        return sorted({place for place in found if place})

    async def _verify(self) -> None:
        """Refuse a switch after which the registries do not all say the same other place."""
        found = await self._places()
        self._after = ", ".join(found)
        if len(found) > 1:
            raise PostroomError(f"the registries do not agree where its data is: {self._after}")
        if self._to is not None and found != [self._to]:
            raise PostroomError(f"its registry says {self._after or 'no place'}, and not {self._to}")
        if self._to is None and found and self._after == self._before:
            raise PostroomError(f"its registry still says {self._after}")

    async def _try(self) -> None:
        """Open the new database in every process, then have one message handled, where one waits."""
        limit = self._limits.probe
        common: dict[str, Any] = {"patience": 2 * limit, "timeout": limit, "expect": "paused"}
        # In every process before any message: a firewall that lets only some of them through shows
        # here.
        for done in await self._crowd.all("probe", message=False, **common):
            _check_probe(done)
        self._probe = str(ProbeOutcome.OPENED)
        for site, queue in self._queues:
            await _to_the_end(self._try_one(site, queue, common))  # what it does to the new database has to be known
            if self._committed:
                return

    async def _try_one(self, site: _Site, queue: str, common: dict[str, Any]) -> None:
        """Have one message handled, if one waits there. From its success on there is no way back."""
        # Before the request: if no answer comes, the message may have run.
        self._uncertain = True
        done = await self._crowd.one(site, "probe", queue=queue, **common)
        self._uncertain = any(found.startswith(ProbeOutcome.RUNNING) for _, found in done.results)
        _check_probe(done)
        if any(found == ProbeOutcome.HANDLED for _, found in done.results):
            self._probe = str(ProbeOutcome.HANDLED)
            self._committed = True

    async def _resume(self) -> None:
        """Resume the tenant everywhere. What cannot be reached stays paused, and is named."""
        self._enter(MoveStep.RESUME)
        left = await self._resume_all()
        seconds = time.monotonic() - self._began
        if left:
            text = f"tenant {self._crowd.tenant} was moved, and is still PAUSED in {', '.join(left)}: resume it there"
            line = "Tenant %s was moved, and is still paused in %s"
            _log.error(line, self._crowd.tenant, ", ".join(left), extra=about(tenant=self._crowd.tenant))
            self._tell(text)
            raise MoveFailed(text, step=MoveStep.RESUME, left_paused=left)
        places = f" from {self._before} to {self._after}" if self._after else ""
        text = "Tenant %s was moved%s; it was paused for %.1f s"
        _log.warning(text, self._crowd.tenant, places, seconds, extra=about(tenant=self._crowd.tenant))
        self._tell(f"moved{places}; it was paused for {seconds:.1f} s")

    async def _resume_all(self) -> list[str]:
        """Resume the tenant everywhere, one process after the other. Returns where that failed."""
        left: list[str] = []
        for site in self._paused:
            try:
                await self._crowd.one(site, "resume")
            except Exception as error:  # one that is gone must not keep the others paused
                left.append(f"{site.name} ({_said(error)})")
        return left

    # -- the way back -----------------------------------------------------------------------------------------------

    async def _go_back(self, error: BaseException) -> None:
        """Undo what was done, and say where the tenant is. Raises ``MoveFailed`` unless the move was cancelled."""
        step, tenant = self._step, self._crowd.tenant
        why = _reason_of(error, self._limits.timeout)
        self._enter(MoveStep.BACK, f"{step}: {why}")
        cause = await self._undo()
        # A tenant with an unknown place stays paused: its messages would go to one of two
        # databases.
        left = await self._resume_all() if cause is None else [site.name for site in self._paused]
        if cause is not None or left:
            stays = f"{cause[0].upper()}{cause[1:]}: it" if cause is not None else "It"
            text = (
                f"tenant {tenant} was not moved ({step}: {why}). {stays} is still PAUSED in {', '.join(left)}. "
                f"See where its data is, then `postroom tenants resume {tenant}`"
            )
            line = "Tenant %s was not moved (%s: %s) and stays paused in %s"
            _log.error(line, tenant, step, why, ", ".join(left), extra=about(tenant=tenant))
        else:
            on = f" on {self._before}" if self._before else ""
            # Refused in the first step, as where an operator has paused it: then it does not run.
            stays = "is as it was" if step is MoveStep.PAUSE else f"runs as before{on}"
            text = f"tenant {tenant} was not moved ({step}: {why}). It {stays}"
            line = "Tenant %s was not moved (%s: %s); it %s"
            _log.warning(line, tenant, step, why, stays, extra=about(tenant=tenant))
        self._tell(text)
        if isinstance(error, Exception):
            raise MoveFailed(text, step=step, left_paused=left) from error

    async def _undo(self) -> str | None:
        """Have the registry point to the old database again. Returns why that cannot be, if it cannot."""
        if not self._switched:
            return None
        if self._uncertain:
            return "one message may have been handled by the new database"
        if self._way_back is None:
            return "there is no way back, so where its registry points now is not known"
        drain = self._limits.drain
        try:
            async with asyncio.timeout(self._limits.timeout):
                await _call(self._way_back)
                # After the registry is back: what the probe has opened still points to the new
                # database.
                await self._crowd.all("close", patience=drain, timeout=drain)
                found = ", ".join(await self._places(expect=None))
        except Exception as failed:
            return f"the way back failed ({_said(failed)})"
        return None if found == self._before else f"its registries say {found} after the way back"

    # -- what is told -----------------------------------------------------------------------------------------------

    def _enter(self, step: MoveStep, text: str = "") -> None:
        self._step = step
        self._tell(text)

    def _tell(self, text: str) -> None:
        if self._progress is not None:
            self._progress(self._step, text)


async def _each(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run some works at once. The first error calls the others off."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _call(function: Switch) -> None:
    """Call what the user gave: in a thread where it is a plain function, which may block."""
    if is_async(function):
        made: Any = function()
    else:
        made = await _to_the_end(asyncio.to_thread(function))  # it cannot be interrupted, so its end is waited for
    if inspect.isawaitable(made):
        await made


def _check_probe(done: Done) -> None:
    for queue, found in done.results:
        if found.startswith((ProbeOutcome.RUNNING, ProbeOutcome.FAILED)):
            raise PostroomError(f"{queue}: {found}")


async def _to_the_end(work: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """Run some work to its end, also when the caller is cancelled; then be cancelled."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


def _reason_of(error: BaseException, timeout: float) -> str:
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
        return "it was cancelled"
    if isinstance(error, TimeoutError) and not str(error):
        return f"not done within {timeout:g} s"
    return _said(error)


def _said(error: BaseException) -> str:
    text = str(error) if isinstance(error, PostroomError | TimeoutError) else describe(error)
    return " ".join([text, *getattr(error, "__notes__", [])])
