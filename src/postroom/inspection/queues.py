"""What the queue and its dead-letter queue say: redrive, retention, receives against promised attempts."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from postroom.consumer import Consumer
from postroom.consumer.attempts import LEAST_FOR_PARKING, default_promise
from postroom.errors import AccessDenied, PostroomError, QueueNotFound
from postroom.inspection.findings import Finding, error, ok, unknown, warning
from postroom.options import RetryPolicy
from postroom.transports.protocol import Client, Queue, QueueInfo

_DAY = 86_400


@dataclass(slots=True)
class Found:
    """One queue of a consumer and its dead-letter queue, as far as they could be opened."""

    name: str
    """The queue, as the consumer names it."""
    queue: Queue | None = None
    dead_letters: Queue | None = None


async def look_at_queues(consumer: Consumer[Any, Any], client: Client, found: Found) -> list[Finding]:
    """Open the queue and its dead-letter queue, and return what they say. What was opened is left in ``found``."""
    try:
        found.queue = queue = await client.queue(found.name)
    except PostroomError as problem:
        return [_not_opened("queue", problem)]
    findings = [ok("queue", f"{queue.info.url} exists")]
    if not queue.info.attributes_known:
        text = "its attributes may not be read: dead-letter queue, receives and retention are not known"
        return [*findings, warning("queue", text, "allow sqs:GetQueueAttributes on the queue")]
    findings += _receives(consumer, queue.info)
    findings += await _dead_letters(client, queue.info, found)
    return findings


def _not_opened(topic: str, problem: PostroomError) -> Finding:
    if isinstance(problem, QueueNotFound):
        advice = "create it, or correct its name, region and account"
    elif isinstance(problem, AccessDenied):
        advice = "see the policy below; `aws sts get-caller-identity` says who you are"
    else:
        advice = "check the network, the region and the endpoint; --offline looks at the code alone"
    return error(topic, str(problem), advice)


async def _dead_letters(client: Client, info: QueueInfo, found: Found) -> list[Finding]:
    if info.redrive is None:
        text = f"queue {info.name} has no dead-letter queue: a message that always fails comes back until it expires"
        return [warning("dead letters", text, "give the queue a RedrivePolicy, with maxReceiveCount 5 or more")]
    arn = info.redrive.dead_letter_queue
    try:
        found.dead_letters = target = await client.queue(arn)
    except AccessDenied as problem:
        return [warning("dead letters", str(problem), "see the policy below: rejected messages are sent there")]
    except PostroomError as problem:
        advice = (
            f"create {arn}, or correct the RedrivePolicy: SQS drops nothing, and messages come back again and again"
        )
        return [error("dead letters", str(problem), advice)]
    return list(_judged(info, target.info))


def _judged(info: QueueInfo, target: QueueInfo) -> Iterator[Finding]:
    if target.fifo != info.fifo:
        kinds = {True: "FIFO", False: "standard"}
        text = f"{target.name} is a {kinds[target.fifo]} queue, {info.name} a {kinds[info.fifo]} one"
        yield error("dead letters", text, f"use a {kinds[info.fifo]} queue: SQS moves messages between equal kinds")
    if _refuses(target.attributes, info.arn):
        text = f"{target.name} does not take messages of {info.name}: RedriveAllowPolicy"
        yield error("dead letters", text, f"add {info.arn} to its sourceQueueArns, or say redrivePermission allowAll")
    yield _retention(info, target)


def _retention(info: QueueInfo, target: QueueInfo) -> Finding:
    """Compare for how long both keep messages. SQS keeps the age of a message that it moves between standard queues.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-dead-letter-queues.html
    """
    kept, dead = info.retention, target.retention
    if kept is None or dead is None:
        text = "retention periods are not known"
        return unknown("dead letters", text, "allow sqs:GetQueueAttributes on both queues")
    if not info.fifo and dead <= kept:
        text = f"{target.name} keeps messages for {_days(dead)}, {info.name} for {_days(kept)}; the age counts on"
        advice = f"set MessageRetentionPeriod of {target.name} to 1209600 (14 days)"
        return (error if dead < kept else warning)("dead letters", text, advice)
    return ok("dead letters", f"{target.name} keeps messages for {_days(dead)}")


def _days(seconds: int) -> str:
    return f"{seconds / _DAY:g} days" if seconds >= _DAY else f"{seconds} s"


def _refuses(attributes: Mapping[str, str], arn: str) -> bool:
    try:
        policy: Any = json.loads(attributes.get("RedriveAllowPolicy") or "{}")
    except ValueError:
        return False
    allowed = cast("dict[str, Any]", policy) if isinstance(policy, dict) else {}
    permission = allowed.get("redrivePermission", "allowAll")
    return permission == "denyAll" or (permission == "byQueue" and arn not in allowed.get("sourceQueueArns", ()))


def _receives(consumer: Consumer[Any, Any], info: QueueInfo) -> Iterator[Finding]:
    """Compare the receives that SQS allows with the attempts that were promised, and with what scouting spends."""
    retry = consumer.settings.retry
    if not isinstance(retry, RetryPolicy):
        yield unknown("attempts", "chosen for each message by a function", "see that they stay below maxReceiveCount")
        return
    if info.redrive is None:
        if retry.attempts is not None:
            text = f"RetryPolicy(attempts={retry.attempts}) does nothing: queue {info.name} has no dead-letter queue"
            yield error("attempts", text, "give the queue a RedrivePolicy")
        return
    most = info.redrive.max_receive_count
    yield from _promise(retry.attempts, most)
    if _scouts(consumer, info) and most < LEAST_FOR_PARKING:
        yield warning(
            "attempts",
            f"maxReceiveCount {most}: no message is parked, so quiet tenants wait longer behind a noisy one",
            f"set maxReceiveCount to {LEAST_FOR_PARKING} or more, and say RetryPolicy(attempts={most})",
        )


def _promise(wanted: int | None, most: int) -> Iterator[Finding]:
    if wanted is not None and wanted > most:
        text = f"RetryPolicy(attempts={wanted}) cannot be kept: maxReceiveCount is {most}"
        yield error("attempts", text, f"set maxReceiveCount to {wanted + 5}, or say attempts={max(1, most - 2)}")
    elif most < 2:
        text = "maxReceiveCount 1: a message is a dead letter when its consumer crashes once"
        yield warning("attempts", text, "set maxReceiveCount to 5 or more, and say RetryPolicy(attempts=...)")
    elif wanted == most:
        text = f"all {most} receives are promised as attempts: none is left for a tenant's outage, or for a crash"
        yield warning("attempts", text, f"set maxReceiveCount to {most + 5}, and keep RetryPolicy(attempts={wanted})")
    else:
        promised = default_promise(most) if wanted is None else wanted
        yield ok("attempts", f"{promised} attempts of {most} receives; {most - promised} are left for outages")


def _scouts(consumer: Consumer[Any, Any], info: QueueInfo) -> bool:
    settings = consumer.settings
    return bool(settings.polling.scout) and settings.resolver is not None and not info.fifo
