"""A real uvicorn for tests of web frameworks."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn


class Ready(uvicorn.Server):
    """A server that says when it accepts connections, and under which port."""

    def __init__(self, app: Any) -> None:
        super().__init__(uvicorn.Config(app, port=0, log_config=None, lifespan="on", access_log=False))
        self.accepts = asyncio.Event()
        self.port = 0

    async def startup(self, sockets: Any = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            self.port = self.servers[0].sockets[0].getsockname()[1]
        self.accepts.set()


@asynccontextmanager
async def serving(app: Any) -> AsyncGenerator[httpx.AsyncClient]:
    """Serve an application by uvicorn, and stop it in order. Yields a client for it."""
    server = Ready(app)
    task = asyncio.create_task(server.serve(), name="uvicorn")
    await server.accepts.wait()
    assert server.started, "the application did not start"
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        await task
