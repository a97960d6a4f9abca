"""Search for hours: ``make soak``. Runs schedules on every core, shows how far it is, and can be interrupted.

What was done is remembered in a file, so that the next call goes on where the last one ended. Bounded: by the number
of schedules, and by the minutes that it may take.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

CHUNK = 25
"""Seeds per unit of work."""
_GOALS = {
    "consumer": 100_000,
    "queues": 20_000,
    "further": 20_000,
    "core": 1_000_000,
    "pool": 1_000_000,
    "contexts": 1_000_000,
    "fleet": 400,
}
_CONTEXTS_PER_SEED = 1_000
Run = Callable[[int], tuple[str, ...]]


@dataclass
class Progress:
    """How far one kind of schedule is."""

    done: int = 0
    first: int = 0
    """The seed that it began with."""
    seconds: float = 0.0
    """Of processor time, over all cores."""
    failures: list[tuple[int, str]] = field(default_factory=list)


def runner(kind: str) -> Run | None:
    """Return what runs one seed of a kind and says what was broken; None where it does not exist."""
    if kind == "consumer":
        from simulation.consumer.schedule import run_consumer_schedule

        return lambda seed: run_consumer_schedule(seed).violations
    if kind in {"queues", "further"}:
        from simulation.consumer.further import further_violations
        from simulation.consumer.many_queues import many_queues_violations

        return many_queues_violations if kind == "queues" else further_violations
    if kind == "contexts":
        from simulation.contexts import run_context_pairs

        return lambda seed: run_context_pairs(seed, _CONTEXTS_PER_SEED)
    if kind == "core":
        from simulation.core.schedules import core_violations

        return core_violations
    if kind == "fleet":
        from simulation.fleet.schedules import fleet_violations

        return fleet_violations
    found = _pool_schedule()
    return None if found is None else partial(_pool_violations, found)


def _pool_schedule() -> Callable[[int], Any] | None:
    here = Path(__file__).parent
    for path in sorted(here.rglob("*pool*.py")) + sorted(here.glob("*pool*/*.py")):
        if path.name.startswith("test_") or "def run_pool_schedule(" not in path.read_text():
            continue
        name = ".".join(path.relative_to(here.parent).with_suffix("").parts)
        run: Callable[[int], Any] = importlib.import_module(name).run_pool_schedule
        return run
    return None


def _pool_violations(run: Callable[[int], Any], seed: int) -> tuple[str, ...]:
    try:
        violation = run(seed).violation
    except AssertionError as error:
        return (str(error) or "AssertionError",)
    return () if violation is None else (str(violation),)


def work(unit: tuple[str, int, int]) -> tuple[str, int, float, list[tuple[int, str]]]:
    """Run a chunk of seeds, in a process of its own."""
    kind, first, count = unit
    run = runner(kind)
    assert run is not None
    began = time.process_time()
    failures = [(seed, broken[0]) for seed in range(first, first + count) if (broken := run(seed))]
    return kind, count, time.process_time() - began, failures


def _units(goals: dict[str, int], progress: dict[str, Progress]) -> Iterator[tuple[str, int, int]]:
    """Yield what is left, all kinds side by side, so that an interrupted run has searched each of them."""
    ends = {kind: goal // (_CONTEXTS_PER_SEED if kind == "contexts" else 1) for kind, goal in goals.items()}
    places = {kind: progress[kind].done for kind in goals}
    while places:
        kind = min(places, key=lambda each: places[each] / ends[each] if ends[each] else 1)
        count = min(CHUNK if kind in {"consumer", "further"} else 4 * CHUNK, ends[kind] - places[kind])
        if count <= 0:
            del places[kind]
            continue
        yield kind, progress[kind].first + places[kind], count
        places[kind] += count


def _show(goals: dict[str, int], progress: dict[str, Progress], began: float, *, last: bool = False) -> None:
    parts: list[str] = []
    for kind, each in progress.items():
        done = each.done * (_CONTEXTS_PER_SEED if kind == "contexts" else 1)
        rate = done / each.seconds if each.seconds else 0.0
        filled = 10 * done // max(1, goals[kind])
        bar = "#" * filled + "." * (10 - filled)
        parts.append(f"{kind} [{bar}] {done:,}/{goals[kind]:,} {rate:,.0f}/s/core {len(each.failures)} broken")
    line = "  ".join(parts) + f"  {time.monotonic() - began:,.0f} s"
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{line}\x1b[K" + ("\n" if last else ""))
        sys.stderr.flush()
    elif last:
        print(line)


def main(arguments: list[str] | None = None) -> int:
    """Run the soak; 0 if nothing was broken."""
    options = _parse(arguments)
    chosen = [kind for kind in _GOALS if kind in options.kinds and getattr(options, kind)]
    goals = {kind: getattr(options, kind) for kind in chosen if runner(kind) is not None}
    state = Path(options.state)
    known = json.loads(state.read_text()) if state.exists() and not options.fresh else {}
    progress = {kind: _resumed(known.get(kind, {}), options.first) for kind in goals}
    began = shown = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(options.jobs) as workers:
        for kind, count, seconds, failures in workers.imap(work, _units(goals, progress)):
            each = progress[kind]
            each.done += count
            each.seconds += seconds
            each.failures += failures
            if time.monotonic() - shown > 1:
                shown = time.monotonic()
                _show(goals, progress, began)
                _save(state, known, progress)
            if shown - began > options.minutes * 60:
                workers.terminate()
                break
    _save(state, known, progress)
    _show(goals, progress, began, last=True)
    for kind, each in progress.items():
        _tell(kind, each.failures)
    return 1 if any(each.failures for each in progress.values()) else 0


def _resumed(known: dict[str, Any], first: int) -> Progress:
    """Return what is remembered of a search that began with the same seed, or a new one."""
    progress = Progress(**known)
    return progress if progress.first == first else Progress(first=first)


def _tell(kind: str, failures: list[tuple[int, str]]) -> None:
    """Print what was broken, first by oracle, then one by one with the command that replays it."""
    seeds: dict[str, list[int]] = {}
    for seed, text in failures:
        seeds.setdefault(oracle_of(text), []).append(seed)
    for oracle, found in sorted(seeds.items(), key=lambda each: -len(each[1])):
        print(f"{kind}: {oracle}: {len(found)} schedules, such as {', '.join(map(str, sorted(found)[:5]))}")
    for seed, text in failures[:20]:
        print(f"{text}\n    make replay KIND={kind} SEED={seed}")


def oracle_of(text: str) -> str:
    """Return which oracle a violation is of: "attempts at 3.000: ..." is one of *attempts*."""
    return text.partition(":")[0].partition(" at ")[0]


def _save(state: Path, known: dict[str, Any], progress: dict[str, Progress]) -> None:
    """Remember how far each kind is, those included that are not searched this time."""
    state.write_text(json.dumps(known | {kind: asdict(each) for kind, each in progress.items()}))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    for kind, goal in _GOALS.items():
        parser.add_argument(f"--{kind}", type=int, default=goal, help=f"{kind} schedules in all ({goal:,})")
    text = "search only these kinds"
    parser.add_argument("--kinds", nargs="+", choices=list(_GOALS), default=list(_GOALS), metavar="KIND", help=text)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--minutes", type=float, default=58.0, help="end after so long; go on with the next call")
    parser.add_argument("--state", default=".soak.json", help="where progress is remembered")
    parser.add_argument("--first", type=int, default=0, help="the first seed of each kind; for fresh ones (0)")
    parser.add_argument("--fresh", action="store_true", help="forget the progress that is remembered")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
