"""What a person reads in the log while something is wrong: one error, changes of state, and the end of it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from postroom.errors import PoolExhaustedError, ResourceOpenError, UnknownTenant
from postroom.events import Event, ResourceClosed
from postroom.options import OpenBackoff, PoolLimits, PoolTimeouts
from postroom.resources import ResourcePool
from postroom.testing.loop import run_virtual
from support.virtual import in_virtual_time
from unit.resources.databases import A, B, C, D, Database, Databases, Tenant

QUICK = OpenBackoff(base=0.1, cap=0.1, permanent=1.0)


class Refused(Exception):
    """An error as database drivers raise it."""

    def __init__(self, text: str, sqlstate: str) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


async def fail(pool: ResourcePool[Tenant, Database], tenant: Tenant = A, times: int = 1) -> ResourceOpenError:
    """Lease until it has failed that often, and return the last error."""
    failures = pool.statistics().open_failures
    while pool.statistics().open_failures < failures + times:
        with pytest.raises(ResourceOpenError) as caught:
            await pool.acquire(tenant)
        await asyncio.sleep(0.1)
    return caught.value


def lines(caplog: pytest.LogCaptureFixture, *, least: int = logging.WARNING) -> list[tuple[str, str]]:
    """Return the lines that were logged, by level."""
    return [(record.levelname, record.message) for record in caplog.records if record.levelno >= least]


@in_virtual_time
async def test_an_outage_is_told_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """One error with type, SQLSTATE and text; then a line when the cause changes, and at the end."""
    databases = Databases(errors={A: Refused('password failed for user "app"', "28P01")})
    async with ResourcePool(databases.provide, backoff=QUICK) as pool:
        await fail(pool, times=10)
        databases.errors[A] = ConnectionRefusedError("refused")
        await fail(pool, times=10)
        del databases.errors[A]
        async with pool.lease(A):
            pass
    (error, first), (changed, second), (back, third) = lines(caplog)
    assert (error, changed, back) == ("ERROR", "WARNING", "WARNING")
    assert first.startswith(
        'Resources not available for key: a:us-east-1 (outage: Refused [28P01]: password failed for user "app"); next'
    )
    assert "(outage: ConnectionRefusedError: refused)" in second
    assert third.startswith("Resources available again for key: a:us-east-1; ")
    assert third.endswith("21 tries")
    assert "in open" in caplog.text  # the traceback


@in_virtual_time
async def test_an_unknown_tenant_is_a_warning_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """It is no outage of ours; and it is told once, however often the sender tries."""
    databases = Databases(errors={A: UnknownTenant("not in the registry")})
    async with ResourcePool(databases.provide, backoff=QUICK) as pool:
        for _ in range(3):
            await fail(pool)
            await asyncio.sleep(1.0)
    ((level, text),) = lines(caplog)
    assert level == "WARNING"
    assert "unknown tenant: UnknownTenant: not in the registry" in text
    assert caplog.records[-1].exc_info is None


@in_virtual_time
async def test_a_dead_host_is_one_error_for_all_of_its_tenants(caplog: pytest.LogCaptureFixture) -> None:
    """Up to five keys find it out; the other hundreds, and the probes, write nothing; its return is told."""
    tenants = [Tenant(str(number)) for number in range(200)]
    databases = Databases(errors={tenant: ConnectionRefusedError("refused") for tenant in tenants})
    pool = ResourcePool(databases.provide, host=lambda tenant: "db-1", backoff=QUICK)
    async with pool:
        for _ in range(30):
            for tenant in tenants:
                with pytest.raises(ResourceOpenError):
                    await pool.acquire(tenant)
            await asyncio.sleep(0.5)
        databases.errors.clear()
        await asyncio.sleep(1.0)
        for tenant in tenants:
            async with pool.lease(tenant):
                pass
    told = lines(caplog)
    errors = [text for level, text in told if level == "ERROR"]
    assert len(errors) <= 5
    assert errors[-1].startswith("Host not available: db-1 (outage of several keys, last ")
    assert "ConnectionRefusedError: refused" in errors[-1]
    assert len([text for _, text in told if text.startswith("Host available again: db-1; ")]) == 1
    assert len(told) <= 11


@in_virtual_time
async def test_an_end_is_told_also_where_the_pool_has_forgotten_the_failures(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was opened for half an hour; or the tenants were repaired. And the next outage is told of again."""
    tenants = [Tenant(str(number)) for number in range(8)]
    databases = Databases()
    pool = ResourcePool(databases.provide, host=lambda tenant: "db-1", backoff=QUICK)

    async def lease() -> None:
        for tenant in tenants:
            with contextlib.suppress(ResourceOpenError):
                async with pool.lease(tenant):
                    pass

    async with pool:
        for _ in range(2):
            databases.errors.update((tenant, ConnectionRefusedError("refused")) for tenant in tenants)
            await lease()
            databases.errors.clear()
            assert [text for _, text in lines(caplog) if text.startswith("Host not available: db-1")]
            assert not [text for _, text in lines(caplog) if "available again" in text]
            await asyncio.sleep(1800)
            await lease()
            for what in ("Host available again: db-1", "Resources available again for key: 0:us-east-1"):
                assert [text for _, text in lines(caplog)].count(what) == 1
            caplog.clear()
            await pool.invalidate_where(lambda _tenant: True)
            await asyncio.sleep(2 * 3600)
        databases.errors[A] = ConnectionRefusedError("refused")
        await fail(pool)
        databases.errors.clear()
        await pool.invalidate(A)
        async with pool.lease(A):
            pass
    assert lines(caplog)[-1] == ("WARNING", "Resources available again for key: a:us-east-1")


@in_virtual_time
async def test_every_refusal_has_the_cause(caplog: pytest.LogCaptureFixture) -> None:
    """The first and the hundredth: from the provider, while it cools, while its host is left alone, at the deadline."""
    down = ConnectionRefusedError("nothing listens")
    tenants = [Tenant(str(number)) for number in range(8)]
    databases = Databases(errors=dict.fromkeys(tenants, down))
    seen: list[ResourceOpenError] = []
    pool = ResourcePool(databases.provide, host=lambda tenant: "db-1", timeouts=PoolTimeouts(open=5.0), backoff=QUICK)
    async with pool:
        for number in range(100):
            with pytest.raises(ResourceOpenError) as caught:
                await pool.acquire(tenants[number % 8])
            seen.append(caught.value)
        databases.stuck.update(tenants)
        await asyncio.sleep(1.0)
        with pytest.raises(ResourceOpenError, match="still opening; last failure") as caught:
            await pool.acquire(tenants[0], timeout=1.0)
        seen.append(caught.value)
    assert all(error.__cause__ is down for error in seen)
    assert all("nothing listens" in str(error) for error in seen)
    kinds = {"could not be opened", "left alone after", "host is left alone", "not ready by the lease's deadline"}
    assert all(any(kind in str(error) for error in seen) for kind in kinds)


@in_virtual_time
async def test_a_first_open_that_is_too_slow_names_the_phase_as_its_cause() -> None:
    """There is no earlier failure to tell of: the cause is a ``TimeoutError`` that says what was waited for."""
    databases = Databases(stuck={A})
    async with ResourcePool(databases.provide) as pool:
        with pytest.raises(ResourceOpenError, match="still opening") as caught:
            await pool.acquire(A, timeout=1.0)
        assert isinstance(caught.value.__cause__, TimeoutError)
        assert str(caught.value.__cause__) == "still opening"


@in_virtual_time
async def test_old_causes_let_their_tracebacks_go() -> None:
    """I10: a traceback keeps frames in memory; a hundred of them do, the text stays for all."""
    tenants = [Tenant(str(number)) for number in range(300)]
    databases = Databases(open_seconds=0.0)
    async with ResourcePool(databases.provide) as pool:
        for tenant in tenants:
            databases.errors[tenant] = OSError(f"down {tenant.name}")
            with pytest.raises(ResourceOpenError):
                await pool.acquire(tenant)
        kept = [error for error in databases.errors.values() if error.__traceback__ is not None]
        assert len(kept) == 100
        with pytest.raises(ResourceOpenError, match="OSError: down 0"):
            await pool.acquire(tenants[0])


@in_virtual_time
async def test_a_budget_that_is_missing_for_long_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Who waits, who has it, and what to do; then once a minute, however many wait."""
    databases = Databases()
    weights = {A: 5, B: 3, C: 1, D: 1}
    limits = PoolLimits(budget=10, patience=1.0)
    async with ResourcePool(databases.provide, weight=lambda tenant: weights.get(tenant, 1), limits=limits) as pool:
        held = [await pool.acquire(tenant) for tenant in weights]
        waiting = [asyncio.create_task(pool.acquire(Tenant(str(n)), timeout=100.0)) for n in range(20)]
        await asyncio.sleep(110.0)
        for task in waiting:
            assert isinstance(task.exception(), PoolExhaustedError)
        for lease in held:
            lease.release()
    told = [text for _, text in lines(caplog) if text.startswith("No budget for key: 0:us-east-1, waiting for ")]
    assert len(told) == 2
    assert "it needs 1, and 10 of 10 of pool are in use, most of it by a:us-east-1 (5, 1 leased), b:us-" in told[0]


@in_virtual_time
async def test_a_short_wait_for_budget_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """Busy tenants take turns all the time."""
    databases = Databases()
    async with ResourcePool(databases.provide, limits=PoolLimits(budget=1, patience=0.0, sweep=0.1)) as pool:
        for tenant in [A, B] * 50:
            async with pool.lease(tenant):
                await asyncio.sleep(0.2)
    assert lines(caplog) == []


@in_virtual_time
async def test_an_outage_that_a_use_meets_counts_for_key_and_host(caplog: pytest.LogCaptureFixture) -> None:
    """Too many connections: what is open stays open, ``retry_after`` says how long to wait, five keys name the host."""
    databases = Databases()
    tenants = [Tenant(str(number)) for number in range(6)]
    full = Refused("sorry, too many clients already", "53300")
    backoff = OpenBackoff(base=4.0, cap=8.0)
    async with ResourcePool(databases.provide, host=lambda tenant: "db-1", backoff=backoff) as pool:
        leases: list[Any] = [await pool.acquire(tenant) for tenant in tenants[:5]]
        for _ in range(8):  # handlers that ran side by side: one outage
            assert leases[0].report(full)
        assert pool.troubled
        assert 0 < pool.retry_after(tenants[0]) <= 4.0
        assert pool.is_open(tenants[0])
        assert pool.retry_after(tenants[1]) == pool.retry_after(tenants[5]) == 0.0
        for lease in leases[1:]:
            assert lease.report(full)
        with pytest.raises(ResourceOpenError, match="host is left alone") as caught:
            await pool.acquire(tenants[5])
        assert caught.value.__cause__ is full
        assert not leases[0].report(ValueError("its own"))
        for lease in leases:
            lease.release()
        assert len(databases.opened) == 5
        assert pool.statistics().live == 5
    texts = [text for level, text in lines(caplog) if level == "ERROR"]
    assert texts[0].startswith("Outage met by a use of the resources of key: 0:us-east-1 (outage: Refused [53300]: ")
    assert texts[-1].startswith("Host not available: db-1")
    assert len(texts) == 5


def test_a_user_may_say_what_else_is_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    """``outage=`` is asked where postroom says no; if it raises, the failure is the message's own."""
    databases = Databases()

    def outage(error: BaseException) -> bool:
        if isinstance(error, KeyError):
            raise RuntimeError("a bug")  # noqa: TRY004 - any error will do
        return "maintenance" in str(error)

    async def main() -> None:
        async with ResourcePool(databases.provide, outage=outage) as pool:
            lease = await pool.acquire(A)
            assert lease.report(RuntimeError("in maintenance"))
            assert not lease.report(RuntimeError("a bug"))
            assert not lease.report(KeyError("x"))
            lease.release()

    run_virtual(main())
    assert "outage= failed" in caplog.text


@pytest.mark.filterwarnings("error")
@in_virtual_time
async def test_what_a_function_would_have_to_await_answers_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A lambda around an async function passes for a plain one, and its coroutine for True: all were outages."""
    databases = Databases(errors={A: OSError("down")})

    async def look(_error: BaseException) -> Any:
        return False

    def ask(error: BaseException) -> Any:
        return look(error)

    async with ResourcePool(databases.provide, outage=ask, classify=ask) as pool:
        await fail(pool)
        lease = await pool.acquire(B)
        assert not lease.report(ValueError("the message's own"))
        lease.release()
    told = [text.partition(" failed")[0] for text in caplog.messages if "= failed" in text]
    assert told == ["classify=", "outage="]
    assert caplog.text.count("TypeError: it returned an awaitable, which nothing awaits") == 2


def refuse(_of: object) -> Any:
    """Fail, as a look-up does."""
    raise LookupError("no row")


@pytest.mark.parametrize(
    ("option", "functions"),
    [
        ("weight=", {"weight": refuse}),
        ("host=", {"host": refuse}),
        ("per_host=", {"host": lambda _: "db", "limits": PoolLimits(per_host=refuse)}),
    ],
)
@in_virtual_time
async def test_a_function_that_fails_is_named_with_its_place(
    option: str, functions: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """In what is raised, and in the log, which has the traceback of the user's code."""
    async with ResourcePool(Databases().provide, **functions) as pool:
        told = rf"^{option} failed for 'a:us-east-1': LookupError: no row \(in refuse, test_telling.py line \d+\)$"
        for _ in range(3):
            with pytest.raises(ResourceOpenError, match=told):
                await pool.acquire(A)
    [record] = caplog.records
    assert record.getMessage() == f"{option} failed for key a:us-east-1; its resources cannot be opened"
    assert "in refuse" in (record.exc_text or "")


@pytest.mark.parametrize(
    ("functions", "told"),
    [
        ({"weight": lambda _: 500}, "weight= gave 500, more than the whole budget: .*or make each resource smaller$"),
        ({"host": lambda _: ["db"]}, "host= gave list, which cannot be hashed: let it return a text, .*name$"),
        ({"host": lambda _: "db", "limits": PoolLimits(per_host=lambda _: 0)}, "per_host= gave 0: it has to be"),
    ],
)
@in_virtual_time
async def test_an_answer_that_cannot_work_is_told_with_what_to_write(
    functions: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And without a place, which would be one of postroom's own."""
    async with ResourcePool(Databases().provide, **functions) as pool:
        with pytest.raises(ResourceOpenError, match=f"^the resources of 'a:us-east-1': {told}"):
            await pool.acquire(A)
    assert not caplog.records


@pytest.mark.parametrize(
    ("classify", "told"),
    [(lambda _: "unknown tenant", "returned str"), (lambda _: True, "returned True"), (refuse, "failed")],
)
@in_virtual_time
async def test_a_classify_that_does_not_say_what_it_is_is_told_of(
    classify: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each tenant that does not exist was an outage, in silence."""
    async with ResourcePool(Databases(errors={A: OSError("down")}).provide, classify=classify) as pool:
        assert not (await fail(pool)).permanent
    [line] = [each for each in caplog.records if each.getMessage().startswith("classify= ")]
    assert line.getMessage() == f"classify= {told} for key a:us-east-1; its failed open counts as an outage"
    assert vars(line)["tenant"] == "a:us-east-1"


@pytest.mark.filterwarnings("error")
@in_virtual_time
async def test_a_host_that_would_have_to_be_awaited_is_none() -> None:
    """Each tenant would have a host of its own, and no limit of a host would hold."""

    async def look(_tenant: Tenant) -> str:
        return "db-1"

    def host(tenant: Tenant) -> Any:
        return look(tenant)

    async with ResourcePool(Databases().provide, host=host) as pool:
        with pytest.raises(ResourceOpenError, match=r"host= failed.*it returned an awaitable"):
            await pool.acquire(A)


@pytest.mark.filterwarnings("error")
@in_virtual_time
async def test_an_observer_that_would_have_to_be_awaited_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of it ran, and a warning at the end of its coroutine was all."""

    async def send(_event: Event) -> None:
        raise AssertionError

    def observe(event: Event) -> Any:
        return send(event)

    async with ResourcePool(Databases().provide, observers=[observe]) as pool, pool.lease(A):
        pass
    assert "observe failed on Resource" in caplog.text
    assert "it returned an awaitable, which nothing awaits" in caplog.text


@in_virtual_time
async def test_an_outage_in_use_shortens_no_pause() -> None:
    """A replacement that failed is left alone for as long as it was said, whatever uses of the old resources meet."""
    databases = Databases()
    limits = PoolLimits(max_age=1.0, sweep=0.5, idle=None)
    async with ResourcePool(databases.provide, backoff=OpenBackoff(base=0.1, permanent=50.0), limits=limits) as pool:
        lease = await pool.acquire(A)
        databases.errors[A] = UnknownTenant("removed")
        await asyncio.sleep(3.0)
        assert pool.retry_after(A) == 0.0  # what is open may be used
        assert lease.report(Refused("too many clients", "53300"))
        assert pool.retry_after(A) > 40.0
        lease.release()


@in_virtual_time
async def test_what_an_observer_sets_reaches_no_other_tenants_provider() -> None:
    """Such as a library's context of log fields, bound to the tenant of the event."""
    bound: ContextVar[str] = ContextVar("bound", default="nothing")
    seen: list[str] = []

    @asynccontextmanager
    async def database(tenant: str) -> AsyncGenerator[str]:
        seen.append(bound.get())
        yield tenant

    def bind(event: Event) -> None:
        if isinstance(event, ResourceClosed):
            bound.set(str(event.key))

    async with ResourcePool(database, limits=PoolLimits(budget=1), observers=[bind]) as pool:
        for tenant in "abc":
            async with pool.lease(tenant):
                await asyncio.sleep(0.1)
    assert seen == ["nothing"] * 3
