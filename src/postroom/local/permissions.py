"""AddPermission and RemovePermission: statements of a queue's policy. Policies are stored, never enforced.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_AddPermission.html
"""

import re
from typing import Any

import msgspec

from postroom.local.errors import BrokerError, invalid_value, missing_parameter
from postroom.local.queue import LocalQueue
from postroom.local.shapes import AddPermission

_LABEL = re.compile(r"[A-Za-z0-9_-]{1,80}")
_ACCOUNT = re.compile(r"[0-9]{12}")
_MAX_ACTIONS = 7
_MAX_STATEMENTS = 20
_SHARED = frozenset(
    {
        "*",
        "ChangeMessageVisibility",
        "DeleteMessage",
        "GetQueueAttributes",
        "GetQueueUrl",
        "ListDeadLetterSourceQueues",
        "PurgeQueue",
        "ReceiveMessage",
        "SendMessage",
    }
)


def with_permission(queue: LocalQueue, request: AddPermission) -> str:
    """Return the queue's policy with one more statement."""
    label = _checked(request)
    policy = _policy(queue)
    statements: list[dict[str, Any]] = policy["Statement"]
    if any(statement.get("Sid") == label for statement in statements):
        raise invalid_value("Label", label, "Already exists.")
    if len(statements) >= _MAX_STATEMENTS:
        raise BrokerError("OverLimit", f"{_MAX_STATEMENTS} statements were found, no more are allowed.", status=403)
    principals = [f"arn:aws:iam::{account}:root" for account in request.account_ids]
    actions = [f"SQS:{action}" for action in request.actions]
    statements.append(
        {
            "Sid": label,
            "Effect": "Allow",
            "Principal": {"AWS": principals[0] if len(principals) == 1 else principals},
            "Action": actions[0] if len(actions) == 1 else actions,
            "Resource": queue.arn,
        }
    )
    return msgspec.json.encode(policy).decode()


def without_permission(queue: LocalQueue, label: str | None) -> str:
    """Return the queue's policy without a statement; an empty text when it was the last."""
    if not label:
        raise missing_parameter("Label")
    policy = _policy(queue)
    kept = [statement for statement in policy["Statement"] if statement.get("Sid") != label]
    if len(kept) == len(policy["Statement"]):
        raise invalid_value("Label", label, "can't find label.")
    policy["Statement"] = kept
    return msgspec.json.encode(policy).decode() if kept else ""


def _checked(request: AddPermission) -> str:
    label = request.label
    if not label:
        raise missing_parameter("Label")
    if not _LABEL.fullmatch(label):
        raise invalid_value("Label", label[:100], "Up to 80 alphanumeric characters, hyphens and underscores.")
    if not request.account_ids:
        raise missing_parameter("AWSAccountIds")
    if not request.actions:
        raise missing_parameter("Actions")
    for account in request.account_ids:
        if not _ACCOUNT.fullmatch(account):
            raise invalid_value("PrincipalId", account[:100], "Unable to verify.")
    for action in request.actions:
        if action not in _SHARED:
            raise invalid_value(
                "ActionName", f"SQS:{action[:100]}", "Only the queue owner is allowed to invoke this action."
            )
    if len(request.actions) > _MAX_ACTIONS:
        text = f"{len(request.actions)} Actions were found, maximum allowed is {_MAX_ACTIONS}."
        raise BrokerError("OverLimit", text, status=403)
    return label


def _policy(queue: LocalQueue) -> dict[str, Any]:
    text = queue.attributes.get("Policy")
    empty: dict[str, Any] = {"Version": "2008-10-17", "Id": f"{queue.arn}/SQSDefaultPolicy", "Statement": []}
    policy = msgspec.json.decode(text, type=dict[str, Any]) if text else empty
    statement = policy.setdefault("Statement", [])
    if isinstance(statement, dict):
        policy["Statement"] = [statement]
    return policy
