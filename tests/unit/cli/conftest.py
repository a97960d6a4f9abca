"""Signals for commands that have something to undo."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal, and afterwards both mean again what they meant before."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield request.param
    for each, handler in before.items():
        signal.signal(each, handler)
