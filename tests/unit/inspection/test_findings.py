"""What an inspection says of a consumer's arguments, its permissions and its connections."""

import functools
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from postroom import (
    AccessDenied,
    BatchContext,
    Concurrency,
    ConfigurationError,
    Consumer,
    MessageContext,
    PoolLimits,
    ResourcePool,
    RetryPolicy,
    Router,
    Shutdown,
    Visibility,
    by_attribute,
)
from postroom.consumer.callables import name_of
from postroom.datasources import sqlite_database
from postroom.inspection import Deployment, Finding, Level, Report, inspect_consumer
from postroom.local import LocalBroker
from postroom.payloads import decoder_for
from postroom.transports import EntryFailure, RedrivePolicy
from postroom.transports.memory import MemoryClient
from postroom.transports.protocol import QueueInfo
from support.scripted import OneQueue, ScriptedQueue
from support.shop import Tenant


@dataclass(frozen=True)
class Order:
    """A payload."""

    number: int


@asynccontextmanager
async def database(tenant: Tenant) -> AsyncGenerator[str]:
    """Open nothing."""
    yield f"the database of {tenant.tenant_id}"


def consumer(queue: str = "orders", **options: Any) -> Consumer[Any, Any]:
    """Make a consumer with a handler that fits."""
    options.setdefault("concurrency", Concurrency(handler_timeout=10))
    made: Consumer[Any, Any] = Consumer(queue, context=Tenant, **options)

    @made.handler
    async def handle(order: Order, ctx: MessageContext[Tenant, Any]) -> None: ...

    return made


def of(findings: Sequence[Finding], topic: str) -> list[tuple[str, str]]:
    """Return level and text of the findings about a topic."""
    return [(str(finding.level), finding.found) for finding in findings if finding.topic == topic]


async def offline(of_consumer: Consumer[Any, Any], **deployment: Any) -> Report:
    """Inspect without a network."""
    return await inspect_consumer(of_consumer, Deployment(**deployment), offline=True)


async def test_a_good_consumer_has_nothing_to_change() -> None:
    """Every finding says what is the case, with its figures."""
    report = await offline(consumer())
    assert {finding.level for finding in report.findings} == {Level.OK}
    assert not report.failed
    assert of(report.findings, "payload") == [("ok", "validated as Order")]
    assert of(report.findings, "context") == [("ok", "Tenant, as the handler expects")]
    assert of(report.findings, "stop") == [("ok", "up to 25 s of the 30 s of grace")]


@pytest.mark.parametrize(
    ("payload", "found"), [(Order, "validated as Order"), (decoder_for(Order), "decoded by JsonDecoder")]
)
@pytest.mark.parametrize("routed", [False, True])
async def test_what_is_said_of_a_payload_counts_and_not_the_annotation(payload: Any, found: str, routed: bool) -> None:
    """``payload=`` is there for annotations that exist for type checkers only."""

    async def handle(order: "Missing", ctx: Any) -> None: ...  # type: ignore[name-defined] # noqa: F821

    router: Router[Any, Any] = Router(by_attribute("kind"))
    router.handler("order", payload=payload)(handle)
    made = Consumer("orders") if routed else Consumer("orders", payload=payload)
    made.handler(router if routed else handle)
    assert of((await offline(made)).findings, "payload") == [("ok", found)]


async def test_a_consumer_without_a_handler_is_an_error() -> None:
    """The rest is looked at all the same."""
    report = await offline(Consumer("orders"))
    assert of(report.findings, "handler") == [("error", "no handler is registered")]
    assert of(report.findings, "stop")


async def test_a_handler_that_expects_another_context_is_an_error() -> None:
    """Its annotation is compared with what context= makes: the class, or what the function says it returns."""

    def resolve(message: object) -> Tenant:
        raise NotImplementedError

    for context in (Tenant, resolve):
        made: Consumer[Any, Any] = Consumer("orders", context=context)

        @made.handler
        async def handle(order: Order, ctx: MessageContext[str, None]) -> None: ...

        report = await offline(made)
        assert of(report.findings, "context") == [("error", "the handler expects str, context= makes Tenant")]


async def test_a_handler_that_expects_any_context_is_not_judged() -> None:
    """``Any`` is a class since Python 3.11."""
    made: Consumer[Any, Any] = Consumer("orders", context=Tenant)

    @made.handler
    async def handle(order: Order, ctx: MessageContext[Any, Any]) -> None: ...

    assert [level for level, _ in of((await offline(made)).findings, "context")] == ["ok"]


async def test_a_subclass_is_what_its_base_expects() -> None:
    """A handler may ask for less than the context is."""

    @dataclass(frozen=True)
    class Special(Tenant):
        plan: str = "gold"

    made: Consumer[Any, Any] = Consumer("orders", context=Special)

    @made.handler
    async def handle(order: Order, ctx: MessageContext[Tenant, None]) -> None: ...

    assert of((await offline(made)).findings, "context") == [("ok", "Special, as the handler expects")]


class Database:
    """A tenant's resources."""


class Reads(Protocol):
    """What a handler may ask of its resources."""

    def read(self) -> str:
        """Read."""
        ...


@asynccontextmanager
async def opens_database(tenant: Tenant) -> AsyncGenerator[Database]:
    """Open what it says that it opens."""
    yield Database()


async def returns_database(tenant: Tenant) -> Database:
    """Return it, as an async function."""
    return Database()


class OpensDatabase:
    """A provider that is an object."""

    def __call__(self, tenant: Tenant) -> AbstractAsyncContextManager[Database]:
        """Open it."""
        return opens_database(tenant)


@asynccontextmanager
async def says_nothing(tenant):  # type: ignore[no-untyped-def]
    """Open something that no annotation tells."""
    yield Database()


PROVIDERS: dict[str, Any] = {
    "context manager": opens_database,
    "async function": returns_database,
    "object": OpensDatabase(),
    "partial": functools.partial(opens_database),
    "pool": ResourcePool(opens_database),
}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_handler_that_expects_other_resources_is_an_error(provider: str) -> None:
    """Its annotation is compared with what the provider says that it opens."""
    made = Consumer("orders", context=Tenant, resources=PROVIDERS[provider])

    @made.handler
    async def handle(order: Order, ctx: MessageContext[Tenant, Path]) -> None: ...

    findings = (await offline(made)).findings
    assert of(findings, "resources") == [("error", "the handler expects Path, resources= opens Database")]


@pytest.mark.parametrize("expected", [Database, object, Any, Reads, Database | None])
async def test_resources_that_may_be_what_the_handler_expects_are_not_found(expected: Any) -> None:
    """The same class, a protocol, a union, and what is not said."""
    made = Consumer("orders", context=Tenant, resources=opens_database)

    async def handle(order: Order, ctx: Any) -> None: ...

    handle.__annotations__["ctx"] = MessageContext[Tenant, expected]
    made.handler(handle)
    assert of((await offline(made)).findings, "resources") == []


async def test_a_handler_that_expects_resources_of_a_consumer_without_is_an_error() -> None:
    """It would find None."""
    made: Consumer[Any, Any] = Consumer("orders", context=Tenant)

    @made.handler
    async def handle(order: Order, ctx: MessageContext[Tenant, Database]) -> None: ...

    text = "the handler expects Database, and there is no resources=: ctx.resources is None"
    assert of((await offline(made)).findings, "resources") == [("error", text)]


async def test_resources_that_open_as_something_else_are_an_error() -> None:
    """Where no annotation tells, what a sample message's tenant gets does."""
    client = MemoryClient(LocalBroker())
    made: Consumer[Any, Any] = Consumer("orders", context=Tenant, resources=says_nothing, client=client)

    @made.handler
    async def handle(order: Order, ctx: MessageContext[Tenant, Path]) -> None: ...

    report = await inspect_consumer(made, Deployment(attributes={"tenantId": "a"}, max_connections=1000))
    assert of(report.findings, "resources")[1:] == [
        ("error", f"{name_of(handle)} expects Path, and resources= opened Database")
    ]


async def test_a_def_handler_with_fewer_threads_than_slots_is_a_warning() -> None:
    """Only as many as there are threads run."""
    made: Consumer[Any, Any] = Consumer("orders", concurrency=Concurrency(total=64, threads=8))

    @made.handler
    def handle(order: Order, ctx: MessageContext) -> None: ...

    [(level, text)] = of((await offline(made)).findings, "handler")
    assert level == "warning"
    assert "8 of the 64 slots" in text


@pytest.mark.parametrize(
    ("visibility", "limit", "level", "text"),
    [
        (Visibility(), 10, "ok", "60 s, extended up to 43200 s; handlers may run for 10 s"),
        (Visibility(), None, "warning", "handlers have no limit"),
        (Visibility(heartbeat=False), None, "error", "runs for more than 60 s runs a second time"),
        (Visibility(timeout=30, heartbeat=False), 30, "error", "may run for 30 s, and without heartbeat"),
        (Visibility(timeout=30, heartbeat=False), 29, "ok", "not extended"),
        (Visibility(max_extension=100), 101, "error", "may run for 101 s, and a message is extended for 100 s"),
        (lambda call: Visibility(), 10, "unknown", "chosen for each message"),
    ],
)
async def test_visibility_is_held_against_the_handler_timeout(
    visibility: Any, limit: float | None, level: str, text: str
) -> None:
    """A message must be ours for as long as its handler may run."""
    made = consumer(visibility=visibility, concurrency=Concurrency(handler_timeout=limit))
    [(found, said)] = of((await offline(made)).findings, "visibility")
    assert found == level
    assert text in said


@pytest.mark.parametrize(
    ("options", "grace", "levels"),
    [
        ({}, 30, ["ok"]),
        ({}, 26, ["warning"]),
        ({}, 20, ["error"]),
        ({"shutdown": Shutdown(within=100)}, 30, ["error"]),
        ({"shutdown": Shutdown(within=100)}, 120, ["ok"]),
        ({"concurrency": Concurrency(handler_timeout=14)}, 30, ["ok", "warning"]),
        ({"concurrency": Concurrency(handler_timeout=13)}, 30, ["ok"]),
    ],
)
async def test_a_stop_is_held_against_the_grace(options: dict[str, Any], grace: float, levels: list[str]) -> None:
    """Its stages, the process's own end, and handlers that may run for longer than a stop waits."""
    report = await offline(consumer(**options), grace=grace)
    assert [level for level, _ in of(report.findings, "stop")] == levels


async def test_what_a_stop_advises_is_enough() -> None:
    """Following the advice leaves nothing to change."""
    [found] = [each for each in (await offline(consumer(), grace=20)).findings if each.topic == "stop"]
    assert found.advice.startswith("say Shutdown(within=15)")
    report = await offline(consumer(shutdown=Shutdown(within=15)), grace=20)
    assert not report.failed


@pytest.mark.parametrize(
    ("limits", "replicas", "most", "level", "text"),
    [
        (PoolLimits(budget=20), 4, 80, "ok", "4 x 20 = 80 connections to one server, of 80"),
        (PoolLimits(budget=20), 5, 80, "error", "5 x 20 = 100 connections to one server, and it takes 80"),
        (PoolLimits(budget=100, per_host=10), 5, 80, "ok", "5 x 10 = 50"),
        (PoolLimits(budget=100, per_host={"db1": 5}), 5, 80, "warning", "unless PoolLimits(per_host=...) says less"),
        (PoolLimits(budget=20), 5, None, "unknown", "what it takes is not known"),
    ],
)
async def test_the_budget_times_replicas_is_held_against_the_server(
    limits: PoolLimits, replicas: int, most: int | None, level: str, text: str
) -> None:
    """Each replica has a budget of its own; where hosts have one, that is what a server sees."""
    pool = ResourcePool(database, limits=limits, weight=1, host=lambda tenant: "db1")
    report = await offline(consumer(resources=pool), replicas=replicas, max_connections=most)
    [(found, said)] = of(report.findings, "connections")
    assert found == level
    assert text in said


async def test_a_provider_that_does_not_say_what_it_opens_is_a_warning() -> None:
    """Each of its resources counts as one connection."""
    report = await offline(consumer(resources=database), max_connections=1000)
    assert [level for level, _ in of(report.findings, "connections")] == ["warning", "ok"]


@pytest.mark.parametrize("wrapped", [lambda each: each, lambda each: each.pool(), lambda each: each.map(str)])
async def test_files_need_no_connections(wrapped: Callable[[Any], Any]) -> None:
    """A SQLite file per tenant has no server that could take too few of them."""
    files = sqlite_database(lambda tenant: Path(f"{tenant}.sqlite3"))
    report = await offline(consumer(resources=wrapped(files)), replicas=50)
    assert of(report.findings, "connections") == [("ok", "the resources are files: no server has to take them")]


async def test_a_resource_heavier_than_the_budget_is_an_error() -> None:
    """It is never opened."""

    class Provider:
        weight = 200

        def __call__(self, tenant: Tenant) -> Any:
            return database(tenant)

    report = await offline(consumer(resources=Provider()), max_connections=1000)
    assert of(report.findings, "connections")[0][0] == "error"


class Encrypted(ScriptedQueue):
    """A queue with a customer key, and messages that wait."""

    @property
    def info(self) -> QueueInfo:
        """What the queue says of itself."""
        arn = "arn:aws:sqs:eu-west-1:123456789012:orders"
        attributes = {"ApproximateNumberOfMessages": "3", "KmsMasterKeyId": self.key}
        return QueueInfo(name="orders", url="https://x/orders", arn=arn, attributes=attributes)

    key = "1234"


async def test_a_permission_that_is_missing_is_an_error_with_the_action_and_no_message_is_touched() -> None:
    """What can be tried is tried; a queue with messages is not asked for one, which would cost a receive."""
    queue = Encrypted()

    async def deny(handles: Sequence[str]) -> list[EntryFailure]:
        raise AccessDenied("DeleteMessageBatch: AccessDenied", operation="DeleteMessageBatch", code="AccessDenied")

    queue.on_delete = deny
    report = await inspect_consumer(consumer(client=OneQueue(queue)))
    levels = [level for level, _ in of(report.findings, "permissions")]
    assert levels == ["error", "ok", "unknown"]
    assert report.failed
    [advice] = [each.advice for each in report.findings if each.level is Level.ERROR]
    assert advice == "allow sqs:DeleteMessage on arn:aws:sqs:eu-west-1:123456789012:orders"
    assert not queue.receives


@pytest.mark.parametrize(
    ("key", "statement"),
    [
        ("1234", {"Resource": "arn:aws:kms:eu-west-1:123456789012:key/1234"}),
        ("arn:aws:kms:eu-west-1:9:key/7", {"Resource": "arn:aws:kms:eu-west-1:9:key/7"}),
        (
            "alias/mine",
            {
                "Resource": "arn:aws:kms:eu-west-1:123456789012:key/*",
                "Condition": {"ForAnyValue:StringEquals": {"kms:ResourceAliases": "alias/mine"}},
            },
        ),
        (
            "arn:aws:kms:eu-west-1:123456789012:alias/mine",
            {
                "Resource": "arn:aws:kms:eu-west-1:123456789012:key/*",
                "Condition": {"ForAnyValue:StringEquals": {"kms:ResourceAliases": "alias/mine"}},
            },
        ),
        ("alias/aws/sqs", None),
    ],
)
async def test_a_customer_key_is_part_of_the_policy(key: str, statement: dict[str, Any] | None) -> None:
    """By its ARN; an alias as a condition, since no policy takes one; AWS's own key needs no permission."""
    queue = Encrypted()
    queue.key = key
    report = await inspect_consumer(consumer(client=OneQueue(queue)))
    keys = [each for each in report.policy["Statement"] if each["Sid"] == "Decrypt"]
    wanted = (
        [] if statement is None else [{"Sid": "Decrypt", "Effect": "Allow", "Action": ["kms:Decrypt"], **statement}]
    )
    assert keys == wanted


async def test_a_url_needs_no_permission_to_find_the_queue() -> None:
    """An unknown account stays a word that has to be replaced."""
    report = await offline(consumer("https://sqs.eu-west-1.amazonaws.com/123456789012/orders"))
    [consume] = report.policy["Statement"]
    assert "sqs:GetQueueUrl" not in consume["Action"]
    assert consume["Resource"] == "arn:aws:sqs:eu-west-1:123456789012:orders"
    [consume] = (await offline(consumer("orders"))).policy["Statement"]
    assert "sqs:GetQueueUrl" in consume["Action"]
    assert consume["Resource"] == "arn:aws:sqs:REGION:ACCOUNT:orders"


async def test_attributes_that_may_not_be_read_are_a_warning() -> None:
    """What depends on them is not judged."""

    class Closed(ScriptedQueue):
        @property
        def info(self) -> QueueInfo:
            """Return a name only."""
            return QueueInfo(name="orders", url="https://x/orders", arn="", attributes_known=False)

    report = await inspect_consumer(consumer(client=OneQueue(Closed())))
    assert [level for level, _ in of(report.findings, "queue")] == ["ok", "warning"]
    assert not of(report.findings, "dead letters")


@pytest.mark.parametrize(
    ("attempts", "most", "levels"),
    [
        (3, 10, ["ok"]),
        (None, 10, ["ok"]),
        (11, 10, ["error"]),
        (10, 10, ["warning"]),
        (None, 1, ["warning", "warning"]),
        (3, 4, ["ok", "warning"]),
    ],
)
async def test_receives_are_held_against_promised_attempts(attempts: int | None, most: int, levels: list[str]) -> None:
    """Too few to keep the promise, none to spare, and too few for parking."""
    async with LocalBroker() as broker:
        dead = broker.create_queue("dead", {"MessageRetentionPeriod": "1209600"})
        redrive = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": most})
        broker.create_queue("orders", {"RedrivePolicy": redrive})
        made = consumer(client=MemoryClient(broker), retry=RetryPolicy(attempts=attempts))
        report = await inspect_consumer(made)
    assert [level for level, _ in of(report.findings, "attempts")] == levels
    assert of(report.findings, "dead letters") == [("ok", "dead keeps messages for 14 days")]
    assert RedrivePolicy.parse(redrive) is not None


async def test_attempts_without_a_dead_letter_queue_are_an_error() -> None:
    """RetryPolicy(attempts=...) does nothing there."""
    async with LocalBroker() as broker:
        broker.create_queue("orders")
        report = await inspect_consumer(consumer(client=MemoryClient(broker), retry=RetryPolicy(attempts=3)))
    assert [level for level, _ in of(report.findings, "attempts")] == ["error"]
    assert [level for level, _ in of(report.findings, "dead letters")] == ["warning"]


async def test_a_dead_letter_queue_that_takes_nothing_of_this_queue_is_an_error() -> None:
    """RedriveAllowPolicy may deny it."""
    async with LocalBroker() as broker:
        dead = broker.create_queue("dead", {"MessageRetentionPeriod": "1209600"})
        redrive = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 10})
        broker.create_queue("orders", {"RedrivePolicy": redrive})
        broker.set_attributes("dead", {"RedriveAllowPolicy": json.dumps({"redrivePermission": "denyAll"})})
        report = await inspect_consumer(consumer(client=MemoryClient(broker)))
    assert [level for level, _ in of(report.findings, "dead letters")] == ["error", "ok"]


async def test_a_sample_message_without_a_context_is_an_error() -> None:
    """The text names the attribute that is missing."""
    made = consumer(resources=database)
    report = await inspect_consumer(made, Deployment(attributes={"tenant": "a"}, max_connections=1000))
    [(level, text)] = of(report.findings, "context")[1:]
    assert level == "error"
    assert "tenantId" in text


@pytest.mark.parametrize("wrong", [{"grace": 0}, {"replicas": 0}, {"max_connections": 0}, {"grace": float("nan")}])
def test_a_deployment_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match="takes"):
        Deployment(**wrong)


async def test_every_route_of_a_router_is_looked_at() -> None:
    """And the function of a batch handler."""
    routed: Consumer[Any, Any] = Consumer("orders", context=Tenant)
    router: Router[Any, Any] = Router(by_attribute("kind"))

    @router.handler("placed")
    async def placed(order: Order, ctx: MessageContext[Tenant, Any]) -> None: ...

    @router.handler("cancelled")
    async def cancelled(order: Order, ctx: MessageContext[str, Any]) -> None: ...

    routed.handler(router)
    levels = [level for level, _ in of((await offline(routed)).findings, "context")]
    assert levels == ["ok", "error"]

    batched: Consumer[Any, Any] = Consumer("orders", context=Tenant)

    @batched.batch_handler(size=5)
    async def store(orders: list[Order], batch: BatchContext[str, Any]) -> None: ...

    assert [level for level, _ in of((await offline(batched)).findings, "context")] == ["error"]


async def test_every_queue_of_several_is_looked_at_and_the_policy_has_all_of_them() -> None:
    """What has to change names its queue; one that is missing does not hide the others."""
    async with LocalBroker() as broker:
        dead = broker.create_queue("dead", {"MessageRetentionPeriod": "1209600"})
        policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": "8"})
        broker.create_queue("good", {"RedrivePolicy": policy})
        broker.create_queue("bare")
        made: Consumer[Any, Any] = Consumer(queues=["good", "bare", "missing"], client=MemoryClient(broker))

        @made.handler
        async def handle(order: Order, ctx: MessageContext[Any, Any]) -> None: ...

        report = await inspect_consumer(made)
    assert report.failed
    assert [level for level, text in of(report.findings, "queue") if "missing" in text] == ["error"]
    assert any("bare" in text and level == "warning" for level, text in of(report.findings, "dead letters"))
    assert of(report.findings, "queue")[-1] == ("ok", "nothing has to change for 1 of 3 queues")
    consume = report.policy["Statement"][0]
    assert [arn.rpartition(":")[2] for arn in consume["Resource"]] == ["good", "bare", "missing"]
    assert len({statement["Sid"] for statement in report.policy["Statement"]}) == len(report.policy["Statement"])


async def test_a_list_of_queues_that_cannot_be_had_is_a_finding() -> None:
    """The function that lists them raises."""

    def listed() -> list[str]:
        raise OSError("no registry")

    made: Consumer[Any, Any] = Consumer(queues=listed)

    @made.handler
    async def handle(order: Order, ctx: MessageContext[Any, Any]) -> None: ...

    assert of((await offline(made)).findings, "queues") == [("error", "they cannot be listed: OSError: no registry")]
