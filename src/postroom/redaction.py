"""What may be said about an error: its type, its own text and its traceback, without the secrets in them.

Drivers quote connection strings, SDKs quote signed URLs, and a traceback quotes source lines. Everything that postroom
logs about another library's exception passes through here. The exception itself stays untouched: it is the
``__cause__`` of the error that is raised.
"""

import dataclasses
import logging
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, cast
from urllib.parse import unquote

from postroom.log_fields import Log, Step
from postroom.tracebacks import HEAD, chain_of, frames_of, text_of

HIDDEN: Final = "***"
_LONGEST_LINE: Final = 600
_SHORTEST_SECRET: Final = 4
"""A shorter value is removed only where its place says that it is a secret."""
_DEEPEST: Final = 8
_MOST_FRAMES: Final = 50
_LONGEST_VALUE: Final = 16_384
"""Characters of a variable in which secrets are looked for: a connection string is shorter, a message body is not."""

_WORD = (
    r"(?:pass(?:word|wd|phrase|code)|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|signature"
    r"|\bsig(?=[\"']?\s*=))"
)
_VALUE = r"""(?:\\+(?P<q>['"]).*?\\+(?P=q)|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|['"].*|[^\s&]+)"""
_URL: Final = re.compile(r"(?P<head>(?<![\w+.-])[\w+.-]*://[^\s:/?#@]*:)(?P<value>\S*)(?=@)", re.IGNORECASE)
_ASSIGNED: Final = re.compile(
    # Only from the beginning of a run of such characters: else one long word, such as Base64, takes seconds.
    rf"(?P<head>(?<![\w.-])[\w.-]*{_WORD}[\w.-]{{0,200}}\\*['\"]?\s*(?:=>|[=:])\s*[bruf]{{0,2}})(?P<value>{_VALUE})",
    re.IGNORECASE,
)
_SPOKEN: Final = re.compile(
    r"(?P<head>\b(?:password|identified\s+by)\s+)(?P<value>'(?:''|[^'])*'|\"[^\"]*\")", re.IGNORECASE
)
_HEADER: Final = re.compile(
    r"(?P<head>\b(?:proxy-)?authorization\\*['\"]?\s*[=:,]\s*)(?P<value>[^\r\n]+)", re.IGNORECASE
)
_SCHEME: Final = re.compile(r"(?P<head>\b(?:bearer|basic)\s+)(?P<value>[\w.~+/=-]{8,})", re.IGNORECASE)
_ACCESS_KEY: Final = re.compile(r"(?P<head>)(?P<value>\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b)")
_PARAMETERS: Final = re.compile(r"(?P<head>\[parameters:\s*)(?P<value>[^\r\n]*)")
# Every repetition is bounded, so that a large text cannot block the event loop.
_PATTERNS: Final = (_HEADER, _URL, _ASSIGNED, _SPOKEN, _SCHEME, _ACCESS_KEY, _PARAMETERS)
_SECRET_NAME: Final = re.compile(_WORD, re.IGNORECASE)


class Redacted(Exception):
    """Stands for another library's exception in a log record: its text and traceback, without secrets."""


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text without passwords: in URLs, in ``key=value`` pairs, in headers; and without the known secrets."""
    text = _without(text, secrets)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<head>{HIDDEN}", text)
    return text


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def describe(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """Return an error as one line: ``InvalidPasswordError [28P01]: password authentication failed for user "app"``.

    Secrets are removed, control characters escaped, long texts cut.
    """
    state = sqlstate_of(error)
    name = type(error).__name__ + (f" [{state}]" if state else "")
    text = _one_line(redact(_text_of(error), {*secrets, *secrets_of(error)}))
    return f"{name}: {text}" if text else name


def describe_at_length(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """Return the formatted traceback of an error, with causes, notes and the members of groups, without secrets."""
    known = {*secrets, *secrets_of(error)}
    try:
        chain = chain_of(error)
        if chain is None:  # only the standard library formats it well, at ten times the cost
            return redact("".join(traceback.format_exception(error)), known).rstrip("\n")
        parts = [f"{link}{_frames_of(each)}{redact(text_of(each), known)}" for link, each in chain]
        return _without("".join(parts), known).rstrip("\n")
    except Exception:  # an exception with attributes that raise cannot be formatted; its name still can
        text = "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__
        return redact(text, known).rstrip("\n")


def _frames_of(error: BaseException) -> str:
    return "" if error.__traceback__ is None else f"{HEAD}{''.join(frames_of(error.__traceback__, redact))}"


def log_error(
    log: Log | logging.Logger,
    level: int,
    text: str,
    *arguments: object,
    error: BaseException,
    secrets: Iterable[str] = (),
    extra: Mapping[str, object] | None = None,
) -> None:
    """Log a line with the traceback of ``error``, without the secrets in it."""
    if log.isEnabledFor(level):
        shown = describe_at_length(error, secrets)
        log_traceback(log, level, text, *arguments, shown=shown, extra=extra)


def log_traceback(
    log: Log | logging.Logger,
    level: int,
    text: str,
    *arguments: object,
    shown: str,
    extra: Mapping[str, object] | None = None,
) -> None:
    """Log a line with a traceback that ``describe_at_length`` made.

    The record carries a stand-in instead of the exception: a formatter, or a handler that sends exceptions elsewhere,
    finds neither the original's text nor the local variables of its frames.
    """
    if log.isEnabledFor(level):
        exc_info = (Redacted, Redacted(shown), None)
        log = log if isinstance(log, Log) else Log(log, Step.LOOP)
        # Formatters print exc_text instead of formatting the stand-in.
        log.emit(level, text, arguments, extra, exc_info=exc_info, exc_text=shown)


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE that a database driver attached (``sqlstate`` or ``pgcode``), if any."""
    for candidate in (error, _attribute(error, "orig"), error.__cause__):
        for name in ("sqlstate", "pgcode"):
            state = _attribute(candidate, name)
            if isinstance(state, str):
                return state
    return None


def secrets_of(error: BaseException) -> set[str]:
    """Return the secrets that an error, its causes and its frames show by their places or names.

    So a password that the DSN in a frame gives away is also removed where the text has it alone.
    """
    found: set[str] = set()
    for each in _chain(error, _DEEPEST):
        for text in _texts_of(each):
            found.update(_secrets_in(text))
        for name, value in _named_values(each):
            found.update(_secrets_named(name, value))
    return found


def hidden_values(record: object) -> set[str]:
    """Return the texts in fields of a dataclass that its ``repr`` leaves out: they are meant to be secret."""
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        return set()
    values = [_attribute(record, field.name) for field in dataclasses.fields(record) if not field.repr]
    return {value for value in values if isinstance(value, str) and len(value) >= _SHORTEST_SECRET}


def _secrets_in(text: str) -> Iterator[str]:
    for pattern in (_URL, _ASSIGNED, _SPOKEN):
        for match in pattern.finditer(text):
            value = match["value"].strip("\\'\"")
            yield from (each for each in (value, unquote(value)) if len(each) >= _SHORTEST_SECRET)


def _secrets_named(name: str, value: object) -> Iterator[str]:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        return
    yield from _secrets_in(value[:_LONGEST_VALUE])
    if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
        yield value


def _texts_of(error: BaseException) -> Iterator[str]:
    yield _text_of(error)
    yield from (str(note) for note in getattr(error, "__notes__", ()))
    try:
        yield repr(error.args)
    except Exception:  # an argument without a usable repr shows nothing either
        return


def _named_values(error: BaseException) -> Iterator[tuple[str, object]]:
    """Yield the attributes of an error, the items of mappings it was made with, and the variables of its frames."""
    yield from vars(error).items() if hasattr(error, "__dict__") else ()
    for argument in error.args:
        if isinstance(argument, Mapping):
            yield from _items_of(argument)
    frames = traceback.walk_tb(error.__traceback__)
    for (frame, _), _number in zip(frames, range(_MOST_FRAMES), strict=False):
        yield from list(frame.f_locals.items())


def _items_of(mapping: Any) -> Iterator[tuple[str, object]]:
    yield from ((str(name), value) for name, value in mapping.items())


def _chain(error: BaseException, depth: int, seen: set[int] | None = None) -> Iterator[BaseException]:
    seen = set() if seen is None else seen
    if depth <= 0 or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    inner: list[Any] = [error.__cause__, error.__context__, _attribute(error, "orig")]
    if isinstance(error, BaseExceptionGroup):
        inner += cast("BaseExceptionGroup[BaseException]", error).exceptions
    for each in inner:
        if isinstance(each, BaseException):
            yield from _chain(each, depth - 1, seen)


def _attribute(holder: object, name: str) -> object:
    try:
        return getattr(holder, name, None)
    except Exception:  # a property that raises tells nothing
        return None


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "<its text cannot be shown>"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    line = line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)
