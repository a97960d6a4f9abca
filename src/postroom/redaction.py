"""What may be said about an error: its type, its own text and its traceback, without the secrets in them.

Drivers quote connection strings, SDKs quote signed URLs, and a traceback quotes source lines. Everything that postroom
logs about another library's exception passes through here. The exception itself stays untouched: it is the
``__cause__`` of the error that is raised.
"""

import dataclasses
import itertools
import logging
import re
import traceback
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, cast
from urllib.parse import unquote

from postroom.log_fields import Log, Step
from postroom.tracebacks import HEAD, chain_of, frames_of, in_one_block, pieces_of, text_of

HIDDEN: Final = "***"
_LONGEST_LINE: Final = 600
_ITS_BEGINNING: Final = 400
_OPAQUE: Final = re.compile(r"[A-Za-z0-9+/=%]{80,}")
"""A token of a session, or a receipt handle, wherever it stands: no word of a cause is as long."""
_SHORTEST_SECRET: Final = 4
"""A shorter value is removed only where its place says that it is a secret."""
_SHORTEST_LINE: Final = 8
"""A shorter line of a secret of several lines is no secret by itself."""
_DEEPEST: Final = 8
_MOST_FRAMES: Final = 50
_LONGEST_VALUE: Final = 16_384
"""Characters of a variable in which secrets are looked for: a connection string is shorter, a message body is not."""
_LONGEST_TEXT: Final = 16_384
"""Characters of an error's text that are shown. A megabyte, such as a body that it quotes, takes seconds to redact."""
_LONGEST_SECRET: Final = 4_096
"""A secret that begins before the cut and ends behind it is found if it is not longer: signed URLs have 2,000."""
_LONGEST_TRACEBACK: Final = 65_536
_LONGEST_SEEN: Final = _LONGEST_TEXT + _LONGEST_SECRET
_MOST_CAUSES: Final = 50
_TELLING: Final = 100
"""Characters by which it is told whether a line has the text of a cause already."""
_MOST_NAMED: Final = 3
"""Members of a group that its line names."""
_MOST_ERRORS: Final = 100
"""Errors of a chain or a group in which secrets are looked for; a traceback shows 15 of a group."""

_WORD = (
    r"(?:pass(?:word|wd|phrase|code)|pwd|secret|token|api[_-]?key|access[_-]?key|account[_-]?key|private[_-]?key"
    r"|(?:encryption|signing|subscription)[_-]?key|credential"
    r"|signature|pgpass|(?:\b|_)(?:sig|pass)(?=[\"']?\s*=))"
)
_STRING = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""


def _bracketed(depth: int) -> str:
    """Return a pattern for what stands in brackets, with others in them."""
    inner = f"|{_bracketed(depth - 1)}" if depth > 1 else ""
    # Without going back: else brackets that are not closed would be tried again and again.
    part = rf"""\\+'[^'\\]*+\\+'|\\+"[^"\\]*+\\+"|\\+['"]?|{_STRING}|[^()\[\]{{}}\\]{inner}"""
    return rf"[(\[{{](?:{part})*+[)\]}}]"


_BRACKETS = _bracketed(3)
_VALUE = (
    rf"""(?:\\+(?P<q>['"]).*?\\+(?P=q)|{_STRING}|['"].*|{_BRACKETS}(?:{_BRACKETS}|[^\s&])*+|[(\[{{]+\\*['"].*"""
    rf"|(?:{_BRACKETS}|[^\s&])++)"
)
_BEFORE_AT: Final = re.compile(r"(?<!\S)\S*(?=@)")
_IN_URL: Final = re.compile(r"(?P<head>(?<![\w+.-])[\w+.-]*://[^\s:/?#@]*:)(?P<value>\S*)")


class _Url:
    """Finds passwords in URLs, as a pattern does: one a word, up to the last @ of the word.

    Word by word, since a list of a thousand addresses without any @ would be read to its end from each of them.
    """

    @staticmethod
    def finditer(text: str) -> "Iterator[re.Match[str]]":
        """Yield what is found."""
        words = _BEFORE_AT.finditer(text)
        return (found for word in words if (found := _IN_URL.search(word[0])) is not None)

    @staticmethod
    def sub(replace: Callable[[re.Match[str]], str], text: str) -> str:
        """Replace what is found."""
        return _BEFORE_AT.sub(lambda word: _IN_URL.sub(replace, word[0], count=1), text)


_URL: Final = _Url()
_ASSIGNED: Final = re.compile(
    # Only from the beginning of a run of such characters: else one long word, such as Base64, takes seconds.
    # What follows the name of an error is what it says, if it goes on after a plain word, as in InvalidPasswordError:
    # password authentication failed, or tells the name of a secret itself. Else it may be the secret that was refused.
    rf"(?P<head>(?<![\w.-])[\w.-]*{_WORD}[\w.-]{{0,200}}"
    r"(?!(?-i:(?<=Error)|(?<=Exception)):\ (?:(?-i:[A-Z]?[a-z]{1,15}|[A-Z]{1,15}),?\ \S"
    rf"|[\w.-]{{0,50}}{_WORD}[\w.-]{{0,50}}\s*[=:]))"
    rf"\\*['\"]?\s*(?:=>|[=:])\s*[bruf]{{0,2}})(?P<value>{_VALUE})",
    re.IGNORECASE,
)
_SPOKEN: Final = re.compile(
    r"(?P<head>\b(?:password|identified\s+by)\s+)(?P<value>'(?:''|[^'])*'|\"[^\"]*\")", re.IGNORECASE
)
_STATED: Final = re.compile(
    # The password is x. A plain word is what is wrong with it: the password is invalid.
    r"(?P<head>\b(?i:(?:pass(?:word|wd|phrase|code)|pwd|secret|token|api[ _-]?key)\s+(?:is|was)(?:\s+now)?:?\s+))"
    r"(?P<value>'[^']+'|\"[^\"]+\"|(?!(?:[A-Z]?[a-z]{0,15}|[A-Z]{1,15})[.,;:!?)'\"]{0,5}(?:[\s\\]|\Z))[^\s'\"]{4,})"
)
_HEADER: Final = re.compile(
    # Of cookies only what has a name and a value: "invalid cookie: too long" is a cause.
    r"(?P<head>\b(?:(?:proxy-)?authorization\\*['\"]?\s*[=:,]|(?:set-)?cookie\\*['\"]?\s*"
    r"(?:=|[:,](?=\s*b?\\*['\"]?[^\s=;,'\"\\]{1,200}=)))\s*)(?P<value>[^\r\n]+)",
    re.IGNORECASE,
)
_OPTION: Final = re.compile(
    # Also in a list: ['psql', '--password', 'x'], as a CalledProcessError shows it.
    rf"""(?P<head>(?<![^\s'"\[(,])--?[\w-]{{0,40}}{_WORD}[\w-]{{0,40}}['"]?,?\s+)"""
    r"""(?P<value>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s-]\S*)""",
    re.IGNORECASE,
)
_SCHEME: Final = re.compile(r"(?P<head>\b(?:bearer|basic)\s+)(?P<value>[\w.~+/=-]{8,})", re.IGNORECASE)
_ACCESS_KEY: Final = re.compile(r"(?P<head>)(?P<value>\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b)")
_KEY_BLOCK: Final = re.compile(
    r"(?P<head>-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----)(?P<value>(?s:.{1,20480}?))(?=-----END|\Z)"
)
_TOKEN: Final = re.compile(
    # JSON Web Tokens, and those of GitHub, GitLab, Slack, Stripe, SendGrid, Google, Vault, Shopify and others.
    r"(?P<head>(?<![\w.-]))(?P<value>eyJ[\w-]{5,4096}\.[\w-]{5,4096}(?:\.[\w-]{0,4096})?"
    r"|(?:gh[opsru]_|github_pat_|glpat-|xox[a-z]-|[rs]k_(?:live|test)_|sk-(?:ant|proj)-|SG\.|AIza|hvs\.|ya29\."
    r"|GOCSPX-|shp(?:at|ca|pa|ss)_|whsec_|dckr_pat_|pypi-(?=AgE)|npm_(?=[A-Za-z0-9]{36})|hf_(?=[A-Za-z0-9]{30}))[\w.-]{12,4096})"
)
_HOOK: Final = re.compile(
    r"(?P<head>\b(?:hooks\.slack\.com/\w{1,20}/|discord(?:app)?\.com/api/webhooks/\d{1,40}/"
    r"|api\.telegram\.org/(?:file/)?bot\d{1,40}:))(?P<value>[\w/-]+)"
)
_REFUSED_HEADER: Final = re.compile(
    # Invalid header value b'x\n', as http.client, requests and h11 say of a key that was read from a file.
    rf"""(?P<head>\bheader value:? b?(?=\\*['"]))(?P<value>{_VALUE})"""
)
_ELEMENT: Final = re.compile(
    # <Password>x</Password>, and <add key="Password" value="x"/>. Valkey says: AUTH <password> called without any ...
    rf"""(?P<head><[\w:.-]{{0,40}}{_WORD}[\w:.-]{{0,40}}(?:\s+[\w:.-]{{1,40}}\s*=\s*\\*["'][^<>]{{0,200}})?(?<!/)>"""
    r"""(?!\ called\ without\ any\ )"""
    rf"""|\b(?:key|name)=["'][\w:.-]{{0,40}}{_WORD}[\w:.-]{{0,40}}["']\s+value=["'])(?P<value>[^<>"']+)""",
    re.IGNORECASE,
)
_LOGIN: Final = re.compile(
    # curl -u app:x, also in a list; but no path (sort -u), no format (date -u), no numbers (docker run -u 1000:1000).
    r"""(?P<head>(?<![^\s'"\[(,])(?:-u|--(?:proxy-)?user)['"]?,?\s+['"]?(?![+.~]|\d+:\d+(?![^\s'"])|[A-Za-z]:\\)"""
    r"""[^\s:/'"]{1,100}:)(?P<value>[^\s'"]+)"""
)
_COMMAND: Final = re.compile(
    # mysql -px, sshpass -p x, redis-cli -a x, also in a list. mysql -p x asks for it, and x is a database.
    r"""(?P<head>(?<![\w-])(?:(?:mysql|mariadb)[\w-]{0,20}\b[^\r\n]{0,400}?[\s'"]-p"""
    r"""|sshpass['",]{0,2}\s+['"]?-p(?:['"]?,?\s+)?|(?:redis|valkey)-cli\b[^\r\n]{0,400}?[\s'"]-a['"]?,?\s+))"""
    r"""(?P<value>(?<=['"]-p)[^'"]+|'[^']+'|"[^"]+"|[^\s'",][^\s'"]*)"""
)
_ORACLE: Final = re.compile(
    # scott/x@db:1521/orders, scott/x@(DESCRIPTION=...). Behind the @ of a package (owner/name@v4/file) is a version.
    r"(?P<head>(?<![\w./@-])[\w$#.-]{1,128}/)(?P<value>\"[^\"\r\n]{1,128}\"|[^\s/'\"]{1,128})"
    r"(?=@(?:\(|(?://)?(?!v?\d{1,9}(?:\.\d{1,9}){0,2}[/-])[\w.-]{1,253}(?::\d{1,5}(?![\w.])|/\w)))"
)
_PARAMETERS: Final = re.compile(r"(?P<head>\[parameters:\s*)(?P<value>[^\r\n]*)")
_OF_INPUT: Final = r"invalid input (?:syntax|value) for [^:\r\n]{1,100}|malformed [\w ]{1,40} literal|out of range"
_DATA: Final = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        # PostgreSQL's details, in each of its languages: Key (email)=(x) already exists.
        r"(?P<head>\)\s?=\s?\()(?P<value>[^\r\n]*)(?=\))",
        r"(?P<head>\bFailing row contains \()(?P<value>(?s:.{0,20000})(?=\)\.)|(?s:.*))",
        rf"""(?P<head>\b(?:{_OF_INPUT}): )(?P<value>"(?s:.{{0,4000}}?)")(?=\s*$|\\n|['")])""",
        r"""(?P<head>\bvalue )(?P<value>"[^"\r\n]{0,4000}")(?= is out of range)""",
        r"""(?P<head>^LINE \d{1,6}: [^'\r\n]*)(?P<value>'[^\r\n]*)""",  # of a statement with its values in it
        r"(?P<head>\bfor query argument \$\d{1,5}: )(?P<value>[^\r\n]*(?= \()|[^\r\n]*)",  # asyncpg
        r"(?P<head>\bDuplicate entry |\bIncorrect \w{1,20} value: )(?P<value>'[^\r\n]*')(?= for )",  # MySQL
        r"(?P<head>\binput_value=)(?P<value>[^\r\n]*)(?=, input_type=)",  # pydantic
    )
)
"""What databases and validators quote of rows, keys, parameters and input: the tenant's data, and no cause."""
# Every repetition is bounded, so that a large text cannot block the event loop.
_PATTERNS: Final[tuple[re.Pattern[str] | _Url, ...]] = (
    _KEY_BLOCK, _TOKEN, _ELEMENT, _HEADER, _URL, _ORACLE, _ASSIGNED, _SPOKEN, _STATED, _OPTION, _LOGIN, _COMMAND,
    _SCHEME, _ACCESS_KEY, _HOOK, _REFUSED_HEADER, _PARAMETERS, *_DATA,
)  # fmt: skip
_SECRET_NAME: Final = re.compile(_WORD, re.IGNORECASE)


class Redacted(Exception):
    """Stands for another library's exception in a log record: its text and traceback, without secrets."""


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text without passwords: in URLs, in ``key=value`` pairs, in headers; and without the known secrets.

    What databases and validators quote of a tenant's data goes, too. A long text is cut.
    """
    return _redacted(text, secrets, _LONGEST_TEXT)


def quote(text: str) -> str:
    """Return what a server said as one line of at most 600 characters, without secrets.

    A refusal may quote the request, with the session token in it, and a proxy may answer with a page of its own. What
    is too long loses its middle: AWS names the reason of a refusal at the end, behind the names of user and resource.
    """
    line = _printable(" ".join(_OPAQUE.sub(HIDDEN, redact(text)).split()))
    if (beyond := len(line) - _LONGEST_LINE) <= 0:
        return line
    return f"{line[:_ITS_BEGINNING]}…{line[_ITS_BEGINNING + beyond + 1 :]}"


def _redacted(text: str, secrets: Iterable[str], longest: int) -> str:
    if (beyond := len(text) - longest) <= 0:
        return _hidden(text, secrets)
    # Half a secret at the cut is not recognized: what stands there is dropped once the rest is redacted.
    kept = _hidden(text[: longest + _LONGEST_SECRET], secrets)[:-_LONGEST_SECRET]
    return f"{kept}… ({beyond} more characters)"


def _hidden(text: str, secrets: Iterable[str]) -> str:
    text = _without(text, secrets)
    for pattern in _PATTERNS:
        text = pattern.sub(_hide, text)  # a function: a template is looked up for each pattern, found or not
    return text


def _hide(match: re.Match[str]) -> str:
    return match["head"] + HIDDEN


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def describe(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """Return an error as one line: ``InvalidPasswordError [28P01]: password authentication failed for user "app"``.

    Its notes follow, and the first members of a group: what a group itself says is no cause. So does what it was raised
    from first, where that says something else. Secrets are removed, control characters escaped, long texts cut.
    """
    known = {*secrets, *secrets_of(error)}
    line, first = _described(error, known), _first_cause_of(error)
    if first is None:
        return line
    said = _one_line(redact(_text_of(first), known))
    # As SQLAlchemy quotes the driver's, and the transport what botocore has put its own words in front of. Of one
    # without a text, such as most of TimeoutError, the name tells.
    known_already = said.rpartition(" operation: ")[2][:_TELLING].rstrip(".") in line
    if known_already if said else isinstance(error, type(first)):
        return line
    return f"{line}; from {_described(first, known)}"


def _first_cause_of(error: BaseException) -> BaseException | None:
    """Return the end of the chain that ``raise ... from ...`` made, or None where there is none."""
    first, each = None, _attribute(error, "__cause__")
    for _ in range(_DEEPEST):
        # A cancellation is how a time limit is kept, and no cause.
        if not isinstance(each, BaseException) or each is error or isinstance(each, CancelledError):
            break
        first, each = each, _attribute(each, "__cause__")
    return first


def _described(error: BaseException, known: set[str]) -> str:
    state = sqlstate_of(error)
    name = type(error).__name__ + (f" [{state}]" if state else "")
    said = [redact(text, known) for text in (_text_of(error), *_notes_of(error))]
    text = _one_line("; ".join(each for each in said if each))
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        members = list(itertools.islice(_members_of(group, _DEEPEST), _MOST_NAMED + 1))
        named = [describe(each, known) for each in members[:_MOST_NAMED]]
        text = _one_line(f"{text}: {' | '.join([*named, *(['...'] if len(members) > _MOST_NAMED else [])])}")
    return f"{name}: {text}" if text else name


def describe_at_length(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """Return the formatted traceback of an error, with causes, notes and the members of groups, without secrets."""
    known = {*secrets, *secrets_of(error)}
    try:
        chain = chain_of(error)
        if chain is None:  # only the standard library formats it well, at ten times the cost
            pieces = "".join(in_one_block(redact(piece, known)) for piece in pieces_of(error))
            return _redacted(pieces, known, _LONGEST_TRACEBACK).rstrip("\n")
        parts = [
            f"{link}{_frames_of(each)}{in_one_block(redact(text_of(each), known))}"
            for link, each in chain[-_MOST_CAUSES:]
        ]
        return _without("".join(parts), known).rstrip("\n")
    except BaseException as raised:  # an exception with attributes that raise cannot be formatted; its name still can
        _pass_over(raised)
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
    for candidate in (error, _attribute(error, "orig"), _attribute(error, "__cause__")):
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
    for each in itertools.islice(_chain(error, _DEEPEST), _MOST_ERRORS):
        _gather(found, (secret for text in _texts_of(each) for secret in _secrets_in(text[:_LONGEST_SEEN])))
        _gather(found, (secret for name, value in _named_values(each) for secret in _secrets_named(name, value)))
    return found


def _gather(found: set[str], secrets: Iterator[str]) -> None:
    try:
        found.update(secrets)
    except BaseException as raised:  # by an attribute of the error, or a note that is none: what it hides is unknown
        _pass_over(raised)


def _pass_over(raised: BaseException) -> None:
    """Ignore what an error raised when it was looked at, unless it ends the program."""
    if isinstance(raised, SystemExit | KeyboardInterrupt):
        raise raised


def hidden_values(record: object) -> set[str]:
    """Return the texts in fields of a dataclass that its ``repr`` leaves out: they are meant to be secret."""
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        return set()
    values = [_attribute(record, field.name) for field in dataclasses.fields(record) if not field.repr]
    return {value for value in values if isinstance(value, str) and len(value) >= _SHORTEST_SECRET}


def _secrets_in(text: str) -> Iterator[str]:
    for pattern in (_URL, _ORACLE, _ASSIGNED, _SPOKEN, _STATED):
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
        # The lines of a private key may stand apart, as in the traceback of a group.
        yield from (each for line in value.splitlines() if len(each := line.strip()) >= _SHORTEST_LINE)


def _texts_of(error: BaseException) -> Iterator[str]:
    yield _text_of(error)
    yield from _notes_of(error)
    yield repr(error.args)


def _notes_of(error: BaseException) -> list[str]:
    """Return the notes of an error, or of the driver's that SQLAlchemy made it of."""
    original = _attribute(error, "orig")
    for each in (error, original, _attribute(original, "__cause__")):
        if isinstance(notes := _attribute(each, "__notes__"), list):
            return [note for note in cast("list[object]", notes) if isinstance(note, str)]
    return []


def _members_of(group: BaseExceptionGroup[BaseException], depth: int) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup) and depth > 0:
            yield from _members_of(cast("BaseExceptionGroup[BaseException]", each), depth - 1)
        else:
            yield each


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
    inner: list[Any] = [_attribute(error, name) for name in ("__cause__", "__context__", "orig")]
    if isinstance(error, BaseExceptionGroup):
        inner += cast("BaseExceptionGroup[BaseException]", error).exceptions[:_MOST_ERRORS]
    for each in inner:
        if isinstance(each, BaseException):
            yield from _chain(each, depth - 1, seen)


def _attribute(holder: object, name: str) -> object:
    try:
        return getattr(holder, name, None)
    except BaseException as raised:  # a property that raises tells nothing
        _pass_over(raised)
        return None


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as raised:
        _pass_over(raised)
        return "<its text cannot be shown>"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return _printable(line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…")


def _printable(line: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)
