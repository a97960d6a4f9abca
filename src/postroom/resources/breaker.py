"""Which keys and hosts failed, and until when each is left alone.

Pure: given the time and what happened, these classes say what may be tried. Memory is bounded (I10): the oldest
records are forgotten first, and all of them once they are old.
"""

import itertools
import random
from collections import OrderedDict
from collections.abc import Container, Hashable
from typing import Any, Final

import msgspec

from postroom.options import OpenBackoff
from postroom.redaction import sqlstate_of
from postroom.resources.causes import Cause, Causes
from postroom.resources.identity import Identity

TRIP_AFTER: Final = 5
"""Keys that must fail on one host, with no success in between, before the host is left alone."""
PROBE_PART: Final = 1 / 30
"""Between two probes of a host, no more than this part of the time for which it has been down."""
_FULL: Final = "53300"
"""What PostgreSQL says while it has no connection left."""
_INVITED: Final = 2
"""Keys that a full server has refused and that are tried at once when another one of their host has found room. Few: it
may have had room for that one alone."""


class Record(msgspec.Struct):
    """What is remembered of one key that failed, or is not trusted."""

    context: Any
    failures: int = 0
    until: float = 0.0
    permanent: bool = False
    cause: Cause | None = None
    """What the last failure was."""
    since: float = 0.0
    """When the first of the failures in a row came."""
    at: float = 0.0
    """When the last one came."""
    in_use: bool = False
    """The last failure was met by a use of what is open: that it is open does not mean that it can be used."""
    told: bool = False
    """The log tells of it: so it will tell when it is over."""
    verify: bool = False
    """The last resource of this key broke: check the next one before it is handed out."""
    host: Hashable = None
    """Where the last failure was."""
    key: Hashable = None
    """What events call it."""


class Cooling:
    """The negative entries: keys that failed to open. They hold no budget and no resource.

    One probe at a time needs no flag here: the pool opens at most once per key at any instant (I1).
    """

    def __init__(self, backoff: OpenBackoff, remember: int, jitter: random.Random) -> None:
        self._backoff = backoff
        self._remember = remember
        self._jitter = jitter
        self.records: OrderedDict[Identity, Record] = OrderedDict()
        """What is remembered, by key."""
        self._causes = Causes()

    def __len__(self) -> int:
        return len(self.records)

    def find(self, identity: Identity) -> Record | None:
        """Return what is remembered of a key, cooling or not."""
        return self.records.get(identity)

    def remaining(self, identity: Identity, now: float) -> float:
        """Return the seconds for which this key is still left alone; 0.0 when it may be tried."""
        record = self.records.get(identity)
        return 0.0 if record is None else max(0.0, record.until - now)

    def count(self, now: float) -> int:
        """Return how many keys are left alone at this moment."""
        return sum(record.until > now for record in self.records.values())

    def failed(
        self,
        identity: Identity,
        context: Any,
        cause: Cause,
        *,
        permanent: bool,
        now: float,
        in_use: bool = False,
        host: Hashable = None,
        key: Hashable = None,
    ) -> float:
        """Note a failed open. Returns the pause in seconds: full jitter below an exponential ceiling.

        Beyond ``OpenBackoff(base=)`` it is no longer than the failures have lasted.
        """
        record = self._remember_key(identity, context)
        # `distrust` makes records that have no failure: their `since` is not the start of an
        # outage.
        record.since = record.since if record.failures else now
        record.at = now
        record.failures += 1
        record.permanent = permanent
        record.in_use = in_use
        record.host = host
        record.key = key
        record.cause = self._causes.keep(cause)
        pause = self._backoff.permanent if permanent else self._pause(record.failures, now - record.since)
        record.until = now + pause
        return pause

    def distrust(self, identity: Identity, context: Any, now: float) -> None:
        """Note that the resource of a key broke: the next one is checked before it is handed out."""
        record = self._remember_key(identity, context)
        record.verify = True
        # Not a pause. `purge` goes by `until`, and would drop a new record, where it is 0.0, at the
        # next sweep.
        record.until = max(record.until, now)

    def excuse(self, identity: Identity, now: float) -> None:
        """Take the last failure of a key back: it told about its host."""
        record = self.records[identity]
        record.failures -= 1
        record.until = now

    def end_pause(self, identity: Identity, now: float) -> None:
        """Let a key be tried at once. When that fails, its next pause is as long as it would have been."""
        record = self.records.get(identity)
        if record is not None:
            record.until = min(record.until, now)

    def forget(self, identity: Identity) -> None:
        """Drop what is remembered: the open succeeded, or the tenant was repaired."""
        self.records.pop(identity, None)

    def found_room(self, identity: Identity, now: float) -> tuple[Hashable, ...]:
        """Let a few keys be tried at once that a full server has refused as it had this one, which is open by now.

        Returns them, as events call them.
        """
        record = self.records.get(identity)
        if record is None or record.host is None or not _was_full(record):
            return ()
        alike = (each for each in self.records.values() if each.until > now and each.host == record.host)
        invited = list(itertools.islice(filter(_was_full, alike), _INVITED))
        for each in invited:
            each.until = now
        return tuple(each.key for each in invited)

    def purge(self, now: float, wanted: Container[Identity] = ()) -> None:
        """Drop records so old that a new failure should count as the first: not of keys that wait for their turn."""
        # Twice the longest pause: a key that is tried again right after its pause must still find
        # its record, or every failure counts as the first and the backoff never grows.
        horizon = now - 2 * max(self._backoff.cap, self._backoff.permanent)
        for identity, record in list(self.records.items()):
            if identity in wanted:
                # Where hundreds of keys hang, a turn comes after minutes. Forgotten until then, each would pass for a
                # key that never failed, and they would take every opening.
                record.until = max(record.until, now)
            elif record.until < horizon:
                del self.records[identity]

    def contexts(self) -> list[tuple[Identity, Any]]:
        """Return every remembered key with its context."""
        return [(identity, record.context) for identity, record in self.records.items()]

    def _pause(self, failures: int, lasted: float) -> float:
        # The exponent is bounded because 2.0 ** 1024 raises OverflowError, and a tenant that stays
        # down gets there.
        base = self._backoff.base
        ceiling = min(self._backoff.cap, base * 2.0 ** min(failures - 1, 64))
        # Short draws in the beginning must not make the wait longer than the outage.
        return min(self._jitter.uniform(0.0, ceiling), max(base, lasted))

    def _remember_key(self, identity: Identity, context: Any) -> Record:
        record = self.records.get(identity)
        if record is None:
            if len(self.records) >= self._remember:
                self.records.popitem(last=False)
            record = self.records[identity] = Record(context)
        self.records.move_to_end(identity)
        return record


def _was_full(record: Record) -> bool:
    return record.cause is not None and sqlstate_of(record.cause.error) == _FULL


class Host(msgspec.Struct):
    """What is known of one host."""

    cause: Cause | None = None
    """What the last failure on it was."""
    trips: int = 0
    """How often the breaker has tripped since the last success."""
    failed: set[Identity] = msgspec.field(default_factory=set[Identity])
    """Keys that failed since the last success. One tenant that fails often counts once."""
    doubted: set[Identity] = msgspec.field(default_factory=set[Identity])
    """Keys with a use that timed out since the last success."""
    running: int = 0
    window: int = TRIP_AFTER
    """Opens at once. Small until the host has proved itself, so that a dead one is found out cheaply."""
    down_since: float = 0.0
    """When the breaker opened, if it is not closed."""
    until: float = 0.0
    """Not 0.0: the breaker is open until then, and half open after it."""
    probe_until: float = 0.0
    """Half open: until then a probe keeps others from probing."""
    seen: float = 0.0

    @property
    def allowed(self) -> int:
        """How many opens may be under way, while the breaker is closed."""
        return TRIP_AFTER - len(self.failed) if self.failed else self.window


class Hosts:
    """One breaker per host: one dead server with 2,000 tenants trips once, not 2,000 times."""

    def __init__(self, backoff: OpenBackoff, remember: int, jitter: random.Random, probe_deadline: float) -> None:
        self._backoff = backoff
        self._remember = remember
        self._jitter = jitter
        self._probe_deadline = probe_deadline
        self._hosts: OrderedDict[Hashable, Host] = OrderedDict()
        self.troubled: set[Hashable] = set()
        """Hosts on which an open has failed since the last success."""
        self._causes = Causes()

    def __len__(self) -> int:
        return len(self._hosts)

    def find(self, name: Hashable) -> Host | None:
        """Return what is known of a host."""
        return self._hosts.get(name)

    def remaining(self, name: Hashable, now: float) -> float:
        """Return the seconds for which this host is still left alone; 0.0 when it may be tried."""
        host = self._hosts.get(name)
        return 0.0 if host is None else max(0.0, host.until - now)

    def room(self, name: Hashable, now: float) -> int:
        """Return how many more opens may start on this host now. Half open: one probe, and only one."""
        host = self._hosts.get(name)
        if host is None:
            return TRIP_AFTER
        if host.until > now:
            return 0
        if host.until:
            return 0 if host.probe_until > now else 1
        return max(0, host.allowed - host.running)

    def started(self, name: Hashable, now: float) -> bool:
        """Note that an open starts. Returns whether it is the probe of a half-open breaker."""
        if name is None:
            return False
        host = self._known(name, now)
        host.running += 1
        if not host.until:
            return False
        # A time and not a flag: a probe that never reports back must not keep the host closed.
        host.probe_until = now + self._probe_deadline
        return True

    def succeeded(self, name: Hashable, *, probe: bool) -> None:
        """Note a successful open: the host lives, and may be asked for one more at once."""
        host = self._ended(name, probe=probe)
        if host is None:
            return
        # After an outage the window starts small again: how far it had grown before says nothing
        # about a server that has just come back.
        host.window = (TRIP_AFTER if host.until else host.window) + 1
        host.failed.clear()
        host.doubted.clear()
        host.until = 0.0
        host.trips = 0
        host.cause = None
        self.troubled.discard(name)

    def failed(self, name: Hashable, identity: Identity, cause: Cause, now: float, *, probe: bool) -> bool:
        """Note an outage of a key. Returns whether the breaker tripped, or tripped again."""
        return self._failed(name, self._ended(name, probe=probe), identity, cause, now)

    def failed_in_use(self, name: Hashable, identity: Identity, cause: Cause, now: float) -> bool:
        """Note an outage that a use of an open resource met: it counts as much as one that an open meets."""
        return name is not None and self._failed(name, self._known(name, now), identity, cause, now)

    def _failed(self, name: Hashable, host: Host | None, identity: Identity, cause: Cause, now: float) -> bool:
        if host is None or host.until > now:
            return False  # it tripped while this one was under way: that was counted
        host.failed.add(identity)
        host.cause = self._causes.keep(cause)
        self.troubled.add(name)
        # A half-open breaker trips again on its single probe.
        if not host.until and len(host.failed) < TRIP_AFTER:
            return False
        host.failed.clear()
        host.trips += 1
        host.window = TRIP_AFTER
        if not host.until:
            host.down_since = now
        # In proportion to how long it has been down: a probe costs one open for all of its keys, and no caller should
        # wait much longer than the trouble lasted.
        longest = max(2 * self._backoff.base, PROBE_PART * (now - host.down_since))
        ceiling = min(self._backoff.cap, longest)
        # Not full jitter, as for keys: a draw near 0 would probe a dead host again at once.
        host.until = now + self._jitter.uniform(ceiling / 2, ceiling)
        return True

    def doubted(self, name: Hashable, identity: Identity, now: float) -> bool:
        """Note that the use of a key timed out. Returns whether that befell so many that the host is to blame."""
        if name is None:
            return False
        host = self._known(name, now)
        host.doubted.add(identity)
        if len(host.doubted) < TRIP_AFTER:
            return False
        host.doubted.clear()
        return True

    def trusted(self, name: Hashable) -> None:
        """Note that a health check on this host succeeded."""
        host = self._hosts.get(name)
        if host is not None:
            host.doubted.clear()

    def undecided(self, name: Hashable, *, probe: bool) -> None:
        """Note an open that ended without telling anything about the host: an unknown tenant, or called off."""
        self._ended(name, probe=probe)

    def end_pause(self, name: Hashable, now: float) -> None:
        """Let a host be tried at once. When that fails, its next pause is as long as it would have been."""
        host = self._hosts.get(name)
        if host is not None:
            host.until = min(host.until, now)

    def purge(self, now: float) -> None:
        """Drop hosts on which nothing was opened for long."""
        horizon = now - 2 * max(self._backoff.cap, self._backoff.permanent)
        for name, host in list(self._hosts.items()):
            if not host.running and max(host.seen, host.until) < horizon:  # its last open may have taken long
                self._forget(name)

    def _known(self, name: Hashable, now: float) -> Host:
        host = self._hosts.get(name)
        if host is None:
            self._make_room()
            host = self._hosts[name] = Host()
        self._hosts.move_to_end(name)
        host.seen = now
        return host

    def _ended(self, name: Hashable, *, probe: bool) -> Host | None:
        host = self._hosts.get(name)
        if host is None:
            return None
        host.running -= 1
        if probe:
            host.probe_until = 0.0
        return host

    def _make_room(self) -> None:
        if len(self._hosts) < self._remember:
            return
        for name, host in self._hosts.items():
            # One with opens under way stays: their end would find a new record and count it below
            # zero.
            if not host.running:
                self._forget(name)
                return

    def _forget(self, name: Hashable) -> None:
        del self._hosts[name]
        self.troubled.discard(name)
