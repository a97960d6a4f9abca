"""Messages as the consumer's core sees them, made by hand."""

from collections.abc import Hashable
from types import SimpleNamespace
from typing import Any

from msgspec import structs

from postroom.consumer.job import Job
from postroom.options import Faults, RetryPolicy
from support.scripted import message


def source(*, max_receives: int | None = None, known: bool = True, **policies: Any) -> Any:
    """Make what stands for a queue: its redrive policy, and the policies of its messages."""
    redrive = None if max_receives is None else object()
    facts = SimpleNamespace(known=known, max_receives=max_receives, redrive=redrive)
    retry = policies.get("retry", RetryPolicy())
    faults = policies.get("faults", Faults())
    return SimpleNamespace(facts=facts, fifo=False, retry_of=lambda _job: retry, faults_of=lambda _job: faults)


def job(tenant: Hashable, number: int = 0, *, of: Any = None, receives: int = 1, attempt: int = 1) -> Job:
    """Make a message of a tenant."""
    received = structs.replace(message(number), system_attributes={"ApproximateReceiveCount": str(receives)})
    made = Job(
        message=received,
        receipt_handle=received.receipt_handle,
        received_at=0.0,
        deadline=60.0,
        receives=receives,
        source=source() if of is None else of,
        tenant=tenant,
        context=tenant,
    )
    made.attempt = attempt
    return made
