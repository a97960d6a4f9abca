"""What a user says about a fleet: one frozen value, checked when it is made."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from postroom.checking import check_choice, is_number
from postroom.errors import ConfigurationError
from postroom.fleet.protocol import SharedState
from postroom.fleet.valkey import CommandClient, ValkeyState

Fallback = Literal["share", "stop", "local"]

_NAME: Final = re.compile(r"[^{}\s\x00-\x1f]{1,200}")


@dataclass(frozen=True, slots=True)
class Fleet:
    """Limits, pauses and outages that hold over all replicas which consume a queue.

    Args:
        store: where the replicas meet: the URL of a Valkey or Redis server (``valkey://host:6379/0``, ``valkeys://``
            for TLS), an asyncio client of ``valkey`` or ``redis`` that stays yours to close, or a ``SharedState``.
        per_tenant: handlers running at once for one tenant, in all replicas together; None for no such limit.
            ``Concurrency.per_tenant`` stays the limit of one replica.
        rate: handler starts of one tenant per second, in all replicas together; None for no such limit.
        overrides: tenants with another number than ``per_tenant``: a mapping by tenant, or a function of it that
            returns None for the default. It is asked with every exchange.
        name: under which name replicas meet; by default the name of the queue. Consumers of different queues with the
            same name share one limit; two systems with one server and one queue name need different ones.
        lease: seconds for which slots are granted, and after which those of a crashed replica return; at least 3 ticks.
        tick: seconds between two exchanges with the store. A decision is everywhere within one and the time of
            three calls to the store, and a share moves within about two.
        fallback: what happens when the store cannot be reached and the slots that were granted have run out:
            ``"share"``: each replica works with its part, the limit divided by the replicas last seen, at least 1;
            ``"stop"``: nothing of a limited tenant starts; ``"local"``: only ``Concurrency`` limits. Never does a
            message fail for it.

    Raises:
        ConfigurationError: an argument cannot work. Nothing is connected before the consumer starts.
    """

    store: str | SharedState | CommandClient = field(repr=False)
    per_tenant: int | None = field(default=None, kw_only=True)
    rate: float | None = field(default=None, kw_only=True)
    overrides: Mapping[Any, int] | Callable[[Any], int | None] | None = field(default=None, kw_only=True)
    name: str | None = field(default=None, kw_only=True)
    lease: float = field(default=15.0, kw_only=True)
    tick: float = field(default=1.0, kw_only=True)
    fallback: Fallback = field(default="share", kw_only=True)
    state: SharedState = field(init=False, repr=False, compare=False)
    """The shared state behind ``store``."""

    def __post_init__(self) -> None:
        if self.per_tenant is not None and (not _is_whole(self.per_tenant) or self.per_tenant < 1):
            text = f"Fleet(per_tenant=...) takes a whole number from 1 up, or None; got {self.per_tenant!r}"
            raise ConfigurationError(text)
        if self.rate is not None and not _is_between(self.rate, 1e-6, 1e9):
            text = f"Fleet(rate=...) takes starts per second above 0, or None for no limit; got {self.rate!r}"
            raise ConfigurationError(text)
        check_choice("Fleet(overrides=...)", "(tenant) -> number or None", self.overrides)
        name: object = self.name
        if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):  # pyright: ignore[reportUnnecessaryIsInstance]
            text = f"Fleet(name=...) takes a text without spaces and braces, such as 'orders'; got {name!r}"
            raise ConfigurationError(text)
        if not _is_between(self.tick, 0.01, 3_600):
            text = f"Fleet(tick=...) takes seconds, at least 0.01; got {self.tick!r}"
            raise ConfigurationError(text)
        if not _is_between(self.lease, 3 * self.tick, 86_400):
            text = f"Fleet(lease=...) takes seconds, at least 3 ticks ({3 * self.tick:g}); got {self.lease!r}"
            raise ConfigurationError(text)
        if self.fallback not in ("share", "stop", "local"):
            text = f'Fleet(fallback=...) takes "share", "stop" or "local"; got {self.fallback!r}'
            raise ConfigurationError(text)
        object.__setattr__(self, "state", _state_of(self.store))


def _state_of(store: object) -> SharedState:
    if isinstance(store, str) or not hasattr(store, "exchange"):
        return ValkeyState(cast("str | CommandClient", store))
    return cast("SharedState", store)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_between(value: object, least: float, most: float) -> bool:
    return is_number(value) and least <= value <= most
