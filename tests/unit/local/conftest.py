"""Fixtures of the local broker's tests."""

import pytest

from postroom.local import FairPolicy
from unit.local.bench import Bench


@pytest.fixture
def bench() -> Bench:
    """Make a broker with a clock of the test's own."""
    return Bench()


@pytest.fixture
def lagging() -> Bench:
    """Make a broker with fair queues that look for noisy tenants every ten seconds."""
    return Bench(fair=FairPolicy(lag=10.0))
