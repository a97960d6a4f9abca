"""What a noisy tenant costs the quiet ones, simulated with the real consumer in virtual time.

    python benchmarks/fairness.py                      # everything: 20 seeds, about an hour on two cores
    python benchmarks/fairness.py --quick              # one consumer, three seeds
    python benchmarks/fairness.py --keep cells.jsonl   # go on where an interrupted run stopped
    python benchmarks/fairness.py --minutes 10         # as much as can be measured in ten minutes

For every case it prints the quiet tenants' 99th percentile as a multiple of what the same messages see without noise,
and the noisy tenants' handler seconds as a part of what they get where nothing is fair. What is compared, and with
what, is told in docs/fairness.md; the model is in tests/simulation/fairness.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from itertools import islice
from math import log10
from pathlib import Path
from random import Random
from statistics import median
from typing import TextIO

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from simulation.fairness.model import Case, simulate  # noqa: E402 - the path comes first

POLICIES = ("fifo", "round-robin", "drr", "postroom")
TARGETS = {0.0: 1.10, 2.0: 1.5, 10.0: 3.0}
HANDLERS = {0.02: 4000.0, 0.5: 1000.0}
"""Nominal handler seconds of noisy tenants, and the messages per second that they send per consumer."""
FIRST = 41
"""The first seed that is reported. No one looked at them while the consumer's constants were chosen."""
FEW = 3
"""Seeds of the comparisons with other policies and of the noise that begins with the consumer."""

Row = tuple[float, float, int, int, str, bool]
"""Handler, lag, noisy tenants, consumers, policy, and whether the noise begins with the consumer."""


@dataclass(frozen=True)
class Cell:
    """One run of one case, without its latencies."""

    case: Case
    p99: float
    throughput: float
    unserved: float
    most_receives: int


def measure(case: Case) -> Cell:
    """Run a case. Quiet messages that were not handled by its end are counted as unserved."""
    outcome = simulate(case)
    unserved = 1 - len(outcome.latencies) / max(1, outcome.quiet_sent)
    slots = case.slots * case.consumers * case.seconds
    return Cell(case, outcome.percentile(0.99), outcome.noisy_busy / slots, unserved, outcome.most_receives)


def begins(seed: int, lag: float) -> float:
    """Return when the noise begins: at any time between two looks of the queue, well after the first one."""
    return round(2 + lag + Random(seed * 31 + int(lag)).uniform(0, max(lag, 1.0)), 3)


def matrix(seed: int, *, consumers: tuple[int, ...]) -> Iterator[Case]:
    """List the cases of one seed."""
    for lag in TARGETS:
        for number in consumers:
            # Long enough for the time before the look; more consumers have more quiet messages in less time.
            seconds = 12.0 if lag >= 10 else 8.0 if number == 1 else 4.0
            base = Case(seed=seed, lag=lag, consumers=number, seconds=seconds, noise_from=begins(seed, lag))
            for handler, rate in HANDLERS.items():
                for noisy in (1, 3, 10):
                    yield replace(base, noisy=noisy, noisy_seconds=handler, noise_rate=rate)


def cases(seeds: int, *, consumers: tuple[int, ...]) -> list[Case]:
    """List what is to be run, one consumer first: the matrix, what it is compared with, and the baselines."""
    found: list[Case] = []
    for seed in range(FIRST, FIRST + seeds):
        found.extend(matrix(seed, consumers=consumers))
    for seed in range(1, FEW + 1):
        simplest = [case for case in matrix(seed, consumers=(1,)) if case.noisy == 1]
        found.extend(replace(case, noise_from=0.0) for case in simplest)
        found.extend(replace(case, policy=policy) for case in simplest for policy in POLICIES[:-1])
    baselines = {baseline for case in found for baseline in baselines_of(case)}
    return sorted({*found, *baselines}, key=_turn)


def _turn(case: Case) -> tuple[int, int, float]:
    """Put what tells most first, for when there is not time for everything."""
    early = case.seed < FIRST + (8 if case.consumers == 1 else 2)
    return (0 if early else 2) + (case.consumers > 1), case.seed, -case.noise_rate


def baselines_of(case: Case) -> list[Case]:
    """Return the same quiet messages without noise: with the receives of an idle consumer, and of a busy one."""
    alone = replace(case, noisy=0, noisy_seconds=0.02, noise_rate=0.0)
    return [replace(alone, policy="postroom"), replace(alone, policy="wide")]


def row_of(case: Case) -> Row:
    """Name a row of the table."""
    return case.noisy_seconds, case.lag, case.noisy, case.consumers, case.policy, not case.noise_from


@dataclass(frozen=True)
class Line:
    """One row: the same case over the seeds."""

    row: Row
    ratios: list[float]
    throughput: float
    unserved: float
    most_receives: int


def summarise(cells: Iterable[Cell]) -> list[Line]:
    """Compare every run with its own baseline, then put the seeds together."""
    by_case = {cell.case: cell for cell in cells}
    rows: dict[Row, list[Cell]] = defaultdict(list)
    for cell in by_case.values():
        if cell.case.noisy and all(alone in by_case for alone in baselines_of(cell.case)):
            rows[row_of(cell.case)].append(cell)
    unfair = {
        handler: median(cell.throughput for cell in rows[handler, 0.0, 1, 1, "fifo", False]) for handler in HANDLERS
    }
    return [
        Line(
            row,
            sorted(cell.p99 / min(by_case[alone].p99 for alone in baselines_of(cell.case)) for cell in found),
            median(cell.throughput for cell in found) / unfair[row[0]],
            max(cell.unserved for cell in found),
            max(cell.most_receives for cell in found),
        )
        for row, found in sorted(rows.items())
    ]


HEAD = (
    "| noisy handler | lag | noisy tenants | consumers | policy | seeds | quiet p99 / solo | worst seed | target | "
    "seeds beyond it | unserved, worst | throughput | most receives |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def show(line: Line) -> str:
    """Write one row."""
    handler, lag, noisy, consumers, policy, _ = line.row
    target, beyond = "-", "-"
    if policy == "postroom":
        target = f"{TARGETS[lag]:.2f}x"
        beyond = str(sum(ratio > TARGETS[lag] for ratio in line.ratios))
    return (
        f"| {handler * 1e3:.0f} ms | {lag:g} s | {noisy} | {consumers} | {policy} | {len(line.ratios)} | "
        f"{median(line.ratios):.2f}x | {line.ratios[-1]:.2f}x | {target} | {beyond} | "
        f"{line.unserved:.1%} | {line.throughput:.0%} | {line.most_receives} |"
    )


def report(cells: list[Cell]) -> list[str]:
    """Write the tables."""
    lines = summarise(cells)
    solo = [median(cell.p99 for cell in cells if not cell.case.noisy and cell.case.policy == policy) * 1e3
            for policy in ("postroom", "wide")]  # fmt: skip
    parts = {
        "Noise that begins between two looks of the queue:": [
            line for line in lines if not line.row[-1] and line.row[4] == "postroom"
        ],
        "The same with other policies (one consumer, one noisy tenant):": [
            line for line in lines if not line.row[-1] and line.row[4] != "postroom"
        ],
        "Noise that begins with the consumer:": [line for line in lines if line.row[-1]],
    }
    text = [f"Solo p99: {solo[0]:.1f} ms; with all receives outstanding {solo[1]:.1f} ms (medians)."]
    for title, found in parts.items():
        if found:
            text += ["", title, "", HEAD, *map(show, found)]
    return text


def plot(lines: list[Line]) -> str:
    """Draw quiet p99 / solo for one noisy tenant and one consumer, on a logarithmic scale, as SVG."""
    colours = {"fifo": "#b0413e", "round-robin": "#d98c3f", "drr": "#6a8caf", "postroom": "#2f7d4f"}
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for line in lines:
        handler, lag, noisy, consumers, policy, early = line.row
        if (noisy, consumers, early) == (1, 1, False):
            groups[f"{handler * 1e3:.0f} ms, lag {lag:g} s"][policy] = median(line.ratios)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="860" height="330" font-family="sans-serif" font-size="12">']
    out += [
        "<style>text { fill: #1c1e21; } line { stroke: #ddd; }",
        "@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } line { stroke: #444c56; } }</style>",
    ]
    for power in range(4):
        y = 270 - 70 * power
        out.append(f'<line x1="50" x2="850" y1="{y}" y2="{y}"/><text x="8" y="{y + 4}">{10**power}x</text>')
    for number, (name, bars) in enumerate(groups.items()):
        x = 60 + 132 * number
        for index, (policy, multiple) in enumerate((policy, bars[policy]) for policy in POLICIES if policy in bars):
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
    out.append('<text x="590" y="314">quiet p99 / solo p99, one noisy tenant</text></svg>')
    return "\n".join(out) + "\n"


def kept(path: Path | None) -> list[Cell]:
    """Read what an earlier run has measured."""
    if path is None or not path.exists():
        return []
    found = map(json.loads, path.read_text().splitlines())
    return [Cell(**{**fields, "case": Case(**fields["case"])}) for fields in found]


def run(todo: list[Case], *, jobs: int, minutes: float, keep: TextIO | None) -> Iterator[Cell]:
    """Measure the cases side by side for so long, and tell on stderr how far it is."""
    began = time.monotonic()
    left = iter(todo)
    done = 0
    with ProcessPoolExecutor(jobs) as pool:
        running: set[Future[Cell]] = set()
        while True:
            # Handed over as they are needed: a future that shutdown() cancels is never reported to who waits for it.
            if time.monotonic() - began < 60 * minutes:
                running |= {pool.submit(measure, case) for case in islice(left, jobs - len(running))}
            if not running:
                break
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                cell = future.result()
                done += 1
                if keep is not None:
                    keep.write(json.dumps(asdict(cell)) + "\n")
                    keep.flush()
                print(f"\r{done} of {len(todo)} cases, {time.monotonic() - began:.0f} s ", end="", file=sys.stderr)
                yield cell
    print(file=sys.stderr)


def write(folder: Path, text: list[str], picture: str) -> None:
    """Put the tables into fairness.md, between its two marks, and the picture beside it."""
    (folder / "fairness.svg").write_text(picture)
    page = folder / "fairness.md"
    before, _, rest = page.read_text().partition("<!-- table -->\n")
    _, _, after = rest.partition("<!-- end -->")
    page.write_text(before + "<!-- table -->\n" + "\n".join(text) + "\n<!-- end -->" + after)


def main() -> None:
    """Run everything and print the tables; write them to docs/fairness.md with ``--write docs``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="report what was measured by then")
    parser.add_argument("--quick", action="store_true", help="one consumer and three seeds")
    parser.add_argument("--keep", type=Path, help="a file of what is measured: what it has is not measured again")
    parser.add_argument("--write", type=Path, help="the folder of fairness.md; its tables are replaced")
    arguments = parser.parse_args()
    seeds = min(arguments.seeds, FEW) if arguments.quick else arguments.seeds
    wanted = cases(seeds, consumers=(1,) if arguments.quick else (1, 4))
    cells = [cell for cell in kept(arguments.keep) if cell.case in set(wanted)]
    known = {cell.case for cell in cells}
    todo = [case for case in wanted if case not in known]
    if arguments.keep is None:
        cells += run(todo, jobs=arguments.jobs, minutes=arguments.minutes, keep=None)
    else:
        with arguments.keep.open("a") as keep:
            cells += run(todo, jobs=arguments.jobs, minutes=arguments.minutes, keep=keep)
    text = report(cells)
    print("\n".join(text))
    if arguments.write is not None:
        write(arguments.write, text, plot(summarise(cells)))


if __name__ == "__main__":
    main()
