"""What outlives processes: the plan, the databases, which orders are done; and what a user of the library declares."""

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

from postroom import MessageContext
from postroom.message import Message
from postroom.payloads import context_from_attributes
from postroom.testing.databases import SimulatedDatabases
from simulation.consumer.attempts import Ledger, Policies
from simulation.consumer.database import Claims, TenantDatabase
from simulation.consumer.hardships import knows_attempts
from simulation.consumer.plan import OpenError, Plan
from simulation.consumer.watch import History

if TYPE_CHECKING:
    from simulation.consumer.process import Process

current_process: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)


@dataclass(frozen=True)
class Tenant:
    """The context."""

    tenant_id: str


@dataclass(frozen=True)
class Order:
    """The payload."""

    order_id: str

    def __post_init__(self) -> None:
        """Look around, as a validator of the user's could."""
        process = current_process.get()
        if process is not None:
            process.decodes(self.order_id)


Ctx = MessageContext[Tenant, TenantDatabase]
resolve = context_from_attributes(Tenant)


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
        self.gets_no_more: Callable[[str, Container[str]], bool] = lambda _key, _failed: False
        """Key, and the ids of what has failed, to whether it failed at the last receive that its queue gives it."""
        self.handed_out_at: Callable[[str], float] = lambda _message_id: 0.0
        """Message id to the time of its latest receive, as the queue knows it."""
        self.policies = Policies(plan.max_receives, readable=not plan.blind, at_times=bool(plan.faults.denied))
        self.ledger = Ledger(self.policies, plan.promised if knows_attempts() else None, forgetful=plan.listed)
        self.tenants: dict[str, str] = {}
        """Message id to tenant."""
        self.ids: dict[str, str] = {}
        """Order to message id."""
        self.sent_at: dict[str, float] = {}
        self.troubled: set[str] = set()
        """Tenants with databases that are in trouble, or of which an operator decided something."""
        self.gaps: list[tuple[float, float]] = []
        """Times in which nothing ran: the event loop was blocked."""

    def queue_of(self, message_id: str) -> int:
        """Return the place of a message's queue."""
        if self.plan.queues == 1:
            return 0
        key = next(key for key, each in self.ids.items() if each == message_id)
        return self.plan.queue_of(self.orders[key])

    def committed(self, key: str) -> bool:
        """Return whether an order is in its own tenant's database."""
        return any(row.key == key for row in self.databases.rows(self.orders[key].tenant))

    def unknown_tenant(self, tenant: str, since: float) -> bool:
        """Return whether a tenant was said not to exist at any time since."""
        now = asyncio.get_running_loop().time()
        return any(
            each.error is OpenError.UNKNOWN_TENANT
            and tenant in each.tenants
            and each.start <= now
            and each.end >= since
            for each in self.plan.deployments
        )

    def healthy(self, tenant: str) -> bool:
        """Return whether nothing at all is planned that could be in a tenant's way now."""
        plan = self.plan
        return not (plan.deployments or plan.raising or plan.broken or plan.cuts or tenant in self.troubled)

    def blocked_since(self, when: float) -> float:
        """Return the seconds since some time in which nothing ran."""
        return sum(end - max(start, when) for start, end in self.gaps if end > when)


def key_of(message: Message) -> str | None:
    """Return the key of an order, which every message also carries as an attribute."""
    attribute = message.message_attributes.get("key")
    return None if attribute is None else attribute.string_value
