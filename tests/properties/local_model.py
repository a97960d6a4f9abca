"""A naive model of one standard queue and its dead-letter queue, to compare the broker with.

It keeps messages in plain lists and looks at all of them every time: slow, and simple enough to be read as the rules.
"""

from dataclasses import dataclass, field
from typing import Protocol

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

VISIBILITY = 30
RETENTION = 400
MAX_RECEIVES = 3


class Refused(Exception):
    """The queue refused; the argument is SQS's code."""


class Driver(Protocol):
    """How the machine reaches the queue under test, and its clock."""

    def send(self, bodies: list[str], delay: int) -> None:
        """Send bodies, one by one or in one batch."""
        ...

    def receive(self, queue: str, limit: int, visibility: int | None) -> list[tuple[str, str, int]]:
        """Receive, and return (body, receipt handle, receive count)."""
        ...

    def delete(self, queue: str, handle: str) -> None:
        """Delete. Raises Refused."""
        ...

    def change(self, queue: str, handle: str, seconds: int) -> None:
        """Change a visibility timeout. Raises Refused."""
        ...

    def purge(self) -> None:
        """Purge the source queue."""
        ...

    def counts(self, queue: str) -> tuple[int, int, int]:
        """Return (available, in flight, delayed)."""
        ...

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        ...

    def close(self) -> None:
        """Clean up."""
        ...


@dataclass
class Item:
    """One message. ``since`` is its place: when it became available, and the tick that decides between equals."""

    body: str
    sent_at: float
    visible_at: float
    since: tuple[float, int]
    queue: str = "source"
    receives: int = 0
    receives_here: int = 0
    given_back: bool = False
    handles: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def lay(self, now: float, tick: int) -> None:
        """Be available from now on, behind all others."""
        self.visible_at = now
        self.since = (now, tick)


class QueueMachine(RuleBasedStateMachine):
    """Does the same to the model and to the queue under test, and compares all they say."""

    def make(self) -> Driver:
        """Make the queue under test. Subclasses say how."""
        raise AssertionError("a subclass makes the driver")

    def __init__(self) -> None:
        super().__init__()
        self.driver = self.make()
        self.now = 0.0
        self.items: list[Item] = []
        self.used: list[tuple[Item, str, str]] = []  # (message, queue, handle) of every receive
        self.purged_at = -1_000.0
        self.tick = 0
        self.bodies = 0

    def teardown(self) -> None:
        """Clean up after one run."""
        self.driver.close()

    # -- the model -----------------------------------------------------------------------------------------------

    def next_tick(self) -> int:
        """Count what happens, for the order of what happens at one time."""
        self.tick += 1
        return self.tick

    def forget_expired(self) -> None:
        """Drop messages past their retention period."""
        self.items = [item for item in self.items if item.sent_at + RETENTION > self.now]

    def available(self, queue: str) -> list[Item]:
        """Return what a receive may take, in order."""
        items = [item for item in self.items if item.queue == queue and item.visible_at <= self.now]
        return sorted(items, key=lambda item: item.since)

    def expected_receive(self, queue: str, limit: int, visibility: int) -> list[Item]:
        """Receive in the model; return the messages in order."""
        taken: list[Item] = []
        for item in self.available(queue):
            if len(taken) == limit:
                break
            if queue == "source" and item.receives_here >= MAX_RECEIVES:
                item.queue = "dead"
                item.receives_here = 0
                item.lay(self.now, self.next_tick())
                continue
            taken.append(item)
        for item in taken:
            item.receives += 1
            item.receives_here += 1
            item.given_back = False
            self.hide(item, visibility)
        return taken

    def hide(self, item: Item, seconds: int) -> None:
        """Hide a message, which keeps its place; for no time at all, which costs it its place."""
        item.visible_at = self.now + seconds
        if not seconds:
            item.lay(self.now, self.next_tick())

    def latest(self, item: Item, handle: str) -> bool:
        """Whether a message exists and a handle is that of its latest receive."""
        return item in self.items and item.handles[-1] == (item.queue, handle)

    # -- what is done to both ------------------------------------------------------------------------------------

    @initialize()
    def start(self) -> None:
        """Start with an empty queue."""
        assert self.driver.counts("source") == (0, 0, 0)

    @rule(count=st.integers(1, 10), delay=st.sampled_from([0, 0, 0, 5, 40]))
    def send(self, count: int, delay: int) -> None:
        """Send messages."""
        bodies = [f"m{self.bodies + number}" for number in range(count)]
        self.bodies += count
        self.driver.send(bodies, delay)
        for body in bodies:
            until = self.now + delay
            self.items.append(Item(body, self.now, until, (until, self.next_tick())))

    @rule(
        queue=st.sampled_from(["source", "source", "source", "dead"]),
        limit=st.integers(1, 10),
        visibility=st.sampled_from([None, None, 0, 5, 100]),
    )
    def receive(self, queue: str, limit: int, visibility: int | None) -> None:
        """Receive: the same messages, in the same order, with the same counts."""
        expected = self.expected_receive(queue, limit, VISIBILITY if visibility is None else visibility)
        received = self.driver.receive(queue, limit, visibility)
        found = [(body, count) for body, _, count in received]
        wanted = [(item.body, item.receives) for item in expected]
        assert found == wanted, f"received {found}, the model says {wanted}"
        for item, (_, handle, _) in zip(expected, received, strict=True):
            item.handles.append((queue, handle))
            self.used.append((item, queue, handle))

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Delete by any handle there ever was: only the latest one deletes, all succeed."""
        item, queue, handle = self.used[-1 - data.draw(st.integers(0, min(20, len(self.used)) - 1))]
        self.driver.delete(queue, handle)
        if self.latest(item, handle):
            self.items.remove(item)

    @precondition(lambda self: self.used)
    @rule(data=st.data(), seconds=st.sampled_from([0, 0, 1, 10, 100]))
    def change(self, data: st.DataObject, seconds: int) -> None:
        """Change a timeout by any handle there ever was: refused if the message is gone or was given back."""
        item, queue, handle = self.used[-1 - data.draw(st.integers(0, min(20, len(self.used)) - 1))]
        expected = ""
        if item not in self.items or item.queue != queue:
            expected = "InvalidParameterValue"
        elif item.visible_at <= self.now and item.given_back:
            expected = "AWS.SimpleQueueService.MessageNotInflight"
        if expected:
            with pytest.raises(Refused, match=expected):
                self.driver.change(queue, handle, seconds)
            return
        self.driver.change(queue, handle, seconds)
        item.given_back = seconds == 0
        self.hide(item, seconds)

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.75, 5.0, 25.0, 30.0, 100.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.driver.wait(seconds)
        self.now += seconds
        self.forget_expired()

    @precondition(lambda self: self.now >= self.purged_at + 60 and self.items)
    @rule()
    def purge(self) -> None:
        """Purge the source queue."""
        self.driver.purge()
        self.purged_at = self.now
        self.items = [item for item in self.items if item.queue != "source"]

    @invariant()
    def counted(self) -> None:
        """Both queues count the same messages in the same states."""
        for queue in ("source", "dead"):
            items = [item for item in self.items if item.queue == queue]
            hidden = [item for item in items if item.visible_at > self.now]
            flying = sum(item.receives > 0 for item in hidden)
            expected = (len(items) - len(hidden), flying, len(hidden) - flying)
            counts = self.driver.counts(queue)
            assert counts == expected, f"{queue}: {counts}, the model says {expected}"
