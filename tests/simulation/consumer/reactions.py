"""How handlers take their cancellation, and oracle *blame*: who is said to have failed?

A handler that the consumer cuts off, because its message is lost or the consumer stops, has not failed, whatever it
makes of that: ``on_error`` is not told, no attempt is counted, and ``AckMode.ALWAYS`` deletes nothing. One that fails,
or cancels itself, has failed: given back as if it had been cut off, its message would run again at once, without end.
"""

import asyncio
from typing import TYPE_CHECKING

from postroom.consumer import Failure
from postroom.errors import OwnershipLost
from postroom.events import MessageSettled
from postroom.types import Settlement
from simulation.consumer.plan import OrderPlan, Reaction
from simulation.consumer.shared import Ctx
from simulation.consumer.watch import LOST, STOPPING

if TYPE_CHECKING:
    from simulation.consumer.process import Process

OF_ITS_OWN = "its own"
"""What a handler's own cancellation says."""


class DriverError(Exception):
    """What a driver makes of a cancellation."""


class LossOfAnother(OwnershipLost):
    """That another message is lost, let out by a handler."""


def is_own_loss(error: BaseException) -> bool:
    """Return whether an error tells that the message at hand is lost."""
    return isinstance(error, OwnershipLost) and not isinstance(error, LossOfAnother)


class Reactions:
    """Lets the handlers of one process take their cancellation as the plan says, and judges what follows."""

    def __init__(self, process: "Process") -> None:
        self._process = process
        self.cut_off: set[str] = set()
        """Receipt handles of handlers that the consumer has cut off."""
        self.failed: set[str] = set()
        """Receipt handles of handlers that failed by themselves."""

    async def act(self, plan: OrderPlan, ctx: Ctx) -> None:
        """Do what the plan says of an order, and take a cancellation as it says."""
        process = self._process
        try:
            await process._act(plan, ctx)
        except asyncio.CancelledError as error:
            if LOST in error.args or STOPPING in error.args:
                self.cut_off.add(ctx.message.receipt_handle)
            process.judge_cancellation(ctx, error)
            obeys = plan.reaction is Reaction.OBEYS or ctx.message.receipt_handle in process.writing
            if obeys or not process.gate.alive or OF_ITS_OWN in error.args:
                raise
            await self._react(plan, ctx, error)

    async def _react(self, plan: OrderPlan, ctx: Ctx, error: asyncio.CancelledError) -> None:
        process = self._process
        process.history.note(process.name, plan.reaction.value, plan.key)
        match plan.reaction:
            case Reaction.TRANSLATES:
                raise DriverError("the statement was cancelled") from error
            case Reaction.RAISES_ANOTHER:
                raise asyncio.CancelledError from error
            case Reaction.FAILS_LATER:
                process.stubborn = True
                await asyncio.sleep(0.3)
                raise ValueError("what it went on with failed") from error
            case _:
                process.stubborn = True
                await process.write(plan, ctx)

    def fails(self, handle: str) -> bool:
        """Note that a handler ended with an error. Returns whether that is a failure of its own."""
        if handle in self.cut_off:
            return False
        self.failed.add(handle)
        return True

    def judge_report(self, failure: Failure) -> None:
        """Judge what ``on_error`` is told."""
        process, message = self._process, failure.message
        told = message.receipt_handle in self.cut_off and not is_own_loss(failure.error)
        if told and process.gate.alive:
            text = f"{process.name} blames {message.id[:4]} for {type(failure.error).__name__}: it was cut off"
            process.history.broken("blame", text)

    def judge_end(self, event: MessageSettled) -> None:
        """Judge what became of a message."""
        process, handle = self._process, event.message.receipt_handle
        if event.settlement is Settlement.LOST and handle in self.cut_off:
            process.ledger.cuts(handle)
        untried = event.settlement is Settlement.RETURNED and process.stopping_since is None
        untried = untried and handle not in process.backs_off  # on a FIFO queue it may have been on its way to one more
        if untried and handle in self.failed and process.gate.alive:
            text = f"{process.name} gives {event.message.id[:4]} back as if it had been cut off: its handler failed"
            process.history.broken("blame", text)
