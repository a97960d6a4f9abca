"""What the log says of calls that fail: a change of state once, with counts, and never a line for each message."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Hashable

from postroom.display import counted
from postroom.errors import PostroomError
from postroom.log_fields import Log, Step, about, tenant_in_words
from postroom.outages import Kind
from postroom.tasks import Tasks
from postroom.tracebacks import place_of
from postroom.types import UNRESOLVED

_log = Log("postroom.settlement", Step.SETTLE)

_CALM = 5.0
"""Seconds without a failure, after a call that went well, until calls are said to work again."""
_COLLECT = 1.0
"""Seconds for which refusals are collected before the first line tells of them."""
_REPEAT = 60.0
"""Seconds between two lines that tell of further refusals."""
_SINGLY = 10
"""Messages in ``_REPEAT`` seconds that a line of its own may tell of."""
_EXAMPLES = 3
_MANY = 200
"""Shared lines after which those are forgotten that have nothing to tell: queues come and go."""
_WHAT = "Calls fail"


class Trouble:
    """Says once that the calls of one kind fail, and once that they work again; less often where that comes and goes.

    Args:
        doing: what the calls do, as a sentence begins with it: ``Deleting messages of orders``.
        follows: what happens meanwhile.
        tasks: start the timers.
        queue: the name of the queue that the calls are for.
        log: where to say it.
    """

    def __init__(self, doing: str, follows: str, *, tasks: Tasks, queue: str | None = None, log: Log = _log) -> None:
        self._log = log
        self._extra = about(queue=queue)
        self._doing = doing
        self._follows = follows
        self._tasks = tasks
        self._kind = Kind(_WHAT, "operation", log, log.step, prefixed=False)
        self._since: float | None = None
        self._level = logging.NOTSET
        self._told = False
        self._failures = 0
        self._calm: asyncio.TimerHandle | None = None

    def failed(self, count: int, error: Exception) -> None:
        """Note that a call for some messages failed, and will be tried again."""
        what = f"failed, for {counted(count, 'message')} at first: {describe(error)}"
        self.note(what, cause=type(error).__name__)

    def note(self, what: str, level: int = logging.WARNING, *, failed: int = 1, cause: str) -> bool:
        """Say what is wrong, once until calls work again; once more where it is worse than what was said.

        ``failed`` is how many calls have failed, ``cause`` what makes two of them alike. Returns whether it was said.
        """
        self._failures += failed
        if self._calm is not None:
            self._calm.cancel()
            self._calm = None
        if self._since is None:
            self._since = self._tasks.time()
        if level <= self._level and self._told:
            return False
        self._level = max(level, self._level)
        telling = self._tasks.outages.failed(self._kind, self._doing, f"{level} {cause}", what, self._tasks.time())
        if not telling.is_told:
            return False
        self._told = True
        self._log.log(level, "%s %s; %s", self._doing, what, self._follows, extra=self._extra)
        return True

    def worked(self) -> None:
        """Note that a call went well."""
        if self._since is not None and self._calm is None:
            self._calm = self._tasks.call_later(_CALM, self._recovered, self._tasks.time())

    def _recovered(self, since_when: float) -> None:
        told = self._tasks.outages.worked(self._kind, self._doing, since_when) or self._told
        if told and self._since is not None:
            seconds = since_when - self._since
            what = f", in which {counted(self._failures, 'call')} failed" if self._failures else ""
            self._log.warning("%s works again after %.1f s%s", self._doing, seconds, what, extra=self._extra)
        self._since = self._calm = None
        self._told = False
        self._level = logging.NOTSET
        self._failures = 0


class Refusals:
    """Collects messages that the same happened to, and tells of them in one line: how many, why, and some of their ids.

    Args:
        text: the line, with places for the messages with their number, the cause and the ids.
        tasks: start the timer.
        queue: the name of the messages' queue.
        log: where to say it.
        level: how loud the line is.
    """

    def __init__(
        self, text: str, *, tasks: Tasks, queue: str | None = None, log: Log = _log, level: int = logging.WARNING
    ) -> None:
        self._log = log
        self._level = level
        self._extra = about(queue=queue)
        self._text = text
        self._tasks = tasks
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._single = 0
        self._single_until = -math.inf

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to tell, and there was nothing in the last minute."""
        return self._timer is None and self._tasks.time() >= self._single_until

    def is_among_the_first(self) -> bool:
        """Whether a line of its own may tell of a message, since there were few in the last minute; else ``add`` it."""
        now = self._tasks.time()
        if now >= self._single_until:
            self._single, self._single_until = 0, now + _REPEAT
        self._single += 1
        return self._single <= _SINGLY

    def add(self, cause: str, message_id: str, tenant: Hashable = None) -> None:
        """Note that it happened to a message of a tenant."""
        self._counts[cause] += 1
        examples = self._examples.setdefault(cause, [])
        if len(examples) < _EXAMPLES:
            known = tenant is not None and tenant is not UNRESOLVED
            examples.append(f"{message_id} of {tenant_in_words(tenant)}" if known else message_id)
        if self._timer is None:
            self._timer = self._tasks.call_later(_COLLECT, self._tell)

    def flush(self) -> None:
        """Tell now of what was collected, and set no timer any longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._say()

    def _tell(self) -> None:
        # While lines follow each other, the timer stays: what comes in the next minute shares a line.
        self._timer = self._tasks.call_later(_REPEAT, self._tell) if self._counts else None
        self._say()

    def _say(self) -> None:
        for cause, count in self._counts.items():
            more = ", ..." if count > _EXAMPLES else ""
            shown = ", ".join(self._examples[cause]) + more
            self._log.log(self._level, self._text, counted(count, "message"), cause, shown, extra=self._extra)
        self._counts.clear()
        self._examples.clear()


class SharedLines:
    """Lines that messages share, each by its text, which may name a queue.

    Args:
        tasks: start their timers.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._lines: dict[str, Refusals] = {}

    def line(self, text: str, *, queue: str, log: Log, level: int = logging.WARNING) -> Refusals:
        """Return what collects the messages of a line."""
        found = self._lines.get(text)
        if found is None:
            if len(self._lines) >= _MANY:
                self._lines = {each: line for each, line in self._lines.items() if not line.is_idle}
            found = self._lines[text] = Refusals(text, tasks=self._tasks, queue=queue, log=log, level=level)
        return found

    def flush(self) -> None:
        """Tell now of what was collected: the consumer has stopped."""
        for line in self._lines.values():
            line.flush()


def describe(error: BaseException) -> str:
    """Return an error in one line. What a transport raised against its protocol is named by its place in the code.

    Its text is shown only where it comes from the operating system: another one may quote a message.
    """
    shown = f"{type(error).__name__}: {error}"
    cause = error.__cause__
    if cause is None or isinstance(cause, PostroomError):
        return shown
    if isinstance(cause, OSError):
        return f"{shown} ({type(cause).__name__}: {cause})"
    return f"{shown} ({type(cause).__name__}{place_of(cause)})"
