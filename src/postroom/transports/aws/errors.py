"""What botocore raises, said in postroom's words.

Exceptions are recognised by the names in their class hierarchy, so that nothing of botocore is imported here and an
exception class that an older botocore lacks is no problem.

Error codes: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html and the page of
each action.
"""

from collections.abc import Mapping
from typing import Any, Final

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

_QUEUE_NOT_FOUND: Final = frozenset({"NonExistentQueue", "QueueDoesNotExist", "InvalidAddress"})
_ACCESS_DENIED: Final = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidSignatureException",
        "InvalidToken",
        "KmsAccessDenied",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "NotAuthorized",
        "OptInRequired",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnauthorizedOperation",
        "UnrecognizedClientException",
    }
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
_UNAVAILABLE: Final = frozenset({"InternalError", "InternalFailure", "RequestTimeout", "ServiceUnavailable"})

_BY_CODE: Final[tuple[tuple[frozenset[str], type[TransportError]], ...]] = (
    (_QUEUE_NOT_FOUND, QueueNotFound),
    (_ACCESS_DENIED, AccessDenied),
    (_INVALID_RECEIPT_HANDLE, InvalidReceiptHandle),
    (_THROTTLED, Throttled),
    (_UNAVAILABLE, ServiceUnavailable),
)

_LOG_IN: Final = (
    "run `aws sts get-caller-identity` to see who you are; set AWS_PROFILE, AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or log in again (`aws sso login`); in AWS give the task or instance a role"
)
_SET_REGION: Final = "set AWS_REGION, or pass AwsClient(region=...)"
_SET_KEYS: Final = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; in AWS give the task a role"
_REFUSED: Final = "botocore refused the parameters; the cause says which"
_NOT_SQS: Final = "the endpoint does not answer like SQS; check the endpoint URL"
_REACH: Final = "check the network, the region and the endpoint URL"

# Class name of an exception of botocore -> what it means here, and what to do next.
_BY_CLASS: Final[Mapping[str, tuple[type[PostroomError], str]]] = {
    "NoRegionError": (AccessDenied, _SET_REGION),
    "NoCredentialsError": (AccessDenied, _SET_KEYS),
    "PartialCredentialsError": (AccessDenied, _SET_KEYS),
    "CredentialRetrievalError": (AccessDenied, _LOG_IN),
    "NoAuthTokenError": (AccessDenied, _LOG_IN),
    "TokenRetrievalError": (AccessDenied, _LOG_IN),
    "SSOError": (AccessDenied, _LOG_IN),
    "LoginError": (AccessDenied, _LOG_IN),
    "UnknownCredentialError": (AccessDenied, _LOG_IN),
    "RefreshWithMFAUnsupportedError": (AccessDenied, _LOG_IN),
    "MetadataRetrievalError": (AccessDenied, _LOG_IN),
    "ProfileNotFound": (ConfigurationError, "list the profiles with `aws configure list-profiles`"),
    "ConfigParseError": (ConfigurationError, "correct the AWS configuration file"),
    "InvalidConfigError": (ConfigurationError, "correct the AWS configuration file"),
    "InvalidRegionError": (ConfigurationError, _SET_REGION),
    "BaseEndpointResolverError": (ConfigurationError, _SET_REGION),
    "EndpointProviderError": (ConfigurationError, "check region, endpoint_url, FIPS and dual-stack settings"),
    "InvalidEndpointConfigurationError": (ConfigurationError, "check region, endpoint_url, FIPS and dual-stack"),
    "ValidationError": (InvalidRequest, _REFUSED),
    "ParamValidationError": (InvalidRequest, _REFUSED),
    "SSLError": (ServiceUnavailable, "check the certificate, AWS_CA_BUNDLE and the endpoint URL"),
    "ProxyConnectionError": (ServiceUnavailable, "check HTTPS_PROXY and NO_PROXY"),
    "ConnectionError": (ServiceUnavailable, _REACH),
    "HTTPClientError": (ServiceUnavailable, _REACH),
    "IncompleteReadError": (ServiceUnavailable, _REACH),
    "ResponseParserError": (ServiceUnavailable, _NOT_SQS),
    # What botocore's parser raises on JSON of another shape.
    "AttributeError": (ServiceUnavailable, _NOT_SQS),
    "TypeError": (ServiceUnavailable, _NOT_SQS),
    "ValueError": (ServiceUnavailable, _NOT_SQS),
    "LookupError": (ServiceUnavailable, _NOT_SQS),
    "TimeoutError": (ServiceUnavailable, _REACH),
    "OSError": (ServiceUnavailable, _REACH),
}


def translate(error: Exception, *, operation: str, subject: str = "") -> PostroomError:
    """Return the error of postroom for an exception that a botocore client raised.

    The caller raises it ``from error``, which keeps the cause. A ``ConfigurationError`` can only come from opening
    a client; everything else is a ``TransportError``.

    Args:
        error: what botocore raised.
        operation: the SQS action.
        subject: what the request was about, such as ``queue 'orders'``.
    """
    where = f"{operation} on {subject}" if subject else operation
    response: Any = getattr(error, "response", None)
    if response is not None and "Error" in response:
        return _from_response(response, operation=operation, where=where)
    for cls in type(error).__mro__:
        kind, advice = _BY_CLASS.get(cls.__name__, (None, ""))
        if kind is not None:
            text = f"{where}: {_said(error, advice)}" + (f"; {advice}" if advice else "")
            return _make(kind, text, operation=operation, code=type(error).__name__)
    text = f"{where}: unexpected {type(error).__name__}"
    return TransportError(text, operation=operation, code=type(error).__name__)


def _said(error: Exception, advice: str) -> str:
    # What is told about a value that does not fit may quote the value: a message body.
    return type(error).__name__ if advice in {_NOT_SQS, _REFUSED} else str(error).rstrip(".")


def _make(kind: type[PostroomError], text: str, *, operation: str, code: str) -> PostroomError:
    if issubclass(kind, TransportError):
        return kind(text, operation=operation, code=code)
    return kind(text)


def _from_response(response: Mapping[str, Any], *, operation: str, where: str) -> TransportError:
    details: Mapping[str, Any] = response.get("Error") or {}
    code, said = str(details.get("Code", "")), str(details.get("Message", ""))
    metadata: Mapping[str, Any] = response.get("ResponseMetadata") or {}
    status = int(metadata.get("HTTPStatusCode", 0))
    kind = kind_of(code, status)
    text = f"{where}: {code or status}" + (f": {said.rstrip('.')}" if said else "") + _advice(kind, operation)
    return kind(text, operation=operation, code=code)


def kind_of(code: str, status: int) -> type[TransportError]:
    """Return the class of error for an error code of SQS and an HTTP status."""
    # The same error is AWS.SimpleQueueService.X in the older protocol and com.amazonaws.sqs#X in the newer one.
    bare = code.rsplit("#", 1)[-1].rsplit(".", 1)[-1]
    for codes, kind in _BY_CODE:
        if bare in codes:
            return kind
    if status == 429:
        return Throttled
    return ServiceUnavailable if status >= 500 else InvalidRequest


def _advice(kind: type[TransportError], operation: str) -> str:
    if kind is QueueNotFound:
        return (
            "; check the name, the account and the region (a queue of another region or account needs its own client)"
        )
    if kind is AccessDenied:
        return f"; allow sqs:{operation.removesuffix('Batch')} on the queue, or {_LOG_IN}"
    return ""
