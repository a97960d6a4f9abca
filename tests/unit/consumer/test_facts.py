"""What is known of SQS's clock and of the retention period, from receives that tell it late, seldom or not at all."""

import asyncio
import time
from typing import Any

import msgspec
import pytest

from postroom.consumer import facts as facts_of
from postroom.consumer.facts import QueueFacts
from postroom.consumer.job import Job
from postroom.message import Message
from postroom.tasks import Tasks
from postroom.testing.loop import run_virtual
from postroom.transports.protocol import QueueInfo
from support.scripted import ScriptedQueue
from support.virtual import in_virtual_time

HOUR = 3600.0


def job(*, sent: float | None, first: float, asked: float, receives: int = 1) -> Job:
    """Make a message that was sent, first received (SQS's time), and asked for (the loop's time) at such times."""
    said = {"ApproximateReceiveCount": str(receives), "ApproximateFirstReceiveTimestamp": str(int(first * 1000))}
    if sent is not None:
        said["SentTimestamp"] = str(int(sent * 1000))
    message = Message(id="m", body="", system_attributes=said)
    source: Any = None
    return Job(
        message=message, receipt_handle="h", received_at=asked, deadline=asked + 30, source=source, receives=receives
    )


class Hourly(ScriptedQueue):
    """A queue that keeps its messages for an hour."""

    @property
    def info(self) -> QueueInfo:
        """Say so."""
        return msgspec.structs.replace(super().info, attributes={"MessageRetentionPeriod": str(int(HOUR))})


def left(*receives: Job | list[Job], wall: float = 0.0, now: float, of: Job, slept: float = 0.0) -> float:
    """Return for how long a message may wait, at a loop time, after receives were learnt from when they were read."""

    async def main() -> float:
        facts = QueueFacts(Hourly(), Tasks(lambda _error: None))
        for each in receives:
            facts.received(each if isinstance(each, list) else [each], asyncio.get_running_loop().time())
        await asyncio.sleep(now - asyncio.get_running_loop().time())
        with pytest.MonkeyPatch.context() as patch:
            loop = asyncio.get_running_loop()
            patch.setattr(time, "time", lambda: loop.time() + wall)
            patch.setattr(facts_of, "machine_slept", lambda: facts._slept + slept)
            return facts.seconds_left(of)

    return run_virtual(main())


SQS = 1_000_000.0
"""What SQS's clock is ahead of the loop's."""


def test_an_answer_that_waited_in_a_socket_is_not_taken_for_sqs_s_present() -> None:
    """It is read five minutes after it was handed out: this machine's clock, or when it was asked for, tells."""
    late = job(sent=SQS - 300, first=SQS - 300, asked=-300.0)
    for wall in (SQS, 0.0):
        assert left(late, wall=wall, now=0.0, of=late) == pytest.approx(HOUR - 60 - 300, abs=1)


def test_a_clock_that_is_wrong_is_set_right_by_receives() -> None:
    """Four minutes behind; and the message was received before, by a process that is gone."""
    old = job(sent=SQS - 600, first=SQS - 1, asked=0.0, receives=3)
    assert left(old, wall=SQS - 240, now=0.0, of=old) == pytest.approx(HOUR - 60 - 600, abs=2)


def test_any_message_of_a_receive_that_is_new_tells_the_time() -> None:
    """A new process's clock is twenty minutes ahead. The first message of its receive was received before."""
    old = job(sent=SQS - 600, first=SQS - 590, asked=0.0, receives=2)
    fresh = job(sent=SQS, first=SQS, asked=0.0)
    assert left([old, fresh], wall=SQS + 1200, now=0.0, of=old) == pytest.approx(HOUR - 60 - 600, abs=1)


def test_time_that_the_machine_slept_counts() -> None:
    """The loop's clock stood still."""
    fresh = job(sent=SQS, first=SQS, asked=0.0)
    assert left(fresh, wall=SQS, now=10.0, of=fresh, slept=600.0) == pytest.approx(HOUR - 60 - 610, abs=1)


def test_a_message_without_a_time_was_sent_before_it_was_received() -> None:
    """Some emulators say none."""
    bare: Any = job(sent=None, first=0.0, asked=0.0)
    assert left(now=100.0, of=bare) == pytest.approx(HOUR - 60 - 100)


@pytest.mark.parametrize("odd", ["", "0", "-5", "NaN", "inf", "soon"])
@in_virtual_time
async def test_odd_attributes_of_a_queue_are_no_facts(odd: str) -> None:
    """With a retention period of 0 each message that waits would be a dead letter. What else is said counts."""

    class Odd(Hourly):
        async def attributes(self) -> dict[str, str]:
            policy = '{"deadLetterTargetArn": "arn:dlq", "maxReceiveCount": 7}'
            names = ("MessageRetentionPeriod", "ApproximateNumberOfMessagesNotVisible")
            return {**dict.fromkeys(names, odd), "RedrivePolicy": policy}

    facts = QueueFacts(Odd(), Tasks(lambda _error: None))
    await asyncio.sleep(facts_of.REFRESH)
    facts.keep_up(asyncio.get_running_loop().time())
    await asyncio.sleep(1)
    fresh = job(sent=None, first=0.0, asked=asyncio.get_running_loop().time())
    assert facts.seconds_left(fresh) == pytest.approx(HOUR - 60)
    assert facts.max_receives == 7
    assert facts.why_full() is None
