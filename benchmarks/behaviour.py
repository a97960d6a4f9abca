"""How consumers behave when it is not all smooth: a slow message, a signal, a bad body, a handler that fails.

Every consumer of ``benchmarks/peers`` runs in a process of its own, ten messages at a time, against the local broker.
What it did is read from the queue and from what its handler wrote, not from what it says of itself.

    python -m benchmarks.behaviour [--only postroom,fanferro] [--markdown]

* **slow one**: 199 messages that take no time beside one that takes 5 s. Seconds until the 199 are done.
* **SIGTERM**: 30 messages of 3 s, the signal one second after the first began. How it exited and after how long; what
  was done, what is visible to others at once, what is hidden until its visibility timeout (30 s), and what is gone
  undone.
* **bad body**: ``{not json`` between five good messages, and five more after four seconds.
* **failing handler**: a handler that raises. Whether the message is still in the queue after eight seconds.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
from benchmarks.consumers import PATH, chosen, keep, show
from benchmarks.emulator import Queue
from benchmarks.peers.environments import ROOT, Peer, interpreter
from benchmarks.peers.work import ARGUMENTS

from postroom.local.threaded import ThreadedServer

CONCURRENCY = 10
PATIENCE = 25.0
"""Seconds for whatever a worker is waited for."""
DIES = 40.0
"""Seconds to exit after SIGTERM; then it is killed."""


class Worker:
    """A worker process and what its handler wrote."""

    def __init__(self, peer: Peer, told: Mapping[str, object]) -> None:
        self._output = tempfile.NamedTemporaryFile(prefix="behaviour-", suffix=".txt")  # noqa: SIM115 - closed by stop
        environment = {name: value for name, value in os.environ.items() if keep(name)}
        environment |= {
            ARGUMENTS: json.dumps({**told, "messages": 0, "concurrency": CONCURRENCY, **peer.told}),
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "PYTHONPATH": PATH,
        }
        self.process = subprocess.Popen(
            command(peer), env=environment, stdout=self._output, stderr=subprocess.DEVNULL, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip

    def said(self, what: str) -> dict[str, list[float]]:
        """Return the messages that began, or are done, each with the times when."""
        found: dict[str, list[float]] = {}
        for line in Path(self._output.name).read_text(encoding="utf-8").splitlines():
            word, _, rest = line.partition(" ")
            if word == what:
                name, _, at = rest.rpartition(" ")
                found.setdefault(name, []).append(float(at))
        return found

    def wait_for(self, condition: Callable[[], bool], *, seconds: float = PATIENCE) -> bool:
        """Wait until something is so, or the process is dead, or the time is over; return whether it is so."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        return condition()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def terminate(self) -> tuple[int, float]:
        """Send SIGTERM and return the exit code and the seconds until it came; kill it after ``DIES``."""
        sent = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(DIES)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self.process.wait()
        return code, time.monotonic() - sent

    def kill(self) -> None:
        """End the process and its children."""
        if self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def close(self) -> None:
        """End what is left, and forget what it wrote."""
        self.kill()
        self._output.close()


def command(peer: Peer) -> list[str]:
    """Return the command that runs a worker as its users would."""
    if peer.worker != "taskiq":
        return peer.command()
    python = str(interpreter(peer.environment))
    return [python, "-m", "taskiq", "worker", "--workers", "1", "--max-async-tasks", str(CONCURRENCY), "--max-prefetch",
            "10", "benchmarks.peers.taskiq_worker:broker"]  # fmt: skip


# The scenarios. Each returns one cell of the table.


def slow_one(worker: Worker, queue: Queue) -> str:
    """One slow message among fast ones."""
    started = worker.wait_for(lambda: bool(worker.said("done")))  # warm: connections, imports
    fast = {f"fast-{number}": "" for number in range(199)}
    items = list(fast.items())
    queue.send(dict([*items[:5], ("slow", "sleep 5"), *items[5:]]))
    worker.wait_for(lambda: len(worker.said("done").keys() & fast.keys()) == len(fast))
    done = worker.said("done")
    times = [done[name][0] for name in fast if name in done]
    if not started or len(times) < len(fast):
        return f"only {len(times)} of {len(fast)} done"
    begun = min(at[0] for name, at in worker.said("begin").items() if name in fast)
    return f"{max(times) - begun:.2f} s"


def sigterm(worker: Worker, queue: Queue) -> str:
    """Thirty messages of three seconds, and a signal."""
    queue.send({f"long-{number}": "sleep 3" for number in range(30)})
    if not worker.wait_for(lambda: any(name.startswith("long") for name in worker.said("begin"))):
        return "nothing began"
    time.sleep(1)
    code, seconds = worker.terminate()
    done = sum(name.startswith("long") for name in worker.said("done"))
    visible, hidden = queue.counts()
    undone = 30 - done
    twice, gone = max(0, visible + hidden - undone), max(0, undone - visible - hidden)
    told = f"exit {code} after {seconds:.1f} s; {done} done, {visible} visible, {hidden} hidden"
    return told + (f", {gone} GONE" if gone else "") + (f", {twice} done but not deleted" if twice else "")


def bad_body(worker: Worker, queue: Queue) -> str:
    """Something that is no JSON, with good messages before and after."""
    queue.send({f"before-{number}": "" for number in range(3)})
    queue.send_bodies(["{not json"])
    queue.send({f"before-{number}": "" for number in range(3, 5)})
    time.sleep(4)
    queue.send({f"after-{number}": "" for number in range(5)})
    worker.wait_for(lambda: sum(name.startswith("after") for name in worker.said("done")) == 5, seconds=6)
    time.sleep(1)
    good = sum(name.startswith(("before", "after")) for name in worker.said("done"))
    left = sum(queue.counts()) - (10 - good)
    fate = "kept" if left > 0 else "DELETED"
    return f"{'lives' if worker.alive else f'DIES ({worker.process.returncode})'}, {good} of 10 done, bad one {fate}"


def failing(worker: Worker, queue: Queue) -> str:
    """A handler that raises."""
    queue.send({"failing": "fail"})
    worker.wait_for(lambda: "failing" in worker.said("begin"))
    time.sleep(8)
    calls = len(worker.said("begin").get("failing", []))
    fate = "kept" if sum(queue.counts()) else "DELETED"
    return f"{'lives' if worker.alive else 'DIES'}, message {fate}, {calls} call{'s' * (calls != 1)} in 8 s"


SCENARIOS: dict[str, Callable[[Worker, Queue], str]] = {
    "slow one: 199 others done in": slow_one,
    "SIGTERM, 30 x 3 s": sigterm,
    "bad body": bad_body,
    "failing handler": failing,
}


def observe(server: ThreadedServer, peer: Peer, scenario: str) -> str:
    """Run one peer through one scenario."""
    sqs: Any = boto3.client("sqs", **server.client_options)
    play = SCENARIOS[scenario]
    queue = Queue(sqs, peer, play.__name__)
    queue.send({"first": ""})
    worker = Worker(peer, {"url": server.endpoint_url, "queue_url": queue.url})
    try:
        if not worker.wait_for(lambda: "first" in worker.said("done")):
            return "did not start"
        return play(worker, queue)
    finally:
        worker.close()
        sqs.close()


def main() -> None:
    """Run every peer through every scenario; only the first is about speed, so the others run side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="beginnings of the names of consumers, separated by commas")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if shutil.which("kill") is None or os.name != "posix":
        sys.exit("this needs POSIX signals")
    peers = [
        peer for peer in chosen(options.only) if peer.name not in {"postroom, hot path off", "postroom, newer Python"}
    ]
    table: list[tuple[str, ...]] = [("consumer", *SCENARIOS)]
    cells: dict[tuple[str, str], str] = {}
    with ThreadedServer() as server:
        for scenario, play in SCENARIOS.items():
            with ThreadPoolExecutor(1 if play is slow_one else len(peers) or 1) as threads:
                found = threads.map(lambda peer, scenario=scenario: observe(server, peer, scenario), peers)
                cells |= {(peer.name, scenario): cell for peer, cell in zip(peers, found, strict=True)}
    table += [(peer.name, *(cells[peer.name, scenario] for scenario in SCENARIOS)) for peer in peers]
    print()
    show(table, markdown=options.markdown)


if __name__ == "__main__":
    main()
