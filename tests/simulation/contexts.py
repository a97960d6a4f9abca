"""Adversarial pairs of contexts: whatever differs to a provider must have different keys in the pool."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from postroom.resources.identity import Identifier

_TEXTS = (
    *("", "a", "A", "b", "a:b", "a/b", "a|b", "a,b", "a.b", "a b", "a\x00b", "a\nb", ":", "::", "|", "\\", "a\\:b"),
    *(
        "\u00e9",
        "e\u0301",
        "\u0430",
        "\u212b",
        "\u00c5",
        "\ufb01",
        "fi",
        "\u200b",
        "a\u200b",
        "\u202ea",
        "\ud83d\ude00",
    ),
    *("None", "null", "True", "1", "1.0", "0", "-0", "nan", "('a', 'b')", '"a"', "'a'", "a%3Ab", "..", "../a"),
)
_OTHERS = (None, True, False, 0, 1, 1.0, 0.0, -0.0, 2**53, float(2**53), b"a", b"", (), ("a",), ("a", "b"), ("a:b",))


@dataclass(frozen=True)
class Pair:
    """A context of two fields."""

    first: object
    second: object


@dataclass(frozen=True)
class Other:
    """Another context of two fields."""

    first: object
    second: object


class Named(NamedTuple):
    """A context that Python calls equal to a plain tuple."""

    first: object
    second: object


_MAKERS: tuple[Callable[[Any, Any], Any], ...] = (
    Pair,
    Other,
    Named,
    lambda a, b: (a, b),
    lambda a, b: Pair(Pair(a, b), b),
    lambda a, b: Pair(a, Named(a, b)),
    lambda a, b: ((a, b), b),
    lambda a, b: (a, (b,)),
)


def _value(rng: Random) -> object:
    roll = rng.random()
    if roll < 0.6:
        return rng.choice(_TEXTS)
    if roll < 0.8:
        return rng.choice(_TEXTS) + rng.choice((":", "/", "|", ".", "\x00", "")) + rng.choice(_TEXTS)
    return rng.choice(_OTHERS)


def _described(context: object) -> str:
    """Describe a context so that two descriptions are equal only when no provider could tell them apart."""
    if isinstance(context, tuple):
        fields = ",".join(map(_described, context))
    elif isinstance(context, Pair | Other):
        fields = f"{_described(context.first)},{_described(context.second)}"
    elif context == 0 and isinstance(context, float):
        fields = "0.0"  # the sign of a zero is the one thing that keys do not tell apart
    else:
        fields = ascii(context)
    return f"{type(context).__name__}[{len(fields)}]({fields})"


def run_context_pairs(seed: int, count: int) -> tuple[str, ...]:
    """Compare ``count`` pairs; return those that differ and share a key, or are alike and do not."""
    rng = Random(seed)
    identify = Identifier()
    broken: list[str] = []
    for _ in range(count):
        left = rng.choice(_MAKERS)(_value(rng), _value(rng))
        # Half of the pairs are near misses: the same fields in another shape, or one field changed.
        right = (
            rng.choice(_MAKERS)(*_fields(left, rng))
            if rng.random() < 0.5
            else rng.choice(_MAKERS)(_value(rng), _value(rng))
        )
        same = identify(left) == identify(right)
        alike = _described(left) == _described(right)
        if same != alike:
            broken.append(f"I5: {left!r} and {right!r}: keys equal {same}, alike {alike}")
    return tuple(broken)


def _fields(context: Any, rng: Random) -> tuple[object, object]:
    first, second = context if isinstance(context, tuple) else (context.first, context.second)
    return rng.choice(((first, second), (second, first), (first, _value(rng)), (_value(rng), second)))
