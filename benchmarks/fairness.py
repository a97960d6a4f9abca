"""What a noisy tenant costs the quiet ones, simulated with the real consumer in virtual time.

    python benchmarks/fairness.py --seeds 3 --write docs

Prints a table: for every case the quiet tenants' 99th percentile as a multiple of what they see alone, and the noisy
tenants' handler seconds as a part of what they get where nothing is fair. The model is in tests/simulation/fairness.
"""

import argparse
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from math import log10
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from simulation.fairness.model import Case, simulate  # noqa: E402 - the path comes first

POLICIES = ("fifo", "round-robin", "drr", "postroom")
TARGETS = {0.0: 1.10, 2.0: 1.5, 10.0: 3.0}


@dataclass(frozen=True)
class Cell:
    """One run of one case, without its latencies."""

    case: Case
    p99: float
    throughput: float
    unserved: float
    parked: int
    most_receives: int


def measure(case: Case) -> Cell:
    """Run a case. Quiet messages that were not handled by its end are counted as unserved."""
    outcome = simulate(case)
    unserved = 1 - len(outcome.latencies) / max(1, outcome.quiet_sent)
    slots = case.slots * case.consumers * case.seconds
    return Cell(
        case, outcome.percentile(0.99), outcome.noisy_busy / slots, unserved, outcome.parked, outcome.most_receives
    )


def cases(arguments: argparse.Namespace) -> list[Case]:
    """List what is to be run: the matrix for postroom, and the comparison where there is one noisy tenant."""
    found: list[Case] = []
    for seed in range(1, arguments.seeds + 1):
        base = Case(seed=seed, seconds=arguments.seconds)
        found.append(replace(base, noisy=0, seconds=60.0))
        for seconds in (0.02, 0.5):
            rate = 5000.0 if seconds < 0.1 else 1000.0
            for lag in TARGETS:
                for noisy in (1, 3, 10):
                    for consumers in (1, 4) if noisy == 1 or not arguments.quick else (1,):
                        for policy in POLICIES:
                            if policy != "postroom" and (noisy, consumers) != (1, 1):
                                continue
                            found.append(
                                replace(
                                    base,
                                    policy=policy,
                                    noisy=noisy,
                                    consumers=consumers,
                                    noisy_seconds=seconds,
                                    lag=lag,
                                    noise_rate=rate,
                                    seconds=arguments.seconds if lag < 10 else max(arguments.seconds, 12.0),
                                )
                            )
    return found


def key(case: Case) -> tuple[float, float, int, int, str]:
    """Name a row of the table."""
    return case.noisy_seconds, case.lag, case.noisy, case.consumers, case.policy


def table(cells: Iterable[Cell]) -> list[str]:
    """Write the rows: medians over the seeds."""
    rows: dict[tuple[float, float, int, int, str], list[Cell]] = {}
    solo: list[float] = []
    for cell in cells:
        if cell.case.noisy:
            rows.setdefault(key(cell.case), []).append(cell)
        else:
            solo.append(cell.p99)
    alone = median(solo)
    unfair = {k[0]: median(c.throughput for c in row) for k, row in rows.items() if k[1:] == (0.0, 1, 1, "fifo")}
    lines = [
        f"Solo p99: {alone * 1e3:.1f} ms.",
        "",
        (
            "| noisy handler | lag | noisy tenants | consumers | policy | quiet p99 / solo | target | unserved | "
            "throughput | most receives |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row_key, row in sorted(rows.items()):
        seconds, lag, noisy, consumers, policy = row_key
        ratio = median(cell.p99 for cell in row) / alone
        share = median(cell.throughput for cell in row) / unfair[seconds]
        unserved = median(cell.unserved for cell in row)
        lines.append(
            f"| {seconds * 1e3:.0f} ms | {lag:g} s | {noisy} | {consumers} | {policy} | {ratio:.2f}x | "
            f"{TARGETS[lag] if policy == 'postroom' else '-'} | {unserved:.0%} | {share:.0%} | "
            f"{max(cell.most_receives for cell in row)} |"
        )
    return lines


def plot(lines: list[str]) -> str:
    """Draw quiet p99 / solo for one noisy tenant and one consumer, on a logarithmic scale, as SVG."""
    colours = {"fifo": "#b0413e", "round-robin": "#d98c3f", "drr": "#6a8caf", "postroom": "#2f7d4f"}
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    groups: dict[str, dict[str, float]] = {}
    for seconds, lag, noisy, consumers, policy, ratio, *_ in cells[1:]:
        if (noisy, consumers) == ("1", "1"):
            groups.setdefault(f"{seconds}, lag {lag}", {})[policy] = float(ratio.rstrip("x"))
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="860" height="330" font-family="sans-serif" font-size="12">']
    out.append('<rect width="860" height="330" fill="white"/>')
    for power in range(4):
        y = 270 - 70 * power
        out.append(
            f'<line x1="50" x2="850" y1="{y}" y2="{y}" stroke="#ddd"/><text x="8" y="{y + 4}">{10**power}x</text>'
        )
    for number, (name, bars) in enumerate(groups.items()):
        x = 60 + 132 * number
        for index, (policy, multiple) in enumerate((policy, bars[policy]) for policy in POLICIES):
            height = max(2.0, 70 * log10(max(1.03, multiple)))
            left = x + 27 * index
            out.append(
                f'<rect x="{left}" y="{270 - height:.0f}" width="24" height="{height:.0f}" fill="{colours[policy]}"/>'
            )
            out.append(f'<text x="{left}" y="{264 - height:.0f}" font-size="9">{multiple:.3g}</text>')
        out.append(f'<text x="{x}" y="288">{name}</text>')
    for index, policy in enumerate(POLICIES):
        out.append(f'<rect x="{60 + 130 * index}" y="304" width="12" height="12" fill="{colours[policy]}"/>')
        out.append(f'<text x="{77 + 130 * index}" y="314">{policy}</text>')
    out.append('<text x="560" y="314">quiet p99 / solo p99, one noisy tenant</text></svg>')
    return "\n".join(out) + "\n"


def main() -> None:
    """Run everything and print the table; write it to docs/fairness.md with ``--write docs``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="four consumers only with one noisy tenant")
    parser.add_argument("--write", type=Path, help="the folder of fairness.md, whose table is replaced")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        lines = table(pool.map(measure, cases(arguments)))
    print("\n".join(lines))
    if arguments.write is not None:
        (arguments.write / "fairness.svg").write_text(plot(lines))
        page = arguments.write / "fairness.md"
        before, _, rest = page.read_text().partition("<!-- table -->\n")
        _, _, after = rest.partition("<!-- end -->")
        page.write_text(before + "<!-- table -->\n" + "\n".join(lines) + "\n<!-- end -->" + after)


if __name__ == "__main__":
    main()
