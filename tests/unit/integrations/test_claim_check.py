"""Bodies in S3 while S3 is away: in virtual time, against an S3 that fails as told."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import pytest
from botocore.exceptions import ClientError

from postroom import Consumer, Message, MessageContext, OutgoingMessage, Retry, Sender
from postroom.integrations.claim_check import ClaimCheck
from postroom.testing.loop import run_virtual
from support.world import Tenant, World, with_world

Fault = Callable[[str], Exception | None]


class S3:
    """Keeps bodies, gives them as long as ``fault`` says nothing, and counts how often it is asked."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.fault: Fault = lambda _key: None
        self.asked: list[float] = []

    def create_client(self, *_arguments: Any, **_options: Any) -> Self:
        """Be the session, too."""
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...

    async def put_object(self, *, Bucket: str, Key: str, Body: bytes) -> None:  # noqa: N803
        """Store a body."""
        assert Bucket
        if (error := self.fault(Key)) is not None and isinstance(error, ClientError):
            raise error
        self.bodies[Key] = Body

    async def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        """Give a body."""
        assert Bucket
        self.asked.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.01)
        if (error := self.fault(Key)) is not None:
            raise error
        return {"ContentLength": len(self.bodies[Key]), "Body": _Stream(self.bodies[Key])}


class _Stream:
    def __init__(self, body: bytes) -> None:
        self.read = lambda: _value(body)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...


async def _value(body: bytes) -> bytes:
    return body


def _until(end: float) -> Fault:
    return lambda _key: ConnectionRefusedError() if asyncio.get_running_loop().time() < end else None


async def _stored(bodies: ClaimCheck, number: int = 0, receives: int = 1) -> Message:
    sent = await bodies.offload(OutgoingMessage(body=f"{number}"))
    return Message(
        id=f"m{number}",
        body=sent.body,
        message_attributes=sent.message_attributes,
        system_attributes={"ApproximateReceiveCount": str(receives)},
        receipt_handle="",
    )


def _run(scenario: Callable[[S3, ClaimCheck], Any]) -> None:
    async def main() -> None:
        s3 = S3()
        async with ClaimCheck("amzn-s3-demo-bucket", always=True, session=s3) as bodies:
            await scenario(s3, bodies)

    run_virtual(main())


@pytest.mark.parametrize("seconds", [0.2, 40.0, 600.0])
@with_world
async def test_an_outage_of_s3_makes_no_dead_letter(world: World, seconds: float) -> None:
    """With five receives: what is not a message's own failure does not use them up (A4)."""
    world.create(dead_letters="dead", receives=5)
    s3 = S3()
    s3.fault = _until(seconds)
    handled: list[str] = []
    bodies = ClaimCheck("amzn-s3-demo-bucket", always=True, session=s3)
    orders = Consumer("orders", context=Tenant, client=world.client, unwrap=bodies)

    @orders.handler
    async def handle(body: str, _ctx: MessageContext[Tenant]) -> None:
        handled.append(body)

    async with bodies, orders:
        for number in range(50):
            sent = await bodies.offload(OutgoingMessage(body=str(number)))
            world.send(sent.body, ExtendedPayloadSize="1")
        await asyncio.sleep(seconds + 5.0 if seconds < 30 else 1_500.0)
    assert sorted(handled, key=int) == [str(number) for number in range(50)]
    assert world.counts("dead") == (0, 0)


def test_an_outage_of_s3_is_told_of_with_its_bucket_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """Once a minute, not for each try; what was not told of has no end either."""

    async def scenario(s3: S3, bodies: ClaimCheck) -> None:
        stored = [await _stored(bodies, number) for number in range(2)]
        s3.fault = _until(asyncio.get_running_loop().time() + 290.0)
        for _ in range(60):
            with suppress(Retry):
                await bodies(stored[0])
            await asyncio.sleep(5)
        await bodies(stored[1])

    with caplog.at_level(logging.INFO, "postroom"):
        _run(scenario)
    *outage, over = [each for each in caplog.messages if "S3" in each]
    assert 4 <= len(outage) <= 6
    assert "did not give the body of message m0 from bucket amzn-s3-demo-bucket (" in outage[0]
    assert over.startswith("S3 gives bodies again after 29")


@with_world
async def test_a_bucket_that_is_gone_sets_no_message_of_an_outbox_aside(world: World) -> None:
    """It says nothing of the message, which is sent when the bucket is named as it should be."""
    world.create()
    s3 = S3()
    s3.fault = lambda _key: ClientError({"Error": {"Code": "NoSuchBucket"}}, "PutObject")
    async with ClaimCheck("amzn-s3-demo-bucket", always=True, session=s3) as bodies:
        sender = Sender("orders", transform=bodies.offload, client=world.client)
        async with sender:
            outcome = await sender.post([sender.message("x")])
    assert outcome.unsent[0].retryable


def test_one_fetch_tries_s3_for_all_that_wait() -> None:
    """And all of them go on once it has succeeded."""

    async def scenario(s3: S3, bodies: ClaimCheck) -> None:
        messages = [await _stored(bodies, number) for number in range(50)]
        s3.fault = _until(20.0)
        found = await asyncio.gather(*(bodies(message) for message in messages))
        assert [message.body for message in found] == [str(number) for number in range(50)]
        assert asyncio.get_running_loop().time() < 26.0
        assert len(s3.asked) < 2 * 50 + 10

    _run(scenario)


def test_a_long_outage_holds_no_slot() -> None:
    """After half a minute messages go back at once, for longer each time."""

    async def scenario(s3: S3, bodies: ClaimCheck) -> None:
        s3.fault = _until(1e9)
        loop = asyncio.get_running_loop()
        delays: list[float] = []
        for receives in range(1, 6):
            began = loop.time()
            with pytest.raises(Retry, match=r"S3 does not give the body") as caught:
                await bodies(await _stored(bodies, receives, receives))
            assert loop.time() - began <= (30.1 if receives == 1 else 0.1)
            assert caught.value.delay is not None
            delays.append(caught.value.delay)
        least, most = [45.0, 135.0, 405.0, 675.0, 675.0], [60.0, 180.0, 540.0, 900.0, 900.0]
        assert all(low <= delay <= high for low, delay, high in zip(least, delays, most, strict=True))
        assert len(s3.asked) < 15

    _run(scenario)


def test_a_body_that_s3_has_trouble_with_stops_no_other() -> None:
    """Nor does one that it refuses: both come again later."""

    async def scenario(s3: S3, bodies: ClaimCheck) -> None:
        broken, refused, *others = [await _stored(bodies, number) for number in range(60)]
        answers = {
            broken.body: ClientError({"ResponseMetadata": {"HTTPStatusCode": 500}}, "GetObject"),  # pyright: ignore[reportArgumentType]
            refused.body: ClientError({"ResponseMetadata": {"HTTPStatusCode": 403}}, "GetObject"),  # pyright: ignore[reportArgumentType]
        }
        s3.fault = lambda key: next((error for body, error in answers.items() if key in body), None)

        async def others_in_turn() -> None:
            for message in others:
                await asyncio.sleep(0.1)
                await bodies(message)

        async def fails(message: Message) -> None:
            with pytest.raises(Retry):
                await bodies(message)

        await asyncio.gather(fails(broken), fails(refused), others_in_turn())
        assert asyncio.get_running_loop().time() < 15.0

    _run(scenario)
