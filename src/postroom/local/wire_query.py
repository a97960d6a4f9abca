"""The query protocol: form fields in, XML out. What SDKs spoke to SQS before 2023, and kombu's own client still does.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-making-api-requests-xml.html
"""

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import parse_qsl

import msgspec

from postroom.local.actions import ACTIONS, Action
from postroom.local.errors import BrokerError, invalid_parameter
from postroom.local.http import Response

NAMESPACE = "http://queue.amazonaws.com/doc/2012-11-05/"
_LISTS = {
    "AttributeName": "AttributeNames",
    "MessageSystemAttributeName": "MessageSystemAttributeNames",
    "MessageAttributeName": "MessageAttributeNames",
    "TagKey": "TagKeys",
    "AWSAccountId": "AWSAccountIds",
    "ActionName": "Actions",
}
_MAPS = {
    "Attribute": ("Attributes", "Name"),
    "MessageAttribute": ("MessageAttributes", "Name"),
    "MessageSystemAttribute": ("MessageSystemAttributes", "Name"),
    "Tag": ("Tags", "Key"),
}
_KINDS = {"MessageAttribute": "message attribute", "MessageSystemAttribute": "message system attribute"}
_NOT_AT_QUEUES = frozenset({"CreateQueue", "ListQueues"})
"""Actions that the URL of a queue does not know."""
_ENTRY = "BatchRequestEntry"
_MAY_BE_EMPTY = frozenset({"Entries", *_LISTS, *_LISTS.values(), *_MAPS, *(field for field, _ in _MAPS.values())})
"""Names under which botocore of that time sends a list or a map without items: with an empty value."""

_Tree = dict[str, Any]


# -- requests ----------------------------------------------------------------------------------------------------


def fields(query: str, body: bytes) -> dict[str, str]:
    """Return the form fields of a request, from its body or its query string. Raises MalformedInput."""
    try:
        # Bounded: splitting millions of fields would block the event loop that all clients share.
        return dict(parse_qsl(body.decode() or query, keep_blank_values=True, errors="strict", max_num_fields=10_000))
    except ValueError:
        raise BrokerError("SerializationException", "The request is not a form in UTF-8.") from None


def action_of(form: Mapping[str, str], *, at_queue: bool = False) -> Action:
    """Return the action that a form names. Raises InvalidAction.

    Args:
        form: the fields.
        at_queue: whether the form was sent to the URL of a queue.
    """
    name = form.get("Action", "")
    action = ACTIONS.get(name)
    if action is None or (at_queue and name in _NOT_AT_QUEUES):
        raise BrokerError("UnknownOperationException", f"The action {name[:100]} is not valid for this endpoint.")
    return action


def read(action: Action, form: Mapping[str, str], queue_url: str | None) -> Any:
    """Read a request; ``queue_url`` is the URL of the queue that it was sent to. Raises MalformedInput."""
    tree: _Tree = {}
    for name, value in form.items():
        _plant(tree, name.split("."), value)
    arguments = _arguments(tree)
    if queue_url is not None:
        arguments.setdefault("QueueUrl", queue_url)
    if "AttributeNames" in arguments:  # of a receive that says both, SQS was recorded to take the older one here
        arguments.pop("MessageSystemAttributeNames", None)
    if action.name == "CreateQueue" and "Tags" in arguments:
        arguments["tags"] = arguments.pop("Tags")
    try:
        return msgspec.convert(arguments, action.request, strict=False)
    except msgspec.ValidationError as error:
        raise BrokerError("SerializationException", f"The request is not valid: {error}") from error


def _plant(tree: _Tree, path: list[str], value: str) -> None:
    for step in path[:-1]:
        branch = _branch(tree.setdefault(step, {}))
        if branch is None:
            raise BrokerError("SerializationException", f"The field {'.'.join(path)[:100]} is there twice.")
        tree = branch
    tree[path[-1]] = value


def _branch(value: Any) -> _Tree | None:
    return cast("_Tree", value) if isinstance(value, dict) else None


def _arguments(tree: _Tree) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, value in tree.items():
        if value == "" and name in _MAY_BE_EMPTY:
            continue
        if name in _LISTS:
            arguments[_LISTS[name]] = _numbered(value)
        elif name in _MAPS:
            field, key = _MAPS[name]
            arguments[field] = dict(_pair(name, item, key) for item in _numbered(value))
        elif name.endswith(_ENTRY):
            arguments["Entries"] = [_arguments(_branch(item) or {}) for item in _numbered(value)]
        else:
            arguments[name] = value
    return arguments


def _numbered(value: Any) -> list[Any]:
    """Return the items ``Name.1``, ``Name.2`` and so on in order; a single ``Name`` counts as one item."""
    branch = _branch(value)
    if branch is None:
        return [value]
    try:
        return [branch[number] for number in sorted(branch, key=int)]
    except ValueError:
        raise BrokerError("SerializationException", "The items of a list must be numbered.") from None


def _pair(of: str, item: Any, key: str) -> tuple[str, Any]:
    pair = _branch(item)
    if pair is None or not pair.get(key):
        kind = _KINDS.get(of, of.lower())
        raise invalid_parameter(f"The request must contain non-empty {kind} {key.lower()}.")
    return str(pair[key]), pair.get("Value", "")


# -- responses ---------------------------------------------------------------------------------------------------

_ITEMS = {
    "Messages": "Message",
    "QueueUrls": "QueueUrl",
    "queueUrls": "QueueUrl",
    "Failed": "BatchResultErrorEntry",
    "Results": "ListMessageMoveTasksResultEntry",
}
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"})


def response(action: Action, result: msgspec.Struct | None, request_id: str) -> Response:
    """Write the response of an action."""
    name = action.name
    parts = [f'<?xml version="1.0"?><{name}Response xmlns="{NAMESPACE}">']
    values = None if result is None else msgspec.to_builtins(result)
    if values:
        parts.append(f"<{name}Result>")
        _write(parts, values, f"{name}ResultEntry")
        parts.append(f"</{name}Result>")
    elif values is not None:
        parts.append(f"<{name}Result/>")
    parts.append(f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{name}Response>")
    return _xml(200, parts, request_id)


def error_response(error: BrokerError, request_id: str) -> Response:
    """Write an error."""
    parts = [
        f'<?xml version="1.0"?><ErrorResponse xmlns="{NAMESPACE}"><Error>',
        f"<Type>{'Sender' if error.sender_fault else 'Receiver'}</Type><Code>{error.code}</Code>",
        f"<Message>{_text(_message(error))}</Message><Detail/></Error>",
        f"<RequestId>{request_id}</RequestId></ErrorResponse>",
    ]
    return _xml(error.status, parts, request_id)


def s3_error_response(error: BrokerError) -> Response:
    """Write an error as clients of S3 read it."""
    text = f"<Error><Code>{error.code}</Code><Message>{_text(error.message)}</Message></Error>"
    return Response(error.status, "Content-Type: application/xml\r\n", text.encode())


def _message(error: BrokerError) -> str:
    """Return the text of an error as this protocol has it."""
    if error.kind == "QueueDoesNotExist":
        return "The specified queue does not exist for this wsdl version."
    return error.message


def json_response(action: Action, result: msgspec.Struct | None, request_id: str) -> Response:
    """Write the response of an action for a client that asked in this protocol and accepts JSON."""
    name = action.name
    document: dict[str, Any] = {}
    if result is not None:
        values = msgspec.to_builtins(result)
        document[f"{name}Result"] = {_JSON_NAMES.get(each, each): _pairs(value) for each, value in values.items()}
    document["ResponseMetadata"] = {"RequestId": request_id}
    return _json(200, {f"{name}Response": document}, request_id)


def json_error_response(error: BrokerError, request_id: str) -> Response:
    """Write an error for a client that asked in this protocol and accepts JSON."""
    fault = "Sender" if error.sender_fault else "Receiver"
    detail = {"Type": fault, "Code": error.code, "Message": _message(error)}
    return _json(error.status, {"Error": detail, "RequestId": request_id}, request_id)


_JSON_NAMES = {"Messages": "messages", "QueueUrls": "queueUrls"}


def _pairs(value: Any) -> Any:
    """Return maps as lists of pairs, within messages too, as this protocol has them."""
    if isinstance(value, list):
        return [_message_pairs(item) for item in cast("list[Any]", value)]
    branch = _branch(value)
    return value if branch is None else [{"Name": name, "Value": each} for name, each in branch.items()]


def _message_pairs(item: Any) -> Any:
    branch = _branch(item)
    return item if branch is None else {name: _pairs(value) for name, value in branch.items()}


def _json(status: int, document: Any, request_id: str) -> Response:
    headers = f"x-amzn-RequestId: {request_id}\r\nContent-Type: application/json\r\n"
    return Response(status, headers, msgspec.json.encode(document))


UNKNOWN_OPERATION = Response(404, "Content-Type: application/xml\r\n", b"<UnknownOperationException/>\n")
"""What a GET without an action gets, whatever it accepts."""


def _xml(status: int, parts: list[str], request_id: str) -> Response:
    headers = f"x-amzn-RequestId: {request_id}\r\nContent-Type: text/xml\r\n"
    return Response(status, headers, "".join(parts).encode("utf-8", "replace"))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).translate(_ESCAPES)


def _write(parts: list[str], values: Mapping[str, Any], entry: str) -> None:
    for name, value in values.items():
        pairs = _branch(value)
        if pairs is not None:
            _write_map(parts, name, pairs)
        elif name in _ITEMS or name == "Successful":
            for item in value:
                _element(parts, entry if name == "Successful" else _ITEMS[name], item)
        else:
            _element(parts, name, value)


def _write_map(parts: list[str], name: str, pairs: Mapping[str, Any]) -> None:
    element, key = ("Tag", "Key") if name == "Tags" else (name.removesuffix("s"), "Name")
    for each, value in pairs.items():
        _element(parts, element, {key: each, "Value": _Raw(value)})


class _Raw:
    """The value of a pair: text, or a structure that is not itself a map of pairs."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def _element(parts: list[str], name: str, value: Any) -> None:
    if isinstance(value, _Raw):
        value = value.value
    parts.append(f"<{name}>")
    fields_of = _branch(value)
    if fields_of is not None:
        _write(parts, fields_of, "")
    else:
        parts.append(_text(value))
    parts.append(f"</{name}>")
