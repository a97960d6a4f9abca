"""What the core has to say: changes of state that a person should read about. The reporter puts them into words."""

from collections.abc import Hashable

import msgspec

from postroom.resources.causes import Cause


class OpenFailed(msgspec.Struct, frozen=True):
    """A provider failed, or a resource in use met an outage of its server."""

    key: Hashable
    cause: Cause
    permanent: bool
    retry_after: float
    tries: int
    """Failures in a row, this one included."""
    loud: bool
    """It is the first of its outage, and no line about the host tells of it."""
    told: bool
    """It is not the host's alone: the log tells of it, also before this one."""
    in_use: bool = False
    """Met by a handler, not by an open."""


class HostFailed(msgspec.Struct, frozen=True):
    """So many keys of a host failed that all of them are left alone; or the probe of such a host failed."""

    host: Hashable
    key: Hashable
    cause: Cause
    retry_after: float
    trips: int


class Available(msgspec.Struct, frozen=True):
    """An outage of a key is over."""

    key: Hashable
    seconds: float
    tries: int


class Repaired(msgspec.Struct, frozen=True):
    """The failures of a key are forgotten, since something was done about them: the next one is news."""

    key: Hashable


class HostAvailable(msgspec.Struct, frozen=True):
    """An outage of a host is over."""

    host: Hashable
    seconds: float
    tries: int


class Exhausted(msgspec.Struct, frozen=True):
    """A key has waited for budget for long."""

    key: Hashable
    seconds: float
    weight: int
    used: int
    limit: int
    host: Hashable | None
    """The host, if it is that host's budget that is missing."""
    holders: tuple[tuple[Hashable, int, int], ...]
    """Who has most of it: key, weight, leases."""


News = OpenFailed | HostFailed | Available | Repaired | HostAvailable | Exhausted
