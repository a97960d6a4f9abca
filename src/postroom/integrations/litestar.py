"""Litestar: pools and consumers live as long as the application, and requests lease the same pool.

The web server owns the signals, as with ``postroom.integrations.starlette``.
"""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast, overload

from litestar import Litestar, Request
from litestar.exceptions import HTTPException

from postroom.integrations._web import REFUSALS, Factory, Part, check_parts, check_tenant, refusal_of, started
from postroom.resources import ResourcePool
from postroom.types import C, R

__all__ = ["leased", "lifespan"]


@overload
def lifespan(factory: Factory, /) -> Callable[[Litestar], AbstractAsyncContextManager[None]]: ...


@overload
def lifespan(*parts: Part) -> Callable[[Litestar], AbstractAsyncContextManager[None]]: ...


def lifespan(*parts: Any) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    """Return a lifespan that starts pools and consumers with the application and stops them with it.

        app = Litestar(route_handlers=[...], lifespan=[lifespan(databases, orders)])

    Args:
        parts: as those of ``postroom.integrations.starlette.lifespan``. What a function returns by name is in
            ``app.state``.

    Raises:
        ConfigurationError: something that is passed cannot be entered.
    """
    check_parts(parts)

    @asynccontextmanager
    async def run(app: Litestar) -> AsyncGenerator[None]:
        async with started(parts, app) as named:
            app.state.update(named)
            yield

    return run


def leased(
    pool: ResourcePool[C, R] | str,
    context: Callable[[Request[Any, Any, Any]], C | Awaitable[C]],
    *,
    timeout: float | None = None,
) -> Callable[..., AsyncGenerator[Any]]:
    """Return a dependency that leases the resources of a request's tenant.

        @get("/orders", dependencies={"database": Provide(leased(databases, tenant_of))})
        async def orders(database: NamedDependency[asyncpg.Pool]) -> list[Order]: ...

    Args:
        pool: the pool, or the name under which the ``lifespan`` of a factory put it into ``app.state``.
        context: returns the context of a request, sync or async.
        timeout: seconds that the lease may take; None for the pool's ``PoolTimeouts.lease``.

    A tenant that does not exist is answered with 404; one that cannot be reached for now with 503 and
    ``Retry-After``.
    """

    async def lease(request: Request[Any, Any, Any]) -> AsyncGenerator[Any]:
        here = cast("ResourcePool[C, R]", request.app.state[pool] if isinstance(pool, str) else pool)
        found = context(request)
        tenant = await cast("Awaitable[C]", found) if inspect.isawaitable(found) else found
        check_tenant(tenant)
        try:
            held = await here.acquire(tenant, timeout=timeout)
        except REFUSALS as error:
            refusal = refusal_of(error)
            raise HTTPException(detail=refusal.detail, status_code=refusal.status, headers=refusal.headers) from error
        with held as resources:
            yield resources

    return lease
