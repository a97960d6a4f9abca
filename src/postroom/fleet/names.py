"""What a tenant is called in the shared state: the same text in every replica, and for every start."""

from collections.abc import Hashable
from hashlib import blake2b
from typing import Any, Final, cast

import msgspec

from postroom.display import field_names

_LONGEST: Final = 200
_encode: Final = msgspec.json.Encoder(order="deterministic").encode


class Unnamable(TypeError):
    """A tenant has no text of its own that every replica would make alike."""


def name_of(tenant: Hashable) -> str:
    """Return a tenant's name: ``t:acme`` for a text, ``j:["acme","eu"]`` for a record, a number or a tuple.

    Of a record count the fields that count in its comparison.

    Raises:
        Unnamable: it is made of other things than texts, numbers, dates, UUIDs, enums, and records or tuples of them.
    """
    if isinstance(tenant, str):
        text = f"t:{tenant}"
    else:
        try:
            text = f"j:{_encode(_plain(tenant)).decode()}"
        except (TypeError, ValueError) as error:
            what = f"{type(tenant).__name__} cannot be named alike in every replica: {error}"
            raise Unnamable(what) from error
    if len(text) <= _LONGEST:
        return text
    return f"h:{blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=20).hexdigest()}"


def _plain(value: object) -> object:
    if names := field_names(type(value)):
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return list(map(_plain, cast("tuple[Any, ...]", value)))
    if isinstance(value, frozenset):
        return sorted(map(_plain, cast("frozenset[Any]", value)), key=_encode)
    return value


def name_or_none(tenant: Hashable) -> str | None:
    """Return a tenant's name; None where it has no text that every replica would make alike."""
    try:
        return name_of(tenant)
    except Unnamable:
        return None


def shown(name: str) -> str:
    """Return a name as it is shown to people, without its kind."""
    return name.partition(":")[2]
