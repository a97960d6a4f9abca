"""What may be given as a provider, and what becomes of one that misbehaves."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial, wraps
from typing import Any, Self
from unittest.mock import Mock

import pytest
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from postroom.datasources import Provider
from postroom.errors import ConfigurationError, ResourceError, ResourceOpenError
from postroom.events import Event, ResourceClosed
from postroom.redaction import describe
from postroom.resources import OpenBackoff, PoolLimits, PoolTimeouts, ResourcePool
from postroom.resources.providers import known_of
from postroom.testing.loop import run_virtual, settle
from support.virtual import in_virtual_time
from unit.resources.databases import A, B, Database, Databases, Tenant

SECRET = "postgresql://app:hunter2@db/tenant"


def lease_once(provider: Any, **options: Any) -> Any:
    """Lease tenant A's resource once and return it."""

    async def main() -> Any:
        async with ResourcePool(provider, **options) as pool, pool.lease(A) as resource:
            return resource

    return run_virtual(main())


def failure_of(provider: Any, **options: Any) -> ResourceOpenError:
    """Return the error of leasing tenant A's resource."""
    with pytest.raises(ResourceOpenError) as caught:
        lease_once(provider, **options)
    return caught.value


def test_an_async_function_with_a_cleanup() -> None:
    """The cleanup gets what the function returned; it may be async or plain."""
    databases = Databases()
    plain: list[Database] = []
    database = lease_once(databases.open, cleanup=databases.close)
    assert databases.closed == [database]
    assert lease_once(databases.open, cleanup=plain.append) is plain[0]


def test_an_async_function_without_cleanup() -> None:
    """Nothing needs to be done at the end."""
    assert lease_once(Databases().open).tenant is A


def test_a_context_manager_class() -> None:
    """Any async context manager will do."""

    class Manager(AbstractAsyncContextManager[str]):
        def __init__(self, tenant: Tenant) -> None:
            self._tenant = tenant

        async def __aenter__(self) -> str:
            return self._tenant.name

        async def __aexit__(self, *error: object) -> None:
            return None

    assert lease_once(Manager) == "a"


def test_what_is_both_awaitable_and_a_context_manager_is_entered() -> None:
    """A pool of asyncpg is both: without ``cleanup=`` it is entered, with it awaited."""
    calls: list[str] = []

    class Both:
        def __await__(self) -> Generator[Any, None, Self]:
            calls.append("awaited")
            yield from ()
            return self

        async def __aenter__(self) -> Self:
            calls.append("entered")
            return self

        async def __aexit__(self, *error: object) -> None:
            calls.append("left")

        async def close(self) -> None:
            calls.append("closed")

    lease_once(lambda tenant: Both())
    lease_once(lambda tenant: Both(), cleanup=Both.close)
    assert calls == ["entered", "left", "awaited", "closed"]


async def _bare(_tenant: Tenant) -> AsyncIterator[str]:
    yield "resource"


@pytest.mark.parametrize("provider", [None, "dsn", 42, _bare])
def test_what_cannot_be_a_provider_is_refused_by_the_constructor(provider: Any) -> None:
    """The text says what it has to be."""
    with pytest.raises(ConfigurationError, match="asynccontextmanager"):
        ResourcePool(provider)


def test_a_generator_with_a_cleanup_is_refused() -> None:
    """Two ways to clean up are one too many."""
    with pytest.raises(ConfigurationError, match="yield is the cleanup"):
        ResourcePool(Databases().provide, cleanup=lambda database: None)


@pytest.mark.parametrize("returned", ["a resource", 42, object()])
@in_virtual_time
async def test_a_plain_function_is_refused_when_it_is_used(returned: object, caplog: pytest.LogCaptureFixture) -> None:
    """Not as an outage to wait for: every lease says what a provider has to be, and so does the log."""
    calls: list[Tenant] = []

    def provide(tenant: Tenant) -> object:
        calls.append(tenant)
        return returned

    wrong: Any = provide
    pool: ResourcePool[Tenant, object] = ResourcePool(wrong)
    async with pool:
        for _ in range(100):
            with pytest.raises(ConfigurationError, match="has to be an async context manager"):
                await pool.acquire(A)
    assert calls == [A]
    assert "has to be an async context manager" in caplog.text


@pytest.mark.parametrize("name", ["close", "aclose"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_a_plain_function_returned_is_closed(name: str, fails: bool) -> None:
    """A connection that cannot be used does not stay open, also when closing it fails."""
    closed: list[str] = []

    async def aclose() -> None:
        closed.append("aclose")
        if fails:
            raise OSError("will not close")

    def close() -> None:
        closed.append("close")
        if fails:
            raise OSError("will not close")

    made = type("Connection", (), {name: staticmethod(aclose if name == "aclose" else close)})()
    with pytest.raises(ConfigurationError, match="returned Connection"):
        lease_once(lambda tenant: made)
    assert closed == [name]


def test_one_tenants_odd_answer_concerns_that_tenant_only() -> None:
    """A provider that worked for others, or that returns None, is not called wrong altogether: it is an outage."""
    databases = Databases()

    async def main() -> None:
        odd: Any = lambda tenant: "odd" if tenant is B else databases.provide(tenant)  # noqa: E731 - the mistake
        pool: ResourcePool[Tenant, Database] = ResourcePool(odd)
        async with pool:
            async with pool.lease(A):
                pass
            with pytest.raises(ResourceOpenError, match="returned str") as caught:
                await pool.acquire(B)
            assert not caught.value.permanent
            async with pool.lease(A):
                pass

    run_virtual(main())
    assert "returned NoneType" in str(failure_of(lambda tenant: None))


def test_an_async_function_without_cleanup_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """What it opens is never closed: unless ``cleanup=None`` says that this is meant."""
    databases = Databases()

    class Callable:
        async def __call__(self, tenant: Tenant) -> Database:
            return await databases.open(tenant)

    class Either:
        def get(self, tenant: Tenant) -> Any:
            return databases.open(tenant)

    for provider in (databases.open, Callable(), partial(databases.open), Either().get):
        caplog.clear()
        pool = ResourcePool(provider)
        assert not caplog.records

        async def twice(pool: ResourcePool[Tenant, Database] = pool) -> None:
            for tenant in (A, B):
                async with pool, pool.lease(tenant):
                    pass

        run_virtual(twice())
        assert [record.message for record in caplog.records if "without cleanup=" in record.message] != []
        assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    caplog.clear()
    lease_once(databases.open, cleanup=None)
    lease_once(databases.open, cleanup=databases.close)
    lease_once(databases.provide)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


class PoolOfConnections:
    """A resource that looks like a driver's pool."""

    def __init__(self, size: int) -> None:
        self._size = size

    def acquire(self) -> None:
        """Exist, as in a pool."""

    def get_max_size(self) -> int:
        """Return the size, as asyncpg's pools do."""
        return self._size


def engine() -> Any:
    """Return an engine of SQLAlchemy, which connects to nothing yet."""
    return create_async_engine("postgresql+asyncpg://app@nowhere/db", pool_size=5, max_overflow=2)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: PoolOfConnections(10), 10),
        (engine, 7),
        (lambda: async_sessionmaker(engine()), 7),
        (lambda: (PoolOfConnections(3), "settings", PoolOfConnections(4)), 7),
        (lambda: {"orders": PoolOfConnections(3), "size": 9}, 3),
    ],
)
def test_resources_that_count_as_one_and_hold_several_are_told_of(
    make: Callable[[], Any], size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, with their real size and the remedy; and not where a weight was said."""

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncIterator[Any]:
        yield make()

    async def main(**options: Any) -> list[str]:
        caplog.clear()
        async with ResourcePool(provide, **options) as pool:
            for tenant in (A, B):
                async with pool.lease(tenant):
                    pass
        return [record.message for record in caplog.records if record.levelname == "WARNING"]

    (told,) = run_virtual(main())
    assert f"may hold {size} connections each" in told
    assert f"weight={size}" in told
    assert run_virtual(main(weight=1)) == []
    provide.weight = 2  # type: ignore[attr-defined]  # what a provider knows of itself
    assert run_virtual(main()) == []


@pytest.mark.parametrize("resource", [object(), "text", 42, [1, 2], {"size": 5}, Mock(), PoolOfConnections(1)])
def test_other_resources_count_as_one_without_a_word(resource: object, caplog: pytest.LogCaptureFixture) -> None:
    """A number called ``size`` does not make a pool, and an object that answers everything is believed nothing."""

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncIterator[object]:
        yield resource

    lease_once(provide)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_weight_and_check_are_found_on_any_provider() -> None:
    """On a function, behind ``functools.partial`` and decorators, each by itself; not on a class."""

    async def check(resource: object) -> bool:
        return True

    @asynccontextmanager
    async def provide(tenant: Tenant, *, more: int = 0) -> AsyncIterator[int]:
        yield more

    provide.weight = 3  # type: ignore[attr-defined]  # what a provider knows of itself
    assert known_of(provide) == (3, None)
    assert known_of(partial(provide, more=1)) == (3, None)
    outer = partial(provide, more=1)
    outer.check = check  # type: ignore[attr-defined]  # what a provider knows of itself
    assert known_of(outer) == (3, check)

    class Manager:
        weight = 9

        def check(self) -> None: ...

    assert known_of(Manager) == (None, None)
    assert known_of(wraps(provide)(lambda tenant: Databases().provide(tenant))) == (3, None)


def test_a_providers_own_words_are_quoted_without_secrets() -> None:
    """The text says what the provider said, but no password; the cause is the provider's exception itself."""

    async def provide(tenant: Tenant) -> None:
        raise OSError(f"cannot reach {SECRET}")

    error = failure_of(provide)
    assert "hunter2" not in str(error)
    assert "OSError: cannot reach postgresql://app:***@db/tenant" in str(error)
    assert "'a:us-east-1'" in str(error)
    assert SECRET in str(error.__cause__)
    assert error.context is A
    assert not error.permanent


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), asyncio.CancelledError("inner")])
def test_a_provider_that_raises_cancelled_is_a_failure_like_any_other(raised: BaseException) -> None:
    """I6: a CancelledError out of a library never reaches the waiters as one."""

    async def provide(tenant: Tenant) -> None:
        raise raised

    assert isinstance(failure_of(provide).__cause__, asyncio.CancelledError)


def test_a_provider_that_yields_nothing() -> None:
    """The complaint of contextlib becomes the cause of a clear error, and its function is named."""

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncIterator[str]:
        if tenant.name == "other":
            yield "never"

    @asynccontextmanager
    async def around(tenant: Tenant) -> AsyncIterator[str]:
        async with provide(tenant) as inner:
            yield inner

    for provider in (provide, around):
        text = str(failure_of(provider))
        assert re.search(
            r"RuntimeError: generator didn't yield; the generator is \S+\.provide, \S+test_providers.py:\d+", text
        )


def test_a_provider_that_yields_twice_is_closed_and_reported() -> None:
    """The lease works; the close is counted as failed, and the generator does not stay behind."""
    events: list[Event] = []
    ended: list[str] = []

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncIterator[str]:
        try:
            yield "one"
            yield "two"
        finally:
            ended.append(tenant.name)

    assert lease_once(provide, observers=[events.append]) == "one"
    assert ended == ["a"]
    assert isinstance(events[-1], ResourceClosed)
    assert isinstance(events[-1].error, RuntimeError)
    assert "test_providers.py:" in describe(events[-1].error)


@in_virtual_time
async def test_a_provider_that_hangs_fails_at_the_open_timeout_and_unwinds() -> None:
    """The half-built resource is unwound, its budget comes back."""
    unwound: list[float] = []

    async def provide(tenant: Tenant) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            unwound.append(asyncio.get_running_loop().time())

    async with ResourcePool(provide, timeouts=PoolTimeouts(open=3.0)) as pool:
        with pytest.raises(ResourceOpenError) as caught:
            await pool.acquire(A)
        assert isinstance(caught.value.__cause__, TimeoutError)
        assert "within 3 s" in str(caught.value.__cause__)
        await settle()
        assert pool.statistics().weight == 0
    assert unwound == [3.0]


@in_virtual_time
async def test_a_provider_that_swallows_its_cancellation_is_cancelled_again() -> None:
    """Its budget stays taken until it really ends; every caller that waits is told at the timeout."""
    cancelled: list[float] = []

    async def provide(tenant: Tenant) -> str:
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(asyncio.get_running_loop().time())
        return "opened at last"

    async with ResourcePool(provide, timeouts=PoolTimeouts(open=1.0, close=1.0)) as pool:
        with pytest.raises(ResourceOpenError):
            await pool.acquire(A)
        seen = pool.statistics()
        assert (seen.weight, seen.opening, seen.live) == (1, 1, 0)
        await asyncio.sleep(1.5)
        seen = pool.statistics()
        assert (seen.weight, seen.opened, seen.closed) == (0, 1, 1)
        assert seen.evictions == {"called off": 1}
    assert cancelled == [1.0, 2.0]


@pytest.mark.parametrize("step", ["open", "close", "check"])
def test_a_step_that_ignores_its_cancellation_is_told_of_once(step: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its budget stays taken: the line of who lacks it then would name a key with no lease, and no cause."""

    async def stubborn() -> None:
        for _ in range(4):
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncIterator[str]:
        if step == "open":
            await stubborn()
        yield tenant.name
        if step == "close":
            await stubborn()

    async def check(resource: str) -> None:
        if step == "check":
            await stubborn()

    async def main() -> None:
        timeouts = PoolTimeouts(lease=1.0, open=1.0, close=1.0, check=1.0)
        limits = PoolLimits(budget=1, idle=1.0, sweep=0.5, check_after=0.1)
        once = OpenBackoff(base=60, cap=60)
        async with ResourcePool(provide, check=check, limits=limits, timeouts=timeouts, backoff=once) as pool:
            for _ in range(2):
                with suppress(ResourceError):
                    (await pool.acquire(A)).release()
                await asyncio.sleep(0.5)
            await asyncio.sleep(10.0)

    run_virtual(main())
    (line,) = [record for record in caplog.records if "ignores its cancellation" in record.message]
    beginning = f"The {step} of the resources of key a:us-east-1 ignores its cancellation after PoolTimeouts({step}=1)"
    assert line.message.startswith(beginning)
    assert "take 1 of the budget" in line.message
    assert vars(line)["tenant"] == "a:us-east-1"


def test_a_close_that_fails_or_hangs_is_counted_and_stops_nothing() -> None:
    """The budget comes back either way."""
    databases = Databases(close_errors={A: OSError("will not")})

    async def hang(database: Database) -> None:
        await asyncio.Event().wait()

    async def main(**options: Any) -> None:
        events: list[Event] = []
        async with (
            ResourcePool(**options, observers=[events.append], timeouts=PoolTimeouts(close=2.0)) as pool,
            pool.lease(A),
        ):
            pass
        seen = pool.statistics()
        assert (seen.closed, seen.close_failures, seen.weight) == (1, 1, 0)
        assert isinstance(events[-1], ResourceClosed)
        assert events[-1].error is not None

    run_virtual(main(provider=databases.provide))
    run_virtual(main(provider=databases.open, cleanup=hang))


def test_one_task_enters_and_leaves() -> None:
    """A provider may hold a task group across its yield."""
    tasks: list[Any] = []

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncIterator[str]:
        tasks.append(asyncio.current_task())
        async with asyncio.TaskGroup() as group:
            background = group.create_task(asyncio.sleep(1e6))
            async with asyncio.timeout(1e9):
                yield "resource"
            background.cancel()
        tasks.append(asyncio.current_task())

    assert lease_once(provide) == "resource"
    assert tasks[0] is tasks[1]


@in_virtual_time
async def test_a_task_group_that_dies_under_a_resource_closes_it() -> None:
    """A provider's background task that crashes takes its resource out of the pool, and nothing else."""
    crash = asyncio.Event()

    @asynccontextmanager
    async def provide(tenant: Tenant) -> AsyncIterator[int]:
        opens.append(1)

        async def background() -> None:
            await crash.wait()
            if len(opens) == 1:
                raise OSError("the listener died")

        async with asyncio.TaskGroup() as group:
            group.create_task(background())
            yield len(opens)

    opens: list[int] = []
    async with ResourcePool(provide) as pool:
        async with pool.lease(A) as first:
            assert first == 1
        crash.set()
        await asyncio.sleep(0.1)
        assert pool.statistics().evictions == {"cancelled": 1}
        async with pool.lease(A) as second:
            assert second == 2


def test_what_a_provider_knows_of_itself_holds_unless_it_is_said_otherwise() -> None:
    """Its weight and its check, as the providers of ``postroom.datasources`` have them; ``weight=``, ``check=`` win."""
    databases = Databases()
    checked: list[str] = []

    def check(name: str) -> Callable[[Database], Awaitable[bool]]:
        async def answer(database: Database) -> bool:
            checked.append(name)
            return True

        return answer

    async def weight_of(**options: Any) -> int:
        provider = Provider(databases.provide, weight=4, check=check("its own"))
        async with ResourcePool(provider, limits=PoolLimits(check_after=0.0), **options) as pool:
            for pause in (1, 0):
                async with pool.lease(A):
                    pass
                await asyncio.sleep(pause)
            return pool.statistics().weight

    assert run_virtual(weight_of()) == 4
    assert run_virtual(weight_of(weight=2, check=check("another"))) == 2
    assert checked == ["its own", "another"]


def test_a_provider_that_weighs_more_than_the_budget_is_refused_at_once() -> None:
    """No lease of it could ever be granted."""
    with pytest.raises(ConfigurationError, match="more than the whole budget"):
        ResourcePool(Provider(Databases().provide, weight=4), limits=PoolLimits(budget=3))
