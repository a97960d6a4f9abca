"""One inspection from its beginning to its end."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any, Final

from postroom.consumer import Consumer
from postroom.errors import PostroomError
from postroom.inspection.code import look_at_code
from postroom.inspection.databases import look_at_databases
from postroom.inspection.findings import Deployment, Finding, Report, error
from postroom.inspection.permissions import least_policy, look_at_permissions
from postroom.inspection.queues import Found, look_at_queues
from postroom.transports import default_client

_PATIENCE: Final = 60.0
"""Seconds that SQS has to answer all questions."""


async def inspect_consumer(
    consumer: Consumer[Any, Any], deployment: Deployment | None = None, *, offline: bool = False
) -> Report:
    """Look at a consumer that does not run, and return what was found. It receives no message and changes nothing.

    Args:
        consumer: what to look at.
        deployment: what the platform gives it; by default one replica with 30 s of grace.
        offline: look at its arguments alone, and ask nothing of SQS or of a database.

    Raises nothing for what is wrong with the consumer: that is a finding.
    """
    deployment = Deployment() if deployment is None else deployment
    findings = list(look_at_code(consumer, deployment))
    found = Found()
    if not offline:
        try:
            async with asyncio.timeout(_PATIENCE):
                findings += await _ask(consumer, found)
        except TimeoutError:
            text = f"SQS did not answer within {_PATIENCE:g} s"
            findings.append(error("queue", text, "check the network and the endpoint; --offline looks at the code"))
    findings += await look_at_databases(consumer, deployment, offline=offline)
    return Report(consumer.queue, findings, least_policy(consumer, found))


async def _ask(consumer: Consumer[Any, Any], found: Found) -> list[Finding]:
    client = default_client() if consumer.settings.client is None else consumer.settings.client
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(client)
        except PostroomError as problem:
            return [error("queue", str(problem), "check the AWS profile, the region and the endpoint")]
        findings = await look_at_queues(consumer, client, found)
        if found.queue is not None:
            findings += await look_at_permissions(found.queue)
    return findings
