"""Whole consumers, side by side: what a message costs from its receive to its confirmed delete.

Every consumer does the same work in a process of its own, pinned to one core: it decodes and validates the payload of
so many messages, calls a handler that counts, acknowledges, and exits. The stub server answers from the other core.
Runs alternate, ratios are those of neighbouring runs, and medians are shown: what disturbs the machine disturbs all.

    python -m benchmarks.consumers [--rounds 5] [--scale 1.0] [--only postroom,fanferro] [--markdown]

* **CPU** is user and system time of the worker's process, all threads, as the kernel accounts it to the parent
  (rusage). What a run of ten messages takes is subtracted: interpreter, imports, opening and stopping. That is the
  start-up column.
* **messages/s** is from the stub's first answer with messages to the last delete that reached it.
* **receive to ack** is seen by the stub: from the answer that brought a message to the delete that names it. At full
  load it is the number of messages held divided by the rate, more than a latency of the library.
* **stub busy** is how much of its core the stub used in that time. Near 100 % it is the stub that was measured.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import psutil
from benchmarks.emulator import Emulator
from benchmarks.peers.environments import PEERS, ROOT, Missing, Peer
from benchmarks.peers.work import ARGUMENTS
from benchmarks.stub_server import StubServer

PATH = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
"""The workers' ``PYTHONPATH``."""
TEN = 10
"""Messages of a run that measures the start-up."""
MANY, FEW = 30_000, 6_000
SLOW = ("postroom, hot path off", "aiobotocore by hand", "boto3 in threads", "taskiq-aio-sqs")
"""Consumers that get fewer messages, so that every run takes a few seconds."""
PATIENCE = 120


@dataclass(frozen=True)
class Run:
    """One worker's run, as seen from outside."""

    messages: int
    cpu: float
    """Seconds, with the start-up."""
    rss: int
    """The most memory it had, in bytes."""
    started: float
    """Seconds from its start to its first messages."""
    report: dict[str, Any]
    stub: float
    """Seconds of CPU of the stub meanwhile."""
    life: float
    """Seconds from its start to its end."""

    @property
    def wall(self) -> float:
        """Seconds from the first messages to the last delete."""
        return float(self.report["last"] - self.report["first"])


@dataclass(frozen=True)
class Sample:
    """A run less its start-up."""

    run: Run
    start: Run

    @property
    def cpu(self) -> float:
        """Seconds of CPU per 1,000 messages."""
        return (self.run.cpu - self.start.cpu) / (self.run.messages - self.start.messages) * 1000

    @property
    def rate(self) -> float:
        """Messages per second."""
        if "first" not in self.run.report:  # the emulator does not tell: the start-up is subtracted instead
            return (self.run.messages - self.start.messages) / (self.run.life - self.start.life)
        return self.run.messages / self.run.wall

    @property
    def calls(self) -> float:
        """API calls per 1,000 messages."""
        return float(sum(self.run.report["calls"].values()) / self.run.messages * 1000)

    @property
    def stub(self) -> float:
        """How busy the stub was, at most 1."""
        return min(1.0, self.run.stub / self.run.wall)


class Bench:
    """Runs workers against one stub."""

    def __init__(self, stub: StubServer | Emulator, *, cpu: int | None) -> None:
        self._stub = stub
        self._server = psutil.Process(stub.pid)
        self._pin = [] if cpu is None else ["taskset", "-c", str(cpu)]
        self._number = 0

    def run(self, peer: Peer, messages: int, *, tls: bool, concurrency: int) -> Run:
        """Run one worker to its end. Raises ``RuntimeError`` when it did not do its work."""
        self._number += 1
        queue = f"{peer.envelope}-{self._number}-{messages}"
        if isinstance(self._stub, Emulator):
            self._stub.prepare(queue, peer, messages)
        told = {
            "url": self._stub.tls_url if tls and isinstance(self._stub, StubServer) else self._stub.url,
            "queue_url": self._stub.queue_url(queue),
            "messages": messages,
            "concurrency": concurrency,
            **peer.told,
        }
        server = sum(self._server.cpu_times()[:2])
        started = time.monotonic()
        with tempfile.TemporaryFile() as output:
            command = [*self._pin, *peer.command()]
            environment = self._environment(json.dumps(told))
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=ROOT)
            usage = wait(process, PATIENCE)
            life = time.monotonic() - started
            report = self._stub.report(queue)
            if process.returncode or report["deleted"] != messages:
                output.seek(0)
                text = output.read().decode(errors="replace")[-2000:]
                raise RuntimeError(f"{peer.name}: exit {process.returncode}, {report['deleted']} deleted\n{text}")
        return Run(
            messages=messages,
            cpu=usage.ru_utime + usage.ru_stime,
            rss=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            started=report.get("first", started) - started,
            report=report,
            life=life,
            stub=sum(self._server.cpu_times()[:2]) - server,
        )

    def _environment(self, told: str) -> dict[str, str]:
        certificate = self._stub.certificate
        return {
            **{name: value for name, value in os.environ.items() if keep(name)},
            ARGUMENTS: told,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "PYTHONPATH": PATH,
            **({"AWS_CA_BUNDLE": certificate, "SSL_CERT_FILE": certificate} if certificate else {}),
        }


def keep(name: str) -> bool:
    """Whether a variable of this environment is passed on: none that steers an AWS client or a proxy."""
    return not (name.startswith("AWS_") or name.lower().endswith("_proxy") or name == "REQUESTS_CA_BUNDLE")


def wait(process: subprocess.Popen[bytes], seconds: float) -> Any:
    """Wait for a child and return its rusage; kill it when it takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.02)


def measure(bench: Bench, peers: list[Peer], options: argparse.Namespace, *, tls: bool) -> dict[str, list[Sample]]:
    """Run all peers in turn, so many rounds. One that fails is named and left out."""
    samples: dict[str, list[Sample]] = {}
    left = list(peers)
    for number in range(options.rounds):
        for peer in list(left):
            messages = int((FEW if peer.name in SLOW else MANY) * options.scale) // 100 * 100
            try:
                start = bench.run(peer, TEN, tls=tls, concurrency=options.concurrency)
                run = bench.run(peer, messages, tls=tls, concurrency=options.concurrency)
            except (RuntimeError, Missing) as error:
                print(f"without {peer.name}: {error}", file=sys.stderr)
                left.remove(peer)
                samples.pop(peer.name, None)
                continue
            samples.setdefault(peer.name, []).append(Sample(run, start))
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
        if number + 1 < options.rounds and options.verbose:
            show(rows(samples), markdown=options.markdown)
    return samples


HEAD = (
    "consumer", "postroom's CPU is ... of it", "CPU s/1,000", "spread", "messages/s", "p50 ms", "p99 ms", "peak MiB",
    "start-up s (CPU)", "calls/1,000", "stub busy",
)  # fmt: skip


def rows(samples: dict[str, list[Sample]]) -> list[tuple[str, ...]]:
    """Return the table, ratios first."""
    first = next(iter(samples.values()))
    table: list[tuple[str, ...]] = [HEAD]
    for name, taken in samples.items():
        cpus = [one.cpu for one in taken]
        ratio = statistics.median(mine.cpu / theirs.cpu for mine, theirs in zip(first, taken, strict=True))
        starts = [one.start for one in taken]
        table.append(
            (
                name,
                f"{ratio:.2f}x",
                f"{statistics.median(cpus):.4f}",
                f"{min(cpus):.4f}-{max(cpus):.4f}",
                f"{statistics.median(one.rate for one in taken):,.0f}",
                f"{statistics.median(one.run.report['p50'] for one in taken) * 1000:.1f}",
                f"{statistics.median(one.run.report['p99'] for one in taken) * 1000:.1f}",
                f"{statistics.median(one.run.rss for one in taken) / 2**20:.0f}",
                f"{statistics.median(s.started for s in starts):.2f} ({statistics.median(s.cpu for s in starts):.2f})",
                f"{statistics.median(one.calls for one in taken):.0f}",
                f"{statistics.median(one.stub for one in taken):.0%}",
            )
        )
    return table


def short_rows(samples: dict[str, list[Sample]]) -> list[tuple[str, ...]]:
    """Return the columns that are known without the stub."""
    known = ("consumer", "postroom's CPU is ... of it", "CPU s/1,000", "spread", "messages/s")
    table = []
    for name, taken in samples.items():
        cpus = [one.cpu for one in taken]
        first = next(iter(samples.values()))
        ratio = statistics.median(mine.cpu / theirs.cpu for mine, theirs in zip(first, taken, strict=True))
        rate = statistics.median(one.rate for one in taken)
        spread = f"{min(cpus):.4f}-{max(cpus):.4f}"
        table.append((name, f"{ratio:.2f}x", f"{statistics.median(cpus):.4f}", spread, f"{rate:,.0f}"))
    return [known, *table]


def show(table: list[tuple[str, ...]], *, markdown: bool) -> None:
    """Print a table, aligned or as Markdown."""
    if markdown:
        for number, row in enumerate(table):
            print("| " + " | ".join(row) + " |")
            if number == 0:
                print("|" + "---|" * len(row))
    else:
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        for row in table:
            print("  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in
                            enumerate(zip(row, widths, strict=True))))  # fmt: skip
    print(flush=True)


def verdict(samples: dict[str, list[Sample]]) -> None:
    """Print whether the stub was faster than everybody, and what follows for the figures."""
    slowest = max((statistics.median(one.stub for one in taken), name) for name, taken in samples.items())
    cost = statistics.median(one.run.stub / one.run.messages for one in next(iter(samples.values())))
    print(f"The stub was at most {slowest[0]:.0%} busy (with {slowest[1]}); it takes {cost * 1e6:.1f} us per message.")
    if slowest[0] > 0.9:
        print("That is too near to its limit: messages/s of that consumer is the stub's, its CPU is not.")
    print()


def chosen(only: str) -> list[Peer]:
    """Return the peers that can run here, and name the others."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    peers = []
    for peer in PEERS:
        if names and not any(peer.name.startswith(name) for name in names):
            continue
        try:
            print(f"{peer.name}: {peer.describe()}")
        except (Missing, subprocess.SubprocessError, OSError) as error:
            print(f"{peer.name}: left out, {error}")
        else:
            peers.append(peer)
    return peers


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each consumer; medians are shown")
    parser.add_argument("--scale", type=float, default=1.0, help="more or fewer messages per run")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--only", default="", help="beginnings of the names of consumers, separated by commas")
    parser.add_argument("--transport", choices=("all", "plain", "tls", "emulator"), default="all")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="show the table after every round")
    options = parser.parse_args()
    pinned = shutil.which("taskset") is not None and (os.cpu_count() or 1) > 1
    print(f"{platform.platform()}, {os.cpu_count()} CPUs; worker and stub {'pinned' if pinned else 'not pinned'}; "
          f"load {os.getloadavg()[0]:.1f} at the start")  # fmt: skip
    peers = chosen(options.only)
    stub_cpu, cpu = (1, 0) if pinned else (None, None)
    for transport, title in (("plain", "Plain HTTP"), ("tls", "TLS"), ("emulator", "The local broker, plain HTTP")):
        if options.transport not in {"all", transport}:
            continue
        tls = transport == "tls"
        with Emulator(cpu=stub_cpu) if transport == "emulator" else StubServer(tls=tls, cpu=stub_cpu) as server:
            samples = measure(Bench(server, cpu=cpu), peers, options, tls=tls)
        print(f"\n{title}, concurrency {options.concurrency}, {options.rounds} rounds, load {os.getloadavg()[0]:.1f}\n")
        if samples and transport == "emulator":
            show(short_rows(samples), markdown=options.markdown)
        elif samples:
            show(rows(samples), markdown=options.markdown)
            verdict(samples)


if __name__ == "__main__":
    main()
