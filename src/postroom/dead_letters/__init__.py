"""Dead letters by tenant: look at them, send them home, or delete them, and keep a record of it."""

from postroom.dead_letters.journal import Journal
from postroom.dead_letters.outcome import Outcome
from postroom.dead_letters.queue import DeadLetterQueue, open_dead_letters
from postroom.dead_letters.reading import (
    TOO_MANY_RECEIVES,
    DeadLetter,
    TenantOf,
    tenant_by_attribute,
    tenant_by_consumer,
    tenant_by_group,
)
from postroom.dead_letters.selecting import LetterFilter

__all__ = [
    "TOO_MANY_RECEIVES",
    "DeadLetter",
    "DeadLetterQueue",
    "Journal",
    "LetterFilter",
    "Outcome",
    "TenantOf",
    "open_dead_letters",
    "tenant_by_attribute",
    "tenant_by_consumer",
    "tenant_by_group",
]
