"""What a replica says to the shared state, and hears: one exchange for all tenants that have work there.

Names of tenants are texts here, made by ``postroom.fleet.names``. All times are durations: the shared state counts
by its own clock, a replica by its own.
"""

from collections.abc import Collection, Mapping
from typing import Protocol

import msgspec


class Ask(msgspec.Struct, frozen=True):
    """What a replica wants for one tenant."""

    tenant: str
    cap: int
    """Slots of the tenant over the whole fleet."""
    hold: int
    """Slots that the replica keeps in any case. It promises to start nothing beyond them until it has an answer."""
    need: int
    """Messages that could run here now, as far as this replica's own limits allow."""
    want: int
    """Slots that it would like to have for what may come; granted only from what no replica needs."""
    rate: float = 0.0
    """Starts per second over the whole fleet; 0.0 for no such limit."""
    tokens: int = 0
    """Starts that the replica needs until its next exchange, where there is a rate."""


class Request(msgspec.Struct, frozen=True):
    """One exchange of one replica."""

    replica: str
    sequence: int
    """Counts up with each exchange of a replica: a request that arrives late changes nothing."""
    epoch: str
    """The shared state's memory as the replica knows it; empty before its first exchange."""
    lease: float
    """Seconds for which slots are granted."""
    tick: float
    """Seconds between two exchanges, for which starts are granted."""
    asks: tuple[Ask, ...]
    leaving: bool = False
    """Whether this is the replica's last exchange."""


class Grant(msgspec.Struct, frozen=True):
    """What a replica gets for one tenant."""

    slots: int
    """Slots, for the time of the lease."""
    share: int
    """Its part of the cap now. With less than ``slots``, it gives the rest back as handlers end."""
    contended: bool = False
    """Whether another replica needs more than it has."""
    tokens: int = 0
    """Handlers that it may start until the next exchange, where there is a rate."""


class Hint(msgspec.Struct, frozen=True):
    """A host is down, says a replica."""

    host: str
    seconds: float
    """For so long, unless it is heard of before."""
    cause: str


class Answer(msgspec.Struct, frozen=True):
    """What the shared state answers."""

    epoch: str
    version: int
    """The version of the decisions."""
    replicas: int
    """Replicas that are alive."""
    grants: tuple[Grant, ...] = ()
    """One for each ask, in order."""
    hints: tuple[Hint, ...] = ()


REMEMBERED = 86_400.0
"""Seconds for which it is remembered that a decision was taken back. A replica that was away for half of that restores
nothing that may have been taken back meanwhile."""
REMEMBERED_MOST = 1_000
"""Decisions of which it is remembered that they were taken back: the latest."""
PASSING = "done "
"""How fields begin that say nothing once they are out of date. That one was taken away is not remembered."""


class Decisions(msgspec.Struct, frozen=True):
    """What operators decided, with its version. The texts are ``postroom.fleet.decisions``'s.

    A version is the time of the change by the shared state's clock, in milliseconds, or the last version and 1 if that
    is more. So versions from before and after a loss of memory can be compared.
    """

    version: int
    fields: Mapping[str, str]
    stamps: Mapping[str, int] = msgspec.field(default_factory=dict[str, int])
    """The version in which each of them was decided."""
    undone: Mapping[str, int] = msgspec.field(default_factory=dict[str, int])
    """Decisions that were taken back, as far as that is remembered, each with the version in which it was."""
    epoch: str = ""
    """The shared state's memory, as an ``Answer`` names it; empty while no replica has exchanged since a loss."""


class SharedState(Protocol):
    """Where replicas meet. ``fleet`` is the name under which they do.

    Whatever a method raises means that the shared state cannot be reached. A call that is cancelled may have had its
    effect or not, and may still have it later.
    """

    async def exchange(self, fleet: str, request: Request) -> Answer:
        """Renew, return and grant slots, all at once."""
        ...

    async def decide(self, fleet: str, changes: Mapping[str, str | None]) -> int:
        """Write decisions down; None takes one back. Returns the new version."""
        ...

    async def decisions(self, fleet: str) -> Decisions:
        """Return all decisions, with the memory that they are from, all at one moment."""
        ...

    async def restore(self, fleet: str, decisions: Decisions) -> int:
        """Write down again what a shared state that lost its memory does not know. Returns the new version.

        Of each field the later decision stays, also where that was to take it back. A field that ``decisions`` does
        not have says nothing: the replica that knew it may not have come yet.
        """
        ...

    async def report(self, fleet: str, host: str, cause: str | None, seconds: float) -> None:
        """Say that a host is down, for some seconds at most, or with no ``cause`` that it is back.

        For half of that time no replica tries it.
        """
        ...

    async def claim_probe(self, fleet: str, host: str, replica: str, seconds: float) -> bool:
        """Return whether this replica is the one that tries a host now: one in the fleet, for some seconds.

        If it is, the hint that the host is down lasts for them, too.
        """
        ...

    async def replicas(self, fleet: str) -> Collection[str]:
        """Return the names of the replicas that are alive: those that last exchanged less than a lease ago."""
        ...

    async def usage(self, fleet: str) -> Mapping[str, tuple[int, int]]:
        """Return the slots in use, and the replicas that hold them, by tenant. For operators: not quick."""
        ...

    async def aclose(self) -> None:
        """Close what was opened."""
        ...
