"""The oracles of the core's schedules: what must hold whatever happens, and in whatever order.

========== =========================================================================================================
name       promise
========== =========================================================================================================
table      every message has one state, and the scheduler's gauges are what the states add up to
slots      never more handlers than slots, than a tenant's cap, or than one of a message group
S8         on a FIFO queue no handler starts before everything earlier in its group has ended
control    nothing of a paused tenant gets a slot
breaker    while a breaker is open nothing of its tenant gets a slot, and after its pause one probe: what was tried most
outage     nothing gets a slot while the pool leaves its tenant or host alone
attempts   no message ends in the dead-letter queue without a reason before it had the attempts it was promised
reason     the consumer rejects only what would end there anyway, has had its attempts, or is about to expire
expense    a message is parked once, at its first receive, and deferred only with receives that its attempts do not need
neighbour  a failed message costs those behind it no receive that they need, and is tried again after its backoff
proof      a message is parked only with proof of a noisy and a quiet tenant
retention  nothing is kept until SQS deletes it, here or away
wake-ups   a lane that may run has a slot, as long as one is free, or a time at which it is looked at again
stop       a stop gives back no message at its last receive, and leaves nothing behind
liveness   once everything works again, every message is handled, or rejected with a reason
memory     what is remembered is bounded, and forgotten when it is over
========== =========================================================================================================
"""

from collections import defaultdict
from collections.abc import Hashable
from random import Random
from typing import Any, cast

from postroom.consumer import availability as availability_module
from postroom.consumer.availability import ObstacleKind
from postroom.consumer.job import Job
from postroom.scheduling import State
from postroom.types import Settlement
from simulation.core.outside import EPSILON, Letter, Violation
from simulation.core.plan import CROWD_ENOUGH, MOST_AWAY, Plan
from simulation.core.world import World

_WINDOW = 15.0
"""Seconds for which the crowd may remember a tenant: its second window begins when the first one is over and a message
comes, which may take as long as a window."""
_LOOK = 0.001
"""Seconds for which the crowd of so few tenants is not looked at again."""
_MARGIN = 60.0
_LAST_CALL = 15.0
"""Seconds before its end in which a message that waits for a slot is rejected: a third of 60 less one look."""
_EVERY = 15.0
"""Seconds between two looks at retention."""


def _is_noisy(found: list[bool]) -> bool:
    """Whether so many of a tenant's messages found its share used up that it is noisy."""
    return sum(found) >= 5 and 2 * sum(found) >= len(found)


def _is_quiet(found: list[bool]) -> bool:
    """Whether nearly all of a tenant's messages found room."""
    within = len(found) - sum(found)
    return within >= 2 and 9 * sum(found) <= within


class Watch(World):
    """A world that believes nothing."""

    def __init__(self, plan: Plan, rng: Random) -> None:
        self.parked: set[Job] = set()
        self.last_receives: dict[Letter, int] = {}
        """Receives of messages when the consumer let them go at what it took for their last one."""
        self.until: dict[Letter, tuple[int, float]] = {}
        """Messages that failed and stay here: at which receive, and until when they back off."""
        self._allowed = plan.total
        super().__init__(plan, rng)

    def promised(self) -> int | None:
        """Return the attempts that a message is promised, worked out from the documents."""
        most, wanted = self.facts.max_receives, self.plan.retry.attempts
        if most is None:
            return wanted
        if wanted is not None:
            return min(wanted, most)
        return most if most < 5 else most - max(1, most // 4)

    # -- what is spent ------------------------------------------------------------------------------------------

    def parking(self, job: Job) -> None:
        """Watch expense and proof."""
        letter, most = self.letter(job), self.facts.max_receives
        self.parked.add(job)
        letter.parks += 1
        self.counts["parked"] += 1
        self.require(letter.parks == 1, "expense", f"message {letter.number} is parked {letter.parks} times")
        self.require(letter.receives == 1, "expense", f"message {letter.number} is parked at receive {letter.receives}")
        if most is not None:
            self.require(most >= 5, "expense", f"parked where maxReceiveCount is {most}")
            self.require(most - 1 >= (self.promised() or 0), "expense", "parked with a receive that was promised")
        self.require(self.facts.known, "expense", "parked where nothing is known of the queue")
        self.require(not self.plan.fifo, "expense", "parked on a FIFO queue")
        scout = self.plan.polling.scout
        self.require(scout is not False, "proof", "parked without scouting")
        if scout is True:
            self._watch_proof(job, letter)

    def _watch_proof(self, job: Job, letter: Letter) -> None:
        while self.arrivals and self.arrivals[0][0] < self.now - _WINDOW - EPSILON:
            self.arrivals.popleft()
        came = list(self.arrivals)
        latest = self.now - 5.0
        begins = sorted({when for when, *_ in came if when <= latest} | {latest})  # only the crowd knows which it is
        text = ""
        while came:  # whether there is proof may have been looked at a moment ago, when an earlier message came
            for begin in begins:
                problem = self._proof([(tenant, over) for when, tenant, over in came if when >= begin])
                mine = [over for when, tenant, over in self.arrivals if when >= begin and tenant == job.tenant]
                if not _is_noisy(mine):
                    problem = f"its tenant is not noisy: {sum(mine)} of {len(mine)} found its share used up"
                if problem is None:
                    return
                text = text or problem
            if came.pop()[0] < self.now - _LOOK:
                break
        self.require(False, "proof", f"message {letter.number} is parked: {text}")

    def _proof(self, came: list[tuple[Hashable, bool]]) -> str | None:
        """Return why there is no proof in what came."""
        tenants: defaultdict[Hashable, list[bool]] = defaultdict(list)
        for tenant, over in came:
            tenants[tenant].append(over)
        if sum(over for _, over in came) < CROWD_ENOUGH:
            return "too few messages found their tenant's share used up"
        if not any(map(_is_noisy, tenants.values())):
            return "no tenant is noisy"
        return None if any(map(_is_quiet, tenants.values())) else "no tenant is quiet"

    def giving_back(self, job: Job, settlement: Settlement, delay: float) -> None:
        """Watch expense, stop and retention."""
        if job.settlement is not None or job.lost:
            return
        letter, most = self.letter(job), self.facts.max_receives
        left = letter.sent_at + self.queue.retention - self.now
        if settlement is Settlement.RETRIED and most is not None and job.receives >= most:
            self.last_receives[letter] = letter.receives
        if settlement is Settlement.DEFERRED:
            away = len(self.core.away)
            self.require(away < MOST_AWAY, "memory", f"message {letter.number} goes where {away} are away")
            full = self.facts.refusal()
            self.require(full is None, "expense", f"message {letter.number} is hidden, and the queue is {full}")
        if settlement is Settlement.DEFERRED and job not in self.parked:
            self._watch_deferral(letter, job, most)
        elif settlement is Settlement.RETURNED and not self.core.closing and not job.started:
            letter.crowded += 1
        if settlement is Settlement.RETURNED and most is not None and letter.receives >= most:
            enough = letter.attempts + letter.excused >= (self.promised() or 0)
            known = letter.recent >= (self.promised() or 0)
            self.require(known or enough, "stop", f"message {letter.number} is returned at its last receive")
        if settlement is Settlement.DEFERRED and self.facts.redrive is not None:
            self.require(delay <= left, "retention", f"message {letter.number} is away for {delay:.1f} of {left:.1f} s")

    def _watch_deferral(self, letter: Letter, job: Job, most: int | None) -> None:
        scheduler = self.scheduler
        text = f"message {letter.number} is deferred at receive {letter.receives} of {most}, attempts {letter.recent}"
        self.counts["deferred"] += 1
        crowded = (
            scheduler.blocked >= self.plan.most_blocked
            or scheduler.figures(job.tenant).waiting >= self.plan.most_held
            or self.core.is_full
        )
        if crowded:
            self.counts["crowded"] += 1
            letter.crowded += 1
        if most is None:
            self.require(crowded or letter.receives <= 2, "expense", text)
            return
        self.require(letter.receives < most, "expense", f"{text}, its last one")
        needed = (self.promised() or 0) - letter.recent
        self.require(crowded or most - letter.receives >= needed, "expense", f"{text}, {needed} of which it needs")

    def rejects(self, job: Job, reason: str) -> None:
        """Watch that a rejection is due."""
        letter, most = self.letter(job), self.facts.max_receives
        # Without attempts= as many as the queue allows receives: a message that backs off here spends none.
        wanted = min(self.plan.retry.attempts or most or 0, most or 1_000) or None
        last = most is not None and letter.receives >= most
        had = wanted is not None and letter.attempts + letter.excused >= wanted
        if "its retention period" in reason:
            self.counts["expires"] += 1
        expires = letter.sent_at + self.queue.retention - self.now < _MARGIN + 2.0
        due = last or had or expires or job.lost or job.settlement is not None
        self.require(due, "reason", f"message {letter.number} is rejected at receive {letter.receives}: {reason}")

    def failed(self, job: Job, delay: float, taken_along: list[Job]) -> None:
        """Watch that a message costs those behind it no receive that they need, and when it is tried again."""
        if job.state is State.NEW:
            self.counts["backs off here"] += 1
            letter, most = self.letter(job), self.facts.max_receives
            self.until[letter] = letter.receives, self.now + delay
            text = f"message {letter.number} failed {letter.recent} times, of {most}, and is tried again"
            self.require(most is None or letter.recent < most or self.plan.changes, "neighbour", text)
        left = self.letter(job).sent_at + self.queue.retention - self.now
        could_stay = (
            not self.core.closing and not self.core.is_full and job.problem is None and delay < left - _MARGIN - 2.0
        )
        most = self.facts.max_receives
        if most is None or not could_stay or not (job.started or job.counted) or job.receives >= most:
            return
        for other in taken_along:
            receives = self.letter(other).receives
            text = f"message {other.message.id} goes back behind {job.message.id} at receive {receives} of {most}"
            self.require(most - receives >= (self.promised() or 0), "neighbour", text)

    def not_taken(self, job: Job) -> None:
        """Note a message that goes back at its last receive: it comes no more."""
        if self.facts.max_receives is not None and job.receives >= self.facts.max_receives:
            self.last_receives[self.letter(job)] = self.letter(job).receives

    def letter_ended(self, letter: Letter) -> None:
        """Watch how a message ends."""
        self.note(letter.fate or "?", letter.number)
        if letter.fate == "acked":
            self.require(letter.done, "attempts", f"message {letter.number} is deleted, and was not handled")
        elif letter.fate == "dead" and self.facts.known and letter.left_at >= self.policy_known_at:
            promised = self.promised() or 0
            had = letter.attempts + letter.excused + (letter.crowded if letter.excused else 0)
            text = f"message {letter.number} is a dead letter after {letter.attempts} of {promised} attempts"
            self.require(letter.done or had >= promised, "attempts", text)
        elif letter.fate == "expired" and self.facts.redrive is not None and not self.stopping:
            job = self.held.get(str(letter.number))
            if job is not None and job.state is State.WAITING and job.task is None and job not in self.rejecting:
                text = f"message {letter.number} expired here"
                if job.lane is not None and job.lane.blocked:
                    long = self.now - max(job.lane.blocked_since, job.received_at) > _MARGIN
                    self.require(not long, "retention", text)
                never_ran, long = not job.since, self.now - job.received_at > _LAST_CALL
                self.require(not (never_ran and long), "retention", f"{text}, and never had a slot")

    # -- what starts --------------------------------------------------------------------------------------------

    def granted(self, job: Job) -> None:
        """Watch who gets a slot."""
        availability, tenant = self.process.availability, job.tenant
        self.require(not self.tenants.is_paused(tenant), "control", f"tenant {tenant} is paused, and got a slot")
        figures, cap = self.scheduler.figures(tenant), self._cap_of(tenant)
        self.require(figures.running <= cap, "slots", f"{figures.running} of tenant {tenant} run, of {cap}")
        if self.tenants.is_sent_away(tenant):
            return  # it is sent to another queue, and needs neither the tenant's resources nor its handler
        breaker = availability._open.get(tenant)
        if breaker is not None:
            self.require(job.probe, "breaker", f"tenant {tenant} is broken, and a message that is no probe got a slot")
            others = [other for other in self.alive if other.probe and other.tenant == tenant and other is not job]
            # The probe of a breaker that was forgotten goes on, and the next breaker does not know of it.
            forgets = self.plan.remember < self.plan.tenants
            self.require(forgets or not others, "breaker", f"tenant {tenant} has {1 + len(others)} probes")
            waiting = [other for other in self.alive if other.tenant == tenant and other.state is State.WAITING]
            best = max((other.attempt for other in waiting if other.lane is not None), default=0)
            resumed = job.lease is not None
            text = f"the probe of tenant {tenant} is at attempt {job.attempt}, another message at {best}"
            self.require(resumed or best <= job.attempt, "breaker", text)
            until = breaker.until or 0.0
            self.require(until <= self.now + EPSILON, "breaker", f"tenant {tenant} was paused until {until:.3f}")
        if self.plan.with_pool and job.problem is None and job.lease is None:
            pause = self.pool.retry_after(tenant)
            self.require(pause <= 0, "outage", f"tenant {tenant} is left alone for {pause:.3f} s, and got a slot")
        if self.core.closing:
            short = self.source.attempts.is_short_of(job) or self.plan.changes or job.message.id in self.failed_in_stop
            self.require(short or job.task is not None, "stop", f"message {job.message.id} got a slot in a stop")

    def handler_starts(self, job: Job) -> None:
        """Watch order."""
        self.note("start", job.message.id)
        letter = self.letter(job)
        receives, until = self.until.pop(letter, (0, 0.0))
        if receives == letter.receives:
            soon = letter.sent_at + self.queue.retention < self.now + _MARGIN + 2.0
            # One behind it at its last receive that cannot be held any longer.
            most, group = self.facts.max_receives, [each for each in self.alive if each.group == job.group]
            soon = soon or (most is not None and any(each.receives >= most for each in group))
            text = f"message {letter.number} is tried again before {until:.3f}"
            self.require(self.now >= until - EPSILON or soon, "neighbour", text)
        if job.group is None:
            return
        number = self.letter(job).number
        for other in self.queue.open.values():
            if other.number >= number:
                return
            before = other.group == job.group and not other.done and other.sent_at <= self.now
            before = before and not self._gets_no_more(other)
            self.require(not before, "S8", f"message {number} starts before {other.number} of its group")

    def _gets_no_more(self, letter: Letter) -> bool:
        """Whether the consumer let a message go at its last receive, as far as it knew: it comes no more."""
        return letter.receives == self.last_receives.get(letter)

    # -- what is here -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Compare the scheduler with the states of the messages."""
        running, lined, suspended, behind = self._count_states()
        scheduler = self.scheduler
        gauges = scheduler.statistics()
        said = (gauges.running, gauges.waiting, gauges.suspended, scheduler.behind)
        seen = (sum(running.values()), sum(lined.values()) + behind, sum(suspended.values()), behind)
        if said != seen:
            raise Violation(f"table: running, waiting, suspended, behind: {said}, by their states {seen}")
        blocked = seen[2]
        for lane in scheduler._lanes.values():
            tenant = lane.tenant
            here = (lane.running, len(lane.waiting), lane.suspended)
            count = (running.get(tenant, 0), lined.get(tenant, 0), suspended.get(tenant, 0))
            if here != count:
                raise Violation(f"table: lane of tenant {tenant}: {here}, by states {count}")
            if lane.blocked:
                blocked += len(lane.waiting)
            if lane.blocked is not (lane in scheduler._blocked) or lane.paused is not self.tenants.is_paused(tenant):
                raise Violation(f"table: tenant {tenant} is blocked, or paused, and it is not known")
        if scheduler.blocked != blocked or len(scheduler._blocked) > len(scheduler._lanes):
            raise Violation(f"table: {scheduler.blocked} blocked, not {blocked}")
        self._watch_bounds()

    def _count_states(self) -> tuple[dict[Any, int], dict[Any, int], dict[Any, int], int]:
        running: dict[Any, int] = {}
        lined: dict[Any, int] = {}
        suspended: dict[Any, int] = {}
        groups: set[str] = set()
        behind = 0
        for job in tuple(self.alive):
            state, tenant = job.state, job.tenant
            if state is State.WAITING:
                if job.lane is not None:
                    lined[tenant] = lined.get(tenant, 0) + 1
                else:
                    behind += 1
                continue
            if state is State.NEW:  # it waits for a rejection
                if job.settlement is not None or job.lost:
                    del self.alive[job]
                continue
            if state is State.DONE:
                del self.alive[job]
                task: Any = job.task
                if job.turn is not None and not job.turn.done() and not task.cancelling:
                    raise Violation(f"table: {job} is over, and its task waits for its turn")
                continue
            counts = running if state is State.RUNNING else suspended
            counts[tenant] = counts.get(tenant, 0) + 1
            if job.task is None:
                raise Violation(f"table: {job} has no task")
            if job.group is not None:
                if job.group in groups:
                    raise Violation(f"slots: two of group {job.group} are at work")
                groups.add(job.group)
        return running, lined, suspended, behind

    def _watch_bounds(self) -> None:
        core = self.core
        resolving = sum(map(len, self.resolving.values()))
        said = core.resolving + core.unresolved
        if said != resolving:
            raise Violation(f"table: {said} are being resolved, not {resolving}")
        away, count = core.away, 0
        if away._callable or away._behind:
            listed = [*away._callable, *(absent for behind in away._behind.values() for absent in behind)]
            count = sum(away.known.get(absent.message_id) is absent for absent in listed)  # others came back
        # What leaves at the same time is counted when it is confirmed.
        if len(away) != count or count > MOST_AWAY + 60:
            raise Violation(f"memory: {len(away)} are away, or {count}")
        remembered, most = self.process.availability, availability_module.REMEMBER
        if len(remembered.failing) > most or len(remembered.known_outages) > most:
            raise Violation("memory: more is remembered of breakers and outages than may be")

    def watch_slots(self) -> None:
        """Watch after a dispatch that no slot is free for a lane that may run, and that nothing sleeps unseen."""
        scheduler = self.scheduler
        running = scheduler.statistics().running
        self._allowed = max(self.total, min(self._allowed, running))
        self.require(running <= self._allowed, "slots", f"{running} of {self.total} run")
        wake = scheduler.next_wake()
        for lane in scheduler._lanes.values():
            if lane.asleep:
                self._watch_sleep(lane, wake)
                continue
            if self.core.closing or lane.blocked or not lane.waiting or running >= self.total:
                continue
            cap = self._cap_of(lane.tenant)
            if lane.running >= cap:
                continue
            free = self.total - running
            reserved = min(self.plan.reserved, self.total - 1)
            kept = free <= reserved and lane.running > 0
            self.require(kept, "wake-ups", f"tenant {lane.tenant} waits beside {free} free slots")

    def _watch_sleep(self, lane: Any, wake: float | None) -> None:
        if lane.asleep_until is None:
            awaited = [job for job in self.alive if (job.probe or job.leads) and job.tenant == lane.tenant]
            alive = [job for job in awaited if job.task is not None]
            self.require(bool(alive), "wake-ups", f"tenant {lane.tenant} sleeps until its probe ends; it has none")
        else:
            known = wake is not None and wake <= lane.asleep_until + EPSILON
            self.require(known, "wake-ups", f"tenant {lane.tenant} sleeps, and nothing wakes it")
            # The end of a message dispatches: nothing else has to, while one is on its way there.
            rejecting = any(cast("Any", job.task).stage == "rejecting" for job in self.jobs)
            busy = rejecting or self.scheduler.statistics().running >= self.total
            timer = self._waking is not None or self.stopping or busy or lane.asleep_until <= self.now
            self.require(timer, "wake-ups", "no timer runs")

    def adjust(self, total: int, per_tenant: int) -> None:
        """Change how much runs at once: what runs goes on."""
        self._allowed = max(self.scheduler.statistics().running, total)
        super().adjust(total, per_tenant)

    def change_policy(self, most: int | None) -> None:
        """Change the redrive policy. The consumer learns of it later."""
        self.note("redrive", most)
        self.queue.set_most(most)
        self.policy_known_at = self.now + 1e9
        self.later(self.rng.choice([0.0, 2.0, 60.0]), self._learn)

    def _learn(self) -> None:
        self.policy_known_at = self.now
        if self.plan.known:
            self.facts.redrive = self.queue.redrive

    def _cap_of(self, tenant: Any) -> int:
        rule = self.tenants._rules.get(tenant)
        if rule is not None and rule.concurrency is not None:
            return rule.concurrency
        caps = self.plan.caps or {}
        return caps.get(tenant, self.per_tenant)

    # -- at the end ---------------------------------------------------------------------------------------------

    def nothing_is_left(self, oracle: str) -> None:
        """Watch that nothing is here."""
        scheduler = self.scheduler
        self.check()
        left = [job for job in self.alive if job.state is not State.DONE]
        self.require(not left, oracle, f"{len(left)} messages are left in the table: {left[:3]}")
        self.require(not self.jobs, oracle, f"{len(self.jobs)} tasks are left")
        self.require(scheduler.size == scheduler.blocked == scheduler.behind == 0, oracle, "gauges are not zero")
        self.require(not scheduler._lanes and not len(scheduler._groups), oracle, "lanes or groups are left")
        self.require(not scheduler._blocked, oracle, "blocked lanes are left")
        self.require(not self.core.actions, oracle, "actions are left")

    def nothing_is_remembered(self) -> None:
        """Watch that what is over is forgotten, once every message has ended."""
        attempts, availability = self.source.attempts, self.process.availability
        gone = {str(letter.number) for letter in self.queue.letters if letter.fate in {"acked", "rejected"}}
        strangers = {str(letter.number) for letter in self.queue.letters if letter.excused or letter.done}
        for counts in (attempts._failed, attempts._spent, attempts._poison):
            left = (counts.keys() & gone) - strangers
            self.require(not left, "memory", f"messages that have ended are remembered: {sorted(left)[:3]}")
        for tenant, works in self.last.items():
            outage = availability.outage(tenant) if works else None
            self.require(outage is None, "memory", f"tenant {tenant} works, and is said to be unavailable: {outage}")
        self.core.sweep(self.now + 100_000.0)  # last: it forgets tenants of which nothing has come for long
        self.require(not len(self.core.away), "memory", f"{len(self.core.away)} are away, and nothing is left")
        self.require(not self.core.away._behind, "memory", "obstacles of what was away are left")
        known = availability.troubled_tenants()
        self.require(not known, "memory", f"nothing is left of tenants that are said to be unavailable: {known}")
        hosts = [each.name for each in availability.known_outages if each.kind is ObstacleKind.HOST]
        self.require(not hosts, "memory", f"nothing is on hosts that are said to be unavailable: {hosts}")


__all__ = ["Watch"]
