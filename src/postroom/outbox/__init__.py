"""The outbox: messages that are written in a database's own transaction, and sent after its commit.

``await outbox.add(tx, invoices, message)`` in the transaction of a handler or of a request; an ``OutboxRelay``
sends what was committed.
"""

from postroom.outbox.relay import OutboxRelay, OutboxStatistics
from postroom.outbox.tables import SQLITE_OUTBOX, Outbox, postgres_outbox

__all__ = ["SQLITE_OUTBOX", "Outbox", "OutboxRelay", "OutboxStatistics", "postgres_outbox"]
