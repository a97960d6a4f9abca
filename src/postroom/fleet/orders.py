"""Work on one tenant that every replica of a fleet has to do: told to all of them, and confirmed by each.

An order is a field beside the decisions, ``order t:acme``; a replica that has carried it out writes ``done t:acme
REPLICA``. The replica that ordered it waits for every one that is alive by the store's clock, and takes all fields away
again. A replica that reports later than that takes its own field away. A newer order takes the place of an older one:
when both are alike, the older one is done with it; else it is given again behind it.
An earlier version of a replica knows neither, and never confirms: the wait ends by its caller's time limit.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import msgspec

from postroom.fleet.protocol import PASSING, SharedState
from postroom.log_fields import Log, Step
from postroom.redaction import describe
from postroom.tasks import Tasks

T = TypeVar("T")
_log = Log("postroom.fleet", Step.FLEET)

_ORDER: Final = "order"
_DONE: Final = "done"
_POLL: Final = 0.25
"""Seconds between two looks at who has confirmed an order, and between two tries to confirm one."""
_CLEANING: Final = 2.0
"""Seconds that taking the fields of an order away may take; what stays is overwritten by the tenant's next order."""


class Order(msgspec.Struct, frozen=True):
    """What every replica has to do for one tenant."""

    id: str
    what: str


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one replica says of an order."""

    id: str
    said: str | None = None
    error: str | None = None
    """Why it could not carry the order out."""


class Workers(Protocol):
    """The consumer, as far as it carries out orders."""

    async def carry_out(self, what: str, name: str) -> str | None:
        """Carry out an order for the tenant of this name, which need not have anything here."""
        ...


_order_of: Final = msgspec.json.Decoder(Order).decode
_report_of: Final = msgspec.json.Decoder(Report).decode
_encode: Final = msgspec.json.Encoder().encode


class Orders:
    """The orders of one replica: those that it gives, and those that it carries out.

    Args:
        fleet: the name under which the replicas meet.
        replica: its name among them.
        state: where they meet.
        workers: carry orders out here.
        tasks: where they are carried out.
    """

    def __init__(self, fleet: str, replica: str, state: SharedState, workers: Workers, tasks: Tasks) -> None:
        self._fleet = fleet
        self._replica = replica
        self._state = state
        self._workers = workers
        self._tasks = tasks
        self._taken: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._forgetting: asyncio.Task[None] | None = None

    def learn(self, fields: Mapping[str, str]) -> None:
        """Begin with orders that are new here, and call off those that a newer one has replaced."""
        late = [field for field in fields if self._is_late(field, fields)]
        if late and (self._forgetting is None or self._forgetting.done()):
            self._forgetting = self._tasks.spawn(self._forget(late), "postroom-fleet-order")
        found: dict[str, Order] = {}
        for field, text in fields.items():
            kind, _, name = field.partition(" ")
            if kind == _ORDER:
                with contextlib.suppress(msgspec.MsgspecError):  # of a later version
                    found[name] = _order_of(text)
        for name in [name for name in self._taken if name not in found]:
            self._taken.pop(name)[1].cancel()
        for name, order in found.items():
            taken = self._taken.get(name)
            if taken is None or taken[0] != order.id:
                if taken is not None:
                    taken[1].cancel()
                task = self._tasks.spawn(self._carry_out(name, order), "postroom-fleet-order")
                self._taken[name] = (order.id, task)

    async def _carry_out(self, name: str, order: Order) -> None:
        try:
            report = Report(order.id, said=await self._workers.carry_out(order.what, name))
        except Exception as error:  # whatever a provider raises: who ordered it has to know
            report = Report(order.id, error=describe(error))
        field, text = f"{_DONE} {name} {self._replica}", _encode(report).decode()
        if self._forgetting is not None and not self._forgetting.done():
            await asyncio.wait([self._forgetting])  # it may be about to take this very field away
        await self._patiently(lambda: self._state.decide(self._fleet, {field: text}))

    def _is_late(self, field: str, fields: Mapping[str, str]) -> bool:
        """Whether this replica has reported after the order was taken away: its giver's time limit was over."""
        order, _, replica = field.removeprefix(PASSING).rpartition(" ")
        return field.startswith(PASSING) and replica == self._replica and f"{_ORDER} {order}" not in fields

    async def _forget(self, fields: Sequence[str]) -> None:
        # Whatever a client raises: the next change in the store has it tried again.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLEANING):
                await self._state.decide(self._fleet, dict.fromkeys(fields))

    async def everywhere(
        self, what: str, name: str, *, publish: Callable[[], Awaitable[None]], waiting: Callable[[int, int], None]
    ) -> dict[str, Report]:
        """Have every replica carry out an order, and return what each says. Without a time limit of its own.

        Args:
            what: the order.
            name: the tenant, as it is called in the fleet.
            publish: writes down what was decided here: an order must not overtake the decision before it.
            waiting: told how many of how many replicas have not confirmed.
        """
        order = Order(secrets.token_hex(8), what)
        try:
            await self._patiently(lambda: self._give(name, order, publish))
            while True:
                live, newest, reports = await self._patiently(lambda: self._look(name))
                missing = live - reports.keys()
                if newest is None or (newest.what != what and not missing):
                    # Another order for the tenant took the place of this one, and is done.
                    await self._patiently(lambda: self._give(name, order, publish))
                elif live and not missing:
                    return reports
                waiting(len(missing), len(live))
                await asyncio.sleep(_POLL)
        finally:
            await self._take_away(name, order)

    async def _give(self, name: str, order: Order, publish: Callable[[], Awaitable[None]]) -> None:
        await publish()
        stale = dict.fromkeys(self._reports(name, (await self._state.decisions(self._fleet)).fields))
        await self._state.decide(self._fleet, {**stale, f"{_ORDER} {name}": _encode(order).decode()})

    async def _look(self, name: str) -> tuple[set[str], Order | None, dict[str, Report]]:
        """Return which replicas are alive, the tenant's newest order, and what they say of that one."""
        live = set(await self._state.replicas(self._fleet))
        fields = (await self._state.decisions(self._fleet)).fields
        newest = self._newest(name, fields)
        reports: dict[str, Report] = {}
        for field in self._reports(name, fields):
            with contextlib.suppress(msgspec.MsgspecError):  # no report: that replica has not confirmed
                reports[field.rpartition(" ")[2]] = _report_of(fields[field])
        of_newest = {replica: each for replica, each in reports.items() if newest and each.id == newest.id}
        return live, newest, of_newest

    @staticmethod
    def _newest(name: str, fields: Mapping[str, str]) -> Order | None:
        """Return a tenant's order; one of a later version is unlike all others."""
        text = fields.get(f"{_ORDER} {name}")
        try:
            return None if text is None else _order_of(text)
        except msgspec.MsgspecError:
            return Order("", "")

    @staticmethod
    def _reports(name: str, fields: Mapping[str, str]) -> list[str]:
        """Return the fields in which replicas report about a tenant. Its name may contain spaces, a replica's none."""
        return [field for field in fields if field.rpartition(" ")[0] == f"{_DONE} {name}"]

    @staticmethod
    async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except Exception as error:  # whatever a client raises: the caller's time limit ends this
                _log.debug("The store does not answer, and is asked again: %s", describe(error))
            await asyncio.sleep(_POLL)

    async def _take_away(self, name: str, order: Order) -> None:
        with contextlib.suppress(Exception):  # the tenant's next order overwrites it
            async with asyncio.timeout(_CLEANING):
                fields = (await self._state.decisions(self._fleet)).fields
                newest = self._newest(name, fields)
                if newest is not None and newest.id != order.id:
                    return  # of another replica, which waits for it
                await self._state.decide(
                    self._fleet, {f"{_ORDER} {name}": None, **dict.fromkeys(self._reports(name, fields))}
                )
