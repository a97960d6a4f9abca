"""Settlement: what is held stays ours, and is let go exactly once."""

from postroom.settlement.backoff import backoff, exponential, whole_seconds
from postroom.settlement.batcher import error_of
from postroom.settlement.dead_letters import DeadLetters, HasRedrive
from postroom.settlement.delivery import Delivery, Ending
from postroom.settlement.heartbeat import Heartbeat
from postroom.settlement.settler import Listener, Settler, Tally
from postroom.settlement.sleep import Moment
from postroom.settlement.trouble import Refusals, SharedLines, describe

__all__ = [
    "DeadLetters",
    "Delivery",
    "Ending",
    "HasRedrive",
    "Heartbeat",
    "Listener",
    "Moment",
    "Refusals",
    "Settler",
    "SharedLines",
    "Tally",
    "backoff",
    "describe",
    "error_of",
    "exponential",
    "whole_seconds",
]
