"""What the death of a host with many tenants costs, and how soon they are back: the real consumer in virtual time.

    python benchmarks/tenants/dead_host.py --seeds 5

2,000 tenants on a host that is down for 30 s, and 50 on another that is not. 400 messages per second of the first, 100
of the second, handlers of 10 to 30 ms, opens of 20 ms, a round trip to the queue of 10 ms. *refusing*: new connections
are refused and those that exist are broken. *opens hang*: new connections are not answered, those that exist go on.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from simulation.tenants.cases import DeadHost, dead_host  # noqa: E402 - the path comes first
from simulation.tenants.world import Trouble  # noqa: E402

KINDS = ((Trouble.REFUSING, None), (Trouble.REFUSING, 5), (Trouble.REFUSING, 3), (Trouble.OPENS_HANG, 5))


def measure(case: tuple[tuple[Trouble, int | None], int, int, float]) -> DeadHost:
    """Run one seed of one kind."""
    (trouble, most), seed, tenants, rate = case
    return dead_host(seed, trouble=trouble, max_receives=most, tenants=tenants, rate=rate)


def row(trouble: Trouble, most: int | None, found: Sequence[DeadHost]) -> str:
    """Write the worst of the seeds, but medians of percentiles."""
    before, during, after = (
        median(getattr(each, name) for each in found) for name in ("others_before", "others_during", "others_after")
    )
    return (
        f"| {trouble.value} | {most or 'none'} | {max(each.failed_before_trip for each in found)} | "
        f"{max(each.failed_opens for each in found)} | {max(each.most_opening for each in found)} | "
        f"{max(each.recovered_after for each in found):.1f} s | {max(each.caught_up_after for each in found):.1f} s | "
        f"{before * 1e3:.0f} ms | {during / before:.2f}x | {after / before:.2f}x | "
        f"{max(each.most_held for each in found):,} | {sum(each.dead_letters for each in found)} | "
        f"{min(each.handled for each in found):.2%} |"
    )


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tenants", type=int, default=2_000)
    parser.add_argument("--rate", type=float, default=400.0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    seeds = range(1, options.seeds + 1)
    cases = [(kind, seed, options.tenants, options.rate) for kind in KINDS for seed in seeds]
    print(
        "| host | maxReceiveCount | tenants failed before all were told | failed opens in all | opens at once |",
        end=" ",
    )
    print("throughput back after | 99% caught up after | other host's p99 | during | after | held at most |", end=" ")
    print("dead letters | handled |")
    print("|" + "---|" * 13)
    with ProcessPoolExecutor(options.jobs) as pool:
        found = list(zip(cases, pool.map(measure, cases), strict=True))
    for kind in KINDS:
        trouble, most = kind
        print(row(trouble, most, [result for case, result in found if case[0] == kind]))


if __name__ == "__main__":
    main()
