"""How texts name numbers and tenants."""

import pytest

from postroom.display import counted
from postroom.log_fields import tenant_in_words
from postroom.types import UNRESOLVED


@pytest.mark.parametrize(
    ("count", "one", "text"),
    [(0, "handler", "0 handlers"), (1, "handler", "1 handler"), (2, "try", "2 tries"), (1, "try", "1 try")],
)
def test_a_number_stands_before_its_noun(count: int, one: str, text: str) -> None:
    """One is singular."""
    assert counted(count, one) == text


def test_a_tenant_that_is_not_known_has_no_name() -> None:
    """Nothing calls it by that of the stand-in."""
    assert tenant_in_words(("acme", "eu")) == "tenant acme:eu"
    assert tenant_in_words(UNRESOLVED) == "a tenant that was not resolved"
