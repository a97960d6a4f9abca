"""The consumers that a console shows, and those who look at them."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import Any, Final, cast

import msgspec

from postroom.console.collecting import Collector, Row
from postroom.console.ranking import Entry, Ranking
from postroom.console.snapshots import Snapshot, strip
from postroom.consumer import Consumer
from postroom.display import queue_name
from postroom.errors import ConfigurationError
from postroom.payloads.attributes import AttributeResolver
from postroom.resources import display_key

EVERY: Final = 1.0
"""Seconds between two looks."""
_ASK_QUEUE: Final = 10.0
"""Seconds between two GetQueueAttributes requests, while a page is open: about $0.0001 an hour."""
_MOST_QUEUES: Final = 8
"""Queues of one consumer that are asked: with more, the page leaves out how much is in them."""
_REMEMBER: Final = 1_000
_URGENT: Final = 100
"""Tenants of which a row is made as soon as something has changed: what a page has in sight before it is scrolled,
and more."""
_IDLE: Final = 25
"""Rows of the others among these that each look makes: all of them within four seconds."""
_BEHIND: Final = 30
"""Looks of which each one makes the row of a tenant behind those."""
_AT_ONCE: Final = 1_000
"""Rows that are sent at once to a new viewer; making one takes 20 microseconds of the consumers' event loop."""
_SOON: Final = 0.1
"""Seconds until the next thousand."""
_LINGER: Final = 15.0
"""Seconds for which figures are gathered after a single look: one who looks again meanwhile finds rates."""
MOST_ROWS: Final = 10_000
_SUGGESTED: Final = 3


class Desk:
    """Gathers figures while there is a viewer, and makes one snapshot a second for all of them.

    Args:
        consumers: what is shown.
        wall: the time in seconds since the epoch.
    """

    def __init__(self, consumers: Sequence[Consumer[Any, Any]], *, wall: Callable[[], float] = time.time) -> None:
        self.wall = wall
        self.consumers: tuple[Consumer[Any, Any], ...] = tuple(consumers)
        self.token: str = secrets.token_urlsafe(16)
        """What a request that changes something has to repeat: pages of other sites cannot read it."""
        self._collectors = [Collector(consumer) for consumer in consumers]
        self._acted: list[dict[Hashable, None]] = [{} for _ in consumers]
        self._assumed: str | None = None
        self._viewers = 0
        self._lingering: asyncio.TimerHandle | None = None
        self._ranking = Ranking(self._collectors)
        self._snapshot: Snapshot | None = None
        self._strips: list[dict[str, Any]] = []
        self._made = -EVERY
        self._said: list[Mapping[str, str]] = [{} for _ in consumers]
        self._asked = -_ASK_QUEUE
        self._asking: asyncio.Task[None] | None = None

    @property
    def viewers(self) -> int:
        """How many look."""
        return self._viewers

    @contextmanager
    def looking(self, *, linger: float = 0.0) -> Generator[None]:
        """Gather figures for the time of the block, and for so many seconds after it."""
        self._viewers += 1
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        for collector in self._collectors:
            collector.start()
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers:
                if linger:
                    self._lingering = asyncio.get_running_loop().call_later(linger, self._end)
                else:
                    self._end()

    def glance(self, *, top: int, search: str = "") -> dict[str, Any]:
        """Return one look. The first one after a pause has no rates yet; one within a quarter of a minute has."""
        with self.looking(linger=_LINGER):
            # A look of now, not the one that pages were sent up to a second ago.
            self._made = -EVERY
            snapshot, strips = self.look()
            front, behind = self._ranking.first(top=top, search=search)
            rows = [snapshot.row(entry.number, entry.key) for entry in (*front, *behind)]
            return {"strips": strips, "total": len(self._ranking.everyone), "rows": rows}

    def _end(self) -> None:
        self._lingering = None
        for collector in self._collectors:
            collector.stop()
        self._ranking = Ranking(self._collectors)
        self._snapshot = None
        self._strips = []
        self._made = -EVERY
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def look(self) -> tuple[Snapshot, list[dict[str, Any]]]:
        """Return the tenants, and the figures above them; the last ones again within a second."""
        now = asyncio.get_running_loop().time()
        # A little less than a second: pages that have drifted apart share a look, and none misses its turn.
        if self._snapshot is None or now - self._made >= EVERY * 0.9:
            self._ask(now)
            for collector in self._collectors:
                collector.tidy()
            self._snapshot = Snapshot(self._collectors, self._ranking, wall=self.wall(), loop=now)
            self._strips = [strip(*pair) for pair in zip(self._collectors, self._said, strict=True)]
            self._made = now
        return self._snapshot, self._strips

    async def watch(self, *, top: int, search: str = "") -> AsyncGenerator[bytes, None]:
        """Yield one JSON text a second: what has changed since the last one; everything, the first time.

        Of the first hundred tenants a row is made as soon as something of theirs is here or was decided, of idle ones
        every four seconds. Those behind them wait for nothing, or a hundred others wait longer: every half a minute.
        """
        view = _View(top, search)
        with self.looking():
            while True:
                began = asyncio.get_running_loop().time()
                snapshot, strips = self.look()
                said = {"t": self.wall(), "total": len(self._ranking.everyone), "strips": strips}
                yield msgspec.json.encode({**said, **view.changes(snapshot, self._ranking)})
                pause = _SOON if view.unsent else EVERY
                # Never without a pause: where a look takes long, the consumers in this loop still get their turn.
                await asyncio.sleep(max(0.05, began + pause - asyncio.get_running_loop().time()))

    def keys(self, consumer: Consumer[Any, Any]) -> list[Hashable]:
        """Return every tenant of a consumer that is known here: by messages, resources, or an earlier action."""
        place = self.consumers.index(consumer)
        collector = self._collectors[place]
        here = [status.key for status in consumer.tenants]
        pool = [] if consumer.pool is None else consumer.pool.keys()
        return list(dict.fromkeys([*here, *collector.tallies, *collector.away, *pool, *self._acted[place]]))

    def find(self, name: str, queue: str | None) -> list[tuple[Consumer[Any, Any], Hashable]]:
        """Return the consumers that know a tenant by this name, each with its key.

        Raises:
            ConfigurationError: no consumer knows it, or one knows several of this name.
        """
        chosen = [each for each in self.consumers if queue is None or _matches(each, queue)]
        if not chosen:
            raise ConfigurationError(f"no consumer of queue {queue!r} is shown here")
        found: list[tuple[Consumer[Any, Any], Hashable]] = []
        for consumer in chosen:
            known = self.keys(consumer)
            keys = [key for key in known if display_key(key) == name]
            if len(keys) > 1:
                raise ConfigurationError(f"{len(keys)} tenants of {consumer.queue!r} are called {name!r}")
            if not keys:
                key = _key_named(consumer, name, known)
                key = self._assumed if key is None else key
                keys = [] if key is None else [key]
            for key in keys:
                found.append((consumer, key))
                self._remember(consumer, key)
        if not found:
            text = f"no tenant {name!r} is known here: name it as the page and the log do, while its messages are here"
            raise ConfigurationError(f"{text}{self._like(name, chosen)}")
        return found

    def unseen(self, name: str, queue: str | None) -> str:
        """Return a remark about a tenant that no consumer knows, with the names that are near; else nothing.

        Where names are keys it is acted on all the same: its first message may come in the next moment.
        """
        chosen = [each for each in self.consumers if queue is None or _matches(each, queue)]
        if any(display_key(key) == name for consumer in chosen for key in self.keys(consumer)):
            return ""
        return f"nothing of it is here yet{self._like(name, chosen)}"

    def _like(self, name: str, consumers: Sequence[Consumer[Any, Any]]) -> str:
        """Return a suggestion: tenants with names that are near to it, if there are any."""
        known = {display_key(key) for consumer in consumers for key in self.keys(consumer)}
        near = sorted(each for each in known if name.lower() in each.lower())
        near = near[:_SUGGESTED] or get_close_matches(name, known, _SUGGESTED)
        return f". Is it {' or '.join(map(repr, near))}?" if near else ""

    def know(self, tenant: Hashable) -> None:
        """Take a key for one of every consumer that is shown, although it has nothing here. A text may be a name."""
        self._assumed = tenant if isinstance(tenant, str) else None
        if self._assumed is None:
            for consumer in self.consumers:
                self._remember(consumer, tenant)

    def _remember(self, consumer: Consumer[Any, Any], key: Hashable) -> None:
        """Keep a tenant in mind that an operator acted on: it can be found again when it has nothing here."""
        acted = self._acted[self.consumers.index(consumer)]
        acted[key] = None
        if len(acted) > _REMEMBER:
            del acted[next(iter(acted))]

    def _ask(self, now: float) -> None:
        """Ask SQS about the queues now and then, in the background: a look does not wait for it."""
        if self._asking is None and now - self._asked >= _ASK_QUEUE:
            self._asked = now
            self._asking = asyncio.get_running_loop().create_task(self._ask_queues(), name="postroom-console-queues")

    async def _ask_queues(self) -> None:
        try:
            for number, consumer in enumerate(self.consumers):
                queues = consumer.opened_queues
                if not 0 < len(queues) <= _MOST_QUEUES or not consumer.running:
                    continue
                with suppress(Exception):  # whatever a transport raises: the page shows what was said last
                    async with asyncio.timeout(_ASK_QUEUE):
                        said = await asyncio.gather(*(queue.attributes() for queue in queues))
                        self._said[number] = said[0] if len(said) == 1 else _together(said)
        finally:
            self._asking = None


class _View:
    """What one viewer has been sent.

    Args:
        top: tenants that it shows.
        search: a part of their names.
    """

    def __init__(self, top: int, search: str) -> None:
        self._top = top
        self._search = search
        self._rows: dict[str, Row] = {}
        self.unsent: int = 0
        """Rows that it has not got yet."""
        self._front: list[str] | None = None
        self._version = -1
        self._look = self._turn = -1

    def changes(self, snapshot: Snapshot, ranking: Ranking) -> dict[str, Any]:
        """Return the rows that have changed; ``front`` and ``order``, where they have: the ids in front, and of all."""
        said: dict[str, Any] = {}
        self._turn += 1
        front, behind = ranking.first(top=self._top, search=self._search)
        shown = [*front, *behind]
        ids = [entry.id for entry in front]
        moved = ids != self._front or ranking.version != self._version
        if moved:  # a page may have forgotten what it does not show: a tenant that comes back is sent again
            self._rows = {entry.id: self._rows[entry.id] for entry in shown if entry.id in self._rows}
        known = self._rows
        changed: list[Row] = []
        for entry in self._due(shown, ranking, moved=moved):
            row = snapshot.row(entry.number, entry.key)
            if row != known.get(entry.id):
                known[entry.id] = row
                changed.append(row)
        said["rows"] = changed
        if ids != self._front:
            self._front = said["front"] = ids
        if ranking.version != self._version:
            self._version = ranking.version
            said["order"] = ranking.ids(top=self._top, search=self._search)
        self._look = ranking.look
        return said

    def _due(self, shown: list[Entry], ranking: Ranking, *, moved: bool) -> list[Entry]:
        """Return the tenants of which a row is made in this look. Where the order has moved, some may be new."""
        first, rest, known = shown[:_URGENT], shown[_URGENT:], self._rows
        every = -(-len(first) // _IDLE) or 1
        idle, turn = self._turn % every, self._turn % _BEHIND
        touched, last = ranking.touched, self._look
        due = [
            entry
            for place, entry in enumerate(first)
            if place % every == idle or entry.id not in known or touched.get(entry.id, -1) > last
        ]
        due += rest[turn::_BEHIND]
        if moved or self.unsent:
            new = [entry for entry in rest if entry.id not in known]
            due += new[:_AT_ONCE]
            self.unsent = max(0, len(new) - _AT_ONCE)
        return due


def _together(said: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
    """Return how many messages several queues have."""
    counts = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
    return {count: str(sum(int(each.get(count, "0")) for each in said)) for count in counts}


def _key_named(consumer: Consumer[Any, Any], name: str, known: Sequence[Hashable]) -> Hashable | None:
    """Return the key of a tenant that has not been seen yet, if its name tells: it may come in the next moment."""
    resolver = consumer.resolver
    if isinstance(resolver, AttributeResolver):
        context = cast("AttributeResolver[Hashable]", resolver).named(name)
        pool = consumer.pool
        return context if context is None or pool is None else pool.key_of(context)
    return name if known and all(isinstance(key, str) for key in known) else None


def _matches(consumer: Consumer[Any, Any], name: str) -> bool:
    """Whether a consumer is called so, or consumes a queue that is."""
    named = {consumer.queue, queue_name(consumer.queue)}
    return name in named or any(name in (each.info.name, each.info.url) for each in consumer.opened_queues)
