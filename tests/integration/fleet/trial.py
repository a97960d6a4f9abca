"""Put a fleet of real processes through everything that happens to fleets, and count, a piece at a time.

    PYTHONPATH=tests python -m integration.fleet.trial [--minutes 3] [--scenes kill,freeze] [--tally FILE] [--seed 1]

With ``--tally`` it adds to what earlier pieces counted, and goes on with the scenes that they had no time for;
``--starts 100000`` repeats pieces until so many starts were judged. It ends with 1 if anything was not as promised.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec

from integration.fleet.judge import Judge
from integration.fleet.scenes import SCENES, Times
from integration.fleet.site import Plan, Site, Where, site
from postroom.testing.postgres import PostgresServer
from postroom.testing.valkey import ValkeyServer

_USUAL = "calm,kill,freeze,flush,restart,pause,cut-short,cut-long,gone-shortly"


class Tally(msgspec.Struct):
    """What all pieces together counted."""

    pieces: int = 0
    starts: int = 0
    processes: int = 0
    over: list[str] = msgspec.field(default_factory=list[str])
    wrong: list[str] = msgspec.field(default_factory=list[str])
    """Whatever else was not as promised."""
    excess: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    most: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    seconds: dict[str, list[float]] = msgspec.field(default_factory=dict[str, list[float]])
    todo: list[str] = msgspec.field(default_factory=list[str])
    """Scenes that come next."""
    told: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """What the replicas that were stopped said that they did."""

    def add(self, judge: Judge, times: Times, wrong: list[str]) -> None:
        """Add one piece."""
        self.pieces += 1
        self.starts += judge.starts
        self.processes += len(judge.site.lives)
        self.over += judge.over
        self.wrong += wrong
        self.excess = dict(Counter(self.excess) + judge.excess)
        for kind, most in judge.most.items():
            self.most[kind] = max(most, self.most.get(kind, 0))
        for what, seconds in times.items():
            self.seconds.setdefault(what, []).extend(seconds)
        for report in judge.site.reports:
            for what in ("succeeded", "cancelled", "overruns", "exchanges", "failed_exchanges"):
                self.told[what] = self.told.get(what, 0) + report[what]
            self.told["failed"] = self.told.get("failed", 0) + sum(report["failed"].values())

    def lines(self) -> list[str]:
        """Return everything as text."""
        lines = [
            f"{self.starts:,} starts, {self.processes} processes, {self.pieces} pieces; {len(self.over)} not allowed",
            *(f"  the most of one tenant {kind}: {most}" for kind, most in sorted(self.most.items())),
            *(f"  above the cap, {why}: {count}" for why, count in sorted(self.excess.items())),
            "  replicas that were stopped: " + ", ".join(f"{what} {count:,}" for what, count in self.told.items()),
        ]
        for what, seconds in sorted(self.seconds.items()):
            ordered = sorted(seconds)
            p50 = ordered[len(ordered) // 2]
            lines.append(f"  {what}: {len(ordered)} times, p50 {p50:.2f}, most {ordered[-1]:.2f}")
        return lines + [f"  NOT AS PROMISED: {text}" for text in (*self.over, *self.wrong)]


async def piece(plan: Plan, where: Where, tally: Tally, options: argparse.Namespace) -> None:
    """Run one piece: scene after scene, as long as there is time; without minutes, what there is to do."""
    names, seed = options.scenes.split(","), options.seed + tally.pieces
    rng, times, wrong, began = Random(seed), Times(), list[str](), time.monotonic()
    async with site(plan, where) as here:
        judge = Judge(here)
        await judge.look()
        print(f"{plan.replicas} replicas work: {time.monotonic() - began:.1f} s, {judge.starts:,} starts", flush=True)
        began = time.monotonic()
        while time.monotonic() < began + options.minutes * 60 or (tally.todo and not options.minutes):
            tally.todo = tally.todo or rng.sample(names, len(names))
            name = tally.todo.pop()
            since, before, over, above = time.monotonic(), judge.starts, len(judge.over), judge.excess.total()
            try:
                await SCENES[name](here, judge, rng, times)
            except TimeoutError:
                wrong.append(f"{name}: everything did not flow again in time (seed {seed})")
            text = f"  {name:13} {time.monotonic() - since:5.1f} s, {judge.starts - before:6,} starts"
            more = f"{judge.excess.total() - above:,} above the cap by the fallback"
            print(f"{text}, {more}, {len(judge.over) - over} not allowed", flush=True)
        wrong += await _end(here, judge)
    tally.add(judge, times, wrong)


async def _end(here: Site, judge: Judge) -> list[str]:
    """Let everything that was sent be done, stop the replicas, and return what was not as promised."""
    wrong: list[str] = []
    try:
        await here.until_empty(90.0)
    except TimeoutError:
        wrong.append(f"{here.counts('orders')} messages were never done")
    await asyncio.sleep(0.6)
    await judge.look()
    codes = await here.stop()
    if set(codes) - {0}:
        wrong.append(f"replicas ended with {codes}")
    if (missing := await here.not_done()) > 0:
        wrong.append(f"{missing} orders were lost")
    if (dead := here.counts("orders-dead")) != (0, 0):
        wrong.append(f"{dead[0]} messages are in the dead-letter queue")
    failed = Counter[str]()
    for report in here.reports:
        failed.update(report["failed"])
    if failed:
        wrong.append(f"messages failed: {dict(failed)}")
    return wrong


def run(arguments: Sequence[str] | None = None) -> int:
    """Run pieces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--tenants", type=int, default=6)
    parser.add_argument("--cap", type=int, default=4)
    parser.add_argument("--lease", type=float, default=3.0)
    parser.add_argument("--tick", type=float, default=0.25)
    parser.add_argument("--fallback", choices=["share", "stop"], default="share")
    parser.add_argument("--scenes", default=_USUAL, help="of " + ", ".join(SCENES))
    parser.add_argument("--minutes", type=float, default=2.0, help="after which a piece begins no further scene")
    parser.add_argument("--starts", type=int, default=0, help="run pieces until so many starts were judged")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tally", type=Path, help="a file with what earlier pieces counted")
    parser.add_argument("--logs", type=Path, help="where the replicas' logs go")
    options = parser.parse_args(arguments)
    tally = Tally()
    if options.tally is not None and options.tally.exists():
        tally = msgspec.json.decode(options.tally.read_bytes(), type=Tally)
    plan = Plan(
        replicas=options.replicas, tenants=options.tenants, cap=options.cap, lease=options.lease, tick=options.tick,
        fallback=options.fallback,
    )  # fmt: skip
    before = tally.pieces
    with tempfile.TemporaryDirectory() as scratch, PostgresServer(settings={"max_connections": "500"}) as server:
        logs = options.logs or Path(scratch)
        while tally.pieces == before or tally.starts < options.starts:
            with ValkeyServer() as store:
                asyncio.run(piece(plan, Where(server, store, logs), tally, options))
            if options.tally is not None:
                options.tally.write_bytes(msgspec.json.encode(tally))
            print("\n".join(tally.lines()), flush=True)
    return 1 if tally.over or tally.wrong else 0


if __name__ == "__main__":
    sys.exit(run())
