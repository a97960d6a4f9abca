"""Clients for the server under judgement: boto3 in both protocols, and the environment that chooses the server."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import botocore.session
from botocore.config import Config

PREFIX = "POSTROOM_CONFORMANCE_"
XML_NAMESPACE = "http://queue.amazonaws.com/doc/2012-11-05/"

# The query protocol's names for repeated parameters: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/
MEMBER_NAMES = {
    "AWSAccountIdList": "AWSAccountId",
    "ActionNameList": "ActionName",
    "AttributeNameList": "AttributeName",
    "MessageSystemAttributeList": "MessageSystemAttributeName",
    "MessageAttributeNameList": "MessageAttributeName",
    "MessageList": "Message",
    "QueueUrlList": "QueueUrl",
    "TagKeyList": "TagKey",
}
FIELD_NAMES = {
    "Attributes": "Attribute",
    "MessageAttributes": "MessageAttribute",
    "MessageSystemAttributes": "MessageSystemAttribute",
    "tags": "Tag",
    "Tags": "Tag",
    "StringListValues": "StringListValue",
    "BinaryListValues": "BinaryListValue",
}
# Error shape: its code in the query protocol (and in the header x-amzn-query-error), and its HTTP status.
SQS_ERRORS: dict[str, tuple[str, int]] = {
    "BatchEntryIdsNotDistinct": ("AWS.SimpleQueueService.BatchEntryIdsNotDistinct", 400),
    "BatchRequestTooLong": ("AWS.SimpleQueueService.BatchRequestTooLong", 400),
    "EmptyBatchRequest": ("AWS.SimpleQueueService.EmptyBatchRequest", 400),
    "InvalidAttributeName": ("InvalidAttributeName", 400),
    "InvalidAttributeValue": ("InvalidAttributeValue", 400),
    "InvalidBatchEntryId": ("AWS.SimpleQueueService.InvalidBatchEntryId", 400),
    "InvalidMessageContents": ("InvalidMessageContents", 400),
    "MessageNotInflight": ("AWS.SimpleQueueService.MessageNotInflight", 400),
    "OverLimit": ("OverLimit", 403),
    "PurgeQueueInProgress": ("AWS.SimpleQueueService.PurgeQueueInProgress", 403),
    "QueueDeletedRecently": ("AWS.SimpleQueueService.QueueDeletedRecently", 400),
    "QueueDoesNotExist": ("AWS.SimpleQueueService.NonExistentQueue", 400),
    "QueueNameExists": ("QueueAlreadyExists", 400),
    "ReceiptHandleIsInvalid": ("ReceiptHandleIsInvalid", 404),
    "ResourceNotFoundException": ("ResourceNotFoundException", 404),
    "TooManyEntriesInBatchRequest": ("AWS.SimpleQueueService.TooManyEntriesInBatchRequest", 400),
    "UnsupportedOperation": ("AWS.SimpleQueueService.UnsupportedOperation", 400),
}


def _setting(name: str, default: str) -> str:
    return os.environ.get(PREFIX + name) or default


@dataclass(frozen=True)
class Target:
    """Name the server under judgement and the credentials that reach it."""

    endpoint: str
    region: str = field(default_factory=lambda: _setting("REGION", "us-east-1"))
    other_region: str = field(default_factory=lambda: _setting("OTHER_REGION", "eu-central-1"))
    access_key: str = field(default_factory=lambda: _setting("ACCESS_KEY", "test"))
    secret_key: str = field(default_factory=lambda: _setting("SECRET_KEY", "test"))
    # Local servers take an access key of twelve digits for the account's number.
    other_access_key: str = field(default_factory=lambda: _setting("OTHER_ACCESS_KEY", "111122223333"))
    other_secret_key: str = field(default_factory=lambda: _setting("OTHER_SECRET_KEY", "test"))


def query_model(model: dict[str, Any]) -> dict[str, Any]:
    """Rewrite botocore's JSON model of SQS for the older query protocol, which it no longer carries."""
    metadata = {k: v for k, v in model["metadata"].items() if k not in {"awsQueryCompatible", "jsonVersion"}}
    metadata |= {"protocol": "query", "protocols": ["query"], "xmlNamespace": XML_NAMESPACE}
    operations = {name: _query_operation(name, operation) for name, operation in model["operations"].items()}
    shapes = {name: _query_shape(name, shape) for name, shape in model["shapes"].items()}
    return {**model, "metadata": metadata, "operations": operations, "shapes": shapes}


def _query_operation(name: str, operation: dict[str, Any]) -> dict[str, Any]:
    if "output" not in operation:
        return operation
    return {**operation, "output": {**operation["output"], "resultWrapper": f"{name}Result"}}


def _query_shape(name: str, shape: dict[str, Any]) -> dict[str, Any]:
    if shape["type"] == "list":
        member = {**shape["member"], "locationName": MEMBER_NAMES.get(name, shape["member"]["shape"])}
        return {**shape, "member": member, "flattened": True}
    if shape["type"] == "map":
        key, value = ("Key", "Value") if name == "TagMap" else ("Name", "Value")
        names = {"key": {**shape["key"], "locationName": key}, "value": {**shape["value"], "locationName": value}}
        return {**shape, **names, "flattened": True}
    if shape.get("exception"):
        code, status = SQS_ERRORS.get(name, (name, 400))
        return {**shape, "error": {"code": code, "httpStatusCode": status, "senderFault": True}}
    members = {k: {**v, "locationName": FIELD_NAMES.get(k, k)} for k, v in shape.get("members", {}).items()}
    return {**shape, "members": members} if members else shape


def create_client(
    target: Target,
    *,
    protocol: str = "json",
    region: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
) -> Any:
    """Create a client that answers a refusal with the refusal: no retry, no hidden second request."""
    session = botocore.session.get_session()
    if protocol == "query":
        _speak_query(session)
    return session.create_client(
        "sqs",
        region_name=region or target.region,
        endpoint_url=target.endpoint,
        aws_access_key_id=access_key or target.access_key,
        aws_secret_access_key=secret_key or target.secret_key,
        config=Config(
            retries={"mode": "standard", "total_max_attempts": 1},
            connect_timeout=5,
            read_timeout=30,
            max_pool_connections=50,
        ),
    )


def _speak_query(session: Any) -> None:
    loader = copy(session.get_component("data_loader"))  # other sessions may share it
    session.register_component("data_loader", loader)
    load: Callable[..., dict[str, Any]] = loader.load_service_model

    def load_service_model(service: str, type_name: str, api_version: str | None = None) -> dict[str, Any]:
        model = load(service, type_name, api_version)
        return query_model(model) if (service, type_name) == ("sqs", "service-2") else model

    loader.load_service_model = load_service_model


@contextmanager
def open_client(target: Target, **options: Any) -> Iterator[Any]:
    """Open such a client and close its connections at the end."""
    client = create_client(target, **options)
    try:
        yield client
    finally:
        client.close()
