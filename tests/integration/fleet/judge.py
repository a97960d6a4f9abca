"""Judges every start by what the tenant's database ran at that moment, as ``pg_stat_activity`` showed it.

Replicas that hold slots never run more than the cap together. One that did not reach the store for a lease runs its
part beside that, as the documentation says: it writes with each start how much that is. A start is under a slot or not
from when the scheduler decides it, which a replica stamps, whatever happens until its handler is entered.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from integration.fleet.site import Site

_LATE: Final = 0.5
"""Seconds after which a row that was begun is there."""
_ROWS: Final = 100
"""Rows that are judged in one go: the networks of the replicas are in this process, too."""


@dataclass(frozen=True)
class Run:
    """One handler, as its tenant's database saw its start."""

    replica: str
    decided: float
    started: float
    part: int | None
    """How many handlers of the tenant its replica might run without the store; None while it held slots."""


def _run_of(row: Any) -> Run:
    return Run(row["replica"], row["decided"], row["started"], row["part"])


@dataclass
class Judge:
    """What was counted so far, over all tenants."""

    site: Site
    starts: int = 0
    over: list[str] = field(default_factory=list)
    """Starts that were not allowed."""
    excess: Counter[str] = field(default_factory=Counter)
    """Starts above the cap that the documentation allows, by why."""
    most: Counter[str] = field(default_factory=Counter)
    """The most handlers that a tenant ran, with slots and in all."""
    _cuts: list[list[float]] = field(default_factory=list)
    _last: Counter[str] = field(default_factory=Counter)
    _by_pid: dict[tuple[str, int], Run] = field(default_factory=dict)

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Replicas are cut off from the store on purpose for so long that their slots run out."""
        cut = [time.time(), float("inf")]
        self._cuts.append(cut)
        yield
        cut[1] = time.time()

    async def look(self) -> int:
        """Judge what was started since the last look. Returns how many starts that were."""
        before, until = self.starts, time.time() - _LATE
        text = f"""SELECT id, replica, part, pid, others, extract(epoch FROM decided)::float8 AS decided,
                          extract(epoch FROM started)::float8 AS started
                   FROM runs WHERE id > $1 AND started < to_timestamp($2) ORDER BY id LIMIT {_ROWS}"""
        for tenant, database in self.site.databases.items():
            while rows := await database.fetch(text, self._last[tenant], until):
                self._last[tenant] = rows[-1]["id"]
                for row in rows:
                    self._by_pid[tenant, row["pid"]] = _run_of(row)
                    beside = [self._by_pid.get((tenant, pid)) for pid in row["others"]]
                    if 1 + len(beside) > self.site.plan.cap:  # what is known by now may have ended, and another begun
                        beside = await self._exactly(database, row)
                    self._judge(tenant, row, beside)
                await asyncio.sleep(0)
        return self.starts - before

    async def _exactly(self, database: Any, row: Any) -> list[Run | None]:
        """Return which handler each session beside a start had, also in its first statement, and in its last.

        The last one stamps its end before it is over: a start may see it run, and be a moment later than that stamp.
        """
        text = """SELECT DISTINCT ON (pid) pid, replica, part, extract(epoch FROM decided)::float8 AS decided,
                         extract(epoch FROM started)::float8 AS started
                  FROM runs WHERE pid = ANY($1::int[]) AND started < to_timestamp($2) + interval '0.1 s'
                       AND coalesce(ended >= to_timestamp($2) - interval '0.1 s', true)
                  ORDER BY pid, coalesce(ended >= to_timestamp($2), true) DESC,
                           CASE WHEN coalesce(ended >= to_timestamp($2), true) THEN started END, ended DESC"""
        runs = {each["pid"]: _run_of(each) for each in await database.fetch(text, row["others"], row["started"])}
        return [runs.get(pid) for pid in row["others"]]

    def _judge(self, tenant: str, row: Any, beside: list[Run | None]) -> None:
        run = _run_of(row)
        self.starts += 1
        running = [run, *(other for other in beside if other is not None and self._counts(other, run.started))]
        unknown = sum(other is None for other in beside)  # its row is not there yet, or its handler was killed
        cap = self.site.plan.cap
        slots = unknown + sum(each.part is None for each in running)
        outlived = sum(each.part is None and self._outlived(each, run.started) for each in running)
        slots -= outlived
        woke = any(run.decided < since <= run.started for since, _ in self.site.lives[run.replica].frozen)
        if not woke:
            self.most["under slots"] = max(self.most["under slots"], slots)
        self.most["in all"] = max(self.most["in all"], unknown + len(running))
        if unknown + len(running) <= cap:
            return
        if woke:
            self.excess["decided before a freeze, run after it"] += 1
        elif slots <= cap and self._keep_to_their_parts(running):
            self.excess[self._why(run, outlived)] += 1
        else:
            self.over.append(f"{tenant}: {run} was beside {running[1:]} and {unknown} more")

    def _why(self, run: Run, outlived: int) -> str:
        if outlived:
            return "beside handlers that had outlived their lease"
        cut = any(since <= run.started <= until for since, until in self._cuts)
        return "while replicas were cut off" if cut else "while this machine was too slow for the store"

    def _outlived(self, run: Run, at: float) -> bool:
        """Whether a handler went on beyond a lease that its replica could not renew: nothing cancels it (F7)."""
        lease = self.site.plan.lease
        late = run.decided + 0.9 * lease
        return late <= at and any(since <= late and run.decided <= until for since, until in self._cuts)

    @staticmethod
    def _keep_to_their_parts(running: list[Run]) -> bool:
        parts: dict[str, int] = {}
        for run in running:
            if run.part is not None:
                parts[run.replica] = max(run.part, parts.get(run.replica, 0))
        each = Counter(run.replica for run in running if run.part is not None)
        return all(each[replica] <= part for replica, part in parts.items())

    def _counts(self, run: Run, at: float) -> bool:
        """Whether a handler counts. One that a frozen replica could not end does not, once its lease is over."""
        frozen, lease = self.site.lives[run.replica].frozen, self.site.plan.lease
        return not any(run.decided < since and since + 0.9 * lease <= at for since, _ in frozen)
