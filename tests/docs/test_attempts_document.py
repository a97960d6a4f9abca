"""The tables and the code of docs/attempts.md: what may be spent, and what a message costs, are worked out again."""

import asyncio
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from postroom import Consumer, Polling
from postroom.consumer.attempts import LEAST_FOR_PARKING, default_promise
from postroom.local import LocalBroker
from postroom.local.shapes import Send
from postroom.testing.loop import run_virtual
from postroom.transports.memory import MemoryClient
from postroom.transports.protocol import Queue
from support.passing import PassingClient, PassingQueue

TEXT = (Path(__file__).parents[2] / "docs" / "attempts.md").read_text(encoding="utf-8")
CENTS_PER_MILLION = 40
MONTH = 30 * 86_400
WAY = 0.005
"""Seconds that a request takes, and as many that its answer takes."""


class CountedQueue(PassingQueue):
    """A queue at the end of a wire, with requests that are counted."""

    def __init__(self, inner: Queue, requests: Counter[str]) -> None:
        super().__init__(inner)
        self._requests = requests

    async def before(self, call: str) -> None:
        """Count a request, which takes its time."""
        self._requests["change" if call == "change_visibility" else call] += 1
        await asyncio.sleep(WAY)

    async def after(self, call: str) -> None:
        """Let messages take their time, too."""
        if call == "receive":
            await asyncio.sleep(WAY)


class CountingClient(PassingClient):
    """A client that counts the requests of all its queues."""

    def __init__(self, inner: MemoryClient) -> None:
        super().__init__(inner)
        self.requests: Counter[str] = Counter()

    async def queue(self, name: str) -> CountedQueue:
        """Open a queue."""
        return CountedQueue(await super().queue(name), self.requests)


async def requests_of(rate: float, gather: float, seconds: float) -> tuple[Counter[str], float]:
    """Consume for some time, and return the requests of it and the mean seconds from send to handler."""
    rng = Random(7)
    loop = asyncio.get_running_loop()
    waited: list[float] = []
    async with LocalBroker() as broker:
        broker.create_queue("orders", {"VisibilityTimeout": "60"})
        client = CountingClient(MemoryClient(broker))
        consumer: Consumer[Any, Any] = Consumer("orders", client=client, polling=Polling(gather=gather))

        @consumer.handler
        async def handle(body: str, ctx: Any) -> None:
            del ctx
            waited.append(loop.time() - float(body))
            await asyncio.sleep(0.02)

        async with consumer:
            await asyncio.sleep(1.0)
            client.requests.clear()
            end = loop.time() + seconds
            while rate and loop.time() < end:
                await asyncio.sleep(rng.expovariate(rate))
                broker.send("orders", Send(message_body=str(loop.time())))
            await asyncio.sleep(max(0.0, end - loop.time()))
            counted = Counter(client.requests)
    return counted, sum(waited) / max(1, len(waited))


def table(name: str) -> list[list[str]]:
    """Return the rows of a table of the document, without its head."""
    [text] = re.findall(rf"<!-- {name} -->\n(.*?)<!-- end -->", TEXT, flags=re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()]
    return rows[2:]


def test_the_table_of_allowances_is_what_the_consumer_does() -> None:
    """For every ``maxReceiveCount`` from 1 to 20: promised, to be spent, and whether a message may be parked."""
    said = [(int(most), int(promised), int(spent), parks) for most, promised, spent, parks in table("allowance")]
    assert said == [
        (most, default_promise(most), most - default_promise(most), "yes" if most >= LEAST_FOR_PARKING else "no")
        for most in range(1, 21)
    ]


@pytest.mark.parametrize("row", table("cost"), ids=lambda row: f"{row[0]}-a-second-gather-{row[1]}")
def test_a_month_costs_what_the_document_says(row: list[str]) -> None:
    """Measured again for a shorter time, so within a quarter."""
    rate = 0.0 if row[0] == "idle" else float(row[0])
    seconds = 600.0 if rate <= 1 else 1_000.0 / rate
    counted, _waited = run_virtual(requests_of(rate, float(row[1]), seconds))
    dollars = sum(counted.values()) / seconds * MONTH * CENTS_PER_MILLION / 100 / 1e6
    assert dollars == pytest.approx(float(row[4]), rel=0.25)


def test_attempts_are_counted_and_end_in_the_dead_letter_queue(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example runs as it stands, prints what the document says, and leaves the reason that it says."""
    [code] = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    [said] = re.findall(r"```text\n(.*?)```", TEXT, flags=re.DOTALL)
    [reason] = re.findall(r"`postroom\.reason` =\s+`(.*?)`", TEXT)

    async def consume() -> str | None:
        async with LocalBroker() as broker:
            dead = broker.create_queue("dead")
            policy = f'{{"deadLetterTargetArn": "{dead.arn}", "maxReceiveCount": "10"}}'
            broker.create_queue("orders", {"RedrivePolicy": policy})
            monkeypatch.setattr("postroom.consumer.starting.default_client", lambda: MemoryClient(broker))
            broker.send("orders", Send(message_body='{"article": "A-1"}'))
            names: dict[str, Any] = {}
            exec(compile(code, "attempts.md", "exec"), names)  # noqa: S102 - the document's own code is tested
            async with names["orders"]:
                await asyncio.sleep(60.0)
            [letter] = dead.messages.values()
            return letter.attributes["postroom.reason"].string_value

    assert run_virtual(consume()) == reason
    assert capsys.readouterr().out == said
