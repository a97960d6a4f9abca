"""Resources per context: opened once, leased to many, closed once. Knows nothing of queues.

async with ResourcePool(database) as databases:
    async with databases.lease(tenant) as db:
        await db.execute("...")
"""

from postroom.display import display_key
from postroom.options import OpenBackoff, PoolLimits, PoolTimeouts
from postroom.resources.failures import (
    OpenFailure,
    classify_open,
    is_outage,
    is_suspect,
    is_unknown_tenant,
    sqlstate_of,
)
from postroom.resources.lease import Held, Lease, LeaseScope
from postroom.resources.pool import ResourcePool
from postroom.resources.statistics import PoolStatistics

__all__ = [
    "Held",
    "Lease",
    "LeaseScope",
    "OpenBackoff",
    "OpenFailure",
    "PoolLimits",
    "PoolStatistics",
    "PoolTimeouts",
    "ResourcePool",
    "classify_open",
    "display_key",
    "is_outage",
    "is_suspect",
    "is_unknown_tenant",
    "sqlstate_of",
]
