"""How a tenant is shown: on one line, cut, without control characters and without what its type hides."""

import dataclasses
import datetime as dt
import decimal
import enum
import functools
import getpass
import os
import pathlib
import re
import unicodedata
import uuid
from typing import Any, Final, cast

_SHOWN_AS_TEXT: Final = (
    str, int, float, bool, bytes, complex, decimal.Decimal, uuid.UUID, dt.date, dt.time, pathlib.PurePath,
    type(None),
)  # fmt: skip
_LONGEST: Final = 200
_PASSWORD: Final = re.compile(r"(?<![\w+.-])([\w+.-]{1,40}://[^\s:/?#@]*:)[^\s/?#@]*(?=@)")
_SECRET: Final = re.compile(
    r"\w*(?:password|passwd|passphrase|secret)"
    r"|(?:\w*_)?(?:pass|pwd|(?:access_|auth_|bearer_|refresh_)?token|credentials?"
    r"|(?:api|access|account|private|secret|signing|encryption)_?key)",
    re.IGNORECASE,
)
"""The name of a field that is a secret. A context may be a row of a registry, with all that stands there."""
_NEXT_TRY: Final = re.compile(r"; next try in [0-9.e+-]+ s$")
_HIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class _Text:
    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class Discreet:
    """A base of Structs of which ``repr`` leaves out bodies, payloads or resources: ``rich`` shows no more of them.

    msgspec tells it to list all fields, and a traceback with the local variables would hold them.
    """

    __slots__ = ()

    def __rich_repr__(self) -> Any:  # msgspec promises a list of names and values
        """Tell ``rich`` what stands in the brackets."""
        return [_Text(repr(self).removeprefix(f"{type(self).__name__}(").removesuffix(")"))]


def hide_passwords(text: str) -> str:
    """Return a text without the passwords of URLs in it."""
    return _PASSWORD.sub(r"\g<1>***", text) if "://" in text else text


def without_next_try(text: str) -> str:
    """Return what an error of a pool says without when it tries again, for where that means nothing."""
    return _NEXT_TRY.sub("", text)


def present_user() -> str:
    """Return who runs this process; in a container that may be a number without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in /etc/passwd, and no LOGNAME or USER
        return f"uid {os.getuid()}"


def counted(count: int, one: str) -> str:
    """Return a number with its noun: ``1 handler``, ``2 handlers``, ``0 tries``, ``3 keys``."""
    if count == 1:
        return f"1 {one}"
    return f"{count} {one[:-1]}ies" if one.endswith("y") and not one.endswith("ey") else f"{count} {one}s"


def field_names(kind: type[Any]) -> tuple[str, ...]:
    """Return the names of the fields by which a record is compared: dataclass, msgspec, attrs, pydantic; else none."""
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind) if field.compare)
    for attribute in ("__struct_fields__", "__attrs_attrs__", "__pydantic_fields__"):
        fields = getattr(kind, attribute, None)
        if fields:
            return tuple(getattr(field, "name", field) for field in fields if getattr(field, "eq", True))
    return ()


def display_key(context: object) -> str:
    """Return a context or key as one line of text for logs: ``tenant-a:us-east-1``.

    The fields of a record or tuple are joined by ``:``. Control and invisible characters are escaped, long texts
    cut, fields declared with ``repr=False`` left out, and so are fields that are called as secrets are, and passwords
    in URLs; objects of unknown types are named by their type only. Different keys may look the same here: never use
    it as a key.
    """
    text = one_line(_text_of(context))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _text_of(value: object) -> str:
    if isinstance(value, enum.Enum):
        return _text_of(value.value)
    if isinstance(value, str):
        return hide_passwords(value[: 2 * _LONGEST])
    if tuple in type(value).__mro__ and not _named(type(value)):
        return ":".join(map(_text_of, cast("tuple[object, ...]", value)))
    if isinstance(value, frozenset):
        return ":".join(sorted(map(_text_of, cast("frozenset[object]", value))))
    if isinstance(value, _SHOWN_AS_TEXT):
        return str(value)[: 2 * _LONGEST]
    names = _shown_names(cast("Any", type(value)))
    return ":".join(_text_of(getattr(value, name)) for name in names) if names else f"<{type(value).__name__}>"


@functools.lru_cache(256)
def _shown_names(kind: type[Any]) -> tuple[str, ...]:
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else getattr(kind, "__attrs_attrs__", ())
    if fields:
        names = [field.name for field in fields if field.repr]
    else:
        hidden = {name for name, field in getattr(kind, "__pydantic_fields__", {}).items() if not field.repr}
        names = [name for name in _named(kind) or field_names(kind) if name not in hidden]
    return tuple(name for name in names if _SECRET.fullmatch(name) is None)


def _named(kind: type[Any]) -> tuple[str, ...]:
    """Return the names of the parts of a named tuple; none of anything else, such as a row of SQLAlchemy's."""
    return getattr(kind, "_fields", ()) if tuple in kind.__mro__ else ()


def queue_name(queue: str) -> str:
    """Return the name alone of a queue that a URL or an ARN may stand for: these contain an account id."""
    return queue.rpartition("/")[2].rpartition(":")[2]


def one_line(text: str) -> str:
    """Return a text with its control and invisible characters escaped, line breaks among them."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _HIDDEN_CATEGORIES
        else character
        for character in text
    )
