"""One process of the simulation: a consumer, its pool and its handler. It can be stopped, cancelled, or die."""

import asyncio
import contextvars
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from postroom import AckMode, AlreadyHandled, Consumer, MessageContext, Reject, ResourcePool, Retry
from postroom.consumer import CallNext, Failure
from postroom.errors import ConfigurationError, OwnershipLost, PoolExhaustedError, ResourceOpenError
from postroom.message import Message
from postroom.payloads import context_from_attributes
from postroom.testing.databases import SimulatedDatabases
from postroom.testing.faults import FaultyClient
from simulation.consumer.blame import Blame
from simulation.consumer.control import Decisions
from simulation.consumer.database import Claims, TenantDatabase
from simulation.consumer.plan import Kind, OrderPlan, Plan, host_of
from simulation.consumer.watch import LOST, STOPPING, Gate, History, Watch, WatchedClient

current_process: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)


@dataclass(frozen=True)
class Tenant:
    """The context."""

    tenant_id: str


@dataclass(frozen=True)
class Order:
    """The payload."""

    order_id: str


Ctx = MessageContext[Tenant, TenantDatabase]
_resolve = context_from_attributes(Tenant)


class Shared:
    """What outlives processes: the plan, the databases, and which orders are done."""

    def __init__(self, plan: Plan, history: History, databases: SimulatedDatabases) -> None:
        self.plan = plan
        self.history = history
        self.databases = databases
        self.orders = {order.key: order for order in plan.orders}
        self.claims: Claims = {}
        self.attempts: Counter[str] = Counter()
        self.resolved: set[str] = set()
        """Orders after which their message group may go on: committed, rejected, or given up as ALWAYS says."""
        self.secrets = dict.fromkeys(plan.tenants, 0)
        """What the secret store says; it learns of a rotation a little later."""
        self.in_queue: Callable[[str], bool] = lambda _key: True

    def committed(self, key: str) -> bool:
        """Return whether an order is in its own tenant's database."""
        return any(row.key == key for row in self.databases.rows(self.orders[key].tenant))


class Process:
    """A process. Everything that runs in it is found by its context variable, and dies with it."""

    def __init__(self, shared: Shared, name: str, client: FaultyClient, seed: int) -> None:
        self.shared = shared
        self.name = name
        self.history = shared.history
        self.gate = Gate()
        self.client = client
        self.watch = Watch(shared.history, name, shared.plan, shared.resolved.update)
        self.blame = Blame(shared.plan.options["faults"])
        self.watch.may_be_rejected = self._may_be_rejected
        self.watch.is_poison = self._is_poison
        self.rng = Random(seed)
        self.tasks: list[asyncio.Task[Any]] = []
        self.opened = self.closed = self.weight = 0
        self.handlers: dict[str, Order] = {}
        """Receipt handle to the order whose handler runs."""
        self.reporting = 0
        self.stopping_since: float | None = None
        self.cancelled = self.hurried = False
        self.stubborn = False
        """Whether a handler went on although it was cancelled: a stop does not wait for that for ever."""
        self.disturbed = False
        """Whether its calls may have failed: what it could not send, it cannot be blamed for."""
        self.pool: ResourcePool[Tenant, TenantDatabase] | None = None
        self.consumer = self._make_consumer()
        self.decisions = Decisions(self.consumer.tenants)
        self.main: asyncio.Task[None] | None = None

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to run."""
        context = contextvars.copy_context()
        context.run(current_process.set, self)
        self.main = asyncio.get_running_loop().create_task(self._live(), name=f"main-{self.name}", context=context)

    async def _live(self) -> None:
        self.history.note(self.name, "starts")
        if self.pool is None:
            await self.consumer.run()
        else:
            async with self.pool:
                await self.consumer.run()

    async def crash(self) -> None:
        """Die: everything is cancelled, nothing gets out any more, the servers see the connections end."""
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
                host=(lambda tenant: host_of(tenant.tenant_id, plan.hosts)) if plan.hosts else None,
                limits=plan.limits,
                timeouts=plan.timeouts,
                backoff=plan.backoff,
                jitter=Random(self.rng.getrandbits(32)),
                name=self.name,
            )
        consumer: Consumer[Tenant, TenantDatabase] = Consumer(
            "orders.fifo" if plan.fifo else "orders",
            context=self._resolve_later if plan.slow_resolver else _resolve,
            resources=self.pool or self.provide,
            ack=plan.ack,
            client=WatchedClient(self.client, self.watch, self.gate),
            on_error=self._on_error,
            middleware=[self._outermost],
            observers=[self.watch.observe],
            **plan.options,
        )
        consumer.handler(self.handle)
        return consumer

    async def _resolve_later(self, message: Message) -> Tenant:
        await asyncio.sleep(self.rng.random() * self.shared.plan.slow_resolver)
        found = _resolve(message)
        return await found if isinstance(found, Awaitable) else found

    @asynccontextmanager
    async def provide(self, tenant: Tenant) -> AsyncGenerator[TenantDatabase]:
        """Connect to the tenant's database, and count."""
        self.gate.check()
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
                    self.closed += 1
                    self.history.note(self.name, "closed", tenant.tenant_id)
        finally:
            self.weight -= 1

    async def _check(self, connection: TenantDatabase) -> None:
        await asyncio.sleep(self.rng.random() * 0.01)
        if connection.dropped:
            raise ConnectionResetError("dropped")

    async def _on_error(self, failure: Failure) -> None:
        self.reporting += 1
        self.watch.reports(failure.message)
        try:
            error = failure.error
            self.history.note(self.name, "failed", failure.message.id[:4], type(error).__name__, error)
            for_now = isinstance(error, ResourceOpenError) and not error.permanent
            if not for_now and not isinstance(error, PoolExhaustedError):
                self._gave_up(failure.message, error)
            await asyncio.sleep(self.rng.choice((0.0, 0.01)))
            if (
                not for_now
                and not isinstance(error, PoolExhaustedError | OwnershipLost)
                and self.stopping_since is None
            ):
                self.blame.failed(failure.message.receipt_handle, failure.message.id, self._now())
        finally:
            self.reporting -= 1
            self.watch.has_ended(failure.message)

    def _gave_up(self, message: Message, error: Exception) -> None:
        self.watch.failed.add(message.id)
        if isinstance(error, ConfigurationError):
            self.history.broken("harness", f"{self.name}: {error}")
        key = key_of(message)
        if self.shared.plan.ack is AckMode.ALWAYS and key is not None:
            self.shared.resolved.add(key)

    async def _outermost(self, payload: Any, ctx: MessageContext[Any, Any], call_next: CallNext) -> None:
        try:
            await call_next(payload, ctx)
        except AlreadyHandled:
            self._was_handled(ctx.message)
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
            await self._act(self.shared.orders[order.order_id], ctx)
        except asyncio.CancelledError as error:
            self._judge_cancellation(ctx, error)
            raise
        finally:
            if ctx.resources.closed and self.stopping_since is None and self.gate.alive:
                self.history.broken("I2", f"{self.name} closed the resources of {order.order_id} under its handler")
            del self.handlers[ctx.message.receipt_handle]
            self.blame.ended(ctx.message.receipt_handle)
            self.history.note(self.name, "handler ends", order.order_id)

    def _entered(self, order: Order, ctx: Ctx) -> None:
        plan = self.shared.orders[order.order_id]
        self.history.note(self.name, "handler", order.order_id, ctx.message.id[:4])
        if ctx.context.tenant_id != plan.tenant or ctx.resources.tenant != plan.tenant:
            self.history.broken("isolation", f"{self.name} handles {order.order_id} with {ctx.resources.tenant}'s")
        if ctx.message.receipt_handle in self.watch.started:
            self.history.broken("once", f"{self.name} starts {order.order_id} twice for one receive")
        self.watch.started.add(ctx.message.receipt_handle)
        if self.stopping_since is not None and asyncio.get_running_loop().time() > self.stopping_since + 0.001:
            self.history.broken("S7", f"{self.name} starts {order.order_id} although it stops")
        self.handlers[ctx.message.receipt_handle] = order
        if (wrong := self.blame.started(plan.tenant, ctx.message.receipt_handle, self._now())) is not None:
            self.history.broken("breaker", f"{self.name} {wrong}")
        if (wrong := self.decisions.started(plan.tenant, self.running(plan.tenant))) is not None:
            self.history.broken("control", f"{self.name} {wrong}")
        self._check_slots(plan)

    def running(self, tenant: str) -> int:
        """Return how many handlers of a tenant run."""
        return sum(self.shared.orders[order.order_id].tenant == tenant for order in self.handlers.values())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _is_poison(self, message_id: str) -> bool:
        plan = self.shared.plan
        return message_id in self.blame.poisonous and plan.ack is AckMode.ON_SUCCESS and plan.max_receives is not None

    def _may_be_rejected(self, message_id: str, key: str, reason: str) -> bool:
        """Whether a message may become a dead letter for this reason."""
        plan = self.shared.orders[key]
        match reason.split(":", maxsplit=1)[0]:
            case "poison":
                return message_id in self.blame.poisonous and self.shared.plan.ack is AckMode.ON_SUCCESS
            case "quarantine":
                return self.decisions.was_quarantined(plan.tenant)
            case _:
                return plan.kind is Kind.REJECTS

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
                if not self.shared.in_queue(earlier.key) or self.shared.committed(earlier.key):
                    self.shared.resolved.add(earlier.key)
                    continue
                self.history.broken("S8", f"{self.name} starts {plan.key} before {earlier.key} is done")

    async def _act(self, plan: OrderPlan, ctx: Ctx) -> None:
        self.shared.attempts[plan.key] += 1
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
            case Kind.FAILS if wrong:
                raise ValueError("fails")
            case Kind.RETRIES if wrong:
                raise Retry(delay=self.rng.choice((None, 0.0, 1.0)))
            case Kind.CANCELS if wrong:
                raise asyncio.CancelledError("its own")
            case Kind.REJECTS:
                raise Reject("not for us")
            case Kind.ASKS_RETRY if wrong:
                await ctx.retry(delay=1.0)
                return
            case _:
                await self._write(plan, ctx)

    def _break(self, tenant: str) -> None:
        """Fail if this is a time in which everything of the tenant does."""
        now = self._now()
        for time in self.shared.plan.broken:
            if time.tenant == tenant and time.start <= now < time.end:
                raise ConnectionResetError("broken") if time.suspect else ValueError("broken")

    async def _write(self, plan: OrderPlan, ctx: Ctx) -> None:
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

    def _judge_cancellation(self, ctx: Ctx, error: asyncio.CancelledError) -> None:
        """I6: who is cancelled has to be told why, and it has to be true."""
        self.history.note(self.name, "handler cancelled", ctx.message.id[:4], *error.args)
        limit = self.shared.plan.options["concurrency"].handler_timeout
        if not self.gate.alive or self.cancelled or "its own" in error.args:
            return
        if LOST in error.args:
            if self.watch.owns(ctx.message.id, ctx.message.receipt_handle):
                self.history.broken("I6", f"{self.name} cancels {ctx.message.id[:4]} as lost, but owns it")
        elif STOPPING in error.args:
            drain = 0.0 if self.hurried else self.shared.plan.options["shutdown"].drain
            now = asyncio.get_running_loop().time()
            if self.stopping_since is None or now < self.stopping_since + drain - 0.001:
                self.history.broken("I6", f"{self.name} cancels {ctx.message.id[:4]}, whose time is not over")
        elif limit is None:
            self.history.broken("I6", f"{self.name} cancels {ctx.message.id[:4]} for no reason")


def key_of(message: Message) -> str | None:
    """Return the key of an order, which every message also carries as an attribute."""
    attribute = message.message_attributes.get("key")
    return None if attribute is None else attribute.string_value
