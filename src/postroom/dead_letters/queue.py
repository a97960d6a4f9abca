"""The letters of one dead-letter queue: look at them, send them home, delete them."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Final

from postroom.checking import check_flag, check_function, check_kind, check_queue, is_number
from postroom.dead_letters.destinations import Destinations
from postroom.dead_letters.jobs import Job, Scene
from postroom.dead_letters.journal import Journal
from postroom.dead_letters.outcome import Outcome, Progress
from postroom.dead_letters.reading import DeadLetter, TenantOf, tenant_by_group
from postroom.dead_letters.selecting import LetterFilter
from postroom.dead_letters.walking import HOLD, Walk, patiently
from postroom.display import counted, present_user
from postroom.errors import AccessDenied, ConfigurationError
from postroom.log_fields import Log, Step, about
from postroom.redaction import redact
from postroom.transports.protocol import Client, Queue

_log = Log("postroom.dead_letters", Step.DEAD_LETTER)

RATE: Final = 100.0
"""Letters per second by default: SQS's own redrive runs at up to 500 (StartMessageMoveTask)."""
_ALL: Final = LetterFilter()


async def open_dead_letters(
    client: Client, queue: str, *, tenant_of: TenantOf = tenant_by_group, hold: float = HOLD
) -> "DeadLetterQueue":
    """Open a dead-letter queue by name, URL or ARN.

    Args:
        client: an entered client.
        queue: the dead-letter queue itself, not the queue that it belongs to.
        tenant_of: names the tenant of a letter.
        hold: seconds for which letters stay invisible when this process is killed while it looks at them.

    Raises:
        ConfigurationError: it has a redrive policy itself. Looking at a letter receives it, so SQS would move letters
            on to yet another queue.
        TransportError: it cannot be opened.
    """
    check_function("open_dead_letters(tenant_of=...)", "(Message) -> tenant", tenant_of)
    if not is_number(hold) or not 1 <= hold <= 43_200:
        raise ConfigurationError(f"open_dead_letters(hold=...) takes seconds from 1 to 43200; got {hold!r}")
    opened = await client.queue(queue)
    info = opened.info
    if info.redrive is not None:
        most = counted(info.redrive.max_receive_count, "receive")
        text = (
            f"queue {info.name} has a dead-letter queue of its own (after {most}): "
            "looking at its messages would use their receives up. Name the dead-letter queue, not its source; or "
            "remove its redrive policy first"
        )
        raise ConfigurationError(text)
    return DeadLetterQueue(opened, client.queue, tenant_of=tenant_of, hold=hold)


class DeadLetterQueue:
    """The letters of one dead-letter queue. Made by ``open_dead_letters``.

    While a call runs, the letters that it has seen are invisible to others; at its end they are visible again.
    """

    def __init__(
        self, queue: Queue, open_queue: Callable[[str], Awaitable[Queue]], *, tenant_of: TenantOf, hold: float = HOLD
    ) -> None:
        self._queue = queue
        self._open_queue = open_queue
        self._scene = Scene(queue, tenant_of, hold)

    @property
    def arn(self) -> str:
        """The ARN of the queue."""
        return self._queue.info.arn

    async def hidden(self) -> int:
        """Return how many letters are invisible now, or not visible yet, as SQS estimates it; 0 where it may not tell.

        Another command looks at them, or one was killed.
        """
        try:
            return _hidden(await patiently(self._queue.attributes))
        except AccessDenied:
            return 0

    def stop(self) -> None:
        """Ask what runs to end: after the batch that is under way, with everything else visible again."""
        self._scene.stop.set()

    async def letters(self, where: LetterFilter = _ALL) -> AsyncGenerator[DeadLetter, None]:
        """Yield the letters that are meant. On a FIFO queue at most ten of each message group can be seen.

        Where you leave the loop early, use ``contextlib.aclosing``: the letters are visible again when it is closed.
        """
        walk = Walk(self._queue, hold=self._scene.hold)
        try:
            async with aclosing(walk.batches()) as batches:
                async for messages in batches:
                    for letter in await self._scene.read(messages):
                        if where.matches(letter, now=time.time()):
                            yield letter
                    if self._scene.stop.is_set():
                        return
        finally:
            await walk.release()

    async def redrive(
        self,
        where: LetterFilter = _ALL,
        *,
        to: str | None = None,
        dry_run: bool = True,
        rate: float = RATE,
        reason: str = "",
        operator: str | None = None,
        journal: Journal | None = None,
        progress: Progress | None = None,
    ) -> Outcome:
        """Send letters home: to the queue that each came from, as it was first sent, with its attempts reset.

        Args:
            where: which letters.
            to: another queue for all of them. Without it, a letter of a source that cannot be trusted stays: the source
                has to be named by SQS, or to have this queue as its dead-letter queue.
            dry_run: only count.
            rate: letters per second, at most.
            reason: why; it is kept in the journal and the log.
            operator: who; by default the user of this process.
            journal: an open journal. It is what makes a killed run resumable.
            progress: called after each batch.

        Raises:
            ConfigurationError: a ``rate`` that is not above 0, no ``reason`` although it is no dry run.
            TransportError: SQS refused for longer than a few seconds. Nothing is lost; run it again. What one queue
                refuses for good stays, and ``kept`` says why.
        """
        _check("redrive", where, dry_run=dry_run, rate=rate, reason=reason, journal=journal)
        if to is not None:
            check_queue("redrive(to=...)", to)
        homes = Destinations(self._open_queue, self.arn, to=to)
        outcome = Outcome("redrive", dry_run)
        job = Job(self._scene, outcome, where, rate=rate, journal=journal, progress=progress, homes=homes)
        return await self._carry_out(job, reason=reason, operator=operator, to=to)

    async def purge(
        self,
        where: LetterFilter = _ALL,
        *,
        dry_run: bool = True,
        rate: float = RATE,
        reason: str = "",
        operator: str | None = None,
        journal: Journal | None = None,
        progress: Progress | None = None,
    ) -> Outcome:
        """Delete letters for good. Arguments and errors are those of ``redrive``."""
        _check("purge", where, dry_run=dry_run, rate=rate, reason=reason, journal=journal)
        job = Job(
            self._scene, Outcome("purge", dry_run), where, rate=rate, journal=journal, progress=progress, homes=None
        )
        return await self._carry_out(job, reason=reason, operator=operator, to=None)

    async def _carry_out(self, job: Job, *, reason: str, operator: str | None, to: str | None) -> Outcome:
        outcome = job.outcome
        said = await patiently(self._queue.attributes)
        outcome.total = int(said.get("ApproximateNumberOfMessages", "0"))
        outcome.hidden = _hidden(said)
        if outcome.dry_run:
            return await job.run()
        who = operator or present_user()
        name, meant = self._queue.info.name, job.where.described()
        _log.info(
            "%s of dead letters in %s by %s (%s): %s",
            outcome.action.title(),
            name,
            who,
            redact(reason),
            meant,
            extra=about(queue=name),
        )
        record: dict[str, Any] = {
            "action": outcome.action,
            "operator": who,
            "reason": reason,
            "letters_meant": meant,
            "to": to,
        }
        await job.note("begin", **record)
        try:
            await job.run()
        finally:
            await job.note("end", **record, **outcome.counts())
            text = "%s of dead letters in %s %s: %d of %d done, %d kept"
            how = "stopped" if outcome.stopped else "ended"
            left = sum(outcome.kept.values())
            _log.info(
                text, outcome.action.title(), name, how, outcome.done, outcome.matched, left, extra=about(queue=name)
            )
        return outcome


def _hidden(said: Mapping[str, str]) -> int:
    return sum(int(said.get(f"ApproximateNumberOfMessages{kind}", "0")) for kind in ("NotVisible", "Delayed"))


def _check(name: str, where: object, *, dry_run: object, rate: object, reason: object, journal: object) -> None:
    check_kind(f"{name}(where)", where, LetterFilter, 'LetterFilter(tenant="acme")')
    check_flag(f"{name}(dry_run=...)", dry_run)
    if not is_number(rate) or not rate > 0:
        raise ConfigurationError(f"{name}(rate=...) takes letters per second, above 0; got {rate!r}")
    if journal is not None:
        check_kind(f"{name}(journal=...)", journal, Journal, 'with Journal("redrive.jsonl") as journal')
    if not dry_run and not (isinstance(reason, str) and reason.strip()):
        raise ConfigurationError(f"{name}(dry_run=False) needs reason=...: it is kept in the journal and the log")
