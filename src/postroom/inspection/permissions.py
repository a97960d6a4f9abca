"""Which permissions a consumer needs, as a policy of IAM, and which of them can be seen to be there."""

import json
from collections import Counter
from collections.abc import Awaitable, Iterator, Mapping
from typing import Any

from postroom.errors import AccessDenied, PostroomError
from postroom.inspection.findings import Finding, error, ok, unknown
from postroom.inspection.queues import Found
from postroom.transports.aws.addresses import address_of
from postroom.transports.protocol import NO_HANDLE, Queue, QueueInfo, VisibilityChange


def least_policy(*queues: Found) -> dict[str, Any]:
    """Return the least policy with which a consumer does all that it is configured to do, without a warning.

    What a queue's URL says needs no ``sqs:GetQueueUrl``. ``sqs:GetQueueAttributes`` could be missing, at the price
    that docs/deployment.md names. Permissions of your own code are not in it.
    """
    merged: dict[str, dict[str, Any]] = {}
    for found in queues:
        for statement in _statements(found):
            kind = json.dumps({key: value for key, value in statement.items() if key != "Resource"}, sort_keys=True)
            resources = merged.setdefault(kind, {**statement, "Resource": []})["Resource"]
            if statement["Resource"] not in resources:
                resources.append(statement["Resource"])
    statements: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
    for statement in merged.values():
        sid, resources = statement["Sid"], statement["Resource"]
        seen[sid] += 1
        unique = sid if seen[sid] == 1 else f"{sid}{seen[sid]}"
        only = resources[0] if len(resources) == 1 else resources
        statements.append({**statement, "Sid": unique, "Resource": only})
    return {"Version": "2012-10-17", "Statement": statements}


def _statements(found: Found) -> list[dict[str, Any]]:
    """Return what one queue needs."""
    statements = [_consume(found)]
    info = None if found.queue is None else found.queue.info
    if info is not None and info.redrive is not None:
        statements.append(
            {
                "Sid": "Reject",
                "Effect": "Allow",
                "Action": ["sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:SendMessage"],
                "Resource": info.redrive.dead_letter_queue,
            }
        )
    statements += _keys(info, None if found.dead_letters is None else found.dead_letters.info)
    return statements


def _consume(found: Found) -> dict[str, Any]:
    actions = ["sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"]
    address = address_of(found.name)
    if address.url is None:
        actions.insert(3, "sqs:GetQueueUrl")
    known = "" if found.queue is None else found.queue.info.arn
    region, account = address.region or "REGION", address.account or "ACCOUNT"
    arn = known or address.arn or f"arn:{address.partition}:sqs:{region}:{account}:{address.name}"
    return {"Sid": "Consume", "Effect": "Allow", "Action": actions, "Resource": arn}


def _keys(info: QueueInfo | None, dead_letters: QueueInfo | None) -> Iterator[dict[str, Any]]:
    """Yield what customer keys need: to read a message, and to write a dead letter.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-key-management.html
    """
    for sid, each, actions in (
        ("Decrypt", info, ["kms:Decrypt"]),
        ("EncryptDeadLetters", dead_letters, ["kms:Decrypt", "kms:GenerateDataKey"]),
    ):
        key = "" if each is None else each.attributes.get("KmsMasterKeyId", "")
        if each is None or not key or key == "alias/aws/sqs":
            continue
        yield {"Sid": sid, "Effect": "Allow", "Action": actions, **_resource(key, each.arn)}


def _resource(key: str, queue: str) -> Mapping[str, Any]:
    """Return what a statement names a key by: its ARN, or its alias as a condition, for no policy takes an alias."""
    if key.startswith("arn:") and ":alias/" not in key:
        return {"Resource": key}
    _, partition, _, region, account, _ = queue.split(":")
    keys = f"arn:{partition}:kms:{region}:{account}:key/"
    alias = key if key.startswith("alias/") else key.partition(":alias/")[2]
    if not alias:
        return {"Resource": keys + key}
    named = alias if alias.startswith("alias/") else f"alias/{alias}"
    return {"Resource": f"{keys}*", "Condition": {"ForAnyValue:StringEquals": {"kms:ResourceAliases": named}}}


async def look_at_permissions(queue: Queue) -> list[Finding]:
    """Try what can be tried without touching a message, and return what is allowed."""
    change = VisibilityChange(NO_HANDLE, 0)
    findings = [
        await _tried("sqs:DeleteMessage", queue, queue.delete([NO_HANDLE])),
        await _tried("sqs:ChangeMessageVisibility", queue, queue.change_visibility([change])),
    ]
    if queue.info.attributes.get("ApproximateNumberOfMessages") == "0":
        receive = queue.receive(limit=1, wait=0, visibility=0)
        findings.append(await _tried("sqs:ReceiveMessage", queue, receive))
    else:
        text = "sqs:ReceiveMessage was not tried: it would take a receive of a message that waits"
        findings.append(unknown("permissions", text, "run the check while the queue is empty, or see the policy"))
    allowed = [finding for finding in findings if finding.level == "ok"]
    if len(allowed) < 2:
        return findings
    names = ", ".join(finding.found for finding in allowed)
    return [ok("permissions", f"allowed: {names}"), *(each for each in findings if each not in allowed)]


async def _tried(action: str, queue: Queue, call: Awaitable[object]) -> Finding:
    try:
        await call
    except AccessDenied as problem:
        return error("permissions", str(problem), f"allow {action} on {queue.info.arn or 'the queue'}")
    except PostroomError as problem:
        if getattr(problem, "retryable", False):
            return unknown("permissions", f"{action} was not answered: {problem}", "check the network, and try again")
    return ok("permissions", action)
