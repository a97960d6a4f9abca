"""Functions of the user's that say what cannot be meant: the default holds, it is told, and the consumer goes on."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from postroom import (
    BatchContext,
    Concurrency,
    ConfigurationError,
    Consumer,
    Fleet,
    MessageContext,
    PoolLimits,
    ResourcePool,
    RetryPolicy,
)
from postroom.fleet import MemoryState
from support.world import Databases, Order, Tenant, World, in_world, with_world

TIMEOUT = "Concurrency(handler_timeout=...)"
NONSENSE: list[Any] = ["many", -1, 0, 0.5, float("nan"), float("inf"), True, [], object, b"3", 10**30]
Make = Callable[[Any], dict[str, Any]]


def always(value: Any) -> Callable[[Any], Any]:
    """Return a policy that says the same of every message."""

    def policy(_call: Any) -> Any:
        return value

    return policy


PLACES: dict[str, Make] = {
    "overrides": lambda value: {"concurrency": Concurrency(overrides=lambda _tenant: value)},
    "mapping": lambda value: {"concurrency": Concurrency(overrides={Tenant("a"): value})},
    "weights": lambda value: {"concurrency": Concurrency(total=2, weights=lambda _tenant: value)},
    "timeout": lambda value: {"concurrency": Concurrency(handler_timeout=lambda _call: value)},
    "delay": lambda value: {"retry": RetryPolicy(base=1, delay=lambda _message, _error: value)},
    "policies": lambda value: {name: always(value) for name in ("retry", "visibility", "faults")},
    "fleet": lambda value: {
        "fleet": Fleet(MemoryState(asyncio.get_running_loop().time), overrides=lambda _tenant: value)
    },
}


def handled(options: Callable[[], dict[str, Any]], seconds: float) -> tuple[int, tuple[int, int]]:
    """Consume ten messages of two tenants, each of which fails once. Return how many were handled, and what is left."""

    async def scenario(world: World) -> tuple[int, tuple[int, int]]:
        world.create(dead_letters="dead", receives=5)
        orders = Consumer("orders", context=Tenant, client=world.client, **options())
        done = 0

        @orders.handler
        async def handle(_order: Order, ctx: MessageContext[Tenant, Any]) -> None:
            nonlocal done
            await asyncio.sleep(0.001)
            if ctx.attempt == 1:
                raise ValueError
            done += 1

        for tenant in "ab":
            world.send_orders(*map(str, range(5)), tenant=tenant)
        async with orders:
            await asyncio.sleep(seconds)
        return done, (sum(world.counts()), sum(world.counts("dead")))

    return in_world(scenario)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", NONSENSE, ids=repr)
def test_nonsense_is_the_default(place: str, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    """All messages are handled. A number that is asked for with each decision is told of once."""
    patience = 50_000.0 if place == "delay" and value == 10**30 else 40.0  # a delay may be twelve hours
    assert handled(lambda: PLACES[place](value), patience) == (10, (0, 0))
    if place in {"overrides", "mapping", "weights"} and not (place == "weights" and value == 0.5):
        assert sum("(said once)" in line for line in caplog.messages) == 1
    said = [line.split(" returned ")[0] for line in caplog.messages if line.startswith("The function of")]
    if place == "policies":
        assert sorted(said) == ["The function of faults=", "The function of retry=", "The function of visibility="]
    if place == "timeout":
        assert said == ([] if value in (0.5, float("inf"), 10**30) else [f"The function of {TIMEOUT}"])


@pytest.mark.parametrize("place", ["host", "weight", "per_host"])
@pytest.mark.parametrize("value", [KeyError("DATABASE_HOST"), "4", []], ids=repr)
@with_world
async def test_a_function_of_the_pool_that_fails_is_an_outage(world: World, place: str, value: Any) -> None:
    """A deployment with a mistake in it makes no dead letters: its messages wait, and are handled once it is mended."""
    broken = True

    def choose(_asked: object) -> Any:
        if not broken:
            return 2
        if isinstance(value, Exception):
            raise value.with_traceback(None)  # else it has the frames of each time before
        return value

    def host(tenant: object) -> Any:
        return choose(tenant) if place == "host" else "host"

    if place == "host" and value == "4":
        pytest.skip("a text names a host")
    world.create(dead_letters="dead", receives=3)
    weight: Any = choose if place == "weight" else 2
    limits = PoolLimits(per_host=choose if place == "per_host" else 4)
    pool = ResourcePool(Databases(), host=host, weight=weight, limits=limits)
    orders = Consumer("orders", context=Tenant, client=world.client, resources=pool)
    done = 0

    @orders.handler
    async def handle(_order: Order, ctx: MessageContext[Tenant, Any]) -> None:
        nonlocal done
        assert ctx.attempt == 1
        done += 1

    world.send_orders(*map(str, range(20)))
    async with orders:
        await asyncio.sleep(100)
        dead = sum(world.counts("dead"))
        broken = False
        await asyncio.sleep(100)
    assert (done, dead, sum(world.counts())) == (20, 0, 0)


def test_async_functions_are_refused_where_nothing_awaits_them() -> None:
    """What they make would be taken for an answer."""

    async def choose(*_asked: Any) -> Any: ...

    for make in (
        lambda: Concurrency(overrides=choose),  # type: ignore[arg-type]
        lambda: Concurrency(weights=choose),  # type: ignore[arg-type]
        lambda: Concurrency(handler_timeout=choose),  # type: ignore[arg-type]
        lambda: RetryPolicy(delay=choose),  # type: ignore[arg-type]
        lambda: PoolLimits(per_host=choose),  # type: ignore[arg-type]
        lambda: Fleet("valkey://cache", overrides=choose),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigurationError, match="write it as a plain `def`"):
            make()


def test_slots_are_not_taken_from_a_batch_handler() -> None:
    """``adjust`` says what ``batch_handler`` says."""
    orders = Consumer[Tenant, None]("orders", context=Tenant)

    @orders.batch_handler(size=8)
    async def store(_orders: list[Order], _batch: BatchContext[Tenant, None]) -> None: ...

    with pytest.raises(ConfigurationError, match="needs a slot for each message of a batch, and a tenant has 4"):
        orders.adjust(Concurrency(per_tenant=4))
    orders.adjust(Concurrency(per_tenant=9))
    assert orders.settings.concurrency.per_tenant == 9
