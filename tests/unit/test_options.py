"""Option groups are checked when they are made; the text names the option, the limit, and where it comes from."""

import dataclasses
from typing import Any

import pytest

from postroom import (
    Concurrency,
    ConfigurationError,
    OpenBackoff,
    Polling,
    PoolLimits,
    PoolTimeouts,
    RetryPolicy,
    Shutdown,
    Visibility,
)

ALL = [Concurrency, Polling, Visibility, RetryPolicy, Shutdown, PoolLimits, PoolTimeouts, OpenBackoff]


@pytest.mark.parametrize("kind", ALL)
def test_defaults_are_valid_and_frozen(kind: type[Any]) -> None:
    """Everything has a production-safe default, and nothing can be changed afterwards."""
    made = kind()
    field = dataclasses.fields(made)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, field, 1)


@pytest.mark.parametrize("kind", ALL)
def test_options_are_keyword_only(kind: type[Any]) -> None:
    """A number in a call always has its name beside it."""
    with pytest.raises(TypeError):
        kind(1)


@pytest.mark.parametrize(
    ("kind", "wrong", "told"),
    [
        (Concurrency, {"total": 0}, "total"),
        (Concurrency, {"total": 2.5}, "whole number"),
        (Concurrency, {"total": True}, "whole number"),
        (Concurrency, {"per_tenant": -1}, "per_tenant"),
        (Concurrency, {"handler_timeout": 0}, "handler_timeout"),
        (Polling, {"wait": 21}, "at most 20 s"),
        (Polling, {"wait": -1}, "wait"),
        (Polling, {"batch": 11}, "at most 10 messages"),
        (Polling, {"batch": 0}, "batch"),
        (Polling, {"backoff": 5, "max_backoff": 1}, "max_backoff"),
        (Visibility, {"timeout": 43_201}, "12 h"),
        (Visibility, {"timeout": 0.5}, "at least 1"),
        (Visibility, {"timeout": float("nan")}, "timeout"),
        (Visibility, {"timeout": "60"}, "seconds"),
        (Visibility, {"timeout": 60, "max_extension": 30}, "max_extension"),
        (RetryPolicy, {"base": -1}, "base"),
        (RetryPolicy, {"base": 10, "cap": 5}, "cap"),
        (RetryPolicy, {"jitter": 1.5}, "jitter"),
        (RetryPolicy, {"delay": 5}, "delay"),
        (Shutdown, {"drain": -1}, "drain"),
        (PoolLimits, {"budget": 0}, "budget"),
        (PoolLimits, {"idle": 0}, "idle"),
        (PoolLimits, {"max_concurrent_opens": 0}, "max_concurrent_opens"),
        (PoolTimeouts, {"open": 0}, "open"),
        (OpenBackoff, {"base": 2, "cap": 1}, "cap"),
    ],
)
def test_what_cannot_work_is_refused(kind: type[Any], wrong: dict[str, Any], told: str) -> None:
    """ConfigurationError, which is a ValueError too, with the option's name or SQS's limit in its text."""
    with pytest.raises(ConfigurationError, match=told) as caught:
        kind(**wrong)
    assert isinstance(caught.value, ValueError)
    assert kind.__name__ in str(caught.value)


@pytest.mark.parametrize(
    "fine",
    [
        Polling(wait=0, batch=1, pollers=50, prefetch=0),
        Visibility(timeout=43_200),
        RetryPolicy(base=0, cap=0, jitter=1),
        Shutdown(drain=0, cancel=0, flush=0, close=0, poll=0),
        PoolLimits(idle=None, max_age=None),
    ],
)
def test_the_limits_themselves_are_allowed(fine: object) -> None:
    """The edge of each range belongs to it."""
    assert dataclasses.is_dataclass(fine)
