"""How often a queue hands a message out before it is a dead letter, for tests that hold for every number."""

import pytest

_SOME = {1, 2, 3, 4, 5, 8, 20}
"""Below five the consumer spends none; from five on one, from eight on two. ``make long`` takes the rest, too."""

LIMITS = [pytest.param(most, marks=() if most in _SOME else pytest.mark.long) for most in range(1, 21)]
"""``maxReceiveCount`` from 1 to 20."""
