"""Count simulated starts: schedules from a seed on, for some seconds, and what they broke.

PYTHONPATH=tests python -m simulation.fleet.count 20000 150
"""

import sys
import time

from simulation.fleet.schedules import run_fleet_schedule


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
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
