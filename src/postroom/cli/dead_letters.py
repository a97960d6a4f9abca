"""``postroom dead-letters list | show | redrive | purge``: by tenant, reason and age."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from postroom.cli import CommandError, CommandFailed
from postroom.cli.endpoint import endpoint_option, use_endpoint
from postroom.cli.interrupts import ENDS, interrupts
from postroom.cli.letter_ids import whole_ids
from postroom.cli.logs import log_to_stderr
from postroom.cli.numbers import Number, WholeNumber
from postroom.cli.tables import age, clipped, duration, table
from postroom.display import counted

if TYPE_CHECKING:
    from postroom.dead_letters import DeadLetter, DeadLetterQueue, LetterFilter, Outcome, TenantOf

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
JOURNAL: Final = "postroom-dead-letters.jsonl"
_SHOWN: Final = 20
_TENANT_HINT: Final = (
    "A letter's tenant is its message group; for another, try --tenant-from attribute:NAME or MODULE:CONSUMER."
)


def _common(function: F) -> F:
    """Add what all four take: the queue, who is a tenant, which letters."""
    for option in reversed((
        click.argument("queue", envvar="POSTROOM_DEAD_LETTER_QUEUE"),
        click.option("--tenant", envvar="POSTROOM_TENANT", show_envvar=True, help="Only this tenant's."),
        click.option("--reason-like", metavar="TEXT", envvar="POSTROOM_REASON_LIKE", show_envvar=True,
                     help="Only those with this text in their reason; * stands for anything."),
        click.option("--older-than", metavar="AGE", callback=duration, envvar="POSTROOM_OLDER_THAN", show_envvar=True,
                     help="Only messages first sent longer ago than that: 90s, 15m, 2h, 3d."),
        click.option("--newer-than", metavar="AGE", callback=duration, envvar="POSTROOM_NEWER_THAN", show_envvar=True,
                     help="Only messages first sent more recently than that."),
        click.option("--tenant-from", default="group", show_default=True, envvar="POSTROOM_TENANT_FROM",
                     show_envvar=True, metavar="group|attribute:NAME|MODULE:CONSUMER",
                     help="What tells the tenant of a message: its group, an attribute, or a consumer's resolver."),
        click.option("--directory", default=".", show_default=True, envvar="POSTROOM_DIRECTORY", show_envvar=True,
                     type=click.Path(exists=True, file_okay=False, path_type=Path),
                     help="Where the module of --tenant-from is looked for first."),
        click.option("--hold", default=120.0, show_default=True, type=Number(1, 43_200),
                     envvar="POSTROOM_HOLD", show_envvar=True,
                     help="Seconds until letters are visible again when this command is killed."),
        click.option("--region", envvar="AWS_DEFAULT_REGION", show_envvar=True, help="The region of the queue."),
        endpoint_option,
    )):  # fmt: skip
        function = option(function)
    return function


def _acting(function: F) -> F:
    """Add what redrive and purge take."""
    for option in reversed((
        click.option("--id", "ids", multiple=True, envvar="POSTROOM_IDS", show_envvar=True,
                     help="Only this letter, repeatable; the beginning of its id will do."),
        click.option("--yes", is_flag=True, envvar="POSTROOM_YES", show_envvar=True,
                     help="Do it. Without it, the command only says what it would do."),
        click.option("--reason", default="", envvar="POSTROOM_REASON", show_envvar=True,
                     help="Why; required with --yes, and kept in the journal."),
        click.option("--rate", default=100.0, show_default=True, envvar="POSTROOM_RATE", show_envvar=True,
                     type=Number(min=0, min_open=True), help="Letters per second, at most."),
        click.option("--journal", default=JOURNAL, show_default=True, envvar="POSTROOM_JOURNAL", show_envvar=True,
                     type=click.Path(dir_okay=False, path_type=Path),
                     help="The record of what was done; a run that was killed goes on with it."),
        click.option("--log-level", default="WARNING", show_default=True, envvar="POSTROOM_LOG_LEVEL",
                     show_envvar=True, type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
                     help="What is logged to stderr."),
    )):  # fmt: skip
        function = option(function)
    return function


@click.group()
def dead_letters() -> None:
    """Look at dead letters, send them home or delete them: by tenant, reason and age.

    To look at a letter is to receive it: SQS has no other way. Letters are invisible to others while a command runs,
    and visible again at its end. On a FIFO queue at most ten letters of each message group can be seen at once.
    """


@dead_letters.command("list", short_help="Count letters by tenant and reason.")
@_common
@click.option("--limit", default=_SHOWN, show_default=True, envvar="POSTROOM_LIMIT", show_envvar=True,
              type=WholeNumber(min=0), help="How many letters to show, beside the counts; 0 shows all.")  # fmt: skip
def list_letters(*, queue: str, limit: int, **options: Any) -> None:
    """Count the letters of QUEUE (or POSTROOM_DEAD_LETTER_QUEUE) by tenant and reason, and show the first ones."""

    async def work(letters: "DeadLetterQueue") -> bool:
        shown: list[DeadLetter] = []
        counts: dict[tuple[str, str], int] = {}
        tenants, where = Counter[str](), _filter(options)
        with interrupts(letters.stop, ENDS) as interrupted:
            async for letter in letters.letters():
                tenants[letter.tenant or ""] += 1
                if not where.matches(letter, now=time.time()):
                    continue
                pair = (letter.tenant or "-", letter.reason)
                counts[pair] = counts.get(pair, 0) + 1
                if not limit or len(shown) < limit:
                    shown.append(letter)
        if not counts:
            _nothing(tenants.total(), await letters.hidden(), options, tenants)
        else:
            click.echo(_table_of(counts))
            _hint(counts)
        if shown:
            click.echo()
            click.echo(table(("id", "tenant", "sent", "attempts", "redriven", "reason"), map(_row, shown)))
        return interrupted.came

    if _in_loop(queue, options, work):
        raise CommandFailed("it was interrupted: there may be more")


@dead_letters.command(short_help="Show one letter.")
@_common
@click.argument("letter_id", metavar="ID")
@click.option("--body", is_flag=True, envvar="POSTROOM_SHOW_BODY", show_envvar=True,
              help="Print the body, too: it is the tenant's data.")  # fmt: skip
def show(*, queue: str, letter_id: str, body: bool, **options: Any) -> None:
    """Show one letter of QUEUE (or POSTROOM_DEAD_LETTER_QUEUE): why it is there, where it came from, its attributes.

    ID is the letter's id, or as much of its beginning as tells it from the others, at least four characters.
    """

    async def work(letters: "DeadLetterQueue") -> "DeadLetter | None":
        with interrupts(letters.stop, ENDS) as interrupted:
            ids = await whole_ids(letters, [letter_id], _filter(options))
            async with aclosing(letters.letters(_filter({**options, "ids": ids}))) as found:
                letter = await anext(found, None)  # closing makes what was seen visible again
        if letter is None and interrupted.came:
            raise CommandFailed(f"it was interrupted before it found {letter_id!r}")
        return letter

    letter = _in_loop(queue, options, work)
    if letter is None:
        raise CommandFailed(f"no letter {letter_id!r} in {queue}; `postroom dead-letters list` shows what is there")
    for name, value in _facts(letter):
        click.echo(f"{name:<16} {value}")
    if letter.tenant is None:
        click.echo(_TENANT_HINT, err=True)
    if body:
        click.echo()
        click.echo(letter.message.body)


@dead_letters.command(short_help="Send letters home.")
@_common
@_acting
@click.option("--to", envvar="POSTROOM_TO", show_envvar=True,
              help="Another queue for all of them, instead of the one that each came from.")  # fmt: skip
def redrive(*, queue: str, to: str | None, **options: Any) -> None:
    """Send letters of QUEUE (or POSTROOM_DEAD_LETTER_QUEUE) home, as they were first sent, with their attempts reset.

    Counts only, without --yes.
    """
    _act("redrive", queue, options, to=to)


@dead_letters.command(short_help="Delete letters for good.")
@_common
@_acting
def purge(*, queue: str, **options: Any) -> None:
    """Delete letters of QUEUE (or POSTROOM_DEAD_LETTER_QUEUE) for good. Counts only, without --yes."""
    _act("purge", queue, options)


def _act(action: str, queue: str, options: dict[str, Any], **more: Any) -> None:
    from postroom.dead_letters import Journal

    act = bool(options["yes"])
    if act and not options["reason"].strip():
        raise click.UsageError("--yes needs --reason TEXT: it is kept in the journal")
    log_to_stderr(options["log_level"])

    async def work(letters: "DeadLetterQueue") -> "Outcome":
        with interrupts(letters.stop, ENDS), _bar(action) as progress:
            call = getattr(letters, action)
            options["ids"] = await whole_ids(letters, options["ids"], _filter(options))
            common = {"dry_run": not act, "rate": options["rate"], "reason": options["reason"], "progress": progress}
            if act:
                with Journal(options["journal"]) as journal:
                    return cast("Outcome", await call(_filter(options), **common, **more, journal=journal))
            return cast("Outcome", await call(_filter(options), **common, **more))

    outcome = _in_loop(queue, options, work)
    _report(outcome, options)
    if outcome.kept or outcome.stopped:
        sys.exit(1)


def _report(outcome: "Outcome", options: dict[str, Any]) -> None:
    verb = {"redrive": "sent home", "purge": "deleted"}[outcome.action]
    if not outcome.matched and not outcome.finished:
        if outcome.stopped:
            click.echo("It was stopped before anything was done.")
            return
        _nothing(outcome.seen, outcome.hidden, options)
    elif outcome.dry_run:
        rows = sorted(outcome.tenants.items(), key=lambda item: -item[1])
        click.echo(table(("letters", "tenant"), ((count, tenant or "-") for tenant, count in rows)))
        letters = counted(outcome.seen, "letter")
        click.echo(f"Dry run: {outcome.done} of {letters} would be {verb}. Add --yes --reason TEXT to act.")
    else:
        were = "letter was" if outcome.matched == 1 else "letters were"
        click.echo(f"{outcome.done} of {outcome.matched} {were} {verb}; the record is in {options['journal']}")
    if outcome.finished:
        click.echo(f"{outcome.finished} more had been sent home by an earlier run, and were deleted")
    for why, count in outcome.kept.most_common():
        click.echo(f"{count} stayed: {why}")
    if outcome.cut:
        click.echo("There may be more: SQS allows no more messages in flight. Run it again.")
    if outcome.stopped:
        click.echo("It was stopped. Run it again to go on; nothing was lost.")


def _table_of(counts: dict[tuple[str, str], int]) -> str:
    rows = sorted(counts.items(), key=lambda item: -item[1])
    return table(("letters", "tenant", "reason"), ((count, *pair) for pair, count in rows))


def _hint(counts: dict[tuple[str, str], int]) -> None:
    """Say how tenants are found where no letter has told its own."""
    if all(tenant == "-" for tenant, _ in counts):
        click.echo(f"No letter names its tenant there. {_TENANT_HINT}", err=True)


def _nothing(seen: int, hidden: int, options: dict[str, Any], tenants: Iterable[str] = ()) -> None:
    """Say that no letter is meant: of how many, or that they may only be invisible now; and what to try."""
    if not seen:
        look = "another command looks at them, or one was killed: they are visible again within its --hold"
        click.echo(f"No visible letters; {hidden} are in flight or delayed: {look}." if hidden else "No letters.")
        return
    click.echo(f"None of {counted(seen, 'letter')} is one of these.")
    if options["tenant"] is None:
        return
    near = get_close_matches(options["tenant"], [each for each in tenants if each])
    if near:
        click.echo(f"Is it {' or '.join(map(repr, near))}?", err=True)
    elif options["tenant_from"] == "group":
        click.echo(_TENANT_HINT, err=True)


def _row(letter: "DeadLetter") -> tuple[Any, ...]:
    attempts = "-" if letter.attempts is None else letter.attempts
    return letter.id, letter.tenant or "-", age(letter.sent, time.time()), attempts, letter.redriven, letter.reason


def _facts(letter: "DeadLetter") -> Iterator[tuple[str, Any]]:
    from datetime import UTC, datetime

    def moment(value: float | None) -> str:
        return "-" if value is None else datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds")

    yield "id", letter.id
    yield "tenant", letter.tenant or "-"
    yield "reason", clipped(letter.reason, 500)
    yield "from queue", letter.source or "-"
    yield "message id there", letter.message_id
    yield "sent", moment(letter.sent)
    yield "first received", moment(letter.first_received)
    yield "attempts", "-" if letter.attempts is None else letter.attempts
    yield "receives", "-" if letter.receives is None else letter.receives
    yield "redriven", letter.redriven
    yield "message group", letter.group_id or "-"
    yield "size", f"{letter.size} bytes"
    for name, value in sorted(letter.attributes.items()):
        yield f"  {name}", clipped(value.string_value or f"<{len(value.binary_value or b'')} bytes>", 200)


def _filter(options: dict[str, Any]) -> "LetterFilter":
    from postroom.dead_letters import LetterFilter

    return LetterFilter(
        tenant=options["tenant"],
        reason=options["reason_like"],
        older_than=options["older_than"],
        newer_than=options["newer_than"],
        ids=options.get("ids") or None,
    )


def _in_loop(queue: str, options: dict[str, Any], work: "Callable[[DeadLetterQueue], Coroutine[Any, Any, T]]") -> T:
    """Open the queue and do something with its letters."""
    from postroom.dead_letters import open_dead_letters
    from postroom.transports import AwsClient

    use_endpoint(options["endpoint_url"], options["region"])
    tenant_of = _tenant_of(options["tenant_from"], options["directory"])

    async def main() -> T:
        async with AwsClient() as client:
            return await work(await open_dead_letters(client, queue, tenant_of=tenant_of, hold=options["hold"]))

    return asyncio.run(main())


def _tenant_of(text: str, directory: Path) -> "TenantOf":
    from postroom.dead_letters import tenant_by_attribute, tenant_by_consumer, tenant_by_group

    kind, _, name = text.partition(":")
    if text == "group":
        return tenant_by_group
    if kind == "attribute" and name:
        return tenant_by_attribute(name)
    if not kind or not name:
        raise CommandError(f"--tenant-from takes group, attribute:NAME or MODULE:CONSUMER; got {text!r}")
    from postroom.cli.loading import load

    sys.path.insert(0, str(directory.resolve()))
    consumers = load(text)
    if len(consumers) != 1:
        raise CommandError(f"{text!r} makes {len(consumers)} consumers; name one")
    return tenant_by_consumer(consumers[0])


@contextmanager
def _bar(action: str) -> "Generator[Callable[[Outcome], None] | None]":
    """Draw how far it is, on a terminal only."""
    if not sys.stderr.isatty():
        yield None
        return

    def draw(outcome: "Outcome") -> None:
        total = max(outcome.total, outcome.seen)
        part = outcome.seen / total if total else 1.0
        bar = "█" * int(part * 30)
        click.echo(f"\r{action} {bar:<30} {outcome.seen}/{total} seen, {outcome.done} done\033[K", err=True, nl=False)

    yield draw
    click.echo("\r\033[K", err=True, nl=False)
