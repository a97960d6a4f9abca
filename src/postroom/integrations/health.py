"""Health over HTTP: what the three pages say, and a server for processes that have no other."""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Protocol, Self

import msgspec

from postroom.checking import listed
from postroom.consumer import Health
from postroom.display import queue_name
from postroom.errors import ConfigurationError
from postroom.integrations.listening import Listener, check_port
from postroom.log_fields import Log, Step

__all__ = ["Checked", "HealthServer"]

_log = Log("postroom.health", Step.HEALTH)

PAGES: Final = ("livez", "readyz", "healthz")
_PATIENCE: Final = 5.0
"""Seconds that a request may take to arrive, and its answer to be taken."""
_LONGEST_HEAD: Final = 16_384
_MOST: Final = 50
"""Connections at once; more are closed unanswered."""


class Checked(Protocol):
    """What can be asked for its health: a ``Consumer``, or anything of your own."""

    def health(self) -> Health:
        """Return the health now. Quick, and never raises."""
        ...


class Page(NamedTuple):
    """One answer: a status and its JSON."""

    status: int
    body: bytes


def check_consumers(consumers: Sequence[Checked], what: str) -> None:
    """Raise ``ConfigurationError`` for what has no health."""
    if not consumers:
        raise ConfigurationError(f"{what} takes at least one consumer, one argument each; got none")
    for each in listed(what, "consumers as arguments", consumers):
        found: Any = each
        if not callable(getattr(found, "health", None)) or isinstance(found, type):
            raise ConfigurationError(f"{what} takes consumers, one argument each; got {found!r}")


def page(consumers: Sequence[Checked], path: str, *, details: bool) -> Page:
    """Return the page that the last segment of a path names.

    * ``livez``: 503 when a consumer is not live. For a liveness probe.
    * ``readyz``: 503 when a consumer is not ready. For a readiness probe.
    * ``healthz``: 503 until every consumer has been ready once, and from then on when one is not live. For platforms
      with one check that restarts what fails it, such as ECS: an outage of SQS restarts nothing.
    """
    name = path.rstrip("/").rpartition("/")[2]
    if name not in PAGES:
        return Page(HTTPStatus.NOT_FOUND, msgspec.json.encode({"error": f"there are {', '.join(PAGES)}"}))
    healths = [consumer.health() for consumer in consumers]
    good = all(_is_good(name, health) for health in healths)
    said: dict[str, Any] = {"status": "ok" if good else "unavailable"}
    if details:
        said["consumers"] = [_described(health) for health in healths]
    return Page(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, msgspec.json.encode(said))


def _is_good(name: str, health: Health) -> bool:
    match name:
        case "livez":
            return health.live
        case "readyz":
            return health.ready
        case _:
            return health.live and health.started


def _described(health: Health) -> dict[str, Any]:
    age = health.last_poll_age
    return {
        "queue": queue_name(health.queue),
        "phase": health.phase,
        "live": health.live,
        "ready": health.ready,
        "started": health.started,
        "reasons": health.reasons,
        "last_poll_age": None if age is None else round(age, 1),
        **({"unreachable": health.unreachable} if health.unreachable else {}),
    }


class HealthServer(Listener):
    """Serves ``/livez``, ``/readyz`` and ``/healthz`` while its block is entered: ``postroom run --health-port``.

        run(orders, beside=HealthServer(orders, port=8080))

    One small HTTP/1.1 server in the consumers' own event loop, so a loop that is blocked does not answer. Where a web
    framework serves HTTP anyway, mount ``health_app`` instead.

    Args:
        consumers: those that are asked.
        port: where it listens; 0 for a free port, which ``port`` then says.
        host: an address to listen at; None for all of the machine, where Kubernetes and load balancers ask.
        details: whether answers name each consumer's queue and reasons, beside the status.

    Raises:
        ConfigurationError: an argument cannot work; when it is entered, the port is taken.
    """

    def __init__(self, *consumers: Checked, port: int, host: str | None = None, details: bool = True) -> None:
        check_consumers(consumers, "HealthServer(...)")
        port = check_port("HealthServer", port)
        super().__init__("the health server", host, port, most=_MOST, longest_head=_LONGEST_HEAD, grace=_PATIENCE)
        self._consumers = consumers
        self._details = details

    async def __aenter__(self) -> Self:
        """Begin to listen."""
        await self.listen()
        _log.info("Health at http://%s:%d/readyz", self._host or "localhost", self.port)
        return self

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one probe: each opens a connection."""
        async with asyncio.timeout(_PATIENCE):
            writer.write(await self._answered(reader))
            await writer.drain()

    async def _answered(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(Page(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, b""), body=True)
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(Page(HTTPStatus.BAD_REQUEST, b""), body=True)
        method, target = words[0], words[1].decode("latin-1")
        if method not in (b"GET", b"HEAD"):
            return _response(Page(HTTPStatus.METHOD_NOT_ALLOWED, b""), body=True)
        answer = page(self._consumers, target.partition("?")[0], details=self._details)
        return _response(answer, body=method == b"GET")


def _response(answer: Page, *, body: bool) -> bytes:
    status = HTTPStatus(answer.status)
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
        f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (answer.body if body else b"")
