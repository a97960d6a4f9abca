"""What the queue says of itself, and says again while the consumer runs: redrive policy, retention, in flight."""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Final

from postroom.consumer.job import Job
from postroom.errors import AccessDenied
from postroom.log_fields import Log, Step, about
from postroom.settlement.sleep import machine_slept
from postroom.tasks import Tasks, has_to_leave
from postroom.transports.protocol import Queue, RedrivePolicy

_log = Log("postroom.consumer", Step.RECEIVE)

LIMIT: Final = 120_000
"""Messages that a queue may have in flight (quotas-messages.html). Past it long polls return nothing, and no reason;
short polls fail with ``OverLimit``."""
ENOUGH: Final = LIMIT * 3 // 4
"""In flight in the whole queue: with more, this consumer makes nothing else invisible."""
REFRESH: Final = 60.0
"""Seconds between two looks at the attributes while messages come: at most 43,200 requests a month, about $0.02."""
_EVERY: Final = 2.0
"""Seconds between two looks while messages are made invisible."""
_MANY: Final = 500
"""Messages made invisible that are worth a look of their own: a hundredth of the calls that they cost in any case."""
_REST: Final = 30.0
"""Seconds without making anything invisible after the queue has refused a receive."""
_DENIED: Final = 600.0
"""Seconds until the attributes are asked for again after that was denied."""
_MARGIN: Final = 60.0
_MARGIN_PART: Final = 0.25
"""Seconds before the end of its retention period at which a message that could not be tried is given up: 60, or a
quarter of the period if that is less."""
_LAST_CALL: Final = 1 / 3
"""The part of that margin in which a message may still get a slot."""
_LONGEST_POLL: Final = 30.0
"""Seconds that a long poll takes at most, with some to spare: SQS allows 20."""
_JUMP: Final = 0.25
"""Seconds of suspension that are worth to be counted: less is how exactly clocks are read."""
_RETENTION: Final = 345_600.0
"""The default retention period of SQS, four days (sqs-queue-parameters.html)."""


class QueueFacts:
    """Knows a queue's redrive policy, retention period and messages in flight, and looks again when it matters.

    The answers are approximate and late, so limits are kept at a distance. Where the attributes may not be read,
    ``known`` is False, and the consumer spends no receive of any message.
    """

    def __init__(self, queue: Queue, tasks: Tasks) -> None:
        self._queue = queue
        self._tasks = tasks
        self._clock = tasks.time
        self.known = getattr(queue.info, "attributes_known", True)
        """Whether the attributes could be read."""
        self.redrive: RedrivePolicy | None = queue.info.redrive
        self._retention = _positive(queue.info.attributes.get("MessageRetentionPeriod"), _RETENTION)
        self._in_flight = 0
        self._since = 0
        self._rest_until = -math.inf
        self._next = self._clock() + REFRESH
        self._look: asyncio.Task[None] | None = None
        self._least = -math.inf
        """What SQS's clock is ahead of the loop's, at least: it has handed out what is here, and said when."""
        self._most = math.inf
        """The same, at most: it handed it out after it was asked."""
        self._slept = machine_slept()

    @property
    def name(self) -> str:
        """The queue's name."""
        return self._queue.info.name

    @property
    def max_receives(self) -> int | None:
        """Receives after which SQS makes a dead letter of a message; None where it never does."""
        return None if self.redrive is None else self.redrive.max_receive_count

    def seconds_left(self, job: Job) -> float:
        """Return for how long a message may still wait: until shortly before its retention period is over."""
        sent = job.message.sent_at
        if sent is None:  # an emulator's: it was sent before it was received
            return self._retention - self._margin - (self._clock() - job.received_at)
        ends = sent + self._retention - self._ahead()
        # SQS hands out no message after the end of its period: this clock is wrong, or what the message says.
        if ends <= job.received_at:
            return self._retention
        return ends - self._margin - self._clock()

    def age(self, job: Job) -> float | None:
        """Return for how many seconds a message has been in the queue; None where that is not known."""
        if job.message.sent_at is None:
            return None
        return self._clock() + self._ahead() - job.message.sent_at

    def is_last_call(self, job: Job) -> bool:
        """Whether a message that lacks nothing but a slot must not wait for one any longer."""
        return self.seconds_left(job) < -self._margin * _LAST_CALL

    @property
    def _margin(self) -> float:
        return min(_MARGIN, self._retention * _MARGIN_PART)

    def received(self, jobs: Sequence[Job], now: float) -> None:
        """Learn SQS's own time from a receive, and look again at the attributes if that is long ago."""
        # One tells enough, of those that are received for the first time: of others it is not said when this was.
        job = next((job for job in jobs if job.receives == 1), jobs[0] if jobs else None)
        if job is not None and (first := job.message.first_received_at) is not None:
            self._least = max(self._least, first - now)
            if job.receives == 1:
                # The answer may have waited in a socket, while the process stood still.
                self._most = min(self._most, first - job.received_at)
        self.keep_up(now)

    def keep_up(self, now: float) -> None:
        """Look again at the attributes if that is long ago: they matter as long as something is here."""
        if now >= self._next:
            self._look_again()

    def _ahead(self) -> float:
        """Return what SQS's clock is ahead of the loop's: by this machine's clock, as far as receives agree."""
        slept = machine_slept()
        if slept - self._slept >= _JUMP:  # the loop's clock stood still meanwhile
            self._least, self._most = self._least + slept - self._slept, self._most + slept - self._slept
            self._slept = slept
        own = time.time() - self._clock()
        if self._least <= own <= self._most:
            return own
        # This machine's clock is wrong. An answer that took longer than any poll had waited in a socket.
        late = own > self._most or self._most - self._least > _LONGEST_POLL
        return self._most if late and self._most < math.inf else max(self._least, min(own, self._most))

    # -- in flight ----------------------------------------------------------------------------------------------

    def refusal(self) -> str | None:
        """Return why nothing may be made invisible now; None while it may."""
        if self._in_flight >= ENOUGH and self._clock() >= self._rest_until:
            self._look_soon()
        return self.why_full()

    def why_full(self) -> str | None:
        """Return what ``refusal`` does, and ask the queue nothing: any thread may read statistics."""
        if self._clock() < self._rest_until:
            return f"the queue refused a receive: the limit is {LIMIT:,} messages in flight"
        if self._in_flight < ENOUGH:
            return None
        return f"{self._in_flight:,} messages are in flight in the queue, of {LIMIT:,} allowed"

    def hid(self) -> None:
        """Note that a message was made invisible."""
        self._since += 1
        self._look_soon()

    def over_limit(self) -> None:
        """Note that the queue refused a receive because too much is in flight."""
        now = self._clock()
        if now >= self._rest_until + _REST:  # later than the longest pause between two refusals of one state
            text, name = "Queue %s has too many messages in flight; parking and deferral pause", self._queue.info.name
            _log.warning(text, name, extra=about(queue=name))
        self._rest_until = now + _REST

    # -- looking ------------------------------------------------------------------------------------------------

    def _look_soon(self) -> None:
        due = self._next - REFRESH + _EVERY
        if self._since >= _MANY or self._clock() >= due:
            self._look_again()

    def _look_again(self) -> None:
        if self._look is None:
            self._since = 0
            self._look = self._tasks.spawn(self._ask(), "postroom-queue-attributes")

    async def _ask(self) -> None:
        pause, task = REFRESH, asyncio.current_task()
        try:
            said = await self._queue.attributes()
            self._learn(dict(said))
        except AccessDenied:
            self.known, pause = False, _DENIED
        except BaseException as error:  # whatever a transport raises: the answer would have been approximate anyway
            if has_to_leave(error, task):
                raise
            self._in_flight = 0  # what the queue said last may be long past; this consumer's own limits remain
        finally:
            self._next = self._clock() + pause
            self._look = None

    def _learn(self, said: dict[str, str]) -> None:
        if not said:
            return
        self.known = True
        name = self._queue.info.name
        count = int(_positive(said.get("ApproximateNumberOfMessagesNotVisible"), 0))
        if count >= ENOUGH > self._in_flight:
            text = "Queue %s has %d messages in flight; parking and deferral stop"
            _log.warning(text, name, count, extra=about(queue=name))
        self._in_flight = count
        self._retention = _positive(said.get("MessageRetentionPeriod"), self._retention)
        redrive = RedrivePolicy.parse(said.get("RedrivePolicy"))
        if redrive != self.redrive:
            most = "none" if redrive is None else f"maxReceiveCount {redrive.max_receive_count}"
            _log.warning("Redrive policy of queue %s changed: %s", name, most, extra=about(queue=name))
            self.redrive = redrive


def _positive(text: str | None, default: float) -> float:
    """Return the number that a queue says; the default where it says none, or one that cannot be."""
    try:
        number = float(text or default)
    except ValueError:
        return default
    return number if 0 < number < math.inf else default
