"""What the log says of what fails and works again: news at once, and what comes and goes in a line now and then.

An outage that lasts is two lines: its beginning and its end. One that comes and goes would be two lines each time, for
each tenant. So what has failed in the same way within an hour is counted, and told of in lines that become rarer.
"""

import asyncio
import contextvars
import heapq
import itertools
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from enum import Enum, auto
from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec

from postroom.display import counted, display_key
from postroom.log_fields import Log, Step, about
from postroom.redaction import sqlstate_of

MOST: Final = 10_000
"""Subjects that are remembered, of all kinds and causes. Failures of others are counted, and not told of singly."""
FORGOTTEN: Final = 3600.0
"""Seconds without a failure after which the next one is news again."""
CALM: Final = 300.0
"""Seconds without a failure after which it is said to be over for good."""
SINGLY: Final = 10
"""Lines at once that tell of one subject each, for one kind and cause. Further subjects share a line."""
_ONE_MORE: Final = 120.0
"""Seconds until there may be one more of them."""
_MINUTE: Final = 60.0
_DAY: Final = 86_400.0
_SOON: Final = 10.0
"""Seconds until a line tells of what no line has told of yet, if there was no such line in the last minute."""
_SPACING: Final = (60.0, 4.0, 3600.0)
"""Seconds until the next line about what comes and goes: the first, how they grow, and the longest."""
_LASTING: Final = 60.0
"""Seconds for which one of many outages must last to be told of singly; or twice as long as any of its others."""
_LOOK: Final = 5.0
_LOOK_RARELY: Final = 600.0
"""Seconds between two looks while there is something to be told of, and while there is only something to forget."""
_NAMED: Final = 3
_CAUSES: Final = 50
"""Kinds and causes that are told apart; further ones count as one cause of their kind."""
_OTHER: Final = "another cause"


class Kind(NamedTuple):
    """What can fail, and how the lines about many failures say so."""

    what: str
    """What has happened, as a line begins with it: ``Resources were not available``."""
    unit: str
    """What it happens to: ``key``."""
    log: Log
    step: Step
    field: Literal["tenant", "queue"] | None = None
    """The field of a record that names a subject."""
    singly: int = SINGLY
    """Lines at once that tell of one subject each, for one cause."""
    prefixed: bool = True
    """Whether a subject is named with its unit."""


class Telling(Enum):
    """How loud a failure is."""

    NEWS = auto()
    """Tell of it in full: the subject has not failed in this way for an hour, or never."""
    LASTS = auto()
    """Tell of it in a line: it comes and goes, and lasts this time."""
    GOES_ON = auto()
    """A line has told of this outage."""
    KNOWN = auto()
    """It comes and goes: it is counted, and a later line tells of it."""

    @property
    def is_told(self) -> bool:
        """Whether it is worth a line of its own."""
        return self is Telling.NEWS or self is Telling.LASTS


class Timer(Protocol):
    """Tells the time, and calls a function later."""

    @property
    def time(self) -> Callable[[], float]:
        """What tells the loop's time."""
        ...

    def call_later(self, seconds: float, function: Callable[..., object], /, *arguments: Any) -> asyncio.TimerHandle:
        """Call a function after some seconds."""
        ...


class _Story(msgspec.Struct):
    """The outages of one subject that have the same cause."""

    first: float
    began: float
    """When the last one began."""
    last: float
    """When it failed last, or worked again."""
    times: int = 0
    untold: int = 0
    """Outages that no line has told of."""
    longest: float = 0.0
    down: bool = False
    told: bool = False
    """A line of its own says that it is down: another one will say that it is not."""
    summed: bool = False
    """A line about many outages has told of it: another one will say that they are over."""
    repaired: bool = False
    """Something was done about it: the next failure is news."""


class _Group(msgspec.Struct):
    """All subjects of one kind that fail for the same cause."""

    kind: Kind
    since: float
    stories: OrderedDict[Hashable, _Story] = msgspec.field(default_factory=OrderedDict[Hashable, _Story])
    """By subject, with the one that failed or worked again last at the end."""
    down: int = 0
    untold: int = 0
    unknown: int = 0
    """Failures of subjects that are not remembered, of which no line has told."""
    summed: int = 0
    new: int = 0
    """Subjects that no line has told of, or not that they come and go."""
    newest: list[Hashable] = msgspec.field(default_factory=list[Hashable])
    subject: Hashable = None
    """What failed last."""
    cause: str = ""
    due: float = math.inf
    said_at: float = -math.inf
    spacing: float = _SPACING[0]
    lasted: float = 0.0
    """How long the longest outage has lasted that a line about many was hurried for."""
    lines: float = 0.0
    """Lines about single subjects, less those that are long ago."""
    lines_at: float = 0.0

    def may_tell(self, now: float) -> bool:
        """Whether there is room for one more line about a single subject."""
        self.lines = max(0.0, self.lines - (now - self.lines_at) / _ONE_MORE)
        self.lines_at = now
        if self.lines > self.kind.singly - 1:
            return False
        self.lines += 1
        return True


class Outages:
    """Decides which failures are worth a line of their own, and tells of the others together.

    Memory is bounded, and goes away with time.

    Args:
        timer: for the lines that no failure causes; None where ``look`` is called now and then.
    """

    def __init__(self, timer: Timer | None = None) -> None:
        self._timer = timer
        self._groups: dict[tuple[Kind, str], _Group] = {}
        self._remembered = 0
        self._handle: asyncio.TimerHandle | None = None
        self._rarely = False

    def __len__(self) -> int:
        """Count what is remembered."""
        return self._remembered

    def failed(self, kind: Kind, subject: Hashable, cause: str, shown: str, now: float) -> Telling:
        """Note that something failed, or fails still, and return what to say of it.

        Args:
            kind: what fails.
            subject: what it fails for. It is remembered for an hour.
            cause: what makes two failures alike, such as the type of an error.
            shown: the cause in words, without secrets.
            now: the loop's time.
        """
        group = self._group(kind, cause, now)
        group.subject, group.cause = subject, shown
        story = group.stories.get(subject)
        telling = self._meet(group, subject, now) if story is None else self._meet_again(group, subject, story, now)
        self._arm()
        return telling

    def happened(self, kind: Kind, subject: Hashable, cause: str, shown: str, now: float) -> bool:
        """Note a failure that is over at once, and return whether to tell of it."""
        telling = self.failed(kind, subject, cause, shown, now)
        self.worked(kind, subject, now)
        return telling.is_told

    def worked(self, kind: Kind, subject: Hashable, now: float) -> bool:
        """Note that something works again, and return whether to say so: a line has told that it failed."""
        told = False
        for group in self._groups.values():
            story = group.stories.get(subject) if group.kind == kind else None
            if story is not None and story.down:
                story.down, story.last = False, now
                story.longest = max(story.longest, now - story.began)
                group.down -= 1
                group.lasted = group.lasted if group.down > SINGLY else 0.0
                group.stories.move_to_end(subject)
                told, story.told = told or story.told, False
        return told

    def comes_and_goes(self, subject: Hashable) -> bool:
        """Return whether something has failed, worked and failed again for a subject."""
        stories = (group.stories.get(subject) for group in self._groups.values())
        return any(story is not None and story.times > 1 and not story.repaired for story in stories)

    def forget(self, kind: Kind, subject: Hashable) -> None:
        """Let the next failure be news: something was done about it. The end of what was told is still told."""
        for group in self._groups.values():
            story = group.stories.get(subject) if group.kind == kind else None
            if story is not None:
                story.repaired = True

    def look(self, now: float) -> None:
        """Tell of what is due, and forget what is over."""
        for name, group in list(self._groups.items()):
            if group.summed and now >= group.said_at + _MINUTE:
                self._tell_end(group, now)
            if group.untold and now >= group.due:
                self._tell(group, now)
            self._forget(group, now)
            if not group.stories and not group.untold:
                del self._groups[name]

    def close(self) -> None:
        """Tell now of what no line has told of, and set no timer any longer."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        timer, self._timer = self._timer, None
        for group in self._groups.values():
            if group.untold and timer is not None:
                self._tell(group, timer.time())
        self._groups.clear()
        self._remembered = 0

    # -- what happens -------------------------------------------------------------------------------------------

    def _group(self, kind: Kind, cause: str, now: float) -> _Group:
        name = kind, cause
        if name not in self._groups and len(self._groups) >= _CAUSES:
            name = kind, _OTHER
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group(kind, now)
        return group

    def _meet(self, group: _Group, subject: Hashable, now: float) -> Telling:
        if self._remembered >= MOST:
            group.untold += 1
            group.unknown += 1
            self._hurry(group, now)
            return Telling.KNOWN
        self._remembered += 1
        group.down += 1
        story = group.stories[subject] = _Story(first=now, began=now, last=now, times=1, down=True)
        if group.may_tell(now):
            story.told = True
            return Telling.NEWS
        self._count(group, story, subject, now, new=True)
        return Telling.KNOWN

    def _meet_again(self, group: _Group, subject: Hashable, story: _Story, now: float) -> Telling:
        group.stories.move_to_end(subject)
        is_news = story.repaired or story.last <= now - FORGOTTEN
        story.last, story.repaired = now, False
        if is_news:
            # Also if it is down: it has ended unseen, or something was done about it.
            group.down -= story.down
            story.down = False
            if group.may_tell(now):
                group.down += 1
                story.down = story.told = True
                story.began = now
                story.times += 1
                return Telling.NEWS
        if not story.down:
            group.down += 1
            story.down, story.began = True, now
            story.times += 1
            # Where many came at once, it was counted at its first time: then a line has told of it, or is about to.
            self._count(group, story, subject, now, new=story.times == 2 and not (story.summed or story.untold))
        if story.told:
            return Telling.GOES_ON
        lasted = now - story.began
        if lasted < max(_LASTING, 2 * story.longest):
            return Telling.KNOWN
        if group.down <= SINGLY and group.may_tell(now):
            story.told = True
            return Telling.LASTS
        if lasted >= 2 * group.lasted:
            group.lasted = story.longest = lasted
            self._count(group, story, subject, now, new=False)
            self._hurry(group, now)
        return Telling.KNOWN

    def _count(self, group: _Group, story: _Story, subject: Hashable, now: float, *, new: bool) -> None:
        group.untold += 1
        story.untold += 1
        if new:
            group.new += 1
            if len(group.newest) < _NAMED:
                group.newest.append(subject)
            self._hurry(group, now)
        else:
            group.due = min(group.due, max(now, group.said_at + group.spacing))

    def _hurry(self, group: _Group, now: float) -> None:
        group.due = min(group.due, max(now + _SOON, group.said_at + _MINUTE))

    # -- the lines ----------------------------------------------------------------------------------------------

    def _tell(self, group: _Group, now: float) -> None:
        kind = group.kind
        found = [(subject, story) for subject, story in group.stories.items() if story.untold]
        times = sum(story.times for _, story in found) + group.unknown
        repeats = times > len(found) + group.unknown
        since = min((story.first for _, story in found), default=group.since)
        how = ", again and again" if repeats else ", too"
        if len(found) == 1 and not group.unknown:
            [(subject, story)] = found
            who, extra = self._named(kind, subject), _about(kind, subject)
            state = f"for {_seconds(now - story.began)} now" if story.down else "not at this moment"
            if others := group.down - story.down:
                state += f", and {counted(others, 'other')} at this moment"
        else:
            named = self._most_often(found) if repeats else _some((each for each, _ in found), len(found))
            both = [f"{counted(len(found), kind.unit)} ({named})"] if found else []
            both += [f"{counted(group.unknown, 'failure')} of others, not told apart"] if group.unknown else []
            who = " and ".join(both)
            subject, extra = None, _about(kind)
            state = f"{group.down} at this moment"
            if group.new and repeats:
                state += f", {group.new} new ({_some(group.newest, group.new)})"
        # The cause may name what failed last.
        last = "" if subject == group.subject else f", {self._named(kind, group.subject)}"
        text = "%s%s: %s, %s in %s, %s (last%s: %s)"
        said = (kind.what, how, who, counted(times, "time"), _seconds(now - since), state, last, group.cause)
        kind.log.log(logging.WARNING, text, *said, extra=extra)
        for _, story in found:
            group.summed += not story.summed
            story.summed, story.untold = True, 0
        base, factor, longest = _SPACING
        group.spacing = base if group.said_at == -math.inf else min(longest, group.spacing * factor)
        group.said_at, group.due = now, math.inf
        group.untold = group.unknown = group.new = 0
        group.newest.clear()

    def _tell_end(self, group: _Group, now: float) -> None:
        kind = group.kind
        over: list[tuple[Hashable, _Story]] = []
        for subject, story in group.stories.items():
            if story.last > now - CALM:
                break
            if story.summed and not story.down:
                over.append((subject, story))
        if not over:
            return
        calm = _seconds(min(now - story.last for _, story in over))
        times = sum(story.times for _, story in over)
        if len(over) == 1:
            [(subject, _)] = over
            who, extra = self._named(kind, subject), _about(kind, subject)
        else:
            who, extra = f"{counted(len(over), kind.unit)} ({self._most_often(over)})", _about(kind)
        lasted = max(story.last for _, story in over) - min(story.first for _, story in over)
        text = "%s, no more for %s: %s, %s in %s until then"
        said = (kind.what, calm, who, counted(times, "time"), _seconds(lasted))
        kind.log.log(logging.WARNING, text, *said, extra=extra)
        for _, story in over:
            group.untold -= story.untold
            story.summed, story.untold = False, 0
        group.summed -= len(over)
        group.said_at, group.due = now, max(group.due, now + _MINUTE)

    def _forget(self, group: _Group, now: float) -> None:
        old = itertools.takewhile(lambda each: each[1].last <= now - FORGOTTEN, group.stories.items())
        for subject, story in list(old):
            # It may not have been tried since: its end is worth a line for a day.
            lasts = story.down and (story.told or story.summed) and story.last > now - _DAY
            if not (lasts or story.untold):
                del group.stories[subject]
                self._drop(group, story)

    def _drop(self, group: _Group, story: _Story) -> None:
        self._remembered -= 1
        group.down -= story.down
        group.summed -= story.summed

    @staticmethod
    def _named(kind: Kind, subject: Hashable) -> str:
        return f"{kind.unit} {display_key(subject)}" if kind.prefixed else display_key(subject)

    @staticmethod
    def _most_often(found: list[tuple[Hashable, _Story]]) -> str:
        most = heapq.nlargest(_NAMED, found, key=lambda each: each[1].times)
        named = (f"{display_key(subject)} ({story.times})" for subject, story in most)
        return f"most often {_shown(named, len(found))}"

    # -- the timer ----------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._timer is None or (self._handle is not None and not self._rarely):
            return
        soon = any(group.untold or group.summed for group in self._groups.values())
        if self._handle is not None:
            if not soon:
                return
            self._handle.cancel()
        self._rarely = not soon
        # Without the context of the caller, which may be a handler's: its message would stay, and be named by filters.
        arm = contextvars.Context().run
        self._handle = arm(self._timer.call_later, _LOOK if soon else _LOOK_RARELY, self._ring)

    def _ring(self) -> None:
        self._handle = None
        if self._timer is not None:
            self.look(self._timer.time())
            if self._groups:
                self._arm()


def cause_of(error: BaseException) -> str:
    """Return what makes two errors alike: their type, and what a database calls them."""
    return f"{type(error).__name__} {sqlstate_of(error) or ''}"


def _about(kind: Kind, subject: Hashable = None) -> dict[str, object]:
    if subject is None or kind.field is None:
        return about(step=kind.step)
    if kind.field == "queue":
        return about(queue=display_key(subject), step=kind.step)
    return about(tenant=subject, step=kind.step)


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"


def _some(subjects: Iterable[Hashable], count: int) -> str:
    return _shown(map(display_key, itertools.islice(subjects, _NAMED)), count)


def _shown(names: Iterable[str], count: int) -> str:
    return ", ".join(names) + (", ..." if count > _NAMED else "")
