"""What can name a tenant of a consumer, as far as the consumer's declaration tells."""

import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, cast

from postroom.errors import ConfigurationError
from postroom.fleet import Fleet
from postroom.log_fields import Log, Step, about
from postroom.options import Concurrency
from postroom.payloads import AttributeResolver
from postroom.redaction import describe
from postroom.resources import ResourcePool, display_key

_log = Log("postroom.consumer", Step.POLICY)
_EQUAL_BASES: Final = (str, int, tuple, bytes)
"""A NamedTuple equals a plain tuple, a StrEnum equals a text: the base names the same tenant as the subclass."""
_OTHERS: Final = 3
"""Keys that a warning shows as examples."""


class TenantKeys:
    """Refuses a key that no message of the consumer can have: a decision about it would change nothing.

    Args:
        context: what the consumer was given as ``context=``.
        resources: what it was given as ``resources=``; a pool may have ``key=``.
    """

    def __init__(self, context: Any, resources: object) -> None:
        self._context = context
        self._contexts = () if context is None else _returned(context)
        pool = cast("ResourcePool[Any, Any]", resources) if isinstance(resources, ResourcePool) else None
        self._key: Callable[[Any], Hashable] | None = None if pool is None else pool.key
        self._kinds = self._contexts if self._key is None else _returned(self._key)

    def check(self, key: object, seen: Iterable[Hashable] = ()) -> None:
        """Refuse a key of a wrong type; warn of one unlike all of those seen, where nothing else tells the type.

        Raises:
            ConfigurationError: it cannot be hashed, or cannot be a tenant of this consumer.
        """
        try:
            hash(key)
        except TypeError:
            text = "a tenant is named by its context, or the pool's key for it, one at a time"
            raise ConfigurationError(f"{text}; got {type(key).__name__}") from None
        known = list(seen)
        if any(type(other) is type(key) for other in known):
            return  # messages prove more than annotations
        if self._key is not None:
            self._refuse_context(key, self._key)
        elif self._context is None and key is not None:
            text = "this consumer has no context=, so that all of its messages belong to one tenant, None"
            raise ConfigurationError(f"{text}: name it None, or give the consumer a context=; got {_named(key)}")
        if self._kinds:
            if not _fits(key, self._kinds):
                raise ConfigurationError(self._refusal(key))
        elif known and key is not None:
            self._warn(key, known)

    def check_numbers(self, concurrency: Concurrency, fleet: Fleet | None) -> None:
        """Refuse the number of a tenant that no message can belong to: it would change nothing.

        Raises:
            ConfigurationError: as ``check``, for a key of ``overrides`` or ``weights``.
        """
        numbers: dict[str, object] = {
            "Concurrency(overrides=...)": concurrency.overrides,
            "Concurrency(weights=...)": concurrency.weights,
            "Fleet(overrides=...)": None if fleet is None else fleet.overrides,
        }
        for what, chosen in numbers.items():
            # Of another mapping than a dict nothing is known, such as whether it can be listed, or what it looks up.
            look_up = getattr(type(chosen), "get", None)
            plain = isinstance(chosen, dict) and look_up is dict[Any, Any].get
            for key in cast("dict[object, object]", chosen) if plain else ():
                try:
                    self.check(key)
                except ConfigurationError as error:
                    raise ConfigurationError(f"{what}: {error}") from None

    def _refuse_context(self, key: object, name: Callable[[Any], Hashable]) -> None:
        """Refuse a context where the pool names tenants by a part of it."""
        if self._kinds and _fits(key, self._kinds):
            return
        if not (self._contexts and isinstance(key, self._contexts)):
            return
        try:
            part = name(key)
        except Exception as error:
            text = f"the pool's key= names the tenants, and failed on {_named(key)}: {describe(error)}"
            raise ConfigurationError(text) from error
        if part != key:
            text = f"the pool's key= names this tenant {part!r}: write that in place of the context"
            raise ConfigurationError(f"{text} {_named(key)}")

    def _refusal(self, key: object) -> str:
        if self._key is not None:
            made = " or ".join(kind.__name__ for kind in self._kinds)
            return f"a tenant is named by what the pool's key= makes of its context, which is {made}; got {_named(key)}"
        made = " or ".join(map(_call, self._kinds))
        return f"a tenant of this consumer is named by its context: write {made} in place of {_named(key)}"

    def _warn(self, key: object, known: list[Hashable]) -> None:
        others = ", ".join(repr(display_key(other)) for other in known[:_OTHERS])
        text = "A decision about tenant %s, a %s, will have no effect: tenants here are each a %s, such as %s"
        kinds = " or ".join(dict.fromkeys(type(other).__name__ for other in known))
        _log.warning(text, display_key(key), type(key).__name__, kinds, others, extra=about(tenant=key))


def _named(key: object) -> str:
    return f"{display_key(key)!r} ({type(key).__name__})"


def _call(kind: type) -> str:
    """Return how an instance of a class is written: ``Tenant(tenant_id=..., region=...)``."""
    if kind.__module__ == "builtins":
        return "None" if kind is types.NoneType else f"a {kind.__name__}"
    try:
        names = ", ".join(f"{name}=..." for name in inspect.signature(kind).parameters)
    except (TypeError, ValueError, NameError):  # written in C
        names = "..."
    return f"{kind.__name__}({names})"


def _fits(key: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(key, kinds) or any(
        isinstance(key, base) and issubclass(kind, base) for kind in kinds for base in _EQUAL_BASES
    )


def _returned(function: Any) -> tuple[type, ...]:
    """Return the classes of what a function returns, by its annotation; none where it does not tell."""
    if isinstance(function, type):
        return (function,)
    if isinstance(function, AttributeResolver):
        return (function.context_type,)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - of any context
    while isinstance(function, functools.partial):
        function = function.func  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    made = cast("object", function)
    target: Any = made if inspect.isroutine(made) else getattr(type(made), "__call__", None)  # noqa: B004
    try:
        hint = typing.get_type_hints(inspect.unwrap(target)).get("return", Any)
    except Exception:  # a name that exists for type checkers only
        return ()
    return _classes(hint)


def _classes(hint: Any) -> tuple[type, ...]:
    """Return the classes of an annotation; none where one part of it is none that tells its instances apart."""
    while hasattr(hint, "__supertype__"):  # a NewType
        hint = hint.__supertype__
    origin = typing.get_origin(hint)
    if origin in {typing.Union, types.UnionType}:
        parts = [_classes(part) for part in typing.get_args(hint)]
        return tuple(kind for part in parts for kind in part) if all(parts) else ()
    if origin is typing.Literal:
        return tuple({type(value): None for value in cast("tuple[object, ...]", typing.get_args(hint))})
    kind: Any = origin if origin in {tuple, frozenset} else hint
    if not inspect.isclass(kind) or kind in {object, Any} or getattr(kind, "_is_protocol", False):
        return ()
    # Numbers of different classes are equal: 1 and Decimal(1) name the same tenant.
    return () if issubclass(kind, numbers.Number) and not issubclass(kind, int) else (kind,)
