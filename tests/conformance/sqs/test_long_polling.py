"""Long polling: waits as long as asked, wakes at once, wakes one."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from conformance.sqs.checks import (
    PROMPT,
    MakeQueue,
    arn,
    bodies,
    page,
    receive,
    receive_one,
    send_all,
    woken_by,
)

POLLING = "sqs-short-and-long-polling"


@page(POLLING)
def test_available_message(either_sqs: Any, queue: str) -> None:
    """A message that is there is returned without waiting."""
    either_sqs.send_message(QueueUrl=queue, MessageBody="x")
    start = time.monotonic()
    assert bodies(receive(either_sqs, queue, wait=10)) == ["x"]
    assert time.monotonic() - start < PROMPT


@page("API_ReceiveMessage", recorded=True)
def test_fewer_than_asked_do_not_wait(sqs: Any, queue: str) -> None:
    """A receive of ten does not wait for ten: what is there is returned."""
    send_all(sqs, queue, ["a", "b"])
    start = time.monotonic()
    assert receive(sqs, queue, 10, wait=10)
    assert time.monotonic() - start < PROMPT


@page(POLLING)
def test_empty_wait(sqs: Any, queue: str) -> None:
    """Without a message the wait lasts as long as it was asked for."""
    start = time.monotonic()
    assert receive(sqs, queue, wait=1) == []
    assert 0.9 <= time.monotonic() - start < 1 + PROMPT


@page(POLLING)
def test_wait_of_the_queue(sqs: Any, make_queue: MakeQueue) -> None:
    """ReceiveMessageWaitTimeSeconds is the wait of a receive that names none."""
    url = make_queue(ReceiveMessageWaitTimeSeconds=1)
    start = time.monotonic()
    assert "Messages" not in sqs.receive_message(QueueUrl=url)
    assert 0.9 <= time.monotonic() - start < 1 + PROMPT


@page(POLLING)
def test_zero_overrides_the_queue(either_sqs: Any, make_queue: MakeQueue) -> None:
    """A wait of 0 in the request takes the place of the queue's: a short poll."""
    url = make_queue(ReceiveMessageWaitTimeSeconds=20)
    start = time.monotonic()
    assert receive(either_sqs, url, wait=0) == []
    assert time.monotonic() - start < PROMPT


@page(POLLING)
def test_wakes_on_send(either_sqs: Any, queue: str) -> None:
    """A send ends the wait at once."""
    woken = woken_by(either_sqs, queue, lambda: either_sqs.send_message(QueueUrl=queue, MessageBody="x"))
    assert bodies(woken.messages) == ["x"]
    assert woken.after_trigger < PROMPT


@page(POLLING)
def test_wakes_on_a_batch(sqs: Any, queue: str) -> None:
    """A batch ends the wait at once."""
    woken = woken_by(sqs, queue, lambda: send_all(sqs, queue, ["a", "b", "c"]))
    assert set(bodies(woken.messages)) <= {"a", "b", "c"}
    assert woken.after_trigger < PROMPT


@page("sqs-message-timers")
def test_wakes_when_a_delay_ends(sqs: Any, queue: str) -> None:
    """The end of a delay ends the wait at once."""
    start = time.monotonic()
    sqs.send_message(QueueUrl=queue, MessageBody="x", DelaySeconds=1)
    assert bodies(receive(sqs, queue, wait=10)) == ["x"]
    assert 0.9 <= time.monotonic() - start < 1 + PROMPT


@page("sqs-visibility-timeout")
def test_wakes_when_a_timeout_ends(sqs: Any, queue: str) -> None:
    """The end of a visibility timeout ends the wait at once."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    start = time.monotonic()
    receive_one(sqs, queue, VisibilityTimeout=1)
    assert bodies(receive(sqs, queue, wait=10)) == ["x"]
    assert 0.9 <= time.monotonic() - start < 1 + PROMPT


@page("sqs-visibility-timeout")
def test_wakes_when_a_message_is_given_back(sqs: Any, queue: str) -> None:
    """A visibility timeout set to 0 ends the wait at once."""
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    handle = receive_one(sqs, queue)["ReceiptHandle"]
    back = {"QueueUrl": queue, "ReceiptHandle": handle, "VisibilityTimeout": 0}
    woken = woken_by(sqs, queue, lambda: sqs.change_message_visibility(**back))
    assert bodies(woken.messages) == ["x"]
    assert woken.after_trigger < PROMPT


@page("FIFO-queues-understanding-logic")
def test_wakes_when_a_delete_unlocks_a_group(sqs: Any, fifo: str) -> None:
    """Deleting the message in flight unlocks its group and ends the wait for the next one at once."""
    send_all(sqs, fifo, ["first", "second"], MessageGroupId="g")
    handle = receive_one(sqs, fifo)["ReceiptHandle"]
    woken = woken_by(sqs, fifo, lambda: sqs.delete_message(QueueUrl=fifo, ReceiptHandle=handle))
    assert bodies(woken.messages) == ["second"]
    assert woken.after_trigger < PROMPT


@page("FIFO-queues-understanding-logic")
def test_wakes_when_a_group_is_given_back(sqs: Any, fifo: str) -> None:
    """A visibility timeout set to 0 unlocks the group and ends the wait for the same message at once."""
    send_all(sqs, fifo, ["first", "second"], MessageGroupId="g")
    handle = receive_one(sqs, fifo)["ReceiptHandle"]
    back = {"QueueUrl": fifo, "ReceiptHandle": handle, "VisibilityTimeout": 0}
    woken = woken_by(sqs, fifo, lambda: sqs.change_message_visibility(**back))
    assert bodies(woken.messages) == ["first", "second"]
    assert woken.after_trigger < PROMPT


@page("FIFO-queues-understanding-logic")
def test_wakes_when_a_timeout_unlocks_a_group(sqs: Any, fifo: str) -> None:
    """The end of a visibility timeout unlocks the group, which starts again with the same message."""
    send_all(sqs, fifo, ["first", "second"], MessageGroupId="g")
    start = time.monotonic()
    receive_one(sqs, fifo, VisibilityTimeout=1)
    assert bodies(receive(sqs, fifo, 1, wait=10)) == ["first"]
    assert 0.9 <= time.monotonic() - start < 1 + PROMPT


@page("sqs-dead-letter-queues")
def test_wakes_on_a_dead_letter(sqs: Any, make_queue: MakeQueue) -> None:
    """A message that arrives as a dead letter ends the wait at once."""
    dead = make_queue()
    policy = f'{{"deadLetterTargetArn": "{arn(sqs, dead)}", "maxReceiveCount": 1}}'
    url = make_queue(RedrivePolicy=policy, VisibilityTimeout=0)
    sqs.send_message(QueueUrl=url, MessageBody="x")
    receive_one(sqs, url)
    woken = woken_by(sqs, dead, lambda: receive(sqs, url, wait=0))
    assert bodies(woken.messages) == ["x"]
    assert woken.after_trigger < PROMPT


@page("API_ReceiveMessage")
def test_one_message_wakes_one(sqs: Any, queue: str) -> None:
    """One message goes to one of two who wait; the other one waits on, and gets the next."""
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(receive, sqs, queue, 10, wait=3) for _ in range(2)]
        gate = threading.Event()
        gate.wait(0.3)
        sqs.send_message(QueueUrl=queue, MessageBody="one")
        gate.wait(0.5)
        assert [future.done() for future in waiting].count(True) == 1
        sqs.send_message(QueueUrl=queue, MessageBody="two")
        assert sorted(body for future in waiting for body in bodies(future.result())) == ["one", "two"]


@page("API_ReceiveMessage")
def test_many_waiters_share(sqs: Any, queue: str) -> None:
    """Twenty who wait share twenty messages: none is forgotten and no message comes twice."""
    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(receive, sqs, queue, 1, wait=5) for _ in range(20)]
        threading.Event().wait(0.3)
        send_all(sqs, queue, [str(n) for n in range(20)])
        found = [body for future in waiting for body in bodies(future.result())]
    assert sorted(found, key=int) == [str(n) for n in range(20)]


@page(POLLING)
def test_waiting_holds_nobody_up(sqs: Any, make_queue: MakeQueue) -> None:
    """Twenty long polls do not slow down other requests."""
    idle, busy = make_queue(), make_queue()
    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(receive, sqs, idle, wait=2) for _ in range(20)]
        start = time.monotonic()
        for _ in range(5):
            sqs.send_message(QueueUrl=busy, MessageBody="x")
            receive_one(sqs, busy)
        spent = time.monotonic() - start
        assert [future.result() for future in waiting] == [[]] * 20
    assert spent < 1.9
