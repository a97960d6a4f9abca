"""What botocore raises, in postroom's words: the class, the code, what to do next, and no secret."""

import asyncio
import json

import aiohttp
import pytest
from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError

from postroom.errors import (
    AccessDenied,
    ConfigurationError,
    InvalidReceiptHandle,
    InvalidRequest,
    PostroomError,
    QueueNotFound,
    ServiceUnavailable,
    Throttled,
    TransportError,
)
from postroom.transports.aws.errors import OPENING, Subject, kind_of, translate

QUEUE = Subject(text="queue 'orders'", resource="arn:aws:sqs:us-east-1:123456789012:orders")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("AWS.SimpleQueueService.NonExistentQueue", 400, QueueNotFound),
        ("QueueDoesNotExist", 400, QueueNotFound),
        ("com.amazonaws.sqs#QueueDoesNotExist", 400, QueueNotFound),
        ("InvalidAddress", 404, QueueNotFound),
        ("AccessDenied", 403, AccessDenied),
        ("AccessDeniedException", 400, AccessDenied),
        ("ExpiredToken", 403, AccessDenied),
        ("InvalidClientTokenId", 403, AccessDenied),
        ("SignatureDoesNotMatch", 403, AccessDenied),
        ("InvalidSecurity", 403, AccessDenied),
        ("KmsAccessDenied", 400, AccessDenied),
        ("ReceiptHandleIsInvalid", 404, InvalidReceiptHandle),
        ("AWS.SimpleQueueService.MessageNotInflight", 400, InvalidReceiptHandle),
        ("OverLimit", 403, Throttled),
        ("AWS.SimpleQueueService.OverLimit", 403, Throttled),
        ("RequestThrottled", 403, Throttled),
        ("ThrottlingException", 400, Throttled),
        ("KmsThrottled", 400, Throttled),
        ("Unheard", 429, Throttled),
        ("SlowDown", 503, Throttled),
        ("InternalError", 500, ServiceUnavailable),
        ("ServiceUnavailable", 503, ServiceUnavailable),
        ("", 502, ServiceUnavailable),
        ("RequestTimeout", 400, ServiceUnavailable),
        ("AWS.SimpleQueueService.TooManyEntriesInBatchRequest", 400, InvalidRequest),
        ("InvalidMessageContents", 400, InvalidRequest),
        ("KmsDisabled", 400, InvalidRequest),
        ("Unheard", 400, InvalidRequest),
        ("403", 403, ServiceUnavailable),
        ("404", 404, ServiceUnavailable),
        ("407", 407, ServiceUnavailable),
        ("", 302, ServiceUnavailable),
        ("", 400, ServiceUnavailable),
        ("400", 400, ServiceUnavailable),
        ("413", 413, ServiceUnavailable),
    ],
)
def test_error_codes_have_classes(code: str, status: int, kind: type[TransportError]) -> None:
    """Codes count before statuses: SQS throttles with 403 as well."""
    assert kind_of(code, status) is kind
    response = {"Error": {"Code": code, "Message": "said SQS."}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = translate(ClientError(response, "X"), operation="ReceiveMessage", subject=QUEUE)
    assert type(error) is kind
    assert isinstance(error, TransportError)
    assert (error.operation, error.code) == ("ReceiveMessage", code)
    assert str(error).startswith(f"ReceiveMessage on queue 'orders': {code or status}: said SQS")
    assert error.retryable == (kind in {Throttled, ServiceUnavailable} or code.startswith("ExpiredToken"))


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (exceptions.NoRegionError(), AccessDenied, "set AWS_REGION"),
        (exceptions.NoCredentialsError(), AccessDenied, "AWS_ACCESS_KEY_ID"),
        (exceptions.PartialCredentialsError(provider="env", cred_var="x"), AccessDenied, "AWS_ACCESS_KEY_ID"),
        (exceptions.CredentialRetrievalError(provider="p", error_msg="e"), AccessDenied, "aws sso login"),
        (exceptions.UnauthorizedSSOTokenError(), AccessDenied, "aws sso login"),
        (exceptions.TokenRetrievalError(provider="p", error_msg="e"), AccessDenied, "aws sso login"),
        (exceptions.ProfileNotFound(profile="p"), ConfigurationError, "list-profiles"),
        (exceptions.InvalidRegionError(region_name="-"), ConfigurationError, "AWS_REGION"),
        (exceptions.EndpointConnectionError(endpoint_url="http://x"), ServiceUnavailable, "check the network"),
        (exceptions.ConnectTimeoutError(endpoint_url="http://x"), ServiceUnavailable, "check the network"),
        (exceptions.ReadTimeoutError(endpoint_url="http://x"), ServiceUnavailable, "check the network"),
        (exceptions.ConnectionClosedError(endpoint_url="http://x"), ServiceUnavailable, "check the network"),
        (exceptions.SSLError(endpoint_url="http://x", error="e"), ServiceUnavailable, "AWS_CA_BUNDLE"),
        (exceptions.ProxyConnectionError(proxy_url="http://x"), ServiceUnavailable, "NO_PROXY"),
        (exceptions.HTTPClientError(error="e"), ServiceUnavailable, "check the network"),
        (TimeoutError(), ServiceUnavailable, "check the network"),
        (ConnectionResetError(), ServiceUnavailable, "check the network"),
        (PermissionError(13, "Permission denied"), ServiceUnavailable, "check the network"),
        (PermissionError(13, "Permission denied", "/run/token"), AccessDenied, "/run/token'; credentials are read"),
        (KeyError("x"), ServiceUnavailable, "does not answer like SQS"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "r"), ServiceUnavailable, "does not answer like SQS"),
        (exceptions.ParamValidationError(report="r"), InvalidRequest, "refused the parameters"),
        (exceptions.MetadataRetrievalError(error_msg="e"), AccessDenied, "give the task or instance a role"),
        (RuntimeError("Credentials were refreshed, but ... are still expired."), AccessDenied, "still expired"),
        (aiohttp.ServerDisconnectedError(), ServiceUnavailable, "check the network"),
        (aiohttp.ClientPayloadError("cut"), ServiceUnavailable, "check the network"),
        (asyncio.IncompleteReadError(b"", 5), ServiceUnavailable, "check the network"),
        (json.JSONDecodeError("the body", "the body", 0), ServiceUnavailable, "does not answer like SQS"),
        (BotoCoreError(), TransportError, "unexpected BotoCoreError"),
        (ZeroDivisionError(), TransportError, "unexpected ZeroDivisionError"),
    ],
)
def test_exceptions_have_classes(error: Exception, kind: type[PostroomError], text: str) -> None:
    """Every family of botocore's exceptions says what to do next; the unknown is told as such."""
    told = translate(error, operation="SendMessageBatch", subject=QUEUE)
    assert type(told) is kind
    assert text in str(told)
    assert str(told).startswith("SendMessageBatch on queue 'orders': ")
    if isinstance(told, TransportError):
        assert (told.operation, told.code) == ("SendMessageBatch", type(error).__name__)


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ParamValidationError(report="Invalid type for MessageBody, value: the body"),
        KeyError("the body"),
        ValueError("the body"),
        RuntimeError("the body"),
    ],
)
def test_what_may_quote_a_body_is_not_repeated(error: Exception) -> None:
    """It stays in the cause."""
    assert "the body" not in str(translate(error, operation="SendMessageBatch"))


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (exceptions.CredentialRetrievalError(provider="p", error_msg="e"), True),
        (exceptions.UnauthorizedSSOTokenError(), True),
        (exceptions.MetadataRetrievalError(error_msg="e"), True),
        (RuntimeError("Credentials were refreshed, but the refreshed credentials are still expired."), True),
        (exceptions.NoCredentialsError(), False),
        (exceptions.PartialCredentialsError(provider="env", cred_var="x"), False),
        (exceptions.ParamValidationError(report="r"), False),
        (exceptions.EndpointConnectionError(endpoint_url="http://x"), True),
        (ZeroDivisionError(), True),
        (RuntimeError("Session is closed"), True),
    ],
)
def test_what_may_pass_is_worth_another_try(error: Exception, retryable: bool) -> None:
    """A source of credentials comes back, and what nothing is known of is not given up at once."""
    told = translate(error, operation="DeleteMessageBatch", subject=QUEUE)
    assert isinstance(told, TransportError)
    assert told.retryable == retryable


def test_what_a_foreign_provider_of_credentials_raises_at_the_start_may_pass() -> None:
    """Only what botocore itself refuses would be the same at the next try."""

    class VaultIsSealed(BotoCoreError):  # type: ignore[misc] # botocore has no types
        fmt = "vault is sealed"

    told = translate(VaultIsSealed(), operation=OPENING)
    assert isinstance(told, TransportError)
    assert told.retryable
    refused = translate(exceptions.InvalidRetryModeError(provided_retry_mode="x", valid_modes="y"), operation=OPENING)
    assert type(refused) is ConfigurationError


def refused(code: str, *, said: str = "said", asked: str = "X") -> TransportError:
    """Return the error of a refused call."""
    response = {"Error": {"Code": code, "Message": said}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    told = translate(ClientError(response, asked), operation="SendMessageBatch", subject=QUEUE)
    assert isinstance(told, TransportError)
    return told


@pytest.mark.parametrize("name", ["orders-worker", "production-" * 5 + "worker-v2"])
@pytest.mark.parametrize("page", ["", "<p>" * 1_000])
def test_a_refusal_tells_its_reason_however_long_the_names_are(name: str, page: str) -> None:
    """It stands at the end of what AWS says. What a server says has a bound all the same."""
    why = "with an explicit deny in a service control policy: arn:aws:organizations::1:policy/o-1/p-1"
    who = f"User: arn:aws:sts::123456789012:assumed-role/{name}/{name} is not authorized to perform: sqs:receivemessage"
    said = str(refused("AccessDeniedException", said=f"{who} on resource: arn:aws:sqs:eu-1:1:{page}orders {why}"))
    assert who in said
    assert why in said
    assert len(said) < 800


@pytest.mark.parametrize(
    ("code", "asked", "advice", "not_advised"),
    [
        ("AccessDenied", "SendMessageBatch", f"allow sqs:SendMessage on {QUEUE.resource}", "sso"),
        ("KMS.AccessDeniedException", "SendMessageBatch", "allow kms:GenerateDataKey and kms:Decrypt", "sqs:"),
        ("KmsAccessDenied", "SendMessageBatch", "on the key that encrypts the queue", "sqs:"),
        ("AccessDenied", "AssumeRole", "trust policy, does not allow AssumeRole", "sqs:"),
        ("SignatureDoesNotMatch", "SendMessageBatch", "check the secret access key", "sqs:"),
        ("InvalidClientTokenId", "SendMessageBatch", "log in again", "sqs:"),
        ("ExpiredToken", "SendMessageBatch", "log in again", "sqs:"),
    ],
)
def test_each_refusal_names_what_cures_it(code: str, asked: str, advice: str, not_advised: str) -> None:
    """A permission is named with its action and resource; what is wrong with the keys is not laid to a permission."""
    told = refused(code, asked=asked)
    assert isinstance(told, AccessDenied)
    assert advice in str(told)
    assert not_advised not in str(told).partition("said")[2]


@pytest.mark.parametrize("code", ["AccessDenied", "AccessDeniedException", "KMS.AccessDeniedException"])
@pytest.mark.parametrize("asked", ["SendMessageBatch", "AssumeRole"])
def test_an_explicit_deny_is_not_advised_to_be_allowed(code: str, asked: str) -> None:
    """The permission may be there: no allow overrides a deny."""
    why = "is not authorized to perform: x on resource: y with an explicit deny in a service control policy"
    told = refused(code, said=f"User: z {why}", asked=asked)
    assert not told.retryable
    assert f"{why}; an explicit deny overrides every allow: change the policy that denies it; run" in str(told)
    assert "allow " not in str(told).partition("every allow")[2]


@pytest.mark.parametrize("code", ["KmsDisabled", "KMS.DisabledException", "KMS.NotFoundException", "KmsInvalidState"])
def test_a_key_that_cannot_be_used_is_named_as_what_to_look_at(code: str) -> None:
    """When its key was disabled or deleted, a queue refuses everything; the permission is there."""
    told = refused(code, asked="ReceiveMessage")
    assert isinstance(told, InvalidRequest)
    assert "look at the key that encrypts the queue" in str(told)


def test_an_expired_identity_of_a_role_is_worth_another_try() -> None:
    """The file with a web identity is replaced in time; the call that failed is named."""
    told = refused("ExpiredTokenException", asked="AssumeRoleWithWebIdentity")
    assert told.retryable
    assert "getting credentials by AssumeRoleWithWebIdentity" in str(told)


def test_a_refusal_that_is_not_of_sqs_is_told_as_such() -> None:
    """A page of a proxy has no code of SQS."""
    told = refused("403", said="<html>")
    assert type(told) is ServiceUnavailable
    assert "does not answer like SQS" in str(told)


_TOKEN = "IQoJb3JpZ2luX2VjEXAMPLETOKEN//////////wEaCXVzLWVhc3QtMSJHMEUCIQDexample" + "x" * 300 + "=="


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(f"'POST\n/\n\nx-amz-date:2026\nx-amz-security-token:{_TOKEN}\n'", id="a canonical request"),
        pytest.param(f"<td>x-amz-security-token</td><td>{_TOKEN}</td>", id="a page that echoes headers"),
        pytest.param(f"<td>authorization: AWS4-HMAC-SHA256 {_TOKEN}</td>" + "<p>" * 90_000, id="a long page"),
    ],
)
@pytest.mark.parametrize("code", ["InvalidSignatureException", "403"])
def test_what_a_server_says_is_quoted_in_a_short_line_without_secrets(code: str, said: str) -> None:
    """A refused signature quotes the request with its token, and a proxy's page may be of any size."""
    text = str(refused(code, said=said))
    assert _TOKEN[:20] not in text
    assert "\n" not in text
    assert len(text) < 700


def test_an_error_that_quotes_a_process_is_told_without_secrets() -> None:
    """A process that gives credentials prints what it likes."""
    error = exceptions.CredentialRetrievalError(provider="custom-process", error_msg=f"SessionToken: {_TOKEN}")
    assert _TOKEN[:20] not in str(translate(error, operation="ReceiveMessage"))


def test_a_send_that_a_proxy_calls_too_large_is_not_tried_again() -> None:
    """Its size is at fault; a sender tries the messages of such a batch one by one."""
    response = {"Error": {"Code": "413", "Message": "<html>"}, "ResponseMetadata": {"HTTPStatusCode": 413}}
    told = translate(ClientError(response, "SendMessageBatch"), operation="SendMessageBatch", subject=QUEUE)
    assert type(told) is InvalidRequest
