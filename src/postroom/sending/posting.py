"""Sends messages in batches, tries refused entries again, and says of each whether it was sent."""

import asyncio
import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, Final, cast

from postroom.display import counted
from postroom.errors import ConfigurationError, InvalidRequest, PostroomError, SendFailed, TransportError, Unsent
from postroom.message import OutgoingMessage
from postroom.redaction import quote
from postroom.sending.batches import Numbered, Waiting
from postroom.settlement.batcher import ANSWER
from postroom.transports.protocol import EntryFailure, Queue, SendResult, checked_results, is_of_key

_JITTER: Final = Random()  # noqa: S311 - spreads calls, keeps no secret
_SHOWN: Final = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SendRetry:
    """How often, and for how long, a message is tried that SQS refused for now.

    Args:
        attempts: calls for one message, the first one included.
        base: seconds before the second call; doubles up to ``cap``, less a random half.
        cap: the longest such pause.
        within: seconds after which nothing is tried again, and the first call that fails as a whole is the last one of
            its send: the others could take as long.

    Only what may succeed later is tried again: throttling, a server error, no answer. The AWS client has tried a call
    three times by itself when it fails here.
    """

    attempts: int = 4
    base: float = 0.2
    cap: float = 5.0
    within: float = 30.0

    def __post_init__(self) -> None:
        _check("attempts", self.attempts, least=1, whole=True)
        for name in ("base", "cap", "within"):
            _check(name, getattr(self, name), least=0)


@dataclasses.dataclass(slots=True)
class Outcome:
    """What became of each message of a call."""

    message_ids: list[str | None]
    """By place; None for what was not sent."""
    unsent: dict[int, Unsent]
    of_queue: set[int] = dataclasses.field(default_factory=set[int])
    """Places of what was not sent for a reason that is its queue's: access was denied, the queue is gone, or its key
    cannot be used."""
    of_transform: dict[int, Exception] = dataclasses.field(default_factory=dict[int, Exception])
    """By place, what the sender's transform raised that may pass: the queue was not asked."""

    def raise_for_unsent(self, queue: str) -> None:
        """Raise ``SendFailed`` if anything was not sent."""
        if not self.unsent:
            return
        failures = [self.unsent[index] for index in sorted(self.unsent)]
        shown = "; ".join(f"entry {each.index}: {each.reason}" for each in failures[:_SHOWN])
        more = f"; and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
        text = (
            f"{len(failures)} of {counted(len(self.message_ids), 'message')} not sent to queue {queue!r}: {shown}{more}"
        )
        raise SendFailed(text, unsent=failures, message_ids=self.message_ids)


async def post(queue: Queue, messages: Sequence[OutgoingMessage], retry: SendRetry) -> Outcome:
    """Send messages, and return what became of each.

    On a FIFO queue no message is sent after one of its group that was not. On a standard queue what SQS refuses for
    now is tried again beside the others. A call that is cancelled may have been carried out.
    """
    return await _Posting(queue, messages, retry).run()


class _Posting:
    """One call of ``post``."""

    def __init__(self, queue: Queue, messages: Sequence[OutgoingMessage], retry: SendRetry) -> None:
        self._queue = queue
        self._ordered = queue.info.fifo
        self._retry = retry
        self._time = asyncio.get_running_loop().time
        self._until = self._time() + retry.within
        self._waiting = Waiting(messages, ordered=self._ordered)
        self._tries = Counter[int]()
        self._outcome = Outcome([None] * len(messages), {})
        self._failed = False  # whether the last call failed as a whole, for now

    async def run(self) -> Outcome:
        """Send batch after batch, with a pause before each that has something to try again."""
        in_a_row = 0
        while batch := self._waiting.take():
            again = await self._send(batch)
            self._waiting.put_back(again)
            in_a_row = in_a_row + 1 if again else 0
            if again:
                longest = min(self._retry.cap, self._retry.base * 2.0 ** (in_a_row - 1))
                await asyncio.sleep(longest * (0.5 + _JITTER.random() / 2))
        return self._outcome

    async def _send(self, batch: Sequence[Numbered]) -> list[Numbered]:
        """Send one batch, and return what is to be tried again."""
        again: list[Numbered] = []
        self._outcome.of_queue.difference_update(index for index, _ in batch)  # what the try before said of them
        results = await self._results(batch)
        late = self._time() >= self._until
        for (index, message), result in zip(batch, results, strict=True):
            if isinstance(result, SendResult):
                self._outcome.message_ids[index] = result.message_id
                continue
            # Counted for each message: one that is refused again and again must not use up the tries of the others.
            self._tries[index] += 1
            if is_of_key(result.code):
                self._outcome.of_queue.add(index)
            unsent = Unsent(index, result.code, _said(result), retryable=not result.sender_fault)
            if unsent.retryable and self._tries[index] < self._retry.attempts and not late:
                again.append((index, message))
            else:
                self._give_up(message, unsent)
        if late and self._failed:
            self._give_up_the_rest(next(index for index, _ in batch if index in self._outcome.unsent))
        return again

    async def _results(self, batch: Sequence[Numbered]) -> Sequence[SendResult | EntryFailure]:
        self._failed = False
        try:
            async with asyncio.timeout(ANSWER):
                return checked_results(await self._queue.send([message for _, message in batch]), len(batch))
        except TimeoutError:
            self._failed = True
            text = f"no answer within {ANSWER:g} s; SQS may have taken it"
            return [EntryFailure(0, "TimeoutError", text)] * len(batch)
        except InvalidRequest as error:
            # SQS refuses whole calls for one bad entry: each is asked alone which one it is.
            if len(batch) > 1 and not is_of_key(error.code):
                return [(await self._results([each]))[0] for each in batch]
            return [EntryFailure(0, error.code or type(error).__name__, str(error), sender_fault=True)] * len(batch)
        except PostroomError as error:  # also ClosedError: what was sent before it is to be told
            self._outcome.of_queue.update(index for index, _ in batch)
            self._failed = retryable = isinstance(error, TransportError) and error.retryable
            code = getattr(error, "code", "") or type(error).__name__
            return [EntryFailure(0, code, str(error), not retryable)] * len(batch)

    def _give_up(self, message: OutgoingMessage, unsent: Unsent) -> None:
        """Note what was not sent: on a FIFO queue also everything behind it in its group."""
        self._outcome.unsent[unsent.index] = unsent
        if self._ordered:
            text = f"entry {unsent.index} of its message group was not sent"
            for index, _ in self._waiting.drop_group(message.group_id):
                self._outcome.unsent[index] = Unsent(index, unsent.code, text, retryable=True, behind=True)

    def _give_up_the_rest(self, failed: int) -> None:
        """Note what was not tried: the queue does not answer, and there is no time left."""
        code = self._outcome.unsent[failed].code
        text = f"not tried: entry {failed} was not sent, and {self._retry.within:g} s were over"
        for index, _ in self._waiting.drop_all():
            self._outcome.unsent[index] = Unsent(index, code, text, retryable=True, behind=True)


def _said(failure: EntryFailure) -> str:
    return f"{failure.code} ({quote(failure.text)})" if failure.text else failure.code


def _check(name: str, value: object, *, least: float, whole: bool = False) -> None:
    kinds: tuple[type[Any], ...] = (int,) if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not least <= cast("float", value) < math.inf:
        what = f"a whole number from {least:g} up" if whole else "seconds, 0 or more"
        raise ConfigurationError(f"SendRetry({name}=...) takes {what}; got {value!r}")
