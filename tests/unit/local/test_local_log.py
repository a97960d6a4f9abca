"""The persistent log: everything comes back, a torn end is dropped, a long log is made short."""

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from postroom.errors import ConfigurationError
from postroom.local import Broker, BrokerOptions, LocalBroker, persist
from postroom.local.persist import Log
from postroom.local.shapes import Send
from support.virtual import in_virtual_time
from unit.local.bench import START, Bench, text


class Kept(Bench):
    """A bench with a broker that keeps its state in a file, and can be opened again."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.log = Log(path, self.broker, self.now)

    def again(self) -> None:
        """Lose the broker as a kill does, and open another one on its file."""
        self.log._buffer.clear()  # what was noted but not flushed is lost
        os.close(self.log._file)
        self.broker = Broker(lambda: self.now, BrokerOptions(seed=8))
        self.log = Log(self.path, self.broker, self.now)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    """Make a broker with a log."""
    kept = Kept(tmp_path / "queues.log")
    yield kept
    kept.log.close()


def test_queues_come_back(kept: Kept) -> None:
    """Queues have their attributes, tags, times and receipt handles again; deleted ones are gone."""
    source, _ = kept.pair()
    kept.broker.tag_queue(source, {"a": "b"})
    kept.broker.delete_queue(kept.queue("gone"))
    before = kept.broker.get_attributes(source, ["All"])
    kept.send(source, "x")
    [message] = kept.take(source)
    kept.wait(10)
    kept.again()
    source = kept.broker.queue("source")
    after = kept.broker.get_attributes(source, ["All"])
    assert {**after, "ApproximateNumberOfMessagesNotVisible": "0"} == before
    assert source.tags == {"a": "b"}
    assert [queue.name for queue in kept.broker.list_queues()[0]] == ["dead", "source"]
    kept.delete(source, message)
    assert kept.counts(source) == (0, 0, 0)
    with pytest.raises(Exception, match="60 seconds"):
        kept.queue("gone")


def test_messages_come_back(kept: Kept) -> None:
    """Available, delayed and hidden messages are what they were, with time gone by meanwhile."""
    queue = kept.queue(VisibilityTimeout="30")
    kept.send(queue, "lying", message_attributes={"a": text("b")}, group="g")
    kept.send(queue, "held", "short", "given back", "deleted")
    kept.send(queue, "soon", delay_seconds=20)
    kept.send(queue, "late", delay_seconds=900)
    held = {message.body: message for message in kept.take(queue)}
    kept.back(queue, held["lying"], held["given back"])
    kept.back(queue, held["short"], seconds=5)
    kept.delete(queue, held["deleted"])
    kept.wait(20)
    kept.again()
    queue = kept.broker.queue("orders")
    assert kept.counts(queue) == (4, 1, 1)
    found = {message.body: message for message in kept.take(queue)}
    assert set(found) == {"lying", "given back", "short", "soon"}
    assert found["lying"].message_attributes == {"a": text("b")}
    assert found["lying"].attributes["MessageGroupId"] == "g"
    assert found["lying"].attributes["ApproximateReceiveCount"] == "2"
    assert found["lying"].message_id == held["lying"].message_id
    kept.delete(queue, held["held"])
    assert kept.counts(queue) == (0, 4, 1)


def test_fifo_comes_back(kept: Kept) -> None:
    """Locks, order, sequence numbers and deduplication survive."""
    queue = kept.queue("q.fifo", VisibilityTimeout="30")
    kept.send(queue, "a", "b", "c", group="g")
    request = Send(message_body="d", message_group_id="h", message_deduplication_id="once")
    first = kept.broker.send(queue, request)
    [a] = kept.take(queue, 1)
    kept.again()
    queue = kept.broker.queue("q.fifo")
    assert kept.broker.send(queue, request).message_id == first.message_id
    assert kept.bodies(queue) == ["d"]
    kept.delete(queue, a)
    assert kept.bodies(queue) == ["b", "c"]
    kept.wait(300)
    newer = kept.broker.send(queue, request)
    assert (newer.sequence_number or "") > (first.sequence_number or "")


def test_new_delay_of_a_fifo_queue_comes_back(kept: Kept) -> None:
    """A delay that was changed for messages that were there holds after a restart."""
    queue = kept.queue("q.fifo", DelaySeconds="900")
    kept.send(queue, "a", group="g")
    kept.broker.set_attributes(queue, {"DelaySeconds": "10"})
    kept.wait(10)
    kept.again()
    assert kept.bodies(kept.broker.queue("q.fifo")) == ["a"]


def test_dead_letters_and_tasks_come_back(kept: Kept) -> None:
    """Moved messages are where they were moved to, and a running task goes on."""
    source, dead = kept.pair()
    kept.send(source, *map(str, range(5)))
    kept.take(source, visibility_timeout=0)
    kept.take(source)
    handle = kept.broker.start_move(dead.arn, None, 1)
    kept.wait(2)
    assert kept.counts(source) == (2, 0, 0)
    kept.again()
    source, dead = kept.broker.queue("source"), kept.broker.queue("dead")
    assert (kept.counts(source), kept.counts(dead)) == ((2, 0, 0), (3, 0, 0))
    kept.wait(1)
    assert kept.counts(source) == (3, 0, 0)
    assert kept.broker.cancel_move(handle).approximate_number_of_messages_moved == 3
    kept.again()
    assert [task.status for task in kept.broker.list_moves(dead.arn)] == ["CANCELLED"]


def test_purge_comes_back(kept: Kept) -> None:
    """What was purged stays gone, and the pause between purges holds."""
    queue = kept.queue()
    kept.send(queue, "a")
    kept.broker.purge_queue(queue)
    kept.send(queue, "b")
    kept.again()
    queue = kept.broker.queue("orders")
    with pytest.raises(Exception, match="60 seconds"):
        kept.broker.purge_queue(queue)
    assert kept.bodies(queue) == ["b"]


def test_purge_of_a_fifo_queue_comes_back(kept: Kept) -> None:
    """Ids that were forgotten by a purge stay forgotten; one that was sent again since is known once, and expires."""
    queue = kept.queue("q.fifo")
    again, other = (Send(message_body="x", message_group_id="g", message_deduplication_id=each) for each in ("a", "b"))
    kept.broker.send(queue, again)
    kept.broker.send(queue, other)
    kept.wait(10)
    kept.broker.purge_queue(queue)
    kept.broker.send(queue, again)
    kept.again()
    queue = kept.broker.queue("q.fifo")
    kept.broker.send(queue, other)
    assert kept.counts(queue) == (2, 0, 0)
    kept.wait(300)
    kept.broker.send(queue, again)
    kept.broker.send(queue, other)
    kept.again()
    assert kept.counts(kept.broker.queue("q.fifo")) == (4, 0, 0)


def test_expired_messages_do_not_come_back(kept: Kept) -> None:
    """What expired, before or after the kill, is gone."""
    queue = kept.queue(MessageRetentionPeriod="60")
    kept.send(queue, "a")
    kept.wait(60)
    assert kept.bodies(queue) == []
    kept.send(queue, "b")
    kept.again()
    kept.wait(60)
    assert kept.bodies(kept.broker.queue("orders")) == []


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 50])
def test_torn_end(kept: Kept, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    """A record that was cut off is dropped with what follows; what was whole stays, and writing goes on."""
    queue = kept.queue()
    kept.send(queue, "whole", "torn")
    size = kept.path.stat().st_size
    kept.again()
    with kept.path.open("r+b") as file:
        file.truncate(size - cut)
    kept.again()
    queue = kept.broker.queue("orders")
    assert kept.bodies(queue, visibility_timeout=0) == ["whole"]
    kept.send(queue, "new")
    kept.again()
    assert kept.bodies(kept.broker.queue("orders")) == ["whole", "new"]
    assert not caplog.messages


def test_a_damaged_log_is_told(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """A record in its middle, or zeros at its end, as a machine that crashed may leave them."""
    queue = kept.queue()
    kept.send(queue, "whole", "damaged", "behind")
    kept.again()
    data = kept.path.read_bytes()
    kept.path.write_bytes(data.replace(b"damaged", b"DAMAGED") + bytes(50))
    kept.again()
    assert kept.bodies(kept.broker.queue("orders"), visibility_timeout=0) == ["whole"]
    assert "is damaged: its last" in caplog.text
    kept.path.write_bytes(kept.path.read_bytes() + bytes(50))
    caplog.clear()
    kept.again()
    assert kept.bodies(kept.broker.queue("orders")) == ["whole"]
    assert "is damaged: its last 50 bytes are dropped" in caplog.text


def test_a_log_that_cannot_be_shortened_grows_on(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was sent is in it: no client is told of a failure. Nothing takes room beside it, and it is said once."""
    monkeypatch.setattr(persist, "_COMPACT_ABOVE", 2_000)
    kept.log._compact_at = 2_000
    source = kept.queue()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(persist, "_write_all", full)
        for number in range(10):
            kept.send(source, f"{number}" * 200)
    assert not kept.path.with_name("queues.log.new").exists()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "could not be shortened, and grows on ([Errno 28] No space left on device)" in caplog.text
    kept.again()
    assert len(kept.bodies(kept.broker.queue("orders"))) == 10


def test_compacted(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is much longer than its content is rewritten, and nothing is lost by that."""
    kept.log._compact_at = 20_000
    monkeypatch.setattr(persist, "_COMPACT_ABOVE", 20_000)
    source, dead = kept.pair(VisibilityTimeout="600")
    fifo = kept.queue("q.fifo", ContentBasedDeduplication="true")
    kept.send(fifo, "once", group="g")
    kept.delete(fifo, *kept.take(fifo))
    kept.send(dead, "dead")
    kept.send(source, "stays")
    [stays] = kept.take(source, 1)
    kept.broker.delete_queue(kept.queue("gone"))
    kept.broker.start_move(dead.arn, source.arn, 1)
    sizes = []
    for number in range(300):
        kept.send(source, f"{number}" * 20)
        kept.delete(source, *kept.take(source))
        sizes.append(kept.path.stat().st_size)
    assert max(sizes) < 25_000
    assert min(sizes[100:]) < 15_000
    assert not kept.path.with_name("queues.log.new").exists()
    kept.again()
    source, fifo = kept.broker.queue("source"), kept.broker.queue("q.fifo")
    assert kept.counts(source) == (0, 1, 0)
    kept.delete(source, stays)
    kept.send(fifo, "once", group="g")
    assert kept.counts(fifo) == (0, 0, 0)
    kept.wait(1)
    assert kept.bodies(source) == ["dead"]
    with pytest.raises(Exception, match="60 seconds"):
        kept.queue("gone")


def test_failed_write_is_tried_again(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk fails the action; what it had decided is written with the next one."""
    queue = kept.queue()
    write = os.write

    def full(*_args: Any) -> int:
        raise OSError(28, "No space left on device")

    def short(file: int, data: bytes) -> int:
        return write(file, bytes(data[:3]))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        kept.send(queue, "a")
    monkeypatch.setattr(os, "write", short)
    kept.send(queue, "b")
    monkeypatch.undo()
    kept.again()
    assert kept.bodies(kept.broker.queue("orders")) == ["a", "b"]


@pytest.mark.parametrize("content", [b"something else entirely", b"postroom-queue-log 2\n"])
def test_other_files_are_left_alone(tmp_path: Path, content: bytes) -> None:
    """A file that is not such a log is refused, not overwritten."""
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="not a log"):
        Log(path, Bench().broker, START)
    assert path.read_bytes() == content


def test_one_broker_per_file(kept: Kept) -> None:
    """A second broker on the same file is refused; a folder that does not exist as well."""
    with pytest.raises(ConfigurationError, match="in use"):
        Log(kept.path, Bench().broker, START)
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        Log(kept.path.parent / "none" / "log", Bench().broker, START)


def test_unreadable_records(tmp_path: Path) -> None:
    """A log with whole records that make no sense is refused with what to do."""
    path = tmp_path / "log"
    path.write_bytes(persist._MAGIC + persist._frame(persist._Gone(5, 5)))
    with pytest.raises(ConfigurationError, match="remove it"):
        Log(path, Bench().broker, START)


@in_virtual_time
async def test_in_a_loop(tmp_path: Path) -> None:
    """An in-process broker keeps its queues from one `async with` to the next, and its time never goes back."""
    path = tmp_path / "log"
    async with LocalBroker(persist=path, epoch=START, time_scale=100) as broker:
        broker.create_queue("q")
        await asyncio.sleep(10)
        broker.send("q", "x")
    async with LocalBroker(persist=path, epoch=START) as broker:
        [message] = await broker.receive("q")
        assert int(message.attributes["ApproximateFirstReceiveTimestamp"]) >= (START + 1000) * 1000


@in_virtual_time
async def test_a_broken_log_leaves_the_broker_closed(tmp_path: Path) -> None:
    """A broker with a file that cannot be used does not open."""
    broker = LocalBroker(persist=tmp_path)
    with pytest.raises(ConfigurationError):
        await broker.__aenter__()
    assert not broker.is_open
