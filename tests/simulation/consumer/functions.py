"""The user's functions of one process: they raise when the plan says so, and look at what is visible to them."""

import asyncio
from collections.abc import Hashable
from dataclasses import replace
from random import Random
from typing import Any, Protocol

from postroom.events import Event, MessageSettled
from postroom.message import Message
from postroom.options import Call
from postroom.resources import classify_open
from simulation.consumer.contexts import ContextWatch
from simulation.consumer.hardships import attempts_option
from simulation.consumer.plan import Plan, host_of

ERRORS = (RuntimeError, KeyError, OSError, ValueError)


class Owned(Protocol):
    """A context: it names its tenant."""

    @property
    def tenant_id(self) -> str:
        """The tenant."""
        ...


class UserFunctions:
    """Stands in for what a user hands over beside the handler.

    Args:
        plan: says what raises when.
        contexts: looks for what must not be visible.
        tenants: message id to tenant, of all messages.
        seed: of what is left to chance.
    """

    def __init__(self, plan: Plan, contexts: ContextWatch, tenants: dict[str, str], seed: int) -> None:
        self._plan = plan
        self._contexts = contexts
        self._tenants = tenants
        self._rng = Random(seed)
        self.raised: dict[str | None, float] = {}
        """When something raised last, by tenant; what raised for no tenant in particular under None."""
        self.raised_at = -1.0
        """When something raised last."""

    def pool_options(self) -> dict[str, Any]:
        """Return the pool's arguments that are functions."""
        plan = self._plan
        options: dict[str, Any] = {"host": self._host} if plan.hosts else {}
        raising = {each.function for each in plan.raising}
        known = {"key": self._key, "weight": self._weight, "classify": self._classify}
        return options | {name: function for name, function in known.items() if name in raising}

    def consumer_options(self) -> dict[str, Any]:
        """Return the consumer's options, with functions in them where the plan has some that raise."""
        options = dict(self._plan.options)
        raising = {each.function for each in self._plan.raising}
        policy = attempts_option(self._plan)
        if "delay" in raising:
            policy = replace(policy, delay=self._delay)
        options["retry"] = self._chosen("retry=", policy) if self._plan.chosen else policy
        if self._plan.chosen:
            options["faults"] = self._chosen("faults=", options["faults"])
        for name in raising & {"overrides", "weights"}:
            options["concurrency"] = replace(options["concurrency"], **{name: self._limit_of(name)})
        return options

    def maybe_raise(self, name: str, tenant: str | None) -> None:
        """Raise if this is a time in which a function does."""
        if not self._plan.raising:
            return
        now = asyncio.get_running_loop().time()
        for each in self._plan.raising:
            if each.function != name or each.tenant not in {None, tenant} or not each.start <= now < each.end:
                continue
            if self._rng.random() < each.part:
                self.raised[tenant] = self.raised_at = now
                raise self._rng.choice(ERRORS)(f"{name} of {tenant}")

    def raised_since(self, tenant: str, when: float) -> bool:
        """Return whether a function raised for a tenant, or for an unknown one, since some time."""
        return any(self.raised.get(each, -1.0) >= when for each in (tenant, None))

    # -- of the pool -----------------------------------------------------------------------------------------------

    def _host(self, tenant: Owned) -> Hashable:
        self._contexts.enters_for("host=", tenant.tenant_id)
        self.maybe_raise("host", tenant.tenant_id)
        return host_of(tenant.tenant_id, self._plan.hosts)

    def _key(self, tenant: Any) -> Hashable:
        self._contexts.enters_for("key=", tenant.tenant_id)
        self.maybe_raise("key", tenant.tenant_id)
        key: Hashable = tenant
        return key

    def _weight(self, tenant: Owned) -> int:
        self._contexts.enters_for("weight=", tenant.tenant_id)
        self.maybe_raise("weight", tenant.tenant_id)
        return 1

    def _classify(self, error: BaseException) -> Any:
        self.maybe_raise("classify", None)
        return classify_open(error)

    # -- of the consumer -------------------------------------------------------------------------------------------

    def _delay(self, message: Message, _error: BaseException) -> float:
        self._contexts.enters("RetryPolicy.delay", message.id)
        self.maybe_raise("delay", self._tenants.get(message.id))
        return self._rng.choice((0.0, 1.0, 3.0))

    def _chosen(self, name: str, policy: Any) -> Any:
        def choose(call: Call) -> Any:
            self._contexts.enters(name, call.message.id)
            return policy

        return choose

    def _limit_of(self, name: str) -> Any:
        def limit(key: Any) -> None:
            self.maybe_raise(name, getattr(key, "tenant_id", None))

        return limit

    def observes(self, event: Event) -> None:
        """Look around in an observer, and raise at times. Called after everybody else has been told."""
        message = getattr(event, "message", None)
        if message is not None:
            self._contexts.enters(f"an observer of {type(event).__name__}", message.id, leaves_mark=False)
        if isinstance(event, MessageSettled):
            self.maybe_raise("observer", self._tenants.get(event.message.id))
