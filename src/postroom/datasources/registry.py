"""Who is a tenant, and where its data is: the registry decides, a message never does."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any, Final, Generic, cast

from typing_extensions import TypeVar

from postroom.checking import check_flag, check_function, check_kind, check_options, check_text, shown
from postroom.display import display_key
from postroom.errors import ConfigurationError, UnknownTenant
from postroom.options import check_seconds
from postroom.types import C

_WORD: Final = re.compile(r"[^\W_]+")

T = TypeVar("T", default=Any)
Password = Callable[[], str | Awaitable[str]]
"""Asked for each physical connection, so that a rotated password or a fresh token reaches the next one."""


class WrongDatabase(ConfigurationError):
    """The canary found a connection to another database, or as another user, than the registry says.

    Nothing was read or written. Look for a pooler between the worker and the server, a DNS name or
    a role setting.
    """


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where one tenant's data is.

    Args:
        dsn: the URL of the database. It may leave the password to ``password``. It is not part of
            the ``repr``.
        database: what ``select current_database()`` must answer; None for the database that the URL
            names.
        user: what ``select current_user`` must answer; None for the user that the URL names.
        password: a function, sync or async, that is asked for each physical connection.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    dsn: str = field(repr=False)
    database: str | None = field(default=None, kw_only=True)
    user: str | None = field(default=None, kw_only=True)
    password: Password | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        check_kind("DataSource(dsn)", self.dsn, str, 'DataSource("postgresql://app@db/acme")')
        for name in ("database", "user"):
            if (value := getattr(self, name)) is not None:
                check_text(f"DataSource({name}=...)", value, f'{name}="acme"')
        if self.password is not None:
            check_function("DataSource(password=...)", "() -> text", self.password, arguments=0)


Located = str | DataSource | None
"""A DSN, a ``DataSource``, or None where there is no such tenant."""
Locate = Callable[[C], Located | Awaitable[Located]]
"""A registry as a function, sync or async: context to data source. ``LookupError`` or None: there is no such tenant."""


class Registry(Generic[C]):
    """The tenants that exist, as a function from context to data source.

    The mapping is read at every call and not copied: what you add to it exists from then on. A
    context that it does not contain raises ``UnknownTenant``; one of a type that no key of a dict
    has is a ``ConfigurationError``, and no unknown tenant.

    Args:
        sources: context to DSN or ``DataSource``.
    """

    def __init__(self, sources: Mapping[C, str | DataSource]) -> None:
        example = 'Registry({Tenant("acme"): "postgresql://..."})'
        check_kind("Registry(sources)", sources, Mapping, f"{example}, from context to DSN or DataSource")
        self._sources = sources

    def __call__(self, context: C) -> str | DataSource:
        """Return where the data of ``context`` is. Raises ``UnknownTenant``."""
        try:
            return self._sources[context]
        except KeyError:
            self._check_kind(context)
            raise _unknown(context) from None

    def _check_kind(self, context: object) -> None:
        """Refuse a context that can equal no key: the registry is for others, and each tenant would be unknown."""
        # Of another mapping it is not known whether it can be listed. Mostly the first key tells.
        keys: list[object] = list(self._sources) if isinstance(self._sources, dict) else []
        if not keys or context is None:  # of a message that names no tenant
            return
        if any(isinstance(key, type(context)) or isinstance(context, type(key)) for key in keys):
            return
        kind, other = (f"{type(each).__module__}.{type(each).__qualname__}" for each in (context, keys[0]))
        text = f"no key of the registry can be '{display_key(context)}', a {kind}: its keys are of type {other}"
        raise ConfigurationError(f"{text}; write Registry with contexts as keys, or a function of the context")

    def __repr__(self) -> str:
        return f"Registry(<{len(self._sources)} tenants>)"


def check_times(owner: str, **seconds: object) -> None:
    """Refuse times that are no seconds, in words that name the argument. Raises ``ConfigurationError``."""
    for name, value in seconds.items():
        check_seconds(owner, name, value)


def check_switches(owner: str, **switches: object) -> None:
    """Refuse switches that are neither True nor False. Raises ``ConfigurationError``."""
    for name, value in switches.items():
        check_flag(f"{owner}({name}=...)", value)


def check_keywords(owner: str, options: object, own: Mapping[str, str]) -> None:
    """Refuse options that are no mapping by name. Raises ``ConfigurationError``.

    Args:
        owner: the provider.
        options: the driver's keywords.
        own: keywords that are the provider's, and what to write instead; "" for nothing.
    """
    check_options(f"{owner}(options=...)", options, 'options={"application_name": "orders"}')
    for name in cast("Mapping[str, object] | None", options) or ():
        if name in own:
            advice = f"; write {owner}({own[name]}=...)" if own[name] else ""
            raise ConfigurationError(f"{owner}(options={{{name!r}: ...}}): the provider sets that itself{advice}")


def check_locate(what: str, locate: object) -> None:
    """Refuse what cannot say where a tenant's data is."""
    call = '(context) -> DSN, such as Registry({Tenant("acme"): "postgresql://..."})'
    check_function(f"{what}(locate)", call, locate)


async def located(locate: Locate[C], context: C) -> DataSource:
    """Ask the registry where the data of ``context`` is.

    Raises:
        ConfigurationError: it answers with something else than a DSN or a ``DataSource``. Else as ``ask_registry``.
    """
    found = cast("object", await ask_registry(locate, context))
    if isinstance(found, DataSource):
        return found
    if isinstance(found, str):
        return DataSource(found)
    text = f"the registry answered {shown(found)} for '{display_key(context)}'"
    raise ConfigurationError(f"{text}: let it return a DSN, a DataSource, or None")


async def ask_registry(registry: Callable[[C], T | Awaitable[T | None] | None], context: C) -> T:
    """Ask a function of the registry's.

    Raises:
        UnknownTenant: it answers None, or raises a ``LookupError``, which is then the cause.
            Whatever else it raises is its failure and passes through; so is a ``KeyError`` for one name, such
            as ``"DSN"``, that has nothing of the context: it is of an environment variable, or of a field.
    """
    try:
        answer = registry(context)
        found = await cast("Awaitable[T | None]", answer) if isawaitable(answer) else answer
    except UnknownTenant:
        raise
    except LookupError as error:
        if not _is_about(error, context):
            raise
        raise _unknown(context) from error
    if found is None:
        raise _unknown(context)
    return cast("T", found)


async def ask(password: Password) -> str:
    """Ask for the password of one connection.

    Raises:
        ConfigurationError: it is no text. Whatever the function raises passes through.
    """
    answer = password()
    found = cast("object", await answer if isawaitable(answer) else answer)
    if not isinstance(found, str):
        raise ConfigurationError(f"DataSource(password=...) returned {type(found).__name__}; let it return a text")
    return found


def _is_about(error: LookupError, context: object) -> bool:
    """Whether what was looked up in vain may be the tenant. A name that has nothing of the context is not."""
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    shown = display_key(context)
    if not isinstance(key, str) or " " in key or shown.startswith("<"):
        return True
    name = _words(key)
    return any(_words(part) in name for part in shown.split(":") if part)


def _words(text: str) -> str:
    """Return a text as words: ``acme-corp`` is found in ``ACME_CORP_DSN``, and ``a`` is not in ``database``."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def _unknown(context: object) -> UnknownTenant:
    return UnknownTenant(f"the registry has no data source for '{display_key(context)}'")
