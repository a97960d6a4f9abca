"""The console as a raw ASGI application: one page, one stream of figures, one place for actions."""

import asyncio
import base64
import hashlib
import hmac
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from postroom.console.actions import Order, carry_out
from postroom.console.desk import MOST_ROWS, Desk
from postroom.consumer import Consumer
from postroom.errors import ConfigurationError, in_words
from postroom.integrations.asgi import AsgiApp, Receive, Scope, Send, live

_LONGEST_BODY: Final = 16_384
_TOP: Final = 100
_JSON: Final = b"application/json"
_NOT_KNOWN: Final = (
    "you may look, and not act: the console does not know you. From a shell, give its token by POSTROOM_CONSOLE_TOKEN"
)
_READ_ONLY: Final = (
    "this console is read-only: it was made without allow=, or started without --console-token (POSTROOM_CONSOLE_TOKEN)"
)


@dataclass(frozen=True, slots=True)
class ConsoleRequest:
    """A request that wants to act: what ``allow=`` is given to tell who it is.

    Args:
        headers: by lower-case name.
        client: the address that it came from, if it is known.
        scope: the ASGI scope, with what a middleware has put there, such as ``session`` or ``user``.
    """

    headers: Mapping[str, str]
    client: str | None
    scope: Mapping[str, Any]


Allow = Callable[[ConsoleRequest], str | Awaitable[str | None] | None]
"""Names the operator who sends a request; None for one who may not act."""


class _Refused(Exception):
    """A request is answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def console(*consumers: Consumer[Any, Any], allow: Allow | None = None) -> AsgiApp:
    """Return an ASGI application that shows what the tenants of consumers do, and lets an operator act on one.

        app.mount("/postroom", console(orders, allow=operator_of))  # Starlette, FastAPI

    It neither starts nor stops the consumers, and has to run in their event loop. Figures are gathered while a page is
    open, and only then. Put your own authentication before it: without ``allow`` it changes nothing, but it shows
    names of tenants and types of errors to anyone who reaches it.

    Args:
        consumers: what is shown.
        allow: returns the name of the operator behind a request, or None: then it may only look. Sync or async.
            It is asked for each action. The name is logged with the action, and is in its ``OperatorAction`` event.

    Raises:
        ConfigurationError: no consumer, something that is none, or an ``allow`` that cannot be called.
    """
    if not consumers:
        raise ConfigurationError("console(...) takes at least one consumer, one argument each; got none")
    for each in consumers:
        given: Any = each
        if not isinstance(given, Consumer):
            raise ConfigurationError(f"console(...) takes consumers, one argument each; got {type(given).__name__}")
    if allow is not None and not callable(allow):
        raise ConfigurationError(f"console(allow=...) takes a function of a request; got {type(allow).__name__}")
    return _Console(Desk(consumers), allow)


class _Console:
    """The application."""

    def __init__(self, desk: Desk, allow: Allow | None) -> None:
        self.desk = desk
        self._allow = allow
        self._page = files("postroom.console").joinpath("page.html").read_bytes()
        self._policy = _content_policy(self._page.decode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "lifespan":
                await live(receive, send)
            case _:
                await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            match scope["method"], scope["path"].rstrip("/").rpartition("/")[2]:
                case "GET", "events":
                    await self._events(scope, receive, send)
                case "GET", "state":
                    await self._state(scope, send)
                case "GET", "me":
                    await self._me(scope, headers, send)
                case "POST", "actions":
                    await self._act(scope, headers, receive, send)
                case "GET" | "HEAD", _:
                    await self._show(scope, send)
                case _:
                    raise _Refused(405, "GET, or POST to actions")
        except _Refused as refused:
            await _answer(send, refused.status, _JSON, msgspec.json.encode({"error": str(refused)}))

    async def _show(self, scope: Scope, send: Send) -> None:
        """Send the page. A mount without its last slash is sent to it: the page's own paths are relative."""
        path = scope["path"]
        if path and not path.endswith("/"):
            if path != scope.get("root_path", "").rstrip("/"):
                raise _Refused(404, "there are events, state, me and actions")
            await _answer(send, 307, b"text/plain", b"", [(b"location", path.rpartition("/")[2].encode() + b"/")])
            return
        more = [
            (b"content-security-policy", self._policy),
            (b"x-frame-options", b"DENY"),
            (b"cross-origin-opener-policy", b"same-origin"),
        ]
        body = b"" if scope["method"] == "HEAD" else self._page
        await _answer(send, 200, b"text/html; charset=utf-8", body, more)

    async def _state(self, scope: Scope, send: Send) -> None:
        """Send one look, as JSON."""
        top, search = _view(scope)
        await _answer(send, 200, _JSON, msgspec.json.encode(self.desk.glance(top=top, search=search)))

    async def _events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a look each second until the viewer is gone."""
        top, search = _view(scope)
        headers = [*_SAFE, (b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        # ASGI tells that a viewer is gone only if it is asked; some servers never fail a send to a closed tab.
        gone = asyncio.create_task(_until_gone(receive), name="postroom-console-viewer")
        try:
            # Closed here, not by the garbage collector: the desk gathers figures until its last viewer has left.
            async with aclosing(self.desk.watch(top=top, search=search)) as looks:
                async for look in looks:
                    if gone.done():
                        break
                    await send({"type": "http.response.body", "body": b"data: " + look + b"\n\n", "more_body": True})
        except OSError:  # a server tells of a viewer that is gone by an error
            pass
        finally:
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone

    async def _me(self, scope: Scope, headers: Mapping[str, str], send: Send) -> None:
        """Say who asks, as ``allow`` names them, and what a request that acts has to repeat."""
        _check_site(headers)
        said = {"operator": await self._operator(scope, headers), "token": self.desk.token, "acts": bool(self._allow)}
        await _answer(send, 200, _JSON, msgspec.json.encode(said))

    async def _act(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        _check_site(headers)
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise _Refused(415, "an action is sent as application/json")
        if not hmac.compare_digest(headers.get("x-postroom-token", "").encode(), self.desk.token.encode()):
            raise _Refused(403, "the header X-Postroom-Token is missing, or of an earlier process; GET me tells it")
        # Last: what a page of another site can send is refused before the application's allow= hears of it.
        operator = await self._operator(scope, headers)
        if operator is None:
            raise _Refused(403, _NOT_KNOWN if self._allow is not None else _READ_ONLY)
        body = await _body(receive)
        try:
            order = msgspec.json.decode(body, type=Order)
            done = await carry_out(self.desk, order, operator=operator)
        except msgspec.MsgspecError as error:
            raise _Refused(400, f"not an action: {error}") from error
        except ConfigurationError as error:
            raise _Refused(400, str(error)) from error
        except TimeoutError as error:
            raise _Refused(504, str(error) or "it was not done in time") from error
        except Exception as error:  # whatever a registry or a provider raises
            raise _Refused(502, in_words(error)) from error
        await _answer(send, 200, _JSON, msgspec.json.encode(done))

    async def _operator(self, scope: Scope, headers: Mapping[str, str]) -> str | None:
        if self._allow is None:
            return None
        client = scope.get("client")
        name = self._allow(ConsoleRequest(headers, client[0] if client else None, scope))
        if inspect.isawaitable(name):
            name = await name
        # One short line in the log, whatever a session calls its user.
        return " ".join(str(name).split())[:100] or None if name else None


_SAFE: Final = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def _check_site(headers: Mapping[str, str]) -> None:
    """Refuse what a page of another site sends: browsers say where a request comes from."""
    if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise _Refused(403, "a page of another site cannot use this console")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise _Refused(403, "a page of another origin cannot use this console")


def _view(scope: Scope) -> tuple[int, str]:
    asked = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    top = asked.get("top", [str(_TOP)])[0]
    if not top.isdecimal() or not 1 <= int(top[:9]) <= MOST_ROWS:
        raise _Refused(400, f"top is a number from 1 to {MOST_ROWS}")
    return int(top), asked.get("search", [""])[0][:200]


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise _Refused(400, "the request ended too soon")
        body += event.get("body", b"")
        if len(body) > _LONGEST_BODY:
            raise _Refused(413, "an action is shorter than that")
        if not event.get("more_body", False):
            return bytes(body)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(
    send: Send, status: int, kind: bytes, body: bytes, more: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [*_SAFE, (b"content-type", kind), (b"content-length", str(len(body)).encode()), *(more or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _content_policy(page: str) -> bytes:
    """Return a policy under which only this page's own script and style run, and only its own server is asked."""

    def hashed(tag: str) -> str:
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; script-src {hashed('script')}; style-src {hashed('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ).encode()
