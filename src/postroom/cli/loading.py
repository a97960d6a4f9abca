"""Consumers by their names on a command line, and what is said of a module that cannot be imported."""

import importlib
import traceback
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final

import click

from postroom.cli import CommandError
from postroom.errors import PostroomError
from postroom.redaction import describe, describe_at_length

if TYPE_CHECKING:
    from postroom.consumer import Consumer

_NOT_THEIRS: Final = (str(Path(__file__).parents[1]), str(Path(importlib.__file__).parent), "<frozen", "<string>")
"""Where the frames are that lead to the user's module: postroom's own, those of the import and of dataclasses."""


class CannotLoad(CommandError):
    """A module raised an error: the user's part of its traceback is shown before what is said of it."""

    def __init__(self, message: str, error: Exception) -> None:
        super().__init__(message)
        self.error = error

    def show(self, file: IO[Any] | None = None) -> None:
        """Write it to stderr."""
        click.echo(describe_at_length(self.error), err=True)
        super().show(file)


def load(*names: str) -> "list[Consumer[Any, Any]]":
    """Import the consumers that ``module:attribute`` names, each of them once.

    Raises:
        CommandError: there is none, or one twice, and its text says what to write.
        CannotLoad: the module raised an error.
    """
    from postroom.consumer.loading import WrongName, check_each_once

    loaded = [consumer for name in names for consumer in _load(name)]
    try:
        check_each_once(loaded)
    except WrongName as error:
        raise CommandError(str(error)) from error
    return loaded


def _load(name: str) -> "list[Consumer[Any, Any]]":
    from postroom.consumer.loading import NoModule, WrongName, load_consumers

    try:
        return load_consumers(name)
    except NoModule as error:
        raise CommandError(f"{error}; say --directory") from error
    except WrongName as error:
        raise CommandError(str(error)) from error
    except PostroomError as error:  # its text says what to write; the place says where
        raise CommandError(f"{name!r} cannot be loaded: {error} ({place_of(error)})") from error
    except Exception as error:
        place = place_of(error)
        error.__traceback__ = _theirs(error.__traceback__)
        raise CannotLoad(f"{name!r} cannot be loaded: {describe(error)} ({place})", error) from error


def place_of(error: BaseException) -> str:
    """Return the line of the user's code where an error comes from: the last that is not postroom's own."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THEIRS)]
    last = (theirs or frames)[-1]
    return f"{last.filename}:{last.lineno}"


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first line of the user's code on; None where it has none, as for a syntax error."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_NOT_THEIRS):
        trace = trace.tb_next
    return trace
