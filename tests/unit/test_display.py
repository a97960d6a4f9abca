"""How texts name numbers and tenants."""

import os
import pwd

import pytest

from postroom.display import counted, present_user
from postroom.log_fields import tenant_in_words
from postroom.types import UNRESOLVED


@pytest.mark.parametrize(
    ("count", "one", "text"),
    [(0, "handler", "0 handlers"), (1, "handler", "1 handler"), (2, "try", "2 tries"), (1, "try", "1 try")],
)
def test_a_number_stands_before_its_noun(count: int, one: str, text: str) -> None:
    """One is singular."""
    assert counted(count, one) == text


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run under numbers that /etc/passwd does not know."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 10001)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert present_user() == "uid 10001"


def test_a_tenant_that_is_not_known_has_no_name() -> None:
    """Nothing calls it by that of the stand-in."""
    assert tenant_in_words(("acme", "eu")) == "tenant acme:eu"
    assert tenant_in_words(UNRESOLVED) == "a tenant that was not resolved"
