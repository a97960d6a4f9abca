"""Tracebacks as ``traceback.format_exception`` writes them, for errors that come a hundred times a second.

A failing tenant's messages fail at the same lines again and again. Formatting a line parses it, to mark its part that
failed; here that is done once for each line.
"""

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, TracebackType
from typing import Final

from postroom.display import one_line

HEAD: Final = "Traceback (most recent call last):\n"
_CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"

_FURTHER: Final = "  "
"""Before the second and further lines of what an error says."""
_MOST_FRAMES: Final = 100
"""Frames of an error that is formatted here. Longer ones are recursions: their repeated lines are to be folded."""
_MOST_KNOWN: Final = 1_000
"""Lines that are remembered."""

_known: dict[tuple[int, int], tuple[CodeType, str]] = {}
"""The text of a line by its code, as its identity, and the instruction. It keeps the code, or that could be reused."""


def chain_of(error: BaseException) -> list[tuple[str, BaseException]] | None:
    """Return an error and what it was caused by, the first cause first, each with the line that leads to it.

    Returns None where there is more to say: groups, syntax errors, names that a suggestion is made for, recursions.
    """
    chain: list[tuple[str, BaseException]] = []
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        if isinstance(each, BaseExceptionGroup | SyntaxError | NameError | ImportError) or _is_long(each):
            return None
        seen.add(id(each))
        cause = each.__cause__
        inner = each.__context__ if cause is None and not each.__suppress_context__ else cause
        known = inner is None or id(inner) in seen
        chain.append(("" if known else _CONTEXT if cause is None else _CAUSE, each))
        each = inner
    return chain[::-1]


def frames_of(trace: TracebackType, tidy: Callable[[str], str]) -> Iterator[str]:
    """Yield the text of each frame. ``tidy`` is applied to every text, once."""
    each: TracebackType | None = trace
    while each is not None:
        code = each.tb_frame.f_code
        found = _known.get(key := (id(code), each.tb_lasti))
        if found is None:
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
            found = _known[key] = (code, tidy("".join(traceback.format_tb(each, limit=1))))
        yield found[1]
        each = each.tb_next


def text_of(error: BaseException) -> str:
    """Return type, text and notes of an error."""
    return "".join(traceback.format_exception_only(error))


def pieces_of(error: BaseException) -> Iterator[str]:
    """Yield a traceback as the standard library writes it, piece by piece. Lines of notes are indented."""
    formatted = traceback.TracebackException.from_exception(error)
    _indent_notes(formatted, set())
    yield from formatted.format()


def _indent_notes(formatted: traceback.TracebackException, seen: set[int]) -> None:
    if id(formatted) in seen:
        return
    seen.add(id(formatted))
    if isinstance(notes := formatted.__notes__, list):
        formatted.__notes__ = [f"{_FURTHER}{line}" for note in notes for line in str(note).split("\n")]
    for each in (formatted.__cause__, formatted.__context__, *(formatted.exceptions or ())):
        if each is not None:
            _indent_notes(each, seen)


def in_one_block(text: str) -> str:
    """Return a text of which no line but the first begins at the margin, without control characters.

    A sender's words may stand in what an error says: a line of them must not pass for a record of the log.
    """
    lines = text.split("\n")
    further = (line if not line or line[0].isspace() else f"{_FURTHER}{line}" for line in lines[1:])
    return "\n".join(one_line(line.expandtabs(4)) for line in (lines[0], *further))


def place_of(error: BaseException) -> str:
    """Return where an error was raised, as words behind its type: `` in convert, orders.py line 12``. No text of it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    code = trace.tb_frame.f_code  # not by `extract_tb`, which reads the source of all frames
    return f" in {code.co_name}, {Path(code.co_filename).name} line {trace.tb_lineno}"


def drop_if_long(error: BaseException) -> None:
    """Forget the traceback of an error that was told, if it has more than a hundred frames.

    One object that is raised again and again gets a longer one with each time, and keeps what was in all of the frames.
    """
    if _is_long(error):
        error.__traceback__ = None


def raised_by_the_user(error: BaseException | None) -> BaseException | None:
    """Return an error that came out of the user's code, or of what that called: its traceback tells where."""
    trace = None if error is None else error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or str(trace.tb_frame.f_globals.get("__name__")).startswith("postroom."):
        return None
    return error


def _is_long(error: BaseException) -> bool:
    trace = error.__traceback__
    for _ in range(_MOST_FRAMES):
        if trace is None:
            return False
        trace = trace.tb_next
    return trace is not None
