"""FastAPI, Starlette and Litestar under a real uvicorn: consumers live with the application and share its pool."""

import asyncio
import gc
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header
from litestar import Litestar, Request
from litestar import get as litestar_get
from litestar.di import NamedDependency, Provide
from litestar.handlers import asgi
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from postroom import (
    ConfigurationError,
    Consumer,
    MessageContext,
    NotOpenError,
    PoolLimits,
    PoolTimeouts,
    QueueNotFound,
    ResourcePool,
    UnknownTenant,
)
from postroom.integrations import fastapi as for_fastapi
from postroom.integrations import litestar as for_litestar
from postroom.integrations import starlette as for_starlette
from postroom.integrations.asgi import health_app
from postroom.local import LocalBroker
from postroom.local.shapes import AttributeValue, Send
from postroom.transports.memory import MemoryClient
from support.web import serving


@dataclass
class Shop:
    """A pool of tenants' databases, and a consumer that uses it."""

    broker: LocalBroker
    opened: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    handled: "asyncio.Queue[tuple[int, str]]" = field(default_factory=asyncio.Queue)
    outage: bool = False

    def __post_init__(self) -> None:
        limits = PoolLimits(budget=1, patience=60)
        self.databases: ResourcePool[str, str] = ResourcePool(
            self.database, weight=1, limits=limits, timeouts=PoolTimeouts(lease=0.2)
        )
        self.orders: Consumer[str, str] = Consumer(
            "orders",
            context=lambda message: message.attributes["tenantId"],
            resources=self.databases,
            client=MemoryClient(self.broker),
        )

        @self.orders.handler
        async def handle(number: int, ctx: MessageContext[str, str]) -> None:
            self.handled.put_nowait((number, ctx.resources))

    @asynccontextmanager
    async def database(self, tenant: str) -> AsyncGenerator[str]:
        """Open the database of a tenant; there are two."""
        if tenant not in {"acme", "beta"}:
            raise UnknownTenant(tenant)
        if self.outage:
            raise ConnectionRefusedError("postgresql://secret@db")
        self.opened.append(tenant)
        yield f"database of {tenant}"
        self.closed.append(tenant)

    def send(self, number: int) -> None:
        """Send a message of acme's."""
        attributes = {"tenantId": AttributeValue(data_type="String", string_value="acme")}
        self.broker.send("orders", Send(message_body=str(number), message_attributes=attributes))


@pytest.fixture
async def shop() -> AsyncGenerator[Shop]:
    """A shop with a queue that exists."""
    # Litestar starts a thread under the lock of `logging`. Were garbage of another test collected in that thread, such
    # as a future with an error that nothing asked for, it would log that, and never get the lock.
    gc.collect()
    async with LocalBroker() as broker:
        broker.create_queue("orders")
        yield Shop(broker)


def tenant_of(x_tenant: Annotated[str, Header()]) -> Any:
    """Return the tenant of a request, as a dependency of FastAPI; None without one."""
    return x_tenant or None


def fastapi_app(shop: Shop) -> Any:
    """An application of FastAPI."""
    app = FastAPI(lifespan=for_fastapi.lifespan(shop.databases, shop.orders))
    dependency = Depends(for_fastapi.leased(shop.databases, tenant_of), scope="function")

    @app.get("/database")
    async def show(database: Annotated[str, dependency]) -> dict[str, str]:
        return {"database": database}

    app.mount("/postroom", health_app(shop.orders))
    return app


def litestar_app(shop: Shop) -> Any:
    """An application of Litestar."""

    def tenant(request: Request[Any, Any, Any]) -> Any:
        return request.headers["x-tenant"] or None

    provide = Provide(for_litestar.leased(shop.databases, tenant))

    @litestar_get("/database", dependencies={"database": provide})
    async def show(database: NamedDependency[str]) -> dict[str, str]:
        return {"database": database}

    health = asgi("/postroom", is_mount=True, copy_scope=True)(health_app(shop.orders))
    return Litestar(route_handlers=[show, health], lifespan=[for_litestar.lifespan(shop.databases, shop.orders)])


APPS = {"fastapi": fastapi_app, "litestar": litestar_app}


@pytest.mark.parametrize("framework", APPS)
async def test_the_consumer_lives_with_the_application(shop: Shop, framework: str) -> None:
    """It consumes while the application serves, stops with it, and leaves the pool to be closed after it."""
    async with serving(APPS[framework](shop)) as client:
        assert shop.orders.running
        shop.send(1)
        assert await shop.handled.get() == (1, "database of acme")
        ready = await client.get("/postroom/readyz")
        assert ready.status_code == 200
    with pytest.raises(NotOpenError):
        await shop.orders.wait_for_stop()
    assert shop.closed == shop.opened == ["acme"]


@pytest.mark.parametrize("framework", APPS)
async def test_requests_lease_the_pool_of_the_consumer(shop: Shop, framework: str) -> None:
    """One resource per tenant for both; refusals are statuses, and no text of a driver goes out."""
    async with serving(APPS[framework](shop)) as client:
        shop.send(1)
        await shop.handled.get()
        found = await client.get("/database", headers={"x-tenant": "acme"})
        assert found.json() == {"database": "database of acme"}
        assert shop.opened == ["acme"]
        unknown = await client.get("/database", headers={"x-tenant": "nosuch"})
        assert unknown.status_code == 404
        shop.outage = True
        away = await client.get("/database", headers={"x-tenant": "beta"})
        assert away.status_code == 503
        assert int(away.headers["retry-after"]) >= 1
        assert "secret" not in away.text
        assert shop.databases.statistics().leased == 0


@pytest.mark.parametrize("framework", APPS)
async def test_a_request_without_a_tenant_leases_nothing(shop: Shop, framework: str) -> None:
    """All of them would share what the provider opens for None: it is an error of the application."""
    async with serving(APPS[framework](shop)) as client:
        found = await client.get("/database", headers={"x-tenant": ""})
        assert found.status_code == 500
        assert shop.databases.keys() == []


async def test_a_pool_without_room_is_a_503(shop: Shop) -> None:
    """The budget is for one database, and it is in use."""
    async with serving(fastapi_app(shop)) as client, shop.databases.lease("acme"):
        full = await client.get("/database", headers={"x-tenant": "beta"})
        assert full.status_code == 503


async def test_a_factory_makes_its_parts_when_the_application_starts(shop: Shop) -> None:
    """What it returns by name is in request.state, and a dependency finds the pool there."""

    async def build(app: Any) -> dict[str, Any]:
        assert isinstance(app, FastAPI)
        return {"databases": shop.databases, "orders": shop.orders}

    app = FastAPI(lifespan=for_fastapi.lifespan(build))

    @app.get("/database")
    async def show(database: Annotated[str, Depends(for_fastapi.leased("databases", tenant_of))]) -> str:
        return database

    async with serving(app) as client:
        assert shop.orders.running
        found = await client.get("/database", headers={"x-tenant": "acme"})
        assert found.json() == "database of acme"


async def test_litestar_finds_what_a_factory_made_in_its_state(shop: Shop) -> None:
    """By the same name."""

    @litestar_get("/running", sync_to_thread=False)
    def show(request: Request[Any, Any, Any]) -> bool:
        return bool(request.app.state.orders.running)

    lifespan = for_litestar.lifespan(lambda app: {"databases": shop.databases, "orders": shop.orders})
    async with serving(Litestar(route_handlers=[show], lifespan=[lifespan])) as client:
        assert (await client.get("/running")).json() is True


async def test_starlette_has_the_same_lifespan(shop: Shop) -> None:
    """Plain endpoints lease by hand."""

    async def show(request: StarletteRequest) -> JSONResponse:
        async with shop.databases.lease(request.headers["x-tenant"]) as database:
            return JSONResponse(database)

    routes = [Route("/database", show), Mount("/postroom", health_app(shop.orders))]
    async with serving(
        Starlette(routes=routes, lifespan=for_starlette.lifespan(shop.databases, shop.orders))
    ) as client:
        assert (await client.get("/database", headers={"x-tenant": "acme"})).json() == "database of acme"
        assert (await client.get("/postroom/livez")).status_code == 200


async def test_a_consumer_in_an_application_leaves_the_signals_to_the_server(shop: Shop) -> None:
    """The handlers of SIGTERM and SIGINT are those from before."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    async with for_starlette.lifespan(shop.databases, shop.orders)(Starlette()):
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


async def test_a_part_that_cannot_start_ends_the_start(shop: Shop) -> None:
    """The application does not serve, and what was started is stopped."""
    missing: Consumer[Any, Any] = Consumer("nosuch", client=MemoryClient(shop.broker))

    @missing.handler
    async def handle(number: int, ctx: MessageContext) -> None: ...

    with pytest.raises(QueueNotFound):
        async with for_starlette.lifespan(shop.databases, shop.orders, missing)(Starlette()):
            raise AssertionError("it started")
    assert not shop.orders.running


@pytest.mark.parametrize("parts", [(), (5,), ("orders", "databases")])
def test_what_cannot_be_entered_is_refused_at_once(parts: tuple[Any, ...]) -> None:
    """With what to write instead."""
    for module in (for_starlette, for_litestar):
        with pytest.raises(ConfigurationError, match="takes pools and consumers"):
            module.lifespan(*parts)


async def test_a_factory_that_makes_something_else_is_refused_when_it_is_called() -> None:
    """It names what it made, also where a `return` was forgotten."""
    for made, named in (([5], "int"), (5, "int"), (None, "NoneType")):
        with pytest.raises(ConfigurationError, match=f"makes {named}"):
            async with for_starlette.lifespan(lambda app, made=made: made)(Starlette()):  # type: ignore[misc]
                raise AssertionError("it started")
