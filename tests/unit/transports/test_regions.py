"""A queue is used in the region and account that its name says, or not at all."""

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from postroom.errors import AccessDenied, ConfigurationError, QueueNotFound, TransportError
from postroom.local import LocalServer
from postroom.message import OutgoingMessage
from postroom.transports import AwsClient, RedrivePolicy
from unit.transports.fake_sqs import ACCOUNT, FakeSqs, Request, connection_of, error, healthy, reply, says

DENIED = says(error("AccessDeniedException", status=403, query_code="AccessDenied"))
EXPIRED = says(error("ExpiredTokenException", status=403))


def region_of(request: Request) -> str:
    """Return the region that a request is signed for."""
    return request.head["authorization"].partition("Credential=")[2].split("/")[2]


@pytest.fixture
async def local() -> AsyncIterator[LocalServer]:
    """Give a local server, which keeps the queues of each region apart."""
    async with LocalServer() as server:
        yield server


async def make_in(client: AwsClient, region: str, name: str) -> None:
    """Create a queue in a region, and put a message that says so into it."""
    async with AwsClient(region=region, endpoint_url=client._settings.endpoint_url) as maker:
        sqs = connection_of(maker, region)._sqs
        url = (await sqs.create_queue(QueueName=name))["QueueUrl"]
        await sqs.send_message(QueueUrl=url, MessageBody=region)


@pytest.mark.parametrize("hot", [True, False])
async def test_namesakes_of_two_regions_are_kept_apart(local: LocalServer, *, hot: bool) -> None:
    """By ARN and by URL the queue that was meant is used, whatever the client's own region is."""
    client = AwsClient(region="us-east-1", endpoint_url=local.endpoint_url, hot_path=hot)
    for region in ("us-east-1", "eu-west-1"):
        await make_in(client, region, "orders")
    async with client:
        for name, region in (
            ("arn:aws:sqs:eu-west-1:000000000000:orders", "eu-west-1"),
            ("https://sqs.eu-west-1.amazonaws.com/000000000000/orders", "eu-west-1"),
            ("arn:aws:sqs:us-east-1:000000000000:orders", "us-east-1"),
            ("orders", "us-east-1"),
        ):
            queue = await client.queue(name)
            assert queue.info.arn == f"arn:aws:sqs:{region}:000000000000:orders"
            (message,) = await queue.receive(limit=10, wait=1, visibility=0)
            assert message.body == region
        assert client.statistics().hot_path == hot


async def test_a_queue_that_exists_in_another_region_only_is_not_found(local: LocalServer) -> None:
    """The namesake in the client's own region is not taken for it."""
    client = AwsClient(region="us-east-1", endpoint_url=local.endpoint_url)
    await make_in(client, "us-east-1", "orders")
    async with client:
        with pytest.raises(QueueNotFound, match="check the name, the account and the region"):
            await client.queue("arn:aws:sqs:eu-west-1:000000000000:orders")
        with pytest.raises(QueueNotFound):
            await client.queue("arn:aws:sqs:us-east-1:999999999999:orders")


@pytest.mark.parametrize(
    ("name", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/orders", "eu-west-1"),
        ("https://queue.amazonaws.com/123456789012/orders", "us-east-1"),
        ("https://ap-southeast-2.queue.amazonaws.com/123456789012/orders", "ap-southeast-2"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/orders", "cn-north-1"),
        ("https://vpce-1.sqs.us-gov-west-1.vpce.amazonaws.com/123456789012/orders", "us-gov-west-1"),
        ("arn:aws:sqs:eu-south-1:123456789012:orders", "eu-south-1"),
        ("arn:aws-cn:sqs:cn-northwest-1:123456789012:orders", "cn-northwest-1"),
    ],
)
@pytest.mark.parametrize("configured", [None, "eu-central-1"])
async def test_the_name_says_for_which_region_requests_are_signed(
    sqs: FakeSqs, monkeypatch: pytest.MonkeyPatch, name: str, region: str, configured: str | None
) -> None:
    """No region need be configured, and one that is configured does not matter; both paths sign alike."""
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    async with sqs.client(region=configured) as client:
        queue = await client.queue(name)
        await queue.receive(limit=1, wait=0, visibility=30)
        await queue.send([OutgoingMessage(body="x")])
    assert {region_of(request) for request in sqs.requests} == {region}
    assert {request.hot for request in sqs.requests} == {True, False}


@pytest.mark.parametrize("way", ["argument", "AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL"])
async def test_an_endpoint_that_names_a_region_is_enough(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A VPC endpoint says the region as well as a setting does."""
    url = "https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    if way != "argument":
        monkeypatch.setenv(way, url)
    async with AwsClient(endpoint_url=url if way == "argument" else None) as client:
        assert connection_of(client, "eu-west-1").endpoint_url == url


@pytest.mark.parametrize(
    "name", ["arn:aws:sqs:us-east-1:123456789012:orders", "https://queue.amazonaws.com/123456789012/orders"]
)
async def test_an_endpoint_of_another_region_is_refused(name: str) -> None:
    """A request for a queue does not go where another one of that name may be; nothing is sent."""
    endpoint = "https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com"
    async with AwsClient(region="eu-west-1", endpoint_url=endpoint) as client:
        with pytest.raises(
            ConfigurationError, match=r"is in us-east-1, but the client's endpoint is that of eu-west-1"
        ):
            await client.queue(name)


async def test_each_region_has_the_endpoint_that_botocore_gives_it() -> None:
    """FIPS and dual-stack settings hold in every region that a queue's name says."""
    config = AioConfig(use_fips_endpoint=True)
    async with AwsClient(region="us-east-1", config=config) as client:
        assert client._regions is not None
        other = await client._regions.connection("us-gov-east-1")
        assert await client._regions.connection("us-gov-east-1") is other
        assert connection_of(client).endpoint_url == "https://sqs-fips.us-east-1.amazonaws.com"
        assert other.endpoint_url == "https://sqs.us-gov-east-1.amazonaws.com"
        china = await client._regions.connection("cn-north-1")
        assert china.region == "cn-north-1"


PROFILE = "[default]\nregion = eu-west-1\n[profile other]\nregion = eu-west-2\n"


@pytest.mark.parametrize(
    ("environment", "options", "region"),
    [
        ({"AWS_DEFAULT_REGION": "us-west-1", "AWS_REGION": "us-west-2"}, {}, "us-west-1"),
        ({"AWS_REGION": "us-west-2"}, {}, "us-west-2"),
        ({}, {}, "eu-west-1"),
        ({"AWS_PROFILE": "other"}, {}, "eu-west-2"),
        ({"AWS_PROFILE": "other", "AWS_REGION": "us-west-2"}, {}, "us-west-2"),
        ({}, {"profile": "other"}, "eu-west-2"),
        ({"AWS_REGION": "us-west-2"}, {"region": "sa-east-1"}, "sa-east-1"),
        ({"AWS_REGION": "us-west-2"}, {"config": AioConfig(region_name="sa-east-1")}, "sa-east-1"),
    ],
)
async def test_the_regions_of_the_configuration_have_an_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], options: dict[str, Any], region: str
) -> None:
    """What is written in the code counts before the environment, and the environment before a profile."""
    (tmp_path / "config").write_text(PROFILE)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with AwsClient(**options) as client:
        assert connection_of(client, region).region == region


async def test_a_region_set_on_the_session_counts_before_the_environment() -> None:
    """It is written in the code, too."""
    session = AioSession()
    session.set_config_variable("region", "ca-central-1")
    async with AwsClient(session=session) as client:
        assert connection_of(client, "ca-central-1").region == "ca-central-1"


async def test_a_dead_letter_queue_is_found_where_its_queue_is(local: LocalServer) -> None:
    """The ARN in the redrive policy of a queue of another region leads to that region."""
    client = AwsClient(region="us-east-1", endpoint_url=local.endpoint_url)
    await make_in(client, "eu-west-1", "orders-dlq")
    await make_in(client, "us-east-1", "orders-dlq")
    await make_in(client, "eu-west-1", "orders")
    dead = "arn:aws:sqs:eu-west-1:000000000000:orders-dlq"
    async with client:
        queue = await client.queue("arn:aws:sqs:eu-west-1:000000000000:orders")
        policy = f'{{"deadLetterTargetArn": "{dead}", "maxReceiveCount": 3}}'
        sqs = connection_of(client, "eu-west-1")._sqs
        await sqs.set_queue_attributes(QueueUrl=queue.info.url, Attributes={"RedrivePolicy": policy})
        again = await client.queue(queue.info.arn)
        assert again.info.redrive == RedrivePolicy(dead, 3)
        (message,) = await (await client.queue(dead)).receive(limit=1, wait=0, visibility=30)
        assert message.body == "eu-west-1"


# Fewer permissions


URL = f"https://sqs.us-east-1.amazonaws.com/{ACCOUNT}/orders.fifo"
ARN = f"arn:aws:sqs:us-east-1:{ACCOUNT}:orders.fifo"


@pytest.mark.parametrize("hot", [True, False])
@pytest.mark.parametrize("name", [URL, ARN])
async def test_a_queue_is_used_without_its_attributes(
    sqs: FakeSqs, caplog: pytest.LogCaptureFixture, name: str, *, hot: bool
) -> None:
    """Receive, delete and change visibility are enough; one warning names the permission and what is not known."""
    sqs.scripts.update(GetQueueAttributes=DENIED, GetQueueUrl=DENIED)
    caplog.set_level(logging.WARNING, "postroom.transports")
    async with sqs.client(hot_path=hot) as client:
        for _ in range(3):
            queue = await client.queue(name)
        assert len(await queue.receive(limit=10, wait=0, visibility=30)) == 2
        assert await queue.delete(["handle"]) == []
        assert client.statistics().hot_path == hot
        info = queue.info
        assert (info.name, info.arn, info.fifo, info.attributes_known) == ("orders.fifo", ARN, True, False)
        assert (info.redrive, info.retention, info.attributes) == (None, None, {})
        with pytest.raises(AccessDenied, match=f"allow sqs:GetQueueAttributes on {ARN}"):
            await queue.attributes()
    (warning,) = caplog.messages
    for part in (f"sqs:GetQueueAttributes on {ARN}", "redrive policy", "retention period", "visibility timeout"):
        assert part in warning


async def test_the_url_of_an_arn_follows_from_it(sqs: FakeSqs) -> None:
    """Without sqs:GetQueueUrl the account and the name of an ARN make the URL, at the client's endpoint."""
    sqs.scripts["GetQueueUrl"] = DENIED
    async with sqs.client() as client:
        queue = await client.queue(f"arn:aws:sqs:us-east-1:{ACCOUNT}:orders")
    assert queue.info.url == f"{sqs.url}/{ACCOUNT}/orders"
    assert queue.info.attributes_known


async def test_a_mere_name_needs_the_permission_to_look_it_up(sqs: FakeSqs) -> None:
    """The text names the permission, and the way round it."""
    sqs.scripts["GetQueueUrl"] = DENIED
    async with sqs.client() as client:
        with pytest.raises(
            AccessDenied, match=r"allow sqs:GetQueueUrl on the queue.*name the queue by its URL"
        ) as caught:
            await client.queue("orders")
    assert not caught.value.retryable
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("script", [EXPIRED, says(error("InvalidClientTokenId", status=403))])
async def test_bad_credentials_are_not_taken_for_a_missing_permission(sqs: FakeSqs, script: Any) -> None:
    """A queue is not opened half by keys that SQS does not know."""
    sqs.scripts["GetQueueAttributes"] = script
    async with sqs.client() as client:
        with pytest.raises(AccessDenied):
            await client.queue(URL)


async def test_what_is_known_of_a_queue_is_said(sqs: FakeSqs) -> None:
    """The retention period is a number, where it is one."""
    for text, retention in (("345600", 345_600), ("", None), ("long", None)):
        sqs.scripts["GetQueueAttributes"] = says(reply({"Attributes": {"MessageRetentionPeriod": text}}))
        async with sqs.client() as client:
            info = (await client.queue("orders")).info
        assert (info.attributes_known, info.retention) == (True, retention)


# Credentials


async def test_credentials_that_come_late_are_found(sqs: FakeSqs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's role may appear after its first try: the next queue that is opened asks again."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with AwsClient(endpoint_url=sqs.url) as client:
        with pytest.raises(AccessDenied, match="AWS_ACCESS_KEY_ID"):
            await client.queue("orders")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        queue = await client.queue("orders")
        assert await queue.delete(["handle"]) == []
        assert client.statistics().hot_path


async def test_a_source_of_credentials_that_fails_is_told_as_one(sqs: FakeSqs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises, callers see an error of the protocol."""
    session = AioSession()
    answers: list[Callable[[], Any]] = [lambda: None, lambda: 1 / 0]

    async def find() -> Any:
        return answers[0]()

    monkeypatch.setattr(session, "get_credentials", find)
    async with sqs.client(session=session) as client:
        with pytest.raises(AccessDenied):
            await client.queue("orders")
        del answers[0]
        with pytest.raises(TransportError, match="reading the credentials: unexpected ZeroDivisionError") as caught:
            await client.queue("orders")
        assert caught.value.retryable


@pytest.mark.parametrize(
    ("code", "token", "retryable"),
    [
        ("ExpiredToken", None, True),
        ("ExpiredTokenException", "token", True),
        ("UnrecognizedClientException", "token", True),
        ("UnrecognizedClientException", None, False),
        ("InvalidClientTokenId", "token", True),
        ("InvalidClientTokenId", None, False),
        ("SignatureDoesNotMatch", None, False),
        ("AccessDeniedException", "token", False),
        ("KmsAccessDenied", "token", False),
    ],
)
@pytest.mark.parametrize("hot", [True, False])
async def test_what_a_refresh_cures_is_worth_another_try(
    sqs: FakeSqs, monkeypatch: pytest.MonkeyPatch, code: str, token: str | None, *, retryable: bool, hot: bool
) -> None:
    """Temporary credentials are replaced in time; a permission, or a wrong key of one's own, is not."""
    if token is not None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)

    async def answer(request: Request, writer: Any) -> None:
        deleted = request.operation == "DeleteMessageBatch"
        writer.write(error(code, status=403) if deleted else healthy(request))

    sqs.scripts["DeleteMessageBatch"] = answer
    async with sqs.client(session=AioSession(), hot_path=hot) as client:
        queue = await client.queue("orders")
        with pytest.raises(AccessDenied) as caught:
            await queue.delete(["handle"])
        assert caught.value.retryable == retryable
        sqs.scripts.clear()
        assert await queue.delete(["handle"]) == [], "it goes on with what SQS accepts again"
