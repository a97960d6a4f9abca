"""The ids of letters on a command line: whole ones, or as much of their beginning as tells them apart."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import click

from postroom.cli import CommandError

if TYPE_CHECKING:
    from postroom.dead_letters import DeadLetter, DeadLetterQueue, LetterFilter

_WHOLE: Final = 36
"""Characters of an id: a UUID with its hyphens."""
_LEAST: Final = 4
"""Characters of a beginning. Fewer would be a mistyped id more often than a short one."""
_SHOWN: Final = 10


async def whole_ids(letters: "DeadLetterQueue", ids: Iterable[str], where: "LetterFilter") -> tuple[str, ...]:
    """Return whole ids; the queue is looked through only where one is a mere beginning.

    A beginning that no letter has is returned as it is: nothing will be found by it.

    Raises:
        CommandError: a beginning is too short, or several letters have it.
    """
    ids = tuple(ids)
    beginnings: dict[str, dict[str, DeadLetter]] = {each: {} for each in ids if len(each) < _WHOLE}
    for each in beginnings:
        if len(each) < _LEAST:
            raise CommandError(f"an id, or at least {_LEAST} characters of its beginning; got {each!r}")
    if not beginnings:
        return ids
    async for letter in letters.letters(replace(where, ids=None)):
        for beginning, found in beginnings.items():
            if letter.id.startswith(beginning) or letter.message_id.startswith(beginning):
                found[letter.id] = letter
    return tuple(_only(each, beginnings[each]) if each in beginnings else each for each in ids)


def _only(beginning: str, found: "dict[str, DeadLetter]") -> str:
    if not found:
        click.echo(f"No letter has an id that begins with {beginning!r}", err=True)
        return beginning
    if len(found) == 1:
        return next(iter(found))
    rows = [f"  {letter.id}  {letter.tenant or '-'}" for letter in list(found.values())[:_SHOWN]]
    rows += [f"  and {len(found) - _SHOWN} more"] * (len(found) > _SHOWN)
    raise CommandError("\n".join([f"{len(found)} letters have an id that begins with {beginning!r}:", *rows]))
