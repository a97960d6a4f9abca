"""The shared state in Valkey, or in Redis 6 and up: one script call per exchange.

Every key of a fleet has the hash tag ``{name}``, so that in cluster mode all of them are in one slot.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from inspect import iscoroutinefunction
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import msgspec

from postroom.errors import ConfigurationError
from postroom.fleet.protocol import PASSING, REMEMBERED, REMEMBERED_MOST, Answer, Decisions, Grant, Hint, Request
from postroom.fleet.scripts import CLAIM, DECIDE, DECISIONS, EXCHANGE, MEMBERS, REPORT, RESTORE, USAGE

_BATCH: Final = 250
"""Tenants per script call: the server does nothing else meanwhile, for about a millisecond per hundred."""
_NO_PRIMARY: Final = frozenset({"ReadOnlyError", "MasterDownError", "BusyLoadingError"})
"""Errors of a server that is no primary, or not yet, by their name in both libraries."""
_NO_TIME: Final = 1e15
"""Milliseconds since the epoch that are no time: those of the year 33,658."""
_SCHEMES: Final = ("valkey://", "valkeys://", "redis://", "rediss://", "unix://")


class CommandClient(Protocol):
    """What is used of a client: valkey-py's, or redis-py's, of a single server or of a cluster."""

    def execute_command(self, *arguments: Any) -> Awaitable[Any]:
        """Send one command and return the answer."""
        ...


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of itself. None for what it does not say."""

    version: tuple[int, ...] | None = None
    limit: int = 0
    """Bytes that it may use (``maxmemory``); 0 for no limit."""
    policy: str | None = None
    """What it does when they are full (``maxmemory-policy``)."""
    persistent: bool = False
    """Whether it writes every change to disk (``appendonly``)."""
    offset: float | None = None
    """Seconds by which its clock is ahead of this machine's, give or take half of ``seconds``."""
    seconds: float = 0.0
    """Seconds that an answer took."""


class ValkeyState:
    """A shared state in Valkey.

    Args:
        store: the URL of a server, ``valkey://user:password@host:6379/0``, with ``valkeys://`` for TLS; or an asyncio
            client of ``valkey`` or ``redis``, which stays yours to close.

    Raises:
        ConfigurationError: it is neither, the URL cannot be read, or ``valkey`` is not installed.
    """

    def __init__(self, store: str | CommandClient) -> None:
        self._url = store if isinstance(store, str) else None
        self._client = None if isinstance(store, str) else store
        if isinstance(store, str):
            _check_url(store)
        else:
            _check_client(store)
        # By digest: the text of the script would travel with every exchange.
        self._digests = {script: hashlib.sha1(script.encode()).hexdigest() for script in _SCRIPTS}  # noqa: S324 - EVALSHA
        self._users = 0
        self.calls: int = 0
        """Commands sent so far."""

    def __repr__(self) -> str:
        return "ValkeyState()"  # a URL may hold a password

    async def exchange(self, fleet: str, request: Request) -> Answer:
        """Renew, return and grant slots. Many tenants take several calls, of which each is one step."""
        asks = request.asks
        # Also without tenants: it counts this replica as alive.
        answer = await self._exchange(fleet, request, 0)
        grants = list(answer.grants)
        for start in range(_BATCH, len(asks), _BATCH):
            answer = await self._exchange(fleet, request, start)
            grants += answer.grants
        return Answer(answer.epoch, answer.version, answer.replicas, tuple(grants), answer.hints)

    async def _exchange(self, fleet: str, request: Request, start: int) -> Answer:
        tag = _tag(fleet)
        keys = [f"{tag}:epoch", f"{tag}:members", f"{tag}:decisions", f"{tag}:hints"]
        arguments: list[str | int | float] = [
            request.replica,
            request.sequence,
            request.epoch,
            _milliseconds(request.lease),
            _milliseconds(request.tick),
            int(request.leaving),
        ]
        said: list[str] = []
        for ask in request.asks[start : start + _BATCH]:
            keys.append(f"{tag}:slots:{ask.tenant}")
            if ask.rate > 0:
                keys.append(f"{tag}:rate:{ask.tenant}")
            said.append(f"{ask.cap} {ask.hold} {ask.need} {ask.want} {ask.rate or 0} {ask.tokens}")
        return _answer(await self._run(EXCHANGE, keys, [*arguments, " ".join(said)]))

    async def decide(self, fleet: str, changes: Mapping[str, str | None]) -> int:
        """Write decisions down."""
        arguments: list[str | int] = [_milliseconds(REMEMBERED), REMEMBERED_MOST]
        for field, value in changes.items():
            taken_back = "forget" if field.startswith(PASSING) else "undo"
            arguments += (field, taken_back if value is None else "set", value or "")
        return int(await self._run(DECIDE, _decision_keys(fleet), arguments))

    async def decisions(self, fleet: str) -> Decisions:
        """Return all decisions."""
        epoch, fields, undone = await self._run(DECISIONS, [*_decision_keys(fleet), f"{_tag(fleet)}:epoch"], [])
        said = _pairs(fields)
        version = _version(said.pop("#", ""))
        stamps = {field[1:]: _version(said.pop(field)) for field in list(said) if field.startswith("@")}
        taken_back = {field: _version(stamp) for field, stamp in _pairs(undone).items()}
        return Decisions(version, said, stamps, taken_back, _text(epoch))

    async def restore(self, fleet: str, decisions: Decisions) -> int:
        """Write down again what a server without its memory does not know."""
        arguments: list[str | int] = [_milliseconds(REMEMBERED), REMEMBERED_MOST, decisions.version]
        for field, value in decisions.fields.items():
            arguments += (field, "set", value, decisions.stamps.get(field, 0))
        for field, stamp in decisions.undone.items():
            arguments += (field, "undo", "", stamp)
        return int(await self._run(RESTORE, _decision_keys(fleet), arguments))

    async def report(self, fleet: str, host: str, cause: str | None, seconds: float) -> None:
        """Say that a host is down or back."""
        tag = _tag(fleet)
        keys = [f"{tag}:hints", f"{tag}:probe:{host}"]
        await self._run(REPORT, keys, [host, "" if cause is None else cause or "?", _milliseconds(seconds)])

    async def claim_probe(self, fleet: str, host: str, replica: str, seconds: float) -> bool:
        """Return whether this replica is the one that tries a host."""
        keys = [f"{_tag(fleet)}:hints", f"{_tag(fleet)}:probe:{host}"]
        said = await self._run(CLAIM, keys, [host, replica, _milliseconds(seconds)])
        return int(said) == 1

    async def replicas(self, fleet: str) -> Collection[str]:
        """Return the names of the replicas that are alive."""
        return [_text(each) for each in await self._run(MEMBERS, [f"{_tag(fleet)}:members"], [])]

    async def usage(self, fleet: str) -> Mapping[str, tuple[int, int]]:
        """Return the slots in use, and the replicas that hold them, by tenant. It scans: for operators only."""
        prefix = f"{_tag(fleet)}:slots:"
        found: dict[str, tuple[int, int]] = {}
        cursor = "0"
        while True:
            answer = await self._command("SCAN", cursor, "MATCH", _literal(prefix) + "*", "COUNT", 1_000)
            cursor, keys = _text(answer[0]), [_text(key) for key in answer[1]]
            for key in keys:
                slots, replicas = await self._run(USAGE, [key], [])
                if slots:
                    found[key.removeprefix(prefix)] = (int(slots), int(replicas))
            if cursor == "0":
                return found

    async def look(self) -> StoreInfo:
        """Return what the server says of itself. Of a cluster only times: each of its servers says something else."""
        await self._command("TIME")  # connects
        began, wall = time.monotonic(), time.time()
        answer = await self._command("TIME")
        seconds = time.monotonic() - began
        at = _seconds_of(answer)
        said = _lines(await self._command("INFO"))
        version = said.get("valkey_version") or said.get("redis_version")
        return StoreInfo(
            version=None if version is None else tuple(int(part) for part in version.split(".") if part.isdigit()),
            limit=int(said.get("maxmemory", "0")),
            policy=said.get("maxmemory_policy"),
            persistent=said.get("aof_enabled") == "1",
            offset=None if at is None else at - wall - seconds / 2,
            seconds=seconds,
        )

    def hold(self) -> None:
        """Count one more user. While there are any, ``aclose`` closes nothing."""
        self._users += 1

    def release(self) -> None:
        """Count one user less."""
        self._users -= 1

    async def aclose(self) -> None:
        """Close the connections, if the client was made here and has no other user. It can be used again afterwards."""
        client: Any = self._client
        if self._url is not None and client is not None and not self._users:
            self._client = None
            await client.aclose()

    async def _run(self, script: str, keys: Sequence[str], arguments: Sequence[str | int | float]) -> Any:
        try:
            return await self._command("EVALSHA", self._digests[script], len(keys), *keys, *arguments)
        except Exception as error:  # two libraries, two classes: the server has not seen the script yet
            # By name, because neither library may be imported for the other's class.
            if type(error).__name__ != "NoScriptError":
                raise
            return await self._command("EVAL", script, len(keys), *keys, *arguments)

    async def _command(self, *arguments: Any) -> Any:
        if self._client is None:
            self._client = _connect(cast("str", self._url))
        client: Any = self._client
        self.calls += 1
        try:
            return await client.execute_command(*arguments)
        except Exception as error:
            if type(error).__name__ in _NO_PRIMARY:
                await _hang_up(client)
            raise


_SCRIPTS: Final = (EXCHANGE, DECIDE, DECISIONS, RESTORE, REPORT, CLAIM, MEMBERS, USAGE)


def _connect(url: str) -> CommandClient:
    from valkey.asyncio import Valkey  # noqa: PLC0415 - an optional extra, needed only for a URL

    client: Any = Valkey
    return cast("CommandClient", client.from_url(url))


async def _hang_up(client: Any) -> None:
    """Close idle connections, so that the next call looks the host up again: a fail-over may have moved its name."""
    pool = getattr(client, "connection_pool", None)  # a cluster's client has none, and finds primaries itself
    if pool is not None:
        with suppress(Exception):  # the answer of the server says more
            # Those in use are other tasks', which may be the application's: each hears the same answer itself.
            await pool.disconnect(inuse_connections=getattr(client, "single_connection_client", False))


def _check_url(url: str) -> None:
    if not url.startswith(_SCHEMES):
        text = f"Fleet(...) takes a URL that begins with one of {', '.join(_SCHEMES)}, or an asyncio client"
        raise ConfigurationError(text)
    if find_spec("valkey") is None:
        text = "Fleet(url) needs valkey-py: pip install 'postroom[valkey]'; or pass a redis.asyncio client of your own"
        raise ConfigurationError(text)
    # Not raised from what the parser said: that quotes a part of the password.
    if not _is_readable(url):
        text = (
            "Fleet(...) takes a URL such as valkey://user:password@host:6379/0; "
            "percent-encode what is not a letter or a digit in user and password: urllib.parse.quote(password, safe='')"
        )
        raise ConfigurationError(text)


def _is_readable(url: str) -> bool:
    """Return whether a URL leads where it seems to: a ``/``, ``?`` or ``#`` in a password ends the host early."""
    from valkey.asyncio import ConnectionPool  # noqa: PLC0415 - an optional extra, needed only for a URL

    pool: Any = ConnectionPool
    try:
        parts = urlsplit(url)
        pool.from_url(url)  # connects nothing
    except ValueError:
        return False
    behind = f"{parts.path}{parts.query.partition('=')[0]}{parts.fragment}"
    return not parts.netloc or "@" not in behind


def _check_client(client: object) -> None:
    execute: Callable[..., Any] | None = getattr(client, "execute_command", None)
    if execute is None:
        text = f"Fleet(...) takes a URL, an asyncio client of valkey or redis, or a SharedState; got {type(client)}"
        raise ConfigurationError(text)
    if not iscoroutinefunction(execute):
        text = "Fleet(...) takes an asyncio client: valkey.asyncio.Valkey or redis.asyncio.Redis, not the blocking one"
        raise ConfigurationError(text)


def _tag(fleet: str) -> str:
    # The braces are the hash tag: a script may touch keys of one slot of a cluster only.
    return f"postroom:{{{fleet}}}"


def _decision_keys(fleet: str) -> list[str]:
    tag = _tag(fleet)
    return [f"{tag}:decisions", f"{tag}:undone"]


def _literal(text: str) -> str:
    """Escape what a pattern would not take literally."""
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in text)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1_000))


def _text(value: Any) -> str:
    """Return an answer as text, whether or not the client decodes. A value that is none must not cost all others."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _version(text: str) -> int:
    """Return a version; 0 for what is none, as something else may have written it."""
    try:
        number = float(text)
    except ValueError:
        return 0
    return int(number) if 0 < number < _NO_TIME else 0


def _pairs(answer: Any) -> dict[str, str]:
    """Return a hash, of which clients make a dict or a flat list."""
    if isinstance(answer, Mapping):
        known = cast("Mapping[Any, Any]", answer)
        return {_text(key): _text(value) for key, value in known.items()}
    flat = [_text(value) for value in answer]
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _seconds_of(answer: Any) -> float | None:
    """Return a time, of which clients make a pair of numbers or of texts."""
    try:
        return int(answer[0]) + int(answer[1]) / 1e6
    except (LookupError, TypeError, ValueError):
        return None  # of a cluster: one for each server


def _lines(answer: Any) -> dict[str, str]:
    """Return what a server says of itself, of which clients make a dict or a text."""
    if isinstance(answer, Mapping):
        return {str(key): _text(value) for key, value in cast("Mapping[Any, Any]", answer).items()}
    parts = (line.partition(":") for line in _text(answer).splitlines())
    return {name: value for name, colon, value in parts if colon}


def _answer(said: Any) -> Answer:
    count = int(said[3])
    first = 4 + 3 * count
    hints = tuple(Hint(_text(said[at]), int(said[at + 1]) / 1_000, _text(said[at + 2])) for at in range(4, first, 3))
    each = iter(map(int, _text(said[first]).split()))
    grants = tuple(
        Grant(slots, share, contended > 0, tokens)
        for slots, share, contended, tokens in zip(each, each, each, each, strict=True)
    )
    return Answer(_text(said[0]), int(said[1]), int(said[2]), grants, hints)
