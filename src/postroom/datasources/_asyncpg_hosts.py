"""Several hosts in one DSN: asyncpg asks them in turn, and waits for a silent one until its time is over for all."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar, cast
from urllib.parse import parse_qs, unquote

import asyncpg

from postroom.datasources._canary import split

T = TypeVar("T")
_HOST: Final = re.compile(r"(\[[^\]]*\]|[^:]*)(?::(\d+))?")
_NEXT: Final = (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched)
"""After these asyncpg asks the next host."""


async def connect_in_turn(connect: Callable[..., Awaitable[T]], timeout: float, *arguments: Any, **keywords: Any) -> T:
    """Connect as asyncpg does; each of several hosts has its share of the time.

    Args:
        connect: ``asyncpg.connect``.
        timeout: seconds for all hosts together.
        arguments: the DSN, if there is one.
        keywords: asyncpg's own.
    """
    hosts = _hosts(arguments[0] if arguments else None, keywords)
    for host, port in hosts[:-1]:
        try:
            share = {"host": host, "port": port, "timeout": timeout / len(hosts)}
            return await connect(*arguments, **{**keywords, **share})
        except _NEXT:
            pass
    last = {"host": hosts[-1][0], "port": hosts[-1][1]} if hosts else {}
    return await connect(*arguments, **{**keywords, **last})


def _hosts(dsn: str | None, keywords: Mapping[str, Any]) -> list[tuple[str, int | None]]:
    """Return the hosts that asyncpg would ask; nothing where there is one, or where it compares them."""
    given = keywords.get("host")
    if isinstance(given, list):
        several, port = cast("list[str]", given), keywords.get("port")
        ports = cast("list[int | None]", port) if isinstance(port, list) else [port] * len(several)
        return list(zip(several, ports, strict=True))
    if given is not None or dsn is None:
        return []
    url = split(dsn)
    query = {name: values[-1] for name, values in parse_qs(url.query).items()}
    specified = unquote(url.netloc.rpartition("@")[2]).split(",")
    # "prefer-standby" is answered by all of them together.
    wanted = {query.get("target_session_attrs"), keywords.get("target_session_attrs")}
    if len(specified) < 2 or "host" in query or "prefer-standby" in wanted:
        return []
    texts = query.get("port", "").split(",")
    texts = texts if len(texts) == len(specified) else texts[:1] * len(specified)
    found: list[tuple[str, int | None]] = []
    for each, text in zip(specified, texts, strict=True):
        host, own = cast("re.Match[str]", _HOST.match(each)).groups()
        found.append((host.strip("[]"), int(own or text) if own or text else None))
    return found
