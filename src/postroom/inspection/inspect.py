"""One inspection from its beginning to its end."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final

from postroom.consumer import Consumer
from postroom.errors import PostroomError
from postroom.inspection.code import look_at_code
from postroom.inspection.databases import look_at_databases
from postroom.inspection.findings import Deployment, Finding, Level, Report, error, ok
from postroom.inspection.fleets import look_at_fleet
from postroom.inspection.permissions import least_policy, look_at_permissions
from postroom.inspection.queues import Found, look_at_queues
from postroom.transports import default_client
from postroom.transports.protocol import Client

_PATIENCE: Final = 60.0
"""Seconds that SQS has to answer all questions."""


async def inspect_consumer(
    consumer: Consumer[Any, Any], deployment: Deployment | None = None, *, offline: bool = False
) -> Report:
    """Look at a consumer that does not run, and return what was found. It receives no message and changes nothing.

    Args:
        consumer: what to look at.
        deployment: what the platform gives it; by default one replica with 30 s of grace.
        offline: look at its arguments alone, and ask nothing of SQS, of a database or of a
            fleet's store.

    Raises nothing for what is wrong with the consumer: that is a finding.
    """
    deployment = Deployment() if deployment is None else deployment
    findings = list(look_at_code(consumer, deployment))
    try:
        queues = [Found(name) for name in await consumer.list_queues()]
    except Exception as problem:  # whatever the function raises
        queues = []
        advice = "see that the function which lists the queues works here"
        findings.append(error("queues", f"they cannot be listed: {type(problem).__name__}: {problem}", advice))
    if not offline and queues:
        try:
            async with asyncio.timeout(_PATIENCE):
                findings += await _ask(consumer, queues)
        except TimeoutError:
            text = f"SQS did not answer within {_PATIENCE:g} s"
            findings.append(error("queue", text, "check the network and the endpoint; --offline looks at the code"))
    findings += await look_at_databases(consumer, deployment, offline=offline)
    findings += await look_at_fleet(consumer, deployment, offline=offline)
    return Report(consumer.queue, findings, least_policy(*queues))


async def _ask(consumer: Consumer[Any, Any], queues: list[Found]) -> list[Finding]:
    client = default_client() if consumer.settings.client is None else consumer.settings.client
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(client)
        except PostroomError as problem:
            return [error("queue", str(problem), "check the AWS profile, the region and the endpoint")]
        looks = [await _ask_about(consumer, client, found) for found in queues]
    return looks[0] if len(looks) == 1 else list(_of_several(queues, looks))


async def _ask_about(consumer: Consumer[Any, Any], client: Client, found: Found) -> list[Finding]:
    findings = await look_at_queues(consumer, client, found)
    if found.queue is not None:
        findings += await look_at_permissions(found.queue)
    return findings


def _of_several(queues: list[Found], looks: list[list[Finding]]) -> Iterator[Finding]:
    """Name the queue of each finding; of those where nothing has to change, one line says how many they are."""
    fine = 0
    for found, findings in zip(queues, looks, strict=True):
        told = [finding for finding in findings if finding.level is not Level.OK]
        fine += not told
        for finding in told:
            named = finding.found if found.name in finding.found else f"{found.name}: {finding.found}"
            yield replace(finding, found=named)
    if fine:
        yield ok("queue", f"nothing has to change for {fine} of {len(queues)} queues")
