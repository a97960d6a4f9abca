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
        (RetryPolicy, {"base": 10**400}, r"RetryPolicy\(base=.*got more than a float can hold"),
        (OpenBackoff, {"permanent": 10**5000}, r"OpenBackoff\(permanent=.*got more than a float can hold"),
        (Shutdown, {"close": 10**400}, r"Shutdown\(close=.*got more than a float can hold"),
        (Shutdown, {"within": 10**400}, r"Shutdown\(within=.*got more than a float can hold"),
        (Shutdown, {"drain": -1}, "drain"),
        (Shutdown, {"poll": "2"}, "poll"),
        (Shutdown, {"within": -1}, "within"),
        (Shutdown, {"within": float("inf")}, "finite"),
        (Shutdown, {"within": 25, "drain": 20, "flush": 6}, r"drain=20 \+ flush=6 = 26 s"),
        (Shutdown, {"within": 10, "drain": 20}, "less than its stages"),
        (Shutdown, {"within": 10, "poll": 9, "flush": 2}, r"poll=9 \+ flush=2 \+ close="),
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


def test_a_stop_takes_25_seconds_by_default() -> None:
    """ECS and Kubernetes kill a process after 30; what was cancelled goes back to the queue before."""
    shutdown = Shutdown()
    assert shutdown.total == 25.0
    assert shutdown.drain + shutdown.cancel + shutdown.flush + shutdown.close == 25.0
    assert (shutdown.poll, shutdown.drain, shutdown.cancel, shutdown.flush, shutdown.close) == (2, 13, 4, 4, 4)


@pytest.mark.parametrize("within", [0.0, 0.5, 10.0, 25.0, 110.0, 3600.0])
def test_stages_are_scaled_to_what_a_stop_may_take(within: float) -> None:
    """In proportion, so that they add up to it."""
    shutdown = Shutdown(within=within)
    assert shutdown.total == pytest.approx(within)
    assert shutdown.drain == pytest.approx(within * 13 / 25)
    assert shutdown.poll == pytest.approx(within * 2 / 25)


@pytest.mark.parametrize(
    "stages",
    [{"drain": 60.0}, {"cancel": 0.0}, {"flush": 1.0, "close": 1.0}, {"poll": 10.0}, {"poll": 0.0, "drain": 0.0}],
)
def test_stages_that_are_said_are_kept_and_the_others_share_what_is_left(stages: dict[str, float]) -> None:
    """The whole is what was said."""
    shutdown = Shutdown(within=100, **stages)
    assert {name: getattr(shutdown, name) for name in stages} == stages
    assert shutdown.drain + shutdown.cancel + shutdown.flush + shutdown.close == pytest.approx(100)
    assert shutdown.total == pytest.approx(100)
    if "cancel" not in stages and "flush" not in stages:
        assert shutdown.cancel == pytest.approx(shutdown.flush)


def test_all_stages_may_be_less_than_the_whole() -> None:
    """What is said is kept."""
    assert Shutdown(within=100, poll=1, drain=1, cancel=1, flush=1, close=1).total == 4.0


def test_stages_alone_have_no_limit() -> None:
    """A drain time that is said is not overruled; the other stages keep their defaults."""
    shutdown = Shutdown(drain=600)
    assert (shutdown.cancel, shutdown.flush, shutdown.close, shutdown.poll) == (4, 4, 4, 2)
    assert shutdown.total == 612.0


def test_a_long_poll_counts_where_it_outlasts_the_handlers() -> None:
    """Polls end beside the handlers, and the flush waits for both."""
    assert Shutdown(poll=20, drain=5, cancel=1, flush=1, close=1).total == 22.0


def test_a_stop_can_be_derived_from_another() -> None:
    """``dataclasses.replace`` keeps every stage but the one that is said, and equal stops are equal."""
    shutdown = dataclasses.replace(Shutdown(within=50), drain=60)
    assert (shutdown.drain, shutdown.cancel) == (60.0, Shutdown(within=50).cancel)
    assert Shutdown(within=25) == Shutdown()
    assert hash(Shutdown(within=25)) == hash(Shutdown())
