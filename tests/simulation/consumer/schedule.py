"""One whole-consumer schedule: several consumers, a faulty queue, faulty databases, crashes; all from one seed.

``run_consumer_schedule(seed)`` runs it in virtual time and says which promises were broken. The same seed gives the
same history, line by line.
"""

import asyncio
import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec

import postroom.resources.pool
from postroom import AckMode
from postroom.local import LocalBroker
from postroom.local.messages import State, Stored
from postroom.local.queue import LocalQueue
from postroom.local.shapes import AttributeValue, Send
from postroom.testing.databases import SimulatedDatabases, Trouble
from postroom.testing.faults import Faults, FaultyClient
from postroom.testing.loop import Deadlock, describe_tasks
from postroom.transports.memory import MemoryClient
from simulation.consumer.database import INBOX
from simulation.consumer.loop import SimulationLoop
from simulation.consumer.plan import ENDLESS, Event, Kind, OrderPlan, Plan, host_of, make_plan
from simulation.consumer.process import Process, Shared, Tenant
from simulation.consumer.watch import History

_PATIENCE = 6_000.0
"""Virtual seconds within which a healthy process has to empty the queue."""
FACTS = ("crashes", "stops", "handlers", "redelivered", "trips", "probes", "poison", "decisions", "duplicates")
_END = 30.0
"""When the trouble is over."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a schedule showed."""

    seed: int
    violations: tuple[str, ...]
    history: History
    plan: Plan
    facts: dict[str, int]
    """How much of what happened: a schedule in which nothing happens proves nothing."""


class Simulation:
    """The world of one schedule."""

    def __init__(self, plan: Plan, history: History, broker: LocalBroker) -> None:
        self.plan = plan
        self.history = history
        self.broker = broker
        self.rng = Random(plan.seed ^ 0x5EED)
        self.databases = SimulatedDatabases(Random(self.rng.getrandbits(32)))
        for tenant in plan.tenants:
            self.databases.create(tenant)
        self.shared = Shared(plan, history, self.databases)
        self.shared.in_queue = self._in_queue
        self.queue, self.dead_letters = self._create_queues()
        self.stored: dict[str, Stored] = {}
        self.processes: list[Process] = []
        self.living: list[Process | None] = [None] * plan.processes
        self.errands: list[asyncio.Task[None]] = []
        self.facts = dict.fromkeys(FACTS, 0)

    # -- the story -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Let everything happen, then let everything heal, and see whether all came to a good end."""
        for place in range(self.plan.processes):
            self._start(place)
        self._errand(self._produce(), "producer")
        self._errand(self._monitor(), "monitor")
        for event in self.plan.events:
            await asyncio.sleep(max(0.0, event.at - self._now()))
            self._errand(self._happen(event), f"event-{event.what}")
        await asyncio.sleep(max(0.0, _END - self._now()))
        for errand in self.errands:
            await errand
        self._heal()
        if self.plan.survivors_finish and any(self.living):
            await self._until_empty("the processes that lived through it")
        for place, process in enumerate(self.living):
            if process is not None:
                await self._stop(process, place)
        await self._finish()
        self._check_end()

    async def _finish(self) -> None:
        """One healthy process has to get everything out of the queue."""
        process = self._make_process("final", Faults())
        process.start()
        await self._until_empty("a healthy process")
        await self._stop(process, None)

    async def _until_empty(self, who: str) -> None:
        deadline = self._now() + _PATIENCE
        while self.queue.messages and self._now() < deadline:
            await asyncio.sleep(5.0)
        if self.queue.messages:
            stuck = [key for key, message in self.stored.items() if message.state is not State.GONE]
            self.history.broken("no loss", f"{who} left it in the queue for {_PATIENCE:g} s: {stuck}")

    # -- processes -----------------------------------------------------------------------------------------------

    def _make_process(self, name: str, faults: Faults) -> Process:
        client = FaultyClient(MemoryClient(self.broker), Random(self.rng.getrandbits(32)), faults)
        process = Process(self.shared, name, client, self.rng.getrandbits(32))
        process.disturbed = _disturbs(faults)
        self.processes.append(process)
        return process

    def _start(self, place: int) -> None:
        process = self._make_process(f"p{place}.{len(self.processes)}", self.plan.faults)
        self.living[place] = process
        process.start()

    async def _stop(self, process: Process, place: int | None, *, now: bool = False, cancel: bool = False) -> None:
        """Stop a process in order, and look at what it leaves behind."""
        if place is not None:
            self.living[place] = None
        assert process.main is not None
        began = self._now()
        while not process.consumer.running and not process.main.done():
            await asyncio.sleep(0.001)
        self.history.note(process.name, "stops", "now" if now else "", "cancelled" if cancel else "")
        process.stopping_since = began = self._now()
        process.watch.stopping = True
        self.facts["stops"] += 1
        if cancel:
            process.cancelled = True
            process.main.cancel()
        else:
            process.hurried = now
            process.consumer.stop(now=now)
        await asyncio.wait([process.main])
        if not process.gate.alive:
            return
        if process.main.cancelled() != cancel:
            self.history.broken("I6", f"{process.name} was cancelled: {process.main.cancelled()}, wanted: {cancel}")
        elif not cancel and process.main.exception() is not None:
            self.history.broken("fatal", f"{process.name} ended with {process.main.exception()!r}")
        await self.loop.settled()
        self._check_stopped(process, began)

    async def _crash(self, process: Process, place: int) -> None:
        self.living[place] = None
        self.facts["crashes"] += 1
        await process.crash()

    # -- what happens --------------------------------------------------------------------------------------------

    async def _produce(self) -> None:
        for order in self.plan.orders:
            await asyncio.sleep(max(0.0, order.at - self._now()))
            self.broker.send(self.queue, _message(order, fifo=self.plan.fifo))
            self.stored[order.key] = self.queue.messages[self.broker.engine.seq]
            self.history.note("sent", order.key, self.stored[order.key].id[:4], order.kind.value, order.group or "")

    async def _happen(self, event: Event) -> None:
        self.history.note("event", event.what, event.tenant, event.trouble.value)
        place = event.index % self.plan.processes
        process = self.living[place]
        match event.what:
            case "trouble":
                await self._trouble([event.tenant], event)
            case "host trouble":
                host = host_of(event.tenant, self.plan.hosts)
                await self._trouble([t for t in self.plan.tenants if host_of(t, self.plan.hosts) == host], event)
            case "fail over":
                self.databases.fail_over(event.tenant)
            case "rotate":
                self.databases.rotate(event.tenant)
                await asyncio.sleep(event.grace)
                self.shared.secrets[event.tenant] = self.databases.password(event.tenant)
            case "storm":
                for each in self.living:
                    await self._disturb(each, self.plan.storm, 0.0)
                await asyncio.sleep(event.seconds)
                for each in self.living:
                    await self._disturb(each, self.plan.faults, 0.0)
            case "partition":
                await self._disturb(process, Faults(unavailable=1.0), event.seconds)
            case _ if process is not None:
                await self._end_one(event, process, place)

    async def _trouble(self, tenants: list[str], event: Event) -> None:
        for tenant in tenants:
            self.databases.trouble(tenant, event.trouble)
        await asyncio.sleep(event.seconds)
        for tenant in tenants:
            self.databases.trouble(tenant, Trouble.NONE)

    async def _end_one(self, event: Event, process: Process, place: int) -> None:
        if event.what == "invalidate":
            await self._invalidate(process, event.tenant)
            return
        if event.what == "control":
            await self._control(process, event)
            return
        if event.what == "crash":
            await self._crash(process, place)
        else:
            await self._stop(process, place, now=event.what == "stop now", cancel=event.what == "cancel")
        await asyncio.sleep(event.grace)
        if self.living[place] is None and self._now() < _END - 1:
            self._start(place)

    async def _disturb(self, process: Process | None, faults: Faults, seconds: float) -> None:
        if process is not None:
            process.disturbed = True
            process.client.faults = faults
            if seconds:
                await asyncio.sleep(seconds)
                process.client.faults = self.plan.faults

    async def _invalidate(self, process: Process, tenant: str) -> None:
        pool = process.pool or process.consumer.pool
        if pool is not None and process.consumer.running:
            await pool.invalidate_where(lambda context: context.tenant_id == tenant)

    async def _control(self, process: Process, event: Event) -> None:
        """Decide something about a tenant, and take it back a little later."""
        key = Tenant(event.tenant)
        process.decisions.decide(event.control, event.tenant, key)
        if event.control == "drain":
            await self._drain(process, event.tenant, event.seconds)
        await asyncio.sleep(event.seconds)
        process.decisions.decide("resume", event.tenant, key)

    async def _drain(self, process: Process, tenant: str, seconds: float) -> None:
        try:
            await process.consumer.tenants.drain(Tenant(tenant), timeout=seconds)
        except TimeoutError:
            return
        if process.running(tenant) and process.stopping_since is None and process.gate.alive:
            self.history.broken("control", f"{process.name} says that {tenant} is drained, but works for it")

    def _heal(self) -> None:
        self.history.note("heal", "everything works again")
        for tenant in self.plan.tenants:
            self.databases.trouble(tenant, Trouble.NONE)
            self.shared.secrets[tenant] = self.databases.password(tenant)
        for process in self.living:
            if process is not None:
                process.client.faults = Faults()
                for tenant in self.plan.tenants:
                    process.decisions.decide("resume", tenant, Tenant(tenant))

    async def _monitor(self) -> None:
        """Look, at times, whether a slot is held by somebody who does not work."""
        while self._now() < _END - 1:
            await asyncio.sleep(self.rng.uniform(0.1, 3.0))
            await self.loop.settled()
            for process in self.living:
                if process is None or not process.consumer.running:
                    continue
                running = process.consumer.statistics().running
                working = len(process.handlers) + process.reporting + process.watch.sending
                if running > working:
                    text = f"{process.name} holds {running} slots, and works on {working} messages"
                    self.history.broken("slots", text)

    # -- oracles -------------------------------------------------------------------------------------------------

    def _check_stopped(self, process: Process, began: float) -> None:
        """I4, I8, S7: a stopped process leaves nothing running, nothing open, nothing invisible."""
        broken = self.history.broken
        left = [task for task in process.tasks if not task.done()]
        if left and not process.stubborn:
            broken("I8", f"{process.name} stopped, but still runs {describe_tasks(left)}")
        if process.opened != process.closed or process.weight:
            text = f"{process.name} opened {process.opened}, closed {process.closed}, weight {process.weight}"
            broken("I4", text)
        if connections := [each for each in self.databases.connections() if each.owner is process]:
            broken("I8", f"{process.name} stopped, but has {len(connections)} connections")
        self._check_statistics(process)
        options = self.plan.options["shutdown"]
        budget = options.poll + options.drain + options.cancel + options.flush + options.close + 0.5
        if self._now() - began > budget:
            broken("stop", f"{process.name} took {self._now() - began:.3f} s to stop, more than {budget:g}")
        if not process.disturbed:
            self._check_returned(process, began)

    def _check_statistics(self, process: Process) -> None:
        stats = process.consumer.statistics()
        if stats.held or stats.waiting or stats.suspended or (stats.running and not process.stubborn):
            self.history.broken("I8", f"{process.name} stopped, but holds messages: {stats}")
        pool = stats.pool
        if pool is not None and (pool.live or pool.weight or pool.waiting or (pool.leased and not process.stubborn)):
            self.history.broken("I8", f"{process.name} stopped, but its pool is not empty: {pool}")

    def _check_returned(self, process: Process, began: float) -> None:
        """S7: what was not started is visible again at once; nothing else of the process stays invisible unasked."""
        for message in self.queue.messages.values():
            handle = self.queue.handles.make(message)
            receipt = process.watch.receipts.get(handle)
            if receipt is None or message.state is not State.IN_FLIGHT or not process.watch.owns(message.id):
                continue
            if self.plan.ack is AckMode.MANUAL and (
                handle in process.watch.started or message.id in process.watch.left
            ):
                continue
            if not receipt.ended:
                self.history.broken("S7", f"{process.name} stopped and left {message.id[:4]} invisible")
        watch = process.watch
        # Received again while its handler ran: then it is started, under the receipt that was never settled.
        running = {
            watch.receipts[handle].message_id for handle in watch.started if watch.receipts[handle].settled_at is None
        }
        for handle, receipt in watch.receipts.items():
            if handle in watch.started or receipt.settled_at is None or receipt.settled_at < began:
                continue
            if receipt.message_id in running:
                continue
            late = receipt.settled_at - max(began, receipt.received_at)
            if late > 2.0:
                self.history.broken("S7", f"{process.name} returned {receipt.message_id[:4]} {late:.3f} s late")

    def _check_end(self) -> None:
        """No loss, isolation: every order is in its own tenant's database, or in the dead-letter queue, or given up."""
        failed = {id_ for process in self.processes for id_ in process.watch.failed}
        dead = self._dead()
        for order in self.plan.orders:
            message = self.stored[order.key]
            count = sum(row.key == order.key for row in self.databases.rows(order.tenant))
            given_up = self.plan.ack is AckMode.ALWAYS and message.id in failed
            if not count and order.key not in dead and not given_up:
                self.history.broken("no loss", f"{order.key} ({order.kind}) is nowhere")
            if count > 1 and (self.plan.idempotent or self.plan.inbox):
                self.history.broken("once", f"{order.key} is there {count} times")
            if count and order.kind in ENDLESS:
                self.history.broken("isolation", f"{order.key} ({order.kind}) was committed")
        for tenant in self.plan.tenants:
            for row in self.databases.rows(tenant):
                if not row.key.startswith(INBOX) and self.shared.orders[row.key].tenant != tenant:
                    self.history.broken("isolation", f"{row.key} is in the database of {tenant}")
        self.facts["handlers"] = sum(self.shared.attempts.values())
        self.facts["trips"] = sum(process.blame.trips for process in self.processes)
        self.facts["probes"] = sum(process.blame.probes for process in self.processes)
        self.facts["poison"] = sum(len(process.blame.poisonous) for process in self.processes)
        self.facts["duplicates"] = sum(len(process.watch.handled) for process in self.processes)
        self.facts["decisions"] = sum(process.decisions.count for process in self.processes)
        self.facts["redelivered"] = sum(count > 1 for count in self.shared.attempts.values())

    def _dead(self) -> set[str]:
        """Return the orders in the dead-letter queue; each has a reason, or was received often enough."""
        keys: set[str] = set()
        if self.dead_letters is not None:
            for message in self.dead_letters.messages.values():
                keys.add(message.attributes["key"].string_value or "")
                if "postroom.reason" not in message.attributes and message.receives < (self.plan.max_receives or 0):
                    self.history.broken("no loss", f"{message.id[:4]} is a dead letter without a reason")
        return keys

    # -- small print ---------------------------------------------------------------------------------------------

    @property
    def loop(self) -> SimulationLoop:
        """The loop that runs this."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulationLoop)
        return loop

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _errand(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.errands.append(asyncio.create_task(work, name=name))

    def _in_queue(self, key: str) -> bool:
        message = self.stored.get(key)
        return message is not None and message.state is not State.GONE

    def _create_queues(self) -> tuple[LocalQueue, LocalQueue | None]:
        suffix = ".fifo" if self.plan.fifo else ""
        attributes = {"VisibilityTimeout": "30"}
        if self.plan.fifo:
            attributes["FifoQueue"] = "true"
        dead = None
        if self.plan.max_receives is not None:
            dead = self.broker.create_queue(f"dead{suffix}", {"FifoQueue": "true"} if self.plan.fifo else {})
            policy = {"deadLetterTargetArn": dead.arn, "maxReceiveCount": str(self.plan.max_receives)}
            attributes["RedrivePolicy"] = msgspec.json.encode(policy).decode()
        return self.broker.create_queue(f"orders{suffix}", attributes), dead


def _disturbs(faults: Faults) -> bool:
    return any((faults.slow, faults.throttled, faults.unavailable, faults.lost, faults.refused))


def _message(order: OrderPlan, *, fifo: bool) -> Send:
    tenant = {Kind.NOBODY: None, Kind.STRANGER: "stranger"}.get(order.kind, order.tenant)
    named = {"key": order.key} | ({} if tenant is None else {"tenantId": tenant})
    body = msgspec.json.encode({"order_id": order.key}).decode()
    return Send(
        message_body="{" + body if order.kind is Kind.MALFORMED else body,
        message_attributes={
            name: AttributeValue(string_value=value, data_type="String") for name, value in named.items()
        },
        message_group_id=order.group,
        message_deduplication_id=order.key if fifo else None,
    )


@contextlib.contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Let everything that draws random numbers draw them from the seed, and let nobody log."""
    rng = Random(seed ^ 0xD1CE)

    def make(_seed: object = None) -> Random:
        return Random(rng.getrandbits(32))

    shim = SimpleNamespace(Random=make)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.ExitStack() as patches:
            patches.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message=".*was never awaited")  # in a process that was killed
            patches.enter_context(patch.object(postroom.resources.pool, "random", shim))
            for name, module in list(sys.modules.items()):
                if name.startswith("postroom.consumer.") and hasattr(module, "Random"):
                    patches.enter_context(patch.object(module, "Random", make))
            yield
    finally:
        logging.disable(before)


def run_consumer_schedule(seed: int, *, change: Callable[[Plan], Plan] | None = None) -> Outcome:
    """Run one schedule in virtual time. ``change`` may alter its plan, to reproduce something by hand."""
    plan = make_plan(seed)
    if change is not None:
        plan = change(plan)
    history = History()
    loop = SimulationLoop(seed=seed)
    facts: dict[str, int] = {}

    async def main() -> None:
        async with LocalBroker(seed=seed, epoch=1_800_000_000.0) as broker:
            simulation = Simulation(plan, history, broker)
            await simulation.run()
            facts.update(simulation.facts)

    with _deterministic(seed):
        try:
            loop.run_until_complete(loop.create_task(main(), name="simulation"))
        except Deadlock as error:
            history.violations.append(f"stuck: {error}")
        except Exception as error:
            history.violations.append(f"harness: {error!r}")
            history.lines.append((loop.time(), "harness", (repr(error),)))
        finally:
            _close(loop)
        for context in loop.unhandled:
            owner = getattr(context.get("task") or context.get("future"), "owner", None)
            if owner is None or owner.gate.alive:
                history.violations.append(f"unhandled: {context['message']}: {context.get('exception')!r}")
    return Outcome(seed, tuple(history.violations), history, plan, facts)


def _close(loop: SimulationLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(Exception):
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
