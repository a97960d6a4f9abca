"""How resources are cached. Run it with ``python -m examples.resource_caching.main``.

Four tenants in two regions share a pool that may have three resources open. The key of a resource is the tenant alone,
so that both regions of a tenant use the same one.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from examples.running import run_example

from postroom import PoolLimits, ResourcePool
from postroom.events import Event, ResourceClosed, ResourceOpened


@dataclass(frozen=True)
class Tenant:
    """The context."""

    tenant_id: str
    region: str


class Index:
    """A resource that is expensive to open: a search index in memory, say."""

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        self.healthy = True

    async def ping(self) -> None:
        """Raise when it is not healthy any longer."""
        if not self.healthy:
            raise ConnectionError(f"the index of {self.tenant_id} is broken")


@asynccontextmanager
async def index(tenant: Tenant) -> AsyncGenerator[Index]:
    """Open a tenant's index; what follows the yield is the cleanup."""
    opened = Index(tenant.tenant_id)
    yield opened
    opened.healthy = False


def monitor(event: Event) -> None:
    """Print what the pool does. A real service counts it."""
    match event:
        case ResourceOpened(key=key):
            print(f"  opened {key}")
        case ResourceClosed(key=key, reason=reason):
            print(f"  closed {key}: {reason}")
        case _:
            pass


def make_pool(*, check_after: float = 30) -> ResourcePool[Tenant, Index]:
    """Return a pool. A resource that was idle for ``check_after`` seconds is checked before it is leased again."""
    return ResourcePool(
        index,
        key=lambda tenant: tenant.tenant_id,  # both regions of a tenant share one index
        weight=1,
        check=Index.ping,
        limits=PoolLimits(budget=3, idle=600, max_age=3600, check_after=check_after),
        observers=[monitor],
    )


async def main() -> None:
    """Show a miss, hits, an eviction, an invalidation and a health check."""
    async with make_pool() as pool:
        print("a miss, then two hits, one of them from the other region")
        for region in ("eu-west-1", "eu-west-1", "us-east-1"):
            async with pool.lease(Tenant("acme", region)):
                pass
        print("the budget is three: the fourth tenant evicts what was used longest ago")
        for name in ("globex", "initech", "umbrella"):
            async with pool.lease(Tenant(name, "eu-west-1")):
                pass
        print("a tenant's settings changed: its resource is closed once its last user has released it")
        async with pool.lease(Tenant("globex", "eu-west-1")):
            await pool.invalidate(Tenant("globex", "eu-west-1"))
            print("  still in use")
        async with pool.lease(Tenant("globex", "eu-west-1")):
            pass
        figures = pool.statistics()
        print(f"hits {figures.hits}, misses {figures.misses}, open {figures.live} of {figures.budget}")
        print("evictions:", ", ".join(f"{count} {reason}" for reason, count in figures.evictions.items()))
    print("a resource that fails its check is closed and opened again")
    async with make_pool(check_after=0) as pool:
        async with pool.lease(Tenant("umbrella", "eu-west-1")) as broken:
            broken.healthy = False
        async with pool.lease(Tenant("umbrella", "eu-west-1")):
            pass


if __name__ == "__main__":
    run_example(main)
