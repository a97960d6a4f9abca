"""What the core decides and the pool does: plain values, carried out in order after the state has changed."""

import msgspec

from postroom.resources.entries import Entry, Waiter
from postroom.resources.news import News
from postroom.resources.refusals import Refusal


class Open(msgspec.Struct, frozen=True):
    """Start the owner task of an entry."""

    entry: Entry


class CallOff(msgspec.Struct, frozen=True):
    """Cancel the owner task of an entry that is still being opened."""

    entry: Entry


class Close(msgspec.Struct, frozen=True):
    """Let the owner task leave the provider."""

    entry: Entry


class Check(msgspec.Struct, frozen=True):
    """Start the health check of an entry."""

    entry: Entry


class StopCheck(msgspec.Struct, frozen=True):
    """Cancel the health check of an entry: its result is no longer wanted."""

    entry: Entry


class Grant(msgspec.Struct, frozen=True):
    """Hand a lease to a waiter. It is counted already: if the waiter is gone, it has to be given back."""

    entry: Entry
    waiter: Waiter


class TurnAway(msgspec.Struct, frozen=True):
    """Refuse a waiter."""

    waiter: Waiter
    refusal: Refusal


class WakeAt(msgspec.Struct, frozen=True):
    """Ask the core again at this time."""

    when: float


class Tell(msgspec.Struct, frozen=True):
    """Write a line into the log."""

    news: News


Action = Open | CallOff | Close | Check | StopCheck | Grant | TurnAway | WakeAt | Tell
