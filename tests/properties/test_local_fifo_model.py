"""FIFO queues and fair queues: the rules that must hold after any sequence of operations."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from postroom.local import Broker, BrokerError, BrokerOptions
from postroom.local.fair import FairOrder
from postroom.local.shapes import Receive, Received, Send

GROUPS = ["a", "b", "c"]


@dataclass
class Item:
    """One message of the model; its place in the list is its place in the order."""

    body: str
    group: str
    hidden_until: float = 0.0
    handle: str = ""


class FifoMachine(RuleBasedStateMachine):
    """Checks every receive of a FIFO queue against the order of its groups."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_700_000_000.0
        self.broker = Broker(lambda: self.now, BrokerOptions(seed=5))
        self.queue = self.broker.create_queue("q.fifo", {"FifoQueue": "true", "VisibilityTimeout": "30"})
        self.items: list[Item] = []
        self.sent: dict[str, tuple[float, str | None]] = {}
        self.number = 0

    def deliverable(self) -> dict[str, list[str]]:
        """Return per group what may be received now, in order: everything before the first one in flight."""
        found: dict[str, list[str]] = {group: [] for group in GROUPS}
        locked: set[str] = set()
        for item in self.items:
            if item.hidden_until > self.now:
                locked.add(item.group)
            elif item.group not in locked:
                found[item.group].append(item.body)
        return found

    def by_handle(self, data: st.DataObject) -> Item:
        """Choose a message that was received."""
        return data.draw(st.sampled_from([item for item in self.items if item.handle]), label="message")

    @rule(group=st.sampled_from(GROUPS), count=st.integers(1, 5))
    def send(self, group: str, count: int) -> None:
        """Send new messages to a group."""
        for _ in range(count):
            self.number += 1
            body = f"{group}{self.number}"
            request = Send(message_body=body, message_group_id=group, message_deduplication_id=body)
            self.sent[body] = (self.now, self.broker.send(self.queue, request).sequence_number)
            self.items.append(Item(body, group))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        """Send with a deduplication id that was used: nothing is stored within five minutes, as ever after it."""
        body = data.draw(st.sampled_from(sorted(self.sent)), label="id")
        at, sequence = self.sent[body]
        request = Send(message_body=body, message_group_id=body[0], message_deduplication_id=body)
        again = self.broker.send(self.queue, request).sequence_number
        if self.now < at + 300:
            assert again == sequence
        else:
            assert (again or "") > (sequence or "")
            self.sent[body] = (self.now, again)
            self.items.append(Item(body, body[0]))

    @rule(limit=st.integers(1, 10), timeout=st.sampled_from([None, None, 0, 5]))
    def receive(self, limit: int, timeout: int | None) -> None:
        """Receive: as many as there are, each group from its front, nothing past a message in flight."""
        expected = self.deliverable()
        request = Receive(max_number_of_messages=limit, visibility_timeout=timeout, attribute_names=["All"])
        messages = self.broker.receive(self.queue, request)
        assert len(messages) == min(limit, sum(map(len, expected.values())))
        for group in GROUPS:
            bodies = [each.body for each in messages if each.attributes["MessageGroupId"] == group]
            assert bodies == expected[group][: len(bodies)]
        until = self.now + (30 if timeout is None else timeout)
        self.note(messages, until)

    def note(self, messages: list[Received], until: float) -> None:
        """Note in the model what was received."""
        for message in messages:
            item = next(each for each in self.items if each.body == message.body and each.hidden_until <= self.now)
            item.hidden_until = until
            item.handle = message.receipt_handle

    @precondition(lambda self: any(item.handle for item in self.items))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Delete by the latest handle: it works while the message is in flight, and only then."""
        item = self.by_handle(data)
        try:
            self.broker.delete(self.queue, item.handle)
        except BrokerError:
            assert item.hidden_until <= self.now
        else:
            assert item.hidden_until > self.now
            self.items.remove(item)

    @precondition(lambda self: any(item.handle for item in self.items))
    @rule(data=st.data(), seconds=st.sampled_from([0, 0, 3, 60]))
    def change(self, data: st.DataObject, seconds: int) -> None:
        """Change a timeout by the latest handle, which works while the message is in flight, and only then."""
        item = self.by_handle(data)
        try:
            self.broker.change_visibility(self.queue, item.handle, seconds)
        except BrokerError:
            assert item.hidden_until <= self.now
        else:
            assert item.hidden_until > self.now
            item.hidden_until = self.now + seconds

    @rule(seconds=st.sampled_from([1.0, 5.0, 30.0, 290.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    @invariant()
    def counted(self) -> None:
        """The counts are those of the model."""
        attributes = self.broker.get_attributes(self.queue, ["All"])
        flying = sum(item.hidden_until > self.now for item in self.items)
        assert attributes["ApproximateNumberOfMessagesNotVisible"] == str(flying)
        assert attributes["ApproximateNumberOfMessages"] == str(len(self.items) - flying)


class FairMachine(RuleBasedStateMachine):
    """Checks that a fair queue delivers everything once, and quiet tenants before noisy ones."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_700_000_000.0
        self.broker = Broker(lambda: self.now, BrokerOptions(seed=5))
        self.queue = self.broker.create_queue("q", {"VisibilityTimeout": "600"})
        self.lying: dict[str, str | None] = {}
        self.flying: list[tuple[str, str | None, str]] = []
        self.number = 0

    def noisy(self) -> set[str]:
        """Return the tenants that are noisy now, as the queue measures them."""
        assert isinstance(self.queue.order, FairOrder)
        return set(self.queue.order.noisy_groups(self.now))

    @rule(group=st.sampled_from([None, "small", "big", "big"]), count=st.integers(1, 60))
    def send(self, group: str | None, count: int) -> None:
        """Send messages of one tenant, or of none."""
        for _ in range(count):
            self.number += 1
            self.broker.send(self.queue, Send(message_body=str(self.number), message_group_id=group))
            self.lying[str(self.number)] = group

    @rule(times=st.integers(1, 40))
    def receive(self, times: int) -> None:
        """Receive one by one: a noisy tenant's message only when no quiet one's is there."""
        for _ in range(times):
            noisy = self.noisy()
            messages = self.broker.receive(self.queue, Receive())
            assert len(messages) == min(1, len(self.lying))
            for message in messages:
                group = self.lying.pop(message.body)
                if group in noisy:
                    assert all(other in noisy for other in self.lying.values())
                self.flying.append((message.body, group, message.receipt_handle))

    @rule(count=st.integers(1, 60), back=st.booleans())
    def settle(self, count: int, *, back: bool) -> None:
        """Delete messages that are in flight, or give them back."""
        for body, group, handle in self.flying[:count]:
            if back:
                self.broker.change_visibility(self.queue, handle, 0)
                self.lying[body] = group
            else:
                self.broker.delete(self.queue, handle)
        del self.flying[:count]

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 100.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass; timeouts that end in it are ended first, to keep the model simple."""
        for _, _, handle in self.flying:
            self.broker.change_visibility(self.queue, handle, 600)
        self.now += seconds

    @invariant()
    def nothing_lost(self) -> None:
        """Every message is where the model has it."""
        assert (self.queue.available, self.queue.in_flight) == (len(self.lying), len(self.flying))


TestFifo = FifoMachine.TestCase
TestFifo.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestFair = FairMachine.TestCase
TestFair.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
