"""One fleet: limits, pauses and outages that hold over all replicas which consume a queue.

    fleet = Fleet("valkey://cache:6379", per_tenant=20)
    orders = Consumer("orders", context=Tenant, fleet=fleet)

A replica leases slots per tenant, for all tenants at once, a tick at a time. Its scheduler only reads the number that
it may use, so no message waits for the store.
"""

from postroom.fleet.memory import MemoryState
from postroom.fleet.options import Fallback, Fleet
from postroom.fleet.protocol import Answer, Ask, Decisions, Grant, Hint, Request, SharedState
from postroom.fleet.statistics import FleetStatistics, TenantSlots
from postroom.fleet.valkey import StoreInfo, ValkeyState

__all__ = [
    "Answer",
    "Ask",
    "Decisions",
    "Fallback",
    "Fleet",
    "FleetStatistics",
    "Grant",
    "Hint",
    "MemoryState",
    "Request",
    "SharedState",
    "StoreInfo",
    "TenantSlots",
    "ValkeyState",
]
