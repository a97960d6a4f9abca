"""One process of the simulation: a consumer, its pool and its handler. It can be stopped, cancelled, or die."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from postroom import (
    AckMode,
    AlreadyHandled,
    Consumer,
    MessageContext,
    Queues,
    Reject,
    ResourcePool,
    Retry,
    current_message,
)
from postroom.consumer import CallNext, Failure
from postroom.consumer.job import Job
from postroom.consumer.loop_watch import TICK
from postroom.datasources import UnknownTenant
from postroom.errors import (
    ConfigurationError,
    ContextError,
    PayloadError,
    PoolExhaustedError,
    ResourceError,
    ResourceOpenError,
)
from postroom.events import Event, MessageSettled
from postroom.message import Message
from postroom.scheduling import State
from postroom.testing.faults import FaultyClient
from postroom.types import Settlement
from simulation.consumer.attempts import NO_TENANT
from simulation.consumer.blame import STOP_TRIES, Blame
from simulation.consumer.contexts import ContextWatch
from simulation.consumer.control import Decisions
from simulation.consumer.database import TenantDatabase
from simulation.consumer.functions import UserFunctions
from simulation.consumer.licence import Licence
from simulation.consumer.obstructions import Obstacles, ObstructedClient
from simulation.consumer.plan import Kind, OrderPlan
from simulation.consumer.reactions import OF_ITS_OWN, LossOfAnother, Reactions, is_own_loss
from simulation.consumer.shared import Ctx, Order, Shared, Tenant, current_process, key_of, resolve
from simulation.consumer.spacing import Works
from simulation.consumer.watch import LOST, STOPPING, Gate, Watch, WatchedClient

MOST_TASKS = 64
"""Tasks that have ended and are remembered, at the least: one keeps what its context variables point to."""
BREAKS_A_GROUP = frozenset({Settlement.LOST, Settlement.LEFT})
"""After these the rest of a message group has to go back, whatever was tried of it."""


class Panic(BaseException):
    """A handler's own error that is no ``Exception``, as Rust extensions raise."""


class CutOff(Exception):
    """A statement that the database's side ended."""

    sqlstate = "57P01"


class Process:
    """A process. Everything that runs in it is found by its context variable, and dies with it."""

    def __init__(self, shared: Shared, name: str, client: FaultyClient, seed: int) -> None:
        self.shared = shared
        self.name = name
        self.history = shared.history
        self.gate = Gate()
        self.client = client
        self.ledger = shared.ledger
        self.watch = Watch(shared.history, name, shared.plan, shared.resolved.update, shared.ledger)
        self.licence = Licence(self)
        self.reactions = Reactions(self)
        self.watch.excuse = self.licence.excuse
        self.watch.unread_since = self.unread_since
        self.watch.blocked_since = self.shared.blocked_since
        self.blame = Blame(shared.plan.options["faults"], shared.queue_of)
        self.watch.handed_out_at = self._handed_out_at
        self.watch.patience = lambda: 6.0 if self.disturbed else 1.0
        self.watch.on_offered = self.licence.breaks_groups
        self.watch.may_be_rejected = self.licence.may_be_rejected
        self.watch.is_poison = self.licence.is_poison
        self.rng = Random(seed)
        self.contexts = ContextWatch(shared.tenants, self._sees_another)
        self.functions = UserFunctions(shared.plan, self.contexts, shared.tenants, seed ^ 0xF00D)
        self.tasks: list[asyncio.Task[Any]] = []
        self._most_tasks = MOST_TASKS
        self.cut_off: set[str] = set()
        """Receipt handles with handlers that met an outage: their messages wait, and run again."""
        self.backs_off: set[str] = set()
        """Receipt handles of messages of a group that failed: they may be tried again without another receive."""
        self.writing: set[str] = set()
        """Receipt handles with handlers that have come to their work."""
        self.told: set[str] = set()
        """Receipt handles with handlers that were cancelled."""
        self.frozen = 0.0
        """Seconds for which the process was frozen."""
        self.stillness = (0.0, 0.0)
        """From when until when it was frozen last."""
        self.opened = self.closed = self.weight = 0
        self.handlers: dict[str, Order] = {}
        """Receipt handle to the order with a running handler."""
        self.reporting = 0
        self.stopping_since: float | None = None
        self.cancelled = self.hurried = False
        self.pressed_at: float | None = None
        """When it was last cancelled again, which ends its handlers at once. Two in one instant may count as one."""
        self.stubborn = False
        """Whether a handler went on although it was cancelled: a stop does not wait for that forever."""
        self.lingered = 0.0
        """Seconds after its end for which its pool was closed behind such a handler."""
        self.began = 0.0
        self.works = Works(self.functions)
        self.disturbed = False
        """Whether its calls may have failed: what it could not send, it cannot be blamed for."""
        self.pool: ResourcePool[Tenant, TenantDatabase] | None = None
        self.consumer = self._make_consumer()
        self.decisions = Decisions(self.consumer.tenants)
        self.main: asyncio.Task[None] | None = None
        self._home = contextvars.copy_context()
        self._home.run(current_process.set, self)

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to run."""
        self.began = self._now()
        self.main = asyncio.get_running_loop().create_task(
            self._live(), name=f"main-{self.name}", context=self._home.copy()
        )

    def within(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call something as if code of this process did: what it starts belongs to it."""
        self._home.copy().run(function, *arguments)

    async def _live(self) -> None:
        self.history.note(self.name, "starts")
        if self.pool is None:
            await self.consumer.run()
        else:
            async with self.pool:
                await self.consumer.run()

    def decide(self, what: str, tenant: str) -> None:
        """Carry out what an operator decides about a tenant."""
        self.within(self.decisions.decide, what, tenant, Tenant(tenant))

    def add_task(self, task: asyncio.Task[Any]) -> None:
        """Remember a task, for as long as it runs."""
        self.tasks.append(task)
        if len(self.tasks) > self._most_tasks:
            self.forget_tasks()

    def slots_in_use(self) -> int:
        """Return ``statistics().running`` of the consumer, without a snapshot of everything else."""
        run = self.consumer._last_run
        return 0 if run is None else run.scheduler.running

    def with_slots(self) -> set[Job]:
        """Return the messages that have a slot and a task."""
        run = self.consumer._last_run
        return set() if run is None else {job for job in run.engine.jobs if job.state is State.RUNNING}

    def unread_since(self) -> float:
        """Return when what it reads now may have arrived, as its loop watch would find out by signs of life."""
        since, until = self.stillness
        now = self._now()
        return since if since < until and now - until <= 2 * TICK else now

    def _handed_out_at(self, message_id: str) -> float | None:
        """Return when the queue handed out a message that waited to be read, while nothing here ran."""
        since = self.unread_since()
        return None if since == self._now() else max(since, self.shared.handed_out_at(message_id))

    def forget_tasks(self) -> None:
        """Forget tasks that have ended: each keeps its context variables alive, and what these point to."""
        self.tasks = [task for task in self.tasks if not task.done()]
        self._most_tasks = max(MOST_TASKS, 2 * len(self.tasks))

    async def crash(self) -> None:
        """Die: everything is cancelled, nothing gets out any longer, the servers see the connections end."""
        self.history.note(self.name, "crashes")
        self.gate.alive = False
        self.shared.databases.drop(lambda connection: connection.owner is self)
        for _ in range(200):
            running = [task for task in self.tasks if not task.done()]
            if not running:
                return
            for task in running:
                task.cancel()
            await asyncio.sleep(0)
        self.history.broken("harness", f"{self.name} could not be killed: {running}")

    # -- the consumer --------------------------------------------------------------------------------------------

    def _make_consumer(self) -> Consumer[Tenant, TenantDatabase]:
        plan = self.shared.plan
        if plan.shared_pool:
            self.pool = ResourcePool(
                self.provide,
                check=self._check,
                **self.functions.pool_options(),
                limits=plan.limits,
                timeouts=plan.timeouts,
                backoff=plan.backoff,
                jitter=Random(self.rng.getrandbits(32)),
                name=self.name,
            )
        consumer: Consumer[Tenant, TenantDatabase] = Consumer(
            **self._place(),
            context=self._resolve_later if plan.slow_resolver else self._resolve_now,
            resources=self.pool or self.provide,
            ack=plan.ack,
            client=WatchedClient(self._reached(), self.watch, self.gate),
            on_error=self._on_error,
            middleware=[self._outermost],
            observers=[self._observe],
            **self.functions.consumer_options(),
        )
        consumer.handler(self.handle)
        return consumer

    def _reached(self) -> FaultyClient | ObstructedClient:
        """Return the client, behind what is in the way of single kinds of calls."""
        planned = self.shared.plan.obstructions
        if not planned:
            return self.client
        return ObstructedClient(self.client, Obstacles(planned, f"{self.shared.plan.seed} {self.name}"))

    def _place(self) -> dict[str, Any]:
        """Return what the consumer consumes."""
        names = self.shared.plan.queue_names()
        return {"queue": names[0]} if len(names) == 1 else {"queues": self._queues(names)}

    def _queues(self, names: list[str]) -> Queues:
        """Return the list of queues, or a function that leaves one out between the 5th and the 12th second."""
        if not self.shared.plan.listed:
            return Queues(names)

        def listed() -> list[str]:
            return names[:-1] if 5.0 <= self._now() < 12.0 else names

        return Queues(listed, name="orders", every=2.0)

    def _resolve_now(self, message: Message) -> Tenant:
        self.contexts.enters("the resolver", message.id)
        try:
            self.functions.maybe_raise("resolver", self.shared.tenants[message.id])
            found = resolve(message)
        except Exception:
            self._fails(message)
            raise
        assert not isinstance(found, Awaitable)
        self.works.goes_well(self._now())
        return found

    async def _resolve_later(self, message: Message) -> Tenant:
        await asyncio.sleep(self.rng.random() * self.shared.plan.slow_resolver)
        return self._resolve_now(message)

    def _sees_another(self, text: str) -> None:
        if self.gate.alive:
            self.history.broken("context", f"{self.name}: {text}")

    def decodes(self, order_id: str) -> None:
        """Look around while a payload is decoded."""
        self.contexts.enters("the decoder", self.shared.ids[order_id])

    def _observe(self, event: Event) -> None:
        self.watch.observe(event)
        if isinstance(event, MessageSettled):
            self.reactions.judge_end(event)
            retried = event.settlement is Settlement.RETRIED
            in_vain = retried and event.message.body in self.watch.offered
            if in_vain or event.settlement in BREAKS_A_GROUP or (retried and self.watch.answered_late(event.message)):
                self.licence.breaks_group(event.message)
        self.functions.observes(event)

    @asynccontextmanager
    async def provide(self, tenant: Tenant) -> AsyncGenerator[TenantDatabase]:
        """Connect to the tenant's database, and count."""
        self.gate.check()
        self.contexts.enters_for("the provider", tenant.tenant_id)
        self.weight += 1
        if self.pool is not None and self.weight > self.shared.plan.limits.budget:
            self.history.broken("I3", f"{self.name} has {self.weight} resources, above its budget")
        try:
            password = self.shared.secrets.get(tenant.tenant_id)
            async with self.shared.databases.connect(tenant.tenant_id, password=password, owner=self) as connection:
                self.opened += 1
                self.history.note(self.name, "opened", tenant.tenant_id)
                try:
                    yield TenantDatabase(self.shared.databases, connection, self.shared.claims)
                finally:
                    self.contexts.enters_for("the provider's end", tenant.tenant_id)
                    self.closed += 1
                    self.history.note(self.name, "closed", tenant.tenant_id)
        finally:
            self.weight -= 1

    async def _check(self, connection: TenantDatabase) -> None:
        self.contexts.enters_for("the check", connection.tenant)
        await asyncio.sleep(self.rng.random() * 0.01)
        if connection.dropped:
            raise ConnectionResetError("dropped")

    async def _on_error(self, failure: Failure) -> None:
        self.reporting += 1
        self.contexts.enters("on_error", failure.message.id)
        self.reactions.judge_report(failure)
        error = failure.error
        for_now = isinstance(error, PoolExhaustedError | CutOff) or (
            isinstance(error, ResourceOpenError) and not self._says_unknown(failure.message, error)
        )
        if not for_now:
            self.ledger.reports(failure.message.receipt_handle, unknown=isinstance(error, ResourceOpenError))
        try:
            self.history.note(self.name, "failed", failure.message.id[:4], type(error).__name__, str(error))
            of_a_function = isinstance(error, ResourceError) and not isinstance(
                error, ResourceOpenError | PoolExhaustedError
            )  # weight= or host=
            if isinstance(error, PayloadError) or of_a_function:
                self.ledger.begins(failure.message.receipt_handle)
            if isinstance(error, ContextError | PayloadError) or of_a_function:
                self._fails(failure.message)
            if not for_now:
                self._gave_up(failure.message, error)
                self.licence.breaks_group(failure.message)
            if isinstance(error, ResourceOpenError) and not for_now:
                self.ledger.excuses(failure.message.receipt_handle, NO_TENANT)
            await asyncio.sleep(self.rng.choice((0.0, 0.01)))
            # It may have been handled before, with the same handle, as far as `ctx.retry()`.
            counts = not (for_now or of_a_function or is_own_loss(error))
            if counts and self.stopping_since is None:
                self.blame.failed(failure.message.receipt_handle, failure.message.id, self._now())
            self.functions.maybe_raise("on_error", self.shared.tenants[failure.message.id])
        finally:
            self.reporting -= 1
            # It may be held until the outage is over, or back off with its group.
            if not for_now and not self.shared.plan.fifo:
                self.watch.has_ended(failure.message)

    def _says_unknown(self, message: Message, error: BaseException) -> bool:
        """Whether it was said that a message's tenant does not exist: only that is more than an outage."""
        if any(each.function == "classify" for each in self.shared.plan.raising):
            return getattr(error, "permanent", False) is True  # it may be asked while it raises
        if "still opening" in str(error):  # the cause is that of an earlier open
            return False
        cause = error.__cause__
        while cause is not None:
            if isinstance(cause, UnknownTenant):
                return True
            cause = cause.__cause__
        if error.__cause__ is not None:
            return False
        order = self.shared.orders[key_of(message) or ""]
        first = self.ledger.receives[message.receipt_handle].at
        return order.kind is Kind.STRANGER or self.shared.unknown_tenant(order.tenant, first)

    def _gave_up(self, message: Message, error: BaseException) -> None:
        self.watch.failed.add(message.id)
        if isinstance(error, ConfigurationError):
            self.history.broken("harness", f"{self.name}: {error}")
        key = key_of(message)
        if self.shared.plan.ack is AckMode.ALWAYS and key is not None:
            self.shared.resolved.add(key)

    async def _outermost(self, payload: Any, ctx: MessageContext[Any, Any], call_next: CallNext) -> None:
        self.contexts.enters("middleware", ctx.message.id)
        self.ledger.tries(ctx.message.receipt_handle)
        try:
            await call_next(payload, ctx)
        except AlreadyHandled:
            self._was_handled(ctx.message)
            raise
        try:
            self.functions.maybe_raise("middleware", ctx.context.tenant_id)
        except Exception:
            self._fails(ctx.message)
            raise
        await asyncio.sleep(0)  # so that an acknowledgement before the very end is seen
        self.watch.finished.add(ctx.message.id)
        self.watch.has_ended(ctx.message)
        self.blame.succeeded(ctx.message.receipt_handle, ctx.message.id)

    def _was_handled(self, message: Message) -> None:
        self.history.note(self.name, "handled before", message.id[:4])
        key = key_of(message) or ""
        if not self.shared.committed(key):
            self.history.broken("once", f"{self.name} takes {key} for a duplicate, but it is nowhere")
        self.shared.resolved.add(key)
        self.watch.handled.add(message.id)
        self.watch.has_ended(message)

    # -- the handler ---------------------------------------------------------------------------------------------

    async def handle(self, order: Order, ctx: Ctx) -> None:
        """Do what the plan says of this order, under the eyes of the oracles."""
        self._entered(order, ctx)
        try:
            await self.reactions.act(self.shared.orders[order.order_id], ctx)
        except CutOff:
            self._was_cut_off(ctx)
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError | AlreadyHandled) or is_own_loss(error):
                raise
            if self.reactions.fails(ctx.message.receipt_handle):
                self._fails(ctx.message)
            raise
        finally:
            if self.gate.alive and not self.frozen and ctx.message.receipt_handle not in self.told:
                self.watch.judge_owner(ctx.message, self.shared.blocked_since)
            if ctx.resources.closed and self.stopping_since is None and self.gate.alive:
                self.history.broken("I2", f"{self.name} closed the resources of {order.order_id} under its handler")
            del self.handlers[ctx.message.receipt_handle]
            self.blame.ended(ctx.message.receipt_handle, cut_off=ctx.message.receipt_handle in self.cut_off)
            self.history.note(self.name, "handler ends", order.order_id)

    def _entered(self, order: Order, ctx: Ctx) -> None:
        plan = self.shared.orders[order.order_id]
        self.history.note(self.name, "handler", order.order_id, ctx.message.id[:4])
        self._look_around(ctx)
        if ctx.context.tenant_id != plan.tenant or ctx.resources.tenant != plan.tenant:
            self.history.broken("isolation", f"{self.name} handles {order.order_id} with {ctx.resources.tenant}'s")
        if ctx.message.receipt_handle in self.watch.started - self.cut_off - self.backs_off:
            self.history.broken("once", f"{self.name} starts {order.order_id} twice for one receive")
        self.backs_off.discard(ctx.message.receipt_handle)
        self.ledger.begins(ctx.message.receipt_handle)
        self.watch.started.add(ctx.message.receipt_handle)
        self.cut_off.discard(ctx.message.receipt_handle)
        # Told to stop while it stood still, it learns of that when it goes on.
        late = self.stopping_since is not None and self._now() > max(self.stopping_since, self.stillness[1]) + 0.001
        if late and not self.licence.may_start_late(ctx.message.id):
            self.history.broken("S7", f"{self.name} starts {order.order_id} although it stops")
        self.handlers[ctx.message.receipt_handle] = order
        released = self.decisions.resumes(plan.tenant)
        stops = self.stopping_since is not None
        wrong = self.blame.started(plan.tenant, ctx.message.receipt_handle, self._now(), released=released, stops=stops)
        if wrong is not None:
            self.history.broken("breaker", f"{self.name} {wrong}")
        if (wrong := self.decisions.started(plan.tenant, self.running(plan.tenant))) is not None:
            self.history.broken("control", f"{self.name} {wrong}")
        self._check_slots(plan)

    def _look_around(self, ctx: Ctx) -> None:
        """Oracles *context*, *attempts* and *owner*, at the start of a handler."""
        message = ctx.message
        self.contexts.enters("the handler", message.id)
        if (current := current_message()) is None or current.message.id != message.id:
            self.history.broken("context", f"current_message() in the handler of {message.id[:4]} is {current}")
        if (wrong := self.ledger.judge_attempt(message.receipt_handle, getattr(ctx, "attempt", None))) is not None:
            self.history.broken("attempts", f"{self.name}: {wrong}")
        if not self.watch.owns(message.id):
            self.history.broken("owner", f"{self.name} starts a handler for {message.id[:4]}, which it lost before")

    def _was_cut_off(self, ctx: Ctx) -> None:
        """Oracle *pace*: the message waits, and nothing of it has failed. It runs again, not as fast as it can."""
        self.cut_off.add(ctx.message.receipt_handle)
        at_once = self.shared.plan.options["concurrency"].per_tenant
        now = self._now()
        more = 0 if self.stopping_since is None else 1 + int((now - self.stopping_since) / STOP_TRIES)
        if (wrong := self.blame.met_outage(ctx.context.tenant_id, at_once, now, more=more)) is not None:
            self.history.broken("pace", f"{self.name} {wrong}")

    def _fails(self, message: Message) -> None:
        """Note a failed attempt."""
        self.ledger.fails(message.receipt_handle)
        self.licence.breaks_group(message)
        if self.shared.plan.fifo:
            self.backs_off.add(message.receipt_handle)

    def running(self, tenant: str) -> int:
        """Return how many handlers of a tenant run."""
        return sum(self.shared.orders[order.order_id].tenant == tenant for order in self.handlers.values())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _check_slots(self, plan: OrderPlan) -> None:
        limits = self.shared.plan.options["concurrency"]
        running = [self.shared.orders[order.order_id] for order in self.handlers.values()]
        if len(running) > limits.total:
            self.history.broken("slots", f"{self.name} runs {len(running)} handlers")
        if self.running(plan.tenant) > limits.per_tenant:
            self.history.broken("slots", f"{self.name} runs too many handlers of {plan.tenant}")
        if self.shared.plan.fifo:
            if sum(each.group == plan.group for each in running) > 1:
                self.history.broken("S8", f"{self.name} runs two handlers of group {plan.group}")
            self._check_order(plan)

    def _check_order(self, plan: OrderPlan) -> None:
        """S8: whatever was sent before it in its group is done, or gone to the dead-letter queue."""
        for earlier in self.shared.plan.orders:
            if earlier is plan:
                return
            if earlier.group == plan.group and earlier.key not in self.shared.resolved:
                gone = not self.shared.in_queue(earlier.key) or self.shared.committed(earlier.key)
                watch = self.watch
                gave_up = watch.failed | watch.asked_for_time | watch.retried_by_hand | watch.letters_answered
                if gone or self.shared.gets_no_more(earlier.key, gave_up):
                    self.shared.resolved.add(earlier.key)
                    continue
                self.history.broken("S8", f"{self.name} starts {plan.key} before {earlier.key} is done")

    async def _act(self, plan: OrderPlan, ctx: Ctx) -> None:
        self.shared.attempts[plan.key] += 1
        self.watch.retried_by_hand.discard(ctx.message.id)
        wrong = self.shared.attempts[plan.key] <= plan.attempts
        seconds = plan.seconds if wrong else min(plan.seconds, 0.3)  # within any limit in the end
        if plan.kind is Kind.STUBBORN:
            await self._stubborn(seconds)
        else:
            await asyncio.sleep(seconds)
        self._break(plan.tenant)
        match plan.kind:
            case Kind.BREAKS if wrong:
                raise ConnectionResetError("breaks")
            case Kind.POISON:
                raise ValueError("poison")
            case Kind.FAILS | Kind.LETS_OUT if wrong:
                lets_out = plan.kind is Kind.LETS_OUT
                raise LossOfAnother("not this one", message_id="another") if lets_out else ValueError("fails")
            case Kind.RETRIES if wrong:
                self.watch.asked_for_time.add(ctx.message.id)
                raise Retry(delay=self.rng.choice((None, 0.0, 1.0)))
            case Kind.CANCELS if wrong:
                raise asyncio.CancelledError(OF_ITS_OWN)
            case Kind.CANCELS_ITSELF if wrong:
                task = asyncio.current_task()
                assert task is not None
                task.cancel(OF_ITS_OWN)
                await asyncio.sleep(1.0)
            case Kind.REJECTS:
                self.watch.asked_for_time.add(ctx.message.id)
                raise Reject("not for us")
            case Kind.PANICS if wrong:
                raise Panic("panics") if plan.attempts > 1 else BaseExceptionGroup("panics", [Panic("alone")])
            case Kind.ASKS_RETRY if wrong:
                self._fails(ctx.message)
                self.watch.retried_by_hand.add(ctx.message.id)
                await ctx.retry(delay=1.0)
                return
            case _:
                await self.write(plan, ctx)

    def _break(self, tenant: str) -> None:
        """Fail if this is a time in which everything of the tenant does."""
        now = self._now()
        for cut in self.shared.plan.cuts:
            if cut.tenant == tenant and cut.start <= now < cut.end:
                raise CutOff
        for time in self.shared.plan.broken:
            if time.tenant == tenant and time.start <= now < time.end:
                raise ConnectionResetError("broken") if time.suspect else ValueError("broken")

    async def write(self, plan: OrderPlan, ctx: Ctx) -> None:
        """Do the work of an order."""
        self.writing.add(ctx.message.receipt_handle)
        inbox = self.shared.plan.inbox
        async with ctx.transaction() if inbox else ctx.resources.transaction() as transaction:
            await asyncio.sleep(0)
            self.gate.check()
            (transaction.insert_once if self.shared.plan.idempotent else transaction.insert)(plan.key)
        self.shared.resolved.add(plan.key)
        if plan.kind is Kind.ACKS or self.shared.plan.ack is AckMode.MANUAL:
            self.watch.acked_by_hand.add(ctx.message.id)
            await ctx.ack()
            await asyncio.sleep(self.rng.choice((0.0, 0.5)))

    async def _stubborn(self, seconds: float) -> None:
        """Sleep, and go on sleeping when cancelled; a dead process does not."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                if not self.gate.alive:
                    raise
                self.stubborn = True
                self.told.update(self.handlers)  # nothing here says which message this handler is for

    def judge_cancellation(self, ctx: Ctx, error: asyncio.CancelledError) -> None:
        """I6: who is cancelled has to be told why, and it has to be true."""
        self.history.note(self.name, "handler cancelled", ctx.message.id[:4], *error.args)
        limit = self.shared.plan.options["concurrency"].handler_timeout
        told = ctx.message.receipt_handle in self.told  # it ignored that: the end of the consumer gives no reason again
        self.told.add(ctx.message.receipt_handle)
        overran = limit is not None and self._now() >= self.blame.started_at(ctx.message.receipt_handle) + limit
        its_own = overran or OF_ITS_OWN in error.args or not self.cancelled  # or by its time limit
        if LOST not in error.args and STOPPING not in error.args and its_own:
            self.reactions.fails(ctx.message.receipt_handle)
            self._fails(ctx.message)
        if not self.gate.alive or self.cancelled or OF_ITS_OWN in error.args:
            return
        if LOST in error.args:
            if self.watch.owns(ctx.message.id, ctx.message.receipt_handle):
                self.history.broken("I6", f"{self.name} cancels {ctx.message.id[:4]} as lost, but owns it")
        elif STOPPING in error.args:
            drain = 0.0 if self.hurried else self.shared.plan.options["shutdown"].drain
            now = asyncio.get_running_loop().time()
            if self.stopping_since is None or now < self.stopping_since + drain - 0.001:
                self.history.broken("I6", f"{self.name} cancels {ctx.message.id[:4]} before its time is over")
        elif limit is None and not told:
            self.history.broken("I6", f"{self.name} cancels {ctx.message.id[:4]} for no reason")
