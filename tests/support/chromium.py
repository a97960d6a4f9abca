"""A headless Chromium, driven over its DevTools protocol by a small WebSocket client."""

import asyncio
import base64
import itertools
import json
import os
import secrets
import shutil
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "no Chromium on this machine; install the Debian package chromium to test the console's page"


class WebSocket:
    """Just enough of RFC 6455 for text messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, url: str) -> "WebSocket":
        """Open a connection to ws://..."""
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=64 * 1024 * 1024)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        writer.write(
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head, head
        return cls(reader, writer)

    async def send(self, text: str) -> None:
        """Send a text."""
        body, mask = text.encode(), os.urandom(4)
        size = len(body)
        if size < 126:
            head = struct.pack("!BB", 0x81, 0x80 | size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x81, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x81, 0x80 | 127, size)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(body))
        self._writer.write(head + mask + masked)
        await self._writer.drain()

    async def receive(self) -> str:
        """Receive a text, of however many frames."""
        whole = b""
        while True:
            first, second = await self._reader.readexactly(2)
            size = second & 0x7F
            if size == 126:
                [size] = struct.unpack("!H", await self._reader.readexactly(2))
            elif size == 127:
                [size] = struct.unpack("!Q", await self._reader.readexactly(8))
            body = await self._reader.readexactly(size)
            if first & 0x0F in (0, 1):
                whole += body
                if first & 0x80:
                    return whole.decode()

    def close(self) -> None:
        """Close without a word."""
        self._writer.close()


class Page:
    """One page of the browser."""

    def __init__(self, socket: WebSocket, session: str) -> None:
        self._socket = socket
        self._session = session
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.problems: list[str] = []
        """Errors of the console and of scripts."""

    async def listen(self) -> None:
        """Take in what the browser says, for as long as it lives."""
        while True:
            said = json.loads(await self._socket.receive())
            if (waiter := self._waiting.pop(said.get("id", 0), None)) is not None:
                if "error" in said:
                    waiter.set_exception(AssertionError(said["error"]))
                else:
                    waiter.set_result(said["result"])
            elif said.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(said["params"]["exceptionDetails"])[:500])
            elif said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.problems.append(said["params"]["entry"]["text"])

    async def call(self, method: str, *, session: bool = True, **params: Any) -> Any:
        """Call a method of the protocol."""
        number = next(self._numbers)
        waiter = self._waiting[number] = asyncio.get_running_loop().create_future()
        order: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            order["sessionId"] = self._session
        await self._socket.send(json.dumps(order))
        return await asyncio.wait_for(waiter, 30)

    async def open(self, url: str) -> None:
        """Load a page."""
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    async def js(self, expression: str) -> Any:
        """Evaluate an expression, and return its value."""
        said = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def until(self, expression: str, *, seconds: float = 20.0) -> Any:
        """Wait until an expression is true, and return its value."""
        async with asyncio.timeout(seconds):
            while not (value := await self.js(expression)):
                await asyncio.sleep(0.03)
        return value

    async def press(self, key: str) -> None:
        """Press a key."""
        codes = {"Enter": 13, "Escape": 27}
        more = {"windowsVirtualKeyCode": codes[key]} if key in codes else {"text": key}
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **more)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """Be a screen of this size."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])


@asynccontextmanager
async def chromium(directory: Path) -> AsyncIterator[Callable[[], Any]]:
    """Run a browser for the time of the block. Yields a function that opens a page."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        "--disable-dev-shm-usage",
        "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--no-default-browser-check", f"--user-data-dir={directory / 'profile'}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    listeners: list[asyncio.Task[None]] = []
    sockets: list[WebSocket] = []
    try:
        async with asyncio.timeout(60):
            while not (line := await process.stderr.readline()).startswith(b"DevTools listening on "):
                assert line, "the browser ended"
        url = line.split()[-1].decode()
        draining = asyncio.create_task(process.stderr.read(), name="chromium-stderr")

        async def page() -> Page:
            socket = await WebSocket.connect(url)
            sockets.append(socket)
            made = Page(socket, "")
            listeners.append(asyncio.create_task(made.listen(), name="chromium-page"))
            target = await made.call("Target.createTarget", session=False, url="about:blank")
            said = await made.call("Target.attachToTarget", session=False, targetId=target["targetId"], flatten=True)
            made._session = said["sessionId"]
            return made

        yield page
    finally:
        for listener in listeners:
            listener.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)
        for socket in sockets:
            socket.close()
        if process.returncode is None:
            process.kill()
        await process.wait()
        if "draining" in locals():
            await draining
