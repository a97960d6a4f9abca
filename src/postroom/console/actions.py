"""What an operator can do with a tenant, checked and carried out."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final

import msgspec

from postroom.console.desk import Desk
from postroom.consumer import Consumer, TenantState
from postroom.consumer.handover import ProbeOutcome
from postroom.consumer.tenants import check_limits
from postroom.errors import ConfigurationError, PostroomError, QueueNotFound, in_words
from postroom.events import OperatorAction

_LONGEST: Final = 500
_REACH: Final = 10.0
"""Seconds to find the queue that messages are diverted to."""
BEING_MOVED: Final = "being moved: "
"""How the reason of a pause begins that a move made: a later move of the tenant takes it over."""
_TAKES_TIME: Final = frozenset({"drain", "close", "places", "probe", "offboard"})


class Order(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One action, as it comes by HTTP. What an action does not use is left out."""

    action: str
    tenant: str
    reason: str
    queue: str | None = None
    """Only in the consumer of this queue; by default in every one that knows the tenant."""
    concurrency: int | None = None
    """``limit``: running handlers; 0 ends the limit."""
    rate: float | None = None
    """``limit``: starts per second; 0 ends the limit."""
    to: str | None = None
    """``divert``: the queue. ``pause`` with ``unless_decided``: take over from a killed move, to this place."""
    timeout: float = 30.0
    """``drain``, ``close``, ``places``, ``probe``, ``offboard``: seconds, at most 600."""
    unless_decided: bool = False
    """``pause``: refuse a tenant about which an operator has decided something, unless it is being moved."""
    expect: str | None = None
    """``places``, ``probe``: refuse a tenant that is in another state, such as ``paused``."""
    message: bool = True
    """``probe``: let a message run, too."""


class Done(msgspec.Struct):
    """What was done."""

    action: str
    tenant: str
    queues: list[str]
    details: str = ""
    results: list[tuple[str, str]] = []
    """What ``places`` and ``probe`` found, each with its queue."""


async def carry_out(desk: Desk, order: Order, *, operator: str) -> Done:
    """Carry out an action in every consumer that knows the tenant, and tell the observers of each.

    Raises:
        ConfigurationError: no such action, no reason, no such tenant, or a value that cannot be.
        TimeoutError: something was not done in time. After ``drain`` and ``close`` the tenant stays as it was.
        Exception: ``places``: whatever a registry raises.
    """
    work = ACTIONS.get(order.action)
    if work is None:
        raise ConfigurationError(f"no action {order.action!r}; there are {', '.join(ACTIONS)}")
    # One line: a reason with line breaks could forge further lines of the log.
    reason = " ".join(order.reason.split())[:_LONGEST]
    if not reason:
        raise ConfigurationError("an action needs a reason: it is logged, and told to observers")
    details = _details(order)
    queues: list[str] = []
    results: list[tuple[str, str]] = []
    remarks = [details] if details else []
    if unseen := desk.unseen(order.tenant, order.queue):
        remarks.append(unseen)
    found_in = desk.find(order.tenant, order.queue)
    # For all consumers before any is changed: a refusal must leave nothing half done.
    if order.unless_decided:
        for consumer, key in found_in:
            _check_undecided(consumer, key, order)
    together = order.action == "offboard"
    for consumer, key in found_in if together else ():
        consumer.tenants.handover.require_dead_letters(key)
    for consumer, key in found_in:
        event = OperatorAction(consumer.queue, key, order.action, operator, reason, details)
        consumer.tell(event)  # before it is carried out: a drain that takes long, or fails, was ordered all the same
        found = None if together else await work(consumer, key, order, f"{reason} ({operator})")
        if found is not None:
            results.append((consumer.queue, found))
        queues.append(consumer.queue)
        if order.action == "probe" and found == ProbeOutcome.HANDLED:
            break  # one message is enough, whatever else consumes the same queue here
    if together:
        # At once: of consumers that share a pool, one that still runs would open again what another one closes.
        ending = [work(consumer, key, order, f"{reason} ({operator})") for consumer, key in found_in]
        _raise_all(queues, await asyncio.gather(*ending, return_exceptions=True))
    return Done(order.action, order.tenant, queues, "; ".join(remarks), results)


def _raise_all(queues: list[str], ended: list[str | BaseException | None]) -> None:
    """Raise what went wrong; where it is more than one thing, all of it, each with its queue."""
    errors = [(queue, each) for queue, each in zip(queues, ended, strict=True) if isinstance(each, BaseException)]
    for _, error in errors:
        if len(errors) == 1 or not isinstance(error, Exception):
            raise error
    if errors:
        kinds = {type(each) for _, each in errors}
        kind = kinds.pop() if len(kinds) == 1 and kinds <= {TimeoutError, ConfigurationError} else PostroomError
        raise kind("; ".join(f"{queue}: {in_words(each)}" for queue, each in errors)) from errors[0][1]


def _details(order: Order) -> str:
    """Return what was chosen, after a check that the action can be carried out."""
    if order.action == "limit":
        if order.concurrency is None and order.rate is None:
            raise ConfigurationError("limit needs concurrency or rate; 0 ends a limit")
        if (order.concurrency or 0) < 0 or (order.rate or 0.0) < 0:
            raise ConfigurationError("limit takes numbers from 0 on; 0 ends a limit")
        chosen = {"concurrency": order.concurrency, "rate": order.rate}
        check_limits({name: value or None for name, value in chosen.items()})
        return ", ".join(f"{name}={value:g}" for name, value in chosen.items() if value is not None)
    if order.action == "divert":
        if not order.to:
            raise ConfigurationError("divert needs the queue that the messages go to")
        return f"to {order.to}"
    if order.action in _TAKES_TIME and not 0 < order.timeout <= 600:
        raise ConfigurationError(f"{order.action} takes a timeout above 0, and at most 600 seconds")
    return ""


def _check_undecided(consumer: Consumer[Any, Any], key: Hashable, order: Order) -> None:
    """Refuse a tenant about which an operator has decided something, unless an earlier move did."""
    status = consumer.tenants[key]
    free = status.state in {TenantState.ACTIVE, TenantState.UNAVAILABLE}
    moved = status.state is TenantState.PAUSED and (status.reason or "").startswith(BEING_MOVED)
    if not free and not moved:
        raise ConfigurationError(f"{order.tenant} is {status.state} ({status.reason}): resume it first")
    if moved and order.to is None:
        # Two moves at once would each undo what the other has done.
        text = "another move runs, or was killed and may have switched it. If it was killed, go on with it: "
        raise ConfigurationError(f"{order.tenant} is paused ({status.reason}): {text}--go-on and --to PLACE")


async def _pause(consumer: Consumer[Any, Any], key: Hashable, _order: Order, reason: str) -> None:
    consumer.tenants.pause(key, reason=reason)


async def _resume(consumer: Consumer[Any, Any], key: Hashable, _order: Order, reason: str) -> None:
    # Limits stay: ending a pause says nothing about them.
    consumer.tenants.resume(key, reason=reason)


async def _limit(consumer: Consumer[Any, Any], key: Hashable, order: Order, reason: str) -> None:
    limits: dict[str, Any] = {}
    if order.concurrency is not None:
        limits["concurrency"] = order.concurrency or None
    if order.rate is not None:
        limits["rate"] = order.rate or None
    consumer.tenants.limit(key, **limits, reason=reason)


async def _quarantine(consumer: Consumer[Any, Any], key: Hashable, _order: Order, reason: str) -> None:
    consumer.tenants.quarantine(key, reason=reason)


async def _divert(consumer: Consumer[Any, Any], key: Hashable, order: Order, reason: str) -> None:
    await _check_destination(consumer, order.to or "")
    consumer.tenants.divert(key, queue=order.to or "", reason=reason)


async def _check_destination(consumer: Consumer[Any, Any], queue: str) -> None:
    """Refuse a queue that does not exist, and one that the consumer itself consumes: its messages would go round."""
    client = consumer.opened_client
    if client is None:
        return
    async with asyncio.timeout(_REACH):
        try:
            opened = await client.queue(queue)
        except QueueNotFound as error:
            raise ConfigurationError(str(error)) from error
    if opened.info.url in {each.info.url for each in consumer.opened_queues}:
        raise ConfigurationError(f"divert needs another queue: {queue} is the one that the messages come from")


async def _drain(consumer: Consumer[Any, Any], key: Hashable, order: Order, reason: str) -> None:
    try:
        await consumer.tenants.drain(key, timeout=order.timeout, reason=reason)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; it stays paused") from None


async def _invalidate(consumer: Consumer[Any, Any], key: Hashable, _order: Order, reason: str) -> None:
    await consumer.tenants.invalidate(key, reason=reason)


async def _close(consumer: Consumer[Any, Any], key: Hashable, order: Order, _reason: str) -> None:
    await consumer.tenants.close(key, timeout=order.timeout)


def _check_state(consumer: Consumer[Any, Any], key: Hashable, order: Order) -> None:
    """Refuse a tenant in another state than its mover takes for granted."""
    status = consumer.tenants[key]
    if order.expect is not None and status.state != order.expect:
        text = f"{order.tenant} is {status.state} in {consumer.queue}, and not {order.expect}: "
        raise ConfigurationError(f"{text}its process was started again, or another operator has acted meanwhile")


async def _places(consumer: Consumer[Any, Any], key: Hashable, order: Order, _reason: str) -> str:
    _check_state(consumer, key, order)
    return ", ".join(await consumer.tenants.places(key, timeout=order.timeout))


async def _probe(consumer: Consumer[Any, Any], key: Hashable, order: Order, _reason: str) -> str:
    _check_state(consumer, key, order)
    probe = await consumer.tenants.probe(key, timeout=order.timeout, message=order.message)
    return probe.outcome if probe.error is None else f"{probe.outcome}: {probe.error}"


async def _offboard(consumer: Consumer[Any, Any], key: Hashable, order: Order, reason: str) -> None:
    await consumer.tenants.offboard(key, timeout=order.timeout, reason=reason)


async def _retry(consumer: Consumer[Any, Any], key: Hashable, _order: Order, reason: str) -> None:
    consumer.tenants.retry_now(key, reason=reason)


Work = Callable[[Consumer[Any, Any], Hashable, Order, str], Awaitable[str | None]]
ACTIONS: Final[dict[str, Work]] = {
    "pause": _pause,
    "resume": _resume,
    "limit": _limit,
    "quarantine": _quarantine,
    "drain": _drain,
    "divert": _divert,
    "invalidate": _invalidate,
    "retry": _retry,
    "offboard": _offboard,
    "close": _close,
    "places": _places,
    "probe": _probe,
}
"""Every action by its name."""
