"""AWS JSON 1.0: what every current SDK speaks to SQS.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-making-api-requests-json.html
"""

import json
from typing import Any

import msgspec

from postroom.local.actions import ACTIONS, Action
from postroom.local.errors import BrokerError
from postroom.local.http import Response

CONTENT_TYPE = "application/x-amz-json-1.0"
_TARGETS = {f"AmazonSQS.{name}".encode(): action for name, action in ACTIONS.items()}
_encode = msgspec.json.Encoder().encode


def action_of(target: bytes) -> Action:
    """Return the action that the header X-Amz-Target names. Raises UnknownOperationException."""
    action = _TARGETS.get(target)
    if action is None:
        shown = target[:100].decode("latin-1")
        raise BrokerError("UnknownOperationException", f"The action {shown} is not valid for this endpoint.")
    return action


def read(action: Action, body: bytes) -> Any:
    """Read a request. Raises SerializationException."""
    try:
        return action.decode(body or b"{}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return _read_lenient(action, body, error)


def _read_lenient(action: Action, body: bytes, cause: Exception) -> Any:
    """Read what the quick reader does not: null for absent, and half of a surrogate pair (refused as content later)."""
    try:
        document = json.loads(body, object_pairs_hook=_without_nulls)
        if action.name not in {"SendMessage", "SendMessageBatch"}:
            json.dumps(document, ensure_ascii=False).encode()
        return msgspec.convert(document, action.request)
    except (ValueError, TypeError, RecursionError, msgspec.MsgspecError):
        raise BrokerError("SerializationException", f"The request is not valid: {cause}") from cause


def _without_nulls(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in pairs if value is not None}


def response(result: msgspec.Struct | None, request_id: str) -> Response:
    """Write the response of an action; one that returns nothing has an empty body."""
    headers = f"x-amzn-RequestId: {request_id}\r\nContent-Type: {CONTENT_TYPE}\r\n"
    return Response(200, headers, b"" if result is None else _encode(result))


def error_response(error: BrokerError, request_id: str) -> Response:
    """Write an error, with the code of the query protocol in a header, where SDKs look for it."""
    fault = "Sender" if error.sender_fault else "Receiver"
    headers = (
        f"x-amzn-RequestId: {request_id}\r\nx-amzn-query-error: {error.code};{fault}\r\n"
        f"Content-Type: {CONTENT_TYPE}\r\n"
    )
    namespace = "com.amazon.coral.service" if error.kind.endswith("Exception") else "com.amazonaws.sqs"
    body = {"__type": f"{namespace}#{error.kind}", "message": error.message}
    return Response(error.status, headers, _encode(body))
