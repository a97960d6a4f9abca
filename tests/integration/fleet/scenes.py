"""What happens to a fleet of real processes, and how long it takes until everything flows again."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from integration.faults.tcp_proxy import Mode
from integration.fleet.judge import Judge
from integration.fleet.site import Site

Times = dict[str, list[float]]
"""Seconds, by what was waited for."""
Scene = Callable[[Site, Judge, Random, Times], Awaitable[None]]
_PATIENCE: Final = 30.0
"""Seconds within which everything has to flow again."""


def _note(times: Times, what: str, seconds: float) -> None:
    times.setdefault(what, []).append(seconds)


async def kill(site: Site, judge: Judge, rng: Random, times: Times) -> None:
    """Kill a replica that runs handlers: its slots are back after a lease and a tick. Another one starts."""
    while not await site.busy_with(name := rng.choice(site.alive)):
        await site.pass_time(0.02)
    at = await site.kill(name)
    held = await site.busy_with(name)
    until = await site.until_full(held, at + 0.1, site.plan.lease + _PATIENCE)
    for seconds in until.values():
        _note(times, "slots back after kill -9", seconds + 0.1)
    await site.start()
    await judge.look()


async def freeze(site: Site, judge: Judge, rng: Random, times: Times) -> None:
    """Freeze a replica for longer than a lease, in the middle of whatever it does."""
    name = rng.choice(site.alive)
    at = time.time()
    site.freeze(name)
    await site.pass_time(site.plan.lease + 1.0)
    for seconds in (await site.until_full(list(site.plan.names), at + 0.9 * site.plan.lease, _PATIENCE)).values():
        _note(times, "slots back after a freeze", seconds + 0.9 * site.plan.lease)
    site.thaw(name)
    await site.pass_time(1.0)
    await judge.look()


async def flush(site: Site, judge: Judge, rng: Random, times: Times) -> None:
    """Empty the store."""
    at = time.time()
    site.store.command("FLUSHALL")
    await _flows(site, judge, at, times, "full again after a flush")


async def restart(site: Site, judge: Judge, rng: Random, times: Times) -> None:
    """Kill the store, which keeps nothing, and start it again within half a lease."""
    at = time.time()
    await asyncio.to_thread(site.store.kill)
    await site.pass_time(rng.uniform(0.0, 0.5) * site.plan.lease)
    await asyncio.to_thread(site.store.restart)
    await _flows(site, judge, at, times, "full again after a restart")


async def pause(site: Site, judge: Judge, rng: Random, times: Times) -> None:
    """Have one replica pause a tenant: all learn of it in a tick and their calls to the store. Then resume it."""
    tenant, (first, second) = rng.choice(site.plan.names), rng.sample(site.alive, 2)
    for name in site.alive:  # one may just have been started
        await site.until_consuming(name)
    at = site.tell(first, f"pause {tenant}")
    async with asyncio.timeout(_PATIENCE):
        while len(learned := site.learned(tenant, at)) < len(site.alive):
            await site.pass_time(0.2)
    await site.pass_time(site.plan.lease)
    text = "SELECT extract(epoch FROM max(decided))::float8 - $1 FROM runs"
    last = await site.databases[tenant].fetchval(text, at)
    _note(times, "last start after a pause", last)
    for known, written, calls in learned.values():
        _note(times, "a pause: from the call to the store's record of it", written - at)
        _note(times, "a pause: from that to a replica that knows it", known - written)
        _note(times, "a pause: of that, the replica's calls to the store", calls)
        _note(times, "a pause: of that, what is left, at most a tick", known - written - calls)
    _note(times, "last start after all know of a pause", last - max(known for known, _, _ in learned.values()) + at)
    at = site.tell(second, f"resume {tenant}")
    _note(times, "full again after a resume", (await site.until_full([tenant], at, _PATIENCE))[tenant])
    await judge.look()


async def cut_short(site: Site, judge: Judge, rng: Random, times: Times) -> None:
    """Cut some replicas off for less than a lease, in both ways in which networks do it: the cap holds."""
    for mode in (Mode.RESET, Mode.BLACK_HOLE):
        names = rng.sample(site.alive, rng.randint(1, len(site.alive) - 1))
        at = time.time()
        site.cut(names, mode)
        await site.pass_time(rng.uniform(0.1, 0.8) * site.plan.lease)
        site.heal(names)
        await _flows(site, judge, at, times, f"full again after a short cut ({mode})")


async def cut_long(site: Site, judge: Judge, rng: Random, times: Times) -> None:
    """Cut some replicas off for longer than a lease: each of them works with its part, beside what the others use."""
    for mode in (Mode.RESET, Mode.BLACK_HOLE):
        names = rng.sample(site.alive, rng.randint(1, len(site.alive) // 2))
        with judge.cut_off():
            site.cut(names, mode)
            await site.pass_time(2.5 * site.plan.lease)
            site.heal(names)
            at = time.time()
            await site.pass_time(site.plan.lease + site.plan.tick)
        _note(times, f"last start by the fallback after a long cut ({mode})", await site.last_by_fallback(at))
        await site.until_full(list(site.plan.names), at + site.plan.lease, _PATIENCE)
    await judge.look()


async def gone(site: Site, judge: Judge, rng: Random, times: Times) -> None:
    """Take the store away for a minute."""
    await _gone(60.0, site, judge, times)


async def gone_shortly(site: Site, judge: Judge, rng: Random, times: Times) -> None:
    """Take the store away for a few leases."""
    await _gone(3 * site.plan.lease, site, judge, times)


async def _gone(seconds: float, site: Site, judge: Judge, times: Times) -> None:
    with judge.cut_off():
        await asyncio.to_thread(site.store.kill)
        await site.pass_time(seconds)
        before = judge.starts
        await judge.look()
        _note(times, "starts per second without the store", (judge.starts - before) / seconds)
        await asyncio.to_thread(site.store.restart)
        at = time.time()
        await site.pass_time(site.plan.lease + site.plan.tick)
    _note(times, "last start by the fallback after the store is back", await site.last_by_fallback(at))
    for later in (await site.until_full(list(site.plan.names), at + 0.1, _PATIENCE)).values():
        _note(times, "full again after the store is back", later + 0.1)
    await judge.look()


async def calm(site: Site, judge: Judge, rng: Random, times: Times) -> None:
    """Let everything work for a while."""
    at, before = time.time(), judge.starts
    await site.pass_time(5.0)
    await judge.look()
    _note(times, "starts per second", (judge.starts - before) / (time.time() - at))


async def _flows(site: Site, judge: Judge, at: float, times: Times, what: str) -> None:
    """Wait until every tenant uses its whole cap again, and for as long as leases may be out."""
    await site.pass_time(max(0.0, at + 0.2 - time.time()))
    for seconds in (await site.until_full(list(site.plan.names), at + 0.2, _PATIENCE)).values():
        _note(times, what, seconds + 0.2)
    await site.pass_time(site.plan.lease + 2 * site.plan.tick)
    await judge.look()


SCENES: Final[dict[str, Scene]] = {
    each.__name__.replace("_", "-"): each
    for each in (calm, kill, freeze, flush, restart, pause, cut_short, cut_long, gone_shortly, gone)
}
