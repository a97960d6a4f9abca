"""Tests that are coroutines and run in virtual time, where hours take milliseconds."""

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

from postroom.testing.loop import run_virtual

P = ParamSpec("P")


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in virtual time."""

    @wraps(test)
    def run(*arguments: P.args, **keywords: P.kwargs) -> None:
        run_virtual(test(*arguments, **keywords))

    return run
