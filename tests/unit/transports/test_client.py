"""The AWS client: what it takes, what it opens, who shares it, and what it says when something is missing."""

import asyncio
import functools
import gc
import json
import ssl
import subprocess
import sys
import threading
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.credentials import AssumeRoleProvider

from postroom.errors import (
    AccessDenied,
    ClosedError,
    ConfigurationError,
    NotOpenError,
    QueueNotFound,
    ServiceUnavailable,
)
from postroom.message import MessageAttribute, OutgoingMessage
from postroom.transports import AwsClient, EntryFailure, SendResult, default_client
from postroom.transports.aws import connection
from postroom.transports.aws.conditions import Endpoint
from postroom.transports.aws.signing import Scope
from unit.transports.fake_sqs import FakeSqs, Request, connection_of, error, reply, resets, says


def test_importing_the_transport_imports_nothing_of_aws() -> None:
    """Who does not open a client does not pay for botocore, in time or memory."""
    names = ("botocore", "aiobotocore", "aiohttp")
    code = f"import sys, postroom.transports; sys.exit(any(name in sys.modules for name in {names}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"connections": 0}, "whole number from 1"),
        ({"max_attempts": 0}, "counts the first attempt too"),
        ({"connections": "many"}, "whole number from 1"),
        ({"max_attempts": [3]}, "counts the first attempt too"),
        ({"connect_timeout": -1}, "takes seconds, at least 0"),
        ({"connect_timeout": "5"}, "takes seconds, at least 0"),
        ({"read_timeout": "30"}, "above 20 s"),
        ({"read_timeout": 20}, "above 20 s, the longest long poll"),
        ({"read_timeout": float("nan")}, "above 20 s"),
        ({"profile": "x", "session": object()}, "no effect on a session"),
        ({"endpoint_url": "http://user:secret@localhost"}, "no user name or password"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options: dict[str, Any], text: str) -> None:
    """The text says what to write instead, and repeats no password."""
    with pytest.raises(ConfigurationError, match=text) as caught:
        AwsClient(**options)
    assert "secret" not in str(caught.value)


async def test_another_kind_of_session_is_refused() -> None:
    """boto3's sessions are for threads."""
    with pytest.raises(ConfigurationError, match=r"takes an aiobotocore\.session\.AioSession; got \w*Session"):
        async with AwsClient(session=boto3.Session()):
            pass


async def test_a_user_configuration_wins_and_is_checked(sqs: FakeSqs) -> None:
    """What ``config`` says counts; a read timeout that strands messages does not pass by that way either."""
    async with sqs.client(config=AioConfig(max_pool_connections=7, user_agent_extra="mine")) as client:
        config = connection_of(client)._sqs.meta.config
        assert config.max_pool_connections == 7
        assert config.retries == {"mode": "standard", "total_max_attempts": 3}
        await client.queue("orders")
    assert sqs.requests[0].head["user-agent"].startswith("postroom/")
    assert sqs.requests[0].head["user-agent"].endswith(" mine")
    with pytest.raises(ConfigurationError, match="above 20 s"):
        async with sqs.client(config=AioConfig(read_timeout=10)):
            pass
    with pytest.raises(ConfigurationError, match=r"connect_timeout=...\) takes seconds"):
        async with sqs.client(config=AioConfig(connect_timeout=None)):
            pass


async def test_botocore_is_set_up_for_long_polls(sqs: FakeSqs) -> None:
    """No bound over all queues, the standard retry mode, no parameter validation, timeouts above a long poll."""
    async with sqs.client(connections=30, max_attempts=5) as client:
        botocore_client = connection_of(client)._sqs
    config = botocore_client.meta.config
    assert config.max_pool_connections >= 1000
    assert config.retries == {"mode": "standard", "total_max_attempts": 5}
    assert "Validation" not in type(botocore_client._serializer).__name__
    assert (config.connect_timeout, config.read_timeout) == (5, 25)


async def test_an_endpoint_that_is_no_url_is_a_configuration_error() -> None:
    """It is told when the client is made, with what to write."""
    with pytest.raises(ConfigurationError, match="begins with http:// or https://"):
        AwsClient(endpoint_url="nonsense")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:4566", "localhost", "ftp://host", "http://", "http://host:port", "http://[::1"]
)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL"])
async def test_an_endpoint_of_the_environment_that_is_no_url_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    """The text names the variable and says what to write."""
    monkeypatch.delenv("AWS_ENDPOINT_URL_SQS", raising=False)
    monkeypatch.setenv(name, url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    wrong = f"{name} begins with http:// or https://, such as http://127.0.0.1:4566; got {url!r}"
    with pytest.raises(ConfigurationError) as refused:
        async with AwsClient() as client:
            await client.queue("orders")
    assert str(refused.value) == wrong


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true"), ("AWS_ENDPOINT_URL", "x")]
)
async def test_a_variable_that_does_not_count_is_not_judged(
    monkeypatch: pytest.MonkeyPatch, sqs: FakeSqs, name: str, value: str
) -> None:
    """Neither one that botocore is told to ignore, nor the general one beside that of SQS."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "x" if value == "true" else sqs.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv(name, value)
    async with AwsClient():
        pass


def test_an_endpoint_with_a_password_is_not_repeated() -> None:
    """It may be a secret."""
    with pytest.raises(ConfigurationError, match="got another text"):
        AwsClient(endpoint_url="user:hidden@host")


async def test_a_profile_that_does_not_exist_is_a_configuration_error() -> None:
    """The text says how to list the profiles."""
    with pytest.raises(ConfigurationError, match="aws configure list-profiles"):
        async with AwsClient(profile="nobody"):
            pass


async def test_a_failed_opening_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, sqs: FakeSqs) -> None:
    """The next one who enters opens it."""
    client = AwsClient(endpoint_url=sqs.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "not a region")
    with pytest.raises(ConfigurationError):
        async with client:
            pass
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    async with client:
        await client.queue("orders")


async def test_a_missing_region_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment variable and option are both named, and that a URL or an ARN says it too."""
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    async with AwsClient() as client:
        with pytest.raises(
            AccessDenied, match=r"set AWS_REGION, pass AwsClient\(region=\.\.\.\), or name .*ARN"
        ) as caught:
            await client.queue("orders")
    assert caught.value.code == "NoRegionError"


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
async def test_both_names_of_the_region_are_known(monkeypatch: pytest.MonkeyPatch, sqs: FakeSqs, variable: str) -> None:
    """ECS and Lambda set AWS_REGION, botocore reads AWS_DEFAULT_REGION."""
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv(variable, "eu-west-3")
    async with AwsClient(endpoint_url=sqs.url) as client:
        await client.queue("orders")
    assert "/eu-west-3/sqs/aws4_request" in sqs.requests[0].head["authorization"]


async def test_missing_credentials_say_what_to_set(monkeypatch: pytest.MonkeyPatch, sqs: FakeSqs) -> None:
    """The error comes with the first call, names it, and keeps botocore's as its cause."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with AwsClient(endpoint_url=sqs.url) as client:
        with pytest.raises(AccessDenied, match=r"set AWS_PROFILE, or AWS_ACCESS_KEY_ID and") as caught:
            await client.queue("orders")
    assert (caught.value.operation, caught.value.code) == ("GetQueueUrl", "NoCredentialsError")
    assert type(caught.value.__cause__).__name__ == "NoCredentialsError"


async def test_a_process_for_credentials_that_answers_no_json_is_told(
    monkeypatch: pytest.MonkeyPatch, sqs: FakeSqs, tmp_path: Path
) -> None:
    """It may have asked for a login, and what it said may be a secret."""
    (tmp_path / "config").write_text("[default]\ncredential_process = echo hunter2\n", encoding="utf-8")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AccessDenied, match="credential_process of the AWS configuration answers no JSON") as caught:
        await AwsClient(endpoint_url=sqs.url).__aenter__()
    assert caught.value.retryable
    assert "hunter2" not in str(caught.value)


async def test_a_process_for_credentials_that_answers_no_json_later_is_told(
    monkeypatch: pytest.MonkeyPatch, sqs: FakeSqs, tmp_path: Path
) -> None:
    """When credentials are to be replaced: SQS and its endpoint have nothing to do with it."""
    soon = (datetime.now(UTC) + timedelta(minutes=2)).isoformat()
    keys = {"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "s", "SessionToken": "t", "Expiration": soon}
    (tmp_path / "keys").write_text(json.dumps(keys), encoding="utf-8")
    process = f"sh -c 'cat {tmp_path}/keys && echo hunter2 > {tmp_path}/keys'"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {process}\n", encoding="utf-8")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with AwsClient(endpoint_url=sqs.url, max_attempts=1) as client:
        with pytest.raises(AccessDenied, match="credential_process of the AWS configuration answers no JSON") as caught:
            await client.queue("orders")
    assert caught.value.retryable
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("AWS_DEFAULTS_MODE", "invalid defaults mode: odd"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "Metadata endpoint: odd"),
    ],
)
async def test_a_setting_that_botocore_refuses_is_told_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, sqs: FakeSqs, variable: str, said: str
) -> None:
    """Whatever it is: a start that waits for SQS would wait without end."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    monkeypatch.setenv(variable, "odd")
    with pytest.raises(ConfigurationError, match=rf"opening the SQS client: .*{said}.*; correct the AWS configuration"):
        await AwsClient(endpoint_url=sqs.url).__aenter__()


async def test_a_profile_that_asks_for_a_code_is_told(
    monkeypatch: pytest.MonkeyPatch, sqs: FakeSqs, tmp_path: Path
) -> None:
    """A process has no terminal, and the network has nothing to do with it."""
    keys = "[keys]\naws_access_key_id = a\naws_secret_access_key = s\n"
    role = "[default]\nrole_arn = arn:aws:iam::000000000000:role/worker\nsource_profile = keys\nmfa_serial = phone\n"
    (tmp_path / "config").write_text(role, encoding="utf-8")
    (tmp_path / "credentials").write_text(keys, encoding="utf-8")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    prompt = mock.Mock(side_effect=EOFError)
    made = AssumeRoleProvider.__init__
    monkeypatch.setattr(AssumeRoleProvider, "__init__", functools.partialmethod(made, prompter=prompt))
    async with AwsClient(endpoint_url=sqs.url, max_attempts=1) as client:
        with pytest.raises(AccessDenied, match="mfa_serial") as caught:
            await client.queue("orders")
    prompt.assert_called_once()
    assert not caught.value.retryable


async def test_a_role_that_cannot_be_one_is_told(monkeypatch: pytest.MonkeyPatch, sqs: FakeSqs, tmp_path: Path) -> None:
    """The call that was made for credentials had wrong parameters, and not that of SQS."""
    (tmp_path / "token").write_text("t" * 20, encoding="utf-8")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "worker")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with AwsClient(endpoint_url=sqs.url, max_attempts=1) as client:
        with pytest.raises(AccessDenied, match=r"parameter RoleArn.*check AWS_ROLE_ARN"):
            await client.queue("orders")


async def test_a_token_that_is_not_written_yet_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, sqs: FakeSqs, tmp_path: Path
) -> None:
    """As a file that is not there yet: acknowledgements must not be given up for it."""
    (tmp_path / "token").write_text("", encoding="utf-8")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::000000000000:role/worker")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with AwsClient(endpoint_url=sqs.url, max_attempts=1) as client:
        with pytest.raises(AccessDenied, match=r"parameter WebIdentityToken.*AWS_WEB_IDENTITY_TOKEN_FILE") as caught:
            await client.queue("orders")
    assert caught.value.retryable


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_file_with_certificates_that_cannot_be_used_is_told(content: str | None, tmp_path: Path) -> None:
    """It is missing in the image, or something else. The network has nothing to do with it."""
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content, encoding="utf-8")
    async with AwsClient(endpoint_url="https://127.0.0.1:9", verify=str(bundle), max_attempts=1) as client:
        with pytest.raises(ServiceUnavailable, match=r"the file with certificates.*AWS_CA_BUNDLE"):
            await client.queue("orders")


async def test_a_proxy_that_is_no_url_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named, and its password is not."""
    monkeypatch.setenv("HTTPS_PROXY", "http://u:hunter2@127.0.0.1:port")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with AwsClient(endpoint_url="https://sqs.invalid", max_attempts=1) as client:
        with pytest.raises(ServiceUnavailable, match="check HTTPS_PROXY") as caught:
            await client.queue("orders")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"])
async def test_a_line_break_in_a_credential_is_told(
    monkeypatch: pytest.MonkeyPatch, sqs: FakeSqs, variable: str
) -> None:
    """So ends a secret that was made of a file. The network has nothing to do with it, and waiting does not help."""
    monkeypatch.setenv(variable, "eu-west-1\n")
    async with sqs.client(session=AioSession(), max_attempts=1) as client:
        with pytest.raises(AccessDenied, match="a line break in them") as caught:
            await client.queue("orders")
    assert not caught.value.retryable


async def test_expired_credentials_say_what_to_do(sqs: FakeSqs) -> None:
    """The text tells how to find out who one is and how to log in again."""
    sqs.scripts["GetQueueUrl"] = says(error("ExpiredTokenException", status=403))
    async with sqs.client() as client:
        with pytest.raises(AccessDenied, match=r"aws sts get-caller-identity.*aws sso login"):
            await client.queue("orders")


async def test_a_missing_permission_is_named(sqs: FakeSqs) -> None:
    """It is the permission that goes into a policy: that of the single action."""
    sqs.scripts["SendMessageBatch"] = says(error("AccessDeniedException", status=403, query_code="AccessDenied"))
    async with sqs.client() as client:
        queue = await client.queue("orders")
        arn = "arn:aws:sqs:us-east-1:123456789012:orders"
        with pytest.raises(AccessDenied, match=rf"allow sqs:SendMessage on {arn}; run `aws sts") as caught:
            await queue.send([OutgoingMessage(body="x")])
    assert caught.value.code == "AccessDenied"
    assert not caught.value.retryable


async def test_the_endpoint_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch, sqs: FakeSqs) -> None:
    """``AWS_ENDPOINT_URL_SQS`` works as it does for every AWS SDK."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", sqs.url)
    async with AwsClient() as client:
        assert (await client.queue("orders")).info.name == "orders"
    assert sqs.made("GetQueueUrl")


async def test_a_name_a_url_and_an_arn_are_resolved(sqs: FakeSqs) -> None:
    """A name is asked for, an ARN with its account, a URL is taken as it is."""
    url = "https://sqs.us-east-1.amazonaws.com/123456789012/orders"
    async with sqs.client() as client:
        for name in ("orders", url, "arn:aws:sqs:us-east-1:999999999999:orders"):
            queue = await client.queue(name)
            assert (queue.info.name, queue.info.url) == ("orders", url)
            assert repr(queue) == f"AwsQueue({url!r})"
    first, second = sqs.made("GetQueueUrl")
    assert first.body == {"QueueName": "orders"}
    assert second.body == {"QueueName": "orders", "QueueOwnerAWSAccountId": "999999999999"}
    assert len(sqs.made("GetQueueAttributes")) == 3


@pytest.mark.parametrize("arn", ["arn:aws:sns:us-east-1:1:orders", "arn:aws:sqs:orders", "arn:"])
async def test_another_arn_is_refused(sqs: FakeSqs, arn: str) -> None:
    """The text shows the form."""
    async with sqs.client() as client:
        with pytest.raises(ConfigurationError, match="ARN of a queue"):
            await client.queue(arn)
    assert not sqs.requests


async def test_a_missing_queue_says_what_to_check(sqs: FakeSqs) -> None:
    """Name, account and region are what is usually wrong; the endpoint that was asked tells two of them."""
    sqs.scripts["GetQueueUrl"] = says(error("QueueDoesNotExist", query_code="AWS.SimpleQueueService.NonExistentQueue"))
    async with sqs.client() as client:
        with pytest.raises(QueueNotFound, match=r"'orders'.*check the name, the account and the region") as caught:
            await client.queue("orders")
    assert str(caught.value).endswith(f"; {sqs.url} was asked")
    assert caught.value.code == "AWS.SimpleQueueService.NonExistentQueue"


@pytest.mark.parametrize(
    "policy",
    [
        '{"deadLetterTargetArn": "arn:dlq", "maxReceiveCount": 5}',
        '{"maxReceiveCount": "5", "deadLetterTargetArn": "arn:dlq"}',
        '{"maxReceiveCount": "5.0", "deadLetterTargetArn": "arn:dlq"}',
        '{"maxReceiveCount": 5.0, "deadLetterTargetArn": "arn:dlq"}',
    ],
)
async def test_a_redrive_policy_is_read_in_each_spelling(sqs: FakeSqs, policy: str) -> None:
    """AWS returns the count as it was set: as a number or as text. Some emulators make a fraction of it."""
    sqs.scripts["GetQueueAttributes"] = says(reply({"Attributes": {"RedrivePolicy": policy, "FifoQueue": "true"}}))
    async with sqs.client() as client:
        info = (await client.queue("orders")).info
    assert info.redrive is not None
    assert (info.redrive.dead_letter_queue, info.redrive.max_receive_count) == ("arn:dlq", 5)
    assert info.fifo


@pytest.mark.parametrize("count", ["", ', "maxReceiveCount": null', ', "maxReceiveCount": ""'])
async def test_a_redrive_policy_without_a_count_has_that_of_sqs(sqs: FakeSqs, count: str) -> None:
    """With 0, each receive of a message would pass for its last one."""
    policy = f'{{"deadLetterTargetArn": "arn:dlq"{count}}}'
    sqs.scripts["GetQueueAttributes"] = says(reply({"Attributes": {"RedrivePolicy": policy}}))
    async with sqs.client() as client:
        info = (await client.queue("orders")).info
    assert info.redrive is not None
    assert info.redrive.max_receive_count == 10


@pytest.mark.parametrize(
    "policy",
    ["", None, "null", "{}", '{"redrivePermission": "denyAll"}', '{"deadLetterTargetArn": null, "maxReceiveCount": 3}'],
)
async def test_a_policy_without_a_queue_is_none(sqs: FakeSqs, policy: str | None) -> None:
    """An empty policy is what remains of one that was removed."""
    sqs.scripts["GetQueueAttributes"] = says(reply({"Attributes": {"RedrivePolicy": policy}}))
    async with sqs.client() as client:
        assert (await client.queue("orders")).info.redrive is None


@pytest.mark.parametrize(("said", "seconds"), [("45.0", 45), (45, 45), ("", 30), (None, 30)])
async def test_odd_numbers_are_read_all_the_same(sqs: FakeSqs, said: object, seconds: int) -> None:
    """Some local servers answer a fraction, a JSON number or nothing where SQS answers a text: that stops no start."""
    numbers = dict.fromkeys(("VisibilityTimeout", "MessageRetentionPeriod", "ApproximateNumberOfMessages"), said)
    sqs.scripts["GetQueueAttributes"] = says(reply({"Attributes": numbers}))
    async with sqs.client() as client:
        queue = await client.queue("orders")
        assert queue.info.visibility_timeout == seconds
        assert queue.info.retention == (None if seconds == 30 else seconds)
        assert int((await queue.attributes()).get("ApproximateNumberOfMessages", "30")) == seconds


@pytest.mark.parametrize("attributes", [{"RedrivePolicy": "not JSON"}, {"VisibilityTimeout": "soon"}, 5])
async def test_attributes_that_are_not_sqs_are_told_as_such(sqs: FakeSqs, attributes: object) -> None:
    """An endpoint that is no SQS is what it sounds like, not a failure in here."""
    sqs.scripts["GetQueueAttributes"] = says(reply({"Attributes": attributes}))
    async with sqs.client() as client:
        with pytest.raises(ServiceUnavailable, match="check the endpoint URL"):
            await client.queue("orders")


async def test_sent_messages_carry_what_they_say(sqs: FakeSqs) -> None:
    """Only what was given is sent; results and refusals come back in order."""
    sqs.scripts["SendMessageBatch"] = says(
        reply(
            {
                "Successful": [{"Id": "1", "MessageId": "m1", "SequenceNumber": "7"}],
                "Failed": [{"Id": "0", "Code": "InvalidParameterValue", "SenderFault": True, "Message": "no"}],
            }
        )
    )
    binary = {"b": MessageAttribute("Binary", binary_value=b"\x00\xff")}
    async with sqs.client() as client:
        queue = await client.queue("orders.fifo")
        results = await queue.send(
            [
                OutgoingMessage(body="plain"),
                OutgoingMessage(body="full", message_attributes=binary, delay=0, group_id="g", deduplication_id="d"),
                OutgoingMessage(body="forgotten"),
            ]
        )
    assert results == [
        EntryFailure(0, "InvalidParameterValue", "no", sender_fault=True),
        SendResult(1, "m1", "7"),
        EntryFailure(2, "postroom.Unconfirmed", "SQS's answer does not name this entry"),
    ]
    plain, full, _ = sqs.made("SendMessageBatch")[0].body["Entries"]
    assert plain == {"Id": "0", "MessageBody": "plain"}
    assert full == {
        "Id": "1",
        "MessageBody": "full",
        "MessageAttributes": {"b": {"DataType": "Binary", "BinaryValue": "AP8="}},
        "DelaySeconds": 0,
        "MessageGroupId": "g",
        "MessageDeduplicationId": "d",
    }


async def test_the_ordinary_client_retries(sqs: FakeSqs) -> None:
    """A reset is made good by botocore's standard retries, up to ``max_attempts``."""

    async def once(request: Request, writer: Any) -> None:
        if len(sqs.made("GetQueueUrl")) == 1:
            await resets(request, writer)
        else:
            writer.write(reply({"QueueUrl": "https://sqs.us-east-1.amazonaws.com/1/orders"}))

    sqs.scripts["GetQueueUrl"] = once
    async with sqs.client(max_attempts=2) as client:
        await client.queue("orders")
    assert len(sqs.made("GetQueueUrl")) == 2


async def test_use_before_opening_shows_the_line_to_write() -> None:
    """And the representation says that it is not open."""
    client = AwsClient(region="eu-central-1")
    with pytest.raises(NotOpenError, match="async with AwsClient"):
        await client.queue("orders")
    assert repr(client) == "AwsClient(region='eu-central-1', endpoint_url=None, not open)"


@pytest.fixture
def slow_session(monkeypatch: pytest.MonkeyPatch) -> AioSession:
    """Give a session with credentials that come over the network, so that opening a client takes a while."""
    session = AioSession()
    find = session.get_credentials

    async def find_slowly() -> Any:
        for _ in range(3):
            await asyncio.sleep(0)
        return await find()

    monkeypatch.setattr(session, "get_credentials", find_slowly)
    return session


async def test_who_enters_while_it_opens_waits_for_it(
    sqs: FakeSqs, slow_session: AioSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five users at once open one botocore client."""
    make = mock.Mock(wraps=slow_session.create_client)
    monkeypatch.setattr(slow_session, "create_client", make)
    client = sqs.client(session=slow_session)

    async def use() -> None:
        async with client:
            await client.queue("orders")

    await asyncio.gather(*(use() for _ in range(5)))
    assert make.call_count == 1


async def test_who_is_cancelled_while_it_opens_leaves_it_to_the_others(sqs: FakeSqs, slow_session: AioSession) -> None:
    """The opener's cancellation closes nothing under those who wait."""
    client = sqs.client(session=slow_session)

    async def use() -> str:
        async with client:
            return (await client.queue("orders")).info.name

    first = asyncio.create_task(use(), name="first")
    await asyncio.sleep(0)
    others = [asyncio.create_task(use(), name=f"other-{number}") for number in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    assert await asyncio.gather(*others) == ["orders"] * 3
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(ClosedError):
        await client.queue("orders")


async def test_the_last_to_go_closes_even_if_it_never_came_in(sqs: FakeSqs, slow_session: AioSession) -> None:
    """Who is cancelled while waiting, after the opener has left, is the last user."""
    client = sqs.client(session=slow_session)

    async def wait_and_enter() -> None:
        async with client:
            pytest.fail("it was cancelled before it could enter")

    async def open_and_leave() -> None:
        async with client:
            second.cancel()

    first = asyncio.create_task(open_and_leave(), name="first")
    second = asyncio.create_task(wait_and_enter(), name="second")
    await first
    with pytest.raises(asyncio.CancelledError):
        await second
    with pytest.raises(ClosedError):
        await client.queue("orders")


async def _deciding(opened: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Task[Any], threading.Event]:
    """Let a connection decide upon its path until its TLS context is there: when the event is set."""
    asked, answered = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow_tls() -> ssl.SSLContext:
        loop.call_soon_threadsafe(asked.set)
        answered.wait(10)
        return ssl.create_default_context()

    monkeypatch.setattr(connection, "default_tls", slow_tls)
    scope = Scope(host="localhost", region="us-east-1", service="sqs", user_agent="postroom")
    endpoint = Endpoint(host="localhost", port=1, secure=True, scope=scope)
    monkeypatch.setattr(opened, "_capture", mock.Mock(endpoint=endpoint, objections=()))
    deciding = asyncio.create_task(opened.settle_path(), name="deciding")
    await asked.wait()
    return deciding, answered


async def test_a_client_closed_while_it_decides_gets_no_hot_path(sqs: FakeSqs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The TLS context is made in a thread; what comes back too late is not kept."""
    async with sqs.client() as client:
        opened = connection_of(client)
        deciding, answered = await _deciding(opened, monkeypatch)
    answered.set()
    await deciding
    assert not opened.statistics().hot_path


async def test_who_is_cancelled_while_deciding_leaves_it_to_the_next(
    sqs: FakeSqs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hot path is not lost with the task that opened the first queue."""
    async with sqs.client() as client:
        opened = connection_of(client)
        deciding, answered = await _deciding(opened, monkeypatch)
        deciding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deciding
        answered.set()
        await opened.settle_path()
        assert opened.statistics().hot_path


async def test_everything_in_one_loop_shares_the_default_client() -> None:
    """As long as a caller holds it, it is the same one; nothing else keeps it."""
    first = default_client()
    assert default_client() is first
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    assert isinstance(default_client(), AwsClient)


def test_another_loop_has_another_default_client() -> None:
    """Clients belong to the loop that opened them; a closed loop keeps nothing alive."""

    async def get() -> AwsClient:
        return default_client()

    first, second = asyncio.run(get()), asyncio.run(get())
    assert first is not second


async def test_the_default_client_survives_its_closing(monkeypatch: pytest.MonkeyPatch, sqs: FakeSqs) -> None:
    """A consumer that runs again after a stop opens it again."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", sqs.url)
    client = default_client()
    for _ in range(2):
        async with client:
            assert default_client() is client
            await client.queue("orders")


def test_one_client_can_be_used_in_one_loop_after_the_other(slow_session: AioSession) -> None:
    """Entered again in another event loop, it has nothing left of the first."""
    client = AwsClient(endpoint_url="http://127.0.0.1:9", session=slow_session)

    async def use() -> None:
        async def enter() -> None:
            async with client:
                await asyncio.sleep(0)

        await asyncio.gather(*(enter() for _ in range(3)))

        with pytest.raises(ClosedError):
            await client.queue("orders")

    for _ in range(2):
        asyncio.run(use())
