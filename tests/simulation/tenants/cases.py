"""What a black-holed tenant, and a dead host with many tenants, cost everybody else: the runs and what they show."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

from postroom import PoolLimits
from simulation.tenants.world import Attempt, Outcome, Plan, Servers, Stream, Tenant, Trouble, simulate

WINDOW = 2.0
DARK = Tenant("dark", "dark-host")
WELL = tuple(Tenant(f"well-{number}", "well-host") for number in range(20))


def _is_well(tenant: Tenant) -> bool:
    return tenant.host == "well-host"


@dataclass(frozen=True, kw_only=True)
class BlackHole:
    """One tenant with half of the traffic, of which nothing is ever answered."""

    slots_held: int
    """The most slots that it held when any other was granted."""
    p99: float
    """Of the others, in seconds."""
    p99_if_it_were_well: float
    p99_without_it: float
    opens: int
    early_opens: int
    """Opens that began before the pause announced with the last failure was over."""
    handled: float
    """The part of the others' messages that were handled."""

    @property
    def ratio(self) -> float:
        """The others' 99th percentile, over that of the run where the tenant is well."""
        return self.p99 / self.p99_if_it_were_well

    @property
    def ratio_without(self) -> float:
        """The same, over that of the run where the tenant is not there."""
        return self.p99 / self.p99_without_it


def black_hole(
    seed: int, *, trouble: Trouble = Trouble.OPENS_HANG, begin: float = 0.0, seconds: float = 20.0, rate: float = 200.0
) -> BlackHole:
    """Run the three cases with the same traffic of the others."""
    others = Stream(tenants=WELL, rate=rate)
    its = Stream(tenants=(DARK,), rate=rate)

    def run(streams: tuple[Stream, ...], *, dark: bool) -> tuple[Outcome, Servers]:
        plan = Plan(
            seed=seed,
            streams=streams,
            seconds=seconds,
            settle=2.0,
            trouble=((begin, DARK.name, trouble),) if dark else (),
            suspects=lambda tenant: tenant == DARK,
            slots=24,
            per_tenant=16,
            handler_timeout=2.0,
        )
        return simulate(plan)

    dark, servers = run((others, its), dark=True)
    well, _ = run((others, its), dark=False)
    without, _ = run((others,), dark=False)
    tries = [tried for tried in servers.attempts if tried.tenant == DARK]
    fails = [failed for failed in servers.failures if failed.tenant == DARK]
    return BlackHole(
        slots_held=dark.held_at_grant,
        p99=dark.percentile(0.99, _is_well, since=1.0),
        p99_if_it_were_well=well.percentile(0.99, _is_well, since=1.0),
        p99_without_it=without.percentile(0.99, _is_well, since=1.0),
        opens=len(tries),
        early_opens=_early(tries, fails),
        handled=sum(_is_well(done.tenant) for done in dark.done)
        / sum(count for tenant, count in dark.sent.items() if _is_well(tenant)),
    )


def _early(tries: list[Attempt], fails: list[Attempt]) -> int:
    """Count tries that began while another was under way or its pause was not over."""
    early = 0
    for before, tried in pairwise(tries):
        ended = next((failed for failed in fails if failed.at == before.at), None)
        if ended is None or ended.failed_at is None or tried.at < ended.failed_at + ended.pause - 1e-6:
            early += 1
    return early


@dataclass(frozen=True, kw_only=True)
class DeadHost:
    """Many tenants on a host that dies, beside others on a host that lives."""

    failed_before_trip: int
    """Tenants with opens that had failed when all the others were told."""
    failed_opens: int
    """Those, what was under way then, and probes."""
    most_opening: int
    """Opens at once, from the end of the trouble on."""
    recovered_after: float
    """Seconds after which, in any two seconds, as many messages are handled as are sent, less 5%."""
    caught_up_after: float
    """Seconds until 99% of the messages sent during the trouble were handled."""
    others_before: float
    """The 99th percentile of the other host's tenants, in seconds."""
    others_during: float
    others_after: float
    dead_letters: int
    handled: float
    most_held: int


def dead_host(
    seed: int,
    *,
    trouble: Trouble = Trouble.REFUSING,
    max_receives: int | None = None,
    tenants: int = 2_000,
    rate: float = 400.0,
    before: float = 15.0,
    outage: float = 30.0,
    after: float = 30.0,
    handler_timeout: float = 5.0,
    check: bool = False,
) -> DeadHost:
    """Let a host die for a while under traffic."""
    on_it = tuple(Tenant(f"a{number}", "dies") for number in range(tenants))
    others = tuple(Tenant(f"b{number}", "lives") for number in range(50))
    end = before + outage
    plan = Plan(
        seed=seed,
        streams=(Stream(tenants=on_it, rate=rate), Stream(tenants=others, rate=rate / 4)),
        seconds=end + after,
        settle=3.0,
        trouble=((before, "dies", trouble), (end, "dies", None)),
        limits=PoolLimits(budget=tenants + 200),
        max_receives=max_receives,
        handler_timeout=handler_timeout,
        check=check,
    )
    outcome, servers = simulate(plan)
    return _judge_dead_host(outcome, servers, before, end)


def _between(times: list[float], start: float) -> int:
    return bisect_left(times, start + WINDOW) - bisect_left(times, start)


def _judge_dead_host(outcome: Outcome, servers: Servers, begin: float, end: float) -> DeadHost:
    def is_on_it(tenant: Tenant) -> bool:
        return tenant.host == "dies"

    def others(start: float, stop: float) -> float:
        found = sorted(d.at - d.sent for d in outcome.done if not is_on_it(d.tenant) and start <= d.sent < stop)
        return found[int(0.99 * len(found))]

    sent = sorted(at for tenant, at in outcome.sent_at if is_on_it(tenant))
    missed = sorted(done.at for done in outcome.done if is_on_it(done.tenant) and begin <= done.sent < end)
    times = sorted(done.at for done in outcome.done if is_on_it(done.tenant))
    last = sent[-1]
    slow = [
        start
        for start in (end + 0.1 * step for step in range(int((last - end - WINDOW) * 10)))
        if _between(times, start) < 0.95 * _between(sent, start)
    ]
    return DeadHost(
        failed_before_trip=servers.failed_before_trip["dies"],
        failed_opens=len(servers.failures),
        most_opening=servers.most_opening["dies"],
        recovered_after=max(slow, default=end - 0.1) + 0.1 - end,
        caught_up_after=missed[int(0.99 * len(missed))] - end,
        others_before=others(begin / 3, begin),
        others_during=others(begin, end),
        others_after=others(end, last),
        dead_letters=outcome.dead_letters,
        handled=len(outcome.done) / sum(outcome.sent.values()),
        most_held=max(held for _, held in outcome.held),
    )
