"""The consumers that a console shows, and those who look at them."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

import msgspec

from postroom.console.collecting import Collector, Row
from postroom.console.snapshots import Snapshot, strip
from postroom.consumer import Consumer
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
"""Tenants that each look makes rows of: what a page has in sight before it is scrolled, and more."""
_CALM: Final = 10
"""Looks of which each one makes a row of a tenant behind those."""
MOST_ROWS: Final = 10_000


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
        self._snapshot: Snapshot | None = None
        self._strips: list[dict[str, Any]] = []
        self._made = 0.0
        self._said: list[Mapping[str, str]] = [{} for _ in consumers]
        self._asked = -_ASK_QUEUE
        self._asking: asyncio.Task[None] | None = None

    @property
    def viewers(self) -> int:
        """How many look."""
        return self._viewers

    @contextmanager
    def looking(self) -> Generator[None]:
        """Gather figures for the time of the block."""
        self._viewers += 1
        for collector in self._collectors:
            collector.start()
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._end()

    def _end(self) -> None:
        for collector in self._collectors:
            collector.stop()
        self._snapshot = None
        self._strips = []
        self._made = 0.0
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def look(self) -> tuple[Snapshot, list[dict[str, Any]]]:
        """Return the tenants, and the figures above them; the last ones again within a second."""
        now = asyncio.get_running_loop().time()
        if self._snapshot is None or now - self._made >= EVERY * 0.9:
            self._ask(now)
            for collector in self._collectors:
                collector.tidy()
            self._snapshot = Snapshot(self._collectors, wall=self.wall(), loop=now)
            self._strips = [strip(*pair) for pair in zip(self._collectors, self._said, strict=True)]
            self._made = now
        return self._snapshot, self._strips

    async def watch(self, *, top: int, search: str = "") -> AsyncGenerator[bytes, None]:
        """Yield one JSON text a second: what has changed since the last one; everything, the first time.

        The first hundred tenants are looked at each second. Those behind them wait for nothing and nothing was decided
        about them, or a hundred others wait longer: each of them is looked at every ten seconds.
        """
        sent: dict[str, Row] = {}
        order: list[str] | None = None
        turn = 0
        with self.looking():
            while True:
                began = asyncio.get_running_loop().time()
                snapshot, strips = self.look()
                said: dict[str, Any] = {"t": self.wall(), "total": len(snapshot.order), "strips": strips}
                before, sent = sent, {}
                changed: list[Any] = []
                for at, (place, number, key) in enumerate(snapshot.first(top=top, search=search)):
                    name = f"{number}:{place[2]}"
                    row = before.get(name)
                    if row is None or at < _URGENT or hash(name) % _CALM == turn:
                        now = snapshot.row(number, key)
                        if now != row:
                            changed.append(now)
                        row = now
                    sent[name] = row
                said["rows"] = changed
                if (now_in_order := list(sent)) != order:
                    order = said["order"] = now_in_order
                turn = (turn + 1) % _CALM
                yield msgspec.json.encode(said)
                await asyncio.sleep(max(0.05, began + EVERY - asyncio.get_running_loop().time()))

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
        chosen = [each for each in self.consumers if queue is None or _matches(each.queue, queue)]
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
            raise ConfigurationError(text)
        return found

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


def _matches(queue: str, name: str) -> bool:
    return queue == name or queue.rpartition("/")[2].rpartition(":")[2] == name
