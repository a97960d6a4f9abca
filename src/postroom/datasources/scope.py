"""One tenant's part of a database that several tenants share: a schema, or the rows that a setting names."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from postroom.checking import check_kind
from postroom.errors import ConfigurationError
from postroom.transactions import MessageKey
from postroom.types import C


@dataclass(frozen=True, slots=True)
class Scope:
    """What PostgreSQL is told at the beginning of each transaction of one tenant, as ``SET LOCAL`` does.

    It ends with the transaction, whatever happens: no connection carries it to another tenant, not
    even a server connection behind a pooler in transaction mode. Outside of a transaction nothing
    of it holds.

    Args:
        schema: the tenant's schema. Unqualified names mean its tables, and no others' (``public``
            included).
        settings: names and values: what the policies of row-level security read with
            ``current_setting``, such as ``{"app.tenant": "acme"}``, or ``{"role": "acme"}``.

    Raises:
        ConfigurationError: it would limit nothing, or the schema has no name.
    """

    schema: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        example = 'Scope(settings={"app.tenant": "acme"})'
        check_kind("Scope(settings=...)", self.settings, Mapping, example)
        for value in [*self.settings, *self.settings.values(), *([] if self.schema is None else [self.schema])]:
            check_kind("Scope", value, str, f'{example} or Scope(schema="acme"), in texts')
            if "\0" in value:
                raise ConfigurationError("a Scope has a NUL character in it, which PostgreSQL cannot have")
        if self.schema == "" or "" in self.settings:
            raise ConfigurationError("the schema of a Scope, or a setting, has no name")
        if self.schema is None and not self.settings:
            raise ConfigurationError("a Scope needs schema= or settings=: without them it keeps no tenants apart")

    def assignments(self) -> list[tuple[str, str]]:
        """Return the settings and their values for this tenant's transactions."""
        # Without pg_temp at its end PostgreSQL would look into temporary tables first.
        path = [] if self.schema is None else [("search_path", f"{quoted(self.schema)}, pg_temp")]
        return [*path, *self.settings.items()]

    def key(self, key: MessageKey) -> MessageKey:
        """Return the key of a message in an inbox that tenants may share: a business key is only one tenant's."""
        if not self.settings:  # each schema has a table of its own
            return key
        tenant = "/".join(f"{len(value)}:{value}" for _, value in sorted(self.settings.items()))
        return MessageKey(key.queue, f"{tenant}/{key.id}")


ScopeOf = Callable[[C], Scope | Awaitable[Scope | None] | None]
"""Context to scope, sync or async: a part of the registry. ``LookupError`` or None: there is no such tenant."""


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def set_local(scope: Scope) -> tuple[str, list[Any]]:
    """Return the statement that begins a scope, and its parameters."""
    assignments = scope.assignments()
    calls = [f"set_config(${2 * n + 1}, ${2 * n + 2}, true)" for n in range(len(assignments))]
    return f"SELECT {', '.join(calls)}", [part for assignment in assignments for part in assignment]
