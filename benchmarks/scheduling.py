"""What the scheduler costs per message, whatever the number of tenants: add, grant and finish together.

    python benchmarks/scheduling.py

*Backlogged*: every tenant always has work waiting. *Passing*: every message is the only one of its tenant, so that a
lane is made and forgotten each time. The least of five runs; making the ticket is included.
"""

import time
from collections import deque

from postroom.scheduling import Scheduler, Ticket

TENANTS = (1, 100, 10_000)
MESSAGES = 30_000


def scheduler() -> Scheduler[Ticket]:
    """Make one as a consumer with 64 slots has it."""
    return Scheduler(total=64, per_tenant=8, reserved=5)


def backlogged(tenants: int) -> float:
    """Return the CPU seconds per message while every tenant has a backlog."""
    made = scheduler()
    for tenant in range(tenants):
        for _ in range(3):
            made.add(Ticket(tenant))
    running: deque[Ticket] = deque()
    while (ticket := made.grant()) is not None:
        running.append(ticket)
    began = time.process_time()
    for _ in range(MESSAGES):
        ended = running.popleft()
        made.finish(ended, seconds=0.02)
        made.add(Ticket(ended.tenant))
        while (ticket := made.grant()) is not None:
            running.append(ticket)
    return (time.process_time() - began) / MESSAGES


def passing(tenants: int) -> float:
    """Return the CPU seconds per message while tenants come with one message each."""
    made = scheduler()
    began = time.process_time()
    for number in range(MESSAGES):
        made.add(Ticket(number % tenants))
        ticket = made.grant()
        assert ticket is not None
        made.finish(ticket, seconds=0.02)
    return (time.process_time() - began) / MESSAGES


def main() -> None:
    """Print the table."""
    print("| tenants | backlogged | passing |\n|---|---|---|")
    for tenants in TENANTS:
        figures = [min(work(tenants) for _ in range(5)) * 1e6 for work in (backlogged, passing)]
        print(f"| {tenants:,} | {figures[0]:.2f} µs | {figures[1]:.2f} µs |", flush=True)


if __name__ == "__main__":
    main()
