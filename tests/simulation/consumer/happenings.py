"""What happens to the system in a schedule, as the plan says: trouble, decisions, ends of processes, and starts."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from postroom import ConfigurationError
from postroom.datasources import UnknownTenant
from postroom.errors import PostroomError
from postroom.testing.databases import Trouble, WrongPassword
from postroom.testing.faults import ClientFaults
from simulation.consumer.plan import Deployment, Event, OpenError, Redrive, host_of
from simulation.consumer.process import Process
from simulation.consumer.shared import Tenant

if TYPE_CHECKING:
    from simulation.consumer.schedule import Simulation

STARTING = 5.0
"""Seconds within which a consumer that is told to stop while it starts has to end."""
OPEN_ERRORS: dict[OpenError, Callable[[], Exception]] = {
    OpenError.UNKNOWN_TENANT: lambda: UnknownTenant("the registry has no data source"),
    OpenError.MISSING_VARIABLE: lambda: KeyError("BILLING_DB_HOST"),
    OpenError.NO_PERMISSION: lambda: PermissionError("permission denied for database"),
    OpenError.WRONG_PASSWORD: lambda: WrongPassword("password authentication failed"),
    OpenError.BUG: lambda: AttributeError("'NoneType' object has no attribute 'dsn'"),
}


class Happenings:
    """Lets events happen."""

    def __init__(self, simulation: "Simulation") -> None:
        self._world = simulation
        self.history = simulation.history
        self.plan = simulation.plan
        self.shared = simulation.shared
        self.databases = simulation.databases
        self.living = simulation.living

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def happen(self, event: Event) -> None:
        """Let one event happen, and end."""
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
                await self._disturb(process, ClientFaults(unavailable=1.0), event.seconds)
            case "block":
                self._block(event.seconds)
            case "stop starting":
                await self._stop_starting(event)
            case _ if process is not None:
                await self._end_one(event, process, place)

    async def deploy(self, deployment: Deployment) -> None:
        """Let a broken deployment begin, and the next one heal it."""
        await asyncio.sleep(deployment.start)
        self.history.note("event", "deployment", *deployment.tenants, deployment.error.value)
        for tenant in deployment.tenants:
            self.databases.misconfigure(tenant, OPEN_ERRORS[deployment.error])
        await asyncio.sleep(deployment.end - deployment.start)
        for tenant in deployment.tenants:
            self.databases.misconfigure(tenant, None)

    async def change_redrive(self, change: Redrive) -> None:
        """Change the queue's redrive policy, as an operator does."""
        await asyncio.sleep(change.at)
        self.history.note("event", "redrive policy", change.max_receives)
        dead = self._world.dead_letters
        assert dead is not None
        most = change.max_receives
        policy = "" if most is None else json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": most})
        for queue in self._world.queues:
            self._world.broker.set_attributes(queue, {"RedrivePolicy": policy})
        self.shared.policies.change(self._now(), most)

    def _block(self, seconds: float) -> None:
        """Block the event loop: of all processes, since there is one for all of them."""
        now = self._now()
        for process in self.living:
            if process is not None:
                process.disturbed = True
        self.shared.gaps.append((now, now + seconds))
        self._world.facts["blocked"] += 1
        self._world.loop.block(seconds)

    async def _freeze(self, process: Process, seconds: float) -> None:
        process.disturbed = True
        process.frozen += seconds
        self._world.facts["frozen"] += 1
        self._world.loop.freeze(process)
        await asyncio.sleep(seconds)
        process.stillness = (self._now() - seconds, self._now())
        self._world.loop.thaw(process)
        self.history.note(process.name, "thaws")

    async def _stop_starting(self, event: Event) -> None:
        """Start one more process with a queue that opens slowly, or never, and stop or cancel it meanwhile."""
        process = self._world.make_process(f"s{len(self._world.processes)}", ClientFaults(opening=event.seconds))
        process.start()
        assert process.main is not None
        await asyncio.sleep(event.grace)
        if process.consumer.running or process.main.done():
            await self._world.stop_process(process, None)
            return
        self.history.note(process.name, "stops while it starts")
        process.stopping_since = self._now()
        if cancel := event.index == 0:
            process.main.cancel()
        else:
            process.within(partial(process.consumer.stop, now=event.index == 1))
        gone = self.shared.blocked_since(process.stopping_since)
        await asyncio.wait([process.main], timeout=STARTING + gone)
        if not process.main.done():
            text = f"{process.name} goes on {STARTING:g} s after it was told to stop while it started"
            self.history.broken("stop", text)
            await process.crash()
            return
        error = None if process.main.cancelled() else process.main.exception()
        if process.main.cancelled() != cancel or not isinstance(error, PostroomError | None):
            self.history.broken("stop", f"{process.name}, stopped while it started, ended with {process.main!r}")
        await self._world.loop.settled()
        self._world.verdicts.check_nothing_left(process)

    async def _trouble(self, tenants: list[str], event: Event) -> None:
        self.shared.troubled.update(tenants)
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
        if event.what == "freeze":
            await self._freeze(process, event.seconds)
            return
        if event.what == "crash":
            await self._world.crash(process, place)
        elif event.what.startswith("cancel"):
            await self._world.stop_process(process, place, cancel=event.what)
        else:
            await self._world.stop_process(process, place, now=event.what == "stop now")
        await asyncio.sleep(event.grace)
        if self.living[place] is None and self._now() < self.plan.end - 1:
            self._world.start(place)

    async def _disturb(self, process: Process | None, faults: ClientFaults, seconds: float) -> None:
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
        if event.control != "limit rate":  # it may run all the same, and a stop waits for its next start
            self.shared.troubled.add(event.tenant)
        process.decide(event.control, event.tenant)
        if event.control == "drain":
            await self._drain(process, event.tenant, event.seconds)
        await asyncio.sleep(event.seconds)
        process.decide("resume", event.tenant)

    async def _drain(self, process: Process, tenant: str, seconds: float) -> None:
        try:
            await process.consumer.tenants.drain(Tenant(tenant), timeout=seconds)
        except (TimeoutError, ConfigurationError):  # or another event has resumed it meanwhile
            return
        if process.running(tenant) and process.stopping_since is None and process.gate.alive:
            self.history.broken("control", f"{process.name} says that {tenant} is drained, but works for it")
