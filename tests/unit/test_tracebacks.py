"""Tracebacks that are formatted line by line read as those of the standard library."""

import re
import traceback
from collections.abc import Callable

import pytest

from postroom import tracebacks
from postroom.redaction import describe_at_length
from postroom.tracebacks import chain_of, drop_if_long, frames_of


def _caught(fails: Callable[[], object]) -> BaseException:
    try:
        fails()
    except BaseException as error:
        return error
    raise AssertionError("it did not fail")


def _simple() -> None:
    _ = {"a": 1}["b"] + 1


def _with_cause() -> None:
    try:
        _simple()
    except KeyError as error:
        raise ValueError("two\nlines") from error


def _with_context() -> None:
    try:
        _with_cause()
    except ValueError:
        raise OSError(104, "gone")  # noqa: B904 - the context is what is tested


def _without_context() -> None:
    try:
        _simple()
    except KeyError:
        raise ValueError("alone") from None


def _with_notes() -> None:
    error = ValueError()
    error.add_note("a note\nof two lines")
    raise error


def _in_a_circle() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    raise one


def _deep(depth: int = 300) -> None:
    _deep(depth - 1) if depth else _simple()


def _in_a_group() -> None:
    raise BaseExceptionGroup("several", [_caught(_with_cause), _caught(_simple)])


def _misspelt() -> None:
    _ = chain_off  # type: ignore[name-defined] # noqa: F821 - what a suggestion is made for


def _unreadable() -> None:
    compile("a b", "there", "exec")


@pytest.mark.parametrize(
    "fails",
    [
        _simple,
        _with_cause,
        _with_context,
        _without_context,
        _with_notes,
        _in_a_circle,
        _deep,
        _in_a_group,
        _misspelt,
        _unreadable,
    ],
)
def test_a_traceback_reads_as_the_standard_library_writes_it(fails: Callable[[], object]) -> None:
    """The first time, and when its lines are known; but further lines of a text, and notes, are indented."""
    error = _caught(fails)
    wanted = "".join(traceback.format_exception(error)).rstrip("\n")
    wanted = re.sub(r"^(?=lines|a note|of two)", "  ", wanted, flags=re.MULTILINE)
    assert describe_at_length(error) == wanted
    assert describe_at_length(error) == wanted


def test_each_line_is_formatted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that fails for every message costs no more parsing."""
    monkeypatch.setattr(tracebacks, "_known", {})
    formatted: list[str] = []

    def tidy(text: str) -> str:
        formatted.append(text)
        return text

    for _ in range(3):
        trace = _caught(_with_cause).__traceback__
        assert trace is not None
        assert len(list(frames_of(trace, tidy))) == 2
    assert len(formatted) == 2


def test_no_more_lines_are_remembered_than_a_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is made while the program runs must not stay in memory."""
    known: dict[object, object] = {}
    monkeypatch.setattr(tracebacks, "_known", known)
    monkeypatch.setattr(tracebacks, "_MOST_KNOWN", 3)
    for number in range(20):
        names: dict[str, Callable[[], object]] = {}
        exec(f"def fails():\n    raise ValueError({number})", names)  # noqa: S102 - code that is made at run time
        trace = _caught(names["fails"]).__traceback__
        assert trace is not None
        assert "in fails" in "".join(frames_of(trace, str))
        assert len(known) <= 3


def test_only_what_the_standard_library_formats_no_differently_is_formatted_here() -> None:
    """Groups, suggestions, syntax errors and recursions are its own."""
    assert chain_of(_caught(_simple)) is not None
    for fails in (_deep, _in_a_group, _misspelt, _unreadable):
        assert chain_of(_caught(fails)) is None


def test_one_object_that_is_raised_again_and_again_does_not_get_longer_without_end() -> None:
    """It keeps what was in each frame of its traceback, and each is formatted again."""
    sentinel = KeyError("not there")

    def fails() -> None:
        raise sentinel

    for _ in range(1_000):
        drop_if_long(_caught(fails))
    assert len(traceback.extract_tb(sentinel.__traceback__)) <= 102
