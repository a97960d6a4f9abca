"""How long a failed message stays invisible."""

import math
from random import Random

from postroom.log_fields import Log, Step, about
from postroom.message import Message
from postroom.options import MAX_VISIBILITY, RetryPolicy
from postroom.program_end import heed
from postroom.repeats import Repeats
from postroom.settlement.delivery import Delivery

_log = Log("postroom.settlement", Step.POLICY)


def whole_seconds(delay: float) -> int:
    """Return a delay as SQS takes it: whole seconds from 0 to 43,200, rounded up so that a delay stays one."""
    return math.ceil(min(MAX_VISIBILITY, max(0, delay)))


def backoff(
    policy: RetryPolicy,
    failed: Delivery | Message,
    error: BaseException,
    attempt: int,
    rng: Random,
    *,
    repeats: Repeats | None = None,
) -> float:
    """Return the seconds until a failed message is seen again.

    Args:
        policy: what was configured.
        failed: the message, or the delivery of it.
        error: what its last attempt ended with.
        attempt: which attempt that was, the first one being 1. Receives are not counted: some of them were the
            consumer's own, and no failure of the message.
        rng: for the jitter.
        repeats: keeps the log from being flooded by a ``RetryPolicy.delay`` that fails.
    """
    repeats = Repeats() if repeats is None else repeats
    message = failed.message if isinstance(failed, Delivery) else failed
    if policy.delay is not None:
        try:
            delay = float(policy.delay(message, error))
        except BaseException as raised:
            heed(raised)
            text = "RetryPolicy.delay failed for message %s; the default backoff applies"
            repeats.failed("delay", _log, text, message.id, error=raised, extra=_about(failed, attempt))
        else:
            if math.isfinite(delay):
                return min(float(MAX_VISIBILITY), max(0.0, delay))
            text = "RetryPolicy.delay returned %r for message %s; the default backoff applies"
            repeats.failed("delay", _log, text, delay, message.id, extra=_about(failed, attempt))
    return exponential(policy, attempt, rng)


def _about(failed: Message | Delivery, attempt: int) -> dict[str, object]:
    if isinstance(failed, Delivery):
        return about(failed)
    return about(queue=failed.queue or None, message_id=failed.id, attempt=attempt)


def exponential(policy: RetryPolicy, attempt: int, rng: Random) -> float:
    """Return ``base * 2 ** (attempt - 1)``, capped, less a random part of up to ``jitter`` of it."""
    # The exponent is bounded: a message that was tried a thousand times must not overflow a float.
    longest = min(policy.cap, policy.base * 2.0 ** min(max(attempt - 1, 0), 60))
    return longest * (1.0 - policy.jitter * rng.random())
