"""The store of a fleet, and its limits against those of one replica and of a tenant's database."""

import asyncio
from collections.abc import Iterator
from typing import Any, Final

from postroom.consumer import Consumer
from postroom.display import queue_name
from postroom.fleet import Fleet, StoreInfo, ValkeyState
from postroom.inspection.findings import Deployment, Finding, error, ok, unknown, warning
from postroom.options import Concurrency
from postroom.redaction import describe
from postroom.resources import ResourcePool
from postroom.resources.providers import known_of

_PATIENCE: Final = 5.0
"""Seconds that the store has to answer."""
_OLDEST: Final = 6
"""The first version of Redis with scripts that can tell the time and change something after that."""
_OFF: Final = 5.0
"""Seconds by which the store's clock may be off before it is worth a word."""


async def look_at_fleet(consumer: Consumer[Any, Any], deployment: Deployment, *, offline: bool) -> list[Finding]:
    """Return what is the case with a consumer's fleet. It writes nothing into the store."""
    fleet = consumer.settings.fleet
    if fleet is None:
        return []
    findings = list(_limits(consumer, fleet, deployment))
    return findings if offline else [*findings, *await _store(fleet, fleet.name or queue_name(consumer.queue))]


def _limits(consumer: Consumer[Any, Any], fleet: Fleet, deployment: Deployment) -> Iterator[Finding]:
    cap, replicas = fleet.per_tenant, deployment.replicas
    if cap is None:
        if fleet.rate is None and fleet.overrides is None:
            text = "no limit is given, so only decisions and outages are shared"
            yield warning("fleet", text, "say Fleet(..., per_tenant=20), if a tenant should not have every slot")
        return
    concurrency: Concurrency = consumer.settings.concurrency
    own = min(concurrency.per_tenant, concurrency.total)
    if replicas == 1:
        return
    if cap >= replicas * own:
        text = f"{replicas} x {own} handlers of one tenant never reach Fleet(per_tenant={cap})"
        yield warning(
            "fleet", text, f"lower per_tenant, raise Concurrency(per_tenant=), or say --replicas above {cap // own}"
        )
    elif cap < replicas:
        text = f"Fleet(per_tenant={cap}) is less than {replicas} replicas: a busy tenant's slots go round"
        yield warning("fleet", text, "it costs receives and deferred messages; run fewer replicas with more slots each")
    else:
        yield ok("fleet", f"at most {cap} handlers of one tenant, of {replicas} x {own}")
    yield from _database(consumer, cap, deployment)


def _database(consumer: Consumer[Any, Any], cap: int, deployment: Deployment) -> Iterator[Finding]:
    """Compare what one tenant opens in all replicas with what its server takes: a cap does not bound connections."""
    resources: Any = consumer.settings.resources
    most, replicas = deployment.max_connections, min(cap, deployment.replicas)
    if resources is None or most is None:
        return
    told = resources.weight if isinstance(resources, ResourcePool) else known_of(resources)[0]
    weight = told if isinstance(told, int) else 1
    if replicas * weight > most:
        text = f"one tenant, in {replicas} replicas, opens {replicas * weight} connections, and its server takes {most}"
        yield error("fleet", text, f"say Fleet(per_tenant={max(1, most // weight)}), or a weight of fewer connections")
    else:
        yield ok("fleet", f"one tenant opens at most {replicas * weight} connections in all replicas, of {most}")


async def _store(fleet: Fleet, name: str) -> list[Finding]:
    state = fleet.state
    try:
        async with asyncio.timeout(_PATIENCE):
            alive = len(await state.replicas(name))
            info = await state.look() if isinstance(state, ValkeyState) else None
    except TimeoutError:
        text = f"the store did not answer within {_PATIENCE:g} s"
        return [error("fleet", text, f"check host, port and network; until then fallback={fleet.fallback!r} applies")]
    except Exception as problem:  # whatever a client raises
        text = f"the store cannot be used: {describe(problem)}"
        advice = "check host, port, password, and that its user may run scripts (EVALSHA, EVAL)"
        return [error("fleet", text, f"{advice}; until then fallback={fleet.fallback!r} applies")]
    finally:
        await state.aclose()
    found = ok("fleet", f"the store answers; replicas alive as {name!r} now: {alive}")
    return [found] if info is None else [found, *_server(fleet, info)]


def _server(fleet: Fleet, info: StoreInfo) -> Iterator[Finding]:
    if info.version is None:
        yield unknown("fleet", "the store does not say what it is", "see that its user may ask INFO, or look there")
        return
    if info.version < (_OLDEST,):
        text = f"the store is version {'.'.join(map(str, info.version))}"
        yield error("fleet", text, f"use Valkey, or Redis {_OLDEST} and up")
    yield from _memory(info)
    if not info.persistent:
        text = "the store keeps nothing on disk: decisions are lost if it restarts while no replica runs"
        yield warning("fleet", text, "set appendonly yes, or make decisions that have to last elsewhere too")
    if info.seconds > fleet.tick / 4:
        text = f"an answer takes {info.seconds * 1e3:.0f} ms, of a tick of {fleet.tick:g} s"
        yield warning("fleet", text, "use a store that is nearer, or a longer tick")
    if info.offset is not None:
        text = (
            f"an answer takes {info.seconds * 1e3:.1f} ms; the store's clock is off by {info.offset:+.1f} s from here"
        )
        if abs(info.offset) > _OFF:
            advice = "leases are durations and do not care; a step of its clock does: let it be kept by NTP, slewed"
            yield warning("fleet", text, advice)
        else:
            yield ok("fleet", text)


def _memory(info: StoreInfo) -> Iterator[Finding]:
    if info.limit and info.policy != "noeviction":
        text = f"the store evicts keys when its {info.limit / 2**20:.0f} MiB are full ({info.policy})"
        advice = "slots that are evicted are granted twice: set maxmemory-policy noeviction, or use a server of its own"
        yield error("fleet", text, advice)
    elif info.policy not in {None, "noeviction"}:
        text = f"the store evicts nothing while it has no maxmemory; its policy is {info.policy}"
        yield warning("fleet", text, "set maxmemory-policy noeviction: slots that are evicted are granted twice")
