"""One whole-consumer schedule: several consumers, a faulty queue, faulty databases, crashes; all from one seed.

``run_consumer_schedule(seed)`` runs it in virtual time and says which promises were broken. The same seed gives the
same history, line by line.
"""

import asyncio
import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import Callable, Container, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock
from unittest.mock import patch

import msgspec

import postroom.resources.pool
from postroom.consumer import deferral
from postroom.consumer.loop_watch import LoopWatch
from postroom.local.messages import MessageState, Stored
from postroom.local.queue import LocalQueue
from postroom.local.shapes import AttributeValue, Send
from postroom.testing.databases import SimulatedDatabases, Trouble
from postroom.testing.faults import ClientFaults, FaultyClient
from postroom.testing.loop import Deadlock
from postroom.transports.memory import MemoryClient
from simulation.consumer.control import DIVERT, ELSEWHERE
from simulation.consumer.happenings import Happenings
from simulation.consumer.hardships import make_plan
from simulation.consumer.liveness import bound
from simulation.consumer.loop import EPOCH, Broker, SimulationLoop
from simulation.consumer.plan import Kind, OrderPlan, Plan, disturbs
from simulation.consumer.process import Process
from simulation.consumer.shared import Shared, current_process
from simulation.consumer.spacing import calls_back_in, is_put_off
from simulation.consumer.verdicts import Verdicts
from simulation.consumer.watch import History
from simulation.garbage import one_collection

FACTS = (
    *("crashes", "stops", "handlers", "redelivered", "trips", "probes", "poison", "decisions", "duplicates"),
    *("blocked", "frozen", "failures", "spent"),
)

_SCHEDULES_KEPT = 20
"""Schedules, about, of which garbage may be in memory at once."""
_LETTERS_PAUSE = 5.0
"""Seconds between two calls to the dead-letter queue at most, while they fail."""


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

    def __init__(self, plan: Plan, history: History, broker: Broker) -> None:
        self.plan = plan
        self.history = history
        self.broker = broker
        self.rng = Random(plan.seed ^ 0x5EED)
        self.databases = SimulatedDatabases(Random(self.rng.getrandbits(32)))
        for tenant in plan.tenants:
            self.databases.create(tenant)
        self.shared = Shared(plan, history, self.databases)
        self.shared.in_queue = self._in_queue
        self.shared.gets_no_more = self._gets_no_more
        self.shared.handed_out_at = self._handed_out_at
        self.elsewhere: LocalQueue | None = None
        """Where tenants are diverted to."""
        self.queues, self.dead_letters = self._create_queues()
        self.stored: dict[str, Stored] = {}
        self.processes: list[Process] = []
        self.living: list[Process | None] = [None] * plan.processes
        self.errands: list[asyncio.Task[None]] = []
        self.facts = dict.fromkeys(FACTS, 0)
        self.happenings = Happenings(self)
        self.verdicts = Verdicts(self)

    # -- the story -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Let everything happen, then let everything heal, and see whether all came to a good end."""
        for place in range(self.plan.processes):
            self.start(place)
        self._errand(self._produce(), "producer")
        self._errand(self._monitor(), "monitor")
        for deployment in self.plan.deployments:
            self._errand(self.happenings.deploy(deployment), "deployment")
        for change in self.plan.redrives:
            self._errand(self.happenings.change_redrive(change), "redrive policy")
        for event in self.plan.events:
            await asyncio.sleep(max(0.0, event.at - self._now()))
            self._errand(self.happenings.happen(event), f"event-{event.what}")
        await asyncio.sleep(max(0.0, self.plan.end - self._now()))
        for errand in self.errands:
            await errand
        self._heal()
        if self.plan.survivors_finish and any(self.living):
            await self._until_settled("the processes that lived through it", paused=self.plan.kept_paused)
        for place, process in enumerate(self.living):
            if process is not None:
                await self.stop_process(process, place)
        await self._finish()
        self.verdicts.check_end()

    async def _finish(self) -> None:
        """One healthy process has to get everything out of the queue."""
        process = self.make_process("final", ClientFaults())
        process.start()
        await self._until_settled("a healthy process", paused=None)
        await self.stop_process(process, None)

    async def _until_settled(self, who: str, *, paused: str | None) -> None:
        """Oracle *liveness*: wait for everything to leave the queue, but for the messages of a paused tenant."""
        left = self._left(paused)
        patience = bound(self.plan, left)
        since = self._now()
        while left and self._now() < since + patience:
            await asyncio.sleep(5.0)
            left = self._left(paused)
            if any(self._waits_for_a_step(each, calls_back_in(len(left))) for each in left):
                since = self._now()
        if left:
            keys = [order.key for order in left]
            self.history.broken("liveness", f"{who} left it in the queue for {patience:g} s: {keys}")

    def _waits_for_a_step(self, order: OrderPlan, most: float) -> bool:
        """Whether a message is away because a step failed for it. Its process calls it back, once that works again."""
        receives = self.shared.ledger.of(self.stored[order.key].id)
        if not receives or not is_put_off(receives[-1], self._now()):
            return False
        process = next(each for each in self.processes if each.name == receives[-1].process)
        since = process.works.since
        # A call that fails calls nothing back, and is not made again. Nor is there one for what has no receive left.
        calls_back = process in self.living and not process.disturbed and order.kind is not Kind.MALFORMED
        calls_back = calls_back and receives[-1].number not in self.shared.ledger.policies.values()
        if calls_back and since is not None and self._now() > since + most:
            text = f"{process.name} left {order.key} away for {most:g} s after what failed for it works again"
            self.history.broken("spacing", text)
        return True

    def _left(self, paused: str | None) -> list[OrderPlan]:
        return [order for order in self.plan.orders if order.tenant != paused and self._in_queue(order.key)]

    # -- processes -----------------------------------------------------------------------------------------------

    def make_process(self, name: str, faults: ClientFaults) -> Process:
        """Make a process that is not started."""
        client = FaultyClient(MemoryClient(self.broker), Random(self.rng.getrandbits(32)), faults)
        process = Process(self.shared, name, client, self.rng.getrandbits(32))
        process.disturbed = disturbs(faults) or any(self._now() < each.end for each in self.plan.obstructions)
        self.processes.append(process)
        return process

    def start(self, place: int) -> None:
        """Start a process."""
        process = self.make_process(f"p{place}.{len(self.processes)}", self.plan.faults)
        self.living[place] = process
        process.start()

    async def stop_process(
        self, process: Process, place: int | None, *, now: bool = False, cancel: str | None = None
    ) -> None:
        """Stop a process in order, and look at what it leaves behind. ``cancel`` names how it is cancelled instead."""
        if place is not None:
            self.living[place] = None
        assert process.main is not None
        began = self._now()
        while not process.consumer.running and not process.main.done():
            await asyncio.sleep(0.001)
        self.history.note(process.name, "stops", "now" if now else "", cancel or "")
        process.stopping_since = began = self._now()
        process.watch.stopping = True
        self.facts["stops"] += 1
        if cancel is not None:
            process.cancelled = True
            await self._cancel(process, process.main, cancel)
        else:
            process.hurried = now
            process.within(partial(process.consumer.stop, now=now))
        await asyncio.wait([process.main])
        if not process.gate.alive:
            return
        if process.main.cancelled() != (cancel is not None):
            self.history.broken("I6", f"{process.name} was cancelled: {process.main.cancelled()}, wanted: {cancel}")
        elif cancel is None and process.main.exception() is not None:
            self.history.broken("fatal", f"{process.name} ended with {process.main.exception()!r}")
        await self.loop.settled()
        await self._let_the_pool_close(process)
        self.verdicts.check_stopped(process, began)

    async def _let_the_pool_close(self, process: Process) -> None:
        """Wait for a close that was cancelled: it goes on behind a handler that does not end, until its grace is over.

        The pool says so of ``aclose``. Without such a handler nothing is leased, and all of it has to be closed now.
        """
        pressed = process.pressed_at is not None
        if pressed and process.stubborn and process.pool is not None and process.pool.statistics().leased:
            process.lingered = self.plan.timeouts.close
            await asyncio.sleep(process.lingered)
            await self.loop.settled()

    async def _cancel(self, process: Process, main: "asyncio.Task[None]", how: str) -> None:
        """Cancel a process's main task: once, some times, or as anyio does, until the scope is left."""
        main.cancel()
        end = self._now() + 60.0
        times = {"cancel": 0, "cancel again": 3}.get(how, 10_000)
        for turn in range(times):
            await asyncio.sleep(self.rng.choice((0.0, 0.01, 0.3)) if times < 10 else 0.0 if turn < 3 else 0.05)
            if main.done() or self._now() > end:
                return
            process.pressed_at = self._now()
            main.cancel()

    async def crash(self, process: Process, place: int) -> None:
        """Kill a process."""
        self.living[place] = None
        self.facts["crashes"] += 1
        self.loop.thaw(process)
        await process.crash()

    async def _produce(self) -> None:
        for order in self.plan.orders:
            await asyncio.sleep(max(0.0, order.at - self._now()))
            queue = self.queues[self.plan.queue_of(order)]
            self.broker.send(queue, _message(order, self.plan))
            stored = self.stored[order.key] = queue.messages[self.broker.engine.ids.seq]
            self.shared.tenants[stored.id] = "stranger" if order.kind is Kind.STRANGER else order.tenant
            self.shared.ids[order.key] = stored.id
            self.shared.sent_at[stored.id] = self._now()
            self.history.note("sent", order.key, self.stored[order.key].id[:4], order.kind.value, order.group or "")

    # -- heal, and look on -----------------------------------------------------------------------------------------

    def _heal(self) -> None:
        self.history.note("heal", "everything works again")
        for tenant in self.plan.tenants:
            self.databases.trouble(tenant, Trouble.NONE)
            self.databases.misconfigure(tenant, None)
            self.shared.secrets[tenant] = self.databases.password(tenant)
        for process in self.living:
            if process is not None:
                process.client.faults = ClientFaults()
                for tenant in self.plan.tenants:
                    process.decide("resume", tenant)
                if self.plan.kept_paused is not None:
                    process.decide("pause", self.plan.kept_paused)

    async def _monitor(self) -> None:
        """Look, at times, whether a slot is held by a message that is not worked on, and which bodies are kept."""
        while self._now() < self.plan.end - 1:
            await asyncio.sleep(self.rng.uniform(0.1, 3.0))
            await self.loop.settled()
            for process in self.living:
                if process is None or not process.consumer.running or self.loop.is_frozen(process):
                    continue
                # One that is about to be rejected, say, is between two steps; a moment later another one may be.
                before = process.with_slots()
                for pause in (0.5, 0.2):
                    if _idle_slots(process):
                        await asyncio.sleep(pause)
                        await self.loop.settled()
                # On a FIFO queue, and where its tenant is diverted, a message keeps its slot while its letter waits.
                waits = self.plan.letters_fail(self._now(), self._now())
                waits = waits or self._now() < process.watch.letters_failed_at + _LETTERS_PAUSE
                if (idle := _idle_slots(process) - len(process.with_slots() - before)) > 0 and not waits:
                    self.history.broken("slots", f"{process.name} holds {idle} slots, and works on nothing there")
                process.forget_tasks()
                self.loop.forget_cancelled()
                if (wrong := process.watch.bodies.judge(self._now())) is not None:
                    self.history.broken("bytes", f"{process.name} {wrong}")

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
        return message is not None and message.state is not MessageState.GONE

    def _gets_no_more(self, key: str, failed: Container[str]) -> bool:
        message, values = self.stored.get(key), self.shared.policies.values()
        return message is not None and message.id in failed and bool(values) and message.receives_here >= values[0]

    def _handed_out_at(self, message_id: str) -> float:
        latest = max(each.received_at for each in self.stored.values() if each.id == message_id)
        return latest - EPOCH

    def _create_queues(self) -> tuple[list[LocalQueue], LocalQueue | None]:
        suffix = ".fifo" if self.plan.fifo else ""
        attributes = {"VisibilityTimeout": "30"}
        if self.plan.fifo:
            attributes["FifoQueue"] = "true"
        if self.plan.retention is not None:
            attributes["MessageRetentionPeriod"] = str(self.plan.retention)
        dead = None
        if self.plan.max_receives is not None or self.plan.redrives:
            dead = self.broker.create_queue(f"dead{suffix}", {"FifoQueue": "true"} if self.plan.fifo else {})
        if self.plan.max_receives is not None and dead is not None:
            policy = {"deadLetterTargetArn": dead.arn, "maxReceiveCount": str(self.plan.max_receives)}
            attributes["RedrivePolicy"] = msgspec.json.encode(policy).decode()
        queues = [self.broker.create_queue(name, attributes) for name in self.plan.queue_names()]
        if any(event.control.startswith(DIVERT) for event in self.plan.events):
            fifo = {"FifoQueue": "true"} if self.plan.fifo else {}
            self.elsewhere = self.broker.create_queue(f"{ELSEWHERE}{suffix}", fifo)
        return queues, dead


def _idle_slots(process: Process) -> int:
    """Return how many slots are held by messages that are not worked on."""
    if not process.consumer.running:
        return 0
    working = len(process.handlers) + process.reporting + len(process.watch.offering)
    return max(0, process.slots_in_use() - working)


def _message(order: OrderPlan, plan: Plan) -> Send:
    tenant = {Kind.NOBODY: None, Kind.STRANGER: "stranger"}.get(order.kind, order.tenant)
    named = {"key": order.key} | ({} if tenant is None else {"tenantId": tenant})
    filling = {"filling": "x" * plan.body_bytes} if plan.body_bytes else {}
    body = msgspec.json.encode({"order_id": order.key} | filling).decode()
    return Send(
        message_body="{" + body if order.kind is Kind.MALFORMED else body,
        message_attributes={
            name: AttributeValue(string_value=value, data_type="String") for name, value in named.items()
        },
        message_group_id=order.group,
        message_deduplication_id=order.key if plan.fifo else None,
    )


class _LogWatch(logging.Handler):
    """Shows each log record to the process that wrote it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Look at one record."""
        if (process := current_process.get()) is not None:
            process.contexts.logged(record)


@contextlib.contextmanager
def _logs(*, watched: bool) -> Iterator[None]:
    """Let nothing be logged, or let every record be looked at and go no further."""
    before = logging.root.manager.disable
    logger = logging.getLogger("postroom")
    level, propagates = logger.level, logger.propagate
    watch = _LogWatch()
    logging.disable(logging.NOTSET if watched else logging.CRITICAL)
    if watched:
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(watch)
    try:
        yield
    finally:
        logging.disable(before)
        logger.removeHandler(watch)
        logger.setLevel(level)
        logger.propagate = propagates


_SMALL_LIMITS: dict[str, Any] = {"MOST_HELD": 8, "MOST_LAST": 100}
"""Messages of tenants that cannot run: where one stays paused, it has more of them than may be held.

But for those at their last receive, which have to stay: more of them than may be held stop the receives.
"""
_RANDOM = ("postroom.consumer.", "postroom.scheduling.", "postroom.settlement.")
"""Where random numbers are drawn by ``random.Random()``."""


@contextlib.contextmanager
def _deterministic(seed: int, *, logs: bool) -> Iterator[None]:
    """Let everything that draws random numbers draw them from the seed."""
    rng = Random(seed ^ 0xD1CE)

    def make(_seed: object = None) -> Random:
        return Random(rng.getrandbits(32))

    shim = SimpleNamespace(Random=make)
    with contextlib.ExitStack() as patches:
        patches.enter_context(_logs(watched=logs))
        patches.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".*was never awaited")  # in a process that was killed
        patches.enter_context(patch.object(postroom.resources.pool, "random", shim))
        for name, module in list(sys.modules.items()):
            if name.startswith(_RANDOM) and hasattr(module, "Random"):
                patches.enter_context(patch.object(module, "Random", make))
        yield


def run_consumer_schedule(seed: int, *, change: Callable[[Plan], Plan] | None = None) -> Outcome:
    """Run one schedule in virtual time. ``change`` may alter its plan, to reproduce something by hand."""
    plan = make_plan(seed)
    if change is not None:
        plan = change(plan)
    history = History()
    with _deterministic(seed, logs=plan.logs), one_collection():
        facts, unhandled = _run(plan, history)
        # What nothing refers to any longer may still hold an exception that was never looked at. Now and then also what
        # earlier schedules left, which their histories still referred to: a long search would keep all of it.
        gc.collect(1 if seed % _SCHEDULES_KEPT else 2)
        for context in unhandled:
            owner = getattr(context.get("task") or context.get("future"), "owner", None)
            if owner is None or owner.gate.alive:
                history.violations.append(f"unhandled: {context['message']}: {context.get('exception')!r}")
    return Outcome(seed, tuple(history.violations), history, plan, facts)


def _run(plan: Plan, history: History) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Return the facts, and what was raised where no one could catch it."""
    loop = SimulationLoop(seed=plan.seed)
    facts: dict[str, int] = {}

    async def main() -> None:
        async with Broker(seed=plan.seed) as broker:
            simulation = Simulation(plan, history, broker)
            await simulation.run()
            facts.update(simulation.facts)

    wall = SimpleNamespace(time=lambda: EPOCH + plan.clock + loop.time())
    # Of a FIFO queue nothing is deferred, and all is held.
    limits = {} if plan.kept_paused is None or plan.fifo else _SMALL_LIMITS
    with (
        mock.patch("postroom.consumer.facts.time", wall),
        mock.patch.object(LoopWatch, "unread_since", _unread_since),
        mock.patch.multiple(deferral, **limits) if limits else contextlib.nullcontext(),
    ):
        try:
            loop.run_until_complete(loop.create_task(main(), name="simulation"))
        except Deadlock as error:
            history.violations.append(f"stuck: {error}")
        except Exception as error:
            history.violations.append(f"harness: {error!r}")
            history.lines.append((loop.time(), "harness", (repr(error),)))
        finally:
            _close(loop)
    return facts, loop.unhandled


def _unread_since(_watch: LoopWatch) -> float:
    """Return what a process's watch would: in virtual time it gives no signs of life by itself."""
    process = current_process.get()
    return asyncio.get_running_loop().time() if process is None else process.unread_since()


def _close(loop: SimulationLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(Exception):
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
