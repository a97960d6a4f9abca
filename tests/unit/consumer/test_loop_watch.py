"""A blocked event loop is noticed while it is blocked, and the log names who blocks it."""

import asyncio
import inspect
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from postroom.consumer import loop_watch
from postroom.consumer.loop_watch import LoopWatch
from postroom.tasks import Tasks
from support.jobs import job
from support.virtual import in_virtual_time

LATE = 0.4


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Count a loop as blocked after less than half a second, which a busy machine does not take."""
    monkeypatch.setattr(loop_watch, "TICK", 0.01)
    monkeypatch.setattr(loop_watch, "LATE", LATE)
    monkeypatch.setattr(loop_watch, "CONFIRM", 0.01)
    monkeypatch.setattr(loop_watch, "SLACK", 0.01)
    yield
    assert watching() == []


def watching() -> list[threading.Thread]:
    """Return the threads that watch, once those that are asked to end have ended."""
    for thread in threading.enumerate():
        if thread.name == "postroom-loop-watch" and not loop_watch._thread._loops:
            thread.join(20)
    return [thread for thread in threading.enumerate() if thread.name == "postroom-loop-watch"]


class Seen(logging.Handler):
    """Counts warnings, and tells a blocked loop, from the watching thread, that it was noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.fields: list[tuple[object, object]] = []
        self.noticed = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        if record.levelno >= logging.WARNING:
            self.texts.append(record.getMessage())
            self.fields.append((vars(record)["tenant"], vars(record)["message_id"]))
            self.noticed.set()


@pytest.fixture
def log() -> Iterator[Seen]:
    """What the consumer's logger says."""
    logger = logging.getLogger("postroom.consumer")
    logger.addHandler(seen := Seen())
    yield seen
    logger.removeHandler(seen)


def watch(*running: str, waiting: int = 0) -> LoopWatch:
    """Make a watch of the running loop, of a consumer with messages that are handled and others that wait."""
    jobs = {name: job("acme", number) for number, name in enumerate(running, 1)}
    return LoopWatch(Tasks(lambda _error: None), lambda: jobs, lambda: len(jobs) + waiting)


async def ticks(watched: LoopWatch) -> None:
    """Wait until the loop gave a sign of life and a block, if there was one, is over."""
    inner = watched._watched
    assert inner is not None
    due = inner._due
    while inner._due == due:
        await asyncio.sleep(0.001)


async def blocked_until_noticed(log: Seen, watched: LoopWatch) -> None:
    """Block the loop, as a handler does, until a warning came and the watching thread has noted the block."""
    assert log.noticed.wait(20)
    inner = watched._watched
    assert inner is not None
    while inner._block is None:
        time.sleep(0.001)  # noqa: ASYNC251 - the loop is to be blocked


async def test_a_blocked_loop_is_said_once_while_it_is_blocked_and_once_after(log: Seen) -> None:
    """With task, file and line, with how many wait, and with the whole time at the end."""
    watched = watch("postroom-message-1", "postroom-message-2", "postroom-message-3", waiting=40)
    watched.start()
    try:
        await ticks(watched)
        work = blocked_until_noticed(log, watched)
        await asyncio.create_task(work, name="postroom-message-1")
        assert len(log.texts) == 1  # it was told while the loop was blocked
        await ticks(watched)
    finally:
        watched.close()
    began, ended = log.texts
    assert "event loop is blocked" in began
    assert "by postroom-message-1 of tenant acme, at " in began
    assert log.fields == [("acme", job("acme", 1).message.id)] * 2
    assert "threading.py" in began
    assert f"called at {__file__}:" in began
    assert "in blocked_until_noticed" in began
    assert "42 other messages" in began
    assert "runs again" in ended
    assert "postroom-message-1" in ended
    assert watched.max_lag >= LATE


async def test_a_child_process_that_is_waited_for_blocks_the_loop_too(log: Seen) -> None:
    """Although it waits in a selector, as an idle loop does."""
    watched = watch()
    watched.start()
    try:
        await ticks(watched)
        command = [sys.executable, "-c", "import time; time.sleep(0.8)"]
        subprocess.run(command, check=True, capture_output=True)  # noqa: ASYNC221 - what is tested
        await ticks(watched)
    finally:
        watched.close()
    assert "in test_a_child_process_that_is_waited_for_blocks_the_loop_too" in log.texts[0]


async def test_a_callback_that_blocks_is_named_as_one(log: Seen) -> None:
    """There is no task then."""
    watched = watch()
    watched.start()
    try:
        await ticks(watched)
        done = asyncio.get_running_loop().create_future()

        def callback() -> None:
            log.noticed.wait(20)
            done.set_result(None)

        asyncio.get_running_loop().call_soon(callback)
        await done
    finally:
        watched.close()
    assert "by a callback" in log.texts[0]


async def test_blocks_at_one_place_are_not_a_log_storm(log: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further ones within a minute are counted, and told with the next that is logged."""
    inner = loop_watch._WatchedLoop(asyncio.get_running_loop())
    frame = inspect.currentframe()  # where it blocks: a thread would find this one anywhere in `threading`
    monkeypatch.setattr(loop_watch, "innermost_frame", lambda _thread: frame)

    def block() -> None:
        late = time.monotonic() + 2 * LATE
        inner._due = time.monotonic() - 2 * LATE
        look = threading.Thread(target=inner.look, args=(late,))
        look.start()
        look.join()
        inner._timer.cancel()
        inner._tick()

    try:
        for number in range(5):
            if number == 4:
                monkeypatch.setattr(loop_watch, "QUIET", 0.0)
                inner._told = {place: (0.0, unsaid) for place, (_, unsaid) in inner._told.items()}
            block()
    finally:
        inner.end()
    began = [text for text in log.texts if "is blocked" in text]
    assert len(began) == 2
    assert "3 more blocks" in began[1]


async def test_an_idle_loop_is_not_blocked(log: Seen) -> None:
    """It waits for events; a look that comes late finds nothing that blocks."""
    watched = watch()
    watched.start()
    inner = watched._watched
    assert inner is not None
    inner._timer.cancel()  # no sign of life: as after a process that was frozen
    inner._due = time.monotonic() - 10
    try:
        await asyncio.to_thread(inner.look, time.monotonic())
        assert log.texts == []
        inner._tick()
    finally:
        watched.close()
    [text] = log.texts
    assert "did not run for 10" in text


async def test_one_thread_watches_for_all_consumers(log: Seen) -> None:
    """A block is told once, with the messages of all; the thread ends with the last of them."""
    first, second = watch("a"), watch("b", "c")
    first.start()
    first.start()
    second.start()
    try:
        assert len(watching()) == 1
        await ticks(first)
        await asyncio.create_task(blocked_until_noticed(log, first), name="a")
        await ticks(first)
        assert len(log.texts) == 2
        assert "2 other messages" in log.texts[0]
        assert first.max_lag == second.max_lag > LATE
    finally:
        first.close()
        assert len(watching()) == 1
        second.close()
        second.close()
    assert watching() == []


def test_a_watch_that_was_not_closed_does_not_keep_the_next_loop_from_being_watched() -> None:
    """Its loop was closed under it; the next loop is watched, and the last watch ends the thread."""

    async def forgotten() -> None:
        watch().start()

    async def proper() -> None:
        watched = watch()
        watched.start()
        assert len(loop_watch._thread._loops) == 1
        await ticks(watched)
        watched.close()

    asyncio.run(forgotten())
    asyncio.run(proper())
    assert watching() == []


async def test_what_is_read_after_a_block_may_have_arrived_when_it_began(log: Seen) -> None:
    """Before the loop gives its next sign of life, and just after it."""
    watched = watch()
    watched.start()
    try:
        await ticks(watched)
        began = asyncio.get_running_loop().time()
        await blocked_until_noticed(log, watched)
        assert watched.unread_since() <= began
        inner = watched._watched
        assert inner is not None
        inner.end()
        inner._tick()  # as the loop does next; on a busy machine the one after it could be due as well
        assert watched.unread_since() <= began
    finally:
        watched.close()


async def test_while_the_loop_runs_what_is_read_has_just_arrived() -> None:
    """Signs of life come every half a second; a quarter of one late is nothing to speak of."""
    inner = loop_watch._WatchedLoop(asyncio.get_running_loop())
    now = inner._due - loop_watch.TICK
    assert inner.stood_still(now) == 0.0
    assert inner.stood_still(now + loop_watch.TICK) == 0.0
    assert inner.stood_still(now + loop_watch.TICK * 2 + loop_watch.SLACK + 0.001) > loop_watch.TICK * 2
    inner.end()


@in_virtual_time
async def test_in_virtual_time_nothing_is_watched() -> None:
    """Nothing is ever late there."""
    watched = watch()
    watched.start()
    assert watching() == []
    await asyncio.sleep(3600)
    watched.close()
    assert watched.max_lag == 0.0


async def test_signs_of_life_carry_nothing_of_who_started_them() -> None:
    """A timer outlives the code that starts it; its context is empty."""
    import contextvars

    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")
    tenant.set("acme")
    watched = watch()
    watched.start()
    inner = watched._watched
    assert inner is not None
    seen: list[str] = []
    inner._tick = lambda: seen.append(tenant.get("nothing"))  # type: ignore[method-assign]
    inner._timer.cancel()
    inner._timer = inner._next_tick()
    while not seen:
        await asyncio.sleep(0.001)
    watched.close()
    assert seen == ["nothing"]
