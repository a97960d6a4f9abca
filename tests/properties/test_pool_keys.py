"""Adversarial contexts: no two that differ share a key, and none differs from itself."""

import copy
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from postroom.resources import display_key
from postroom.resources.identity import Identifier


@dataclass(frozen=True)
class Tenant:
    """A context of two fields of any type."""

    name: Any
    region: Any


# Few characters, all of them delimiters or look-alikes, so that near-collisions are the rule.
texts = st.text(alphabet=[":", "a", "\x00", "\u0301", "e", "é", "/", "'", ",", "1", " ", "\U0001f600"], max_size=3)
leaves = st.one_of(
    texts,
    st.integers(-2, 2),
    st.booleans(),
    st.sampled_from([0.0, 1.0, 2.0, -1.0, float("inf")]),
    st.none(),
    texts.map(str.encode),
)
fields = st.recursive(leaves, lambda inner: st.tuples(inner) | st.tuples(inner, inner), max_leaves=4)
contexts = st.one_of(leaves, st.builds(Tenant, fields, fields), st.tuples(fields, fields))


@settings(max_examples=50, deadline=None)
@given(st.lists(contexts, min_size=60, max_size=150))
def test_keys_are_the_same_exactly_when_contexts_are(made: list[Any]) -> None:
    """A hundred contexts at a time, all pairs of them: half a million pairs, no collision and no split."""
    identify = Identifier()
    seen = {identify(context): repr(context) for context in made}
    for context in made:
        assert seen[identify(copy.deepcopy(context))] == repr(context)
    assert len(seen) == len({repr(context) for context in made})


@given(contexts)
def test_a_context_is_shown_on_one_bounded_printable_line(context: Any) -> None:
    """Whatever a context contains, the log stays readable."""
    shown = display_key(context)
    assert len(shown) <= 200
    assert shown.replace("\u0301", "").isprintable()
