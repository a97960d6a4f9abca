"""Whether a consumer is alive and receives, judged by how fresh its last signs of life are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

SLACK: Final = 10.0
"""Seconds that SQS may be late, beyond two long polls, before a consumer counts as not receiving."""
BLOCKED: Final = 30.0
"""Seconds without a sign of life of the event loop after which a consumer counts as dead: the default visibility
timeout, after which its messages are no longer its own."""
_NOT_SENT: Final = "its first receive was not sent yet"


class Phase(StrEnum):
    """How far a consumer is between its start and its stop."""

    NEW = "new"
    """Not started yet."""
    STARTING = "starting"
    """It opens its client, its queue and its pool."""
    RUNNING = "running"
    """It asks for messages."""
    STOPPING = "stopping"
    """It was asked to stop: it finishes what it holds and asks for nothing more."""
    STOPPED = "stopped"
    """Nothing of it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The health of one consumer at one moment, as ``consumer.health()`` returns it.

    An outage of one tenant, a full consumer and an idle queue are healthy. All reasons name types of errors and never
    their text, so a health page shows no secret.
    """

    queue: str
    """The queue, as the consumer was told it."""
    phase: Phase
    """Where it is between start and stop."""
    live: bool
    """False when only a restart of the process can help: its poller or heartbeat ended, a side task died, or its event
    loop is blocked. True before the start and after a clean stop."""
    ready: bool
    """Whether it receives: the queue was opened, the first poll was sent, and SQS is not silent. SQS counts as silent
    when a receive is out, or receives have failed, for longer than two long polls and 10 s; before the first answer,
    as soon as a receive fails."""
    started: bool
    """Whether it has been ready in this run. From then on only ``live`` says whether a restart helps."""
    reasons: tuple[str, ...] = ()
    """Why it is not live or not ready. Empty when it is both."""
    last_poll_age: float | None = None
    """Seconds since SQS last answered a receive; None before the first answer."""
    unreachable: tuple[str, ...] = ()
    """Of a consumer of several queues: those that cannot be opened or received from, each with the reason. It is ready
    as long as one of them answers, or none is listed."""


class Polls(Protocol):
    """What the poller says of its receives, as loop times."""

    started_at: float | None
    last_success: float | None
    failing_since: float | None
    failing_with: str

    @property
    def asked_at(self) -> float | None:
        """When the oldest receive that is out was sent; None when none is out."""
        ...


def unstarted(queue: str, phase: Phase) -> Health:
    """Return the health of a consumer that does not run yet."""
    reason = "it is starting" if phase is Phase.STARTING else "it was not started yet"
    return Health(queue=queue, phase=phase, live=True, ready=False, started=False, reasons=(reason,))


def examine(
    queue: str,
    phase: Phase,
    polls: Mapping[str, Polls],
    *,
    refused: Mapping[str, str],
    wait: float,
    now: float,
    blocked: float,
    dead: str | None,
) -> Health:
    """Return the health of a run.

    Args:
        queue: its queue.
        phase: how far it is.
        polls: what was received from its queue, or from each of several.
        refused: queues that could not be opened, each with the type of the error.
        wait: seconds of a long poll.
        now: the loop time.
        blocked: seconds for which the event loop has given no sign of life.
        dead: why it will never receive again, if that is so.
    """
    deadly = tuple(_deadly(blocked, dead))
    limit = 2 * wait + SLACK
    found = {name: tuple(_not_receiving(each, limit=limit, now=now)) for name, each in polls.items()}
    silent: tuple[str, ...] = ()
    unreachable: tuple[str, ...] = ()
    if phase is not Phase.RUNNING:
        silent = (f"it is {phase}",)
    elif len(found) == 1 and not refused:
        [silent] = found.values()
    else:  # one that was not asked yet waits for its turn, among others
        asked = {name: why for name, why in found.items() if polls[name].started_at is not None}
        refusals = [f"{name} cannot be opened ({error})" for name, error in refused.items()]
        unreachable = (*(f"{name}: {', '.join(why)}" for name, why in asked.items() if why), *refusals)
        if unreachable and all(asked.values()):
            silent = unreachable
        elif found and not asked:
            silent = (_NOT_SENT,)
    ready = not deadly and not silent
    last = max((each.last_success for each in polls.values() if each.last_success is not None), default=None)
    return Health(
        queue=queue,
        phase=phase,
        live=not deadly,
        ready=ready,
        started=ready or last is not None,
        reasons=deadly + silent,
        last_poll_age=None if last is None else now - last,
        unreachable=unreachable,
    )


def _deadly(blocked: float, dead: str | None) -> Iterator[str]:
    if dead is not None:
        yield dead
    if blocked > BLOCKED:
        yield f"its event loop has been blocked for {blocked:.0f} s"


def _not_receiving(polls: Polls, *, limit: float, now: float) -> Iterator[str]:
    if polls.started_at is None:
        yield _NOT_SENT
    failing, asked = polls.failing_since, polls.asked_at
    if failing is not None and (polls.last_success is None or now - failing > limit):
        yield f"receives have failed for {now - failing:.0f} s ({polls.failing_with})"
    elif asked is not None and now - asked > limit:
        yield f"SQS has not answered a receive for {now - asked:.0f} s"
