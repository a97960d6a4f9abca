"""Whether to look for quiet tenants' messages while there is no room for more, and how hard."""

from collections.abc import Hashable
from typing import Final, Literal

from postroom.consumer.crowd import Crowd
from postroom.consumer.overtaking import Overtaking
from postroom.message import Message

SCOUTS: Final = 3
"""Scouting receives per round trip: a quiet message waits for a third of a round trip at most."""
BATCH: Final = 2
"""Messages per scouting receive. SQS's fair queues hand out quiet tenants' messages first."""
_SPACING: Final = 0.002
_LONGEST_PAUSE: Final = 0.25
_RARE: Final = 1000.0
BUDGET: Final = 60_000
"""Messages that scouting may park beyond one for each message that was handled."""
_GLANCE: Final = 0.25
_RARER: Final = 0.005
"""Seconds between two glances at least, and for each message that is held beyond the room. As many come by glances as
are handled: where 8 handlers take 30 s each, one in 4 s."""
_DEEP: Final = 0.012
"""Seconds that a quiet message may have to lie behind noisy ones before skimming begins."""
_UNCLEAR: Final = 0.06
"""Seconds without proof that no quiet message lies in the queue, which is an end of it or a message it puts last."""
_HOLD: Final = 1.0
_LONGEST_HOLD: Final = 8.0
"""Seconds of skimming before it stops briefly, as an experiment; twice as long after each experiment that cost a quiet
message time."""
_AFTER: Final = 0.25
"""Seconds after a try in which such messages may still come."""
_CERTAIN: Final = 20
"""Receives in a row that brought nothing but what the queue knows as noisy, after which skimming ends at once."""
_LATE: Final = 0.03
"""Seconds that a quiet message may have lain in the queue. More, and the queue does not put it first."""
_MISSING: Final = 4.0
"""Usual pauses between quiet messages without one, after which what was known of the queue's order counts no more."""
_GONE: Final = 3.0
"""Seconds without a quiet message after which skimming ends: no quiet tenant is left."""
_CALM: Final = 1.0
"""Seconds of room for all after which a new crowd may be another tenant's."""
_MANY: Final = 1 / 3
"""The part of all messages that quiet ones may be: where it is more, all tenants make the crowd, and none is noisy."""
_LEARN: Final = 0.01


class Scouting:
    """Keeps receives outstanding when the buffer is full, so that quiet tenants need not wait behind noisy ones.

    It needs proof that there is a quiet tenant to find (``Crowd``), message groups, and
    budget: each message that it parks costs a receive of that message, and a request for about ten of them.

    Two gears. *Scouting*: SQS's fair queues hand out quiet tenants' messages first, so a few small receives find
    them; what else they bring is parked. *Skimming*: while the queue does not know yet who is noisy, a quiet message
    lies as long as the noisy ones before it, or, while the queue takes the wrong ones for noisy, until nothing else is
    there. So every poller takes full batches off the top until nothing is left to lie behind.

    A crowd begins with skimming. From time to time skimming stops briefly, as an experiment: noisy messages pile up,
    and either quiet ones overtake them, which is for the queue to do, or skimming goes on. What tells the one from the
    other is in ``Overtaking``. When quiet messages that usually come stay away, what
    was known about the queue's order is forgotten.

    Scouts go slower when no quiet message has come for long, by a thousandth of that time, up to 0.25 s.
    """

    def __init__(self, crowd: Crowd, now: float, *, when: bool | Literal["always"]) -> None:
        self._crowd = crowd
        self.when: bool | Literal["always"] = when
        """What ``Polling(scout=...)`` says, where scouting is possible at all."""
        self._order = Overtaking()
        self._next = now
        self._crowded_at = now - 2 * _CALM
        self._look_until = self._skim_until = 0.0
        self._known_in_a_row = 0
        self._clear_at = 0.0
        self._tried_at = -_AFTER
        self._hold = _HOLD
        self._quiet_at = now
        self._glance_at = now
        self._quiet_part = 0.0
        self._interval = 1.0
        self._missing = _MISSING
        self._late = _LATE
        self._noisy: tuple[Hashable, Message] | None = None
        self._budget = float(BUDGET)
        self.receives: int = 0
        """Scouting receives so far."""

    def is_skimming(self, now: float) -> bool:
        """Whether every poller takes full batches."""
        return now < self._skim_until

    def handled(self) -> None:
        """Note that a message was handled: one more may be parked."""
        if self._budget < BUDGET:
            self._budget += 1.0

    def parked(self) -> None:
        """Note that a message was parked."""
        self._budget -= 1.0

    def stopped_because(self, now: float) -> str | None:
        """Return why there is no scouting, even if there were no room; None while there would be."""
        # A look at all tenants, so not where it decides nothing.
        looks = self.when is True and self._crowd.is_grouped(now)
        return self._because(now, suspected=looks and self._crowd.is_suspected(now))

    def said(self, now: float) -> str | None:
        """Return what ``stopped_because`` said last, without another look: statistics must not change decisions."""
        return self._because(now, suspected=self._crowd.was_suspected(now))

    def _because(self, now: float, *, suspected: bool) -> str | None:
        if not self.when:
            return "Polling(scout=False), or no contexts"
        if self.when != "always":
            if not self._crowd.is_grouped(now):
                return "no message of the last seconds has a MessageGroupId, without which none can be put first"
            if not suspected:
                return "no noisy tenant beside a quiet one"
        return None if self._budget >= 1.0 else "the budget of parked messages is used up"

    def may_park(self, now: float) -> bool:
        """Whether messages of noisy tenants may be parked: what was only a suspicion is proved."""
        return self.stopped_because(now) is None and (self.when == "always" or self._crowd.is_proved(now))

    def pause(self, number: int, now: float, *, pollers: int, round_trip: float) -> float | None:
        """Return the seconds until poller ``number`` may scout; 0.0 if it goes now, None if it does not.

        It asks only while there is no room. Those that go are spread over a round trip.
        """
        if self.stopped_because(now) is not None:
            return None
        self._late = max(_LATE, 3 * round_trip)
        self._look_around(now)
        skimming = self.is_skimming(now)
        if number >= SCOUTS and not skimming:
            return None
        if now < self._next:
            return self._next - now
        if skimming:
            self._next = now + round_trip / pollers
        else:
            rare = min(_LONGEST_PAUSE, (now - self._quiet_at) / _RARE)
            self._next = now + max(_SPACING, round_trip / SCOUTS, rare)
        self.receives += 1
        return 0.0

    def glance(self, beyond: int, now: float) -> float:
        """Return the seconds until one message may be asked for without any proof; 0.0 if it is now.

        For slots that are free while all that waits here may not have them, since its tenants have as many as they may.
        Nothing is parked for that: what comes is held, ``beyond`` the room, until its tenant has a slot. After a
        message of a quiet tenant the next glance goes at once.
        """
        if now < self._glance_at:
            return self._glance_at - now
        self._glance_at = now + max(_GLANCE, _RARER * beyond)
        self.receives += 1
        return 0.0

    def found_quiet(self, message: Message, now: float) -> None:
        """Note that a message came of a tenant that has not had its part."""
        self._interval += 0.1 * (min(1.0, max(0.01, now - self._quiet_at)) - self._interval)
        self._missing = _MISSING
        self._quiet_at = self._glance_at = now
        self._quiet_part += _LEARN * (1.0 - self._quiet_part)
        if now - self._crowded_at > _CALM:
            return
        self._look_until = now + _GONE
        lay = self._order.found_quiet(message, until=now + _MISSING * self._interval)
        if lay > self._late:
            self._order.forget()
        if lay > self._late / 6 and now < self._tried_at + _AFTER:
            self._hold = min(2 * self._hold, _LONGEST_HOLD)
            self._skim_until = self._tried_at + self._hold
            self._tried_at = -_AFTER

    def found_noisy(self, tenant: Hashable, message: Message) -> None:
        """Note that a message came of a tenant that has its part. The last one of a receive tells enough."""
        self._quiet_part -= _LEARN * self._quiet_part
        self._noisy = tenant, message

    def received(self, now: float, *, emptied: bool) -> None:
        """Note that a receive was taken in, and whether it brought less than it asked for."""
        if self._noisy is not None:
            (tenant, message), self._noisy = self._noisy, None
            known = self._order.found_noisy(tenant, message, now=now)
            if known is not None:
                self._known_in_a_row = self._known_in_a_row + 1 if known else 0
            if known:
                self._clear_at = now
            if self._known_in_a_row >= _CERTAIN or self._quiet_part > _MANY:
                self._skim_until = now
            elif not emptied and self._skim_until <= now < self._look_until and self._is_in_the_way(now):
                self._skim_until = now + self._hold
                self._tried_at = now
        if emptied:
            self._order.emptied()
            self._clear_at = now

    def _is_in_the_way(self, now: float) -> bool:
        """Whether what lies in the queue keeps quiet messages back, or could if they are the ones put last."""
        return self._order.depth > _DEEP or now - self._clear_at > _UNCLEAR

    def _look_around(self, now: float) -> None:
        """Skim to see who else is there: when a crowd begins, and when usual quiet messages stay away."""
        calm = now - self._crowded_at > _CALM
        self._crowded_at = now
        if calm:
            self._order.forget()
            self._quiet_part = 0.0
            self._hold = _HOLD
            self._look_until = now + _GONE
        elif now - self._quiet_at > self._missing * self._interval:
            self._missing *= 2  # they may have stopped, or lie behind noisy ones: look, less and less often
            self._look_until = max(self._look_until, now + _HOLD)
        else:
            return
        self._skim_until = max(self._skim_until, now + _HOLD)
