"""FastAPI: a request's tenant gets the same pool that the consumer's handlers get."""

from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

from fastapi import Depends, HTTPException
from starlette.requests import HTTPConnection

from postroom.integrations._web import REFUSALS, check_tenant, refusal_of
from postroom.integrations.starlette import lifespan
from postroom.resources import ResourcePool
from postroom.types import C, R

__all__ = ["leased", "lifespan"]


def leased(
    pool: ResourcePool[C, R] | str, context: Callable[..., Any], *, timeout: float | None = None
) -> Callable[..., AsyncGenerator[R]]:
    """Return a dependency that leases the resources of a request's tenant.

        Database = Annotated[asyncpg.Pool, Depends(leased(databases, tenant_of), scope="function")]

        @app.get("/orders")
        async def orders(database: Database) -> list[Order]: ...

    With ``scope="function"`` the lease ends before the response is sent; otherwise a slow client keeps it.

    Args:
        pool: the pool, or the name under which the ``lifespan`` of a factory put it into ``request.state``.
        context: a dependency of FastAPI (a function of headers, path or other dependencies) that returns the context.
        timeout: seconds that the lease may take; None for the pool's ``PoolTimeouts.lease``.

    Raises:
        HTTPException: when a request asks: 404 for a tenant that does not exist; 503 with ``Retry-After`` for one that
            cannot be reached for now, at once while the pool leaves it alone.
    """

    async def lease(connection: HTTPConnection, tenant: Any = Depends(context)) -> AsyncGenerator[R]:  # noqa: B008
        here = cast("ResourcePool[C, R]", getattr(connection.state, pool) if isinstance(pool, str) else pool)
        check_tenant(tenant)
        try:
            held = await here.acquire(tenant, timeout=timeout)
        except REFUSALS as error:
            refusal = refusal_of(error)
            raise HTTPException(refusal.status, refusal.detail, refusal.headers) from error
        with held as resources:
            yield resources

    return lease
