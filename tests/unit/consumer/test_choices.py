"""What the log says of an option's function that fails."""

from typing import Any

import pytest

from postroom import RetryPolicy, repeats
from postroom.consumer.choices import Choice, choice
from postroom.options import Call
from support.scripted import message


def _call(number: int) -> Call:
    return Call("acme", message(number), 1)


def test_a_function_that_fails_is_told_of_once_a_minute_with_a_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names the option, the message, the tenant and what applies; the first one has the traceback."""
    now = 100.0
    monkeypatch.setattr(repeats, "monotonic", lambda: now)
    default = RetryPolicy(attempts=3)

    def choose(call: Call) -> RetryPolicy:
        raise KeyError(call.tenant)

    policy: Any = choice("retry=", choose, RetryPolicy)
    assert isinstance(policy, Choice)
    for number in range(500):
        assert policy(_call(number), default) is default
    now += 60
    assert policy(_call(500), default) is default
    first, second = caplog.records
    assert first.getMessage().startswith("The function of retry= failed for message m0 of tenant acme; RetryPolicy(")
    assert first.exc_info is not None
    assert second.getMessage().endswith("applies (failed 499 times more since the last such line)")
    assert vars(second)["message_id"] == "m500"


def test_a_value_is_asked_nothing() -> None:
    """It stays what it is."""
    policy = RetryPolicy()
    assert choice("retry=", policy, RetryPolicy) is policy
