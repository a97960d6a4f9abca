"""Whatever a public function is given, it takes it or says in a ConfigurationError what to write instead."""

import importlib
import inspect
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from postroom import ConfigurationError, Consumer, Message, MessageContext, OutgoingMessage, PostroomError, Sender
from postroom.datasources import sqlite_database
from postroom.local import LocalBroker
from postroom.payloads import KeyRing
from postroom.resources import ResourcePool
from postroom.transports.memory import MemoryClient
from support.shop import Tenant

MODULES = [
    "postroom",
    "postroom.console",
    "postroom.datasources",
    "postroom.dead_letters",
    "postroom.fleet",
    "postroom.inspection",
    "postroom.integrations.asgi",
    "postroom.integrations.claim_check",
    "postroom.integrations.fastapi",
    "postroom.integrations.health",
    "postroom.integrations.listening",
    "postroom.integrations.litestar",
    "postroom.integrations.logs",
    "postroom.integrations.otel",
    "postroom.integrations.starlette",
    "postroom.integrations.step_functions",
    "postroom.local",
    "postroom.outbox",
    "postroom.payloads",
    "postroom.resources",
    "postroom.sending",
    "postroom.testing",
    "postroom.transports",
    "postroom.transports.memory",
]
SECRET = "s3cr3t-4711"


def of_four(_one: object, _two: object, _three: object, _four: object) -> None:
    """Take more arguments than postroom passes anywhere."""


WRONG: list[Any] = [
    5,
    -1,
    2.5,
    float("nan"),
    float("inf"),
    True,
    "",
    f"postgresql://app:{SECRET}@db/tenant",
    b"x",
    [],
    ["a"],
    {},
    {"a": 1},
    object(),
    None,
    int,
    of_four,
    ValueError,
]


@asynccontextmanager
async def database(tenant: Tenant) -> AsyncGenerator[str]:
    """Provide a resource."""
    yield tenant.tenant_id


def path_of(tenant: Tenant) -> Path:
    """Return where a tenant's data is."""
    return Path(tenant.tenant_id)


def located(tenant: Tenant) -> str:
    """Return where a tenant's database is."""
    return f"postgresql://db/{tenant.tenant_id}"


def resolved(message: Message) -> Tenant:
    """Return the tenant of a message."""
    return Tenant(message.id)


async def handled(payload: Tenant, ctx: MessageContext[Tenant, None]) -> None:
    """Do nothing."""


def text_of(value: Any) -> str:
    """Return anything as text."""
    return str(value)


KEYS = KeyRing({"k": b"2" * 32})
VALID: dict[str, Any] = {
    "allow": None,
    "attributes": ["a"],
    "bucket": "payloads",
    "client": MemoryClient(LocalBroker()),
    "cls": Tenant,
    "context": Tenant,
    "consumer": Consumer[Any, Any]("orders", context=Tenant),
    "databases": database,
    "directory": "data",
    "dsn": "postgresql://db/tenant",
    "error": ValueError("x"),
    "expire": 60.0,
    "handler": handled,
    "host": "db",
    "keys": KEYS,
    "kind": "created",
    "locate": located,
    "message": OutgoingMessage(body="x"),
    "name": "tenantId",
    "options": None,
    "path": "journal.jsonl",
    "path_of": path_of,
    "payload": {"a": 1},
    "payload_type": Tenant,
    "pool": ResourcePool(database),
    "port": 8080,
    "provider": sqlite_database(path_of),
    "queue": "orders",
    "reason": "x",
    "refresh": 30.0,
    "resolver": resolved,
    "schema": "tenant",
    "secret_id": "orders/db",
    "source": "orders",
    "sources": {Tenant("a"): "postgresql://db/tenant"},
    "store": "valkey://cache:6379",
    "target": "others",
    "tenant": text_of,
    "text": "x",
    "token": "a-token-of-thirty-two-characters",
    "url": "http://127.0.0.1:8081/",
    "user": "app",
    "which": ["orders"],
}
"""What a parameter without a default is called with, by its name."""
ALWAYS: dict[str, dict[str, Any]] = {
    "Scope": {"schema": text_of},
}
VARIADIC = {"ConsoleServer", "HealthServer", "UsageMeter", "console", "health_app"}
"""Take consumers as positional arguments."""
OF_ONE = {
    "classify_open",
    "is_outage",
    "is_suspect",
    "is_unknown_tenant",
    "run",
    "run_virtual",
    "serve",
    "sqlstate_of",
    "tenant_by_group",
    "unwrap_cloudevents",
    "unwrap_eventbridge",
    "unwrap_s3",
    "unwrap_ses",
    "unwrap_sns",
}
"""Called with an error or a message by postroom, or run something."""
GIVEN_BY_POSTROOM = {
    "AsyncpgDatabase",
    "PsycopgConnections",
    "PsycopgDatabase",
    "PsycopgSyncDatabase",
    "SqlalchemyDatabase",
    "SqlalchemySyncDatabase",
    "SqliteDatabase",
    "SqliteSyncTransaction",
    "SqliteTransaction",
    "BatchContext",
    "Broker",
    "BrokerError",
    "Delivered",
    "Finding",
    "Lease",
    "LeaseScope",
    "LocalQueue",
    "MoveFailed",
    "Moved",
    "Outbox",
    "OutboxStatistics",
    "Outcome",
    "Relayed",
    "Report",
    "Inbox",
    "Failure",
    "AttributeResolver",
    "SignedContext",
    "CachedPassword",
    "ConsoleRequest",
    "Scope",
}
"""A user meets them, and does not make them."""


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Return every public class that users make, and every public function that is called before anything runs."""
    seen: set[int] = set()
    for module in map(importlib.import_module, MODULES):
        for name in getattr(module, "__all__", ()):
            found: Any = getattr(module, name)
            if id(found) in seen or not callable(found) or name in OF_ONE | GIVEN_BY_POSTROOM:
                continue
            seen.add(id(found))
            kind = cast("type[Any] | None", found if isinstance(found, type) else None)
            if kind is not None and (
                issubclass(kind, BaseException | Enum | msgspec.Struct | logging.Filter | logging.Formatter)
                or inspect.isabstract(kind)
                or getattr(kind, "_is_protocol", False)
            ):
                continue
            if kind is None and (not inspect.isfunction(found) or inspect.iscoroutinefunction(found)):
                continue
            yield name, found


def wanted(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that can be named."""
    parameters = inspect.signature(function).parameters.values()
    return [each for each in parameters if each.kind not in {each.VAR_POSITIONAL, each.VAR_KEYWORD}]


def called(name: str, function: Callable[..., Any], given: dict[str, Any]) -> None:
    """Call a function with valid arguments, but for those that are given."""
    consumers = [VALID["consumer"]] if name in VARIADIC else []
    first: list[Any] = []
    named: dict[str, Any] = {}
    for each in wanted(function):
        if each.name in given:
            value = given[each.name]
        elif each.default is each.empty:
            value = ALWAYS.get(name, VALID).get(each.name, VALID.get(each.name))
        else:
            continue
        if each.kind is each.POSITIONAL_ONLY:
            first.append(value)
        else:
            named[each.name] = value
    function(*first, *consumers, **named)


CALLS = [pytest.param(name, function, id=name) for name, function in sorted(public(), key=lambda found: found[0])]


@pytest.mark.parametrize(("name", "function"), CALLS)
def test_it_is_taken_or_refused_in_words(name: str, function: Callable[..., Any]) -> None:
    """No TypeError or AttributeError from within; and no text of what was given, which may be a connection string."""
    for parameter in wanted(function):
        for value in WRONG:
            try:
                called(name, function, {parameter.name: value})
            except Exception as error:
                shown = f"{name}({parameter.name}={value!r}): {type(error).__name__}: {error}"
                if not isinstance(error, PostroomError) or SECRET in str(error):
                    pytest.fail(shown)


def test_so_much_is_tried() -> None:
    """The list is not empty by mistake."""
    names = {cast("str", each.values[0]) for each in CALLS}
    assert {"AwsClient", "Consumer", "Fleet", "Polling", "ResourcePool", "Sender", "asyncpg_pool", "Journal"} <= names
    assert len(names) > 70


def consumer_of_several(url: str) -> Consumer[Any, Any]:
    """Make a consumer of several queues."""
    return Consumer(queues=[url, "others"])


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Consumer[Any, Any], id="Consumer"),
        pytest.param(consumer_of_several, id="queues"),
        pytest.param(Sender[Any], id="Sender"),
    ],
)
def test_a_url_with_a_password_is_refused_without_it(make: Callable[[str], object]) -> None:
    """SQS asks for no password, and every log line and metric would show it."""
    with pytest.raises(ConfigurationError, match="without user and password") as caught:
        make(f"http://app:{SECRET}@localhost:4566/000000000000/orders")
    assert SECRET not in str(caught.value)
    assert "http://app:***@localhost:4566/" in str(caught.value)
