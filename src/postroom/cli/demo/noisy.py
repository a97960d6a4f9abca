"""``postroom demo --noisy``: six tenants work, one floods, one loses its database; what the others notice of it."""

import asyncio
import json
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from heapq import heapreplace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from postroom.errors import ConfigurationError
from postroom.types import ExitCode

if TYPE_CHECKING:
    from postroom.consumer import Consumer
    from postroom.local import LocalServer
    from postroom.testing.postgres import PostgresServer

TENANTS: Final = tuple(f"tenant-{letter}" for letter in "abcdef")
FLOODS: Final = "tenant-f"
BREAKS: Final = "tenant-c"
QUIET: Final = tuple(tenant for tenant in TENANTS if tenant not in {FLOODS, BREAKS})
"""The tenants that are compared by their waits: they do nothing but their work."""
QUEUE: Final = "noisy-orders"
SLOTS: Final = 20
SECONDS: Final = 0.05
"""What a handler takes, beside its INSERT."""
_PACE: Final = 5.0
"""Messages per second of each tenant."""
_WINDOW: Final = 5.0
_FLOOD_AT: Final = 0.15
_KILL_AT: Final = 0.45
_RESTART_AT: Final = 0.75
"""Parts of the time at which it happens."""
_DRAIN: Final = 120.0
"""Seconds until the demo gives up waiting for the last rows."""
_SCHEMA: Final = "CREATE TABLE orders (id text PRIMARY KEY, tenant text NOT NULL);"
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"


class Server(Protocol):
    """A PostgreSQL that can be killed."""

    def kill(self) -> None:
        """End it as a power failure does."""
        ...

    def restart(self) -> None:
        """Start it again."""
        ...


class FirstComeFirstServed:
    """The same messages, the same slots, and no tenants: who waits how long. Simulated beside the real thing.

    It knows nothing of the outage, which would make it worse.
    """

    def __init__(self, slots: int = SLOTS, seconds: float = SECONDS) -> None:
        self._free = [0.0] * slots
        self._seconds = seconds

    def sent(self, now: float) -> float:
        """Take one message in, and return when its handler would start."""
        start = max(now, self._free[0])
        heapreplace(self._free, start + self._seconds)
        return start


@dataclass
class Diary:
    """What was sent, and how long messages of quiet tenants waited: here, and under first come, first served."""

    began: float = field(default_factory=time.monotonic)
    sent: dict[str, list[str]] = field(default_factory=lambda: defaultdict[str, list[str]](list))
    waits: deque[tuple[float, float]] = field(default_factory=deque[tuple[float, float]])
    ghost_waits: deque[tuple[float, float]] = field(default_factory=deque[tuple[float, float]])
    waiting: dict[str, float] = field(default_factory=dict[str, float])
    """When each message of quiet tenants was sent that no handler has started yet."""
    done: dict[str, set[str]] = field(default_factory=lambda: defaultdict[str, set[str]](set))
    ghost: FirstComeFirstServed = field(default_factory=FirstComeFirstServed)
    lines: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """The worst waits second by second: ours, and the ghost's."""

    def now(self) -> float:
        """Return the seconds since the beginning."""
        return time.monotonic() - self.began

    def send(self, tenant: str) -> dict[str, Any]:
        """Note a message, and return its payload."""
        now = self.now()
        order = f"{tenant}-{len(self.sent[tenant])}"
        self.sent[tenant].append(order)
        start = self.ghost.sent(now)
        if tenant in QUIET:
            self.waiting[order] = now
            self.ghost_waits.append((start, start - now))
        return {"id": order, "sent": now}

    def started(self, tenant: str, order: str, sent: float) -> None:
        """Note that a handler starts."""
        if self.waiting.pop(order, None) is not None and tenant in QUIET:
            now = self.now()
            self.waits.append((now, now - sent))

    def look(self) -> tuple[float, float]:
        """Return p99 of the waits of quiet tenants in the last seconds: ours, and the ghost's.

        A message that still waits counts with its wait so far.
        """
        now = self.now()
        here = [now - sent for sent in self.waiting.values()]
        there = [now - (start - wait) for start, wait in self.ghost_waits if start > now]
        pair = _p99(self.waits, now, here), _p99(self.ghost_waits, now, there)
        self.lines.append(pair)
        return pair


def _p99(waits: deque[tuple[float, float]], now: float, so_far: list[float]) -> float:
    while waits and waits[0][0] < now - _WINDOW:
        waits.popleft()
    seen = sorted([*(wait for start, wait in waits if start <= now), *so_far])
    return seen[round((len(seen) - 1) * 0.99)] if seen else 0.0


async def noisy(*, seconds: float, flood: int, port: int) -> ExitCode:
    """Play it all, and count the rows. Returns ``FATAL`` if one is lost or in a wrong database."""
    async with AsyncExitStack() as stack:
        click.echo("Starting two PostgreSQL servers and a local SQS ...")
        stage = await stack.enter_async_context(_stage(port))
        click.echo(f"{len(TENANTS)} tenants, {SLOTS} slots, {SECONDS * 1000:.0f} ms per message. Watch: {stage.url}\n")
        view = asyncio.create_task(_show(stage), name="postroom-demo-view")
        try:
            await _play(stage, seconds=seconds, flood=flood)
            complete = await _until(lambda: _complete(stage), _DRAIN)
        finally:
            view.cancel()
            await asyncio.wait([view])
        return _report(await _ledger(stage), stage, complete=complete)


@dataclass
class _Stage:
    consumer: "Consumer[str, Any]"
    server: "LocalServer"
    diary: Diary
    dsns: Mapping[str, str]
    other: Server
    """The PostgreSQL of the tenant that loses it."""
    url: str
    news: str = "six tenants at their usual pace"
    down: bool = False


@asynccontextmanager
async def _stage(port: int) -> AsyncGenerator[_Stage, None]:
    from postroom.cli.demo.command import client_for
    from postroom.console import ConsoleServer
    from postroom.local import LocalServer

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(LocalServer())
        dead = server.broker.create_queue(f"{QUEUE}-dead")
        policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 100})
        server.broker.create_queue(QUEUE, {"RedrivePolicy": policy, "VisibilityTimeout": "30"})
        shared, other = await _servers(stack)
        dsns: dict[str, str] = {}
        for tenant in TENANTS:
            home = other if tenant == BREAKS else shared
            dsns[tenant] = await asyncio.to_thread(home.create_database, tenant, schema=_SCHEMA)
        client = await stack.enter_async_context(client_for(server.endpoint_url))
        diary = Diary()
        consumer = _consumer(dsns, client, diary)
        console = await stack.enter_async_context(ConsoleServer(consumer, port=port, allow=lambda _request: "demo"))
        await stack.enter_async_context(consumer)
        yield _Stage(consumer, server, diary, dsns, other, console.url)


async def _servers(stack: AsyncExitStack) -> "tuple[PostgresServer, PostgresServer]":
    try:
        import_module("asyncpg")  # the databases' driver: better to miss it now
        from postroom.testing.postgres import PostgresServer

        shared = await stack.enter_async_context(PostgresServer())
        return shared, await stack.enter_async_context(PostgresServer())
    except ModuleNotFoundError as error:
        text = "the noisy demo needs: pip install 'postroom[asyncpg,postgres-server]'"
        raise ConfigurationError(text) from error


def _consumer(dsns: Mapping[str, str], client: Any, diary: Diary) -> "Consumer[str, Any]":
    import asyncpg

    from postroom.consumer import Consumer, MessageContext
    from postroom.errors import UnknownTenant
    from postroom.message import Message
    from postroom.options import Concurrency

    @asynccontextmanager
    async def database(tenant: str) -> AsyncGenerator[Any, None]:
        if tenant not in dsns:
            raise UnknownTenant(tenant)
        async with asyncpg.create_pool(dsns[tenant], min_size=1, max_size=8, timeout=2.0, command_timeout=5.0) as pool:
            yield pool

    def tenant_of(message: Message) -> str:
        return message.attributes["tenantId"]

    orders: Consumer[str, Any] = Consumer(
        QUEUE,
        context=tenant_of,
        resources=database,
        client=client,
        concurrency=Concurrency(total=SLOTS, per_tenant=SLOTS - 4),
    )

    @orders.handler
    async def handle(order: dict[str, Any], ctx: MessageContext[str, Any]) -> None:
        diary.started(ctx.context, order["id"], order["sent"])
        await asyncio.sleep(SECONDS)
        insert = "INSERT INTO orders (id, tenant) VALUES ($1, $2) ON CONFLICT DO NOTHING"
        await ctx.resources.execute(insert, order["id"], ctx.context)
        diary.done[ctx.context].add(order["id"])

    return orders


# -- the play -------------------------------------------------------------------------------------------------------


async def _play(stage: _Stage, *, seconds: float, flood: int) -> None:
    flow = asyncio.create_task(_flow(stage, seconds), name="postroom-demo-flow")
    errands = [flow]
    try:
        await asyncio.sleep(seconds * _FLOOD_AT)
        stage.news = f"{FLOODS} floods: {flood:,} messages at once"
        for number in range(flood):
            _send(stage, FLOODS)
            if number % 100 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(seconds * (_KILL_AT - _FLOOD_AT))
        stage.news, stage.down = f"the PostgreSQL of {BREAKS} is killed", True
        await asyncio.to_thread(stage.other.kill)
        await asyncio.sleep(seconds * (_RESTART_AT - _KILL_AT))
        await asyncio.to_thread(stage.other.restart)
        stage.news, stage.down = f"the PostgreSQL of {BREAKS} is back; the next try will find out", False
        errands.append(asyncio.create_task(_recovery(stage), name="postroom-demo-recovery"))
        await flow
        stage.news = "nothing more is sent; the rest is worked off"
    finally:
        for errand in errands:
            errand.cancel()
        await asyncio.wait(errands)


async def _recovery(stage: _Stage) -> None:
    """Tell when the tenant runs again, and when what it held is done."""
    began = stage.diary.now()
    while stage.consumer.tenants[BREAKS].state != "active":  # noqa: ASYNC110 - the consumer tells when it is asked
        await asyncio.sleep(0.2)
    stage.news = f"{BREAKS} runs again, {stage.diary.now() - began:.1f} s after it came back; what it held drains"


async def _flow(stage: _Stage, seconds: float) -> None:
    """Send each tenant's usual messages."""
    pause = 1.0 / _PACE
    while stage.diary.now() < seconds:
        for tenant in TENANTS:
            _send(stage, tenant)
        await asyncio.sleep(pause)


def _send(stage: _Stage, tenant: str) -> None:
    from postroom.local.shapes import AttributeValue, Send

    named = {"tenantId": AttributeValue(string_value=tenant, data_type="String")}
    body = json.dumps(stage.diary.send(tenant))
    stage.server.broker.send(QUEUE, Send(message_body=body, message_attributes=named, message_group_id=tenant))


async def _until(happened: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            while not await happened():  # noqa: ASYNC110 - the queue is asked, it does not tell
                await asyncio.sleep(0.5)
    except TimeoutError:
        return False
    return True


async def _complete(stage: _Stage) -> bool:
    said = stage.server.broker.attributes(QUEUE)
    name = "ApproximateNumberOfMessages"
    return not any(int(said[f"{name}{kind}"]) for kind in ("", "NotVisible", "Delayed"))


# -- what is seen ---------------------------------------------------------------------------------------------------


async def _show(stage: _Stage) -> None:
    """Draw it once a second on a terminal; elsewhere write a line every five seconds."""
    terminal = sys.stdout.isatty()
    while True:
        ours, ghost = stage.diary.look()
        if terminal:
            click.echo("\033[H\033[2J" + picture(stage.diary, _rows(stage), stage.news, url=stage.url), nl=False)
        elif len(stage.diary.lines) % 5 == 0:
            click.echo(
                f"{stage.diary.now():5.0f} s  p99 wait of quiet tenants: postroom {_shown(ours)}, "
                f"first come first served {_shown(ghost)}  ({stage.news})"
            )
        await asyncio.sleep(1.0)


def _rows(stage: _Stage) -> list[tuple[str, str, int, int, int]]:
    """Return each tenant's state, what runs, what is not done yet, and what was sent."""
    rows: list[tuple[str, str, int, int, int]] = []
    for tenant in TENANTS:
        status = stage.consumer.tenants[tenant]
        sent = len(stage.diary.sent[tenant])
        rows.append((tenant, str(status.state), status.running, sent - len(stage.diary.done[tenant]), sent))
    return rows


def picture(diary: Diary, rows: list[tuple[str, str, int, int, int]], news: str, *, url: str, width: int = 60) -> str:
    """Return the terminal view: two lines of waits on one scale, and a row per tenant."""
    lines = diary.lines[-width:]
    top = max(1.0, *(ghost for _, ghost in lines), *(ours for ours, _ in lines)) if lines else 1.0
    ours, ghost = lines[-1] if lines else (0.0, 0.0)
    text = [
        click.style(f"{diary.now():4.0f} s  {news}", bold=True),
        f"        page: {url}",
        "",
        f"p99 wait of the quiet tenants, 0 to {_shown(top)}",
        f"  postroom                 {_line([ours for ours, _ in lines], top, width)} {_shown(ours)}",
        f"  first come, first served {_line([ghost for _, ghost in lines], top, width)} {_shown(ghost)}",
        "",
        f"  {'tenant':<10} {'state':<12} {'running':>8} {'to do':>8} {'sent':>8}",
    ]
    for tenant, state, running, left, sent in rows:
        line = f"  {tenant:<10} {state:<12} {running:>8} {left:>8,} {sent:>8,}"
        text.append(click.style(line, fg="red") if state == "unavailable" else line)
    return "\n".join([*text, ""])


def _line(values: list[float], top: float, width: int) -> str:
    return "".join(_BLOCKS[max(value > 0, min(8, round(value / top * 8)))] for value in values).ljust(width)


def _shown(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


# -- the count ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ledger:
    """What the databases say: orders that are missing, rows of another tenant, rows in all."""

    lost: Mapping[str, int]
    astray: int
    rows: int


async def _ledger(stage: _Stage) -> Ledger:
    """Read every database, over connections of its own."""
    import asyncpg

    lost: Counter[str] = Counter()
    astray = rows = 0
    for tenant, dsn in stage.dsns.items():
        connection = await asyncpg.connect(dsn, timeout=10.0)
        try:
            found = await connection.fetch("SELECT id, tenant FROM orders")
        finally:
            await connection.close()
        rows += len(found)
        ids = {row["id"] for row in found}
        astray += sum(row["tenant"] != tenant or not row["id"].startswith(f"{tenant}-") for row in found)
        lost[tenant] = len(set(stage.diary.sent[tenant]) - ids)
    return Ledger({tenant: count for tenant, count in lost.items() if count}, astray, rows)


def _report(ledger: Ledger, stage: _Stage, *, complete: bool) -> ExitCode:
    sent = sum(map(len, stage.diary.sent.values()))
    worst = max((ours for ours, _ in stage.diary.lines), default=0.0)
    ghost = max((ghost for _, ghost in stage.diary.lines), default=0.0)
    click.echo("\nCounted in the databases:")
    click.echo(f"  {sent:,} messages were sent, {ledger.rows:,} rows are there")
    click.echo(f"  {sum(ledger.lost.values())} lost, {ledger.astray} with a wrong tenant")
    click.echo(f"  worst p99 wait of quiet tenants: {_shown(worst)}; first come, first served: {_shown(ghost)}")
    if not complete:
        click.echo(f"  The queue was not empty after {_DRAIN:g} s", err=True)
    return ExitCode.CLEAN if complete and not ledger.lost and not ledger.astray else ExitCode.FATAL
