"""Connections of all replicas against what one database server takes, and whether a tenant's resources open."""

import inspect
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any, Final, cast

from postroom.consumer import Consumer
from postroom.consumer.callables import name_of
from postroom.display import display_key
from postroom.errors import PostroomError
from postroom.inspection.annotations import differ, expected_by, functions_of, shown
from postroom.inspection.findings import Deployment, Finding, error, ok, unknown, warning
from postroom.message import Message, MessageAttribute
from postroom.options import PoolLimits
from postroom.resources import ResourcePool
from postroom.resources.providers import connects, known_of

_ASK: Final = "select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
"""What applications may open. https://www.postgresql.org/docs/current/runtime-config-connection.html"""


async def look_at_databases(consumer: Consumer[Any, Any], deployment: Deployment, *, offline: bool) -> list[Finding]:
    """Return what the pool of a consumer costs its database servers. Opens one tenant's resources if one is named."""
    if consumer.settings.resources is None:
        return []
    findings = list(_weights(consumer))
    resources: Any = consumer.settings.resources
    most = deployment.max_connections
    if deployment.attributes is not None and not offline:
        opened, asked = await _sample(consumer, deployment)
        findings += opened
        most = asked if most is None else most
    if not connects(resources):
        return [*findings, ok("connections", "the resources are files: no server has to take them")]
    return [*findings, _connections(consumer, deployment, most)]


def _limits(consumer: Consumer[Any, Any]) -> PoolLimits:
    pool: Any = consumer.settings.resources
    return cast("ResourcePool[Any, Any]", pool).limits if isinstance(pool, ResourcePool) else PoolLimits()


def _weights(consumer: Consumer[Any, Any]) -> Iterator[Finding]:
    """Yield what is wrong with a provider's weight. A pool of the user's own was told it when it was made."""
    provider: Any = consumer.settings.resources
    if isinstance(provider, ResourcePool):
        return
    weight, _ = known_of(provider)
    budget = _limits(consumer).budget
    if isinstance(weight, int) and weight > budget:
        text = f"one tenant's resources weigh {weight}, and the budget is {budget}: nothing is ever opened"
        yield error("connections", text, f"pass resources=ResourcePool(..., limits=PoolLimits(budget={weight * 10}))")
    elif weight is None:
        text = "the provider does not say how many connections it opens: each tenant counts as 1"
        advice = (
            "pass resources=ResourcePool(provider, weight=<connections>), or use a provider of postroom.datasources"
        )
        yield warning("connections", text, advice)


def _connections(consumer: Consumer[Any, Any], deployment: Deployment, most: int | None) -> Finding:
    limits = _limits(consumer)
    each = limits.per_host if isinstance(limits.per_host, int) else limits.budget
    total = each * deployment.replicas
    what = f"{deployment.replicas} x {each} = {total} connections to one server"
    if most is None:
        advice = "say --max-connections, or --attribute NAME=VALUE of a tenant that is asked"
        return unknown("connections", f"up to {what}; what it takes is not known", advice)
    if total <= most:
        return ok("connections", f"up to {what}, of {most}")
    fits = max(1, most // deployment.replicas)
    if limits.per_host is not None and not isinstance(limits.per_host, int):
        text = f"up to {what}, of {most}, unless PoolLimits(per_host=...) says less of it"
        return warning("connections", text, f"see that per_host gives {fits} for it at most")
    which = "per_host" if isinstance(limits.per_host, int) else "budget"
    advice = f"say ResourcePool(limits=PoolLimits({which}={fits})), run fewer replicas, or put a pooler before it"
    return error("connections", f"up to {what}, and it takes {most}", advice)


async def _sample(consumer: Consumer[Any, Any], deployment: Deployment) -> tuple[list[Finding], int | None]:
    """Resolve a sample message's context and open its resources, as the consumer would."""
    try:
        context = await _context(consumer, deployment)
    except Exception as problem:
        text = f"no context for the sample message: {problem}"
        return [error("context", text, "correct --attribute, or the function behind context=")], None
    resources: Any = consumer.settings.resources
    async with AsyncExitStack() as stack:
        if isinstance(resources, ResourcePool):
            pool = cast("ResourcePool[Any, Any]", resources)
        else:
            pool = ResourcePool(resources, cleanup=consumer.settings.cleanup, name="check")
        await stack.enter_async_context(pool)
        try:
            resource = await stack.enter_async_context(pool.lease(context))
        except PostroomError as problem:
            cause = problem.__cause__
            text = f"the resources of {display_key(context)} do not open: {problem}"
            detail = "" if cause is None or str(cause) in text else f" ({type(cause).__name__})"
            return [error("resources", text + detail, "check the tenant's entry in the registry and its server")], None
        opened = ok("resources", f"those of {display_key(context)} open: {type(resource).__name__}")
        return [opened, *_misfits(consumer, resource)], await _asked(resource)


def _misfits(consumer: Consumer[Any, Any], resource: Any) -> Iterator[Finding]:
    """Yield the handlers that expect other resources than those which were opened."""
    for function in functions_of(consumer):
        _, expected = expected_by(function)
        if differ(expected, resource.__class__):
            text = f"{name_of(function)} expects {shown(expected)}, and resources= opened {shown(resource.__class__)}"
            yield error("resources", text, f"annotate ctx: MessageContext[..., {shown(resource.__class__)}]")


async def _context(consumer: Consumer[Any, Any], deployment: Deployment) -> Any:
    resolver: Any = consumer.settings.resolver
    attributes = {
        name: MessageAttribute("String", string_value=value) for name, value in (deployment.attributes or {}).items()
    }
    message = Message(id="check", receipt_handle="check", body=deployment.body, message_attributes=attributes)
    context = resolver(message)
    return await context if inspect.isawaitable(context) else context


async def _asked(resource: Any) -> int | None:
    """Ask a database what it takes. None for a resource that is not known here, and a server that is no PostgreSQL."""
    for name in ("pool", "engine"):
        if not hasattr(resource, "fetchval") and hasattr(resource, name) and hasattr(resource, "transaction_for"):
            resource = getattr(resource, name)
    try:
        if hasattr(resource, "fetchval"):  # asyncpg
            return int(await resource.fetchval(_ASK))
        if hasattr(resource, "connection"):  # psycopg
            async with resource.connection() as connection:
                row = await (await connection.execute(_ASK)).fetchone()
                return int(_first(row))
        if hasattr(resource, "connect") and hasattr(resource, "dialect"):  # SQLAlchemy
            async with resource.connect() as connection:
                return int((await connection.exec_driver_sql(_ASK)).scalar())
    except Exception:  # it is a question that a server need not understand; what it does not say is not known
        return None
    return None


def _first(row: Any) -> Any:
    """Return the only value of a row, whatever the connection's row factory makes of one."""
    return next(iter(row.values() if hasattr(row, "values") else row))
