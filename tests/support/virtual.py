"""Tests that are coroutines and run in virtual time, where hours take milliseconds."""

import inspect
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from postroom.testing.loop import run_virtual

P = ParamSpec("P")
S = TypeVar("S")
Test = Callable[Concatenate[S, P], Coroutine[Any, Any, None]]


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in virtual time."""

    @wraps(test)
    def run(*arguments: P.args, **keywords: P.kwargs) -> None:
        run_virtual(test(*arguments, **keywords))

    return run


def in_scene(scene: Callable[[], AbstractAsyncContextManager[S]]) -> Callable[[Test[S, P]], Callable[P, None]]:
    """Run a test in virtual time and within a scene: its first argument is what the scene yields."""

    def decorate(test: Test[S, P]) -> Callable[P, None]:
        @wraps(test)
        def run(*arguments: P.args, **keywords: P.kwargs) -> None:
            async def main() -> None:
                async with scene() as made:
                    await test(made, *arguments, **keywords)

            run_virtual(main())

        signature = inspect.signature(test)
        _, *fixtures = signature.parameters.values()
        vars(run)["__signature__"] = signature.replace(parameters=fixtures)  # what pytest is to fill in
        return run

    return decorate
