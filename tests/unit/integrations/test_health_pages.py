"""The health pages: what each answers in each state, as an ASGI application and by the built-in server."""

import asyncio
import errno
import http.client
import json
import os
import subprocess
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from postroom import ConfigurationError, Consumer, Health, Phase
from postroom.integrations import health as pages
from postroom.integrations.asgi import health_app
from postroom.integrations.health import HealthServer
from postroom.local.threaded import ThreadedServer


class Checked:
    """Something with a health that the test decides."""

    def __init__(self, **health: Any) -> None:
        self.set(**health)

    def set(
        self, *, live: bool = True, ready: bool = True, started: bool = True, reasons: tuple[str, ...] = ()
    ) -> None:
        """Decide it."""
        queue = "https://sqs.eu-west-1.amazonaws.com/123456789012/orders"
        self._health = Health(
            queue=queue, phase=Phase.RUNNING, live=live, ready=ready, started=started, reasons=reasons
        )

    def health(self) -> Health:
        """Return it."""
        return self._health


STATES = {
    "healthy": ({}, (200, 200, 200)),
    "not started": ({"ready": False, "started": False}, (200, 503, 503)),
    "SQS is out": ({"ready": False}, (200, 503, 200)),
    "dead": ({"live": False, "ready": False}, (503, 503, 503)),
}


def client(app: Any) -> httpx.AsyncClient:
    """Return a client that calls an application."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


@pytest.mark.parametrize("state", STATES)
async def test_each_page_answers_its_own_question(state: str) -> None:
    """Restart it? Send it work? And both in one, for platforms with a single check."""
    health, expected = STATES[state]
    async with client(health_app(Checked(), Checked(**health))) as asking:
        answers = [await asking.get(f"/{name}") for name in ("livez", "readyz", "healthz")]
    assert tuple(answer.status_code for answer in answers) == expected
    assert all(answer.json()["status"] == ("ok" if answer.is_success else "unavailable") for answer in answers)


async def test_a_page_says_why_and_names_the_queue_without_its_account() -> None:
    """The page of a process with several consumers tells which of them it is."""
    async with client(health_app(Checked(ready=False, reasons=("it is stopping",)))) as asking:
        [said] = (await asking.get("/readyz")).json()["consumers"]
        assert (said["queue"], said["phase"], said["reasons"]) == ("orders", "running", ["it is stopping"])
        assert "123456789012" not in (await asking.get("/readyz")).text


async def test_details_can_be_left_out() -> None:
    """Where strangers can read the page it tells the status alone."""
    async with client(health_app(Checked(), details=False)) as asking:
        assert (await asking.get("/readyz")).json() == {"status": "ok"}


async def test_it_is_mounted_in_a_framework_under_any_prefix() -> None:
    """The last segment of the path counts."""
    app = Starlette()
    app.mount("/internal/postroom", health_app(Checked()))
    async with client(app) as asking:
        assert (await asking.get("/internal/postroom/livez")).json()["status"] == "ok"
        assert (await asking.get("/internal/postroom/nothing")).status_code == 404


async def test_heads_and_other_methods() -> None:
    """A HEAD has the length and no body; what would change something is refused."""
    async with client(health_app(Checked())) as asking:
        head = await asking.head("/livez")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 0
        refused = await asking.post("/livez")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


async def test_it_takes_part_in_the_lifespan_and_closes_websockets() -> None:
    """A server that has no other application asks it, too."""
    app = health_app(Checked())
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return next(events)

    async def send(event: MutableMapping[str, Any]) -> None:
        sent.append(event)

    await app({"type": "lifespan"}, receive, send)
    await app({"type": "websocket"}, receive, send)
    assert [event["type"] for event in sent] == [
        "lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close",
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [(), (Consumer,), ([Consumer("orders")],), ("orders",)])
def test_what_has_no_health_is_refused(wrong: tuple[Any, ...]) -> None:
    """No consumer, the class, a list, a name: each would fail at the first probe only."""
    with pytest.raises(ConfigurationError, match="consumer"):
        health_app(*wrong)
    with pytest.raises(ConfigurationError, match="consumer"):
        HealthServer(*wrong, port=0)


@pytest.mark.parametrize("port", [-1, 65_536, True, "80"])
def test_a_port_that_is_none_is_refused(port: Any) -> None:
    """Before anything runs."""
    with pytest.raises(ConfigurationError, match=r"HealthServer\(port=...\)"):
        HealthServer(Checked(), port=port)


async def _cut_off(reader: asyncio.StreamReader) -> bool:
    """Whether a connection ends without a word."""
    try:
        return not await reader.read()
    except ConnectionResetError:
        return True


# -- the built-in server --------------------------------------------------------------------------------------------


async def test_the_server_answers_what_the_application_answers() -> None:
    """Status and body, over real connections, at the same time."""
    checked = Checked()
    async with HealthServer(checked, host="127.0.0.1", port=0) as server, httpx.AsyncClient() as asking:
        base = f"http://127.0.0.1:{server.port}"
        answers = await asyncio.gather(*(asking.get(f"{base}/readyz?verbose") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        checked.set(ready=False)
        assert (await asking.get(f"{base}/readyz")).status_code == 503
        head = await asking.head(f"{base}/livez")
        assert (head.status_code, head.content, head.headers["connection"]) == (200, b"", "close")
        assert (await asking.get(f"{base}/")).status_code == 404
        assert (await asking.delete(f"{base}/livez")).status_code == 405


@pytest.mark.parametrize(("host", "address"), [(None, "127.0.0.1"), (["127.0.0.1", "127.0.0.2"], "127.0.0.2")])
async def test_a_free_port_is_the_same_at_all_addresses(host: Any, address: str) -> None:
    """Those of the machine, IPv4 and IPv6, or all that a name has."""
    async with HealthServer(Checked(), host=host, port=0) as server, httpx.AsyncClient() as asking:
        assert server._server is not None
        assert {each.getsockname()[1] for each in server._server.sockets} == {server.port}
        assert (await asking.get(f"http://{address}:{server.port}/livez")).status_code == 200


async def test_a_free_port_that_is_taken_at_another_address_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system is asked for another one, and not without end."""
    start: Any = asyncio.start_server
    tried: list[int] = []

    async def fail(*arguments: Any, port: int, **options: Any) -> Any:
        tried.append(port)
        if port and len(tried) <= most:
            raise OSError(errno.EADDRINUSE, "address already in use")
        return await start(*arguments, port=port, **options)

    monkeypatch.setattr(asyncio, "start_server", fail)
    addresses: Any = ["127.0.0.1", "127.0.0.2"]
    most = 4
    async with HealthServer(Checked(), host=addresses, port=0) as server:
        assert tried[1::2][-1] == server.port
        assert len(tried) == 6
    most = 1_000
    with pytest.raises(ConfigurationError, match="no port is free at all addresses"):
        await HealthServer(Checked(), host=addresses, port=0).__aenter__()


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"nonsense\r\n\r\n", b"400"), (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", b"431")],
)
async def test_what_is_no_request_is_refused(sent: bytes, status: bytes) -> None:
    """And takes no more memory than a head may."""
    async with HealthServer(Checked(), host="127.0.0.1", port=0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        assert (await reader.readline()).split()[1] == status
        writer.close()


async def test_a_client_that_says_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds one of few places, and only for so long."""
    monkeypatch.setattr(pages, "_PATIENCE", 0.05)
    async with HealthServer(Checked(), host="127.0.0.1", port=0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await _cut_off(reader)
        writer.close()


async def test_more_connections_than_there_are_places_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of them take no memory of the consumers."""
    monkeypatch.setattr(pages, "_MOST", 1)
    async with HealthServer(Checked(), host="127.0.0.1", port=0) as server:
        first = await asyncio.open_connection("127.0.0.1", server.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await _cut_off(reader)
        for each in (first[1], writer):
            each.close()


async def test_leaving_the_server_ends_what_is_open() -> None:
    """A client that waits in the middle of a request does not hold the process."""
    async with HealthServer(Checked(), host="127.0.0.1", port=0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /livez")
        await writer.drain()
        while not server._open:
            await asyncio.sleep(0)
    assert await _cut_off(reader)
    writer.close()


async def test_a_taken_port_says_so() -> None:
    """One line that names the address."""
    async with HealthServer(Checked(), host="127.0.0.1", port=0) as server:
        with pytest.raises(ConfigurationError, match=rf"cannot listen at 127.0.0.1:{server.port}"):
            await HealthServer(Checked(), host="127.0.0.1", port=server.port).__aenter__()


# -- the commands ---------------------------------------------------------------------------------------------------

APP = """
from postroom import Consumer, MessageContext
orders = Consumer("orders")
@orders.handler
async def handle(body: dict, ctx: MessageContext) -> None: ...
"""


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "POSTROOM_"))}


def _command(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "postroom", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**_environment(), **environment}, timeout=60
    )


def test_run_serves_its_health_and_the_health_command_asks_for_it(tmp_path: Path) -> None:
    """From before the queue exists to the end: 503 while it starts, 200 when it receives, and no answer at all."""
    (tmp_path / "shop_health.py").write_text(APP)
    with ThreadedServer() as sqs:
        sqs.create_queue("orders")
        worker = subprocess.Popen(
            [sys.executable, "-m", "postroom", "run", "shop_health:orders", "--endpoint-url", sqs.endpoint_url],
            cwd=tmp_path,
            env={**_environment(), "POSTROOM_HEALTH_PORT": "0", "POSTROOM_HEALTH_HOST": "127.0.0.1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        with worker:
            assert worker.stderr is not None
            port = 0
            for line in worker.stderr:
                if "Health at" in line:
                    port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
                if "Consuming" in line:
                    break
            found = _command("health", POSTROOM_HEALTH_PORT=str(port))
            assert (found.returncode, json.loads(found.stdout)["status"]) == (0, "ok")
            assert _command("health", f"http://127.0.0.1:{port}/readyz").returncode == 0
            worker.terminate()
            worker.stderr.read()
        assert worker.returncode == 0
    gone = _command("health", f"http://127.0.0.1:{port}/readyz")
    assert gone.returncode == 1
    assert "no answer from 127.0.0.1" in gone.stderr


def test_an_unhealthy_process_is_exit_code_1_and_a_wrong_url_2() -> None:
    """What the platform is to know from a number; the reasons are on stderr."""

    async def asked() -> "subprocess.CompletedProcess[str]":
        async with HealthServer(Checked(ready=False, started=False), host="127.0.0.1", port=0) as server:
            return await asyncio.to_thread(_command, "health", "--port", str(server.port))

    found = asyncio.run(asked())
    assert found.returncode == 1
    assert found.stderr.startswith("503: {")
    wrong = _command("health", "localhost:8080")
    assert (wrong.returncode, "is not a URL" in wrong.stderr) == (2, True)


@pytest.mark.parametrize(
    ("served", "asked"),
    [("", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::1", "::1"), ("127.0.0.2", "127.0.0.2")],  # noqa: S104
)
def test_the_command_asks_where_the_same_environment_has_the_pages_served(served: str, asked: str) -> None:
    """A container's check has the variables of its process, and would end a healthy one if it asked elsewhere."""
    found = _command("health", POSTROOM_HEALTH_HOST=served, POSTROOM_HEALTH_PORT="9")  # no port of this machine answers
    assert (found.returncode, found.stderr.partition(": ")[0]) == (1, f"no answer from {asked}:9")


def test_a_health_port_that_is_taken_ends_the_start_with_exit_code_2(tmp_path: Path) -> None:
    """A worker that cannot be asked would be restarted without end, and without a word."""
    (tmp_path / "shop_health.py").write_text(APP)

    async def started() -> "subprocess.CompletedProcess[str]":
        async with HealthServer(Checked(), host="127.0.0.1", port=0) as server:
            options = ("--directory", str(tmp_path), "--health-port", str(server.port), "--health-host", "127.0.0.1")
            return await asyncio.to_thread(_command, "run", "shop_health:orders", *options)

    found = asyncio.run(started())
    assert found.returncode == 2
    assert "the health server cannot listen at" in found.stderr
    assert "Traceback" not in found.stderr


def test_the_connection_of_a_probe_ends_with_its_answer() -> None:
    """As http.client, Kubernetes and load balancers read it."""

    def ask(port: int) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/livez")
        answer = connection.getresponse()
        return answer.status, answer.read()

    async def asked() -> tuple[int, bytes]:
        async with HealthServer(Checked(), host="127.0.0.1", port=0, details=False) as server:
            return await asyncio.to_thread(ask, server.port)

    assert asyncio.run(asked()) == (200, b'{"status":"ok"}')
