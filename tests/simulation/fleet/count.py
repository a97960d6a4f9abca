"""Count simulated starts: schedules from a seed on, for some seconds, and what they broke.

PYTHONPATH=tests python -m simulation.fleet.count 20000 150
PYTHONPATH=tests python -m simulation.fleet.count 20000 150 whole    (whole consumers: fewer starts, and F10 to F12)
"""

import logging
import sys
import time

from simulation.fleet.schedules import run_fleet_schedule
from simulation.fleet.whole import run_whole_schedule


def whole(first: int, seconds: float) -> int:
    """Run schedules with whole consumers, each with a death at another await; 0 if none broke a promise."""
    end = time.monotonic() + seconds
    seed, starts, tries, broken = first, 0, 0, 0
    while time.monotonic() < end:
        result = run_whole_schedule(seed, crash_at=seed % 120 + 1)
        starts, tries = starts + result.starts, tries + result.facts.get("tries under a hint", 0)
        for text in result.broken[:1]:
            broken += 1
            print(f"seed {seed}: {text}", flush=True)
        seed += 1
    print(f"{seed - first} schedules of whole consumers, {starts:,} starts, {tries} tries in turn, {broken} broken")
    return 1 if broken else 0


def main(first: int, seconds: float) -> int:
    """Run schedules; 0 if none broke a promise."""
    end = time.monotonic() + seconds
    seed, starts, covered, broken = first, 0, 0, 0
    while time.monotonic() < end:
        outcome = run_fleet_schedule(seed)
        starts, covered = starts + outcome.starts, covered + outcome.covered
        if outcome.violation is not None:
            broken += 1
            print(f"seed {seed}: {outcome.violation}", flush=True)
        seed += 1
    print(f"{seed - first} schedules, {starts:,} starts, {covered:,} under slots of the store, {broken} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    run = whole if sys.argv[3:] == ["whole"] else main
    sys.exit(run(int(sys.argv[1]), float(sys.argv[2])))
