"""Every name that telemetry uses: the one place to change when the conventions do.

Those that begin with ``messaging.`` are of OpenTelemetry's messaging conventions, which are in development. The
others are postroom's own.
"""

from typing import Final, NamedTuple

SCOPE: Final = "postroom"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

# -- attributes: https://opentelemetry.io/docs/specs/semconv/messaging/sqs/ --
SYSTEM: Final = "messaging.system"
SQS: Final = "aws_sqs"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
MESSAGE_ID: Final = "messaging.message.id"
BATCH_COUNT: Final = "messaging.batch.message_count"
ERROR_TYPE: Final = "error.type"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"
TENANT: Final = "postroom.tenant"
ATTEMPT: Final = "postroom.attempt"
RECEIVES: Final = "postroom.receives"
WAITED: Final = "postroom.waited"
SETTLEMENT: Final = "postroom.settlement"
STATE: Final = "postroom.state"
POOL: Final = "postroom.pool"

# -- operations, which begin the names of spans: "process orders" --
SEND: Final = "send"
RECEIVE: Final = "receive"
PROCESS: Final = "process"
SETTLE: Final = "settle"
LEASE: Final = "lease"

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Bounds of durations, as the messaging conventions give them."""
LONG_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3_600)
"""Bounds of waits, which an outage makes long."""


class Instrument(NamedTuple):
    """One instrument: its name, unit and meaning."""

    name: str
    unit: str
    text: str


PROCESS_DURATION: Final = Instrument("messaging.process.duration", "s", "Duration of handlers")
OPERATION_DURATION: Final = Instrument(
    "messaging.client.operation.duration", "s", "Duration of receives, a long poll's wait included, and of sends"
)
CONSUMED: Final = Instrument("messaging.client.consumed.messages", "{message}", "Messages received")
SENT: Final = Instrument("messaging.client.sent.messages", "{message}", "Messages sent")

WAIT: Final = Instrument("postroom.message.wait", "s", "From the receive of a message to the start of its handler")
ATTEMPTS: Final = Instrument("postroom.message.attempts", "{attempt}", "Which attempt a handler run is")
LEASE_DURATION: Final = Instrument(
    "postroom.lease.duration", "s", "For how long messages waited for resources that were not open"
)
OPEN_DURATION: Final = Instrument("postroom.resource.open.duration", "s", "Duration of opening a tenant's resources")
LOOP_LAG: Final = Instrument("postroom.loop.lag", "s", "By how much the event loop ran a timer too late")

COUNTERS: Final = {
    "receives": Instrument("postroom.receives", "{request}", "ReceiveMessage requests"),
    "scouting_receives": Instrument(
        "postroom.receives.scouting", "{request}", "Receives that looked for quiet tenants although there was no room"
    ),
    "poll_failures": Instrument("postroom.receives.failed", "{request}", "Receives that failed"),
    "succeeded": Instrument("postroom.handlers.succeeded", "{run}", "Handlers that returned"),
    "cancelled": Instrument("postroom.handlers.cancelled", "{run}", "Handlers that had to be cancelled at stop"),
    "duplicates": Instrument("postroom.duplicates", "{message}", "Messages that were found handled before"),
    "parked": Instrument("postroom.parked", "{message}", "Messages parked so that quiet tenants' could be received"),
    "deferred": Instrument("postroom.deferred", "{message}", "Messages deferred because their tenant could not run"),
    "extensions": Instrument("postroom.extensions", "{message}", "Visibility timeouts extended by the heartbeat"),
    "settlement_failures": Instrument(
        "postroom.settlements.failed", "{message}", "Deletes and visibility changes that were given up"
    ),
    "group_mismatches": Instrument(
        "postroom.group.mismatches", "{message}", "How often message group and tenant disagreed"
    ),
}
"""By the field of ``ConsumerStatistics``. ``messaging.client.consumed.messages`` is ``received``."""
SETTLEMENTS: Final = Instrument("postroom.settlements", "{message}", "Messages by what became of them")
FAILURES: Final = Instrument("postroom.failures", "{message}", "Failed messages by the type of the error")

GAUGES: Final = {
    "slots": Instrument("postroom.slots.limit", "{slot}", "Handlers that may run at once"),
    "running": Instrument("postroom.slots.used", "{slot}", "Handlers that run"),
    "held": Instrument("postroom.held", "{message}", "Messages that the consumer owns"),
    "held_bytes": Instrument("postroom.held.size", "By", "Bytes of the bodies of held messages"),
    "away": Instrument(
        "postroom.away",
        "{message}",
        "Messages that were parked or deferred, or that wait for what fails for everything, and are invisible",
    ),
    "tenants": Instrument("postroom.tenants", "{tenant}", "Tenants that have a message here"),
    "outages": Instrument("postroom.outages", "{outage}", "Tenants and hosts with resources that cannot be used"),
    "breakers": Instrument("postroom.breakers", "{tenant}", "Tenants paused because all of their handlers fail"),
    "oldest_wait": Instrument("postroom.message.wait.oldest", "s", "Longest present wait of a message for its handler"),
    "oldest_wait_within_share": Instrument(
        "postroom.message.wait.oldest_within_share",
        "s",
        "Longest wait of tenants that have less than their share",
    ),
    "last_poll_age": Instrument("postroom.poll.age", "s", "Since SQS last answered a receive"),
}
"""By the field of ``ConsumerStatistics``."""
WAITING: Final = Instrument("postroom.waiting", "{message}", "Messages that wait, for a slot or for resources")
CONSUMERS: Final = Instrument("postroom.consumers", "{consumer}", "Consumers that run")

FLEET_COUNTERS: Final = {
    "overruns": Instrument("postroom.fleet.overruns", "{handler}", "Handlers that went on after their slots were lost"),
    "exchanges": Instrument("postroom.fleet.exchanges", "{exchange}", "Exchanges with the store that succeeded"),
    "failed_exchanges": Instrument(
        "postroom.fleet.exchanges.failed", "{exchange}", "Exchanges that failed, or had no answer in time"
    ),
}
"""By the field of ``FleetStatistics``."""
FLEET_GAUGES: Final = {
    "degraded": Instrument("postroom.fleet.degraded", "{consumer}", "Consumers to which the fallback applies"),
    "replicas": Instrument("postroom.fleet.replicas", "{replica}", "Replicas alive, as the store said last"),
    "slots": Instrument("postroom.fleet.slots", "{slot}", "Slots of all tenants that this process holds"),
    "starved": Instrument("postroom.fleet.starved", "{tenant}", "Tenants with messages here and no slot of the fleet"),
    "hosts_down": Instrument("postroom.fleet.hosts.down", "{host}", "Hosts that a replica has said are down"),
    "last_exchange_age": Instrument("postroom.fleet.exchange.age", "s", "Since the last exchange that succeeded"),
    "last_exchange_seconds": Instrument("postroom.fleet.exchange.duration", "s", "What the last exchange took"),
}
"""By the field of ``FleetStatistics``."""
FLEET: Final = "postroom.fleet.name"

POOL_COUNTERS: Final = {
    "opened": Instrument("postroom.pool.opened", "{resource}", "Resources opened"),
    "closed": Instrument("postroom.pool.closed", "{resource}", "Resources closed"),
    "hits": Instrument("postroom.pool.hits", "{lease}", "Leases handed out at once"),
    "misses": Instrument("postroom.pool.misses", "{lease}", "Leases that had to wait, or were refused"),
    "timeouts": Instrument("postroom.pool.timeouts", "{lease}", "Leases that reached their deadline"),
    "refusals": Instrument("postroom.pool.refusals", "{lease}", "Leases refused at once after failures"),
    "open_failures": Instrument("postroom.pool.open.failed", "{resource}", "Opens that failed"),
    "check_failures": Instrument("postroom.pool.checks.failed", "{check}", "Health checks that failed"),
}
"""By the field of ``PoolStatistics``."""
POOL_GAUGES: Final = {
    "budget": Instrument("postroom.pool.budget", "{weight}", "The limit of what may be open"),
    "weight": Instrument("postroom.pool.weight", "{weight}", "What is open, opening or closing"),
    "live": Instrument("postroom.pool.live", "{resource}", "Resources that are open"),
    "leased": Instrument("postroom.pool.leased", "{lease}", "Leases that are out"),
    "waiting": Instrument("postroom.pool.waiting", "{lease}", "Calls that wait for a lease"),
    "cooling": Instrument("postroom.pool.cooling", "{tenant}", "Tenants left alone after a failure"),
}
"""By the field of ``PoolStatistics``."""

TENANT_MESSAGES: Final = Instrument("postroom.tenant.messages", "{message}", "Handler runs of a busy tenant")
TENANT_FAILURES: Final = Instrument("postroom.tenant.failures", "{message}", "Failed handler runs of a busy tenant")
TENANT_SECONDS: Final = Instrument("postroom.tenant.handler.time", "s", "Handler seconds of a busy tenant")
TENANT_WAIT: Final = Instrument(
    "postroom.tenant.wait", "s", "Sum of the waits of a busy tenant's messages for their handlers"
)

INSTRUMENTS: Final = (
    PROCESS_DURATION, OPERATION_DURATION, CONSUMED, SENT, WAIT, ATTEMPTS, LEASE_DURATION, OPEN_DURATION, LOOP_LAG,
    *COUNTERS.values(), SETTLEMENTS, FAILURES, *GAUGES.values(), WAITING, CONSUMERS, *POOL_COUNTERS.values(),
    *POOL_GAUGES.values(), *FLEET_COUNTERS.values(), *FLEET_GAUGES.values(),
    TENANT_MESSAGES, TENANT_FAILURES, TENANT_SECONDS, TENANT_WAIT,
)  # fmt: skip
"""All instruments."""
