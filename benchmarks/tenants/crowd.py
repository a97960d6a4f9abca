"""10,000 tenants over 200 pools of two connections, and what is kept of each: the real consumer in virtual time.

    python benchmarks/tenants/crowd.py --seeds 3

Hit rates are of leases for which nothing had to be opened, beside an LRU cache of 200 and the optimum that knows the
future (Belady's), both replayed over the leases in the order in which they were made. Then what is left of tenants that
have come and gone: bytes allocated by postroom's own modules, and the growth of the whole process from 1,000 to
10,000 tenants (the simulated queue and the benchmark's own notes included).
"""

import argparse
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from simulation.tenants.crowd import Crowd, run_crowd  # noqa: E402 - the path comes first


def measure(case: tuple[int, float, float]) -> Crowd:
    """Run one seed at one rate."""
    seed, rate, seconds = case
    return run_crowd(seed=seed, rate=rate, seconds=seconds)


def row(rate: float, seed: int, found: Crowd) -> str:
    """Write one run."""
    return (
        f"| {rate:,.0f}/s | {seed} | {found.messages:,} | {found.seen:,} | {found.most_weight} | "
        f"{found.most_connections} | {found.hit_rate:.2%} | {found.lru:.2%} | {found.optimum:.2%} | "
        f"{found.p99 * 1e3:.0f} ms | {found.left} | {found.state} |"
    )


def footprint(tenants: int, *, traced: bool) -> tuple[int, int, int]:
    """Run in this process, and return the tenants seen, the bytes kept, and the growth of the process."""
    process = psutil.Process()
    before = process.memory_info().rss
    found = run_crowd(tenants=tenants, rate=500.0, seconds=20.0, exponent=0.0, traced=traced)
    return found.seen, found.kept, process.memory_info().rss - before


def apart(tenants: int, *, traced: bool) -> tuple[int, int, int]:
    """Do so in a process of its own."""
    command = [sys.executable, __file__, "--footprint", str(tenants), *(["--traced"] if traced else [])]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(said[0]), int(said[1]), int(said[2])


def memory() -> None:
    """Print what is kept per tenant ever seen."""
    few, many = (apart(tenants, traced=True) for tenants in (1_000, 10_000))
    few_rss, many_rss = (apart(tenants, traced=False) for tenants in (1_000, 10_000))
    more = many[0] - few[0]
    print(
        f"kept by postroom's modules: {few[1]:,} bytes after {few[0]:,} tenants, {many[1]:,} after {many[0]:,}:", end=""
    )
    print(f" {(many[1] - few[1]) / more:.1f} bytes per tenant ever seen")
    growth = (many_rss[2] - few_rss[2]) / (many_rss[0] - few_rss[0])
    print(f"RSS of the whole simulation: +{few_rss[2] / 1e6:.1f} MB and +{many_rss[2] / 1e6:.1f} MB:", end="")
    print(f" {growth:.0f} bytes per tenant")


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--footprint", type=int)
    parser.add_argument("--traced", action="store_true")
    options = parser.parse_args()
    if options.footprint is not None:
        print(*footprint(options.footprint, traced=options.traced))
        return
    cases = [(seed, rate, options.seconds) for rate in (200.0, 800.0) for seed in range(1, options.seeds + 1)]
    print("| messages | seed | handled | tenants seen | budget used (400) | connections |", end=" ")
    print("hit rate | LRU | optimum | p99 | left when idle | items in containers |")
    print("|" + "---|" * 12)
    with ProcessPoolExecutor(options.jobs) as pool:
        for (seed, rate, _), found in zip(cases, pool.map(measure, cases), strict=True):
            print(row(rate, seed, found), flush=True)
    print()
    memory()


if __name__ == "__main__":
    main()
