"""Health as a raw ASGI application, to mount in any ASGI framework or to serve alone."""

from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from postroom.integrations.health import Checked, Page, check_consumers, page

__all__ = ["health_app"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


def health_app(*consumers: Checked, details: bool = True) -> AsgiApp:
    """Return an ASGI application with ``/livez``, ``/readyz`` and ``/healthz``, each 200 or 503 with JSON.

        app.mount("/postroom", health_app(orders))  # Starlette, FastAPI

    The last segment of the path counts, so it works under every prefix. It asks the consumers at each request and
    does nothing else: no start, no stop.

    Args:
        consumers: those that are asked.
        details: whether answers name each consumer's queue and reasons, beside the status. Say False where
            strangers can read them.

    Raises:
        ConfigurationError: no consumer, or something that is none.
    """
    check_consumers(consumers, "health_app(...)")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await _answer(consumers, scope, send, details=details)
            case "lifespan":
                await live(receive, send)
            case _:
                await send({"type": "websocket.close", "code": 1000})

    return app


async def _answer(consumers: tuple[Checked, ...], scope: Scope, send: Send, *, details: bool) -> None:
    method = scope["method"]
    if method in {"GET", "HEAD"}:
        status, body = page(consumers, scope["path"], details=details)
    else:
        status, body = Page(HTTPStatus.METHOD_NOT_ALLOWED, b"")
    headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append((b"allow", b"GET, HEAD"))
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


async def live(receive: Receive, send: Send) -> None:
    """Take part in a server's start and stop, which is all that a server without other applications asks for."""
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
