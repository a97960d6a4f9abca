"""The hot path is taken only where it does what botocore would do, and it says which path is in use."""

import asyncio
import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.client import AioBaseClient
from aiobotocore.config import AioConfig
from aiobotocore.httpxsession import HttpxSession
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError

from postroom.transports import AwsClient, ClientStatistics
from postroom.transports.aws.conditions import Capture, Endpoint, custom_authority, objections
from postroom.transports.aws.signing import Signer
from unit.transports.fake_sqs import FakeSqs, healthy, reply, sign_as_botocore


async def path_line(client: AwsClient, caplog: pytest.LogCaptureFixture, queue: str = "orders") -> str:
    """Open a queue, use it, and return the one line that says which path is in use."""
    caplog.set_level(logging.INFO, "postroom.transports")
    async with client:
        opened = await client.queue(queue)
        await opened.delete(["handle"])
        await client.queue(queue)
    (line,) = [text for text in caplog.messages if text.startswith("SQS hot path:")]
    return line


async def test_it_is_on_by_default(sqs: FakeSqs, caplog: pytest.LogCaptureFixture) -> None:
    """Without any configuration the hot path is taken, and one line says so."""
    assert await path_line(sqs.client(), caplog) == f"SQS hot path: on, to 127.0.0.1:{sqs.port} in us-east-1"
    assert [request.hot for request in sqs.made("DeleteMessageBatch")] == [True]


def _handle(*_: Any, **__: Any) -> None:
    pass


def _adds_handler(session: AioSession) -> None:
    session.register("before-call.sqs.ReceiveMessage", _handle)


def _adds_wildcard(session: AioSession) -> None:
    session.register("request-created.*.*", functools.partial(_handle, "bound"))


def _adds_catch_all(session: AioSession) -> None:
    session.register("before-send", _handle)


@pytest.mark.parametrize("add", [_adds_handler, _adds_wildcard, _adds_catch_all])
async def test_event_handlers_keep_it_off(sqs: FakeSqs, caplog: pytest.LogCaptureFixture, add: Any) -> None:
    """A session with handlers of its own must see every request: none goes past botocore."""
    session = AioSession()
    add(session)
    line = await path_line(sqs.client(session=session), caplog)
    assert line == "SQS hot path: off, because the session has event handlers of its own"
    assert not any(request.hot for request in sqs.requests)


async def test_handlers_of_other_services_do_not_matter(sqs: FakeSqs, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that SQS calls never reach is no objection."""
    session = AioSession()
    session.register("before-call.s3.PutObject", _handle)
    session.register("before-call.sqs.CreateQueue", _handle)
    assert "SQS hot path: on" in await path_line(sqs.client(session=session), caplog)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hot_path": False}, "AwsClient(hot_path=False)"),
        ({"config": AioConfig(proxies={"https": "http://127.0.0.1:1"})}, "a proxy is configured"),
        ({"config": AioConfig(connector_args={"use_dns_cache": False})}, "the connector is configured"),
        ({"config": AioConfig(retries={"mode": "adaptive"})}, "the retry mode is adaptive"),
        ({"config": AioConfig(signature_version=UNSIGNED)}, f"the signature version is {UNSIGNED}"),
    ],
    ids=["switched off", "proxy", "connector", "adaptive retries", "unsigned"],
)
async def test_configuration_keeps_it_off(
    sqs: FakeSqs, caplog: pytest.LogCaptureFixture, options: dict[str, Any], reason: str
) -> None:
    """What the hot path does not follow is an objection, named in the line."""
    client = sqs.client(**options)
    line = await path_line(client, caplog)
    assert line == f"SQS hot path: off, because {reason}"
    async with client:
        await client.queue("orders")
        assert client.statistics() == ClientStatistics(
            hot_path=False, objections=(reason,), hot_calls=0, hot_misses=0, hot_connections=0
        )
    assert not any(request.hot for request in sqs.requests)


_OtherHttp = type("OtherHttp", (HttpxSession,), {"__module__": "mine"})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (AioConfig(client_cert="/some/certificate.pem"), "a client certificate is configured"),
        (AioConfig(http_session_cls=_OtherHttp), "the HTTP layer is not aiobotocore's own"),
    ],
)
async def test_what_cannot_be_tried_here_is_an_objection_too(config: AioConfig, reason: str) -> None:
    """Client certificates and other HTTP layers are seen in the configuration."""
    assert list(objections(*_fake_client(config), verify=None)) == [reason]


async def test_another_signature_version_keeps_it_off(session: AioSession) -> None:
    """Version 4a, which signs for several regions, is not the hot path's."""
    async with session.create_client(
        "sqs", region_name="us-east-1", config=AioConfig(signature_version="v4a")
    ) as client:
        capture = Capture(client.meta.events)
        with pytest.raises(BotoCoreError):  # its signer needs a library that is not installed here
            await client.get_queue_attributes(QueueUrl="https://sqs.us-east-1.amazonaws.com/1/q")
    assert capture.endpoint is None
    assert "the signature version is v4a" in capture.objections


def _fake_client(config: AioConfig) -> tuple[Any, Any]:
    session = AioSession()

    class Meta:
        endpoint_url = "http://127.0.0.1:1"
        events = session.get_component("event_emitter")

    Meta.config = config  # type: ignore[attr-defined]
    fake: Any = object.__new__(type("SQS", (AioBaseClient,), {}))
    fake.__dict__["meta"] = Meta
    return session, fake


@pytest.mark.parametrize("value", ["off", "0", "False", "no"])
async def test_the_environment_can_switch_it_off(
    sqs: FakeSqs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """``POSTROOM_HOT_PATH=off`` reaches clients that are made without options."""
    monkeypatch.setenv("POSTROOM_HOT_PATH", value)
    assert await path_line(sqs.client(), caplog) == "SQS hot path: off, because POSTROOM_HOT_PATH is off"


async def test_a_proxy_of_the_environment_keeps_it_off(
    sqs: FakeSqs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes through a proxy is botocore's business; NO_PROXY is heeded as botocore heeds it."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "hot path: on" in await path_line(sqs.client(), caplog)
    caplog.clear()
    monkeypatch.setenv("NO_PROXY", "")
    async with sqs.client():
        pass
    assert caplog.messages == ["SQS hot path: off, because a proxy is configured"]


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
async def test_another_certificate_authority_keeps_it_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, tmp_path: Any
) -> None:
    """Over TLS, botocore was told to trust another authority than the hot path trusts."""
    caplog.set_level(logging.INFO, "postroom.transports")
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    monkeypatch.setenv(variable, str(bundle))
    async with AwsClient():
        pass
    assert caplog.messages == ["SQS hot path: off, because the certificate authority is not the default one"]


@pytest.mark.parametrize("verify", [False, "/some/bundle.pem"])
async def test_verify_keeps_it_off_over_tls_only(session: AioSession, *, verify: bool | str) -> None:
    """Without TLS there is nothing to verify."""
    async with session.create_client("sqs", region_name="us-east-1") as secure:
        assert custom_authority(session, secure, verify=verify)
        assert not custom_authority(session, secure, verify=None)
    async with session.create_client("sqs", region_name="us-east-1", endpoint_url="http://localhost") as plain:
        assert not custom_authority(session, plain, verify=verify)


@contextmanager
def instrumented(replacement: Any) -> Iterator[None]:
    """Replace the method that tracing libraries replace."""
    original = vars(AioBaseClient)["_make_api_call"]
    AioBaseClient._make_api_call = replacement(original)
    try:
        yield
    finally:
        AioBaseClient._make_api_call = original


def _as_function(original: Any) -> Any:
    @functools.wraps(original)
    async def traced(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await original(self, *args, **kwargs)

    return traced


def _as_object(original: Any) -> Any:
    class Wrapper:
        __module__ = "aiobotocore.client"

        def __get__(self, instance: Any, owner: Any) -> Any:
            return original.__get__(instance, owner)

    return Wrapper()


@pytest.mark.parametrize("replacement", [_as_function, _as_object])
async def test_instrumented_clients_keep_it_off(
    sqs: FakeSqs, caplog: pytest.LogCaptureFixture, replacement: Any
) -> None:
    """A tracing library that hooks into every call goes on seeing every call."""
    with instrumented(replacement):
        line = await path_line(sqs.client(session=AioSession()), caplog)
    assert line == "SQS hot path: off, because the client is instrumented"


async def test_an_inside_of_botocore_that_changed_keeps_it_off() -> None:
    """Where handlers cannot be listed any longer, there may be some."""
    session, fake = _fake_client(AioConfig())
    assert list(objections(session, fake, verify=None)) == []
    fake.meta.events = object()
    assert list(objections(session, fake, verify=None)) == ["the session has event handlers of its own"]


async def test_no_credentials_keep_it_off(
    sqs: FakeSqs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has no credentials hears that from the ordinary client."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    caplog.set_level(logging.INFO, "postroom.transports")
    async with sqs.client(session=AioSession()):
        pass
    assert caplog.messages == ["SQS hot path: off, because there are no credentials"]


async def test_an_endpoint_with_a_path_keeps_it_off(caplog: pytest.LogCaptureFixture, session: AioSession) -> None:
    """The hot path signs the root only."""
    caplog.set_level(logging.INFO, "postroom.transports")
    seen = await first_request(session, endpoint_url="http://localhost:1/base/")
    assert seen.endpoint is None
    assert seen.objections == ("the endpoint has a path",)


async def first_request(session: AioSession, **options: Any) -> Capture:
    """Make a client, let it make its first call, and return what was captured; nothing is sent."""
    async with session.create_client("sqs", **{"region_name": "us-east-1", **options}) as client:
        capture = Capture(client.meta.events)

        client.meta.events.register("before-send.sqs", _canned)
        await client.get_queue_attributes(QueueUrl="https://sqs.us-east-1.amazonaws.com/1/q")
    return capture


class _Empty:
    async def read(self) -> bytes:
        return b"{}"


async def _canned(request: Any, **_: Any) -> AioAWSResponse:
    return AioAWSResponse(request.url, 200, {}, _Empty())


FIPS = AioConfig(use_fips_endpoint=True)
DUAL = AioConfig(use_dualstack_endpoint=True)
BOTH = AioConfig(use_fips_endpoint=True, use_dualstack_endpoint=True)
PLACES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "sqs.us-east-1.amazonaws.com", "us-east-1"),
    ({"region_name": "eu-central-1"}, "sqs.eu-central-1.amazonaws.com", "eu-central-1"),
    ({"config": FIPS}, "sqs-fips.us-east-1.amazonaws.com", "us-east-1"),
    ({"region_name": "eu-west-1", "config": DUAL}, "sqs.eu-west-1.api.aws", "eu-west-1"),
    ({"region_name": "us-west-2", "config": BOTH}, "sqs-fips.us-west-2.api.aws", "us-west-2"),
    ({"region_name": "cn-north-1"}, "sqs.cn-north-1.amazonaws.com.cn", "cn-north-1"),
    ({"region_name": "us-gov-west-1"}, "sqs.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
    ({"region_name": "us-gov-east-1", "config": FIPS}, "sqs.us-gov-east-1.amazonaws.com", "us-gov-east-1"),
    ({"region_name": "us-iso-east-1"}, "sqs.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
    ({"endpoint_url": "http://localhost:4566"}, "localhost:4566", "us-east-1"),
    ({"endpoint_url": "http://LOCALHOST:80/"}, "localhost", "us-east-1"),
    (
        {"endpoint_url": "https://vpce-1.sqs.us-east-1.vpce.amazonaws.com"},
        "vpce-1.sqs.us-east-1.vpce.amazonaws.com",
        "us-east-1",
    ),
    ({"endpoint_url": "https://[::1]:8443"}, "[::1]:8443", "us-east-1"),
]


@pytest.mark.parametrize(("options", "host", "region"), PLACES)
async def test_it_goes_where_botocore_goes(
    session: AioSession, options: dict[str, Any], host: str, region: str
) -> None:
    """FIPS, dual-stack, China, GovCloud, isolated regions and custom endpoints: captured, and signed alike."""
    capture = await first_request(session, **options)
    assert capture.objections == ()
    endpoint = capture.endpoint
    assert endpoint is not None
    assert (endpoint.scope.host, endpoint.scope.region, endpoint.scope.service) == (host, region, "sqs")
    assert endpoint.secure == (not options.get("endpoint_url", "https:").startswith("http:"))
    assert endpoint.port == _port(endpoint, host)

    credentials = ReadOnlyCredentials("AKID", "secret", "token")
    signed = Signer(endpoint.scope, credentials).request("ReceiveMessage", b"{}", now=0).decode()
    theirs = AWSRequest("POST", f"https://{host}/", data=b"{}")
    theirs.headers["X-Amz-Target"] = "AmazonSQS.ReceiveMessage"
    theirs.headers["Content-Type"] = "application/x-amz-json-1.0"
    expected = sign_as_botocore(theirs, credentials, date="19700101T000000Z", region=region)
    assert f"\r\nAuthorization: {expected}\r\n" in signed


def _port(endpoint: Endpoint, host: str) -> int:
    _, _, port = host.rpartition(":")
    return int(port) if port.isdigit() else (443 if endpoint.secure else 80)


async def test_the_capture_looks_once(session: AioSession) -> None:
    """After the first request botocore's events are as they were."""
    async with session.create_client("sqs", region_name="us-east-1") as client:
        trie = client.meta.events._emitter._handlers
        before = list(trie.prefix_search("before-sign.sqs.ReceiveMessage"))
    seen: list[Any] = []

    async with session.create_client("sqs", region_name="us-east-1") as client:
        capture = Capture(client.meta.events)
        client.meta.events.register("before-send.sqs", _canned)
        for _ in range(2):
            await client.get_queue_attributes(QueueUrl="https://sqs.us-east-1.amazonaws.com/1/q")
            seen.append(capture.endpoint)
        after = list(client.meta.events._emitter._handlers.prefix_search("before-sign.sqs.ReceiveMessage"))
    assert seen[0] is seen[1]
    assert len(after) == len(before)


async def test_a_request_with_further_headers_keeps_it_off(session: AioSession) -> None:
    """A header that botocore sends and the hot path would not is an objection, wherever it was added."""
    async with session.create_client("sqs", region_name="us-east-1") as client:

        def add(request: Any, **_: Any) -> None:
            request.headers["X-Mine"] = "1"

        client.meta.events.register_first("request-created.sqs", add)
        capture = Capture(client.meta.events)
        client.meta.events.register("before-send.sqs", _canned)
        await client.get_queue_attributes(QueueUrl="https://sqs.us-east-1.amazonaws.com/1/q")
    assert capture.endpoint is None
    assert capture.objections == ("requests carry further headers (x-mine)",)


@pytest.mark.parametrize(
    ("signing", "objection"),
    [
        ({"region": "eu-west-9", "signing_name": "other"}, ()),
        ({"request_credentials": object()}, ("the signature is special",)),
        ({"identity_cache": object(), "cache_key": "k"}, ("the signature is special",)),
    ],
)
def test_what_botocore_says_about_the_signature_counts(signing: dict[str, Any], objection: tuple[str, ...]) -> None:
    """An endpoint rule may name region and service; credentials of a request's own are not the session's."""
    events = mock.Mock()
    capture = Capture(events)
    look = events.register.call_args.args[1]
    request = AWSRequest("POST", "https://sqs.us-east-1.amazonaws.com/", data=b"{}")
    request.headers["X-Amz-Target"] = "AmazonSQS.GetQueueUrl"
    request.headers["Content-Type"] = "application/x-amz-json-1.0"
    request.context = {"signing": signing}
    look(request=request, signing_name="sqs", region_name="us-east-1", signature_version="v4", operation_name="X")
    assert capture.objections == objection
    if not objection:
        assert capture.endpoint is not None
        assert (capture.endpoint.scope.region, capture.endpoint.scope.service) == ("eu-west-9", "other")


async def test_the_decision_is_made_once_for_queues_opened_at_once(
    sqs: FakeSqs, caplog: pytest.LogCaptureFixture
) -> None:
    """Queues that are opened together share one hot path."""
    caplog.set_level(logging.INFO, "postroom.transports")
    async with sqs.client() as client:
        await asyncio.gather(*(client.queue(f"queue-{number}") for number in range(5)))
    assert len(caplog.messages) == 1


async def test_a_failed_first_call_decides_nothing_wrong(sqs: FakeSqs, caplog: pytest.LogCaptureFixture) -> None:
    """A queue that does not exist does not keep the hot path from those that do."""
    caplog.set_level(logging.INFO, "postroom.transports")

    async def missing(request: Any, writer: Any) -> None:
        known = request.body["QueueName"] == "orders"
        writer.write(
            healthy(request) if known else reply({"__type": "com.amazonaws.sqs#QueueDoesNotExist"}, status=400)
        )

    sqs.scripts["GetQueueUrl"] = missing
    async with sqs.client() as client:
        with pytest.raises(Exception, match="QueueDoesNotExist"):
            await client.queue("nope")
        assert caplog.messages == []
        queue = await client.queue("orders")
        await queue.delete(["handle"])
    assert [request.hot for request in sqs.made("DeleteMessageBatch")] == [True]
