"""Each wrong argument is refused where it is given, in words that say what to write instead."""

import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Generic, TypeVar

import pytest

from postroom import (
    AckMode,
    AwsClient,
    ConfigurationError,
    Consumer,
    DecodeError,
    Drop,
    Failure,
    Message,
    MessageContext,
    OnInvalid,
    OutgoingMessage,
    Reject,
    ResourcePool,
    Retry,
    RetryPolicy,
    Sender,
    Settlement,
    Signing,
    ValidationError,
    attribute,
    run,
)
from postroom.datasources import (
    DataSource,
    Registry,
    Scope,
    asyncpg_inbox,
    asyncpg_pool,
    psycopg_connections,
    psycopg_inbox,
    psycopg_pool,
    psycopg_sync_inbox,
    psycopg_sync_pool,
    sqlalchemy_engine,
    sqlalchemy_inbox,
    sqlalchemy_sync_engine,
    sqlalchemy_sync_inbox,
    sqlite_database,
    tenant_file,
)
from postroom.dead_letters import DeadLetter, LetterFilter
from postroom.dead_letters.reading import read
from postroom.local import LocalBroker
from postroom.payloads import (
    KeyRing,
    SnsEnvelope,
    context_from_attributes,
    cross_check_group,
    decoder_for,
    sign,
    signed,
)
from postroom.testing import Delivered, deliver, run_virtual
from postroom.testing.postgres import PostgresServer
from postroom.testing.valkey import ValkeyServer
from postroom.transports.memory import MemoryClient
from support.shop import Order, Tenant

SECRET = "s3cr3t-4711"
DSN = f"postgresql://app:{SECRET}@db/tenant"


@asynccontextmanager
async def database(tenant: Tenant) -> AsyncIterator[str]:
    """Provide a resource."""
    yield tenant.tenant_id


@asynccontextmanager
async def unasked() -> AsyncIterator[str]:
    """Provide a resource without a context."""
    yield ""


async def opened(tenant: Tenant) -> str:
    """Return a resource."""
    return tenant.tenant_id


def files(tenant: Tenant) -> str:
    """Return a path."""
    return tenant.tenant_id


async def later(message: Any) -> Any:
    """Unwrap in vain: it is not awaited."""


def tenant_of(message: Any) -> Tenant:
    """Resolve a context."""
    return Tenant(message.attributes["tenant_id"])


T = TypeVar("T")


@dataclass(frozen=True)
class Pair(Generic[T]):
    """A context of any type."""

    tenant_id: str
    other: T


async def swapped(ctx: MessageContext[Any, Any], order: Order) -> None:
    """Have the parameters in the wrong order."""


async def swapped_text(ctx: "MessageContext[Any, Any]", order: "Order") -> None:
    """Have them as text."""


class Service:
    """An object with a handler."""

    async def swapped(self, ctx: MessageContext[Any, Any], order: Order) -> None:
        """Have the parameters in the wrong order."""


async def alone(order: Order) -> None:
    """Want no context."""


KEYS = KeyRing({"k": b"2" * 32})
TO_SIGN = OutgoingMessage(body="x")


def consumer(**options: Any) -> Consumer[Any, Any]:
    """Make a consumer."""
    return Consumer("orders", **options)


def handle(function: Any, **options: Any) -> Any:
    """Register a handler."""
    return consumer(**options).handler(function)


def sender(**options: Any) -> Sender[Any]:
    """Make a sender."""
    return Sender("orders", **options)


def with_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate as dependency injection does: an argument is added."""

    @wraps(function)
    def inner(tenant: Tenant) -> Any:
        return function("settings", tenant)

    return inner


def of_settings(settings: str, tenant: Tenant) -> AsyncIterator[str]:
    """Open resources with an argument that a decorator adds."""
    raise NotImplementedError


def key_of_settings(settings: str, tenant: Tenant) -> str:
    """Name a tenant with an argument that a decorator adds."""
    raise NotImplementedError


def pool(**options: Any) -> ResourcePool[Any, Any]:
    """Make a pool."""
    return ResourcePool(database, **options)


def pool_of(**options: Any) -> ResourcePool[Any, Any]:
    """Make a pool of a provider."""
    return sqlite_database(files).pool(**options)


INBOXES: list[partial[Any]] = [
    partial(asyncpg_inbox, asyncpg_pool(files)),
    partial(psycopg_inbox, psycopg_pool(files)),
    partial(psycopg_sync_inbox, psycopg_sync_pool(files)),
    partial(sqlalchemy_inbox, sqlalchemy_engine(files)),
    partial(sqlalchemy_sync_inbox, sqlalchemy_sync_engine(files)),
]
CASES: list[tuple[Callable[[], Any], str]] = [
    (lambda: handle(swapped), "swapped has its parameters swapped: the payload comes first"),
    (lambda: handle(swapped), "write `swapped(order, ctx)`"),
    (lambda: handle(swapped_text), "write `swapped_text(order, ctx)`"),
    (lambda: handle(Service().swapped), "write `Service.swapped(order, ctx)`"),
    (lambda: handle(alone), "too many positional arguments; write `def alone(payload, ctx)`"),
    (lambda: handle(lambda payload, ctx: None, payload=Order("1")), "a payload type is a class: write payload=Order"),
    (lambda: consumer(ack="sometimes"), "write ack=AckMode.ON_SUCCESS, or one of on_success, always, manual"),
    (lambda: consumer(ack="alway"), "write ack=AckMode.ALWAYS"),
    (lambda: consumer(invalid="acknowledge"), "write invalid=OnInvalid.REJECT, or one of fail, drop, reject"),
    (lambda: consumer(on_error=3), "takes a function (Failure), which may raise Retry, Reject or Drop; got int"),
    (lambda: consumer(on_error=Retry), "got the class Retry itself"),
    (lambda: consumer(middleware=alone), "takes a list: write middleware=[layer]; got the function alone"),
    (lambda: consumer(observers=print), "takes a list: write observers=[observer]; got the function print"),
    (lambda: consumer(context="tenantId"), "write context=lambda message: message.attributes['tenantId']"),
    (lambda: consumer(context=Pair[str]), "derive a class from it, as `class Context(Pair[str]): ...`"),
    (lambda: sender(context=Pair[str]), "derive a class from it"),
    (lambda: consumer(context=Tenant("a")), "pass the class, context=Tenant"),
    (lambda: consumer(context=Tenant, resources=database(Tenant("a"))), "remove the ()"),
    (lambda: consumer(context=Tenant, resources=DSN), "write resources=asyncpg_pool(Registry({...}))"),
    (lambda: consumer(context=Tenant, resources={}), "got dict: a provider is an async context manager function"),
    (lambda: consumer(concurrency=10), "write concurrency=Concurrency(total=10); got 10"),
    (lambda: consumer(retry=3), "write retry=RetryPolicy(attempts=5); got 3"),
    (lambda: consumer(shutdown=30), "write shutdown=Shutdown(within=25); got 30"),
    (lambda: consumer(client=object()), "write client=AwsClient(region=..., endpoint_url=...)"),
    (lambda: consumer(client=MemoryClient), "got the class MemoryClient"),
    (lambda: consumer(client=LocalBroker()), "or client=MemoryClient(broker)"),
    (lambda: consumer().tenants.limit("a"), "write limit(tenant, concurrency=2) or limit(tenant, rate=10)"),
    (lambda: consumer().tenants.divert("a", queue=" "), "takes the name, URL or ARN of a queue"),
    (lambda: consumer().tenants.divert("a", queue="https://u:p@sqs/1/q"), "takes a URL without user and password"),
    (lambda: consumer().tenants.limit("a", rate="3"), "takes a number above 0"),  # type: ignore[arg-type]
    (lambda: consumer().tenants.pause(["a"]), "a tenant is named by its context, or the pool's key for it"),  # type: ignore[arg-type]
    (lambda: run("orders"), "write run(orders), where orders = Consumer(...); got str"),  # type: ignore[arg-type]
    (lambda: run(Consumer), "takes an instance: write run(orders)"),  # type: ignore[arg-type]
    (lambda: Retry(5), "the first argument is the reason; write Retry(delay=5)"),  # type: ignore[arg-type]
    (lambda: Retry("x", delay="5"), "takes a finite number of seconds, or None for the backoff; got '5'"),  # type: ignore[arg-type]
    (lambda: pool(limits=5), "write limits=PoolLimits(budget=100); got 5"),
    (lambda: pool(timeouts=5), "write timeouts=PoolTimeouts(open=10); got 5"),
    (lambda: pool(backoff=5), "write backoff=OpenBackoff(base=1); got 5"),
    (lambda: pool(name=5), 'write name="databases"; got 5'),
    (lambda: pool(jitter=5), "write jitter=random.Random(7); got 5"),
    (lambda: pool(observers=print), "write observers=[observer]"),
    (lambda: pool(observers=[5]), "ResourcePool(observers=...) takes a function (Event); got 5"),
    *[
        (lambda name=name: pool(**{name: "tenant_id"}), f"ResourcePool({name}=...) takes a function (")
        for name in ("key", "host", "check", "classify", "outage")
    ],
    (lambda: ResourcePool(lambda a, b: opened(a)), "ResourcePool(provider) cannot be called as (context)"),  # type: ignore[arg-type]
    (lambda: ResourcePool(unasked), "ResourcePool(provider) cannot be called as (context)"),  # type: ignore[arg-type]
    (lambda: ResourcePool(opened, cleanup=5), "ResourcePool(cleanup=...) takes a function (resources); got 5"),  # type: ignore[arg-type]
    (lambda: ResourcePool(opened, cleanup=lambda: None), "ResourcePool(cleanup=...) cannot be called as (resources)"),  # type: ignore[arg-type, misc]
    (lambda: pool(key=lambda a, b, *, c=1: 1), "> takes (a, b, *, c=...)"),
    (lambda: pool(key=lambda: 1), "ResourcePool(key=...) cannot be called as (context) -> key, by position"),
    (lambda: sender(group=lambda: ""), "(context) -> message group, by position: the function"),
    (lambda: sender(group=lambda a, b, c=SECRET: a), "> takes (a, b, c=...)"),
    (lambda: sender(group="acme"), "Sender(group=...) takes a function (context) -> message group; got str"),
    *[
        (partial(make, name), f"that of a FIFO queue ends in .fifo; got {name!r}")
        for make in (Consumer, Sender)
        for name in (
            "a b",
            " orders",
            "orders.v2",
            "x" * 81,
            "localhost:4566/orders",
            "http://localhost:4566/",
            "arn:aws:sqs:us-east-1:000000000000:a b",
            "http://localhost:4566/000000000000/a b",
        )
    ],
    (lambda: pool_of(size=3), "pool() has no argument 'size': connections per tenant are max_size= of the provider"),
    (lambda: pool_of(budget=9), "pool() has no argument 'budget': write limits=PoolLimits(budget=...)"),
    (lambda: pool_of(colour=3), "pool() has no argument 'colour': it has backoff, check, classify"),
    (lambda: pool_of(limits=3), "write limits=PoolLimits(budget=100); got 3"),
    (lambda: Registry([DSN]), 'write Registry({Tenant("acme"): "postgresql://..."})'),  # type: ignore[arg-type]
    *[
        (
            lambda provider=provider: provider(DSN),
            f"{name}(locate) takes a function (context) -> DSN, such as Registry({{",
        )
        for name, provider in {
            "asyncpg_pool": asyncpg_pool,
            "psycopg_pool": psycopg_pool,
            "psycopg_connections": psycopg_connections,
            "sqlalchemy_engine": sqlalchemy_engine,
        }.items()
    ],
    (lambda: asyncpg_pool(files, max_size=0), "asyncpg_pool(max_size=...) takes a whole number from 1 up; got 0"),
    (lambda: sqlite_database("/var/lib/orders"), "sqlite_database(path_of) takes a function"),  # type: ignore[arg-type]
    (lambda: sqlite_database(files, synchronous="fast"), "synchronous= takes OFF, NORMAL, FULL or EXTRA"),
    (lambda: AwsClient(region=3), 'write region="eu-west-1"; got 3'),  # type: ignore[arg-type]
    (lambda: AwsClient(endpoint_url="localhost:4566"), "begins with http:// or https://"),
    (lambda: MemoryClient("x"), "write MemoryClient(LocalBroker()); got str"),  # type: ignore[arg-type]
    (lambda: decoder_for(Order, unwrap=later), "decoder_for(unwrap=...): the function later is async"),  # type: ignore[arg-type]
    (lambda: context_from_attributes(Tenant, unwrap=later), "later is async"),  # type: ignore[arg-type]
    (lambda: decoder_for(Order, unwrap=3), "decoder_for(unwrap=...) takes a function"),  # type: ignore[arg-type]
    (lambda: context_from_attributes(Tenant, unwrap=3), "takes a function (Message)"),  # type: ignore[arg-type]
    (lambda: attribute(3), 'such as attribute("tenantId"); got 3'),  # type: ignore[arg-type]
    (lambda: attribute("a", choices="eu"), "write choices=['eu']"),
    (lambda: attribute("a", pattern=3), "a regular expression as text; got 3"),  # type: ignore[arg-type]
    (lambda: KeyRing(b"x" * 32), "write KeyRing({'2026-11': secret})"),  # type: ignore[arg-type]
    (lambda: KeyRing({"k": SECRET * 4}), "text is no key: bytes.fromhex(...)"),  # type: ignore[dict-item]
    (lambda: sign("x", keys=KEYS, queue="q", attributes=["a"]), "write OutgoingMessage("),  # type: ignore[arg-type]
    (lambda: sign(TO_SIGN, keys=b"x", queue="q", attributes=["a"]), "write keys=KeyRing("),  # type: ignore[arg-type]
    (lambda: sign(TO_SIGN, keys=KEYS, queue="", attributes=["a"]), "takes the name of the queue; got ''"),
    (lambda: sign(TO_SIGN, keys=KEYS, queue="q", attributes=["a"], lifetime="5"), "takes seconds"),  # type: ignore[arg-type]
    (lambda: signed(3, keys=KEYS, queue="q", attributes=["a"]), "takes a function (Message) -> context"),  # type: ignore[arg-type]
    (lambda: signed(Tenant, keys=KEYS, queue="q"), "write signed(context_from_attributes(Tenant), ...)"),  # type: ignore[arg-type]
    *[
        (lambda leeway=leeway: signed(tenant_of, keys=KEYS, queue="q", attributes=["a"], leeway=leeway), "leeway=...")
        for leeway in (float("nan"), float("inf"), -1, "60", None)
    ],
    *[
        (lambda queue=queue: signed(tenant_of, keys=KEYS, queue=queue, attributes=["a"]), "takes the name of the queue")
        for queue in ("https://sqs.eu-west-1.amazonaws.com/123456789012/q", "arn:aws:sqs:eu-west-1:123456789012:q", " ")
    ],
    (lambda: signed(tenant_of, keys=KEYS, queue="q", attributes=[5]), "write attributes=['tenantId', 'region']; got"),  # type: ignore[list-item]
    (lambda: signed(tenant_of, keys=KEYS, queue="q", attributes=["a"], group="no"), "takes True or False"),  # type: ignore[arg-type]
    *[
        (lambda name=name: pool(**{name: opened}), f"ResourcePool({name}=...): the function opened is async")
        for name in ("key", "host", "weight", "classify", "outage")
    ],
    *[
        (lambda make=make, wrong=wrong: make(**wrong), f"{make.func.__name__}({next(iter(wrong))}=...) takes")
        for make in INBOXES
        for wrong in ({"wait": "60"}, {"wait": None}, {"create": "no"}, {"scope": Scope(schema="acme")})
    ],
    *[
        (lambda provider=provider, name=name: provider(files, options={name: 9}), f"itself; write {provider.__name__}(")
        for provider, name in (
            (asyncpg_pool, "max_size"),
            (asyncpg_pool, "max_inactive_connection_lifetime"),
            (psycopg_pool, "max_size"),
            (psycopg_connections, "max_size"),
            (psycopg_sync_pool, "max_idle"),
            (sqlalchemy_engine, "pool_size"),
            (sqlalchemy_sync_engine, "max_overflow"),
        )
    ],
    (lambda: asyncpg_pool(files, options={"min_size": 1}), "{'min_size': ...}): the provider sets that itself"),
    (lambda: sqlalchemy_engine(files, options={"async_creator": opened}), "{'async_creator': ...}): the provider sets"),
    (lambda: sqlalchemy_sync_engine(files, options={"creator": opened}), "{'creator': ...}): the provider sets that"),
    (lambda: psycopg_sync_pool(files, configure=opened), "configure=...): the function opened is async"),  # type: ignore[arg-type]
    (lambda: Scope(schema=5), 'Scope takes str: write Scope(settings={"app.tenant": "acme"})'),  # type: ignore[arg-type]
    (lambda: Scope(settings={"app.tenant": 5}), 'or Scope(schema="acme"), in texts; got 5'),  # type: ignore[dict-item]
    (lambda: Scope(settings="app.tenant"), 'takes Mapping: write Scope(settings={"app.tenant": "acme"})'),  # type: ignore[arg-type]
    (lambda: Scope(settings={"app.tenant": "a\0b"}), "has a NUL character in it"),
    (lambda: DataSource(None), 'write DataSource("postgresql://app@db/acme"); got None'),  # type: ignore[arg-type]
    (lambda: DataSource("x", password=SECRET), "DataSource(password=...) takes a function () -> text; got str"),  # type: ignore[arg-type]
    (lambda: DataSource("x", user=5), 'write user="acme"; got 5'),  # type: ignore[arg-type]
    (lambda: tenant_file("x", 5), "write tenant_file(directory, str(tenant_id)); got 5"),  # type: ignore[arg-type]
    (lambda: PostgresServer(binaries="/usr/bin"), 'binaries=Path("/usr/lib/postgresql/17/bin"); got str'),  # type: ignore[arg-type]
    (lambda: PostgresServer(directory="/data"), 'takes a Path: write directory=Path("/var/tmp"); got str'),  # type: ignore[arg-type]
    (lambda: PostgresServer(settings={"max_connections": 20}), 'write settings={"max_connections": "20"}; got dict'),  # type: ignore[dict-item]
    (lambda: PostgresServer(settings="fsync"), 'write settings={"max_connections": "20"}; got str'),  # type: ignore[arg-type]
    (lambda: PostgresServer(settings={"a b": "on"}), 'write settings={"max_connections": "20"}; got '),
    (lambda: PostgresServer(timeout=math.nan), "PostgresServer(timeout=...) takes seconds, at least 0.001; got nan"),
    (lambda: PostgresServer(timeout=0), "PostgresServer(timeout=...) takes seconds, at least 0.001; got 0"),
    (lambda: ValkeyServer(program="valkey"), 'takes a Path: write program=Path("/usr/bin/valkey-server"); got str'),  # type: ignore[arg-type]
    (lambda: ValkeyServer(durable="no"), "ValkeyServer(durable=...) takes True or False; got str"),  # type: ignore[arg-type]
    (lambda: ValkeyServer(timeout="5"), "ValkeyServer(timeout=...) takes seconds, at least 0.001; got '5'"),  # type: ignore[arg-type]
    (lambda: LetterFilter(ids=[]), "chooses no letter; leave ids= out to choose all"),
    (lambda: SnsEnvelope(topics="arn:x"), "write topics=['arn:aws:sns:eu-west-1:123456789012:orders']; got str"),
    (lambda: cross_check_group(tenant_of, tenant="x"), "takes a function (context) -> message group; got str"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "text"), CASES, ids=[re.sub(r"\W+", "-", text)[:50] for _, text in CASES])
def test_a_wrong_argument_is_refused_with_what_to_write(make: Callable[[], Any], text: str) -> None:
    """It is a ConfigurationError, and no connection string and no key is quoted."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert text in str(caught.value)
    assert SECRET not in str(caught.value)


def test_what_looks_unusual_and_works_is_accepted() -> None:
    """A method, a partial decorator, a provider that returns, observers from a generator, an error as the reason."""
    assert pool(key=lambda tenant, more=1: tenant, observers=(each for each in [print])).statistics().live == 0
    for made in (with_settings(of_settings), asynccontextmanager(with_settings(of_settings))):
        assert ResourcePool(made, cleanup=None, key=with_settings(key_of_settings)).statistics().live == 0
    assert consumer(context=Tenant, resources=opened, cleanup=None).queue == "orders"
    assert consumer(ack="always").settings.ack is AckMode.ALWAYS
    assert (Reject(ValueError("no price")).reason, Drop(5).reason) == ("no price", "5")  # type: ignore[arg-type]
    assert Retry(delay=2.5).delay == 2.5


def test_a_list_may_be_a_generator() -> None:
    """It is read once, where it is given, and counts each time."""
    topic = "arn:aws:sns:eu-west-1:123456789012:orders"
    body = f'{{"Type": "Notification", "Message": "inner", "TopicArn": "{topic}"}}'
    letter: DeadLetter = read(Message(id="1", body=body), None)

    def one(name: str) -> Any:
        return (each for each in [name])

    signing = Signing(keys=KEYS, attributes=one("a"))
    chosen = LetterFilter(ids=one("1"))
    envelope = SnsEnvelope(topics=one(topic))
    for _ in range(2):
        assert list(signing.attributes or ()) == ["a"]
        assert chosen.matches(letter, now=0.0)
        assert envelope(letter.message).body == "inner"
    assert signed(tenant_of, keys=KEYS, queue="q", attributes=one("a")).names == ("a",)


def invalid(body: str, **options: Any) -> Delivered:
    """Deliver a body to a consumer of orders."""
    orders = consumer(retry=RetryPolicy(base=3, jitter=0), **options)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Any, Any]) -> None: ...

    return run_virtual(deliver(orders, body))


@pytest.mark.parametrize(
    ("mode", "settlement"),
    [
        (OnInvalid.FAIL, Settlement.RETRIED),
        ("drop", Settlement.ACKED),
        (OnInvalid.REJECT, Settlement.REJECTED),
    ],
)
def test_a_body_that_cannot_be_used_is_dealt_with_as_the_consumer_says(mode: Any, settlement: Settlement) -> None:
    """One of another shape, and one that is no JSON; the reason of a dead letter says where, and quotes nothing."""
    shape = invalid(f'{{"order_id": ["{SECRET}"]}}', invalid=mode)
    assert (shape.settlement, shape.handled) == (settlement, False)
    assert isinstance(shape.error, ValidationError)
    none = invalid(SECRET, invalid=mode)
    assert (none.settlement, type(none.error)) == (settlement, DecodeError)
    if settlement is Settlement.REJECTED:
        assert shape.reason is not None
        assert "$.order_id" in shape.reason
        assert SECRET not in shape.reason


def test_only_bodies_are_invalid() -> None:
    """What the handler raises is a failure, whatever ``invalid=`` says."""
    orders = consumer(invalid=OnInvalid.DROP)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Any, Any]) -> None:
        raise ValueError("of the handler")

    assert run_virtual(deliver(orders, Order("1"))).settlement is Settlement.RETRIED


def test_on_error_has_the_last_word_on_an_invalid_body() -> None:
    """It is asked first."""

    def on_error(failure: Failure) -> None:
        raise Retry(delay=9)

    found = invalid("{}", invalid=OnInvalid.REJECT, on_error=on_error)
    assert (found.settlement, found.delay) == (Settlement.RETRIED, 9.0)


def test_without_a_dead_letter_queue_an_invalid_body_has_failed() -> None:
    """It cannot be rejected to nowhere."""
    orders = consumer(invalid=OnInvalid.REJECT)

    @orders.handler
    async def record(order: Order, ctx: MessageContext[Any, Any]) -> None: ...

    assert run_virtual(deliver(orders, "{}", max_receives=None)).settlement is Settlement.RETRIED
