"""What the core decides and the pool does: plain values, carried out in order after the state has changed."""

from dataclasses import dataclass

from postroom.resources.entries import Entry, Waiter
from postroom.resources.refusals import Refusal


@dataclass(slots=True, frozen=True)
class Open:
    """Start the owner task of an entry."""

    entry: Entry


@dataclass(slots=True, frozen=True)
class CallOff:
    """Cancel the owner task of an entry that is still being opened."""

    entry: Entry


@dataclass(slots=True, frozen=True)
class Close:
    """Let the owner task leave the provider."""

    entry: Entry


@dataclass(slots=True, frozen=True)
class Check:
    """Start the health check of an entry."""

    entry: Entry


@dataclass(slots=True, frozen=True)
class StopCheck:
    """Cancel the health check of an entry: nobody wants to know any more."""

    entry: Entry


@dataclass(slots=True, frozen=True)
class Grant:
    """Hand a lease to a waiter. It is counted already: if the waiter is gone, it has to be given back."""

    entry: Entry
    waiter: Waiter


@dataclass(slots=True, frozen=True)
class TurnAway:
    """Refuse a waiter."""

    waiter: Waiter
    refusal: Refusal


@dataclass(slots=True, frozen=True)
class WakeAt:
    """Ask the core again at this time."""

    when: float


Action = Open | CallOff | Close | Check | StopCheck | Grant | TurnAway | WakeAt
