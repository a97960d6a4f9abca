"""What a black-holed tenant with half of the traffic costs the others, through the real consumer in virtual time.

    python benchmarks/tenants/black_hole.py --seeds 20

*opens hang*: it is unreachable from the start. *goes dark*: after 5 s nothing of it is answered, handlers that run
included; they end by ``handler_timeout`` (2 s). Ratios are of the others' 99th percentile to that of the run in
which the tenant is well, and of the run without it. Slots are looked at whenever one is granted.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from simulation.tenants.cases import BlackHole, black_hole  # noqa: E402 - the path comes first
from simulation.tenants.world import Trouble  # noqa: E402

KINDS = {"opens hang": (Trouble.OPENS_HANG, 0.0), "goes dark": (Trouble.HANGING, 5.0)}


def measure(case: tuple[str, int, float]) -> BlackHole:
    """Run one seed of one kind."""
    kind, seed, seconds = case
    trouble, begin = KINDS[kind]
    return black_hole(seed, trouble=trouble, begin=begin, seconds=seconds)


def row(kind: str, found: Sequence[BlackHole]) -> str:
    """Write median and worst of the seeds."""
    ratios = [each.ratio for each in found]
    without = [each.ratio_without for each in found]
    return (
        f"| {kind} | {max(each.slots_held for each in found)} | {median(ratios):.3f}x | {max(ratios):.3f}x | "
        f"{median(without):.3f}x | {max(without):.3f}x | {median(each.p99 for each in found) * 1e3:.1f} ms | "
        f"{sum(each.opens for each in found)} | {sum(each.early_opens for each in found)} | "
        f"{min(each.handled for each in found):.1%} |"
    )


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    cases = [(kind, seed, options.seconds) for kind in KINDS for seed in range(1, options.seeds + 1)]
    print(
        "| tenant | slots held | others' p99 / if it were well | worst | / without it | worst | others' p99 |", end=" "
    )
    print("opens tried | opens before the pause was over | others handled |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(options.jobs) as pool:
        found = list(zip(cases, pool.map(measure, cases), strict=True))
    for kind in KINDS:
        print(row(kind, [result for case, result in found if case[0] == kind]))


if __name__ == "__main__":
    main()
