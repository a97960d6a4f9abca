"""Settlement: what is held stays ours, and is let go exactly once."""

from postroom.settlement.backoff import backoff, exponential
from postroom.settlement.delivery import Delivery
from postroom.settlement.heartbeat import Heartbeat
from postroom.settlement.settler import Settler

__all__ = ["Delivery", "Heartbeat", "Settler", "backoff", "exponential"]
