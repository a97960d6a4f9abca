"""What botocore raises, said in postroom's words.

Exceptions are recognised by the names in their class hierarchy, so that nothing of botocore is imported here and an
exception class that an older botocore lacks is no problem.

Error codes: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html and the page of
each action.
"""

import ssl
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, NamedTuple

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
from postroom.redaction import quote
from postroom.transports.aws.clock import Skew, skew_of
from postroom.transports.protocol import is_of_key

_QUEUE_NOT_FOUND: Final = frozenset({"NonExistentQueue", "QueueDoesNotExist", "InvalidAddress"})
_NO_PERMISSION: Final = frozenset(
    {"AccessDenied", "AccessDeniedException", "AuthorizationError", "NotAuthorized", "UnauthorizedOperation"}
)
_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_WRONG_KEYS: Final = frozenset(
    {"InvalidAccessKeyId", "InvalidClientTokenId", "InvalidSecurity", "InvalidToken", "UnrecognizedClientException"}
)
_WRONG_SIGNATURE: Final = frozenset(
    {
        "AuthFailure",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidSignature",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
    }
)
_CLOCK: Final = frozenset({"ClockSkew", "RequestExpired", "RequestInTheFuture", "RequestTimeTooSkewed"})
_ACCESS_DENIED: Final = (
    _NO_PERMISSION
    | _EXPIRED
    | _WRONG_KEYS
    | _WRONG_SIGNATURE
    | _CLOCK
    | {"KmsAccessDenied", "MissingAuthenticationToken", "MissingAuthenticationTokenException", "OptInRequired"}
)
_INVALID_RECEIPT_HANDLE: Final = frozenset({"ReceiptHandleIsInvalid", "InvalidReceiptHandle", "MessageNotInflight"})
_THROTTLED: Final = frozenset(
    {
        "BandwidthLimitExceeded",
        "KmsThrottled",
        "LimitExceededException",
        "OverLimit",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_UNAVAILABLE: Final = frozenset(
    {"IDPCommunicationError", "InternalError", "InternalFailure", "RequestTimeout", "ServiceUnavailable"}
)

_BY_CODE: Final[tuple[tuple[frozenset[str], type[TransportError]], ...]] = (
    (_QUEUE_NOT_FOUND, QueueNotFound),
    (_ACCESS_DENIED, AccessDenied),
    (_INVALID_RECEIPT_HANDLE, InvalidReceiptHandle),
    (_THROTTLED, Throttled),
    (_UNAVAILABLE, ServiceUnavailable),
)

_WHO: Final = "run `aws sts get-caller-identity` to see who you are"
_LOG_IN: Final = (
    f"{_WHO}; set AWS_PROFILE, AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or log in again (`aws sso login`); in AWS give the task or instance a role"
)
_SET_REGION: Final = "set AWS_REGION, or pass AwsClient(region=...)"
_SET_KEYS: Final = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; in AWS give the task a role"
_EXPLICIT_DENY: Final = "with an explicit deny"
_REFUSED: Final = "botocore refused the parameters; the cause says which"
NOT_SQS: Final = "the endpoint does not answer like SQS; check the endpoint URL, and proxies on the way to it"
_REACH: Final = "check the network, the region and the endpoint URL"
OPENING: Final = "opening the SQS client"
"""The operation of an error before there is any request."""


class _Meaning(NamedTuple):
    kind: type[PostroomError]
    advice: str
    retryable: bool | None = None
    """None: as the class has it."""


_CURABLE: Final = _Meaning(AccessDenied, _LOG_IN, retryable=True)
"""Where credentials come from could not be reached, or wants a new login: the next refresh asks again."""

_NO_FILE: Final = _Meaning(
    AccessDenied,
    "credentials are read from this file (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, a "
    "profile): check the path, the mount and the permissions",
    retryable=True,
)
"""Such as the token of a service account, which is mounted into a container."""

_NO_JSON: Final = _Meaning(
    AccessDenied, f"the credential_process of the AWS configuration answers no JSON; {_LOG_IN}", retryable=True
)
"""It may ask for a login, and what it says may be a secret."""

_NO_CODE: Final = _Meaning(
    AccessDenied,
    "a profile asks for a code at the terminal (mfa_serial), and there is none: use credentials that ask for none, "
    "or log in before and pass on what you got",
)
"""The prompt found the end of the input."""

_NO_ROLE: Final = _Meaning(
    AccessDenied,
    "the request for credentials is not a valid one: check AWS_ROLE_ARN, AWS_ROLE_SESSION_NAME and "
    "AWS_WEB_IDENTITY_TOKEN_FILE, or what the profile has in their place",
)

_NO_HEADER: Final = _Meaning(
    AccessDenied,
    "credentials or the region have a line break in them, often the last character of a secret that was made of a "
    "file: set AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN and AWS_REGION without it",
)
"""Nothing else that users write goes into the headers of a request."""

_NO_CERTIFICATES: Final = _Meaning(
    ServiceUnavailable,
    "the file with certificates cannot be used: check AwsClient(verify=...), AWS_CA_BUNDLE, REQUESTS_CA_BUNDLE and "
    "AioConfig(client_cert=...)",
)
_PROXY: Final = _Meaning(ServiceUnavailable, "check HTTPS_PROXY and NO_PROXY")
_NO_CLIENT: Final = _Meaning(
    ConfigurationError, "correct the AWS configuration: environment variables (AWS_...), configuration file, packages"
)
"""Whatever else botocore raises before there is any request: the next try would find the same."""

# Class name of an exception of botocore -> what it means here, and what to do next.
_BY_CLASS: Final[Mapping[str, _Meaning]] = {
    "NoRegionError": _Meaning(AccessDenied, _SET_REGION),
    "NoCredentialsError": _Meaning(AccessDenied, _SET_KEYS),
    "PartialCredentialsError": _Meaning(AccessDenied, _SET_KEYS),
    "CredentialRetrievalError": _CURABLE,
    "NoAuthTokenError": _CURABLE,
    "TokenRetrievalError": _CURABLE,
    "SSOError": _CURABLE,
    "LoginError": _CURABLE,
    "MetadataRetrievalError": _CURABLE,
    "UnknownCredentialError": _Meaning(AccessDenied, _LOG_IN),
    "RefreshWithMFAUnsupportedError": _Meaning(AccessDenied, _LOG_IN),
    "ProfileNotFound": _Meaning(ConfigurationError, "list the profiles with `aws configure list-profiles`"),
    "ConfigParseError": _Meaning(ConfigurationError, "correct the AWS configuration file"),
    "InvalidConfigError": _Meaning(ConfigurationError, "correct the AWS configuration file"),
    "InvalidRegionError": _Meaning(ConfigurationError, _SET_REGION),
    "BaseEndpointResolverError": _Meaning(ConfigurationError, _SET_REGION),
    "EndpointProviderError": _Meaning(ConfigurationError, "check region, endpoint_url, FIPS and dual-stack settings"),
    "InvalidEndpointConfigurationError": _Meaning(ConfigurationError, "check region, endpoint_url, FIPS, dual-stack"),
    "ValidationError": _Meaning(InvalidRequest, _REFUSED),
    "ParamValidationError": _Meaning(InvalidRequest, _REFUSED),
    "SSLError": _Meaning(ServiceUnavailable, "check the certificate, AWS_CA_BUNDLE and the endpoint URL"),
    "ProxyConnectionError": _PROXY,
    "ConnectionError": _Meaning(ServiceUnavailable, _REACH),
    "HTTPClientError": _Meaning(ServiceUnavailable, _REACH),
    "IncompleteReadError": _Meaning(ServiceUnavailable, _REACH),
    "ResponseParserError": _Meaning(ServiceUnavailable, NOT_SQS),
    # What botocore's parser raises on JSON of another shape.
    "AttributeError": _Meaning(ServiceUnavailable, NOT_SQS),
    "TypeError": _Meaning(ServiceUnavailable, NOT_SQS),
    "ValueError": _Meaning(ServiceUnavailable, NOT_SQS),
    "LookupError": _Meaning(ServiceUnavailable, NOT_SQS),
    "EOFError": _Meaning(ServiceUnavailable, _REACH),
    "TimeoutError": _Meaning(ServiceUnavailable, _REACH),
    "OSError": _Meaning(ServiceUnavailable, _REACH),
    # What aiohttp raises past aiobotocore. botocore's class of this name has a response, and is told by it.
    "ClientError": _Meaning(ServiceUnavailable, _REACH),
}

_OF_CREDENTIALS: Final = {"JSONDecodeError": _NO_JSON, "EOFError": _NO_CODE, "ParamValidationError": _NO_ROLE}
"""What some exceptions mean where they come from the search for credentials."""

_CREDENTIAL_CALLS: Final = frozenset(
    {
        "AssumeRole",
        "AssumeRoleWithSAML",
        "AssumeRoleWithWebIdentity",
        "CreateOAuth2Token",
        "CreateToken",
        "GetRoleCredentials",
        "GetSessionToken",
    }
)
"""Calls that botocore makes to get credentials, while it makes one of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a request is about."""

    text: str = ""
    """Such as ``queue 'orders'``."""
    resource: str = "the queue"
    """What goes into a policy: the ARN, where it is known."""
    rotating: bool = False
    """Whether the credentials are temporary ones, which are replaced in time."""


_NOTHING: Final = Subject()


def translate(error: Exception, *, operation: str, subject: Subject = _NOTHING) -> PostroomError:
    """Return the error of postroom for an exception that a botocore client raised.

    The caller raises it ``from error``, which keeps the cause. A ``ConfigurationError`` can only come from opening
    a client; everything else is a ``TransportError``.

    Args:
        error: what botocore raised.
        operation: the SQS action.
        subject: what the request was about.
    """
    where = f"{operation} on {subject.text}" if subject.text else operation
    response: Any = getattr(error, "response", None)
    if isinstance(response, Mapping) and "Error" in response:
        answer = _Answer(response)  # pyright: ignore[reportUnknownArgumentType] - botocore's, of no declared shape
        asked = str(getattr(error, "operation_name", ""))
        if asked in _CREDENTIAL_CALLS:
            where = f"{where}: getting credentials by {asked}"
        return _from_answer(answer, operation=operation, where=where, subject=subject, asked=asked)
    if isinstance(error, OSError) and error.filename is not None:  # one of a connection has none
        return _make(_NO_FILE, f"{where}: {error}; {_NO_FILE.advice}", operation=operation, code=type(error).__name__)
    for cls in type(error).__mro__:
        if (meaning := _BY_CLASS.get(cls.__name__)) is not None:
            meaning = _behind(error) or meaning
            text = f"{where}: {_said(error, meaning.advice) or type(error).__name__}; {meaning.advice}"
            return _make(meaning, text, operation=operation, code=type(error).__name__)
        # A provider of credentials that is not botocore's own may be down for a moment.
        if cls.__name__ == "BotoCoreError" and operation == OPENING and type(error).__module__ == cls.__module__:
            text = f"{where}: {quote(str(error)).rstrip('.')}; {_NO_CLIENT.advice}"
            return _make(_NO_CLIENT, text, operation=operation, code=type(error).__name__)
    if isinstance(error, RuntimeError) and "credentials" in str(error).lower():
        # So botocore says that what a refresh brought has expired, too.
        return _make(
            _CURABLE, f"{where}: {quote(str(error))}; {_LOG_IN}", operation=operation, code=type(error).__name__
        )
    text = f"{where}: unexpected {type(error).__name__}"
    # What it means is not known, so neither is that trying again is in vain.
    return TransportError(text, operation=operation, code=type(error).__name__, retryable=True)


def _behind(error: Exception) -> _Meaning | None:
    """Return what it means that no request could be made, where botocore has no word for that."""
    if (of_credentials := _OF_CREDENTIALS.get(type(error).__name__)) is not None:  # else it is of a request of ours
        frames = traceback.walk_tb(error.__traceback__)
        if all(_module_of(frame) != "aiobotocore.credentials" for frame, _ in frames):
            return None
        # The file of the token is empty, for as long as another program has not written it.
        return of_credentials._replace(retryable=True) if "WebIdentityToken" in str(error) else of_credentials
    inner = getattr(error, "kwargs", {}).get("error") if type(error).__name__ == "HTTPClientError" else None
    if "header injection" in str(inner):  # of aiohttp
        return _NO_HEADER
    # What fails on the way has a class of botocore's own.
    if isinstance(inner, FileNotFoundError | IsADirectoryError | PermissionError | ssl.SSLError):
        return _NO_CERTIFICATES
    # The second by older versions of aiobotocore. The endpoint's URL was looked at before.
    return _PROXY if type(inner).__name__ in {"InvalidProxiesConfigError", "InvalidURL"} else None


def _module_of(frame: FrameType) -> object:
    return frame.f_globals.get("__name__")


def _said(error: Exception, advice: str) -> str:
    # What is told about a value that does not fit may quote the value: a message body.
    return "" if advice in {NOT_SQS, _REFUSED, _NO_JSON.advice} else quote(str(error)).rstrip(".")


def _make(meaning: _Meaning, text: str, *, operation: str, code: str) -> PostroomError:
    if issubclass(meaning.kind, TransportError):
        return meaning.kind(text, operation=operation, code=code, retryable=meaning.retryable)
    return meaning.kind(text)


class _Answer:
    """An error answer as botocore parsed it."""

    def __init__(self, response: Mapping[str, Any]) -> None:
        details: Mapping[str, Any] = response.get("Error") or {}
        metadata: Mapping[str, Any] = response.get("ResponseMetadata") or {}
        self.code = quote(str(details.get("Code", "")))
        self.said = str(details.get("Message", ""))
        self.status = int(metadata.get("HTTPStatusCode", 0))
        self._headers: Mapping[str, str] = metadata.get("HTTPHeaders") or {}

    @property
    def skew(self) -> Skew | None:
        """How far off the clock is, if that is the reason."""
        return skew_of(_bare(self.code), self.said, self._headers.get("date"), time.time())


def clock_skew(error: Exception) -> float | None:
    """Return by how many seconds the server's clock is ahead, if an exception of botocore comes from that."""
    response: Any = getattr(error, "response", None)
    if not isinstance(response, Mapping) or "Error" not in response:
        return None
    skew = _Answer(response).skew  # pyright: ignore[reportUnknownArgumentType] - botocore's, of no declared shape
    return None if skew is None else skew.seconds


def lacks_permission(error: AccessDenied) -> bool:
    """Whether an error says that the credentials are good and the permission is missing."""
    return not error.retryable and _bare(error.code) in _NO_PERMISSION


def _from_answer(answer: _Answer, *, operation: str, where: str, subject: Subject, asked: str) -> TransportError:
    code, said = answer.code, quote(answer.said)
    skew = answer.skew
    kind = AccessDenied if skew is not None else kind_of(code, answer.status, operation)
    cause = f"{where}: {code or answer.status}" + (f": {said.rstrip('.')}" if said else "")
    if skew is not None:
        advice, retryable = _clock_advice(skew), True
    elif kind is AccessDenied:
        advice, retryable = _denied(_bare(code), code, operation, subject, asked)
        if _EXPLICIT_DENY in answer.said.lower():  # so AWS says where an allow, which may be there, does not help
            advice = f"an explicit deny overrides every allow: change the policy that denies it; {_WHO}"
    else:
        advice, retryable = _advice(kind, code, answer.status), kind.retryable
    return kind(f"{cause}{advice and '; '}{advice}", operation=operation, code=code, retryable=retryable)


def _bare(code: str) -> str:
    # The same error is AWS.SimpleQueueService.X in the older protocol and com.amazonaws.sqs#X in the newer one.
    return code.rsplit("#", 1)[-1].rsplit(".", 1)[-1]


def kind_of(code: str, status: int, operation: str = "") -> type[TransportError]:
    """Return the class of error for an error code of SQS and an HTTP status.

    A proxy that says "too large" will say so again to a send. A delete is small: there it may pass.
    """
    bare = _bare(code)
    for codes, kind in _BY_CODE:
        if bare in codes:
            return kind
    if status == 429:
        return Throttled
    if _is_foreign(code, status) and not (status == 413 and operation.startswith("Send")):
        return ServiceUnavailable
    return ServiceUnavailable if status >= 500 else InvalidRequest


def _is_foreign(code: str, status: int) -> bool:
    # SQS names a code. A refusal without one is of a proxy or a gateway on the way, or of another server.
    return code in {"", str(status)} and status < 500


def _advice(kind: type[TransportError], code: str, status: int) -> str:
    if kind is QueueNotFound:
        return (
            "check the name, the account and the region (a queue of another region or account is named by its ARN "
            "or URL)"
        )
    if is_of_key(code) and kind is InvalidRequest:  # disabled, deleted, or of a kind that cannot encrypt
        return "look at the key that encrypts the queue: it has to exist, to be enabled, and to encrypt"
    return NOT_SQS if kind is ServiceUnavailable and _is_foreign(code, status) else ""


def _clock_advice(skew: Skew) -> str:
    what = "check this machine's clock"
    if skew.seconds is not None:
        side = "behind" if skew.seconds > 0 else "ahead"
        what += f": it differs from the server's by {abs(skew.seconds):.0f} s (it is {side})"
    return f"{what}; calls succeed again once it is set right"


def _denied(bare: str, code: str, operation: str, subject: Subject, asked: str) -> tuple[str, bool]:
    """Return what to do, and whether trying again may help."""
    if bare in _EXPIRED:
        return _LOG_IN, True
    if bare in _WRONG_KEYS:  # new keys take some seconds until every server knows them
        return _LOG_IN, subject.rotating
    if bare in _WRONG_SIGNATURE:
        return f"check the secret access key, and the region of the endpoint; {_WHO}", subject.rotating
    return _allow(bare, code, operation, subject, asked), False


def _allow(bare: str, code: str, operation: str, subject: Subject, asked: str) -> str:
    if asked in _CREDENTIAL_CALLS:
        return f"the role, or its trust policy, does not allow {asked}; {_WHO}"
    if is_of_key(code):
        needed = "kms:GenerateDataKey and kms:Decrypt" if operation.startswith("Send") else "kms:Decrypt"
        return f"allow {needed} on the key that encrypts the queue; {_WHO}"
    if bare in _NO_PERMISSION:
        return f"allow sqs:{operation.removesuffix('Batch')} on {subject.resource}; {_WHO}"
    return _LOG_IN
